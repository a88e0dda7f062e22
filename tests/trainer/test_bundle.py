"""Bundles: whole or not at all, one identity for one content, and no way out of the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.digest import canonical_json, digest_bytes
from headrace.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from tests.support.bundles import CONTENTS, make_bundle, manifest
from trainer.bundle import (
    Decision,
    FeatureServiceRef,
    FileEntry,
    Golden,
    Lineage,
    Manifest,
    Metric,
    Runtime,
    Signature,
    TensorSpec,
    encode_manifest,
    parse_manifest,
    publish,
    read_bundle,
    write_bundle,
)

SERVICE = FeatureServiceRef("delay", 1, "sha256:" + "3" * 64, ["a:x", "a:y"], 7)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    contents = CONTENTS | {"definitions.py": b"# views", "weights/w-1.bin": b"\0" * 100}
    digest = write_bundle(tmp_path / "a" / "b", manifest(feature_service=SERVICE), contents)
    bundle = read_bundle(tmp_path / "a" / "b", digest)
    assert bundle.digest == digest
    assert bundle.manifest.feature_service == SERVICE
    assert {e.path: bundle.read(e.path) for e in bundle.manifest.files} == contents
    assert names(tmp_path / "a") == ["b"]


def test_the_digest_is_that_of_the_sorted_manifest(tmp_path: Path) -> None:
    """The definition of a version's identity, step by step, from the files alone."""
    digest = write_bundle(tmp_path / "b", manifest(), CONTENTS)
    files = [
        {"path": path, "size": len(content), "sha256": digest_bytes(content)}  # type: ignore[arg-type]
        for path, content in sorted(CONTENTS.items())
    ]
    fields = msgspec.to_builtins(manifest()) | {"files": files}
    assert digest == digest_bytes(canonical_json(fields))
    assert digest == digest_bytes((tmp_path / "b" / "manifest.json").read_bytes())


