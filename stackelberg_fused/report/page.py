"""The page of a run: one HTML file that asks for nothing else. All text of the run's files is escaped."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from .._version import __version__
from .chart import chart, json_in_html, points
from .page_script import SCRIPT
from .page_style import STYLE
from .panels import panels
from .run_folder import Arm, read
from .scale import Scale, text
from .summary import Table, conditions, own_settings, table, verdict

NAME = "report.html"


def write(folder: Path, path: Path | None = None) -> Path:
    """Write the page of a run folder and return its path, `report.html` in the folder by default.

    Raises:
        NoRunError: the folder has no run.
        OSError: the page cannot be written; an old one is as it was.
    """
    path = path or folder / NAME
    content = page(read(folder), folder)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def page(arms: list[Arm], folder: Path) -> str:
    """Return the HTML of a run."""
    found, missing = panels(arms)
    steps = Scale(0.0, float(max(1, *(max(arm.last_step, arm.planned or 0) for arm in arms))))
    title = next(
        (t for arm in arms if (t := str(arm.header.get("title") or ""))), folder.resolve().name
    )
    warnings = "".join(f"<li>{escape(line)}</li>" for line in conditions(arms))
    body = [
        f'<header><h1>{escape(title)}</h1><p class="meta">{_meta(arms)}</p>',
        f'<p class="verdict">{escape(verdict(arms))}</p>',
        f'<ul class="warn" aria-label="conditions">{warnings}</ul>' if warnings else "",
        "</header>",
        '<h2 id="table">Losses</h2>',
        _table(table(arms)),
        '<h2 id="curves">Curves</h2>',
        _buttons(arms),
        '<div class="panels">',
        *(chart(panel, i, steps, len(arms)) for i, panel in enumerate(found)),
        "</div>",
        _missing(missing),
        '<h2 id="settings">Settings</h2>',
        _settings(arms, folder),
        f"<footer>Written by <code>stackelberg report</code> {escape(__version__)}.</footer>",
    ]
    data = json_in_html([points(panel, steps) for panel in found])
    digest = b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main>{''.join(body)}</main>\n"
        f'<script type="application/json" id="points">{data}</script>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _meta(arms: list[Arm]) -> str:
    last = max(arm.last_step for arm in arms)
    runs = f"{len(arms)} runs" if len(arms) > 1 else "1 run"
    parts = [runs, f"{text(last)} steps"]
    seeds = {str(seed) for arm in arms if (seed := arm.section("settings").get("seed")) is not None}
    parts += [f"seed{'s' if len(seeds) > 1 else ''} {', '.join(sorted(seeds))}"] if seeds else []
    environment = arms[0].section("environment")
    parts += [f"torch {environment['torch']}"] if environment.get("torch") else []
    parts += [str(environment.get("gpu") or environment.get("cpu") or "")]
    parts += [arms[0].started[:16].replace("T", " ") + " UTC"] if arms[0].started else []
    return " · ".join(escape(part) for part in parts if part)


def _table(content: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in content.headings)
    rows = []
    for i, (name, *cells) in enumerate(content.rows):
        inner = "".join(
            f"<td{' class=best' if (i, j) in content.best else ''}>{escape(cell)}</td>"
            for j, cell in enumerate(cells, 1)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{inner}</tr>')
    key = '<p class="best-key">● lowest of its column</p>' if content.best else ""
    return (
        f'<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="table of losses">'
        f"<table><caption>{escape(content.caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{key}</div>"
    )


def _buttons(arms: list[Arm]) -> str:
    if len(arms) == 1:
        return ""
    # the script that they need enables them
    buttons = (
        f'<button type="button" class="a{i % 8}" data-arm="{i}" aria-pressed="true" disabled>'
        f"{escape(arm.name)}</button>"
        for i, arm in enumerate(arms)
    )
    return (
        f'<div class="arms" role="group" aria-label="runs that are shown">{"".join(buttons)}</div>'
    )


def _missing(missing: list[str]) -> str:
    if not missing:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in missing)
    return f'<h2 id="missing">Not in this run</h2><ul>{lines}</ul>'


def _settings(arms: list[Arm], folder: Path) -> str:
    own = own_settings(arms)
    shared = {k: v for k, v in arms[0].section("settings").items() if k not in own}
    commands = list(dict.fromkeys(str(arm.header.get("command") or "") for arm in arms))
    run = {
        **{"command" if i == 0 else f"command {i + 1}": c for i, c in enumerate(commands) if c},
        "folder": str(folder),
        "files": ", ".join(arm.path.name for arm in arms),
    }
    environment = arms[0].section("environment")
    same = all(arm.section("environment") == environment for arm in arms)
    note = {} if same else {"note": f"the other runs differ; these are those of {arms[0].name}"}
    left, *right = (
        f'<dl class="card">{_list(values)}</dl>' if values else ""
        for values in (shared, run, {**note, **environment})
    )
    return f'<div class="settings">{left}<div>{"".join(right)}</div></div>'


def _list(values: dict[str, Any]) -> str:
    return "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(value)}</dd>"
        for name, value in _flat(values)
    )


def _flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}: ")
        elif isinstance(value, list):
            yield f"{before}{name}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{before}{name}", str(value)
