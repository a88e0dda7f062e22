"""A bundle of the first release: any later Headrace reads it, serves it and names it the same."""

from __future__ import annotations

import hashlib
import json

import msgspec
import numpy as np

from server.execution.threads import RunThreads
from server.models.versions import BundleSource, VersionLoader
from tests.contracts.golden import CHANGED, FOLDER
from trainer.bundle import encode_manifest, parse_manifest, read_bundle

BUNDLE = FOLDER / "bundle"
MANIFEST = (BUNDLE / "manifest.json").read_bytes()
DIGEST = "sha256:578547731a05c6b634ba0cbc6fb84eb31acc23bd10889eec3518c1f5c4b09b61"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_its_digest_is_that_of_the_sorted_manifest_of_file_digests() -> None:
    assert read_bundle(BUNDLE).digest == sha256(MANIFEST) == DIGEST, CHANGED
    listed = [
        (each["path"], each["size"], each["sha256"]) for each in json.loads(MANIFEST)["files"]
    ]
    lying = sorted(path for path in BUNDLE.iterdir() if path.name != "manifest.json")
    assert listed == [
        (path.name, path.stat().st_size, sha256(path.read_bytes())) for path in lying
    ], CHANGED


def test_its_manifest_is_read_whole_and_written_again_to_the_byte() -> None:
    manifest = parse_manifest(MANIFEST)
    assert msgspec.to_builtins(manifest) == json.loads(MANIFEST), CHANGED
    assert encode_manifest(manifest) == MANIFEST, CHANGED


def test_a_field_of_a_later_release_is_passed_over() -> None:
    later = json.loads(MANIFEST)
    later["colour"] = later["lineage"]["colour"] = "blue"
    assert parse_manifest(json.dumps(later).encode()) == parse_manifest(MANIFEST), CHANGED


def test_it_is_served() -> None:
    # Loading compares the definitions' hash, the columns and the golden rows with the manifest's.
    with RunThreads(1, 1) as executor:
        loader = VersionLoader(BundleSource(f"file://{FOLDER}", FOLDER), executor)
        version = loader.load("score", DIGEST)
    assert version.service_label == f"score@{json.loads(MANIFEST)['feature_service']['hash']}", (
        CHANGED
    )
    assert version.schema_id == 77, CHANGED
    assert version.decide(np.array([[0.5], [0.4], [np.nan]], np.float32)) == ["high", "low", ""], (
        CHANGED
    )
