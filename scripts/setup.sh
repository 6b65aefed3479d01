#!/usr/bin/env bash
# Fits this repository to this machine, once: uv, the environment, the profile, the data (`autoresearch setup`).
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"

full setup "$@"
