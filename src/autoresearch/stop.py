"""How a person ends the loop: Ctrl-C, a signal, or `autoresearch stop` in another terminal."""

import contextlib
import signal
from collections.abc import Callable
from types import FrameType

from autoresearch.view import View


class Stop:
    """Ctrl-C once, or `autoresearch stop`: finish this experiment. Ctrl-C twice, or SIGTERM: stop now; the next start goes on from
    here."""

    def __init__(self, view: View, asked_elsewhere: Callable[[], bool] = lambda: False) -> None:
        self.now = self._interrupted = False
        self.view, self._asked_elsewhere = view, asked_elsewhere
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._terminate)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` is meant
            signal.signal(signal.SIGHUP, self._terminate)

    @property
    def asked(self) -> bool:
        return self._interrupted or self._asked_elsewhere()

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.now, self._interrupted = self._interrupted, True
        if not self.now:
            with contextlib.suppress(RuntimeError):  # it came in the middle of another line
                self.view.say("stopping after this experiment; Ctrl-C again stops at once and loses nothing")

    def _terminate(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = self.now = True
