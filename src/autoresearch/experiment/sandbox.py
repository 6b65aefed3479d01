"""A box around an untrusted command: what is not listed does not exist for it.

Three levels, the best that this machine can do is taken:

- `bubblewrap`: namespaces of its own. Only the listed files exist; no network, no other processes, no capabilities, and when it
  ends everything that it started ends with it, double forks too.
- `landlock`: the kernel's Landlock (ABI 6 and newer) and seccomp, by `landlock.py`. Other files can't be opened, no sockets but
  pairs of its own, no signals to processes outside. It sees that other processes exist, and a read-only file inside a
  writable folder can be written.
- `none`: a process group and a cleared environment, nothing more.

Not covered by any level: time spent on the CPU or GPU beside the run, and faults of the kernel or the GPU's driver.
"""

import functools
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoresearch.errors import NotReady
from autoresearch.experiment import landlock

BUBBLEWRAP, LANDLOCK, NONE = "bubblewrap", "landlock", "none"
LEVELS = (BUBBLEWRAP, LANDLOCK, NONE)
WAY_OUT = "install bubblewrap (apt install bubblewrap, dnf install bubblewrap)"

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
# What the loader, the resolver of names and times, and TLS look up.
ETC = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "passwd",
    "group",
    "nsswitch.conf",
    "alternatives",
    "ssl/certs",
    "ssl/openssl.cnf",
    "ca-certificates",
    "pki",
    "OpenCL",
    "vulkan",
)
ETC_NETWORK = ("resolv.conf", "hosts", "host.conf", "gai.conf", "services", "protocols")
# Facts about the machine, and the command's own process (the launcher's, which becomes it): not the others' environments.
PROC = (
    "/proc/self",
    "/proc/sys",
    *(f"/proc/{name}" for name in ("cpuinfo", "meminfo", "stat", "version", "filesystems", "loadavg")),
)
DEV = Path("/dev")
GPU_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps", "kfd", "dri")


@dataclass(frozen=True)
class Box:
    """What a command may reach beside the interpreter and the system's libraries."""

    workdir: Path
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()  # files inside a readable folder that are made empty
    environment: Mapping[str, str] = field(default_factory=dict)  # all of it
    network: bool = False
    gpu: int | None = None  # index of the one GPU whose device nodes it gets


@functools.cache
def best(gpu: bool = False) -> tuple[str, str]:
    """The best level of this machine for a run on its CPU or GPU, and why it is not a better one ('' for the best)."""
    reason = problem(BUBBLEWRAP)
    if not reason:
        return BUBBLEWRAP, ""
    other = problem(LANDLOCK, gpu)
    return (LANDLOCK, reason) if not other else (NONE, f"{reason}; {other}")


def problem(level: str, gpu: bool = False) -> str:
    """Why this machine can't reach a level; '' if it can."""
    if level == BUBBLEWRAP:
        return _bubblewrap_problem()
    if level == LANDLOCK and gpu and os.geteuid() == 0:
        return "Landlock with a GPU leaves /proc writable, which for root is no box: start as another user"
    return landlock.problem() if level == LANDLOCK else ""


def choose(asked: str | None, literals_only: bool, say: Callable[[str], None], gpu: bool = False) -> str:
    """The level for a session: the one asked for, else the best. No box at all needs to be asked for by name, unless all that
    changes are literals of a train.py that its owner knows; then it is said aloud. Raises NotReady."""
    if asked is not None:
        if reason := problem(asked, gpu):
            raise NotReady(f"--sandbox {asked}: {reason}")
        if asked == NONE:
            say("sandbox: NONE, as asked: train.py and the researcher run with your rights, files and network")
        return asked
    level, reason = best(gpu)
    if level == NONE and not literals_only:
        raise NotReady(f"no sandbox on this machine: {reason}. Or go without, by name: --sandbox none")
    if reason:
        what = "NONE: train.py runs with your rights, files and network" if level == NONE else level
        say(f"sandbox: {what} ({reason})")
    return level


