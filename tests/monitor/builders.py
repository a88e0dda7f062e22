"""Small builders of log rows, truth and days for the tests of monitor/."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.ids import PredictionIds
from headrace.times import DAY_US
from monitor import (
    DayProfile,
    LogWriter,
    Profile,
    Truth,
    TruthLog,
    build_profile,
    log_batch,
    profile_from_table,
    score_days,
)

DAY_ONE = date(2013, 10, 1)
DAY_ONE_US = 1_380_585_600_000_000
COLUMNS = ["delays:mean_1h", "weather:wind"]


def make_ids(times_us: np.ndarray, worker: int = 1) -> list[bytes]:
    ids = PredictionIds(worker, 7)
    return [ids.take(int(time)) for time in times_us]


def make_log(times_us: np.ndarray, **columns: object) -> pa.RecordBatch:
    """Answered live rows of model `delay` at these times; any column may be given or replaced."""
    rows = len(times_us)
    defaults: dict[str, object] = {
        "prediction_id": make_ids(times_us),
        "attempt": np.zeros(rows, np.uint8),
        "event_time": np.asarray(times_us, np.int64),
        "model": ["delay"] * rows,
        "arm": ["a"] * rows,
        "flags": np.zeros(rows, np.uint16),
        "sampling_probability": np.ones(rows, np.float32),
        "features": [np.zeros(len(COLUMNS), np.float32).tobytes()] * rows,
        "outputs": [[0.25]] * rows,
        "status": np.zeros(rows, np.uint8),
    }
    return log_batch({**defaults, **columns}, rows)


def decode(packed: pa.Array) -> np.ndarray:
    """The test's stand-in for the packed row: plain float32 words."""
    return np.frombuffer(b"".join(packed.to_pylist()), np.float32).reshape(len(packed), -1)


def make_profile(seed: int = 0, rows: int = 4000) -> Profile:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, len(COLUMNS))).astype(np.float32)
    scores = probability(matrix[:, 0])
    labels = (rng.random(rows) < scores).astype(np.float64)
    return profile_from_table(build_profile(matrix, COLUMNS, scores, labels))


def probability(signal: np.ndarray) -> np.ndarray:
    """A model of one feature: about 0.2 on average, more with a larger value."""
    return 1 / (1 + np.exp(1.5 - 0.8 * signal.astype(np.float64)))


class World:
    """Days of scored traffic: feature 0 drives the outcome, each day with its own weather."""

    def __init__(self, seed: int = 1, rows: int = 200) -> None:
        self.rng = np.random.default_rng(seed)
        self.rows = rows

    def day(
        self, ordinal: int, shift: float = 0.0, surprise: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Times, matrix, predictions and labels of the day `ordinal` days after DAY_ONE.

        `shift` moves the driving feature, `surprise` the outcome beyond what the feature tells.
        """
        rng = self.rng
        times = DAY_ONE_US + ordinal * DAY_US + np.sort(rng.integers(0, DAY_US, self.rows))
        weather = rng.normal(0, 0.3)
        matrix = rng.standard_normal((self.rows, len(COLUMNS))).astype(np.float32)
        matrix[:, 0] += np.float32(weather + shift)
        predictions = probability(matrix[:, 0])
        truth = 1 / (1 + np.exp(-np.log(predictions / (1 - predictions)) - surprise))
        labels = (rng.random(self.rows) < truth).astype(np.float64)
        return times, matrix, predictions, labels

    def baseline(self, profile: Profile, ordinals: range) -> list[DayProfile]:
        days: list[DayProfile] = []
        for ordinal in ordinals:
            times, matrix, predictions, labels = self.day(ordinal)
            days += score_days(profile, times, matrix, predictions, labels)
        return days

    def serve(
        self,
        data_dir: Path,
        ordinals: range,
        shift: float = 0.0,
        surprise: float = 0.0,
        with_truth: bool = True,
    ) -> None:
        """Write the log and the truth of these days, as the collector would."""
        writer, truth = LogWriter(data_dir / "log"), TruthLog(data_dir / "wal")
        for ordinal in ordinals:
            times, matrix, predictions, labels = self.day(ordinal, shift, surprise)
            ids = make_ids(times, worker=2)
            batch = make_log(
                times,
                prediction_id=ids,
                features=[row.tobytes() for row in matrix],
                outputs=[[score] for score in predictions.astype(np.float32).tolist()],
                arm=["a" if number % 10 else "b" for number in range(len(times))],
            )
            writer.write(batch)
            if with_truth:
                landed = (times + 3 * 3600 * 10**6).tolist()
                truth.append(
                    [
                        Truth(key, "late", value, when, when)
                        for key, value, when in zip(ids, labels.tolist(), landed, strict=True)
                    ]
                )
        truth.close()
