"""The style sheet of the page: light and dark, from a phone's width up. Every color of text has a contrast of 4.5."""

from __future__ import annotations

LIGHT = {
    "page": "#f6f7f9",
    "card": "#ffffff",
    "ink": "#1b2330",
    "muted": "#566173",
    "line": "#dfe3ea",
    "warn": "#8a4b08",
}
DARK = {
    "page": "#0f141b",
    "card": "#171e28",
    "ink": "#e4e9f0",
    "muted": "#9aa7b8",
    "line": "#2b3543",
    "warn": "#f2b866",
}
# one for each arm, the first for what the others are compared to
LIGHT_ARMS = (
    *("#3d4655", "#0b66b8", "#0f766e", "#b45309"),
    *("#be185d", "#6d28d9", "#4d7c0f", "#8c3d1f"),
)
DARK_ARMS = (
    *("#c4ccd8", "#6cb6ff", "#4fd1c5", "#f0a94e"),
    *("#ff86b8", "#b99cff", "#a3d977", "#e0a58f"),
)


def _variables(colors: dict[str, str], arms: tuple[str, ...]) -> str:
    named = {**colors, **{f"arm{i}": color for i, color in enumerate(arms)}}
    return "".join(f"--{name}:{color};" for name, color in named.items())


STYLE = f"""
:root{{color-scheme:light dark;{_variables(LIGHT, LIGHT_ARMS)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK, DARK_ARMS)}}}}}
{"".join(f".a{i}{{--c:var(--arm{i})}}" for i in range(len(LIGHT_ARMS)))}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);overflow-wrap:anywhere;
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}}
main{{max-width:1180px;margin:0 auto;padding:28px 20px 40px}}
h1{{font-size:26px;line-height:1.25;margin:0 0 4px}}
h2{{font-size:18px;margin:32px 0 10px}}
h3{{font-size:15px;margin:0}}
p{{margin:0}}
.meta,.sub,.note,footer{{color:var(--muted)}}
.meta{{font-size:14px}}
.verdict{{font-size:18px;line-height:1.45;margin:16px 0 0;max-width:62em}}
.warn{{margin:14px 0 0;padding:10px 14px 10px 34px;border-left:3px solid var(--warn);background:var(--card)}}
.card,.panel{{background:var(--card);border:1px solid var(--line);border-radius:8px}}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;overflow-wrap:normal}}
caption{{text-align:left;padding:12px 14px 4px;color:var(--muted);font-size:14px}}
th,td{{padding:7px 14px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}}
thead th{{border-top:0;font-weight:600;font-size:13px;color:var(--muted);white-space:pre;vertical-align:bottom}}
th:first-child,td:first-child{{text-align:left}}
tbody th{{font-weight:600;white-space:normal;min-width:96px;max-width:260px}}
.best{{font-weight:700}}
.best::after{{content:" ●";font-size:9px;vertical-align:2px;color:var(--arm2)}}
.best-key{{padding:4px 14px 12px;font-size:13px;color:var(--muted)}}
.arms{{display:flex;flex-wrap:wrap;gap:8px;position:sticky;top:0;z-index:3;padding:10px 0;background:var(--page)}}
.arms button{{font:inherit;font-size:14px;padding:4px 12px 4px 10px;border-radius:999px;cursor:pointer;
  border:1px solid var(--line);background:var(--card);color:var(--ink)}}
.arms button::before{{content:"";display:inline-block;width:14px;height:3px;margin:0 8px 4px 0;background:var(--c)}}
.arms button[aria-pressed=false]{{color:var(--muted);text-decoration:line-through;background:none}}
:focus-visible{{outline:2px solid var(--arm1);outline-offset:2px}}
.panels{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:14px}}
.panel{{margin:0;padding:14px 6px 10px 14px;position:relative;min-width:0}}
.sub,.note{{font-size:13px}}
.note{{padding-right:8px}}
.plot{{display:grid;grid-template:220px 24px/44px minmax(0,1fr) 112px;margin-top:12px;font-size:12px;line-height:1}}
.ys,.xs,.ends,.frame{{position:relative}}
.ys span,.xs span,.ends span{{position:absolute;white-space:nowrap}}
.ys span{{right:8px;transform:translateY(50%);color:var(--muted)}}
.xs{{grid-column:2/4;margin-right:112px;color:var(--muted)}}
.xs span{{top:8px;transform:translateX(-50%)}}
.xs b{{position:absolute;white-space:nowrap;left:calc(100% + 22px);top:8px;font-weight:400}}
.ends span{{left:8px;transform:translateY(-50%);color:var(--c);max-width:104px;overflow:hidden;text-overflow:ellipsis;
  line-height:15px}}
.frame{{border-left:1px solid var(--line);border-bottom:1px solid var(--muted);touch-action:pan-y;cursor:crosshair}}
svg{{display:block;width:100%;height:100%;overflow:visible;clip-path:inset(0 -4px)}}
.grid line{{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}}
.arm{{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round;vector-effect:non-scaling-stroke}}
.dots{{stroke-width:5;stroke-linecap:round}}
.s1{{stroke-dasharray:5 4}}
.s2{{stroke-dasharray:2 3}}
.s3{{stroke-dasharray:9 3 2 3}}
.off{{display:none}}
.cursor{{position:absolute;top:0;bottom:0;width:1px;background:var(--muted);display:none;pointer-events:none}}
.tip{{position:absolute;z-index:4;pointer-events:none;background:var(--card);border:1px solid var(--muted);
  border-radius:6px;padding:6px 10px;font-size:12px;line-height:1.5;font-variant-numeric:tabular-nums;
  box-shadow:0 2px 8px #0003;max-width:260px}}
.tip:empty{{display:none}}
.tip span{{display:flex;justify-content:space-between;gap:14px;color:var(--c)}}
dl{{display:grid;grid-template-columns:minmax(90px,38%) minmax(0,1fr);gap:4px 14px;margin:0;padding:14px}}
dt{{color:var(--muted)}}
dd{{margin:0}}
code{{font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace}}
ul{{margin:0;padding-left:20px}}
.settings div{{display:grid;gap:14px;align-content:start}}
.settings{{display:grid;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px}}
footer{{margin-top:28px;font-size:13px}}
@media (max-width:560px){{
  main{{padding:18px 12px 32px}}
  h1{{font-size:21px}}
  .verdict{{font-size:16px}}
  th,td{{padding:6px 10px}}
  .panel{{padding:12px 4px 8px 8px}}
  .plot{{grid-template-columns:42px minmax(0,1fr) 92px}}
  .xs{{margin-right:92px}}
  .ends span{{max-width:88px}}
}}
@media print{{.arms{{position:static}}.panel,.card{{break-inside:avoid}}}}
"""
