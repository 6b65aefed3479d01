#!/usr/bin/env bash
# The session so far, from results.tsv (`autoresearch results`). Only --plot needs the environment.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"

if asks_for --plot "$@"; then
    full results "$@"
fi
light results "$@"
