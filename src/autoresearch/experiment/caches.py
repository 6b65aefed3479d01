"""Compile caches that outlive a run and carry nothing of its data to the next.

    <caches>/live        what the one run at work reads and writes; always at this path, since caches hold paths
    <caches>/snapshot    what a run begins with
    <run>/caches         the live folder as it was when the run said `start`, before any data was there

A run's own snapshot becomes the next ones' only when its train.py was kept: what a rejected one compiled is forgotten. The copies
are made outside the sandbox, of a folder that somebody untrusted writes at the same time: no link is followed and nothing but plain
files is taken.
"""

import contextlib
import os
import shutil
import stat
from pathlib import Path

LIVE, SNAPSHOT = "live", "snapshot"
MAX_BYTES = 4 * 2**30  # a cold compile of the full profile leaves about 100 MB
MAX_FILES = 100_000


def lay_out(caches: Path, begin_with: Path | None = None) -> Path:
    """The live folder, filled with the snapshot (or another one)."""
    live = caches / LIVE
    shutil.rmtree(live, ignore_errors=True)
    copy(begin_with or caches / SNAPSHOT, live)
    return live


def adopt(own: Path, caches: Path) -> None:
    """What a run compiled before it saw data is what later runs begin with. May be repeated after a kill."""
    if own.is_dir():
        shutil.rmtree(caches / SNAPSHOT, ignore_errors=True)
        caches.mkdir(parents=True, exist_ok=True)
        own.replace(caches / SNAPSHOT)


def is_warm(caches: Path) -> bool:
    return any((caches / SNAPSHOT).glob("*/*"))


def copy(source: Path, target: Path) -> None:
    """Plain files and folders of `source`, as far as they can be read and the limits go."""
    target.mkdir(parents=True, exist_ok=True)
    left, files = MAX_BYTES, MAX_FILES
    if not source.is_dir():
        return
    for root, folders, names, folder in os.fwalk(source, follow_symlinks=False):
        here = target / Path(root).relative_to(source)
        for name in list(folders):
            try:
                (here / name).mkdir(exist_ok=True)
            except OSError:  # nested too deeply, or something else of that name: left out
                folders.remove(name)
        files -= len(folders)
        for name in names:
            with contextlib.suppress(OSError):
                left -= _copy_file(name, folder, here / name, left)
                files -= 1
            if left <= 0 or files <= 0:
                return


def _copy_file(name: str, folder: int, target: Path, limit: int) -> int:
    """Bytes that were copied."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            return 0
        with target.open("wb") as out:
            shutil.copyfileobj(file, out, 2**20)
        return found.st_size
