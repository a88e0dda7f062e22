"""`headrace replay` on a log that the test writes, and on one that was tampered with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import FeatureBatch
from headrace.ids import PredictionIds, id_text
from monitor import EXPLAINED, FORCED, LogWriter, log_batch
from tests.server.served_bundles import MODEL, infer, make_served_bundle, service
from trainer.bundle import read_bundle
from trainer.calibrators import Calibrator, Sigmoid, calibrate
from trainer.registry import ArtifactStore

T0_US = 1_380_600_000_000_000
IDS = PredictionIds(0, 1)


class Logged:
    """A data folder with one version in its artifacts."""

    def __init__(self, folder: Path, calibrator: Calibrator | None = None) -> None:
        self.folder = folder
        self.digest, self.model = make_served_bundle(folder / "bundle", calibrator=calibrator)
        ArtifactStore(folder / "artifacts").put_bundle(read_bundle(folder / "bundle"))

    def log(self, **changes: Any) -> str:
        """Log one prediction as a worker does; return its id as text."""
        compiled = service()
        words = np.array([[3, np.array([4.5]).view(np.int64)[0]]], np.int64)
        batch = FeatureBatch(compiled, words, np.zeros((1, 2), np.uint8))
        prediction_id = IDS.take(T0_US)
        row = {
            "prediction_id": prediction_id,
            "attempt": 0,
            "event_time": T0_US,
            "model": MODEL,
            "version": self.digest,
            "plan": 3,
            "policy": "weighted",
            "arm": "a",
            "propensity": 0.9,
            "pmf": [0.9, 0.1],
            "flags": 0,
            "key_hash": 0xABCDEF,
            "features": batch.pack(7)[0],
            "schema_id": 7,
            "outputs": infer(self.model, batch.matrix())[0].tolist(),
            "decision": "high",
        } | changes
        columns = {name: [value] for name, value in row.items()}
        LogWriter(self.folder / "log").write(log_batch(columns, 1))
        return id_text(prediction_id)

    def replay(self, prediction_id: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "server.cli.main", "replay", prediction_id]
        command += ["--data-dir", str(self.folder), "--control-url", "http://127.0.0.1:1"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def logged(tmp_path: Path) -> Logged:
    return Logged(tmp_path)


def bits(text: str) -> list[str]:
    return [line.rpartition("(0x")[2].rstrip(")") for line in text.splitlines() if "(0x" in line]


def test_the_same_bits_and_why_this_arm(logged: Logged) -> None:
    done = logged.replay(logged.log())
    assert done.returncode == 0, done.stderr
    first, second = bits(done.stdout)
    assert first == second
    assert "equal, bit for bit" in done.stdout
    assert "arm         a, under plan 3, policy weighted" in done.stdout
    assert "key hash 0000000000abcdef" in done.stdout
    assert "0.9 out of (0.9, 0.1)" in done.stdout


def test_the_calibrated_answer_and_what_was_decided_on_it(tmp_path: Path) -> None:
    calibrator = Sigmoid(-1.0, 4.0, logit=True)
    logged = Logged(tmp_path, calibrator)
    words = np.array([[3, np.array([4.5]).view(np.int64)[0]]], np.int64)
    matrix = FeatureBatch(service(), words, np.zeros((1, 2), np.uint8)).matrix()
    raw = infer(logged.model, matrix)
    answer = calibrate(calibrator, raw)
    assert answer < 0.5 < raw
    done = logged.replay(logged.log(outputs=answer[0].tolist(), decision="low"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decided     low, recomputed low" in done.stdout
    assert logged.replay(logged.log(outputs=raw[0].tolist(), decision="low")).returncode == 1
    wrong = logged.replay(logged.log(outputs=answer[0].tolist(), decision="high"))
    assert wrong.returncode == 1
    assert "decided     high, recomputed low" in wrong.stdout


def test_what_each_feature_added_is_shown_where_it_was_logged(logged: Logged) -> None:
    assert "explained" not in logged.replay(logged.log()).stdout
    row = logged.log(flags=EXPLAINED, attributions=[0.25, -1.5], attribution_base=[0.5])
    lines = logged.replay(row).stdout.splitlines()
    at = lines.index("  explained: from +0.5 by")
    assert lines[at + 1] == "       -1.500000  activity:amount_mean_1h"
    assert lines[at + 2] == "       +0.250000  activity:amount_count_1h"
    assert len(lines) == at + 3
    two = logged.log(attributions=[1, 2, 3, 4], attribution_base=[0.5, 0.25])
    lines = logged.replay(two).stdout.splitlines()
    at = lines.index("  explained of score 1: from +0.25 by")
    assert lines[at + 1] == "       +4.000000  activity:amount_mean_1h"


def test_one_bit_of_difference_is_seen(logged: Logged) -> None:
    prediction_id = logged.log(outputs=[0.5])
    done = logged.replay(prediction_id)
    assert done.returncode == 1
    assert "DIFFERENT" in done.stdout
    assert bits(done.stdout)[0] == "3f000000"
    assert bits(done.stdout)[1] != "3f000000"


def test_flags_are_named(logged: Logged) -> None:
    done = logged.replay(logged.log(flags=FORCED, pmf=None, propensity=1.0))
    assert "flags       forced" in done.stdout
    assert "one arm only" in done.stdout


def test_without_a_plan_no_arm_is_explained(logged: Logged) -> None:
    done = logged.replay(logged.log(plan=None, arm=None, policy=None))
    assert "under no plan" in done.stdout
    assert done.returncode == 0


def test_a_prediction_that_is_not_in_the_log(logged: Logged) -> None:
    logged.log()
    done = logged.replay(id_text(IDS.take(T0_US)))
    assert done.returncode == 1
    assert "is not in the log; check --data-dir" in done.stderr


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"features": None}, "logged without its features"),
        ({"features": b"cut"}, "packed row 0"),
        ({"version": "sha256:" + "0" * 64}, "does not answer"),
    ],
)
def test_what_cannot_be_replayed_says_why(
    logged: Logged, changes: dict[str, Any], text: str
) -> None:
    done = logged.replay(logged.log(**changes))
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
