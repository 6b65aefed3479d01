"""The scripts: from any directory, with nothing installed, with no Python, no uv, no home and no registry.

Most tests run the real scripts over a stand-in for the CLI that prints how it was called; the commands themselves are
tested where they live. The ways to install uv run against the real registry, and are skipped only if it can't be
reached; what an index can do wrong is tested against a server of our own.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["setup.sh", "run-experiment.sh", "run-loop.sh", "show-results.sh", "check-hardware.sh"]
# All that common.sh asks of a machine beside Python.
TOOLS = ["bash", "env", "dirname", "readlink", "mkdir", "mktemp", "rm", "cat", "cksum", "grep", "tail"]
CERTIFICATES = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
INDEX = {name: os.environ[name] for name in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL") if name in os.environ}

STAND_IN = """\
import json, os, sys
print(json.dumps({"args": sys.argv[1:], "cwd": os.getcwd(), "home": os.environ["AUTORESEARCH_HOME"],
                  "prefix": sys.prefix, "env": dict(os.environ)}))
sys.exit(int(os.environ.get("STAND_IN_EXIT", "0")))
"""
PYPROJECT = """\
[project]
name = "autoresearch"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = []

[build-system]
requires = ["uv_build>=0.9,<1"]
build-backend = "uv_build"
"""


@dataclass
class Machine:
    """A bare machine: a PATH with only `tools`, an empty home, and a clone of the repository."""

    tools: Path
    home: Path
    repo: Path
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *argv: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        everything = {"PATH": str(self.tools), "HOME": str(self.home), **CERTIFICATES, **self.env, **env}
        return subprocess.run(
            argv,
            cwd=cwd or self.repo,
            env={name: value for name, value in everything.items() if value != "UNSET"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def script(self, name: str, *args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return self.command("bash", str(self.repo / "scripts" / name), *args, cwd=cwd, **env)

    def ensure_uv(self, **env: str) -> subprocess.CompletedProcess[str]:
        code = f". {shlex.quote(str(self.repo))}/scripts/common.sh; ensure_uv; echo $uv; $uv --version"
        return self.command("bash", "-c", code, **env)

    def tool(self, name: str, body: str) -> None:
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text("#!/bin/bash\n" + body)
        path.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """Without Python; the clone has the real scripts and sources."""
    machine = Machine(tmp_path / "tools", tmp_path / "home", tmp_path / "a clone")
    machine.tools.mkdir()
    machine.home.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found, f"{name} is needed"
        (machine.tools / name).symlink_to(found)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "scripts", machine.repo / "scripts", ignore=ignored)
    shutil.copytree(ROOT / "src", machine.repo / "src", ignore=ignored)
    return machine


@pytest.fixture
def fresh(bare: Machine) -> Machine:
    """With a Python, and nothing installed."""
    (bare.tools / "python3").symlink_to(base_python())
    return bare


@pytest.fixture
def machine(fresh: Machine) -> Machine:
    """With the stand-in for the CLI."""
    shutil.rmtree(fresh.repo / "src")
    package = fresh.repo / "src/autoresearch"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    return fresh


def base_python() -> str:
    """The Python that this environment was made from, not the environment's own."""
    return str(Path(sys.executable).resolve())


