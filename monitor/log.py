"""The inference log as Parquet: `log/model=…/date=YYYY-MM-DD/hour=HH/<writer>-<n>.parquet`.

Partitions follow the *event* time, so that a replay of last year lands in last year's folders and a
prediction id (whose time part is the event time) names its folder. Files appear by rename: a reader
never sees half a file. They are not fsynced: the log may lose its last second (CONTRACTS §2).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.errors import InvalidArgumentError
from headrace.ids import id_time_us
from headrace.times import HOUR_US, from_us
from monitor.schema import LOG_SCHEMA, empty_log

_LOGGER = logging.getLogger(__name__)

# A folder name holds 255 bytes; `model=` and a margin are taken off.
MODEL_BYTES_MAX = 200

_ORDER = ("event_time", "prediction_id", "attempt")


def model_folder(model: str) -> str:
    """Return the partition folder of a model: `model=` and the percent-encoded name.

    Raises InvalidArgumentError for an empty name and for one that is too long for a folder.
    """
    name = quote(model, safe="")
    if not name or len(name) > MODEL_BYTES_MAX:
        raise InvalidArgumentError(
            "model name cannot name a log partition",
            where="model",
            expected=f"1 to {MODEL_BYTES_MAX} bytes, percent-encoded",
            got=f"{len(name)} bytes",
        )
    return f"model={name}"


class LogWriter:
    """Writes batches of log rows to their partitions. One per collector process.

    Disk trouble never raises: the rows are counted in `rows_dropped`, the reason is in
    `last_error`, and the next batch is tried afresh.
    """

    def __init__(self, root: Path, writer: str | None = None) -> None:
        self._root = root
        self._writer = writer or secrets.token_hex(8)
        self.rows_written = 0
        self.rows_dropped = 0
        self.files_written = 0
        self.last_error: str | None = None

    def write(self, batch: pa.RecordBatch) -> list[Path]:
        """Write the rows of `batch` (LOG_SCHEMA; any models, any hours) and return the new files.

        Raises InvalidArgumentError when the batch has another schema or a row lacks its model or
        event time; nothing of it is written then.
        """
        if not batch.schema.equals(LOG_SCHEMA):
            raise InvalidArgumentError("batch is not of the inference log's schema", where="log")
        files = []
        for folder, rows in self._partitions(batch):
            try:
                files.append(self._write_file(folder, rows))
            except OSError as error:
                self.rows_dropped += rows.num_rows
                self.last_error = f"{type(error).__name__}: {error.strerror or 'write failed'}"
        return files

    def _partitions(self, batch: pa.RecordBatch) -> list[tuple[Path, pa.RecordBatch]]:
        if batch.num_rows == 0:
            return []
        models: Any = batch.column("model")
        times: Any = batch.column("event_time")
        if models.null_count or times.null_count:
            raise InvalidArgumentError(
                "log row without a partition", where="log", expected="a model and an event time"
            )
        names = models.dictionary.to_pylist()
        hours = np.floor_divide(times.cast(pa.int64()).to_numpy(), HOUR_US)
        codes = models.indices.to_numpy()
        order = np.lexsort((hours, codes))  # stable: rows of a partition keep their order
        cuts = np.flatnonzero((np.diff(codes[order]) != 0) | (np.diff(hours[order]) != 0)) + 1
        partitions = []
        for rows in np.split(order, cuts):
            folder = self._root / model_folder(names[codes[rows[0]]])
            partitions.append((_hour_folder(folder, int(hours[rows[0]])), batch.take(rows)))
        return partitions

    def _write_file(self, folder: Path, rows: pa.RecordBatch) -> Path:
        name = f"{self._writer}-{self.files_written + 1:08d}"
        temporary = folder / f".{name}.tmp"
        path = folder / f"{name}.parquet"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_batches([rows]), temporary, compression="zstd")
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self.files_written += 1
        self.rows_written += rows.num_rows
        return path


def log_models(root: Path) -> list[str]:
    """Return the models that have a log, sorted."""
    return sorted(unquote(folder.name.removeprefix("model=")) for folder in root.glob("model=*"))


def log_dates(root: Path, model: str) -> list[date]:
    """Return the UTC dates for which `model` has a log, sorted; other folders are passed over."""
    folders = (root / model_folder(model)).glob("date=*")
    days = (_date(folder.name.removeprefix("date=")) for folder in folders)
    return sorted(day for day in days if day is not None)


def _date(text: str) -> date | None:
    """Return the date that a folder is named by; None for a name that no writer of ours gives."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if day.isoformat() == text else None  # ISO has other forms of the same day


def log_files(root: Path, model: str, day: date) -> list[Path]:
    """Return the log files of `model` on a UTC date, sorted by hour and name."""
    return sorted((root / model_folder(model) / f"date={day}").glob("hour=*/*.parquet"))


def read_log(
    root: Path,
    model: str,
    dates: Iterable[date] | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """Return the log of `model`, of all or the given UTC dates, in LOG_SCHEMA's types.

    Rows are sorted by (event_time, prediction_id, attempt), so that the result does not depend on
    who wrote which file. Folders of other dates are not opened.
    """
    days = log_dates(root, model) if dates is None else sorted(set(dates))
    files = [file for day in days for file in log_files(root, model, day)]
    names = LOG_SCHEMA.names if columns is None else columns
    table = _read_files(files, list(dict.fromkeys([*names, *_ORDER])))
    keys: Any = [(name, "ascending") for name in _ORDER]
    return table.take(pc.sort_indices(table, sort_keys=keys)).select(names)


def find_prediction(root: Path, prediction_id: bytes) -> pa.Table:
    """Return the log rows (all attempts, in order) of one prediction; none when it is unknown.

    The id's time part names the hour, so only that hour's folder of each model is read.
    """
    if len(prediction_id) != 16:
        raise InvalidArgumentError(
            "not a prediction id", expected="16 bytes", got=f"{len(prediction_id)} bytes"
        )
    hour = id_time_us(prediction_id) // HOUR_US
    files = [
        file
        for folder in sorted(root.glob("model=*"))
        for file in sorted(_hour_folder(folder, hour).glob("*.parquet"))
    ]
    table = _read_files(files, LOG_SCHEMA.names)
    wanted = pa.scalar(prediction_id, LOG_SCHEMA.field("prediction_id").type)
    return table.filter(pc.equal(table["prediction_id"], wanted)).sort_by("attempt")


def _hour_folder(model: Path, hour: int) -> Path:
    """Return the folder of an hour, counted since the Unix epoch."""
    start = from_us(hour * HOUR_US)
    return model / f"date={start.date()}" / f"hour={start.hour:02d}"


def _read_files(files: list[Path], names: list[str]) -> pa.Table:
    """Return these columns of the files; one that a file of an older version lacks is null."""
    tables = [empty_log().select(names)]
    for file in files:
        try:
            # One small file an hour and flush: threads and datasets cost more than they save.
            tables.append(pq.ParquetFile(file).read(columns=names, use_threads=False))
        except (pa.ArrowInvalid, OSError):
            # A power cut may leave an empty or short file; one must not end all monitoring.
            _LOGGER.warning("unreadable log file skipped: %s", file)
    whole = pa.concat_tables(tables, promote_options="default")
    return whole.select(names).unify_dictionaries()