def _bubblewrap_problem() -> str:
    if platform.system() != "Linux":
        return "bubblewrap works on Linux alone"
    if shutil.which("bwrap") is None:
        return f"bubblewrap is not installed: {WAY_OUT}"
    box = Box(workdir=Path("/"))
    try:
        done = subprocess.run(_bubblewrap(box, ["true"]), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10)
    except subprocess.TimeoutExpired:
        return "bubblewrap did not answer in 10 s"
    if done.returncode == 0:
        return ""
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"bubblewrap can't work here ({last}): unprivileged user namespaces are forbidden, or it is older than 0.8"


def command(box: Box, words: Sequence[str], level: str) -> list[str]:
    """The command line that runs `words` inside the box."""
    if level == BUBBLEWRAP:
        return _bubblewrap(box, words)
    if level == LANDLOCK:
        read = [*SYSTEM, *interpreter(), *(f"/etc/{name}" for name in _etc(box)), *PROC, "/dev", *box.read]
        write = [*box.write, *(["/dev/shm"] if box.gpu is not None else [])]
        if box.gpu is not None:
            read.append("/sys")
            write += ["/proc", *(str(node) for node in gpu_nodes(box.gpu))]
        hidden = [str(path) for path in box.hidden]
        return landlock.command([str(p) for p in read], [str(p) for p in write], words, hidden, box.network)
    return list(words)


def _etc(box: Box) -> Iterable[str]:
    return (*ETC, *ETC_NETWORK) if box.network else ETC


def _bubblewrap(box: Box, words: Sequence[str]) -> list[str]:
    line = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    line += ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "box"]
    if box.network:
        line.append("--share-net")
    for path in map(Path, SYSTEM):
        if path.is_symlink():  # /bin -> usr/bin on merged systems
            line += ["--symlink", str(path.readlink()), str(path)]
        else:
            line += ["--ro-bind-try", str(path), str(path)]
    for name in _etc(box):
        line += ["--ro-bind-try", str(Path("/etc", name).resolve()), f"/etc/{name}"]
    line += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for place in interpreter():
        line += ["--ro-bind-try", place, place]
    if box.gpu is not None:
        line += ["--ro-bind", "/sys", "/sys"]
        for node in gpu_nodes(box.gpu):
            line += ["--dev-bind-try", str(node), str(node)]
    for path in box.read:
        line += ["--ro-bind", str(path), str(path)]
    for path in box.write:
        line += ["--bind", str(path), str(path)]
    for path in box.hidden:
        line += ["--tmpfs", str(path)] if path.is_dir() else ["--ro-bind-try", "/dev/null", str(path)]
    for name, value in box.environment.items():
        line += ["--setenv", name, value]
    return [*line, "--chdir", str(box.workdir), "--", *words]


def gpu_nodes(index: int) -> list[Path]:
    """The device nodes that a process needs for one GPU."""
    cards = [path for path in DEV.glob("nvidia[0-9]*")]
    own = [path for path in cards if path.name == f"nvidia{index}"]  # a container's one card can have any number
    return (own or cards) + [DEV / name for name in GPU_NODES if (DEV / name).exists()]


@functools.cache
def interpreter() -> tuple[str, ...]:
    """Where this Python, its packages, and the compilers that they start lie, outside the system's folders."""
    found = [Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_paths()["stdlib"]), Path(sys.executable).resolve().parent]
    outside = [path for path in [*found, *compilers()] if not any(path.is_relative_to(folder) for folder in SYSTEM)]
    places = {path for path in outside if not any(path != other and path.is_relative_to(other) for other in outside)}
    return tuple(sorted(map(str, places)))


def compilers() -> list[Path]:
    """Folders of the C and C++ compilers that torch.compile and Triton start: a toolchain lies beside its `bin`."""
    words = [word for name in ("CC", "CXX") for word in os.environ.get(name, "").split()]
    programs = [Path(found) for word in (*words, "gcc", "g++", "clang") if (found := shutil.which(word))]
    folders = [path.parent for program in programs for path in (program, program.resolve())]
    return [
        folder.parent if folder.name == "bin" and not Path.home().is_relative_to(folder.parent) else folder for folder in folders
    ]
