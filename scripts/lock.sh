#!/usr/bin/env bash
# Resolve the locks for Python 3.11 to 3.13 on every platform at once. Needs uv (pip install uv).
set -euo pipefail
compile() { uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header "$@"; }
ours=(pyproject.toml requirements/build.in --extra train -c requirements/limits.in)
compile "${ours[@]}" -o requirements/run.lock
compile "${ours[@]}" --extra dev -c requirements/run.lock -o requirements/dev.lock
# Installed without dependencies: what it leaves out would be missed.
models=requirements/models
compile $models.in -c requirements/dev.lock --excludes $models.excludes -o $models.lock
