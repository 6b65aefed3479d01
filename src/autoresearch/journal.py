""".autoresearch/: what a crash must not lose.

    lock                        held by the one process that may work in this lab, and who that is
    stop                        a wish that this process end after its experiment
    sessions/<tag>.json         what a session is; beside it its own copies of prepare.py and constants.py
    experiments.jsonl           one line for each settled experiment, in order
    experiments.index           what its lines come to in memory (`index.py`); may be deleted
    repeats.jsonl               one line for each run of a settled experiment that was made later, as an incumbent's
    verify.jsonl                one line for each run that was made to verify a gain
    asked.jsonl                 one line for each time a researcher was asked, with what it took
    ahead.json                  a proposal that was made while another experiment trained, until it is one itself
    runs/<n>/                   an experiment's folder: state.json, train.py, patch, brief, run.log, weights, ...

An experiment's state.json is replaced by rename at each stage. Whoever reads it after a crash knows what was done and goes on with
what is next. Of a settled experiment only what is asked of thousands at a time is held in memory: `Past`. Standard library only.
"""

import contextlib
import fcntl
import json
import marshal
import math
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from sys import intern
from threading import Thread
from typing import Any, cast

from autoresearch import owner
from autoresearch.errors import NotReady
from autoresearch.files import write_atomically
from autoresearch.index import read_indexed
from autoresearch.lab import Lab
from autoresearch.lines import append_line, iterate, line_at, newest_lines, read_lines

# The stages of an experiment, in order.
PROPOSED = "proposed"  # its train.py is in its folder
COMMITTED = "committed"  # and under refs/autoresearch/<session>/<n>
RUNNING = "running"
MEASURED = "measured"  # its result is known
JUDGED = "judged"  # kept, discarded or crashed; a kept one's commit has its score in its subject
RECORDED = "recorded"  # its row is in results.tsv
SETTLED = "settled"  # the branch is where it belongs
ABANDONED = "abandoned"  # a baseline that crashed: no experiment, no row
SCORED, CRASHED, TIMED_OUT = "scored", "crash", "timeout"
STOPPED = "stopped"  # early, because it was not worth its end


@dataclass(frozen=True, slots=True)
class RunResult:
    """All that came of one execution of train.py. Times in seconds, memory in MB of 2**20 bytes."""

    outcome: str  # scored, crash, timeout or stopped
    val_bpb: float | None = None
    memory_mb: float | None = None  # seen from outside where the run was refereed
    training_seconds: float | None = None
    startup_seconds: float | None = None  # from train.py's first import to the clock's start
    evaluation_seconds: float | None = None
    total_seconds: float | None = None  # from train.py's first import to its summary
    wall_seconds: float = 0.0  # from outside, start of the process to its end
    num_steps: int | None = None
    total_tokens_m: float | None = None
    num_params_m: float | None = None
    mfu_percent: float | None = None
    # oom, non-finite, shape, syntax, timeout, overtime, no-score, foul, audit, error; of a stopped one: blown-up, slow, behind
    crash_class: str = ""
    detail: str = ""  # the error's last line, cleaned and bounded; a candidate wrote it
    refereed: bool = False  # clock, data and score were the referee's; else train.py's own word
    sandbox: str = ""  # the level of the box that it ran in
    seed: int | None = None
    attention: str = ""  # the path that train.py said it took
    transport: str = ""  # how the logits came to the referee
    disturbed: str = ""  # what took the machine from it, if it counts nevertheless: it was the second try
    vault_bpb: float | None = None  # of held-out rows that no score in results.tsv is made of


