# shellcheck shell=bash
# What the scripts share; sourced, never run. It finds the repository it lies in, a Python or an environment to run
# `python -m autoresearch` with, and uv. It never changes the working directory: the lab is the one around it, else
# this repository (AUTORESEARCH_HOME).
#
#   light COMMAND ...   with any Python 3.11 and nothing installed: check, results, status, and every --help
#   full COMMAND ...    in the locked environment, installed first if that was not done
#
# Diagnostics go to stderr, data to stdout; nothing reads stdin; the CLI's exit code is the script's.

set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
export AUTORESEARCH_HOME=$root

NOT_READY=3 # as `autoresearch run` says it: the machine is at fault, not the experiment
WRONG_CALL=64

say() { printf '%s\n' "$*" >&2; }

die() { # CODE MESSAGE
    say "autoresearch: $2"
    exit "$1"
}

asks_for() { # FLAG ARG...: is FLAG, or FLAG=VALUE, among the arguments?
    local flag=$1 argument
    shift
    for argument in "$@"; do
        if [[ $argument == "$flag" || $argument == "$flag="* ]]; then return 0; fi
    done
    return 1
}

# --- running the CLI --------------------------------------------------------------------------------------------------

light() { # COMMAND ARG...
    local python
    python=$(venv_python || find_python || uv_python) || no_python "$@"
    usable_home
    # -P: a json.py in the working directory must not be imported in place of Python's.
    PYTHONPATH=$root/src exec "$python" -P -m autoresearch "$@"
}

full() { # COMMAND ARG...
    if asks_for --help "$@" || asks_for -h "$@"; then light "$@"; fi
    usable_home
    sync_environment
    if asks_for --plot "$@" && ! compgen -G "$root/.venv/lib/python3*/site-packages/matplotlib" >/dev/null; then
        say 'installing matplotlib for the plot…'
        uv_sync --extra plot
    fi
    exec "$(venv_python)" -P -m autoresearch "$@"
}

has_home() { [[ -n ${HOME:-} && -d $HOME && -w $HOME ]]; }

# Without a home that can be written (cron, containers) the caches stay inside the repository.
usable_home() {
    if has_home; then return; fi
    export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$root/.autoresearch/cache} XDG_DATA_HOME=${XDG_DATA_HOME:-$root/.autoresearch}
    export HOME=${HOME:-$root/.autoresearch/home} # an empty one would make paths relative to the working directory
}

# --- Python -----------------------------------------------------------------------------------------------------------

# Prints the full path of the first of the given Pythons that is version 3.MINOR or newer. The path, not the name: the
# shim of a version manager takes 0.1 s at each start.
first_python() { # MINOR NAME...
    local minor=$1 name
    shift
    for name in "$@"; do
        if command -v "$name" >/dev/null && "$name" -ISc "import sys
sys.version_info >= (3, $minor) or sys.exit(1)
print(sys.executable)" 2>/dev/null </dev/null; then return 0; fi
    done
    return 1
}

find_python() { first_python 11 python3 python3.15 python3.14 python3.13 python3.12 python3.11 python; }

# One that uv brought along for another project.
uv_python() {
    local uv
    uv=$(find_uv) && "$uv" python find --no-project --no-python-downloads '>=3.11' 2>/dev/null </dev/null
}

venv_python() {
    local python
    for python in "$root/.venv/bin/python" "$root/.venv/Scripts/python.exe"; do
        # Not executable: also a link to a Python that was uninstalled.
        if [[ -x $python ]]; then
            printf '%s\n' "$python"
            return 0
        fi
    done
    return 1
}

no_python() { # COMMAND ARG...: says so, and exits
    local old found='none was found on PATH'
    if old=$(first_python 0 python3 python); then
        found="$old is only $("$old" -ISc 'import platform; print(platform.python_version())')"
    fi
    say "autoresearch: Python 3.11 or newer is needed, and $found: install python3 with your package manager"
    if [[ $1 != check ]] || asks_for --help "$@" || asks_for -h "$@"; then exit $NOT_READY; fi
    # Whoever parses the hardware check gets its JSON all the same.
    printf '{"gpu_name": null, "vram_mb": 0, "cuda_version": null, "python_ok": false, "uv_ok": %s, "ready": false, ' \
        "$(find_uv >/dev/null && echo true || echo false)"
    printf '"problems": ["Python 3.11 or newer is needed, and none was found: install python3 with your package manager"]}\n'
    exit 1
}

# --- the locked environment -------------------------------------------------------------------------------------------

# What the environment was made from; its place too, since one that was moved doesn't work.
environment_stamp() {
    printf '%s\n' "$root"
    cat "$root/uv.lock" "$root/pyproject.toml" | cksum
}

