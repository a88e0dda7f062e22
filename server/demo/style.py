"""The report's stylesheet. One palette in custom properties, given twice: light and dark.

Blue and orange are told apart by every common kind of colour blindness; text colours keep a
contrast of at least 4.5 : 1 on their ground.
"""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #f5f7f8; --card: #ffffff; --ink: #15212b; --soft: #556573; --line: #dfe5ea;
  --grid: #e8edf0; --track: #eef2f4; --muted: #8a99a6; --bar: #c9d3da;
  --a: #0b66b0; --b: #b8520a; --good: #157347; --bad: #b3261e; --warn: #8a5a00;
  --good-ground: #e4f3ea; --bad-ground: #fbe9e7; --skip-ground: #eef1f4;
  --hero: #0d2b45; --hero-2: #0f4a75; --hero-ink: #f2f8fc; --hero-soft: #b5cfe2;
  --shadow: 0 1px 2px rgb(16 32 46 / 6%), 0 4px 16px rgb(16 32 46 / 4%);
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0e1418; --card: #151d23; --ink: #e5ecf1; --soft: #9dafbc; --line: #27323a;
    --grid: #222c33; --track: #222c33; --muted: #7c8d99; --bar: #3a4852;
    --a: #5fb0f2; --b: #f29a5c; --good: #55c98c; --bad: #f47f75; --warn: #e0b050;
    --good-ground: #14301f; --bad-ground: #3a1a18; --skip-ground: #212b32;
    --hero: #0b1f31; --hero-2: #0d3453; --hero-ink: #eaf4fb; --hero-soft: #93b4cb;
    --shadow: none;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 20px; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
a { color: var(--a); }
a:focus-visible, summary:focus-visible { outline: 3px solid var(--b); outline-offset: 2px; }
code, .mono { font-family: ui-monospace, "SF Mono", "DejaVu Sans Mono", monospace; }
code { font-size: .87em; background: var(--track); padding: .1em .35em; border-radius: 4px;
  overflow-wrap: anywhere; }
h1, h2, h3, p { margin: 0; }
.skip-link { position: absolute; left: -9999px; }
.skip-link:focus { left: 8px; top: 8px; background: var(--card); padding: 8px; z-index: 9; }

.hero { background: linear-gradient(135deg, var(--hero), var(--hero-2)); color: var(--hero-ink); }
.hero .inner { max-width: 1240px; margin: 0 auto; padding: 44px 32px 40px; }
.brand { display: flex; align-items: center; gap: 10px; font-weight: 650;
  color: var(--hero-soft); letter-spacing: .02em; }
.brand svg { width: 28px; height: 28px; }
.hero h1 { font-size: clamp(1.8rem, 4vw, 2.7rem); line-height: 1.15; margin: 18px 0 10px;
  letter-spacing: -.015em; font-weight: 680; max-width: 24em; text-wrap: balance; }
.hero .lead { color: var(--hero-soft); max-width: 48em; font-size: 1.06rem; }
.hero .lead strong { color: var(--hero-ink); font-weight: 600; }
.tiles { display: flex; flex-wrap: wrap; margin-top: 32px; background: var(--hero);
  border: 1px solid rgb(255 255 255 / 14%); border-radius: 12px; overflow: hidden; }
.tile { flex: 1 1 172px; padding: 16px 18px; margin: -1px 0 0 -1px;
  border: solid rgb(255 255 255 / 14%); border-width: 1px 0 0 1px; }
.tile .figure { font-size: 1.7rem; font-weight: 660; line-height: 1.2; letter-spacing: -.01em; }
.tile .figure small { font-size: .95rem; font-weight: 500; color: var(--hero-soft); }
.tile .what { color: var(--hero-soft); font-size: .88rem; line-height: 1.4; }
.badge { display: inline-flex; align-items: center; gap: 6px; border-radius: 999px;
  padding: 2px 10px; font-size: .8rem; font-weight: 650; white-space: nowrap; }
.badge.pass { background: var(--good-ground); color: var(--good); }
.badge.fail { background: var(--bad); color: var(--card); }
.badge.skip { background: var(--skip-ground); color: var(--soft); }

.page { max-width: 1240px; margin: 0 auto; padding: 28px 32px 64px; display: grid;
  grid-template-columns: 196px minmax(0, 1fr); gap: 40px; }