@dataclass(frozen=True, slots=True)
class Experiment:
    n: int
    session: str
    stage: str
    description: str
    researcher: str
    fingerprint: str
    code_key: str
    parent: str  # the commit whose train.py it changes: the branch as it was when the proposal was asked for
    started: str  # ISO 8601, UTC
    commit: str | None = None
    seed: int = 0
    baseline: bool = False
    runs: tuple[RunResult, ...] = ()  # all that count, in order, each with a seed of its own
    result: RunResult | None = None  # of the last of them, whose weights lie in the folder
    status: str = ""  # keep, discard, crash; once judged
    incumbent_bpb: float | None = None  # what it was judged against
    literals: dict[str, Any] | None = None  # the ALL_CAPS literals of its train.py
    details: dict[str, Any] = field(default_factory=dict)  # what its researcher wants to find again
    hypothesis: str = ""  # of its researcher, in its words
    expected_gain: float | None = None  # bpb
    category: str = ""
    proposal_seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = 0.0  # None: nobody knows the price
    audit: dict[str, Any] | None = None  # what the audit of a would-be keep measured
    judgement: dict[str, Any] | None = None  # what the judge made of its runs: standing.Judgement
    overhead_seconds: float = 0.0  # the harness's own part: git, files, parsing
    settled: str = ""

    @property
    def counted(self) -> tuple[RunResult, ...]:
        """The runs that decide. Of an experiment from before there were repeats: its one run."""
        return self.runs or ((self.result,) if self.result else ())

    @property
    def scores(self) -> tuple[float, ...]:
        """val_bpb of each run that has one, in order."""
        return tuple(run.val_bpb for run in self.counted if run.val_bpb is not None)

    @property
    def val_bpb(self) -> float | None:
        """The mean of its runs; None unless every one of them was scored."""
        if len(self.runs) < 2:  # of thousands nearly all
            return self.result.val_bpb if self.result else None
        scores = self.scores
        return math.fsum(scores) / len(scores) if scores and len(scores) == len(self.counted) else None

    @property
    def stopped(self) -> bool:
        """Ended early: discarded without a score."""
        return self.result is not None and self.result.outcome == STOPPED

    @property
    def disturbed(self) -> str:
        """What took the machine from one of its runs that count; "" if nothing did."""
        return next((run.disturbed for run in self.counted if run.disturbed), "")

    @property
    def crash_class(self) -> str:
        """Why its last run gave no score; "" if it did, or there was none."""
        return self.result.crash_class if self.result else ""

    @property
    def verdict(self) -> str:
        """What the judge found: an outcome of standing.Judgement."""
        return str((self.judgement or {}).get("outcome", ""))

    def ran(self, result: RunResult) -> "Experiment":
        """With one more run that counts."""
        return replace(self, runs=(*self.counted, result), result=result)

    def refuted(self, result: RunResult) -> "Experiment":
        """With another result of its last run."""
        return replace(self, runs=(*self.counted[:-1], result), result=result)

    @classmethod
    def from_json(cls, text: bytes) -> "Experiment | None":
        """None for what a dying machine left half written."""
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, TypeError, AttributeError):
            return None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Experiment":
        kept = dict(data) if data.keys() <= FIELDS else {name: value for name, value in data.items() if name in FIELDS}
        told = kept.get("runs") or ()
        kept["runs"] = runs = tuple(map(result_from, told))
        if isinstance(kept.get("result"), dict):
            kept["result"] = runs[-1] if told and told[-1] == kept["result"] else result_from(kept["result"])
        return cls(**kept)


FIELDS = frozenset(each.name for each in fields(Experiment))
REQUIRED = frozenset(each.name for each in fields(Experiment) if each.default is MISSING and each.default_factory is MISSING)
FIELDS_OF_RESULT = frozenset(each.name for each in fields(RunResult))


def result_from(data: dict[str, Any]) -> RunResult:
    if data.keys() <= FIELDS_OF_RESULT:  # of thousands nearly all
        return RunResult(**data)
    return RunResult(**{name: value for name, value in data.items() if name in FIELDS_OF_RESULT})


def shared(word: Any) -> Any:
    """One object for all that are the same."""
    return intern(word) if isinstance(word, str) else word


PACKED = 2  # the version of Python's marshal: the newer ones look for objects that are there twice, and take twice as long
NAMES: dict[tuple[str, ...], tuple[str, ...]] = {}  # the names of literals, each set of them once


