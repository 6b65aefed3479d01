#!/usr/bin/env bash
# The loop: propose, run, judge, record, settle (`autoresearch loop`). Sets up first if that was not done.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"

full loop "$@"
