"""Reads the files of a location: which there are, which of them matter, and their batches.

Integers are read as integers (2^53 + 1 survives CSV and JSON), and no type is guessed: the source
says what each column is. Memory holds a few batches of one file at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.json as pa_json

from features.arrow import Arrow
from features.checks import did_you_mean
from features.locations import CsvFiles, Files, ParquetFiles
from features.offline.reach import EVERYTHING, Reach
from features.types import DType
from headrace.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from headrace.times import DAY_US, SECOND_US, to_us

BATCH_ROWS = 1 << 16
_BLOCK_BYTES = 4 << 20
# What a folder of Hive's is called where the value is null.
_NULL_KEY = "__HIVE_DEFAULT_PARTITION__"
# None: a time, which is read as it stands; `event_times` makes sense of it.
Wanted = Mapping[str, DType | None]
_TIMES = (None, DType.TIMESTAMP)
_TEXT_TYPES: dict[DType, pa.DataType] = {
    DType.INT64: pa.int64(),
    DType.FLOAT64: pa.float64(),
    DType.FLOAT32: pa.float64(),
    DType.BOOL: pa.bool_(),
    DType.TIMESTAMP: pa.string(),
    DType.STRING: pa.string(),
    DType.UUID: pa.string(),
    DType.BYTES: pa.string(),  # base64
    DType.INT64_ARRAY: pa.list_(pa.int64()),
    DType.FLOAT64_ARRAY: pa.list_(pa.float64()),
    DType.FLOAT32_ARRAY: pa.list_(pa.float64()),
    DType.STRING_ARRAY: pa.list_(pa.string()),
}


@dataclass(frozen=True)
class HistoryFile:
    """One file: its path as the location sees it, where it lies, and the keys of its folders."""

    name: str
    path: Path
    keys: dict[str, str | None]


def list_files(location: Files, root: Path) -> list[HistoryFile]:
    """Return the files of a location in the order of their names. Raises NotFoundError for none."""
    target = root / location.path
    if any(c in location.path for c in "*?["):
        paths = [path for path in root.glob(location.path) if path.is_file()]
    elif target.is_dir():
        paths = [p for p in target.rglob("*") if p.name.endswith(location.suffixes) and p.is_file()]
    else:
        paths = [target] if target.is_file() else []
    names = {path.relative_to(root).as_posix(): path for path in paths}
    files = [
        HistoryFile(name, names[name], _keys(PurePosixPath(name)))
        for name in sorted(names)
        if not any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)
    ]
    if not files:
        raise NotFoundError(
            "there is no file",
            where=location.where,
            expected=f"files that end with {', '.join(location.suffixes)}",
            mend="check the path, and the folder that it is relative to (--project)",
        )
    return files


def _keys(path: PurePosixPath) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.parent.parts)
    return {
        key: None if value == _NULL_KEY else unquote(value)
        for key, equals, value in pairs
        if equals and key
    }


def day_of(file: HistoryFile, location: Files) -> Reach:
    """Return which event times a file may hold by its folder's date; everything without one.

    The day may be one of UTC or of a zone, which differ by less than a day.
    """
    if location.event_date is None:
        return EVERYTHING
    text = file.keys.get(location.event_date)
    try:
        day_us = to_us(datetime.strptime(text or "", "%Y-%m-%d").replace(tzinfo=UTC))
    except ValueError as error:
        raise InvalidArgumentError(
            f"file {file.name!r} is in no folder of a day",
            where=location.where,
            expected=f"a folder such as '{location.event_date}=2026-01-31'",
            got=text,
        ) from error
    return Reach(day_us - DAY_US, day_us + 2 * DAY_US)


def read_file(
    file: HistoryFile, location: Files, wanted: Wanted, reach: Reach
) -> Iterator[pa.Table]:
    """Yield the wanted columns of a file, in the order of its rows.

    Parquet's statistics may leave out rows beyond `reach`; others beyond it may come.
    Raises InvalidArgumentError for a column that is missing and for a value that does not fit its
    type, FailedPreconditionError for a file that cannot be read.
    """
    read: Callable[[HistoryFile, Files, Wanted, Reach], Iterator[pa.Table]]
    if isinstance(location, ParquetFiles):
        read = _read_parquet
    else:
        read = _read_csv if isinstance(location, CsvFiles) else _read_json
    try:
        yield from read(file, location, wanted, reach)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise FailedPreconditionError(
            f"file {file.name!r} of the history cannot be read",
            where=location.where,
            got=str(error).splitlines()[0].replace(str(file.path), file.name),
            mend="restore it, or mend the value that it names",
        ) from error


def _read_parquet(
    file: HistoryFile, location: Files, wanted: Wanted, reach: Reach
) -> Iterator[pa.Table]:
    data = pa_dataset.dataset(file.path, format="parquet", partitioning=None)
    own, keys = _split(file, location, wanted, data.schema.names)
    where = _filter(data.schema.field(location.event_time).type, location.event_time, reach)
    scanner = data.scanner(columns=own, filter=where, batch_size=BATCH_ROWS, batch_readahead=2)
    for batch in scanner.to_batches():
        yield _with_keys(batch, file, keys, wanted)


def _filter(kind: Arrow, column: str, reach: Reach) -> pc.Expression | None:
    """Return what keeps at least the rows in reach, where the statistics can be compared."""
    margin_us = SECOND_US
    if pa.types.is_timestamp(kind) and kind.tz is None:
        margin_us = DAY_US
    elif not pa.types.is_timestamp(kind) and not pa.types.is_int64(kind):
        return None
    kept: pc.Expression | None = None
    for bound_us, sign in ((reach.low_us, -1), (reach.high_us, 1)):
        if bound_us in EVERYTHING:
            continue
        value: Arrow = pa.scalar(bound_us + sign * margin_us, pa.int64())
        if pa.types.is_timestamp(kind):
            try:
                value = value.cast(pa.timestamp("us", kind.tz)).cast(kind, safe=False)
            except pa.ArrowInvalid:
                continue  # beyond what the file's unit can tell: it has none of these
        field = pc.field(column)
        one = field >= value if sign < 0 else field <= value
        kept = one if kept is None else kept & one
    # A row without a time is to be refused, not to be left out.
    return None if kept is None else kept | pc.field(column).is_null()


def _read_csv(file: HistoryFile, location: Files, wanted: Wanted, _: Reach) -> Iterator[pa.Table]:
    blocks = pa_csv.ReadOptions(block_size=_BLOCK_BYTES)
    if file.path.stat().st_size == 0:
        return
    with pa_csv.open_csv(file.path, read_options=blocks) as head:
        own, keys = _split(file, location, wanted, head.schema.names)
    options = pa_csv.ConvertOptions(
        column_types={name: _text_type(wanted[name]) for name in own},
        include_columns=own,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    with pa_csv.open_csv(file.path, blocks, parse, options) as reader:
        for batch in reader:
            yield _with_keys(batch, file, keys, wanted)


def _read_json(file: HistoryFile, location: Files, wanted: Wanted, _: Reach) -> Iterator[pa.Table]:
    if file.path.stat().st_size == 0:
        return
    own, keys = _split(file, location, wanted, None)
    schema = [(name, _text_type(wanted[name])) for name in own]
    schema = [
        (name, pa.int64() if wanted[name] in _TIMES and _holds_integers(file.path, name) else kind)
        for name, kind in schema
    ]
    parse = pa_json.ParseOptions(
        explicit_schema=pa.schema(schema), unexpected_field_behavior="ignore"
    )
    with pa_json.open_json(
        file.path, pa_json.ReadOptions(block_size=_BLOCK_BYTES), parse
    ) as reader:
        for batch in reader:
            yield _with_keys(batch, file, keys, wanted)


def _holds_integers(path: Path, column: str) -> bool:
    """Say whether a time of a JSON file is a number: by the first line that has one."""
    with pa.input_stream(str(path), compression="detect") as stream:
        for line in _lines(stream):
            try:
                value = json.loads(line).get(column)
            except (ValueError, AttributeError):
                continue  # what is wrong with it is said by whoever reads it
            if value is not None:
                return not isinstance(value, str)
    return False


def _lines(stream: pa.NativeFile) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(1 << 16):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    yield rest


def _text_type(dtype: DType | None) -> pa.DataType:
    """Return how a column of a file of text is read; times are read as they stand."""
    return pa.string() if dtype is None else _TEXT_TYPES[dtype]


def _split(
    file: HistoryFile, location: Files, wanted: Wanted, names: list[str] | None
) -> tuple[list[str], list[str]]:
    """Return which of the columns are in the file, and which are keys of its folders."""
    own = [n for n in wanted if (n not in file.keys if names is None else n in names)]
    keys = [n for n in wanted if n not in own and n in file.keys]
    for name in wanted:
        if name not in own and name not in keys:
            raise InvalidArgumentError(
                f"column {name!r} is missing in file {file.name!r}",
                where=location.where,
                mend=did_you_mean(name, names or []),
            )
    return own, keys


def _with_keys(
    batch: pa.RecordBatch, file: HistoryFile, keys: list[str], wanted: Wanted
) -> pa.Table:
    table = pa.Table.from_batches([batch])
    for key in keys:
        value: Arrow = pa.scalar(file.keys[key], pa.string()).cast(_text_type(wanted[key]))
        table = table.append_column(key, pa.chunked_array([pa.repeat(value, table.num_rows)]))
    return table
