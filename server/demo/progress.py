"""One bar for each step of the demo, and how long each took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from server.demo.findings import Timing

# The longest name of a step, its times and its detail: what is left of a line is the bar's.
_BESIDE_BAR = 72


class _Time(ProgressColumn):
    """How long a step has taken and, while it runs, about how long it will take yet."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return `12 s` or `12 s, 30 s left`."""
        elapsed_s = task.finished_time if task.finished else task.elapsed
        text = f"{elapsed_s or 0.0:.0f} s"
        if not task.finished and task.time_remaining is not None:
            text += f", {task.time_remaining:.0f} s left"
        return Text(text, "yellow")


class Bar:
    """The bar of one step."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.detail = ""
        self._progress = progress
        self._task = task

    def update(self, share: float, detail: str = "") -> None:
        """Show that `share` (0 to 1) is done."""
        self.detail = detail
        self._progress.update(self._task, completed=share, detail=detail)


class Steps:
    """The steps of a run. Use as a context manager around all of them."""

    def __init__(self, console: Console) -> None:
        self.timings: list[Timing] = []
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=min(28, max(6, console.width - _BESIDE_BAR))),
            _Time(),
            TextColumn("[dim]{task.fields[detail]}", table_column=Column(overflow="fold")),
            console=console,
            refresh_per_second=5,
        )

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[Bar]:
        """Show a bar while the body runs, and keep its time."""
        bar, begin = self._begin(name)
        yield bar
        self._end(bar, name, begin)

    def sequence(self, prefix: str) -> Sequence:
        """Return bars for a part that names its own steps as it goes."""
        return Sequence(self, prefix)

    def _begin(self, name: str) -> tuple[Bar, float]:
        if not self._console.is_terminal:
            self._console.print(f"… {name}")
        return Bar(self._progress, self._progress.add_task(name, total=1.0, detail="")), monotonic()

    def _end(self, bar: Bar, name: str, begin: float) -> None:
        seconds = monotonic() - begin
        self.timings.append(Timing(name, seconds))
        bar.update(1.0, bar.detail)
        if not self._console.is_terminal:
            detail = f" ({bar.detail})" if bar.detail else ""
            self._console.print(f"✓ {name}: {seconds:.1f} s{detail}", highlight=False)


class Sequence:
    """Bars that follow one another: a step ends when the next is named."""

    def __init__(self, steps: Steps, prefix: str) -> None:
        self._steps = steps
        self._prefix = prefix
        self._now: tuple[str, Bar, float] | None = None

    def update(self, step: str, detail: str, share: float) -> None:
        """Show that `share` (0 to 1) of `step` is done."""
        name = f"{self._prefix}: {step.replace('_', ' ')}"
        if self._now is None or self._now[0] != name:
            self.finish()
            self._now = (name, *self._steps._begin(name))  # noqa: SLF001 - one class in two
        self._now[1].update(share, detail)

    def finish(self) -> None:
        """End the step that is under way."""
        if self._now is not None:
            name, bar, begin = self._now
            self._steps._end(bar, name, begin)  # noqa: SLF001 - one class in two
            self._now = None
