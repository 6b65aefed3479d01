"""Runs a command that ends with us: `python -I leash.py SOCKET COMMAND...`.

The other end of the socket is the loop's. When the loop dies, by whatever, the socket closes, and this process kills its own
process group: kill -9 leaves no agent that goes on spending money. A command that can't be started is told through the socket.
Standard library alone, and few of its modules, since it starts before every proposal.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def hold(socket: int) -> None:
    """Until the loop is gone; it never writes."""
    os.read(socket, 1)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    socket, words = int(sys.argv[1]), sys.argv[2:]
    try:
        child = subprocess.Popen(words)
    except OSError as error:
        os.write(socket, f"{error.filename or words[0]}: {error.strerror}".encode())
        return 127
    threading.Thread(target=hold, args=(socket,), daemon=True).start()
    code = child.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        with contextlib.suppress(OSError):
            os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main() & 0xFF)
