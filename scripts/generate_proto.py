"""Generate the server's and the client's message modules from proto/.

With --check: fail when what is committed differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
DEFAULT_POOL, OWN_POOL = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"


class Target(NamedTuple):
    """A folder of generated modules."""

    folder: str
    sources: tuple[str, ...]
    # A pool a file: another version of the same messages may then live in the same process.
    own_pools: bool = False
    # The sources lie beside the modules, for whoever generates for another language.
    with_sources: bool = False


TARGETS = (
    Target(
        "server/pb",
        ("headrace/v1/headrace.proto", "headrace/v1/admin.proto", "headrace/onnx/onnx_trees.proto"),
    ),
    Target(
        "client/headrace_client/pb",
        ("headrace/v1/headrace.proto", "headrace/v1/admin.proto", "inference/infer.proto"),
        own_pools=True,
        with_sources=True,
    ),
)


def generate(target: Target, folder: Path) -> None:
    """Write the message modules and their stubs under `folder`."""
    # Flat names: each file's modules land beside each other, so that imports need no rewriting.
    for source in target.sources:
        file = SOURCE / source
        arguments = [
            "protoc",
            f"-I{file.parent}",
            f"--python_out={folder}",
            f"--pyi_out={folder}",
            str(file),
        ]
        if protoc.main(arguments) != 0:
            sys.exit(f"protoc failed on {file}")
        if target.own_pools:
            _give_own_pool(folder / f"{file.stem}_pb2.py")
        if target.with_sources:
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "__init__.py").write_text(
        '"""Generated from proto/ by scripts/generate_proto.py; do not edit."""\n'
    )


def _give_own_pool(module: Path) -> None:
    text = module.read_text()
    if text.count(DEFAULT_POOL) != 1:
        sys.exit(f"{module.name}: protoc does not name the pool once any more: mend OWN_POOL")
    module.write_text(text.replace(DEFAULT_POOL, OWN_POOL))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for target in TARGETS:
        committed = ROOT / target.folder
        if not check:
            committed.mkdir(parents=True, exist_ok=True)
            generate(target, committed)
            continue
        with tempfile.TemporaryDirectory() as folder:
            generate(target, Path(folder))
            for path in sorted(Path(folder).iterdir()):
                there = committed / path.name
                if not there.is_file() or path.read_bytes() != there.read_bytes():
                    sys.exit(f"{target.folder}/{path.name} is stale: run `make proto`")


if __name__ == "__main__":
    main()
