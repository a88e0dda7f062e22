"""The report in the terminal: verdicts first, then the numbers, then where to go on."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from server.demo.charts import day_text, percent
from server.demo.findings import Check, Findings, Verdict

_MARKS = {
    Verdict.PASS: Text("✓ PASS", "bold green"),
    Verdict.FAIL: Text("✗ FAIL", "bold red"),
    Verdict.SKIP: Text("– SKIP", "dim"),
}
_BLOCKS = "▁▂▃▄▅▆▇█"
_COLUMNS_MAX = 64


def print_report(console: Console, found: Findings, page: Path) -> None:
    """Print the whole report; `page` is the HTML file."""
    console.print()
    console.rule("[bold]Headrace: first light", style="blue")
    for part in (
        _checks(found.checks),
        _model(found),
        _arms(found),
        _drift(found),
        _speed(found),
        _timings(found),
    ):
        console.print(part)
        console.print()
    console.print(_verdict(found))
    # Plain and on lines of their own, however long: to be clicked, copied and parsed.
    for line in _places(found, page):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print()


def sparkline(values: list[float], top: float | None = None) -> str:
    """Return the values as a row of block characters, 0 at the bottom."""
    most = top if top is not None else max(values, default=0.0)
    if most <= 0:
        return _BLOCKS[0] * len(values)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[min(steps, max(0, round(v / most * steps)))] for v in values)


def _table(title: str, *columns: str, numeric: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if index >= numeric else "left",
            header_style="dim",
            overflow="fold",
        )
    return table


def _checks(checks: list[Check]) -> RenderableType:
    # One below the other: beside each other, ids and names of features find no room.
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        text = Text.assemble(
            (f"{check.name}\n", "bold"), check.measured, (f"\nwanted: {check.wanted}", "dim")
        )
        table.add_row(_MARKS[check.verdict], text)
    return Group(Text("Checks", "bold italic"), table)


def _model(found: Findings) -> Table:
    first, last = (day_text(d) for d in found.tested)
    title = f"The model against its baselines, flights of {first} to {last}"
    table = _table(title, "Model", "AUC", "95 % interval", "Log loss")
    for score in found.scores:
        table.add_row(
            Text(score.title, "dim" if score.baseline else "bold blue"), f"{score.auc:.4f}",
            f"{score.low:.3f} – {score.high:.3f}", f"{score.log_loss:.4f}",
        )  # fmt: skip
    return table


def _arms(found: Findings) -> Table:
    table = _table(
        "Who answered, and is online what offline promised?",
        "Arm", "Answered", "Equal rows", "AUC online", "AUC offline", "Predicted", "Were late",
    )  # fmt: skip
    for arm in found.arms:
        table.add_row(
            Text(arm.title), f"{arm.rows:,}", f"{arm.equal_rows:,}", f"{arm.auc_online:.6f}",
            f"{arm.auc_offline:.6f}", percent(arm.prediction_mean, 1), percent(arm.late_share, 1),
        )  # fmt: skip
    return table


def _drift(found: Findings) -> RenderableType:
    # Two days a column keep three months on a terminal of 80 columns.
    step = 1 if len(found.days) <= _COLUMNS_MAX else 2
    late = _by_step([d.late_share or 0.0 for d in found.days], step)
    mean = _by_step([d.prediction_mean for d in found.days], step)
    top = max([*late, *mean], default=1.0)
    columns = "a day" if step == 1 else "two days"
    lines: list[RenderableType] = [
        Text(f"Drift: late share and mean prediction, one column {columns}", "bold"),
        Text.assemble(("were late  ", "dim"), sparkline(late, top)),
        Text.assemble(("predicted  ", "dim"), (sparkline(mean, top), "blue")),
    ]
    for incident in found.incidents:
        at = (incident.day - found.period[0]).days
        if 0 <= at < len(found.days):
            lines.append(Text(" " * (len("were late  ") + at // step) + "▲", "bold red"))
        lines.append(Text(f"incident opened {day_text(incident.day)}: {incident.title}", "red"))
        points = list(incident.signals)
        if incident.moved:
            moved = ", ".join(f"{m.name} ({m.change})" for m in incident.moved[:4])
            points.append(f"moved most: {moved}")
        lines.append(_points(points))
    lines.append(Text(f"alarm budget: {found.alarm_budget}", "dim"))
    return Group(*lines)


def _points(points: list[str]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for point in points:
        table.add_row(Text("  ·"), Text(point))
    return table


def _by_step(values: list[float], step: int) -> list[float]:
    parts = [values[at : at + step] for at in range(0, len(values), step)]
    return [sum(part) / len(part) for part in parts]


def _speed(found: Findings) -> RenderableType:
    done = found.throughput
    table = _table("Speed of the replay", "Call", "Calls", "p50 ms", "p95 ms", "p99 ms")
    for series in found.latencies:
        table.add_row(
            Text.assemble(series.name, (f"  {series.detail}", "dim")),
            f"{len(series.nanoseconds):,}",
            *(f"{series.percentile_ms(p):.2f}" for p in (50, 95, 99)),
        )
    rate = done.predictions / done.seconds if done.seconds else 0.0
    return Group(
        table,
        Text(
            f"{done.predictions:,} predictions in {done.decision_minutes:,} decision minutes, "
            f"{done.events:,} events, {done.truths:,} outcomes in {done.seconds:.1f} s: "
            f"{rate:,.0f} predictions/s, one minute after the other, on {found.machine}",
            "dim",
        ),
    )


def _timings(found: Findings) -> Table:
    table = _table("How long each step took", "Step", "Seconds", "")
    longest = max((t.seconds for t in found.timings), default=1.0) or 1.0
    for timing in found.timings:
        bar = Text("━" * max(1, round(24 * timing.seconds / longest)), "blue")
        table.add_row(timing.step, f"{timing.seconds:.1f}", bar)
    table.columns[2].justify = "left"
    table.add_row(Text("in all", "bold"), f"{sum(t.seconds for t in found.timings):.1f}", "")
    return table


def _verdict(found: Findings) -> Panel:
    failed = found.failed
    decided = sum(c.verdict is not Verdict.SKIP for c in found.checks)
    if failed:
        names = "; ".join(c.name for c in failed)
        text = Text(f"{len(failed)} of {decided} checks failed: {names}", "bold red")
    else:
        text = Text(f"All {decided} checks passed.", "bold green")
    return Panel(text, border_style="red" if failed else "green", expand=False)


def _places(found: Findings, page: Path) -> list[str]:
    lines = [f"Report: {page}"]
    if found.keep:
        lines.append("The system is still running:")
        lines += [f"  {name}: {where}" for name, where in found.addresses.items()]
    return lines
