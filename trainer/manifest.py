"""The bundle's manifest: what a model is, where it came from, what it needs (CONTRACTS §6).

The manifest lists every other file of the bundle with its size and digest, so the digest of the
manifest's bytes is the identity of the whole: one changed byte anywhere is another version.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Any, Literal

import msgspec

from headrace.digest import canonical_json
from headrace.errors import FailedPreconditionError, InvalidArgumentError

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
DEFINITIONS = "definitions.py"
REQUIRED_FILES = ("card.md", MODEL, "profile.arrow")
FILES_MAX = 256
FILE_BYTES_MAX = 16 << 30
MANIFEST_BYTES_MAX = 4 << 20
# The Open Inference Protocol's names, so that a signature is served as it is written.
DTYPES = (
    "BF16", "BOOL", "BYTES", "FP16", "FP32", "FP64",
    "INT16", "INT32", "INT64", "INT8", "UINT16", "UINT32", "UINT64", "UINT8",
)  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
# Every part of a path starts with a letter, a digit or '_': no '..', no hidden file, no root.
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}){0,3}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class FileEntry(msgspec.Struct, frozen=True):
    """One file: its path in the bundle, its size in bytes, its digest (`sha256:<hex>`)."""

    path: str
    size: int
    sha256: str


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor by its Open Inference Protocol dtype; a dimension of -1 may have any length."""

    name: str
    dtype: str
    shape: list[int]


class Signature(msgspec.Struct, frozen=True):
    """What goes into the graph, and what comes out."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class FeatureServiceRef(msgspec.Struct, frozen=True):
    """The feature service that fills the graph's one input; `columns` in the input's order."""

    name: str
    version: int
    hash: str
    columns: list[str]
    schema_id: int | None = None


class Decision(msgspec.Struct, frozen=True):
    """How an output becomes a class: by `threshold`, or by `rule`.

    - `threshold`: value ≥ threshold is `classes[1]`, else `classes[0]`.
    - "argmax": the class of the greatest column.
    - "bands": the classes lie on one scale, each begins at its of the `thresholds` between them.
    - "confident": as "argmax" where that column reaches its of the `thresholds`, else `otherwise`.

    The value is the last column: of two columns it is that of the second class. `output_index` is
    the output that decides; `calibrator` is a listed file (`trainer.calibrators`), and what decides
    is what it makes of that output.
    """

    classes: list[str]
    threshold: float | None = None
    rule: Literal["argmax", "bands", "confident"] | None = None
    calibrator: str | None = None
    output_index: int = 0
    # Absent, not null, where they do not apply: the first release wrote manifests without them.
    thresholds: list[float] | msgspec.UnsetType = msgspec.UNSET
    otherwise: str | msgspec.UnsetType = msgspec.UNSET


class Runtime(msgspec.Struct, frozen=True):
    """What runs it: opset versions by domain, a range of onnxruntime versions, providers."""

    opsets: dict[str, int]
    onnxruntime: str
    providers: list[str] = msgspec.field(default_factory=lambda: ["CPUExecutionProvider"])


class Golden(msgspec.Struct, frozen=True):
    """Inputs with the outputs that the model must give within `tolerance` (absolute)."""

    file: str = "golden.arrow"
    tolerance: float = 1e-5


class Metric(msgspec.Struct, frozen=True):
    """A figure with its interval, the rows it was taken on, and itself by slice (`carrier=UA`)."""

    value: float
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    slices: dict[str, Metric] = msgspec.field(default_factory=dict)


class Lineage(msgspec.Struct, frozen=True):
    """What it was made from: everything that is needed to make it again."""

    run: str
    datasets: dict[str, str]
    code_commit: str
    code_dirty_digest: str | None
    parameters: dict[str, Any]
    environment_digest: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `manifest.json`. `files` is sorted by path and leaves out the manifest."""

    format: int = FORMAT
    name: str
    files: list[FileEntry] = msgspec.field(default_factory=list)
    signature: Signature
    feature_service: FeatureServiceRef | None = None
    decision: Decision | None = None
    runtime: Runtime
    golden: Golden
    metrics: dict[str, Metric]
    lineage: Lineage


class _Format(msgspec.Struct):
    """The one field that is read before the rest may be trusted to have a known shape."""

    format: int


