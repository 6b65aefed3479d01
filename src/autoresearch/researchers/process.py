"""A researcher's process: started in a box, on a leash, watched, and ended with all that it started.

What it gets: its scratch folder, a home folder made for this one call with copies of the login files that its adapter names, the
network, and the environment variables that its adapter names. Nothing else of the machine beyond the system's own folders and the
program's installation exists for it (see sandbox.py for the levels; where there is no sandbox, the rest holds). A login that it
renews is copied back, if nobody else has changed it meanwhile.

Not covered: what it sends over the network, which it needs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from autoresearch.errors import Interrupted, NotReady
from autoresearch.experiment import sandbox
from autoresearch.files import write_atomically
from autoresearch.processes import end_marked
from autoresearch.researchers import ResearcherFailed

FLOOD = 256 * 2**20  # bytes of output that end it: it would fill the disk
LOGIN_LIMIT = 2**20  # bytes of a login file
MAX_PATH = 4096  # characters; a longer word is no path
POLL_SECONDS = 0.2
MARK = "AUTORESEARCH_RESEARCHER"  # in the environment of everything that it starts
# What any program needs to run, speak and reach the network.
PASSED = (
    *("PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
)


@dataclass(frozen=True)
class Launch:
    """One call of a program."""

    name: str  # of the researcher, for messages
    words: Sequence[str]
    scratch: Path  # its working folder, and the one that it may change
    log: Path  # what it prints
    time_limit: float  # seconds
    should_stop: Callable[[], bool] | None = None
    variables: Sequence[str] = ()  # names: passed on if they are set
    settings: Mapping[str, str] = field(default_factory=dict)  # further variables, with their values
    logins: Sequence[str] = ()  # files of the home folder that are copied in, and back when they were renewed
    home_files: Mapping[str, str] = field(default_factory=dict)  # files made in its home: name and text
    stdin: Path | None = None
    boxed: bool = True  # False: the caller's own environment and files
    level: str = ""  # of its sandbox; "": the best of this machine

    @property
    def home(self) -> Path:
        return self.scratch.parent / "home"


def run(launch: Launch) -> int:
    """Its exit code. Raises ResearcherFailed for a time-out or a flood, Interrupted if a person stops it."""
    with launch.log.open("wb") as out, _input(launch) as stdin, started(launch, stdin, out, out) as process:
        deadline = time.monotonic() + launch.time_limit
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=POLL_SECONDS)
            if launch.should_stop and launch.should_stop():
                raise Interrupted("stopped while the researcher was thinking")
            if time.monotonic() > deadline:
                raise too_slow(launch)
            if launch.log.stat().st_size > FLOOD:
                raise ResearcherFailed(f"'{launch.name}' printed over {FLOOD // 2**20} MB: its answer is one line")


def too_slow(launch: Launch) -> ResearcherFailed:
    return ResearcherFailed(f"'{launch.name}' gave no answer in {launch.time_limit:g} s (--researcher-timeout)")


def _input(launch: Launch) -> IO[bytes]:
    return (launch.stdin or Path(os.devnull)).open("rb")


@contextlib.contextmanager
def started(launch: Launch, stdin: Any, stdout: Any, stderr: Any) -> "Iterator[subprocess.Popen[bytes]]":
    """The process on its leash; when the block ends, it and all that it started is gone. Raises NotReady if it can't be started."""
    environment = dict(os.environ)
    words = list(launch.words)
    copies: dict[Path, bytes] = {}
    if launch.boxed:
        copies = _make_home(launch)
        environment = environment_of(launch)
    environment[MARK] = str(launch.scratch)
    if launch.boxed:
        words = sandbox.command(_box(launch, environment), words, launch.level or sandbox.best()[0])
    ours, theirs = socket.socketpair()
    leash = [sys.executable, "-I", "-S", "-B", str(Path(__file__).with_name("leash.py")), str(theirs.fileno()), *words]
    with ours:
        with theirs:
            process = subprocess.Popen(
                leash,
                cwd=launch.scratch,
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            yield process
            if process.poll() is not None and (reason := ours.recv(4096)):
                raise NotReady(reason.decode(errors="replace"))
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            end_left_over(launch.scratch)
            _keep_logins(launch, copies)


def end_left_over(scratch: Path) -> None:
    """Kill what still lives of a researcher of this scratch folder, in whatever process group."""
    end_marked(f"{MARK}={scratch}")


# -- what it gets ----------------------------------------------------------------------------------------------------


def environment_of(launch: Launch) -> dict[str, str]:
    """All the variables that it sees."""
    passed = {name: os.environ[name] for name in (*PASSED, *launch.variables) if name in os.environ}
    home = str(launch.home)
    own = {"HOME": home, "TMPDIR": f"{home}/tmp", "XDG_CACHE_HOME": f"{home}/.cache", "TERM": "dumb", "NO_COLOR": "1"}
    return passed | own | dict(launch.settings)


def _make_home(launch: Launch) -> dict[Path, bytes]:
    """Its home folder. Returns the login files that were copied, by their place in the real home."""
    shutil.rmtree(launch.home, ignore_errors=True)
    (launch.home / "tmp").mkdir(parents=True)
    copies = {}
    for name in launch.logins:
        place = Path.home() / name
        if place.is_file() and place.stat().st_size <= LOGIN_LIMIT:
            copies[place] = place.read_bytes()
            _private(launch.home / name, copies[place])
    for name, text in launch.home_files.items():
        _private(launch.home / name, text.encode())
    return copies


def _private(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(data)


def _keep_logins(launch: Launch, copies: Mapping[Path, bytes]) -> None:
    """A renewed token goes back to where it came from: the old one may not work again."""
    for place, before in copies.items():
        renewed = launch.home / place.relative_to(Path.home())
        led_away = renewed.resolve() != launch.home.resolve() / place.relative_to(Path.home())  # by a link to a file of ours
        if led_away or not renewed.is_file() or renewed.stat().st_size > LOGIN_LIMIT:
            continue
        after = renewed.read_bytes()
        if after != before and after.strip() and place.is_file() and place.read_bytes() == before:
            mode = place.stat().st_mode & 0o777
            write_atomically(place, after)
            place.chmod(mode)
    if launch.boxed:
        shutil.rmtree(launch.home, ignore_errors=True)


def _box(launch: Launch, environment: Mapping[str, str]) -> sandbox.Box:
    write = (launch.scratch, launch.home)
    certificates = [Path(environment[name]) for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS") if name in environment]
    named = [Path(word) for word in launch.words[1:] if word.startswith("/") and len(word) < MAX_PATH]  # a script of a person's own
    read = (*installation(launch.words[0]), *(path for path in (*certificates, *named) if path.exists()))
    return sandbox.Box(workdir=launch.scratch, read=read, write=write, environment=environment, network=True)


def installation(program: str) -> tuple[Path, ...]:
    """The folders outside the system's own that a program needs: its own, its environment's, its interpreter's."""
    found = shutil.which(program)
    if found is None:
        return ()
    places = [place for step in _links(Path(found).absolute()) for place in _around(step)]
    if interpreter := _interpreter(Path(found)):
        places += installation(interpreter)
    system = [Path(folder) for folder in sandbox.SYSTEM]
    outside = {place for place in places if not any(place.is_relative_to(folder) for folder in system)}
    return tuple(sorted(place for place in outside if not any(place != other and place.is_relative_to(other) for other in outside)))


def _links(path: Path) -> Iterator[Path]:
    """A path and what it leads to, link by link."""
    for _ in range(20):
        yield path
        if not path.is_symlink():
            break
        path = Path(os.path.normpath(path.parent / path.readlink()))
    yield path.resolve()


def _around(path: Path) -> Iterator[Path]:
    """What belongs to one executable file: its npm tree, its Python environment, else its own folder."""
    parts = path.parts
    if "node_modules" in parts:
        yield Path(*parts[: parts.index("node_modules") + 1])
    elif path.parent.name == "bin" and any(
        (path.parent.parent / mark).exists() for mark in ("pyvenv.cfg", "lib/node_modules", "lib")
    ):
        prefix = path.parent.parent
        # ~/.local has a `lib` too, and everything else of a person beside it.
        yield from (prefix / part for part in ("bin", "lib", "lib64", "include", "share", "pyvenv.cfg") if (prefix / part).exists())
    else:
        yield path


def _interpreter(path: Path) -> str:
    """The program in a script's first line; '' for anything else."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        first = file.readline(256)
        if first.startswith(b"#!"):
            words = first[2:].decode(errors="replace").split()
            if words and Path(words[0]).name == "env":
                words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
            return words[0] if words else ""
    return ""
