#!/usr/bin/env bash
# The whole suite, fast tests first, then the coverage gate: the sans-IO cores, each by its own test files
# (features/row.py by tests/features/test_row*.py), are covered to the last branch.
set -euo pipefail
bin=.venv/bin
$bin/python -bb -m pytest -q -m "not slow" -n "$(nproc)" --dist loadfile "$@"
$bin/python -bb -m pytest -q -m slow "$@"

mapfile -t modules < <(grep -v '^#' tests/coverage-gate.txt)
tests=()
for module in "${modules[@]}"; do
  tests+=("tests/$(dirname "$module")/test_$(basename "$module" .py)"*.py)
done
$bin/coverage erase
$bin/coverage run --include="$(IFS=,; echo "${modules[*]}")" -m pytest -q "${tests[@]}"
$bin/coverage report --fail-under=100 --show-missing --skip-covered
