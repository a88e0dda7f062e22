#!/usr/bin/env bash
# Resolve the locks for Python 3.11 to 3.13 on every platform at once. Needs uv (pip install uv).
set -euo pipefail
compile() { uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml requirements/build.in "$@"; }
compile --extra train -o requirements/run.lock
compile --extra train --extra dev -c requirements/run.lock -o requirements/dev.lock
