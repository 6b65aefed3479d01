#!/usr/bin/env bash
# One run of the current train.py, or a whole recorded turn with --record (`autoresearch run`).
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"

full run "$@"