class Past:
    """A settled experiment as the journal holds it, in place of an Experiment: what is asked of thousands at a time is in memory,
    the rest is read from its line in experiments.jsonl whenever it is asked for. `Journal.wholes` reads all of all.

    Literals and details are packed, each experiment's in one piece, and made anew whenever they are asked for: as dicts they
    would take four times as much. The names of literals are one tuple for all experiments that have the same."""

    WORDS = ("session", "status", "fingerprint", "category", "crash_class", "verdict")  # one object for all that have the same
    VALUES = ("n", "code_key", "commit", "baseline", "incumbent_bpb", "expected_gain", "val_bpb")
    STORED = (*WORDS, *VALUES, "_names", "_literals", "_details", "_scores", "_at")
    FORM = f"1 {' '.join(STORED)}"  # of the index: another number where the same fields come to hold something else
    __slots__ = (*STORED, "_path")

    def __init__(self, data: dict[str, Any], path: Path, at: int) -> None:
        """`data`: what its line holds, the one at this place of the file. No Experiment is made of it: that takes nearly as
        long as to parse the line. Raises KeyError where a field is missing."""
        if not REQUIRED <= data.keys():
            raise KeyError(*(REQUIRED - data.keys()))
        get, result = data.get, data.get("result") or {}
        self.session, self.fingerprint = shared(data["session"]), shared(data["fingerprint"])
        self.status, self.category = shared(get("status", "")), shared(get("category", ""))
        self.crash_class, self.verdict = shared(result.get("crash_class", "")), shared((get("judgement") or {}).get("outcome", ""))
        self.n, self.code_key, self.commit, self.baseline = data["n"], data["code_key"], get("commit"), get("baseline", False)
        self.incumbent_bpb, self.expected_gain = get("incumbent_bpb"), get("expected_gain")
        self.val_bpb, self._scores = result.get("val_bpb"), None
        if len(get("runs") or ()) > 1:
            several = Experiment.from_dict(data)
            self.val_bpb, self._scores = several.val_bpb, several.scores
        self._at, self._path = at, path
        literals, details = get("literals"), get("details")
        names = None if literals is None else tuple(literals)
        self._names = names and NAMES.setdefault(names, names)
        self._literals = marshal.dumps(tuple((literals or {}).values()), PACKED)
        self._details = marshal.dumps(details, PACKED) if details else b""

    def pack(self) -> list[Any]:
        """All that it holds, for the index of its file."""
        return [getattr(self, name) for name in self.STORED]

    @classmethod
    def unpack(cls, path: Path, packed: list[Any]) -> "Past":
        past = cls.__new__(cls)
        for name, value in zip(cls.STORED, packed, strict=True):
            setattr(past, name, value)
        past._names, past._path = past._names and NAMES.setdefault(past._names, past._names), path
        return past

    def __getattr__(self, name: str) -> Any:
        """Called for what is not in memory."""
        return getattr(self.whole, name)

    @property
    def scores(self) -> tuple[float, ...]:
        if self._scores is not None:
            return self._scores
        return () if self.val_bpb is None else (self.val_bpb,)

    @property
    def literals(self) -> dict[str, Any] | None:
        return None if self._names is None else dict(zip(self._names, marshal.loads(self._literals), strict=True))

    @property
    def details(self) -> dict[str, Any]:
        return marshal.loads(self._details) if self._details else {}

    @property
    def whole(self) -> Experiment:
        with contextlib.suppress(OSError):
            found = Experiment.from_json(line_at(self._path, self._at))
            if found and found.n == self.n:
                return found
        raise NotReady(f"{self._path} was changed while it was in use (experiment {self.n} is not where it was): start again")


@dataclass(frozen=True)
class SessionRecord:
    """What a session is, kept across starts of the loop."""

    tag: str
    branch: str
    base: str | None  # the branch it was made from, to merge into
    started: str
    title: str = ""
    fingerprint: str = ""
    parts: dict[str, str] | None = None
    profile: str = ""  # set once `setup` has fitted the lab; "" until then


