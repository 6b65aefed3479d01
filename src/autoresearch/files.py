"""Files that are whole whenever somebody reads them. Standard library only."""

import os
from pathlib import Path


def write_atomically(path: Path, data: str | bytes) -> None:
    """A reader sees the old file or the new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