sync_environment() {
    local stamp=$root/.venv/autoresearch-synced
    if venv_python >/dev/null && [[ -f $stamp && $(<"$stamp") == "$(environment_stamp)" ]]; then return; fi
    uv_sync
    { environment_stamp >"$stamp"; } 2>/dev/null || true # on a read-only disk the next start asks uv again
}

# Inexact: what was added for the tests or the plots stays. Compiled, because a run writes no bytecode (-B): it would compile
# torch at every start, which takes 1.5 s on a CPU.
uv_sync() { # ARG...
    local uv
    ensure_uv
    if compgen -G "$root/.venv/lib/python3*/site-packages/torch" >/dev/null; then
        set -- --quiet "$@"
    else
        say 'installing the locked environment (first time: a few minutes and about 5 GB)…'
        if [[ ! -t 2 ]]; then set -- --quiet "$@"; fi # on a terminal uv shows its progress
    fi
    UV_PROJECT_ENVIRONMENT=$root/.venv "$uv" sync --project "$root" --frozen --inexact --compile-bytecode "$@" >&2 </dev/null ||
        die $NOT_READY "uv could not install the locked environment in $root/.venv (its reason stands above)"
}

# --- uv ---------------------------------------------------------------------------------------------------------------

runs() { "$1" --version >/dev/null 2>&1 </dev/null; }

# Where the private copy of uv belongs.
uv_place() {
    if has_home; then
        printf '%s\n' "${XDG_DATA_HOME:-$HOME/.local/share}/autoresearch/uv"
    else
        printf '%s\n' "$root/.autoresearch/uv"
    fi
}

# Prints the uv to use: the one on PATH, else the private copy.
find_uv() {
    local place
    if runs uv; then
        command -v uv
        return 0
    fi
    for place in "$(uv_place)" "$root/.autoresearch/uv"; do
        if runs "$place/bin/uv"; then
            printf '%s\n' "$place/bin/uv"
            return 0
        fi
    done
    return 1
}

ensure_uv() { # sets the caller's `uv`
    uv=$(find_uv) && return
    (install_uv "$(uv_place)") || exit
    uv=$(find_uv) || die $NOT_READY 'uv was installed but does not run on this machine: install uv yourself'
}

# Installs uv beside PLACE and renames it into place: two scripts at once, or one that is killed, do no harm.
# AUTORESEARCH_UV_VIA=pip, venv or wheel takes that way alone. Runs in a subshell, for its trap.
install_uv() { # PLACE
    local place=$1 via=${AUTORESEARCH_UV_VIA:-} python way
    if [[ -n $via && $via != pip && $via != venv && $via != wheel ]]; then
        die $WRONG_CALL "AUTORESEARCH_UV_VIA=$via: only pip, venv and wheel are known"
    fi
    python=$(find_python || first_python 9 python3 python) || no_python setup
    if ! mkdir -p "$(dirname "$place")" || ! new=$(mktemp -d "$place.XXXXXX"); then
        die $NOT_READY "cannot write to $(dirname "$place"): set HOME to a folder that can be written, or install uv"
    fi
    trap 'rm -rf "$new"' EXIT # `new` is no local: the trap runs after this function
    say "installing uv (a private copy in $place)…"
    if [[ -z $via ]]; then
        if "$python" -Ic 'import pip' 2>/dev/null; then
            via='pip wheel'
        elif "$python" -Ic 'import venv, ensurepip' 2>/dev/null; then
            via='venv wheel'
        else
            via=wheel
        fi
    fi
    for way in $via; do
        case $way in
        pip) uv_by_pip "$python" "$new" ;;
        venv) uv_by_venv "$python" "$new" ;;
        wheel) "$python" -I "$root/scripts/install-uv.py" "$new" ;;
        esac </dev/null >"$new/log" 2>&1 || continue
        if runs "$new/bin/uv"; then
            rm -rf "$new/log" "$new/venv"
            # os.rename, unlike mv, neither moves into a folder that is there nor replaces one that works.
            runs "$place/bin/uv" || rm -rf "$place"
            "$python" -Ic 'import os, sys; os.rename(*sys.argv[1:])' "$new" "$place" 2>/dev/null || runs "$place/bin/uv"
            return
        fi
    done
    die $NOT_READY "uv could not be installed: $(grep -v '^ *$' "$new/log" | tail -n 1)"
}

uv_by_pip() { # PYTHON FOLDER
    local index=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-}}
    if [[ -n $index ]]; then set -- "$1" "$2" --index-url "$index"; fi
    local python=$1 folder=$2
    shift 2
    # --target installs beside the system's packages, not among them: also where the system forbids that (PEP 668).
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 "$python" -Im pip install --quiet --no-input --disable-pip-version-check \
        --no-deps --only-binary=:all: --retries 1 --timeout 20 --target "$folder" "$@" uv
}

uv_by_venv() { # PYTHON FOLDER
    "$1" -Im venv "$2/venv" && uv_by_pip "$2/venv/bin/python" "$2"
}