class Journal:
    def __init__(self, lab: Lab) -> None:
        self.root = lab.journal
        self._lines = self.root / "experiments.jsonl"
        self._settled: list[Experiment] | None = None
        self._reader: Thread | None = None
        self._repeats: dict[int, list[RunResult]] | None = None

    # -- one process at a time -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, loop: bool = False) -> Iterator[None]:
        """The lab is ours until the block ends, or the process dies. Raises NotReady if another has it. `loop`: we heed `stop`."""
        self.create()
        try:
            file = (self.root / "lock").open("a+")
        except OSError as error:
            raise NotReady(f"{self.root} can't be written ({error.strerror}): give it back its write permission or space") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                other = owner.read(self.root / "lock")
                who = f"process {other.pid if other else 'unknown'}"
                raise NotReady(f"another autoresearch works in {self.root.parent} ({who}): wait for it or stop it") from None
            file.truncate(0)
            file.write(owner.me(loop).line())
            file.flush()
            yield
            (self.root / "stop").unlink(missing_ok=True)

    def at_work(self) -> owner.Owner | None:
        """The process that works here, if one does."""
        return owner.living(self.root / "lock")

    def ask_to_stop(self, whom: owner.Owner) -> None:
        write_atomically(self.root / "stop", whom.line())

    def is_asked_to_stop(self, whom: owner.Owner) -> bool:
        return whom.is_same(owner.read(self.root / "stop"))

    def create(self) -> None:
        """The folder, hidden from git by a file of its own. Raises NotReady where nothing can be written."""
        try:
            self.root.mkdir(exist_ok=True)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise NotReady(
                f"{self.root.parent} can't be written ({error.strerror}): give it back its write permission or space"
            ) from None

    # -- sessions ------------------------------------------------------------------------------------------------

    def session_folder(self, tag: str) -> Path:
        return self.root / "sessions" / tag

    def session(self, tag: str) -> SessionRecord | None:
        try:
            data = json.loads((self.session_folder(tag) / "session.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        known = {each.name for each in fields(SessionRecord)}
        return SessionRecord(**{name: value for name, value in data.items() if name in known})

    def save_session(self, record: SessionRecord) -> None:
        self.create()
        write_atomically(self.session_folder(record.tag) / "session.json", json.dumps(asdict(record), indent=1) + "\n")

    # -- experiments ---------------------------------------------------------------------------------------------

    @property
    def by_hand(self) -> Path:
        """The folder of a run that is no experiment."""
        return self.root / "scratch" / "run"

    @property
    def aside(self) -> Path:
        """Where train.py is run beside the experiments: an incumbent once more, or to verify it."""
        return self.root / "scratch" / "again"

    def folder(self, n: int) -> Path:
        return self.root / "runs" / str(n)

    def _last(self) -> int:
        """The number of the newest settled experiment, as a rule without reading those before it."""
        done = self.newest(1) or self.settled()  # none is there, or the last line is damaged
        return done[-1].n if done else 0

    def next_number(self) -> int:
        """One more than any experiment that was ever begun here."""
        last = self._last()
        while self.folder(last + 1).exists():
            last += 1
        return last + 1

    def save(self, experiment: Experiment, **changes: Any) -> Experiment:
        """Replace the experiment's state; returns it with the changes."""
        experiment = replace(experiment, **changes)
        write_atomically(self.folder(experiment.n) / "state.json", json.dumps(asdict(experiment), indent=1) + "\n")
        return experiment

    def read_ahead(self) -> None:
        """Begin to read all experiments, while others are waited for: of thousands that takes a part of a second."""

        def read() -> None:
            with contextlib.suppress(OSError):  # whoever asks for them meets it again
                self._read()

        self._reader = Thread(target=read, daemon=True)
        self._reader.start()

    def settled(self) -> list[Experiment]:
        """Every experiment that came to its end, oldest first."""
        if self._reader:
            self._reader.join()
            self._reader = None
        return self._read() if self._settled is None else self._settled

    def _read(self) -> list[Experiment]:
        # One whose line was cut, if of its newline alone, is written again by `unfinished`.
        index, unpack = self.root / "experiments.index", partial(Past.unpack, self._lines)
        found = read_indexed(self._lines, index, self._past, Past.pack, unpack, Past.FORM)
        self._settled = cast(list[Experiment], found)
        return self._settled

    def _past(self, data: dict[str, Any], at: int) -> Past:
        return Past(data, self._lines, at)

    def wholes(self) -> Iterator[Experiment]:
        """The same with all that is known of each, read one by one."""
        return iterate(self._lines, Experiment.from_dict)

    def numbers(self, tag: str | None = None) -> dict[str, int]:
        """Each settled experiment's number by its commit as results.tsv has it; of one session or of all."""
        return {(done.commit or "")[:7]: done.n for done in self.settled() if tag in (None, done.session)}

    def settle(self, experiment: Experiment, **changes: Any) -> Experiment:
        """The experiment's last step. May be repeated."""
        experiment = self.save(experiment, stage=SETTLED, **changes)
        if not any(done.n == experiment.n for done in reversed(self.settled())):
            data = asdict(experiment)
            self.settled().append(cast(Experiment, self._past(data, append_line(self._lines, data))))
        return experiment

    def repeats(self, n: int) -> list[RunResult]:
        """The runs of a settled experiment that were made after it, in order."""
        if self._repeats is None:
            self._repeats = {}
            for number, result in read_lines(self.root / "repeats.jsonl", lambda data: (data["n"], result_from(data["result"]))):
                self._repeats.setdefault(number, []).append(result)
        return self._repeats.get(n, [])

    def add_repeat(self, n: int, result: RunResult) -> None:
        self.repeats(n)
        append_line(self.root / "repeats.jsonl", {"n": n, "result": asdict(result)})
        assert self._repeats is not None
        self._repeats.setdefault(n, []).append(result)

    def newest(self, count: int) -> list[Experiment]:
        """The last settled experiments, oldest first, without reading those before them."""
        return newest_lines(self._lines, count, Experiment.from_dict)

    def current(self) -> tuple[Experiment, float] | None:
        """The experiment that is being worked on, or was left behind, and when it came to its stage (seconds since 1970). For
        onlookers: `unfinished` is for whoever holds the lock."""
        n, found = self._last(), None
        while self.folder(n + 1).exists():
            n += 1
            state = self.folder(n) / "state.json"
            with contextlib.suppress(OSError):
                experiment, since = Experiment.from_json(state.read_bytes()), state.stat().st_mtime
                if experiment and experiment.stage not in (SETTLED, ABANDONED):
                    found = experiment, since
        return found

    def unfinished(self) -> Experiment | None:
        """The experiment that a process left behind, if any: at most one, begun after all settled ones."""
        n = self._last()
        while self.folder(n + 1).exists():
            n += 1
            state = self.folder(n) / "state.json"
            experiment = Experiment.from_json(state.read_bytes()) if state.exists() else None
            if experiment is None:
                continue  # the process died before the first state was written
            if experiment.stage == SETTLED:
                self.settle(experiment)  # its line in experiments.jsonl is missing or was cut
            elif experiment.stage != ABANDONED:
                return experiment
        return None
