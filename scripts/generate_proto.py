"""Generate server/pb from proto/. With --check: fail when what is committed differs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "server" / "pb"
SOURCE = ROOT / "proto"


def generate(target: Path) -> None:
    """Write the message modules and their stubs under `target`."""
    files = sorted(str(path) for path in SOURCE.rglob("*.proto"))
    # Flat names: each file's modules land beside each other, so that imports need no rewriting.
    for file in files:
        arguments = [
            "protoc",
            f"-I{Path(file).parent}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            file,
        ]
        if protoc.main(arguments) != 0:
            sys.exit(f"protoc failed on {file}")
    (target / "__init__.py").write_text(
        '"""Generated from proto/ by scripts/generate_proto.py; do not edit."""\n'
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        TARGET.mkdir(parents=True, exist_ok=True)
        generate(TARGET)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            if path.is_file() and path.read_bytes() != (TARGET / path.name).read_bytes():
                sys.exit(f"server/pb/{path.name} is stale: run `make proto`")


if __name__ == "__main__":
    main()
