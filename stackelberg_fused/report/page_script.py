"""The script of the page: arms are shown and hidden, and a pointer or the arrow keys read values off the lines.

Without it the page shows everything but these values.
"""

from __future__ import annotations

SCRIPT = r"""
"use strict";
const panels = JSON.parse(document.getElementById("points").textContent);
const figures = [...document.querySelectorAll("figure.panel")];
const hidden = new Set();

for (const button of document.querySelectorAll(".arms button")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const arm = button.dataset.arm, show = hidden.delete(arm);
    if (!show) hidden.add(arm);
    button.setAttribute("aria-pressed", String(show));
    for (const mark of document.querySelectorAll(`figure [data-arm="${arm}"]`)) mark.classList.toggle("off", !show);
  });
}

// the index of the point that is nearest to a step
function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1; else high = middle;
  }
  return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
}

function shown(panel) {
  return panel.lines.filter(line => !hidden.has(String(line.arm)) && line.x.length);
}

// a step that a line has, as near as can be
function snapped(panel, step) {
  const steps = shown(panel).map(line => line.x[nearest(line.x, step)]);
  return steps.length ? steps.reduce((a, b) => Math.abs(a - step) <= Math.abs(b - step) ? a : b) : null;
}

function clear() {
  for (const figure of figures) {
    figure.querySelector(".cursor").style.display = "none";
    figure.querySelector(".tip").replaceChildren();
  }
}

function point(figure, step) {
  clear();
  const panel = panels[figure.dataset.panel];
  step = snapped(panel, step);
  if (step === null) return;
  figure.step = step;
  const share = (step - panel.low) / (panel.high - panel.low);
  for (const each of figures) {
    const cursor = each.querySelector(".cursor");
    cursor.style.display = "block";
    cursor.style.left = 100 * share + "%";
  }
  const tip = figure.querySelector(".tip"), frame = figure.querySelector(".frame");
  const head = document.createElement("b");
  head.textContent = "step " + step;
  tip.append(head);
  for (const line of shown(panel)) {
    const row = document.createElement("span"), value = document.createElement("b");
    row.className = "a" + line.arm % 8;
    row.textContent = line.label;
    value.textContent = line.y[nearest(line.x, step)];
    row.append(value);
    tip.append(row);
  }
  const plot = figure.querySelector(".plot");
  const x = frame.offsetLeft + share * frame.clientWidth;
  const room = figure.clientWidth - tip.offsetWidth - 8;
  const right = x + 14, left = x - tip.offsetWidth - 14;
  tip.style.left = Math.max(4, right <= room ? right : left >= 4 ? left : room) + "px";
  tip.style.top = plot.offsetTop + 8 + "px";
}

for (const figure of figures) {
  const panel = panels[figure.dataset.panel], frame = figure.querySelector(".frame");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  figure.append(tip);
  const follow = event => {
    const box = frame.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    point(figure, panel.low + share * (panel.high - panel.low));
  };
  frame.addEventListener("pointermove", follow);
  frame.addEventListener("pointerdown", follow);
  frame.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") clear(); });
  frame.addEventListener("blur", clear);
  frame.addEventListener("keydown", event => {
    const way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (event.key === "Escape") clear();
    if (!way) return;
    event.preventDefault();
    const steps = [...new Set(shown(panel).flatMap(line => line.x))].sort((a, b) => a - b);
    if (!steps.length) return;
    const at = figure.step === undefined ? (way > 0 ? -1 : steps.length) : nearest(steps, figure.step);
    point(figure, steps[Math.min(steps.length - 1, Math.max(0, at + way))]);
  });
}
"""