def test_equal_content_has_one_identity_and_other_content_another(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(b"model 0")
    one = make_bundle(tmp_path / "one", 0)
    from_file = CONTENTS | {"model.onnx": source}
    assert write_bundle(tmp_path / "two", manifest(), from_file) == one
    assert make_bundle(tmp_path / "three", 1) != one
    better = manifest(metrics={"auc": Metric(0.9)})
    assert write_bundle(tmp_path / "four", better, from_file) != one


def test_a_bundle_is_never_overwritten(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", 0)
    (tmp_path / "empty").mkdir()
    for name in ("b", "empty"):
        with pytest.raises(AlreadyExistsError, match=name):
            make_bundle(tmp_path / name, 1)
    assert read_bundle(tmp_path / "b").read("model.onnx") == b"model 0"


def test_of_two_who_publish_one_name_one_is_told(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    publish(tmp_path / "first", tmp_path / "b")
    with pytest.raises(AlreadyExistsError, match="'b'"):
        publish(tmp_path / "second", tmp_path / "b")
    assert (tmp_path / "b" / "file").read_text() == "first"
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "gone", tmp_path / "c")


@pytest.mark.parametrize(
    "contents",
    [
        {"model.onnx": b""},
        CONTENTS | {"../evil": b""},
        CONTENTS | {"/evil": b""},
        CONTENTS | {"a/../../evil": b""},
        CONTENTS | {".hidden": b""},
        CONTENTS | {"a//b": b""},
        CONTENTS | {"-rf": b""},
        CONTENTS | {"a/b/c/d/e": b""},
        CONTENTS | {"": b""},
        CONTENTS | {"line\nbreak": b""},
        CONTENTS | {"manifest.json": b"{}"},
        CONTENTS | {"model.onnx": b"location \xff"},
    ],
)
def test_what_may_not_be_in_a_bundle_leaves_nothing_behind(
    tmp_path: Path, contents: dict[str, bytes | Path]
) -> None:
    with pytest.raises(InvalidArgumentError):
        write_bundle(tmp_path / "b", manifest(), contents)
    assert names(tmp_path) == []


def test_a_source_that_is_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "b", manifest(), CONTENTS | {"model.onnx": tmp_path / "gone"})
    assert names(tmp_path) == []


def test_files_are_not_given_twice(tmp_path: Path) -> None:
    filled = manifest(files=[FileEntry("card.md", 1, "sha256:" + "0" * 64)])
    with pytest.raises(InvalidArgumentError, match="files"):
        write_bundle(tmp_path / "b", filled, CONTENTS)


def test_a_bundle_with_a_feature_service_holds_its_definitions(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"definitions\.py"):
        write_bundle(tmp_path / "b", manifest(feature_service=SERVICE), CONTENTS)


def external(location: str) -> bytes:
    """An ONNX file with one tensor whose data is at `location`."""
    data = b""
    entry = b"\x0a\x08location\x12" + bytes([len(location)]) + location.encode()
    for field in (13, 5, 7):
        inner = entry if field == 13 else data
        data = bytes([field << 3 | 2, len(inner)]) + inner
    return data


def test_external_tensors_must_be_listed(tmp_path: Path) -> None:
    model = CONTENTS | {"model.onnx": external("w.bin")}
    write_bundle(tmp_path / "good", manifest(), model | {"w.bin": b"\0" * 8})
    for location in ("w.bin", "../w.bin", "/etc/passwd"):
        with pytest.raises(InvalidArgumentError, match="does not list"):
            write_bundle(tmp_path / "b", manifest(), CONTENTS | {"model.onnx": external(location)})
    read_bundle(tmp_path / "good")


def test_a_foreign_bundle_with_unlisted_external_tensors_is_not_read(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    model = external("/etc/passwd")
    (tmp_path / "b" / "model.onnx").write_bytes(model)
    path = tmp_path / "b" / "manifest.json"
    fields = json.loads(path.read_bytes())
    for entry in fields["files"]:
        if entry["path"] == "model.onnx":
            entry |= {"size": len(model), "sha256": digest_bytes(model)}
    path.write_bytes(canonical_json(fields))
    with pytest.raises(InvalidArgumentError, match="does not list"):
        read_bundle(tmp_path / "b")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_link(path: Path) -> None:
    target = path.parent.parent / "outside"
    path.rename(target)
    path.symlink_to(target)


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TAMPERING: dict[str, Callable[[Path], object]] = {
    "a byte": lambda folder: flip(folder / "model.onnx"),
    "a byte of the card": lambda folder: flip(folder / "card.md"),
    "a byte of a deep file": lambda folder: flip(folder / "deep" / "w.bin"),
    "cut off": lambda folder: os.truncate(folder / "profile.arrow", 1),
    "grown": lambda folder: (folder / "profile.arrow").write_bytes(b"profile+"),
    "an extra file": lambda folder: (folder / "extra.pkl").write_bytes(b""),
    "an extra deep file": lambda folder: (folder / "deep" / "x").write_bytes(b""),
    "a missing file": lambda folder: (folder / "golden.arrow").unlink(),
    "a missing folder": lambda folder: shutil.rmtree(folder / "deep"),
    "a missing manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a link": lambda folder: replace_by_link(folder / "card.md"),
    "a linked manifest": lambda folder: replace_by_link(folder / "manifest.json"),
    "a linked folder": lambda folder: replace_by_link(folder / "deep"),
    "an extra link": lambda folder: (folder / "link").symlink_to("card.md"),
    "a second name": lambda folder: os.link(folder / "card.md", folder.parent / "second"),
    "a pipe": lambda folder: replace_by_fifo(folder / "card.md"),
    "a folder for a file": lambda folder: replace_by_folder(folder / "card.md"),
    "a great many files": lambda folder: [
        (folder / "deep" / str(i)).mkdir() for i in range(1100)
    ] and None,
}  # fmt: skip


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_is_noticed(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "b"
    digest = write_bundle(folder, manifest(), CONTENTS | {"deep/w.bin": b"\0" * 9})
    read_bundle(folder, digest)
    TAMPERING[kind](folder)
    with pytest.raises((FailedPreconditionError, NotFoundError)) as caught:
        read_bundle(folder, digest)
    assert str(tmp_path) not in str(caught.value)


@given(st.data())
def test_no_byte_of_a_bundle_can_change_unseen(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip") / "b"
    digest = make_bundle(folder)
    path = folder / data.draw(st.sampled_from(names(folder)))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(HeadraceError):
        read_bundle(folder, digest)


def test_another_bundle_is_not_taken_for_this_one(tmp_path: Path) -> None:
    digest = make_bundle(tmp_path / "a", 0)
    other = make_bundle(tmp_path / "b", 1)
    with pytest.raises(FailedPreconditionError) as caught:
        read_bundle(tmp_path / "b", digest)
    assert digest in str(caught.value)
    assert other in str(caught.value)


def test_a_change_between_check_and_load_is_noticed(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    bundle = read_bundle(tmp_path / "b")
    flip(tmp_path / "b" / "model.onnx")
    with pytest.raises(FailedPreconditionError, match="other bytes"):
        bundle.read("model.onnx")
    with pytest.raises(NotFoundError, match="other"):
        bundle.read("other")


@pytest.mark.parametrize("name", ["gone", "a file"])
def test_what_is_no_folder_is_no_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(NotFoundError, match=name):
        read_bundle(tmp_path / name)


TEXT = st.text(min_size=1, max_size=8)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
METRICS = st.recursive(
    st.builds(Metric, NUMBER, NUMBER | st.none(), NUMBER | st.none(), st.integers(0, 99)),
    lambda inner: st.builds(Metric, NUMBER, slices=st.dictionaries(TEXT, inner, max_size=2)),
    max_leaves=4,
)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}")


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    more = draw(st.sets(st.from_regex(r"[a-z]{1,9}/[a-z]{1,9}", fullmatch=True), max_size=3))
    paths = sorted({*CONTENTS, "definitions.py", *more})
    columns = draw(st.lists(TEXT, min_size=1, max_size=5, unique=True))
    return Manifest(
        name=draw(st.from_regex(r"[a-z][a-z0-9._\-]{0,20}", fullmatch=True)),
        files=[FileEntry(p, draw(st.integers(0, 2**34)), draw(DIGESTS)) for p in paths],
        signature=Signature(
            [TensorSpec(draw(TEXT), "FP32", [-1, len(columns)])],
            [TensorSpec(draw(TEXT), "FP64", [-1, 2, 0])],
        ),
        feature_service=FeatureServiceRef(draw(TEXT), 1, draw(TEXT), columns, 1),
        decision=draw(
            st.none()
            | st.just(Decision(["a", "b"], threshold=0.25, calibrator="card.md"))
            | st.just(Decision(["a", "b", "c"], rule="argmax"))
            | st.just(Decision(["a", "b", "c"], rule="bands", thresholds=[0.25, 0.5]))
            | st.just(
                Decision(["a", "b"], rule="confident", thresholds=[0.5, 0.5], otherwise="?")
            )
        ),
        runtime=Runtime({"ai.onnx": draw(st.integers(1, 30))}, draw(TEXT)),
        golden=Golden(tolerance=draw(st.floats(0, 1))),
        metrics=draw(st.dictionaries(TEXT, METRICS, max_size=2)),
        lineage=Lineage(
            draw(TEXT), draw(st.dictionaries(TEXT, DIGESTS, max_size=2)), draw(TEXT),
            draw(st.none() | DIGESTS), {"seed": draw(st.integers(0, 9))}, draw(DIGESTS),
        ),
    )  # fmt: skip


@given(manifests())
def test_a_manifest_is_parsed_back(made: Manifest) -> None:
    assert parse_manifest(encode_manifest(made)) == made


def broken(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update(changes)


def at(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set the field at the dotted `path`; numbers are positions in lists."""

    def change(fields: Any) -> None:
        *way, last = path.split(".")
        for step in way:
            fields = fields[int(step) if isinstance(fields, list) else step]
        fields[int(last) if isinstance(fields, list) else last] = value

    return change


def deciding(**decision: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["decision"].update({"threshold": None} | decision)


BROKEN: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (broken(format=0), "format"),
    (broken(format="1"), "format"),
    (broken(name="a/b"), "name"),
    (broken(name=""), "name"),
    (broken(files=[]), "files: a needed file is not listed"),
    (at("files.0.path", "../card.md"), "files"),
    (at("files.0.path", "z"), "not in order"),
    (at("files.0.size", -1), "card.md: size"),
    (at("files.0.sha256", "md5:1"), "card.md: sha256"),
    (lambda f: f["files"].insert(0, f["files"][0]), "not in order"),
    (lambda f: f["files"].append({**f["files"][0], "path": "profile.arrow/x"}), "both a file and"),
    (lambda f: f.update(files=f["files"] * 65), "too many files"),
    (at("signature.inputs", []), "signature.inputs"),
    (at("signature.outputs.0.dtype", "float"), "'probability'"),
    (at("signature.outputs.0.shape", [-2]), "'probability'"),
    (at("signature.outputs.0.name", ""), "signature.outputs"),
    (at("feature_service.version", 0), "feature_service"),
    (at("feature_service.columns", ["a", "a"]), "feature_service.columns"),
    (at("feature_service.columns", ["a"]), "signature.inputs"),
    (at("signature.inputs.0.dtype", "FP64"), "signature.inputs"),
    (at("decision.threshold", None), "decision"),
    (at("decision.rule", "argmax"), "decision"),
    (at("decision.rule", "vote"), "decision.rule"),
    (at("decision.thresholds", [0.5]), "decision.thresholds"),
    (at("decision.otherwise", "?"), "decision.otherwise"),
    (deciding(rule="bands", thresholds=[]), "decision.thresholds"),
    (deciding(rule="bands", thresholds=[0.1, 0.2]), "decision.thresholds"),
    (deciding(rule="bands", classes=["a"], thresholds=[]), "decision.thresholds"),
    (deciding(rule="bands", classes=["a", "b", "c"], thresholds=[0.2, 0.1]), "ascending order"),
    (deciding(rule="bands", thresholds=[0.1], otherwise="?"), "decision.otherwise"),
    (deciding(rule="confident", thresholds=[0.1], otherwise="?"), "decision.thresholds"),
    (deciding(rule="confident", thresholds=[0.1, 0.2]), "decision.otherwise"),
    (deciding(rule="confident", thresholds=[0.1, 0.2], otherwise="late"), "decision.otherwise"),
    (at("decision.classes", ["late"]), "decision.classes"),
    (at("decision.classes", ["late", "late"]), "decision.classes"),
    (at("decision.output_index", 1), "decision.output_index"),
    (at("decision.calibrator", "iso.json"), "iso.json"),
    (at("runtime.opsets", {}), "runtime"),
    (at("runtime.providers", []), "runtime"),
    (at("golden.tolerance", -1e-5), "golden.tolerance"),
    (at("golden.file", "other.arrow"), "other.arrow"),
    (at("metrics.auc.value", "high"), "value"),
    (at("lineage.run", ""), "lineage"),
    (at("lineage.datasets", {"d": "x"}), "lineage.datasets: 'd'"),
    (at("lineage.environment_digest", "x"), "lineage.environment_digest"),
    (at("lineage.code_dirty_digest", "x"), "lineage.code_dirty_digest"),
    (lambda fields: fields.pop("lineage"), "lineage"),
]


@pytest.mark.parametrize(("change", "names"), BROKEN)
def test_a_broken_manifest_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], names: str
) -> None:
    entries = [FileEntry(p, 1, "sha256:" + "0" * 64) for p in sorted([*CONTENTS, "definitions.py"])]
    fields = msgspec.to_builtins(manifest(feature_service=SERVICE, files=entries))
    parse_manifest(canonical_json(fields))
    change(fields)
    with pytest.raises(InvalidArgumentError) as caught:
        parse_manifest(canonical_json(fields))
    assert names in str(caught.value)


@pytest.mark.parametrize(
    "metric", [Metric(float("nan")), Metric(1, slices={"a": Metric(1, low=float("inf"))})]
)
def test_a_metric_is_a_number(tmp_path: Path, metric: Metric) -> None:
    with pytest.raises(InvalidArgumentError, match="metrics: 'auc'"):
        write_bundle(tmp_path / "b", manifest(metrics={"auc": metric}), CONTENTS)


def test_a_threshold_is_a_number(tmp_path: Path) -> None:
    decision = Decision(["a", "b"], threshold=float("nan"))
    with pytest.raises(InvalidArgumentError, match=r"decision\.threshold"):
        write_bundle(tmp_path / "b", manifest(decision=decision), CONTENTS)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"format":1,"name":' + b"[" * 100_000])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match=r"manifest\.json"):
        parse_manifest(data)


def test_a_manifest_is_bounded() -> None:
    with pytest.raises(InvalidArgumentError, match="too large"):
        parse_manifest(b" " * (5 << 20))


def test_a_newer_format_asks_for_an_upgrade() -> None:
    with pytest.raises(FailedPreconditionError, match="upgrade Headrace"):
        parse_manifest(b'{"format":2,"shape":"unknown"}')


def test_a_field_of_a_newer_trainer_is_ignored(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.write_bytes(canonical_json(json.loads(path.read_bytes()) | {"signed_by": "x"}))
    bundle = read_bundle(tmp_path / "b")
    assert bundle.digest == digest_bytes(path.read_bytes())
