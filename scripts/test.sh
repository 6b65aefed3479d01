#!/usr/bin/env bash
# Installs what is missing and runs the tests; arguments go to pytest.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"

usable_home
uv_sync --group dev --extra plot --extra mcp
cd "$root"
# What a caller's shell or a git hook has set would steer the labs and repositories that the tests make.
unset AUTORESEARCH_HOME AUTORESEARCH_CACHE AUTORESEARCH_SEED AUTORESEARCH_WEIGHTS_IN AUTORESEARCH_WEIGHTS_OUT
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
unset PYTHONDONTWRITEBYTECODE # thousands of commands are started: each would compile our sources anew
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # small models on few cores: more threads only get in one another's way
# One more than there are cores, four at most: much of the time is spent waiting for runs.
workers=$("$(venv_python)" -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
exec "$(venv_python)" -m pytest --numprocesses "$workers" "$@" </dev/null
