"""Inline SVG, no more than the charts need: tags, scales, ticks and a plot frame.

Colours come from CSS classes (`style.py`), so that one chart serves light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Scale = Callable[[float], float]


def number(value: float) -> str:
    """Return a coordinate with a tenth of a pixel, as short as it gets."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def tag(name: str, *children: str, **attributes: object) -> str:
    """Return `<name …>children</name>`; `class_` gives class, `stroke_width` gives stroke-width."""
    parts = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        text = number(value) if isinstance(value, float) else str(value)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    head = " ".join(parts)
    return f"<{head}>{''.join(children)}</{name}>" if children else f"<{head}/>"


def text(
    x: float, y: float, words: str, *, anchor: str = "start", class_: str | None = None
) -> str:
    """Return a text element; `words` is escaped."""
    return tag("text", escape(words), x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """Return a straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def rect(
    x: float, y: float, width: float, height: float, class_: str, *, r: float = 0, title: str = ""
) -> str:
    """Return a rectangle, with a tooltip where `title` is set."""
    children = [tag("title", escape(title))] if title else []
    return tag(
        "rect", *children, x=float(x), y=float(y), width=float(max(width, 0.0)),
        height=float(max(height, 0.0)), rx=float(r) if r else None, class_=class_,
    )  # fmt: skip


def dot(x: float, y: float, radius: float, class_: str, title: str = "") -> str:
    """Return a circle, with a tooltip where `title` is set."""
    children = [tag("title", escape(title))] if title else []
    return tag("circle", *children, cx=float(x), cy=float(y), r=float(radius), class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str, *, close: bool = False) -> str:
    """Return a polyline through the points; with `close`, an area."""
    if not points:
        return ""
    steps = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return tag("path", d=f"M{steps}{'Z' if close else ''}", class_=class_)


def canvas(width: float, height: float, label: str, *children: str, class_: str = "chart") -> str:
    """Return the `<svg>`; `label` is what a screen reader says."""
    return tag(
        "svg", *children, viewBox=f"0 0 {number(width)} {number(height)}", role="img",
        aria_label=label, class_=class_, preserveAspectRatio="xMidYMid meet",
    )  # fmt: skip


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Return the map of [low, high] onto [start, end]; a point domain maps to the middle."""
    if high == low:
        return lambda _: (start + end) / 2
    slope = (end - start) / (high - low)
    return lambda value: start + (value - low) * slope


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """Return the logarithmic map of [low, high] (both above 0) onto [start, end]."""
    inner = linear(math.log(low), math.log(high), start, end)
    return lambda value: inner(math.log(value))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers (steps of 1, 2 or 5 · 10ⁿ) inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


@dataclass(frozen=True)
class Frame:
    """The inside of a plot: where its axes stand, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def horizontal_grid(self, y: Scale, at: Sequence[float], label: Callable[[float], str]) -> str:
        """Return grid lines at these values, with their labels to the left."""
        return "".join(
            line(self.left, y(v), self.right, y(v), "grid")
            + text(self.left - 8, y(v) + 4, label(v), anchor="end", class_="tick")
            for v in at
        )

    def vertical_grid(self, x: Scale, at: Sequence[float], label: Callable[[float], str]) -> str:
        """Return grid lines at these values, with their labels below."""
        return "".join(
            line(x(v), self.top, x(v), self.bottom, "grid")
            + text(x(v), self.bottom + 18, label(v), anchor="middle", class_="tick")
            for v in at
        )

    def marker(self, x: float, label: str, class_: str, *, row: int = 0, before: bool) -> str:
        """Return an upright line at pixel `x` with a label on top of it."""
        side = (x - 6, "end") if before else (x + 6, "start")
        return line(x, self.top - 4, x, self.bottom, f"marker {class_}") + text(
            side[0], self.top + 10 + 16 * row, label, anchor=side[1], class_=f"label {class_}"
        )
