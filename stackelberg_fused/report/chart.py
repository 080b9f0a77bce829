"""One chart as HTML and SVG: lines in a frame of any width, and text beside it that keeps its size."""

from __future__ import annotations

import json
import math
from html import escape
from typing import Any

from .panels import Line, Panel
from .scale import Scale, text

HEIGHT = 220  # pixels of a frame; page_style.py has the same
LABEL = 15  # pixels from label to label
UNITS = 1000  # of the frame's coordinates, which are stretched to its size


def chart(panel: Panel, index: int, steps: Scale, arms: int) -> str:
    """Return a figure.

    Args:
        panel: what it shows.
        index: of the panel on the page.
        steps: the horizontal axis, the same for all panels.
        arms: how many the page has.
    """
    heading = f"<h3>{escape(panel.title)}</h3>"
    subtitle = f'<p class="sub">{escape(panel.subtitle)}</p>' if panel.subtitle else ""
    ticks = [(t, y) for t in panel.scale.ticks() if (y := panel.scale.share(t)) is not None]
    grid = "".join(f'<line x1="0" x2="{UNITS}" y1="{_y(y)}" y2="{_y(y)}"/>' for _, y in ticks)
    ys = "".join(f'<span style="bottom:{100 * y:.2f}%">{escape(text(t))}</span>' for t, y in ticks)
    xs = "".join(
        f'<span style="left:{100 * x:.2f}%">{escape(text(t))}</span>'
        for t in steps.ticks(4)
        if (x := steps.share(t)) is not None and t >= 0
    )
    lines = "".join(_line(line, panel.scale, steps) for line in panel.lines)
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in panel.notes)
    return (
        f'<figure class="panel" data-panel="{index}"><figcaption>{heading}{subtitle}</figcaption>'
        f'<div class="plot"><div class="ys" aria-hidden="true">{ys}</div>'
        f'<div class="frame" role="img" tabindex="0" aria-label="{escape(description(panel))}">'
        f'<svg viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" aria-hidden="true">'
        f'<g class="grid">{grid}</g>{lines}</svg><i class="cursor"></i></div>'
        f'<div class="ends" aria-hidden="true">{_ends(panel)}</div>'
        f'<div class="xs" aria-hidden="true">{xs}<b>step</b></div></div>{notes}</figure>'
    )


def description(panel: Panel) -> str:
    """Return the text for readers who do not see the lines."""
    parts = []
    for line in panel.lines:
        finite = [(step, value) for step, value in line.points if math.isfinite(value)]
        if not finite:
            parts.append(f"{line.label}: never finite")
            continue
        (first_step, first), (last_step, last) = finite[0], finite[-1]
        way = "" if len(finite) == 1 else f"{text(first)} at step {text(first_step)}, "
        parts.append(f"{line.label}: {way}{text(last)} at step {text(last_step)}")
    scale = " on a logarithmic scale" if panel.scale.log else ""
    return f"{panel.title} over steps{scale}. {'; '.join(parts)}."


def _y(share: float) -> str:
    return f"{UNITS * (1 - share):.0f}"


def _line(line: Line, scale: Scale, steps: Scale) -> str:
    """The path of a line; values without a place on the scale interrupt it."""
    places = []
    for step, value in line.points:
        x, y = steps.share(step), scale.share(value)
        # far outside of the frame one unit is as good as another
        places.append(
            None
            if x is None or y is None
            else f"{UNITS * x:.0f} {UNITS * (1 - max(-3.0, min(4.0, y))):.0f}"
        )
    path, pen = [], "M"
    for i, place in enumerate(places):
        if place is None:
            pen = "M"
            continue
        alone = pen == "M" and (i + 1 == len(places) or places[i + 1] is None)
        path.append(f"{pen}{place}{'h0' if alone else ''}")
        pen = "L"
    style = f"arm a{line.arm % 8} s{line.style % 4}"
    found = f'<path class="{style}" data-arm="{line.arm}" d="{"".join(path)}"/>'
    if line.dots:
        dots = "".join(f"M{place}h0" for place in places if place)
        found += f'<path class="arm dots a{line.arm % 8}" data-arm="{line.arm}" d="{dots}"/>'
    return found


def _ends(panel: Panel) -> str:
    """Labels at the ends of the lines, moved apart where they would cover each other."""
    ends = []
    for line in panel.lines:
        shares = [s for _, v in line.points if (s := panel.scale.share(v)) is not None]
        if shares:
            ends.append((HEIGHT * (1 - max(0.0, min(1.0, shares[-1]))), line))
    ends.sort(key=lambda pair: pair[0])
    places = spread([place for place, _ in ends])
    return "".join(
        f'<span class="a{line.arm % 8}" data-arm="{line.arm}" style="top:{place:.1f}px" '
        f'title="{escape(line.label)}">{escape(line.label)}</span>'
        for place, (_, line) in zip(places, ends, strict=True)
    )


def spread(places: list[float], distance: float = LABEL, height: float = HEIGHT) -> list[float]:
    """Move ascending places apart to at least a distance, within the height as far as they fit, in equal shares."""
    groups: list[list[float]] = []  # of touching labels: [sum of wanted first places, count]
    for place in places:
        groups.append([place, 1.0])
        while len(groups) > 1:
            (upper, n), (lower, m) = groups[-2:]
            if upper / n + n * distance <= lower / m:
                break
            groups[-2:] = [[upper + lower - m * n * distance, n + m]]
    found: list[float] = []
    for wanted, count in groups:
        first = wanted / count
        first = max(
            min(first, height - (count - 1) * distance), found[-1] + distance if found else 0.0
        )
        found += [first + i * distance for i in range(int(count))]
    overflow = found[-1] - height if found else 0.0
    # from below, where the last ones had no room
    if overflow > 0:
        limit = height
        for i in reversed(range(len(found))):
            found[i] = min(found[i], limit)
            limit = found[i] - distance
    return found


def points(panel: Panel, steps: Scale) -> dict[str, Any]:
    """Return what the script shows under the pointer, as JSON can hold it."""
    return {
        "lines": [
            {
                "arm": line.arm,
                "label": line.label,
                "x": [step for step, _ in line.points],
                "y": [text(value) for _, value in line.points],
            }
            for line in panel.lines
        ],
        "low": steps.low,
        "high": steps.high,
    }


def json_in_html(value: Any) -> str:
    """Return JSON that no text in it can end: HTML looks for `</script` first."""
    found = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        found = found.replace(character, f"\\u{ord(character):04x}")
    return found
