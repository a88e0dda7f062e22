"""Uploads a bundle to control: every file as a blob by its digest, the manifest last."""

from __future__ import annotations

from pathlib import Path

from server.control.client import ControlClient
from trainer.bundle import MANIFEST, read_bundle


def upload_bundle(control: ControlClient, folder: Path) -> tuple[str, str]:
    """Upload what control lacks of the bundle in `folder`; return (model name, version digest).

    The bundle is verified first. Raises what `read_bundle` and `ControlClient` raise.
    """
    bundle = read_bundle(folder)
    for entry in bundle.manifest.files:
        if not control.has_blob(entry.sha256):
            control.put_blob(entry.sha256, bundle.read(entry.path))
    if not control.has_blob(bundle.digest):
        control.put_blob(bundle.digest, (folder / MANIFEST).read_bytes())
    return bundle.manifest.name, bundle.digest