def called(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    return said


# --- from anywhere ----------------------------------------------------------------------------------------------------


def test_a_script_works_by_absolute_relative_and_linked_path_and_never_changes_the_directory(
    machine: Machine, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    link = tmp_path / "results"
    link.symlink_to(machine.repo / "scripts/show-results.sh")
    relative_link = elsewhere / "again"
    relative_link.symlink_to("../results")
    for cwd, path in [
        (elsewhere, str(machine.repo / "scripts/show-results.sh")),
        (elsewhere, "../a clone/scripts/show-results.sh"),
        (machine.repo, "scripts/show-results.sh"),
        (machine.repo / "scripts", "show-results.sh"),
        (machine.repo / "scripts", "./show-results.sh"),
        (elsewhere, str(link)),
        (elsewhere, "again"),
    ]:
        said = called(machine.command("bash", path, "--top", "3", cwd=cwd, CDPATH=str(tmp_path)))
        assert said["cwd"] == str(cwd)
        assert said["home"] == str(machine.repo)
        assert said["args"] == ["results", "--top", "3"]


def test_a_script_is_a_command_of_its_own(machine: Machine) -> None:
    for name in [*SCRIPTS, "test.sh"]:
        assert os.access(machine.repo / "scripts" / name, os.X_OK), name
    assert called(machine.command(str(machine.repo / "scripts/show-results.sh")))["args"] == ["results"]


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("setup.sh", ["setup"]),
        ("run-experiment.sh", ["run"]),
        ("run-loop.sh", ["loop"]),
        ("show-results.sh", ["results"]),
        ("check-hardware.sh", ["check", "--json"]),
    ],
)
def test_each_script_passes_its_arguments_and_the_exit_code_through(machine: Machine, script: str, command: list[str]) -> None:
    arguments = ["--desc", "two words", "", "*", "--help"]  # --help: without the environment
    said = called(machine.script(script, *arguments))
    assert said["args"] == [*command, *arguments]
    assert not (machine.repo / ".venv").exists()
    for code in (1, 2, 3, 64, 70):
        assert machine.script(script, "--help", STAND_IN_EXIT=str(code)).returncode == code


