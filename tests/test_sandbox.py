"""Each line of the table in facts about a box, tried from the inside, under every level that this machine has."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from autoresearch.experiment import landlock, sandbox

HAVE_BWRAP = not sandbox._bubblewrap_problem()
LEVELS = [
    pytest.param(sandbox.BUBBLEWRAP, marks=pytest.mark.skipif(not HAVE_BWRAP, reason=sandbox._bubblewrap_problem() or "-")),
    pytest.param(sandbox.LANDLOCK, marks=pytest.mark.skipif(bool(landlock.problem()), reason=landlock.problem() or "-")),
]
needs_bwrap = pytest.mark.skipif(not HAVE_BWRAP, reason=sandbox._bubblewrap_problem() or "-")

TRY = """
import json, os, socket, subprocess, sys
def tried(action):
    try:
        action()
        return True
    except (OSError, subprocess.SubprocessError):
        return False
"""


def inside(level: str, box: sandbox.Box, code: str) -> dict:
    """Run `code` in the box; it fills `out`, which comes back."""
    program = TRY + "out = {}\n" + textwrap.dedent(code) + "\nprint(json.dumps(out))"
    line = sandbox.command(box, [sys.executable, "-c", program], level)
    done = subprocess.run(line, capture_output=True, text=True, cwd=box.workdir, env=dict(box.environment), timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def box(tmp_path: Path) -> sandbox.Box:
    work = tmp_path / "work"
    work.mkdir()
    return sandbox.Box(workdir=work, write=(work,), environment={"PATH": "/usr/bin:/bin"})


@pytest.mark.parametrize("level", LEVELS)
def test_it_writes_its_own_folder_and_no_other(level, box, tmp_path):
    (tmp_path / "secret").write_text("x")
    out = inside(
        level,
        box,
        f"""
        out['own'] = tried(lambda: open('here', 'w').write('1'))
        out['usr'] = tried(lambda: open('/usr/written', 'w'))
        tried(lambda: open({str(tmp_path / "beside")!r}, 'w'))
        out['read'] = tried(lambda: open({str(tmp_path / "secret")!r}).read())
        """,
    )
    assert out == {"own": True, "usr": False, "read": False}
    assert (box.workdir / "here").exists() and not (tmp_path / "beside").exists() and not Path("/usr/written").exists()


@pytest.mark.parametrize("level", LEVELS)
def test_home_and_secrets_are_not_there(level, box):
    out = inside(
        level,
        box,
        """
        for path in ('/etc/shadow', '/root/.bashrc', '/home', '/var/log', '/run'):
            out[path] = tried(lambda: os.listdir(path) if os.path.isdir(path) else open(path).read())
        out['environment'] = 'AUTORESEARCH_SECRET' in os.environ
        """,
    )
    assert not any(out.values())


@pytest.mark.parametrize("level", LEVELS)
def test_there_is_no_network(level, box):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.5)
        out = inside(
            level,
            box,
            f"""
            out['tcp'] = tried(lambda: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2))
            tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {receiver.getsockname()[1]})))
            """,
        )
        assert out == {"tcp": False}
        with pytest.raises(TimeoutError):
            receiver.recv(1)


@pytest.mark.parametrize("level", LEVELS)
def test_a_unix_socket_outside_cannot_be_reached_by_its_path_or_abstract_name(level, box, tmp_path):
    name = f"\0autoresearch-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as by_path, socket.socket(socket.AF_UNIX) as abstract:
        by_path.bind(str(tmp_path / "s"))
        abstract.bind(name)
        by_path.listen()
        abstract.listen()
        out = inside(
            level,
            box,
            f"""
            out['path'] = tried(lambda: socket.socket(socket.AF_UNIX).connect({str(tmp_path / "s")!r}))
            out['abstract'] = tried(lambda: socket.socket(socket.AF_UNIX).connect({name!r}))
            """,
        )
    assert out == {"path": False, "abstract": False}


@pytest.mark.parametrize("level", LEVELS)
def test_processes_outside_get_no_signal_and_show_no_memory(level, box):
    with subprocess.Popen(["sleep", "60"]) as other:
        out = inside(
            level,
            box,
            f"""
            import signal
            out['signal'] = tried(lambda: os.kill({other.pid}, signal.SIGKILL))
            out['memory'] = tried(lambda: open('/proc/{other.pid}/mem', 'rb').read(1))
            out['environment'] = tried(lambda: open('/proc/{other.pid}/environ', 'rb').read())
            """,
        )
        assert other.poll() is None
        other.kill()
    assert out == {"signal": False, "memory": False, "environment": False}


@needs_bwrap
def test_bubblewrap_keeps_no_capability_to_remount(box):
    """Started by root, bwrap keeps all capabilities unless told: a remount then writes the host's files."""
    out = inside(
        sandbox.BUBBLEWRAP,
        box,
        """
        status = open('/proc/self/status').read()
        out['capabilities'] = int(status.split('CapEff:')[1].split()[0], 16)
        out['remount'] = subprocess.run(['mount', '-o', 'remount,rw,bind', '/usr'], capture_output=True).returncode == 0
        out['unshare'] = subprocess.run(['unshare', '-U', 'true'], capture_output=True).returncode == 0
        """,
    )
    assert out == {"capabilities": 0, "remount": False, "unshare": False}


@needs_bwrap
def test_bubblewrap_ends_a_process_that_forked_twice(box, tmp_path):
    alive = box.workdir / "alive"
    code = f"""
    import time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(1), os.close(2)
            open({str(alive)!r}, 'w').write('1')
            while True:
                time.sleep(1)
        os._exit(0)
    while not os.path.exists({str(alive)!r}):
        time.sleep(0.01)
    """
    mark = f"forked-twice-{os.getpid()}"
    box = sandbox.Box(workdir=box.workdir, write=box.write, environment={**box.environment, "MARK": mark})
    inside(sandbox.BUBBLEWRAP, box, code)
    assert alive.exists()
    deadline = time.monotonic() + 10
    while left := [p for p in Path("/proc").glob("[0-9]*/environ") if mark in _environment_of(p)]:
        assert time.monotonic() < deadline, left  # the kernel ends them with the namespace, a moment later


def _environment_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@needs_bwrap
def test_bubblewrap_hides_files_inside_a_readable_folder(box, tmp_path):
    readable = tmp_path / "readable"
    (readable / "folder").mkdir(parents=True)
    (readable / "shown").write_text("shown")
    (readable / "hidden").write_text("hidden")
    (readable / "folder" / "too").write_text("hidden")
    box = sandbox.Box(
        workdir=box.workdir,
        write=box.write,
        read=(readable,),
        hidden=(readable / "hidden", readable / "folder"),
        environment=box.environment,
    )
    out = inside(
        sandbox.BUBBLEWRAP,
        box,
        f"""
        root = {str(readable)!r}
        out['shown'] = open(root + '/shown').read()
        out['hidden'] = tried(lambda: open(root + '/hidden').read())
        out['folder'] = os.listdir(root + '/folder')
        """,
    )
    assert out == {"shown": "shown", "hidden": False, "folder": []}


@pytest.mark.parametrize("level", LEVELS)
def test_torch_works_inside(level, box):
    out = inside(level, box, "import torch\nout['sum'] = (torch.ones(8, 8) @ torch.ones(8, 8)).sum().item()")
    assert out == {"sum": 512.0}


def test_a_machine_without_bubblewrap_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "install bubblewrap" in sandbox._bubblewrap_problem()