nav { position: sticky; top: 24px; align-self: start; font-size: .9rem; }
nav ol { list-style: none; margin: 0; padding: 0; border-left: 1px solid var(--line); }
nav a { display: flex; justify-content: space-between; gap: 8px; padding: 5px 0 5px 14px;
  color: var(--soft); text-decoration: none; margin-left: -1px;
  border-left: 2px solid transparent; }
nav a:hover { color: var(--ink); border-left-color: var(--a); }
nav .state { font-weight: 700; }
nav .pass { color: var(--good); } nav .fail { color: var(--bad); } nav .skip { color: var(--soft); }
main { display: grid; gap: 24px; min-width: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 26px 28px 24px; box-shadow: var(--shadow); min-width: 0; }
section > header { margin-bottom: 18px; }
section h2 { font-size: 1.35rem; line-height: 1.3; letter-spacing: -.01em; font-weight: 660; }
section h3 { font-size: .95rem; font-weight: 640; margin-bottom: 8px; }
section .lead { color: var(--soft); max-width: 64ch; margin-top: 6px; }
section .lead strong, .why strong { color: var(--ink); font-weight: 620; }
.why { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 4px 32px;
  margin-top: 20px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .93rem; }
.why b { color: var(--ink); font-weight: 640; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr));
  gap: 28px 36px; }
.columns > div { min-width: 0; }
.more { margin-top: 26px; }
.aside { display: grid; grid-template-columns: minmax(180px, 1fr) minmax(0, 3fr); gap: 20px 36px;
  align-items: start; }
.signals { margin: 0; padding-left: 1.1em; } .signals li { margin-bottom: 6px; }
.scroll { overflow-x: auto; }
.scroll + .scroll, .chart + .scroll, .note + .scroll { margin-top: 14px; }
.note { color: var(--soft); font-size: .88rem; margin-top: 8px; max-width: 70ch; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .88rem; color: var(--soft);
  margin-bottom: 8px; }
.legend span::before { content: ""; display: inline-block; width: 12px; height: 12px;
  border-radius: 3px; margin-right: 7px; vertical-align: -1px; background: var(--muted); }
.legend .series-a::before { background: var(--a); }
.legend .series-b::before { background: var(--b); }
.legend .alarm::before { background: var(--bad); } .legend .bars::before { background: var(--bar); }
.legend .band::before { background: var(--b); opacity: .25; }

table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; padding: 8px 12px 8px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 560; font-size: .84rem; }
th.n, td.n { text-align: right; padding-right: 0; padding-left: 12px; white-space: nowrap; }
td .note { margin-top: 0; }
td code { overflow-wrap: normal; }
.checks td:nth-child(2) { width: 44%; }
td.verdict { width: 1%; white-space: nowrap; }
.checks a { color: var(--ink); font-weight: 600; text-decoration-color: var(--line);
  text-underline-offset: 3px; }
.checks a:hover { color: var(--a); text-decoration-color: currentcolor; }
.checks .measured { color: var(--ink); } .checks .wanted { color: var(--soft); font-size: .88rem; }
.checks tr.fail td { background: var(--bad-ground); }
.bignumber { font-size: 2.4rem; font-weight: 680; letter-spacing: -.02em; line-height: 1.15; }
.bignumber.good { color: var(--good); } .bignumber.bad { color: var(--bad); }
.swatch { display: block; position: relative; padding-left: 18px; }
.swatch::before { content: ""; position: absolute; left: 0; top: .45em; width: 10px; height: 10px;
  border-radius: 3px; background: var(--muted); }
.swatch.series-a::before { background: var(--a); }
.swatch.series-b::before { background: var(--b); }

.timeline { list-style: none; margin: 0; padding: 0 0 0 6px; }
.timeline li { position: relative; padding: 0 0 16px 26px; border-left: 2px solid var(--line); }
.timeline li:last-child { border-left-color: transparent; padding-bottom: 0; }
.timeline li::before { content: ""; position: absolute; left: -7px; top: 6px; width: 12px;
  height: 12px; border-radius: 50%; background: var(--card); border: 3px solid var(--a);
  box-sizing: border-box; }
.timeline li.refused::before { border-color: var(--bad); }
.timeline li.done::before { border-color: var(--good); background: var(--good); }
.timeline .act { font-weight: 600; } .timeline .when { color: var(--soft);
  font-size: .84rem; display: inline-block; }
.timeline .because { color: var(--soft); }
.steps { display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 14px;
  align-items: center; font-size: .93rem; }