_DECODER = msgspec.json.Decoder(Manifest)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def parse_manifest(data: bytes) -> Manifest:
    """Return the checked manifest in JSON `data`.

    Raises InvalidArgumentError that names the field, and FailedPreconditionError for a format that
    only a newer Headrace reads.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise _bad("too large", "", f"at most {MANIFEST_BYTES_MAX} bytes", len(data))
    try:
        newer = msgspec.json.decode(data, type=_Format).format
        if newer > FORMAT:
            raise FailedPreconditionError(
                "the bundle's format is newer than this Headrace",
                where=MANIFEST,
                expected=f"at most {FORMAT}",
                got=newer,
                mend="upgrade Headrace",
            )
        manifest = _DECODER.decode(data)
    except _UNREADABLE as error:
        raise InvalidArgumentError(str(error), where=MANIFEST) from error
    check_manifest(manifest)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Return `manifest` as canonical JSON. Raises InvalidArgumentError as `parse_manifest` does."""
    check_manifest(manifest)
    return canonical_json(manifest)


def is_digest(text: str) -> bool:
    """Return whether `text` is `sha256:` and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def check_path(path: str) -> None:
    """Raise InvalidArgumentError unless `path` can only name a file inside the bundle."""
    if _PATH.fullmatch(path) is None:
        raise _bad(
            "a path that a bundle may not hold",
            "files",
            "up to four parts of letters, digits, '_', '-', '.', none starting with '-' or '.'",
            repr(path[:200]),
        )


def check_manifest(manifest: Manifest) -> None:
    """Raise InvalidArgumentError, naming the field, unless every part of `manifest` holds."""
    if manifest.format != FORMAT:
        raise _bad("unknown format", "format", FORMAT, manifest.format)
    if _NAME.fullmatch(manifest.name) is None:
        raise _bad(
            "not a model's name",
            "name",
            "1 to 128 of letters, digits, '_', '-', '.', starting with a letter or digit",
            repr(manifest.name[:200]),
        )
    paths = _check_files(manifest.files)
    needed = [*REQUIRED_FILES, manifest.golden.file]
    if manifest.feature_service is not None:
        needed.append(DEFINITIONS)
    if manifest.decision is not None and manifest.decision.calibrator is not None:
        needed.append(manifest.decision.calibrator)
    missing = sorted(set(needed) - paths)
    if missing:
        raise _bad("a needed file is not listed", "files", ", ".join(missing), "no entry for it")
    _check_tensors(manifest.signature.inputs, "signature.inputs")
    _check_tensors(manifest.signature.outputs, "signature.outputs")
    _check_service(manifest.feature_service, manifest.signature)
    _check_decision(manifest.decision, manifest.signature)
    if not manifest.runtime.opsets or not manifest.runtime.providers:
        raise _bad("opsets and providers are needed", "runtime", "at least one of each", "none")
    if not 0.0 <= manifest.golden.tolerance < math.inf:
        raise _bad("not a tolerance", "golden.tolerance", "0 or more", manifest.golden.tolerance)
    _check_metrics(manifest.metrics, "metrics")
    _check_lineage(manifest.lineage)


def _check_files(files: list[FileEntry]) -> set[str]:
    if len(files) > FILES_MAX:
        raise _bad("too many files", "files", f"at most {FILES_MAX}", len(files))
    paths = [entry.path for entry in files]
    for entry in files:
        check_path(entry.path)
        where = f"files: {entry.path}"
        if entry.path == MANIFEST:
            raise _bad("the manifest lists itself", where, "the other files only", MANIFEST)
        if not 0 <= entry.size <= FILE_BYTES_MAX:
            raise _bad("not a size", f"{where}: size", f"0 to {FILE_BYTES_MAX}", entry.size)
        _check_digest(entry.sha256, f"{where}: sha256")
    if paths != sorted(set(paths)):
        raise _bad("not in order", "files", "paths in ascending order, each once", paths)
    folders = {path[:end] for path in paths for end in range(len(path)) if path[end] == "/"}
    if clash := sorted(folders.intersection(paths)):
        raise _bad("a path is both a file and a folder", "files", "one of the two", clash[0])
    return set(paths)


def _check_tensors(tensors: list[TensorSpec], where: str) -> None:
    if not tensors:
        raise _bad("no tensor", where, "at least one", "none")
    _check_unique((tensor.name for tensor in tensors), where)
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise _bad(
                "unknown dtype", f"{where}: {tensor.name!r}", ", ".join(DTYPES), repr(tensor.dtype)
            )
        if any(dimension < -1 for dimension in tensor.shape):
            raise _bad("not a shape", f"{where}: {tensor.name!r}", "-1 or more", tensor.shape)


def _check_service(service: FeatureServiceRef | None, signature: Signature) -> None:
    if service is None:
        return
    if not service.name or not service.hash or service.version < 1:
        got = f"{service.name!r} {service.version} {service.hash!r}"
        raise _bad("incomplete", "feature_service", "a name, a version ≥ 1 and a hash", got)
    _check_unique(service.columns, "feature_service.columns")
    matrix = [-1, len(service.columns)]
    inputs = signature.inputs
    if len(inputs) != 1 or inputs[0].dtype != "FP32" or inputs[0].shape != matrix:
        raise _bad(
            "the input does not take the feature service's rows",
            "signature.inputs",
            f"one FP32 tensor {matrix}",
            ", ".join(f"{t.name!r} {t.dtype} {t.shape}" for t in inputs),
        )


def _check_decision(decision: Decision | None, signature: Signature) -> None:
    if decision is None:
        return
    _check_unique(decision.classes, "decision.classes")
    if (decision.threshold is None) == (decision.rule is None):
        raise _bad("how to decide", "decision", "either threshold or rule", "both or neither")
    if decision.threshold is not None:
        if not math.isfinite(decision.threshold):
            raise _bad("not a threshold", "decision.threshold", "finite", decision.threshold)
        if len(decision.classes) != 2:
            got = len(decision.classes)
            raise _bad("a threshold parts two classes", "decision.classes", "two", got)
    _check_rule(decision)
    if not 0 <= decision.output_index < len(signature.outputs):
        outputs = len(signature.outputs)
        got = decision.output_index
        raise _bad("no such output", "decision.output_index", f"0 to {outputs - 1}", got)


def _check_rule(decision: Decision) -> None:
    """Raise InvalidArgumentError unless the rule has what it needs, and nothing more."""
    where, names = "decision.thresholds", len(decision.classes)
    thresholds = decision.thresholds or []
    wanted = {"bands": names - 1, "confident": names}.get(decision.rule or "", 0)
    if len(thresholds) != wanted:
        rule = decision.rule or "threshold"
        raise _bad("wrong number of thresholds", where, f"{wanted} for {rule}", len(thresholds))
    if not all(map(math.isfinite, thresholds)):
        raise _bad("not a threshold", where, "finite", thresholds)
    if decision.rule == "bands" and not (thresholds and _ascends(thresholds)):
        raise _bad("not the bounds of bands", where, "one or more, in ascending order", thresholds)
    if (decision.rule == "confident") != bool(decision.otherwise):
        raise _bad("what is said in doubt", "decision.otherwise", "a class of 'confident'", "none")
    if decision.otherwise and decision.otherwise in decision.classes:
        got = decision.otherwise
        raise _bad("it is one of the classes", "decision.otherwise", "a word of its own", repr(got))


def _ascends(numbers: list[float]) -> bool:
    return all(low < high for low, high in pairwise(numbers))


def _check_metrics(metrics: dict[str, Metric], where: str) -> None:
    for name, metric in metrics.items():
        for field in ("value", "low", "high"):
            number = getattr(metric, field)
            if number is not None and not math.isfinite(number):
                raise _bad("not a number", f"{where}: {name!r}: {field}", "finite", number)
        _check_metrics(metric.slices, f"{where}: {name!r}: slices")


def _check_lineage(lineage: Lineage) -> None:
    if not lineage.run or not lineage.code_commit:
        raise _bad("incomplete", "lineage", "a run and a code_commit", "an empty text")
    for name, digest in lineage.datasets.items():
        _check_digest(digest, f"lineage.datasets: {name!r}")
    _check_digest(lineage.environment_digest, "lineage.environment_digest")
    if lineage.code_dirty_digest is not None:
        _check_digest(lineage.code_dirty_digest, "lineage.code_dirty_digest")


def _check_unique(names: Iterable[str], where: str) -> None:
    names = list(names)
    if not names or not all(names) or _repeats(names):
        raise _bad("names do not tell apart", where, "one or more, each once, none empty", names)


def _repeats(names: Collection[str]) -> bool:
    return len(set(names)) != len(names)


def _check_digest(text: str, where: str) -> None:
    if not is_digest(text):
        raise _bad("not a digest", where, "'sha256:' and 64 hexadecimal digits", repr(text[:80]))


def _bad(what: str, where: str, expected: object, got: object) -> InvalidArgumentError:
    place = f"{MANIFEST}: {where}" if where else MANIFEST
    return InvalidArgumentError(what, where=place, expected=expected, got=got)
