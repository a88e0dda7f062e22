"""The plots of the report. Each takes findings and returns one inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np

from server.demo.findings import (
    ArmResult,
    CalibrationBin,
    DayPoint,
    IncidentView,
    LatencySeries,
    ModelScore,
    MovedFeature,
    Slice,
)
from server.demo.svg import (
    Frame,
    Scale,
    canvas,
    dot,
    line,
    linear,
    logarithmic,
    path,
    rect,
    text,
    ticks,
)

WIDE = 920.0
HALF = 440.0
# The arms' colours by their place in the release: the live one first.
SERIES = ("series-a", "series-b")
LATENCY_BINS_PER_DECADE = 36


def percent(share: float, digits: int = 0) -> str:
    """Return `17 %` with a space that does not break."""
    return f"{100 * share:.{digits}f}\u202f%"


def day_text(day: date) -> str:
    """Return `9 Dec`."""
    return f"{day.day} {day:%b}"


def score_chart(scores: Sequence[ModelScore]) -> str:
    """AUC of each model with its 95 % interval; 0.5 is a coin."""
    width, left, right, row = HALF, 12.0, HALF - 58.0, 56.0
    frame = Frame(left, 8, right, 8 + row * len(scores))
    low = math.floor(min(s.low for s in scores) * 20 - 0.4) / 20
    high = math.ceil(max(s.high for s in scores) * 20 + 0.2) / 20
    x = linear(low, high, left, right)
    body = [frame.vertical_grid(x, ticks(low, high, 5), lambda v: f"{v:.2f}")]
    for index, score in enumerate(scores):
        y = frame.top + row * (index + 0.5) + 10
        class_ = "series-muted" if score.baseline else "series-a"
        body += [
            text(left, y - 16, score.title, class_="label strong"),
            line(left, y, x(score.auc), y, f"stem {class_}"),
            line(x(score.low), y, x(score.high), y, f"interval {class_}"),
            dot(x(score.auc), y, 6, f"fill {class_}",
                f"{score.name}: AUC {score.auc:.4f} (95 % {score.low:.4f} to {score.high:.4f})"),
            text(width, y + 5, f"{score.auc:.3f}", anchor="end", class_=f"value {class_}"),
        ]  # fmt: skip
    label = "AUC by model: " + ", ".join(f"{s.name} {s.auc:.3f}" for s in scores)
    return canvas(width, frame.bottom + 26, label, *body)


def calibration_chart(series: Sequence[tuple[str, Sequence[CalibrationBin]]]) -> str:
    """Predicted against observed late share; on the diagonal a prediction means what it says."""
    frame = Frame(46, 12, HALF - 10, 330)
    bins = [b for _, group in series for b in group]
    top = max([0.2, *(max(b.predicted, b.observed) for b in bins)])
    top = min(1.0, math.ceil(top * 10 + 0.3) / 10)
    x = linear(0, top, frame.left, frame.right)
    y = linear(0, top, frame.bottom, frame.top)
    at = ticks(0, top, 5)
    most = max((b.rows for b in bins), default=1)
    body = [
        frame.horizontal_grid(y, at, percent),
        frame.vertical_grid(x, at, percent),
        line(x(0), y(0), x(top), y(top), "reference"),
        text(frame.right, frame.bottom + 38, "predicted chance of late", anchor="end",
             class_="tick"),
        text(frame.left + 8, frame.top + 12, "observed", class_="tick"),
    ]  # fmt: skip
    for (name, group), class_ in zip(series, SERIES, strict=False):
        points = [(x(b.predicted), y(b.observed)) for b in group]
        body.append(path(points, f"curve {class_}"))
        for b in group:
            radius = 3 + 6 * math.sqrt(b.rows / most)
            hint = f"{name}: predicted {percent(b.predicted, 1)}, observed "
            hint += f"{percent(b.observed, 1)}, {b.rows:,} flights"
            body.append(dot(x(b.predicted), y(b.observed), radius, f"bubble {class_}", hint))
    return canvas(HALF, frame.bottom + 46, "Calibration: predicted against observed", *body)


def slice_chart(slices: Sequence[Slice]) -> str:
    """AUC by carrier and by origin, largest part first."""
    row, left, right = 22.0, 92.0, HALF - 96.0
    low = math.floor(min(s.auc for s in slices) * 20) / 20
    high = math.ceil(max(s.auc for s in slices) * 20) / 20
    x = linear(low, high, left, right)
    groups = list(dict.fromkeys(s.group for s in slices))
    height = row * (len(slices) + len(groups)) + 8
    frame = Frame(left, 4, right, height)
    body = [frame.vertical_grid(x, ticks(low, high, 4), lambda v: f"{v:.2f}")]
    y = 4.0
    for group in groups:
        y += row
        body.append(text(0, y - 4, f"by {group}", class_="label strong"))
        for part in (s for s in slices if s.group == group):
            y += row
            middle = y - row / 2
            body += [
                text(left - 10, middle + 4, part.name, anchor="end", class_="label"),
                line(left, middle, x(part.auc), middle, "stem series-a"),
                dot(x(part.auc), middle, 4.5, "fill series-a",
                    f"{part.name}: AUC {part.auc:.3f} on {part.rows:,} flights"),
                text(HALF - 50, middle + 4, f"{part.auc:.3f}", anchor="end", class_="value"),
                text(HALF, middle + 4, f"{part.rows:,}", anchor="end", class_="tick"),
            ]  # fmt: skip
    return canvas(HALF, height + 26, "AUC by slice", *body)


def _day_axis(frame: Frame, days: Sequence[DayPoint]) -> tuple[Scale, str]:
    """Return the scale from day number to pixels, and the axis: months, or days in a short run."""
    first, last = days[0].day, days[-1].day
    x = linear(first.toordinal() - 0.5, last.toordinal() + 0.5, frame.left, frame.right)
    step = 1 if len(days) <= 14 else 7
    axis = []
    day = first
    while day <= last:
        at = x(day.toordinal())
        axis.append(line(at, frame.bottom, at, frame.bottom + 4, "axis"))
        axis.append(text(at, frame.bottom + 18, day_text(day), anchor="middle", class_="tick"))
        day += timedelta(days=step)
    return x, "".join(axis)


def daily_chart(
    days: Sequence[DayPoint], incidents: Sequence[IncidentView], canary_from: date
) -> str:
    """Late share (bars) against the mean prediction (line) by day, with what was reported."""
    frame = Frame(46, 30, WIDE - 22, 300)
    top = max([0.2, *(max(d.late_share or 0, d.prediction_mean) for d in days)])
    top = min(1.0, math.ceil(top * 10) / 10)
    y = linear(0, top, frame.bottom, frame.top)
    x, axis = _day_axis(frame, days)
    bar = 0.66 * (frame.right - frame.left) / len(days)
    body = [frame.horizontal_grid(y, ticks(0, top, 5), percent), axis]
    for d in days:
        if d.late_share is None:
            continue
        hint = f"{day_text(d.day)}: {percent(d.late_share, 1)} of {d.rows:,} flights late, "
        hint += f"predicted {percent(d.prediction_mean, 1)}"
        height = frame.bottom - y(d.late_share)
        at = x(d.day.toordinal())
        body.append(rect(at - bar / 2, y(d.late_share), bar, height, "bar-muted", r=1.5,
                         title=hint))  # fmt: skip
    points = [(x(d.day.toordinal()), y(d.prediction_mean)) for d in days]
    body.append(path(points, "curve halo"))
    body.append(path(points, "curve series-a"))
    if days[0].day < canary_from <= days[-1].day:
        at = x(canary_from.toordinal() - 0.5)
        body.append(frame.marker(at, "canary released", "series-b", before=False))
    body += [
        frame.marker(
            x(incident.day.toordinal()), f"incident opened {day_text(incident.day)}", "alarm",
            row=row, before=incident.day.toordinal() > (days[0].day.toordinal() + len(days) // 2),
        )
        for row, incident in enumerate(incidents[:3])
    ]  # fmt: skip
    return canvas(WIDE, frame.bottom + 30, "Late share and mean prediction by day", *body)


def share_chart(days: Sequence[DayPoint]) -> str:
    """The canary's share by day against the plan; the band is the plan ± 4 sd of a day's draw."""
    days = [d for d in days if d.rows and d.canary_planned is not None]
    frame = Frame(46, 14, WIDE - 22, 226)
    band = [(d, 4 * math.sqrt(_variance(d))) for d in days]
    top = max(*(_planned(d) + s for d, s in band), *(d.canary_rows / d.rows for d in days))
    top = math.ceil(top * 50) / 50
    y = linear(0, top, frame.bottom, frame.top)
    x, axis = _day_axis(frame, days)

    def at(d: DayPoint) -> float:
        return x(d.day.toordinal())

    upper = [(at(d), y(_planned(d) + s)) for d, s in band]
    lower = [(at(d), y(max(_planned(d) - s, 0))) for d, s in band]
    body = [
        path([*upper, *reversed(lower)], "band series-b", close=True),
        frame.horizontal_grid(y, ticks(0, top, 4), percent),
        axis,
        path([(at(d), y(_planned(d))) for d in days], "reference series-b"),
    ]
    for d in days:
        hint = f"{day_text(d.day)}: {d.canary_rows:,} of {d.rows:,} to the challenger"
        share = d.canary_rows / d.rows
        body.append(dot(at(d), y(share), 4, "fill series-b", f"{hint} ({percent(share, 1)})"))
    return canvas(WIDE, frame.bottom + 30, "The challenger's share of traffic by day", *body)


def _planned(day: DayPoint) -> float:
    return day.canary_planned or 0.0


def _variance(day: DayPoint) -> float:
    return _planned(day) * (1 - _planned(day)) / day.rows


def weekly_auc_chart(arms: Sequence[ArmResult]) -> str:
    """Online AUC by week, one line an arm."""
    points = [p for arm in arms for p in arm.weekly_auc]
    frame = Frame(46, 14, HALF - 20, 226)
    low = math.floor(min(v for _, v in points) * 20) / 20
    high = math.ceil(max(v for _, v in points) * 20) / 20
    first = min(d for d, _ in points).toordinal()
    last = max(d for d, _ in points).toordinal()
    x = linear(first, last, frame.left + 8, frame.right - 8)
    y = linear(low, high, frame.bottom, frame.top)
    every = max(7, 7 * math.ceil((last - first) / 7 / 5))
    body = [frame.horizontal_grid(y, ticks(low, high, 4), lambda v: f"{v:.2f}")]
    body += [
        text(x(n), frame.bottom + 18, day_text(date.fromordinal(n)), anchor="middle", class_="tick")
        for n in range(first, last + 1, every)
    ]
    for arm, class_ in zip(arms, SERIES, strict=False):
        line_points = [(x(d.toordinal()), y(v)) for d, v in arm.weekly_auc]
        body.append(path(line_points, f"curve {class_}"))
        for (day, value), (px, py) in zip(arm.weekly_auc, line_points, strict=True):
            hint = f"{arm.title}, week of {day_text(day)}: AUC {value:.3f}"
            body.append(dot(px, py, 4, f"fill {class_}", hint))
    return canvas(HALF, frame.bottom + 30, "Online AUC by week and arm", *body)


def moved_chart(moved: Sequence[MovedFeature]) -> str:
    """The features that an incident names; the tick on each bar is where moving begins."""
    row, left, right = 44.0, 4.0, HALF - 60.0
    top = max([*(m.score for m in moved), *(m.threshold for m in moved)])
    x = linear(0, top, left, right)
    body = []
    for index, m in enumerate(moved):
        y = row * index
        body += [
            text(left, y + 16, m.name, class_="label mono"),
            text(HALF, y + 16, m.change, anchor="end", class_="tick"),
            rect(left, y + 22, right - left, 10, "track", r=5),
            rect(left, y + 22, x(m.score) - left, 10, "fill alarm", r=5,
                 title=f"{m.name}: {m.score:.3f} against a threshold of {m.threshold:.3f}"),
            line(x(m.threshold), y + 19, x(m.threshold), y + 35, "tickmark"),
            text(HALF, y + 32, f"{m.score:.2f}", anchor="end", class_="value"),
        ]  # fmt: skip
    return canvas(HALF, row * len(moved), "The features that moved most", *body)


def latency_chart(series: LatencySeries, class_: str = "series-a") -> str:
    """Histogram of milliseconds on a logarithmic axis, with p50, p95 and p99."""
    milliseconds = series.nanoseconds / 1e6
    frame = Frame(10, 34, HALF - 10, 200)
    low = float(np.percentile(milliseconds, 0.1)) * 0.8
    high = float(np.percentile(milliseconds, 99.9)) * 1.25
    bins = min(60, max(12, int(LATENCY_BINS_PER_DECADE * math.log10(high / low))))
    edges = np.geomspace(low, high, bins + 1)
    counts, _ = np.histogram(milliseconds, edges)
    x = logarithmic(low, high, frame.left, frame.right)
    y = linear(0, float(counts.max()), frame.bottom, frame.top + 14)
    decades = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
    at = [v for v in decades if low <= v <= high]
    body = [frame.vertical_grid(x, at, lambda v: f"{v:g}")]
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        hint = f"{start:.2f} to {end:.2f} ms: {count:,} calls"
        width = x(float(end)) - x(float(start)) - 1.2
        top = y(float(count))
        body.append(rect(x(float(start)), top, width, frame.bottom - top, f"fill {class_}",
                         r=1.5, title=hint))  # fmt: skip
    for row, (p, label) in enumerate(((50, "p50"), (95, "p95"), (99, "p99"))):
        at_x = x(series.percentile_ms(p))
        body.append(frame.marker(at_x, label, "ink", row=-row % 2 - 1, before=False))
    body.append(text(frame.right, frame.bottom + 36, "milliseconds, logarithmic", anchor="end",
                     class_="tick"))  # fmt: skip
    return canvas(HALF, frame.bottom + 44, f"Latency of {series.name}", *body)
