"""The sections of the HTML report: what you see, why it matters, where to look next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from server.demo import charts
from server.demo.charts import day_text, percent
from server.demo.diagram import thread_diagram
from server.demo.findings import (
    ArmResult,
    Findings,
    GovernanceEvent,
    IncidentView,
    LatencySeries,
    SkewView,
    Verdict,
)

_BASELINE = {True: "", False: "series-a"}
_RUNNING = "(while <code>make up</code> runs)"
_MARK = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.SKIP: "–"}


@dataclass(frozen=True)
class Section:
    """One card of the page. `lead` and `body` are HTML; `why` and `where` close the card."""

    key: str
    title: str
    lead: str
    body: str
    why: str = ""
    where: str = ""

    def html(self) -> str:
        """Return the card."""
        closing = ""
        if self.why or self.where:
            closing = (
                f'<div class="why"><p><b>Why it matters.</b> {self.why}</p>'
                f"<p><b>Where to look next.</b> {self.where}</p></div>"
            )
        return (
            f'<section id="{self.key}" aria-labelledby="{self.key}-title"><header>'
            f'<h2 id="{self.key}-title">{escape(self.title)}</h2>'
            f'<p class="lead">{self.lead}</p></header>{self.body}{closing}</section>'
        )


def badge(verdict: Verdict) -> str:
    """Return a coloured PASS, FAIL or SKIP that reads without colour too."""
    return f'<span class="badge {verdict.value}">{_MARK[verdict]} {verdict.value.upper()}</span>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: int = 1) -> str:
    """Return a table of HTML cells; columns from `numeric` on are right-aligned."""

    def cell(name: str, index: int, content: str) -> str:
        class_ = ' class="n"' if index >= numeric else ""
        return f"<{name}{class_}>{content}</{name}>"

    top = "".join(cell("th", i, c) for i, c in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in rows
    )
    rows_html = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{rows_html}</table></div>'


def _feature(name: str) -> str:
    """Return `view:feature`, which may break behind its colon and nowhere else."""
    return f"<code>{escape(name).replace(':', ':<wbr>')}</code>"


def _arm_name(index: int, arm: ArmResult) -> str:
    return f'<span class="swatch {charts.SERIES[index % 2]}">{escape(arm.title)}</span>'


def _arm_legend(arms: Sequence[ArmResult]) -> str:
    spans = "".join(
        f'<span class="{charts.SERIES[i % 2]}">{escape(a.title)}</span>' for i, a in enumerate(arms)
    )
    return f'<div class="legend">{spans}</div>'


def checks_section(found: Findings) -> Section:
    """Every check with what was wanted and what was measured."""
    rows = "".join(
        f'<tr class="{c.verdict.value}"><td class="verdict">{badge(c.verdict)}</td>'
        f'<td><a href="#{c.section}">{escape(c.name)}</a>'
        f'<div class="wanted">wanted: {escape(c.wanted)}</div></td>'
        f'<td class="measured">{escape(c.measured)}</td></tr>'
        for c in found.checks
    )
    return Section(
        "checks", "Every claim, checked",
        "The demo is also a test: <strong>each line below can fail</strong>, and if one does the "
        "command exits with an error that names it.",
        '<div class="scroll"><table class="checks"><thead><tr><th>Verdict</th><th>Claim</th>'
        f"<th>Measured in this run</th></tr></thead><tbody>{rows}</tbody></table></div>",
    )  # fmt: skip


def thread_section(found: Findings) -> Section:
    """The loop in one picture."""
    return Section(
        "thread", "The thread, in one picture",
        "You see one system doing the whole round. <strong>Along the top, a question is "
        "answered</strong> in a few milliseconds; <strong>along the bottom, the answer is "
        "judged</strong> once the outcome is known. The number in each box is from this run.",
        f'<div class="scroll"><div class="wide">{thread_diagram(found)}</div></div>',
        "Most trouble with models in production comes from the seams: features computed one way "
        "for training and another for serving, answers that nobody can trace, drift that nobody "
        "sees. Here the same definition feeds both sides, and every answer can be replayed.",
        "<code>examples/flights/definitions.py</code> holds every feature of this picture in one "
        "short file; <code>examples/flights/pipeline.py</code> trains on them.",
    )  # fmt: skip


def model_section(found: Findings) -> Section:
    """The model against its baselines, its calibration and its slices."""
    rows = [
        [
            f'<span class="swatch {_BASELINE[s.baseline]}">{escape(s.title)}</span>',
            f"{s.low:.3f} – {s.high:.3f}",
            f"{s.log_loss:.4f}",
        ]
        for s in found.scores
    ]
    figures = table(["Model", "95 % interval", "Log loss"], rows)
    arms = [(arm.title, arm.calibration) for arm in found.arms]
    first, last = (day_text(d) for d in found.tested)
    body = (
        '<div class="columns"><div><h3>Who ranks the late flights first? (AUC)</h3>'
        f"{charts.score_chart(found.scores)}{figures}"
        '<p class="note">Both baselines see the same flights, and of each only its schedule and '
        "the weather. One is the same learner; the other, a logistic regression, is what the "
        "check “History is worth it” measures against.</p></div>"
        f"<div><h3>Does 30 % mean 30 %?</h3>"
        f"{_arm_legend(found.arms)}{charts.calibration_chart(arms)}</div></div>"
        '<div class="columns more"><div>'
        "<h3>Where it does better and worse</h3>"
        f"{charts.slice_chart(found.slices)}"
        '<p class="note">AUC of the champion; to the right, how many flights.</p></div>'
        f"<div><h3>Over time, by arm</h3>{_arm_legend(found.arms)}"
        f"{charts.weekly_auc_chart(found.arms)}"
        '<p class="note">From the log and the truth that came in, week by week. The challenger '
        "answers a tenth of the flights, so its line is the more restless one.</p></div></div>"
    )
    return Section(
        "model", "Is the model any good?",
        f"You see the test flights, {first} to {last}, which the champion never saw in training. "
        "<strong>AUC</strong> is the chance that a late flight gets a higher score than a punctual "
        "one: 0.5 is a coin, 1 is perfect. On the calibration plot, <strong>points on the dashed "
        "line mean what they say</strong>; below it the model is too gloomy, above it too hopeful.",
        body,
        "The baselines answer the same question on the same rows without the history of plane, "
        "route, carrier and airport. The gap is what the live features are worth.",
        "The champion's model card lies in the registry beside its weights: "
        f"<code>headrace model card {escape(found.model)} v1</code> {_RUNNING}.",
    )  # fmt: skip


def consistency_section(found: Findings) -> Section:
    """Online rows against offline rows, bit for bit."""
    same = found.consistency
    cells = same.rows * same.features
    good = same.equal_rows == same.rows
    big = percent(same.equal_rows / same.rows, 0 if good else 3) if same.rows else "no rows"
    rows = [
        [
            _arm_name(i, a), f"{a.equal_rows:,} of {a.rows:,}", f"{a.auc_online:.6f}",
            f"{a.auc_offline:.6f}", f"{abs(a.auc_online - a.auc_offline):.2g}",
        ]
        for i, a in enumerate(found.arms)
    ]  # fmt: skip
    differing = ""
    if same.differing:
        differing = '<h3 class="more">Features that differ</h3>' + table(
            ["Feature", "Rows"],
            [[_feature(name), f"{count:,}"] for name, count in same.differing[:12]],
        )
    return Section(
        "consistency", "Are the online features the offline features?",
        "You see every feature row that the live system used, compared with the row that the "
        "training set would hold for the same flight at the same moment: <strong>not roughly, "
        "but bit for bit</strong>.",
        '<div class="aside"><div>'
        f'<p class="bignumber {"good" if good else "bad"}">{big}</p>'
        f'<p class="note">of {same.rows:,} logged rows are bit-equal: {cells:,} values.</p></div>'
        f"<div>{table(['Arm', 'Equal rows', 'AUC online', 'AUC offline', 'Difference'], rows)}"
        f"</div></div>{differing}",
        "A model that is fed other numbers than it was trained on fails quietly. If the rows are "
        "equal and the program is equal, the quality measured offline is the quality served.",
        f"Replay any prediction by its id; this one was replayed just now: "
        f"<code>headrace replay {escape(found.replayed)} --data-dir {escape(found.data_dir)}"
        "</code>.",
    )  # fmt: skip


_CANARY = {
    False: "Before that the champion is alone: the challenger was trained through October, and "
    "scoring it on what it has seen would flatter it.",
    True: "In a short run that is <strong>within its own training data</strong>, so that its AUC "
    "here flatters it; the whole replay releases it on 1 November, after what it has seen.",
}


def traffic_section(found: Findings) -> Section:
    """Planned against observed shares."""
    days = [d for d in found.days if d.canary_planned is not None]
    if days:
        body = (
            '<div class="legend"><span class="series-b">challenger, share of the day</span>'
            '<span class="band">the plan ± 4 standard deviations</span></div>'
            f'<div class="scroll"><div class="wide">{charts.share_chart(days)}</div></div>'
        )
    else:
        body = '<p class="note">This run was too short to release the challenger.</p>'
    rows = [
        [
            _arm_name(i, a), escape(a.role), f"<code>{escape(a.version[:19])}</code>",
            f"{a.rows:,}", percent(a.prediction_mean, 1), percent(a.late_share, 1),
        ]
        for i, a in enumerate(found.arms)
    ]  # fmt: skip
    return Section(
        "traffic", "Who answered?",
        f"You see the challenger's share of the flights, day by day; it joins on "
        f"<strong>{day_text(found.canary_from)}</strong>. {_CANARY[found.canary_early]}",
        body + table(["Arm", "Role", "Version", "Answered", "Mean prediction", "Were late"], rows,
                     numeric=3),
        "A canary lets a new version meet real traffic before everyone depends on it. The draw "
        "is sticky: the same request id always meets the same arm, so a retry cannot change the "
        "answer, and the exact probability of each draw is logged for a fair comparison later.",
        f"<code>headrace release list {escape(found.model)}</code> shows the releases {_RUNNING}; "
        "the plan that workers follow is <code>run/plan.json</code> in the data folder.",
    )  # fmt: skip


def _incident(incident: IncidentView) -> str:
    signals = "".join(f"<li>{escape(s)}</li>" for s in incident.signals)
    moved = ""
    if incident.moved:
        moved = (
            "<div><h3>What moved</h3>" + charts.moved_chart(incident.moved) +
            '<p class="note">The features that best explain the signals, the furthest first. '
            "Bar: how far the feature moved (PSI). Tick: where moving begins.</p>"
            "</div>"
        )  # fmt: skip
    return (
        '<div class="columns more"><div>'
        f"<h3>{day_text(incident.day)}: {escape(incident.title)}</h3>"
        f'<ul class="signals">{signals}</ul></div>{moved}</div>'
    )


def _skew(skew: SkewView) -> str:
    rows = [[_feature(name), f"{psi:.3f}", f"{alarm:.3f}"] for name, psi, alarm in skew.first]
    return (
        '<h3 class="more">Skew: serving against training</h3>'
        f'<p class="note">In the seven days to {day_text(skew.day)}, {skew.flagged} of '
        f"{skew.features} features lay further from the training data than chance and the "
        "smallest effect that matters. The furthest:</p>"
        + table(["Feature", "PSI", "Flagged from"], rows)
    )


def drift_section(found: Findings) -> Section:
    """Late share, mean prediction and what the monitor said about them."""
    opened = "".join(_incident(i) for i in found.incidents)
    if not opened:
        opened = '<p class="note">No incident was opened in this run.</p>'
    return Section(
        "drift", "Does anyone notice when the world changes?",
        "You see how many flights were late each day (bars) and what the model expected (line). "
        "October and November are quiet. <strong>In December the holidays and the weather "
        "come</strong>, and the monitor has to say so without having cried wolf before.",
        '<div class="legend"><span class="bars">were late</span><span class="series-a">mean '
        'prediction</span><span class="alarm">incident</span></div>'
        '<div class="scroll"><div class="wide">'
        f"{charts.daily_chart(found.days, found.incidents, found.canary_from)}</div></div>"
        f'<p class="note">Alarm budget: {escape(found.alarm_budget)}</p>{opened}'
        + (_skew(found.skew) if found.skew else ""),
        "Features drift all the time; a page for each would be ignored by the second week. Only "
        "a drift of the predictions themselves, or of their calibration, opens an incident; "
        "the features then explain it.",
        f"<code>headrace features list</code> shows what feeds a moved feature {_RUNNING}; the "
        "day profiles lie under <code>monitor/</code> in the data folder.",
    )  # fmt: skip


def _latency_rows(series: Sequence[LatencySeries]) -> list[list[str]]:
    return [
        [
            f'{escape(s.name)}<div class="note">{escape(s.detail)}</div>',
            f"{len(s.nanoseconds):,}",
            *(f"{s.percentile_ms(p):.2f}" for p in (50, 95, 99)),
        ]
        for s in series
    ]


def speed_section(found: Findings) -> Section:
    """Latency, throughput, and what they were measured on."""
    done = found.throughput
    plots = "".join(
        f"<div><h3>{escape(s.name)}</h3>{charts.latency_chart(s)}</div>"
        for s in found.latencies[:2]
        if len(s.nanoseconds)
    )
    rate = done.predictions / done.seconds if done.seconds else 0.0
    days = len(found.days)
    body = (
        f'<div class="columns">{plots}</div>'
        + table(["Call", "Calls", "p50 ms", "p95 ms", "p99 ms"], _latency_rows(found.latencies))
        + f'<p class="note">{done.predictions:,} predictions in {done.decision_minutes:,} decision '
        f"minutes, {done.events:,} events and {done.truths:,} outcomes in {done.seconds:.0f} s: "
        f"{rate:,.0f} predictions a second, one decision minute after the other. Client, server, "
        f"store and ingester shared {escape(found.machine)}.</p>"
    )
    return Section(
        "speed", "How fast was it?",
        f"You see {days} days pass in {done.seconds:.0f} seconds. Each minute of the past is "
        "played in order: <strong>first the events of that minute, then the questions</strong>, "
        "and no question is answered before its events are in. The next minute's events arrive "
        "meanwhile, as they do in the world. One call after the other: this is the time of a call, "
        "not the most that the server can carry.",
        body,
        "A feature that arrives late is a wrong feature. The barrier is the price of asking right "
        "behind an event: it includes the way through the stream, the ingester and the store.",
        "A running system counts all of this for Prometheus, at the metrics address that "
        "<code>headrace up</code> prints.",
    )  # fmt: skip


def _act(event: GovernanceEvent) -> str:
    class_ = "refused" if event.refused else "done" if "release" in event.action else ""
    word = " (refused)" if event.refused else ""
    return (
        f'<li class="{class_}"><span class="act">{escape(event.actor)} · {escape(event.action)}'
        f'{word}</span> <span class="when">{escape(event.subject)} · {escape(event.when)}</span>'
        f'<div class="because">{escape(event.why)}</div></li>'
    )


def governance_section(found: Findings) -> Section:
    """Who did what, and why."""
    acts = "".join(_act(e) for e in found.governance)
    return Section(
        "governance", "Who decided, and why?",
        "You see every decision about a version in the order taken. <strong>The author of a "
        "version cannot approve it</strong>: the demo tries, and is refused.",
        f'<ol class="timeline">{acts}</ol>',
        "When a decision hurts someone, “the model did it” is not an answer. Who, when and why "
        "stand in a list that only grows; rolling back is a new entry, not an erased one.",
        f"<code>headrace model list {escape(found.model)}</code> and <code>headrace release list "
        f"{escape(found.model)}</code> {_RUNNING}.",
    )  # fmt: skip


def steps_section(found: Findings) -> Section:
    """How long each step took."""
    longest = max((t.seconds for t in found.timings), default=1.0) or 1.0
    total = sum(t.seconds for t in found.timings)
    rows = "".join(
        f'<div>{escape(t.step)}</div><div class="rail"><div class="bar" '
        f'style="width:{100 * t.seconds / longest:.1f}%"></div></div>'
        f'<div class="n">{t.seconds:.1f} s</div>'
        for t in found.timings
    )
    return Section(
        "steps", "How long each step took",
        f"{total:.0f} seconds in all, on {escape(found.machine)}.",
        f'<div class="steps">{rows}</div>',
    )  # fmt: skip


def next_section(found: Findings) -> Section:
    """What to try now."""
    running = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(where)}</code></dd>"
        for name, where in found.addresses.items()
    )
    if found.keep and running:
        lead = "The system is <strong>still running</strong>; try it:"
    else:
        lead = "The system was stopped; its data stayed. <code>make up</code> leaves it running."
        running = ""
    folder = escape(found.data_dir)
    return Section(
        "next", "What next?", lead,
        f'<dl class="commands">{running}'
        "<dt>See one answer again, with its reasons</dt><dd>the same bits, and why this arm"
        f"<pre>headrace replay {escape(found.replayed)} --data-dir {folder}</pre></dd>"
        "<dt>Make it yours</dt><dd>copy the folder, change the definitions and the data"
        "<pre>cp -r examples/flights my-model</pre></dd>"
        "<dt>Read the log yourself</dt><dd>plain Parquet, one row per answer"
        f"<pre>{folder}/log/</pre></dd>"
        "<dt>Check your machine</dt><dd>versions, ports, missing libraries, each with its mend"
        "<pre>headrace doctor</pre></dd></dl>",
    )  # fmt: skip


def all_sections(found: Findings) -> list[Section]:
    """Return the page's sections in reading order."""
    return [
        checks_section(found),
        thread_section(found),
        model_section(found),
        consistency_section(found),
        traffic_section(found),
        drift_section(found),
        speed_section(found),
        governance_section(found),
        steps_section(found),
        next_section(found),
    ]
