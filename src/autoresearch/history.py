"""`autoresearch history`: every settled experiment with what was expected of it, for people and for agents."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from autoresearch.brief import change
from autoresearch.journal import Experiment, Journal
from autoresearch.ledger import Ledger, summary
from autoresearch.results import CRASH, KEEP


def search(history: Iterable[Experiment], words: str) -> list[Experiment]:
    """The experiments in which every word stands: in what was tried, why, by whom, in which category, or how it ended."""
    wanted = words.lower().split()
    return [done for done in history if all(word in _text(done) for word in wanted)]


def _text(done: Experiment) -> str:
    crash = done.result.crash_class if done.result else ""
    settings = " ".join(f"{name} {value}" for name, value in (done.literals or {}).items()) if not done.baseline else ""
    return " ".join((done.description, done.hypothesis, done.researcher, done.category, done.status, crash, settings)).lower()


def as_dict(done: Experiment) -> dict[str, Any]:
    """One experiment for programs. `gain` is positive for a lower score, as `expected_gain` is."""
    return {
        "n": done.n,
        "session": done.session,
        "commit": done.commit,
        "status": done.status,
        "val_bpb": done.val_bpb,
        "runs": len(done.counted),
        "gain": -change(done) if done.val_bpb is not None and done.incumbent_bpb is not None else None,
        "crash_class": done.result.crash_class if done.result and done.status == CRASH else None,
        "stopped": done.result.crash_class if done.result and done.stopped else None,
        "memory_mb": done.result.memory_mb if done.result else None,
        "researcher": done.researcher,
        "description": done.description,
        "hypothesis": done.hypothesis,
        "expected_gain": done.expected_gain,
        "category": done.category,
        "settings": done.literals,
        "cost": {
            "seconds": done.proposal_seconds,
            "input_tokens": done.input_tokens,
            "output_tokens": done.output_tokens,
            "dollars": done.dollars,
        },
    }


def as_json(history: Sequence[Experiment]) -> str:
    return json.dumps([as_dict(done) for done in history], indent=2, ensure_ascii=False)


def as_text(history: Sequence[Experiment]) -> str:
    """One line each."""
    return "\n".join(map(_line, history)) if history else "no experiments"


def _line(done: Experiment) -> str:
    score = f"{done.val_bpb:.6f}" if done.val_bpb is not None else (done.result.crash_class if done.result else "") or "—"
    gain = f"{change(done):+.6f}" if done.val_bpb is not None and done.incumbent_bpb is not None else ""
    expected = f" (expected {-done.expected_gain:+.6f})" if done.expected_gain else ""
    return f"#{done.n:<4} {done.status:7} {score:9} {gain:9}{expected} {done.researcher}: {done.description}".rstrip()


def account(journal: Journal, ledger: Ledger, tag: str | None = None) -> list[str]:
    """Lines for the report: what the researchers of a session, or all, cost, and how their expectations compare with what came."""
    lines = summary([each for each in ledger.all() if tag in (None, each.session) and each.researcher != "search"])
    own = [done for done in journal.settled() if tag in (None, done.session) and done.expected_gain]
    expecting = [done for done in own if done.val_bpb is not None and done.incumbent_bpb is not None]
    if expecting:
        expected = sum(done.expected_gain or 0.0 for done in expecting) / len(expecting)
        came = sum(-change(done) for done in expecting) / len(expecting)
        gained = sum(change(done) < 0 for done in expecting)
        figures = f"{-expected:+.6f} and {-came:+.6f} on average, {gained} better than before"
        lines.append(f"Expected against measured, {len(expecting)} experiments: {figures}")
    return lines + noise_lines(journal.settled(), tag)


def newest_judged(history: Sequence[Experiment], tag: str | None = None) -> Experiment | None:
    """The newest whose judgement tells how far runs scatter."""
    judged = (done for done in reversed(history) if tag in (None, done.session) and done.judgement and done.judgement.get("sigma"))
    return next(judged, None)


def noise_lines(history: Sequence[Experiment], tag: str | None = None) -> list[str]:
    """How far runs scatter as far as is known, and on how many runs the keeps rest. Nothing where nothing was judged."""
    newest = newest_judged(history, tag)
    if newest is None or newest.judgement is None:
        return []
    sigma, measured = newest.judgement["sigma"], newest.judgement["measured"]
    source = f"{measured} repeats and a prior" if measured else "a prior, no repeat yet"
    same = [done for done in history if tag in (None, done.session) and done.fingerprint == newest.fingerprint]
    kept = Counter(len(done.scores) for done in same if done.status == KEEP)
    runs = ", ".join(f"{count} on {runs} run{'s' if runs > 1 else ''}" for runs, count in sorted(kept.items()))
    return [f"Noise: one run scatters by {sigma:.6f} val_bpb ({source}); kept: {runs or 'nothing'}"]
