"""The picture of the thread: where a flight's facts go, and how the next version comes about."""

from __future__ import annotations

from dataclasses import dataclass

from server.demo.findings import Findings, Verdict
from server.demo.svg import canvas, path, rect, tag, text

_NODE_WIDTH = 164.0
_NODE_HEIGHT = 84.0
_GAP = 32.0
_TOP = 26.0
_BOTTOM = 206.0
_WIDTH = 5 * _NODE_WIDTH + 4 * _GAP


@dataclass(frozen=True)
class _Node:
    column: float
    top: float
    title: str
    detail: str
    fact: str
    class_: str = ""

    @property
    def left(self) -> float:
        return self.column * (_NODE_WIDTH + _GAP)

    @property
    def middle(self) -> float:
        return self.left + _NODE_WIDTH / 2

    def svg(self) -> str:
        return (
            rect(self.left, self.top, _NODE_WIDTH, _NODE_HEIGHT, f"node {self.class_}", r=10)
            + text(self.left + 14, self.top + 25, self.title, class_="label strong")
            + text(self.left + 14, self.top + 44, self.detail, class_="tick")
            + text(self.left + 14, self.top + 68, self.fact, class_=f"value {self.class_}")
        )


def _arrow(points: list[tuple[float, float]], label: str = "", *, dashed: bool = False) -> str:
    """Return a bent arrow; its label stands in the middle of the first stretch."""
    class_, class_head = ("flow dashed", "flowhead dashed") if dashed else ("flow", "flowhead")
    (x1, y1), (x2, y2) = points[0], points[1]
    (x, y), (px, py) = points[-1], points[-2]
    steps = "L".join(f"{a:.0f} {b:.0f}" for a, b in points)
    size = 6.0
    if x != px:
        sign = 1 if x > px else -1
        head = [(x, y), (x - sign * size, y - size * 0.7), (x - sign * size, y + size * 0.7)]
    else:
        sign = 1 if y > py else -1
        head = [(x, y), (x - size * 0.7, y - sign * size), (x + size * 0.7, y - sign * size)]
    body = tag("path", d=f"M{steps}", class_=class_) + path(head, class_head, close=True)
    if label and x1 == x2:
        body += text(x1 + 8, (y1 + y2) / 2 + 4, label, class_="tick")
    elif label:
        body += text((x1 + x2) / 2, y1 - 8, label, anchor="middle", class_="tick")
    return body


def thread_diagram(found: Findings) -> str:
    """Return the loop as one SVG; each box carries a number of this run."""
    history = next((s for s in found.scores if not s.baseline), None)
    opened = len(found.incidents)
    equal = found.consistency
    consistent = "all bit-equal" if equal.equal_rows == equal.rows else "rows differ"
    bad = {c.section for c in found.checks if c.verdict is Verdict.FAIL}
    answered = " : ".join(f"{a.rows:,}" for a in found.arms)
    done = found.throughput
    events = _Node(0, _TOP, "Events", "flights and weather", f"{done.events:,} pushed")
    features = _Node(
        1, _TOP, "Features", f"{equal.features} values, one MGET", consistent,
        "bad" if "consistency" in bad else "good",
    )  # fmt: skip
    router = _Node(2, _TOP, "Router", "weighted, sticky split", answered)
    model = _Node(
        3, _TOP, "Model", "ONNX, over gRPC", f"AUC {history.auc:.3f}" if history else "served"
    )
    caller = _Node(4, _TOP, "Application", "“will it be late?”", f"{done.predictions:,} asked")
    trainer = _Node(0, _BOTTOM, "Trainer", "the same definitions", "7 steps, gated")
    registry = _Node(
        1, _BOTTOM, "Registry", "review and release",
        f"{len(found.governance)} recorded acts",
    )  # fmt: skip
    monitor = _Node(
        2, _BOTTOM, "Monitor", "drift and calibration",
        f"{opened} incident{'' if opened == 1 else 's'}", "alarm" if opened else "",
    )  # fmt: skip
    log = _Node(3, _BOTTOM, "Log", "Parquet, row by row", f"{equal.rows:,} rows")
    truth = _Node(4, _BOTTOM, "Truth", "once it has landed", f"{done.truths:,} joined")
    nodes = [events, features, router, model, caller, trainer, registry, monitor, log, truth]

    mid = _TOP + _NODE_HEIGHT / 2
    low = _BOTTOM + _NODE_HEIGHT / 2
    edge = _TOP + _NODE_HEIGHT
    under = _BOTTOM + _NODE_HEIGHT
    lane = (edge + _BOTTOM) / 2

    def across(a: _Node, b: _Node, y: float) -> list[tuple[float, float]]:
        if b.left > a.left:
            return [(a.left + _NODE_WIDTH + 3, y), (b.left - 4, y)]
        return [(a.left - 3, y), (b.left + _NODE_WIDTH + 4, y)]

    arrows = [
        _arrow(across(events, features, mid)),
        _arrow(across(features, router, mid)),
        _arrow(across(router, model, mid)),
        _arrow(across(caller, model, mid - 12)),
        _arrow(across(model, caller, mid + 12)),
        _arrow([(events.middle, edge + 3), (events.middle, _BOTTOM - 4)], "history"),
        _arrow(across(trainer, registry, low)),
        _arrow([(registry.middle, _BOTTOM - 3), (registry.middle, lane), (router.middle, lane),
                (router.middle, edge + 4)], "release plan"),
        _arrow([(model.middle, edge + 3), (model.middle, _BOTTOM - 4)], "every row"),
        _arrow([(caller.middle, edge + 3), (caller.middle, _BOTTOM - 4)], "outcome"),
        _arrow(across(truth, log, low)),
        _arrow(across(log, monitor, low)),
        _arrow([(monitor.middle, under + 3), (monitor.middle, under + 22),
                (trainer.middle, under + 22), (trainer.middle, under + 4)], dashed=True),
        text((trainer.middle + monitor.middle) / 2, under + 38,
             "an incident asks for the next version", anchor="middle", class_="tick"),
    ]  # fmt: skip
    label = "Events become features, the router picks a version, the model answers, the log and "
    label += "truth feed the monitor, and the registry releases the next version"
    return canvas(
        _WIDTH, under + 46, label, *arrows, *(node.svg() for node in nodes), class_="chart diagram"
    )
