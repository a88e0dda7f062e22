"""The demo, in order: start, train, review, release, warm, replay, monitor, compare, report."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import uvloop
from rich.console import Console

from headrace.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from headrace.ids import id_text
from headrace.times import DAY_US, from_us, utc_date
from monitor.signals import Budget
from server.control.client import ControlClient
from server.demo import gather, verdicts
from server.demo.analysis import shares
from server.demo.charts import day_text
from server.demo.clients import infer_with_triton, replay_prediction
from server.demo.experiment import Arm, Experiment, read_experiment
from server.demo.findings import Check, Findings, Throughput
from server.demo.gather import Judged
from server.demo.governance import AUTHOR, REVIEWER, Governance
from server.demo.progress import Steps
from server.demo.recent import recent_events
from server.demo.replay import Answers, Cue, Outcomes, ReplayClient
from server.demo.replay_clock import ReplayClock
from server.demo.report_html import write_report
from server.demo.report_terminal import print_report
from server.demo.system import System, start_system
from server.processes.layout import DataDir, Lock
from trainer.bundle import read_bundle

MARKER = ".headrace-demo"
REPORT = "report.html"
TRUTH_NAME = "late"
REQUEST_ID = "flight_id"
# In the spine besides what the application sends.
_NOT_INPUTS = {"flight_id", "event_time", "late", "label_time"}
# LightGBM gains little from more on so few rows, and a run should not depend on the machine.
_THREADS_MAX = 2
_LOG_WAIT_S = 20.0
_PROJECT_FILES = ("definitions.py", "pipeline.py", "experiment.toml")


def run_demo(
    project: Path | None = None,
    data_dir: Path = Path("demo-data"),
    keep: bool = False,
    days: int | None = None,
) -> int:
    """Run everything; return 0 when all checks passed, 1 when one failed.

    `project` is the example's folder. `days` replays the first days only; what such a run cannot
    tell is skipped. `keep` leaves the system running. Raises HeadraceError when a step fails.
    """
    folder = project or Path(__file__).resolve().parents[2] / "examples" / "flights"
    check_project(folder)
    console = Console()
    prepare(data_dir)
    demo = _Demo(folder, data_dir.resolve(), keep, days, console)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        found = demo.run()
    except BaseException as error:
        # Ctrl-C and SIGTERM too: nothing that was started here may outlive a run that failed.
        demo.stop()
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            sys.stderr.write("stopped; nothing is left running\n")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if not keep:
        demo.stop()
    page = demo.data_dir / REPORT
    write_report(page, found)
    print_report(console, found, page)
    return 1 if found.failed else 0


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def check_project(folder: Path) -> None:
    """Raise NotFoundError that names what a project's folder lacks, before anything starts."""
    if not folder.is_dir():
        raise NotFoundError(f"no project {folder}", mend="check --project")
    missing = [name for name in _PROJECT_FILES if not (folder / name).is_file()]
    if missing:
        raise NotFoundError(
            f"{folder} is no project: it has no {', '.join(missing)}", mend="check --project"
        )


def prepare(data_dir: Path) -> None:
    """Make an empty data folder; one that a demo left behind is wiped, any other is refused.

    Raises FailedPreconditionError for a folder that is not a demo's or is still in use.
    """
    if data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir())):
        if not (data_dir / MARKER).is_file():
            raise FailedPreconditionError(
                "the data folder is not empty and no demo's",
                where=str(data_dir),
                mend="give another one with --data-dir",
            )
        run = DataDir(data_dir).create().run
        try:
            with Lock(run / "supervisor.lock", "a headrace supervisor"):
                pass
        except AlreadyExistsError as error:
            raise FailedPreconditionError(
                "an earlier demo still runs", where=str(data_dir), got=error.what, mend=error.mend
            ) from None
        shutil.rmtree(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / MARKER).write_text("A demo of headrace made this folder and may wipe it.\n")


