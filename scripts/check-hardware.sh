#!/usr/bin/env bash
# What this machine has and whether it is ready, as JSON; exit code 0 or 1 (`autoresearch check --json`).
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"

light check --json "$@"
