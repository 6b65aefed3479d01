"""The next proposal, asked for while an experiment trains, so that the GPU does not wait for a researcher's thoughts.

It is asked on the assumption that the incumbent stays, which five times out of six is so. If the incumbent has changed when the
answer is needed, the proposal's patch is merged into the new one, as git merges; settings on neighbouring lines,
where git gives up, are merged by name. Where neither applies, it is asked for again. An answer is on disk as soon as it is there:
whoever is killed then finds it again.

It works in a thread: an agent is a process, a model's answer comes over the network, both leave this process idle. Search needs
0.1 s of a CPU that the run may be using, and is not asked ahead.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from autoresearch.desk import Answered, Desk
from autoresearch.files import write_atomically
from autoresearch.literals import set_literals, values
from autoresearch.researchers import Context, Cost, Proposal

Merge = Callable[[str, str, str], str | None]  # (ours, base, theirs) -> merged text, None for a conflict
PATIENCE = 0.2  # seconds between two looks at whether a person wants to stop


class Ahead:
    def __init__(self, desk: Desk, file: Path, merge: Merge, should_stop: Callable[[], bool], enabled: bool = True) -> None:
        self.desk, self.file, self.merge, self.enabled = desk, file, merge, enabled
        self._should_stop, self._halted = should_stop, False
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def start(self, context: Callable[[], Context]) -> None:
        """Ask for the next proposal beside what is done meanwhile. Nothing happens if whose turn it is answers at once anyway."""
        if not self.enabled or self.file.exists() or not self.desk.turn().thinks:
            return
        asked = replace(context(), should_stop=lambda: self._halted or self._should_stop())
        self._failure = None
        self._thread = threading.Thread(target=self._ask, args=(asked,), name="ahead")
        self._thread.start()

    def _ask(self, context: Context) -> None:
        try:
            _write(self.file, self.desk.session, self.desk.ask(context))
        except Exception as failure:  # of whatever kind: it is raised where the answer is taken
            self._failure = failure

    def take(self, source: str) -> Answered | None:
        """The answer, as a change of `source`; None if there is none, or it doesn't apply. Raises what asking for it raised."""
        self._join()
        if failure := self._failure:
            self._failure = None
            raise failure
        answered = _read(self.file, self.desk)
        if answered is None or answered.source == source:
            return answered
        versions = (source, answered.source, answered.proposal.source)
        merged = self.merge(*versions) or merge_settings(*versions)
        if merged is None or merged == source:
            self.desk.say("the proposal made meanwhile does not fit the new incumbent: asking again")
            self.desk.owed = True
            self.clear()
            return None
        carried = replace(answered.proposal, source=merged, details={**answered.proposal.details, "carried_over": True})
        return replace(answered, proposal=carried, source=source)

    def clear(self) -> None:
        """The answer is used, or of no use."""
        self.file.unlink(missing_ok=True)

    def stop(self) -> None:
        """End what is still being thought; an answer that is there stays for the next start."""
        self._halted = True
        self._join()

    def _join(self) -> None:
        while self._thread and self._thread.is_alive():
            self._thread.join(PATIENCE)
        self._thread = None


def merge_settings(ours: str, base: str, theirs: str) -> str | None:
    """`ours` with the literals that `theirs` changed in `base`; None if it changed anything else, or they were changed here too."""
    try:
        before, after, here = values(base), values(theirs), values(ours)
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        if set_literals(base, changed) != theirs or any(here[name] != before[name] for name in changed):
            return None
        return set_literals(ours, changed)
    except (SyntaxError, KeyError):
        return None


def _write(file: Path, session: str, answered: Answered) -> None:
    write_atomically(file, json.dumps({"session": session, **asdict(answered)}))


def _read(file: Path, desk: Desk) -> Answered | None:
    """What lies there, if it is of this session and by one who still takes part."""
    try:
        data = json.loads(file.read_bytes())
        proposal = data.pop("proposal")
        cost = Cost(**proposal.pop("cost"))
        session = data.pop("session")
        answered = Answered(Proposal(**proposal, cost=cost), **data)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        file.unlink(missing_ok=True)
        return None
    names = [member.researcher.name for member in desk.team.members]
    if session != desk.session or answered.researcher not in names:
        file.unlink()
        return None
    return answered
