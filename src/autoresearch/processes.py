"""Other processes: which of them is which, and how those end that a dead one left behind. Standard library only."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")  # Linux: what runs, and with which environment
BOOT = PROC / "sys/kernel/random/boot_id"
PATIENCE = 10.0  # seconds for a killed process to be gone: until then it holds its GPU memory; one in a broken driver never goes
POLL_SECONDS = 0.005


def birth(pid: int) -> str:
    """What tells a process from a later one with the same number; '' for one that has ended, its parent informed or not."""
    if not PROC.exists():
        return subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    try:
        state, *rest = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        boot = BOOT.read_text()[:8] if BOOT.exists() else ""
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else f"{rest[18]} {boot}"  # clock ticks from the machine's start to the process's


def end_marked(mark: str, but: int = 0) -> None:
    """Kill all processes with a variable in their environment that begins so, whatever became of their parents; see them gone."""
    killed: dict[int, str] = {}
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = [pid for pid in marked(mark) if pid not in (but, os.getpid())]
        for pid in found:
            killed.setdefault(pid, birth(pid))
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found and not any(born and birth(pid) == born for pid, born in killed.items()):
            return
        time.sleep(POLL_SECONDS)


def marked(mark: str) -> Iterator[int]:
    """All processes with a variable `NAME=value` in their environment that begins with `mark`."""
    return (pid for pid, _ in marks(mark))


def marks(mark: str) -> Iterator[tuple[int, str]]:
    """The same with the whole of that variable."""
    start = mark.encode()
    for process in running():
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            data = (process / "environ").read_bytes()
            for variable in data.split(b"\0") if start in data else ():
                if variable.startswith(start):
                    yield int(process.name), os.fsdecode(variable)


def running() -> list[Path]:
    """The folders of all processes here, none where there is no /proc. A glob with a file's name behind it would not do: it asks
    whether each has the file, and raises where a process ends just then."""
    return [entry for entry in PROC.iterdir() if entry.name.isdigit()] if PROC.exists() else []