.steps .bar { height: 12px; border-radius: 6px; background: var(--a); min-width: 3px; }
.steps .rail { background: var(--track); border-radius: 6px; }
.steps .n { text-align: right; }
.commands { display: grid; grid-template-columns: minmax(0, 1fr); margin: 0; }
.commands dt { font-weight: 600; } .commands dd + dt { margin-top: 16px; }
.commands dd { margin: 2px 0 0; color: var(--soft); }
pre { margin: 6px 0 0; padding: 10px 14px; background: var(--track); border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; color: var(--ink);
  font: .86rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
footer { color: var(--soft); font-size: .86rem; padding: 4px 2px; }

.chart { display: block; width: 100%; height: auto; overflow: visible; }
.wide { min-width: 680px; padding: 0 1px; }
.chart text { font-size: 13px; fill: var(--ink); font-variant-numeric: tabular-nums; }
.chart .tick { fill: var(--soft); font-size: 12px; }
.chart .label { fill: var(--ink); } .chart .strong { font-weight: 620; }
.chart .mono { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12px; }
.chart .value { font-weight: 650; }
.chart .value.series-a { fill: var(--a); } .chart .value.series-b { fill: var(--b); }
.chart .value.series-muted { fill: var(--soft); }
.chart .value.good { fill: var(--good); }
.chart .value.bad, .chart .value.alarm { fill: var(--bad); }
.chart .grid { stroke: var(--grid); } .chart .axis { stroke: var(--muted); }
.chart .reference { stroke: var(--muted); stroke-dasharray: 4 4; fill: none; }
.chart .reference.series-b { stroke: var(--b); }
.chart .stem { stroke-width: 2; opacity: .28; }
.chart .interval { stroke-width: 6; stroke-linecap: round; opacity: .35; }
.chart .curve { fill: none; stroke-width: 2.4; stroke-linejoin: round; stroke-linecap: round; }
.chart .halo { stroke: var(--card); stroke-width: 6; }
.chart .band { opacity: .16; stroke: none; }
.chart .bubble { opacity: .85; stroke: var(--card); stroke-width: 1.5; }
.chart line.series-a, .chart .curve.series-a { stroke: var(--a); }
.chart line.series-b, .chart .curve.series-b { stroke: var(--b); }
.chart line.series-muted { stroke: var(--muted); }
.chart .fill.series-a, .chart .bubble.series-a { fill: var(--a); }
.chart .fill.series-b, .chart .bubble.series-b, .chart .band.series-b { fill: var(--b); }
.chart .fill.series-muted { fill: var(--muted); } .chart .fill.alarm { fill: var(--bad); }
.chart .bar-muted { fill: var(--bar); } .chart .track { fill: var(--track); }
.chart .tickmark { stroke: var(--ink); stroke-width: 2; }
.chart .marker { stroke-width: 1.5; stroke-dasharray: 3 3; }
.chart line.marker.alarm { stroke: var(--bad); } .chart line.marker.ink { stroke: var(--ink); }
.chart .label.alarm { fill: var(--bad); font-weight: 650; }
.chart .label.series-b { fill: var(--b); font-weight: 600; }
.chart .node { fill: var(--card); stroke: var(--line); stroke-width: 1.5; }
.chart .node.good { stroke: var(--good); }
.chart .node.bad, .chart .node.alarm { stroke: var(--bad); }
.chart .flow { fill: none; stroke: var(--a); stroke-width: 2; stroke-linejoin: round; }
.chart .flow.dashed { stroke-dasharray: 5 4; stroke: var(--bad); }
.chart .flowhead { fill: var(--a); } .chart .flowhead.dashed { fill: var(--bad); }

@media (max-width: 980px) {
  .page { grid-template-columns: minmax(0, 1fr); gap: 16px; padding: 20px 16px 48px; }
  nav { display: none; }
  .hero .inner { padding: 32px 18px 28px; }
  section { padding: 20px 18px; border-radius: 12px; }
  .steps { grid-template-columns: 1fr max-content; } .steps .rail { display: none; }
  .aside { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 640px) {
  .checks thead { display: none; }
  .checks tr { display: block; border-bottom: 1px solid var(--line); padding: 10px 0; }
  .checks tr:last-child { border-bottom: 0; }
  .checks, .checks tbody { display: block; }
  .checks td, .checks td:nth-child(2), td.verdict {
    display: block; width: auto; border: 0; padding: 2px 0; overflow-wrap: anywhere; }
}
@media print {
  nav { display: none; } .page { display: block; } section { break-inside: avoid; margin: 12px 0; }
  .hero { background: none; color: #000; } .tile { background: none; }
}
"""
