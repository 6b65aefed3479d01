"""Words for a person, on stderr. Standard library only."""

import os
import sys


def tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        leave()


def leave() -> None:
    """The terminal was closed, or what read from us has ended: the work goes on and is told to nobody."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, 2)
    os.close(nobody)