@dataclass
class _Demo:
    """The state that one step leaves to the next."""

    project: Path
    data_dir: Path
    keep: bool
    days: int | None
    console: Console
    system: System | None = None
    # Release plan → version → weight, as released.
    plans: dict[int, dict[str, float]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def stop(self) -> None:
        if self.system is not None:
            self.system.stop()

    def run(self) -> Findings:
        with Steps(self.console) as steps:
            with steps.step("Start the system"):
                self.system = start_system(self.data_dir, well_known_ports=self.keep)
                self.control = ControlClient(self.system.control)
            self._train(steps)
            with steps.step("Review and release"):
                self._govern()
            clock = self._clock()
            with steps.step("Warm the history") as bar:
                known = clock.count(int(self.times_us[0]))
                self.warmed = asyncio.run(
                    self._warm(clock, lambda n: bar.update(n / known, f"{n:,} events"))
                )
            with steps.step(f"Replay {day_text(self.first)} to {day_text(self.last)}") as bar:
                self.answers = uvloop.run(self._replay(clock, bar.update))
            with steps.step("Monitor"):
                incidents = self._monitor()
            with steps.step("Compare online with offline"):
                judged = self._judge()
            with steps.step("Try the clients, roll back"):
                self._try_clients()
                self._roll_back()
        found = self._findings(judged, incidents)
        found.timings = steps.timings
        return found

    # The steps.

    def _train(self, steps: Steps) -> None:
        from trainer.project import load_project

        definitions = (self.project / "definitions.py").read_bytes()
        applied = self.control.apply_definitions(definitions, AUTHOR)
        project = load_project(self.project)
        pipeline = steps.sequence("Pipeline")
        threads = min(_THREADS_MAX, len(os.sched_getaffinity(0)))
        self.results: Any = project.build(self.data_dir, pipeline.update, threads, applied["ids"])
        pipeline.finish()
        self.control.record_run(self.results.run, AUTHOR)
        self.experiment: Experiment = read_experiment(project.EXPERIMENT)
        spine = self.results.spine
        times_us = spine.column("event_time").to_numpy()
        rows = len(times_us)
        if self.days is not None:
            end_us = int(times_us[0]) // DAY_US * DAY_US + self.days * DAY_US
            rows = int(np.searchsorted(times_us, end_us))
        self.spine: pa.Table = spine.slice(0, rows)
        self.times_us = times_us[:rows]
        self.first, self.last = gather.period(self.times_us)
        self.tested = gather.period(times_us)

    def _govern(self) -> None:
        self.model = self.experiment.model
        self.governance = Governance(self.control, self.model, {})
        self.digests: dict[str, str] = {}
        for arm in self.experiment.arms:
            folder = self.results.bundles[arm.version]
            auc = self.results.evaluations[arm.version].auc
            title = arm.version.capitalize()
            digest = self.governance.register(folder, title, f"pipeline run, AUC {auc.value:.4f}")
            self.digests[arm.version] = digest
            self.governance.approve(
                digest,
                claim=f"AUC {auc.low:.3f} to {auc.high:.3f} on flights it never saw",
                seen="parity, calibration and slices are sound",
            )
        start = [arm for arm in self.experiment.arms if arm.from_us <= int(self.times_us[0])]
        self._release(start, "first release")

    def _release(self, arms: list[Arm], why: str) -> None:
        number = self.governance.release({self.digests[arm.version]: arm for arm in arms}, why)
        total = sum(arm.weight for arm in arms)
        self.plans[number] = {self.digests[arm.version]: arm.weight / total for arm in arms}
        assert self.system is not None
        for version in self.plans[number]:
            self.system.await_version(self.model, version)

    def _clock(self) -> ReplayClock:
        names = [name for name in self.spine.column_names if name not in _NOT_INPUTS]
        stored = [service_view.view for service_view in self.results.service.views]
        events = recent_events(self.results.events, stored, int(self.times_us[0]))
        return ReplayClock(
            events, self.spine, model=self.model, inputs=names, request_id=REQUEST_ID
        )

    async def _warm(self, clock: ReplayClock, progress: Any) -> int:
        assert self.system is not None
        async with ReplayClient(self.system.grpc) as client:
            return await client.warm(
                clock, int(self.times_us[0]), self.results.service.name, progress
            )

    async def _replay(self, clock: ReplayClock, update: Any) -> Answers:
        assert self.system is not None
        outcomes = Outcomes(
            TRUTH_NAME,
            self.spine.column("late").to_numpy(zero_copy_only=False).astype(np.float64),
            self.spine.column("label_time").to_numpy(),
        )
        rows, begin = len(self.times_us), monotonic()

        def progress(done: int, time_us: int) -> None:
            when = from_us(time_us)
            rate = done / max(monotonic() - begin, 1e-9)
            update(done / rows, f"{day_text(when.date())} {when:%H:%M}, {rate:,.0f}/s")

        async with ReplayClient(self.system.grpc) as client:
            return await client.replay(clock, outcomes, progress, self._cues())

    def _cues(self) -> list[Cue]:
        """Return the later releases of the experiment, at their time of the replay."""
        cues = []
        for arm in self.experiment.arms:
            if arm.from_us <= int(self.times_us[0]):
                continue
            at_us = self._canary_us(arm)
            arms = [a for a in self.experiment.arms if a.from_us <= arm.from_us]
            why = f"canary from {day_text(utc_date(at_us))}: not scored on what it was trained on"

            async def release(arms: list[Arm] = arms, why: str = why) -> None:
                await asyncio.to_thread(self._release, arms, why)

            cues.append(Cue(at_us, release))
        return cues

    def _canary_us(self, arm: Arm) -> int:
        """When a later arm is released: halfway in a run that ends before its time."""
        if arm.from_us <= int(self.times_us[-1]):
            return arm.from_us
        return (int(self.times_us[0]) + int(self.times_us[-1])) // 2

    def _monitor(self) -> list[dict[str, Any]]:
        self._await_log()
        self.control.run_monitor(self.model, self.last.isoformat())
        self.reports = self.control.days(self.model)
        return sorted(self.control.incidents(self.model), key=lambda i: str(i["opened"]))

    def _await_log(self) -> None:
        """Wait until the collector has written what the workers answered; a loss shows later."""
        deadline = monotonic() + _LOG_WAIT_S
        while monotonic() < deadline:
            if gather.is_all_logged(self.data_dir, self.model, len(self.times_us)):
                return
            sleep(0.5)

    def _judge(self) -> Judged:
        results, rows = self.results, len(self.times_us)
        logged, truth = gather.read_back(self.data_dir, self.model, self.answers)
        offline = results.features.pack(self._schema_id())[:rows]
        scores = {self.digests[n]: p[:rows] for n, p in results.predictions.items()}
        titles = {
            self.digests[arm.version]: (arm.version.capitalize(), arm.role)
            for arm in self.experiment.arms
        }
        judged = gather.judge(
            logged, truth, self.spine, offline, results.service.columns, scores, titles, self.plans
        )
        found_shares = shares(logged, self.plans, titles)
        self.checks += [
            verdicts.bit_for_bit(judged.consistency),
            verdicts.same_quality(judged.arms),
            verdicts.nothing_lost(
                logged,
                self.answers.outputs,
                self.answers.arms,
                self.answers.truths,
                int(np.isnan(truth).sum()),
            ),
            verdicts.split_is_the_plan(found_shares),
            verdicts.propensities_are_exact(logged, self.plans),
        ]
        return judged

    def _schema_id(self) -> int:
        """Return the id that rows of the champion's service are packed with."""
        first = self.experiment.arms[0].version
        wanted = read_bundle(self.results.bundles[first]).manifest.feature_service
        assert wanted is not None
        return wanted.schema_id or 0

    def _try_clients(self) -> None:
        assert self.system is not None
        row = len(self.times_us) - 1
        matrix = self.results.features.matrix()[row : row + 1]
        promised = [float(p[row]) for p in self.results.predictions.values()]
        answers = infer_with_triton(self.system, self.model, matrix)
        self.replayed = id_text(self.answers.prediction_ids[row].tobytes())
        code, words = replay_prediction(self.system, self.data_dir, self.replayed)
        self.checks += [
            verdicts.one_answer_again(self.replayed, code, words),
            verdicts.standard_clients(answers, promised),
        ]

    def _roll_back(self) -> None:
        self.checks.append(verdicts.four_eyes(self.governance.refusal))
        if len(self.plans) < 2:
            return
        before = list(self.plans.values())[-2]
        why = "end of the canary: the champion alone until a version that knows December"
        made = self.control.rollback(self.model, REVIEWER, why)
        total = sum(e["weight"] for e in made["entries"]) or 1.0
        after = {e["version"]: e["weight"] / total for e in made["entries"]}
        names = {digest: name.capitalize() for name, digest in self.digests.items()}
        self.checks.append(
            verdicts.rolled_back(
                {names[v]: w for v, w in before.items()}, {names[v]: w for v, w in after.items()}
            )
        )

    # The report.

    def _findings(self, judged: Judged, incidents: list[dict[str, Any]]) -> Findings:
        assert self.system is not None
        views = gather.incident_views(incidents)
        scores = gather.model_scores(self.results)
        history = next(s for s in scores if not s.baseline)
        logistic = next(s for s in scores if s.name.lower().startswith("logistic"))
        parity = [c for report in self.results.parity.values() for c in report.shipped.values()]
        budget = Budget().false_incidents_per_90_days
        checks = [
            verdicts.history_is_worth_it(history.auc, logistic.auc),
            verdicts.program_is_the_model(
                sum(c.rows for c in parity), sum(c.label_flips for c in parity),
                max(c.delta_max for c in parity),
            ),
            *self.checks,
            verdicts.quiet_weeks(views, budget, self.last),
            verdicts.drift_is_noticed(views, [i["led_by"] for i in incidents], self.last),
        ]  # fmt: skip
        later = [arm for arm in self.experiment.arms if arm.from_us > int(self.times_us[0])]
        canary_us = self._canary_us(later[0]) if later else int(self.times_us[0])
        done = self.answers
        return Findings(
            title="Headrace: first light", period=(self.first, self.last),
            tested=self.tested,
            canary_from=utc_date(canary_us), model=self.model,
            canary_early=bool(later) and canary_us < later[0].from_us,
            machine=gather.machine(), versions=gather.versions(),
            data_dir=_shown(self.data_dir), alarm_budget=_budget(budget), scores=scores,
            slices=gather.slices(self.results), arms=judged.arms, consistency=judged.consistency,
            days=judged.days, incidents=views,
            skew=gather.skew_view(self.reports, len(self.results.service.columns)),
            latencies=gather.latencies(done),
            throughput=Throughput(
                len(done.outputs), len(done.predict_ns), done.events, done.truths, done.seconds
            ),
            governance=self.governance.trail(), replayed=self.replayed,
            addresses=self.system.addresses, keep=self.keep,
            checks=sorted(checks, key=lambda c: _SECTIONS.index(c.section)),
        )  # fmt: skip


_SECTIONS = ("model", "consistency", "traffic", "drift", "governance", "speed")


def _budget(false_per_90_days: float) -> str:
    return f"{false_per_90_days:g} false incidents in 90 quiet days; the thresholds follow from it."


def _shown(path: Path) -> str:
    """Return the path as someone in the working folder would write it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