def test_a_file_of_the_working_directory_is_not_imported_for_pythons_own(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    assert called(machine.script("show-results.sh", cwd=tmp_path))["args"] == ["results"]


# --- with nothing installed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "flag"), [*((script, "--help") for script in SCRIPTS), ("run-loop.sh", "-h")])
def test_help_needs_nothing_installed_and_installs_nothing(fresh: Machine, script: str, flag: str) -> None:
    done = fresh.script(script, flag)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert done.stderr == ""
    assert not (fresh.repo / ".venv").exists() and not any(fresh.home.iterdir())


def test_the_hardware_check_is_json_with_nothing_installed(fresh: Machine) -> None:
    done = fresh.script("check-hardware.sh")
    said = json.loads(done.stdout)
    assert list(said)[:6] == ["gpu_name", "vram_mb", "cuda_version", "python_ok", "uv_ok", "ready"]
    assert said["python_ok"] is True and said["uv_ok"] is False
    assert done.returncode == (0 if said["ready"] else 1)


def test_the_environments_python_is_preferred_once_it_is_there_and_not_when_it_broke(machine: Machine) -> None:
    venv = machine.repo / ".venv"
    subprocess.run([base_python(), "-m", "venv", "--without-pip", venv], check=True)
    assert called(machine.script("show-results.sh"))["prefix"] == str(venv)
    (venv / "bin/python").unlink()
    (venv / "bin/python").symlink_to("/no/such/python")
    assert called(machine.script("show-results.sh"))["prefix"] != str(venv)


def test_a_newer_python_under_another_name_is_found_behind_an_old_or_broken_python3(machine: Machine) -> None:
    python = base_python()
    for broken in ("echo 'pyenv: python3: command not found' >&2; exit 127\n", "exit 1\n"):
        machine.tool("python3", broken)
        (machine.tools / "python3.13").unlink(missing_ok=True)
        (machine.tools / "python3.13").symlink_to(python)
        assert called(machine.script("show-results.sh"))["args"] == ["results"]


def test_without_python_there_is_one_clear_line_and_the_hardware_check_is_json_all_the_same(bare: Machine) -> None:
    for script in SCRIPTS:
        done = bare.script(script)
        assert done.stderr.count("\n") == 1, done.stderr
        assert "Python 3.11 or newer is needed, and none was found on PATH: install python3" in done.stderr
        if script == "check-hardware.sh":
            said = json.loads(done.stdout)
            assert (said["python_ok"], said["ready"], done.returncode) == (False, False, 1)
        else:
            assert (done.stdout, done.returncode) == ("", 3)


def test_an_old_python_is_named_with_its_version(bare: Machine) -> None:
    old = '*"(3, 11)"*) exit 1;; *"(3, 9)"*) exit 1;; *version_info*) echo /usr/bin/python3;; *) echo 3.8.10;;'
    bare.tool("python3", f'case "$*" in {old} esac\n')
    bare.tool("uv", "exit 1\n")
    done = bare.script("show-results.sh")
    assert done.returncode == 3
    assert "/usr/bin/python3 is only" in done.stderr


# --- the environment --------------------------------------------------------------------------------------------------


@pytest.fixture
def synced(machine: Machine) -> Machine:
    """A clone whose lock holds no packages, and the uv of this machine: an environment takes a tenth of a second."""
    find = f". {shlex.quote(str(ROOT))}/scripts/common.sh; find_uv"
    uv = subprocess.run(["bash", "-c", find], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()
    if not uv:
        pytest.skip("uv is not installed: bash scripts/test.sh installs it")
    path = shlex.quote(os.environ["PATH"])  # uv may be a version manager's shim, which needs its own tools
    machine.tool("uv", f'echo uv "$@" >>{machine.home}/log\nPATH={path} exec {shlex.quote(uv)} "$@"\n')
    machine.env |= {"UV_OFFLINE": "1", "UV_PYTHON": base_python()}
    (machine.repo / "pyproject.toml").write_text(PYPROJECT)
    locked = machine.command(str(machine.tools / "uv"), "lock")
    assert locked.returncode == 0, locked.stderr
    (machine.home / "log").unlink()
    return machine


def test_the_environment_is_installed_once_and_again_when_the_lock_has_changed(synced: Machine) -> None:
    log = synced.home / "log"
    first = synced.script("run-loop.sh", "--max", "5")
    assert called(first)["args"] == ["loop", "--max", "5"]
    assert called(first)["prefix"] == str(synced.repo / ".venv")
    assert "about 5 GB" in first.stderr
    assert "sync" in log.read_text()
    assert "--compile-bytecode" in log.read_text(), "else each run compiles torch anew"

    log.unlink()
    second = synced.script("run-loop.sh", "--max", "5")
    assert called(second)["args"] == ["loop", "--max", "5"]
    assert second.stderr == ""
    assert not log.exists(), "uv isn't even started"

    with (synced.repo / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    called(synced.script("run-experiment.sh"))
    assert "sync" in log.read_text()


def test_an_environment_made_where_the_clone_lay_before_is_repaired(synced: Machine, tmp_path: Path) -> None:
    called(synced.script("setup.sh"))
    moved = tmp_path / "moved"
    synced.repo.rename(moved)
    synced.repo = moved
    said = called(synced.script("setup.sh"))
    assert (said["home"], said["prefix"]) == (str(moved), str(moved / ".venv"))


def test_the_callers_own_environment_is_left_alone(synced: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    said = called(synced.script("setup.sh", UV_PROJECT_ENVIRONMENT=str(other), VIRTUAL_ENV=str(other)))
    assert said["prefix"] == str(synced.repo / ".venv")
    assert not other.exists()


@pytest.mark.parametrize("home", ["UNSET", "", "/nonexistent/home"])
def test_without_a_usable_home_the_caches_stay_inside_the_repository(synced: Machine, home: str) -> None:
    said = called(synced.script("run-experiment.sh", HOME=home))
    env = said["env"]
    assert isinstance(env, dict)
    assert env["XDG_CACHE_HOME"] == str(synced.repo / ".autoresearch/cache")
    assert (synced.repo / ".autoresearch/cache/uv").is_dir()
    assert Path(env["HOME"]).is_absolute()


def test_a_lock_that_cannot_be_installed_is_not_ready_and_says_why(synced: Machine) -> None:
    (synced.repo / "uv.lock").write_text("version = 99\n")
    done = synced.script("run-loop.sh")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "uv could not install the locked environment" in done.stderr.splitlines()[-1]
    assert "error" in done.stderr, "with uv's own reason"


def test_only_a_plot_asks_for_matplotlib(synced: Machine) -> None:
    assert called(synced.script("show-results.sh", "--top", "3"))["prefix"] != str(synced.repo / ".venv")
    with (synced.repo / "pyproject.toml").open("a") as file:
        file.write("[project.optional-dependencies]\nplot = []\n")
    synced.command(str(synced.tools / "uv"), "lock")
    log = synced.home / "log"
    log.unlink()
    for arguments in (["--plot", "a.png"], ["--plot=a.png"]):
        said = called(synced.script("show-results.sh", *arguments))
        assert said["args"] == ["results", *arguments]
        assert said["prefix"] == str(synced.repo / ".venv")
        assert "--extra plot" in log.read_text()
        log.unlink()


# --- uv from the registry ---------------------------------------------------------------------------------------------


@functools.cache
def registry() -> str | None:
    """None if the registry answers, else why not."""
    index = INDEX.get("UV_DEFAULT_INDEX") or INDEX.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    try:
        with urllib.request.urlopen(index.rstrip("/") + "/uv/", timeout=20):
            return None
    except (OSError, ValueError) as error:
        return str(error)


def python_with(module: str) -> str:
    for python in (base_python(), "/usr/bin/python3", "/usr/local/bin/python3"):
        if Path(python).exists() and subprocess.run([python, "-Ic", f"import {module}"], capture_output=True).returncode == 0:
            return python
    pytest.skip(f"no Python of this machine has {module}")


@pytest.mark.parametrize(("way", "module"), [("pip", "pip"), ("venv", "ensurepip"), ("wheel", "zipfile"), ("", "json")])
def test_uv_is_installed_from_the_registry(bare: Machine, way: str, module: str) -> None:
    if (reason := registry()) is not None:
        pytest.skip(f"the package registry can't be reached: {reason}")
    (bare.tools / "python3").symlink_to(python_with(module))
    done = bare.ensure_uv(AUTORESEARCH_UV_VIA=way, **INDEX)
    assert done.returncode == 0, done.stderr
    uv = bare.home / ".local/share/autoresearch/uv/bin/uv"
    path, version = done.stdout.splitlines()
    assert path == str(uv)
    assert version.startswith("uv 0.") or version.startswith("uv 1.")
    assert [entry.name for entry in uv.parents[2].iterdir()] == ["uv"], "nothing else is left"
    again = bare.ensure_uv(UV_DEFAULT_INDEX="http://127.0.0.1:9/simple")
    assert (again.returncode, again.stderr) == (0, ""), "installed once for good"


# --- what an index can do wrong ---------------------------------------------------------------------------------------


UV = "#!/bin/bash\necho uv 9.8.7\n"


def wheel(program: str = UV, inside: str = "uv-9.8.7.data/scripts/uv") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(inside, program)
    return buffer.getvalue()


class Index:
    """A package index on this machine: `files` by name, served as JSON or as HTML."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.yanked: set[str] = set()
        self.digests: dict[str, str | None] = {}  # where the index lies, or gives none
        self.speaks_json = True
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                index.logins.append(self.headers["Authorization"])
                if self.path == "/simple/uv/":
                    kind, body = index.page()
                elif self.path.rpartition("/")[2] in index.files:
                    kind, body = "application/octet-stream", index.files[self.path.rpartition("/")[2]]
                else:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://{self.host}/simple"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def page(self) -> tuple[str, bytes]:
        entries = []
        for name, body in self.files.items():
            digest = self.digests.get(name, hashlib.sha256(body).hexdigest())
            entries.append((name, {"sha256": digest} if digest else {}, name in self.yanked))
        if self.speaks_json:
            files = [{"filename": n, "url": f"../../files/{n}", "hashes": h, "yanked": y} for n, h, y in entries]
            return "application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode()
        links = []
        for name, hashes, yanked in entries:
            fragment = "".join(f"#{kind}={digest}" for kind, digest in hashes.items())
            mark = " data-yanked=''" if yanked else ""
            links.append(f'<a href="../../files/{name}{fragment}"{mark}>{name}</a>')
        return "text/html", "<br>".join(links).encode()


@pytest.fixture
def index() -> Iterator[Index]:
    served = Index()
    yield served
    served.server.shutdown()
    served.server.server_close()


TAGS = "manylinux_2_17_{m}.manylinux2014_{m}.musllinux_1_1_{m}".format(m=os.uname().machine)
if sys.platform == "darwin":
    TAGS = f"macosx_11_0_{os.uname().machine}"


def named(version: str, tags: str = TAGS) -> str:
    return f"uv-{version}-py3-none-{tags}.whl"


def via_wheel(machine: Machine, index: Index, **env: str) -> subprocess.CompletedProcess[str]:
    return machine.ensure_uv(**{"AUTORESEARCH_UV_VIA": "wheel", "UV_DEFAULT_INDEX": index.url, **env})


@pytest.mark.parametrize("speaks_json", [True, False])
def test_the_newest_release_that_fits_this_machine_is_taken(fresh: Machine, index: Index, speaks_json: bool) -> None:
    index.speaks_json = speaks_json
    wrong = wheel("not this one")
    index.files = {
        named("0.9.9"): wrong,
        named("0.10.2"): wheel(),
        named("0.10.1"): wrong,
        named("0.11.0"): wrong,  # yanked
        named("0.12.0rc1"): wrong,
        named("0.13.0", "win_amd64"): wrong,
        named("0.13.0", "manylinux_2_99_" + os.uname().machine): wrong,
        "uv-0.14.0.tar.gz": wrong,
        "uv_build-0.15.0-py3-none-any.whl": wrong,
    }
    index.yanked = {named("0.11.0")}
    done = via_wheel(fresh, index)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "uv 9.8.7"
    assert index.asked[-1] == "/files/" + named("0.10.2")


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"])
def test_a_mirror_and_its_login_are_honoured_and_the_password_is_never_shown(fresh: Machine, index: Index, name: str) -> None:
    index.files = {named("1.0.0"): b"no zip"}
    mirror = {"UV_DEFAULT_INDEX": "UNSET", name: f"http://me:p%40ss@{index.host}/simple/"}
    done = via_wheel(fresh, index, **mirror)
    assert set(index.logins) == {"Basic bWU6cEBzcw=="} and len(index.logins) == 2
    assert "ss@" not in done.stderr and "p%40" not in done.stderr


@pytest.mark.parametrize(
    ("body", "digest", "says"),
    [
        (wheel(), "0" * 64, "does not match the sha256"),
        (wheel(), None, "gives no sha256"),
        (b"<html>log in first</html>", "", "holds no program"),
        (wheel(inside="uv-1.data/scripts/other"), "", "holds no program"),
    ],
)
def test_a_wheel_that_is_not_what_the_index_said_is_not_installed(
    fresh: Machine, index: Index, body: bytes, digest: str | None, says: str
) -> None:
    index.files = {named("1.0.0"): body}
    if digest != "":
        index.digests = {named("1.0.0"): digest}
    done = via_wheel(fresh, index)
    refused(fresh, done, says)


def refused(machine: Machine, done: subprocess.CompletedProcess[str], says: str) -> None:
    """Not ready, one clear line after the one that said what was tried, and nothing left behind."""
    assert done.returncode == 3
    assert done.stdout == ""
    tried, reason = done.stderr.splitlines()
    assert tried.startswith("installing uv (a private copy in ")
    assert reason.startswith("autoresearch: uv could not be installed: ")
    assert says in reason
    assert [path for path in machine.home.rglob("*") if path.is_file()] == []
    assert not list(machine.home.glob(".local/share/autoresearch/*"))


def test_an_index_without_a_fitting_wheel_names_the_machine(fresh: Machine, index: Index) -> None:
    index.files = {named("1.0.0", "win32"): wheel()}
    refused(fresh, via_wheel(fresh, index), "has no uv for this machine")


def test_an_index_that_says_404_is_named(fresh: Machine, index: Index) -> None:
    done = via_wheel(fresh, index, UV_DEFAULT_INDEX=index.url + "/nothing")
    refused(fresh, done, f"the package index {index.host} answered 404")


def test_no_registry_is_one_clear_line_with_the_ways_out(fresh: Machine) -> None:
    done = fresh.script("run-loop.sh", "--max", "5", UV_DEFAULT_INDEX="http://127.0.0.1:9/simple")
    refused(fresh, done, "no answer from the package index 127.0.0.1:9")
    assert "UV_DEFAULT_INDEX" in done.stderr
    assert not (fresh.repo / ".venv").exists()


def test_without_a_home_uv_is_kept_inside_the_repository(fresh: Machine, index: Index) -> None:
    index.files = {named("1.0.0"): wheel()}
    for home in ("UNSET", "", "/nonexistent/home"):
        done = via_wheel(fresh, index, HOME=home)
        assert done.stdout.splitlines()[0] == str(fresh.repo / ".autoresearch/uv/bin/uv"), done.stderr
        shutil.rmtree(fresh.repo / ".autoresearch")


def test_two_installations_at_once_do_no_harm(fresh: Machine, index: Index) -> None:
    index.files = {named("1.0.0"): wheel()}
    threads = [threading.Thread(target=lambda: done.append(via_wheel(fresh, index))) for _ in range(3)]
    done: list[subprocess.CompletedProcess[str]] = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(d.returncode, d.stdout.splitlines()[1:]) for d in done] == [(0, ["uv 9.8.7"])] * 3
    assert [path.name for path in (fresh.home / ".local/share/autoresearch").iterdir()] == ["uv"]


def test_a_broken_private_copy_is_replaced(fresh: Machine, index: Index) -> None:
    index.files = {named("1.0.0"): wheel()}
    broken = fresh.home / ".local/share/autoresearch/uv/bin/uv"
    broken.parent.mkdir(parents=True)
    broken.write_text("half of a program")
    assert via_wheel(fresh, index).returncode == 0
    assert broken.read_text() == UV


def test_an_unknown_way_to_install_uv_is_a_wrong_call(fresh: Machine) -> None:
    done = fresh.ensure_uv(AUTORESEARCH_UV_VIA="curl")
    assert done.returncode == 64
    assert "only pip, venv and wheel are known" in done.stderr


@functools.cache
def install_uv() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_uv", ROOT / "scripts/install-uv.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOME_TAGS = [
    *("manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "linux_armv6l"),
    *("musllinux_1_1_x86_64", "musllinux_1_1_i686", "macosx_11_0_arm64", "macosx_10_12_x86_64"),
    *("win_amd64", "win_arm64", "win32"),
]


@pytest.mark.parametrize(
    ("system", "machine", "libc", "macos", "takes"),
    [
        ("Linux", "x86_64", ("glibc", "2.36"), "", {"manylinux_2_17_x86_64", "manylinux_2_28_x86_64"}),
        ("Linux", "x86_64", ("glibc", "2.17"), "", {"manylinux_2_17_x86_64"}),
        ("Linux", "x86_64", ("glibc", "2.5"), "", set()),
        ("Linux", "x86_64", ("", ""), "", {"musllinux_1_1_x86_64"}),
        ("Linux", "aarch64", ("glibc", "2.36"), "", {"manylinux_2_28_aarch64"}),
        ("Darwin", "arm64", None, "14.5", {"macosx_11_0_arm64"}),
        ("Darwin", "x86_64", None, "10.15.7", {"macosx_10_12_x86_64"}),
        ("Windows", "AMD64", None, "", {"win_amd64"}),
        ("Windows", "ARM64", None, "", {"win_arm64"}),
    ],
)
def test_a_platform_takes_the_tags_that_run_on_it(
    system: str, machine: str, libc: tuple[str, str] | None, macos: str, takes: set[str]
) -> None:
    fits = install_uv().platform_tags(system, machine, libc, macos)
    assert {tag for tag in SOME_TAGS if fits(tag)} == takes


# --- tests and CI -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [None, "tests", "lint", "types"])
def test_ci_runs_every_step_and_fails_if_any_does(fresh: Machine, broken: str | None) -> None:
    shutil.copytree(ROOT / ".ci", fresh.repo / ".ci")
    venv = fresh.repo / ".venv/bin"
    venv.mkdir(parents=True)
    (fresh.repo / "scripts/test.sh").write_text(f"echo 3 passed in 1.00s; exit {int(broken == 'tests')}\n")
    for name, step in (("ruff", "lint"), ("mypy", "types")):
        (venv / name).write_text(f"#!/bin/bash\necho {name} $1\nexit {int(broken == step)}\n")
        (venv / name).chmod(0o755)
    done = fresh.command("bash", ".ci/run")
    assert done.stdout.splitlines() == ["3 passed in 1.00s", "ruff check", "ruff format", "mypy --strict"]
    assert (done.returncode == 0) == (broken is None)
    assert (f"failed: {broken}" in done.stderr) == (broken is not None)
