"""Where a proposal is asked for: whose turn it is, patience with a busy service, and the bill.

A rate limit or an overload is waited out, with a word on until when; it never counts against the researcher, nor makes a row.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from autoresearch.errors import Enough, Interrupted
from autoresearch.ledger import FAILED, PROPOSED, Asked, Ledger, Limits
from autoresearch.researchers import Busy, Context, Cost, Proposal, Researcher, ResearcherFailed, Unreachable
from autoresearch.researchers.team import Team
from autoresearch.setup import now

FIRST_WAIT, LONGEST_WAIT = 30.0, 1800.0  # seconds; doubled each time: a limit by the minute, and one by the day
LEAST_ASKED, LONGEST_ASKED = 1.0, 6 * 3600.0  # seconds that a service may ask for at once; then it is asked again
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Answered:
    """A proposal, whose it is, and what it answered to."""

    proposal: Proposal
    researcher: str
    source: str  # the train.py that it changes
    brief: str


class Desk:
    def __init__(
        self,
        team: Team,
        ledger: Ledger,
        session: str,
        limits: Limits,
        say: Callable[[str], None],
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """`leaving`: whether a person wants the loop to end after what it is doing; a wait is nothing to be finished."""
        self.team, self.ledger, self.session, self.limits, self.say = team, ledger, session, limits, say
        self.leaving = leaving
        self.begun_with = len(ledger.all())
        self.last: Researcher | None = None  # who was asked last
        self.owed = False  # whether its answer went stale through no fault of its own, so that it is its turn again

    def turn(self) -> Researcher:
        return self.team.turn(self.ledger.counts(self.session))

    def check_time(self) -> None:
        """Raises Enough. Before an experiment: one whose proposal is paid for is run whatever the money that is left."""
        self.limits.check_time(time.monotonic())

    def check_limits(self) -> None:
        """Raises Enough, or NotReady."""
        self.limits.check(self.ledger.all()[self.begun_with :], time.monotonic())

    def ask(self, context: Context, again: bool = False) -> Answered:
        """A proposal by whose turn it is, or by the same one again. Raises as `Researcher.propose` does, but never Busy; Enough
        where a limit is reached meanwhile."""
        self.last = researcher = self.last if (again or self.owed) and self.last else self.turn()
        self.owed = False
        context.log.unlink(missing_ok=True)
        wait = FIRST_WAIT
        while True:
            self.check_limits()
            began = time.monotonic()
            try:
                proposal = researcher.propose(context)
            except (Busy, ResearcherFailed) as failure:
                away = isinstance(failure, Unreachable) and self._has_answered(researcher.name)  # the network, for a while
                if isinstance(failure, ResearcherFailed) and not away:
                    self._book(researcher.name, FAILED, replace(failure.cost, seconds=time.monotonic() - began))
                    raise
                self._wait(failure, wait, context)
                wait = min(2 * wait, LONGEST_WAIT)
                continue
            cost = replace(proposal.cost, seconds=time.monotonic() - began)
            self._book(researcher.name, PROPOSED, cost)
            return Answered(replace(proposal, cost=cost), researcher.name, context.source, context.brief)

    def _has_answered(self, name: str) -> bool:
        return any(each.researcher == name and each.outcome == PROPOSED for each in self.ledger.all())

    def _book(self, name: str, outcome: str, cost: Cost) -> None:
        self.ledger.add(
            Asked(self.session, name, now(), outcome, cost.seconds, cost.input_tokens, cost.output_tokens, cost.dollars)
        )

    def _wait(self, busy: Busy | ResearcherFailed, ours: float, context: Context) -> None:
        seconds = seconds_to_wait(busy, ours)
        until = datetime.now().astimezone() + timedelta(seconds=seconds)
        self.say(f"{busy}: waiting until {until:%H:%M:%S}")
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if context.should_stop and context.should_stop():
                raise Interrupted("stopped while the researcher's service was busy")
            if self.leaving():
                raise Enough("stopped while the researcher's service was busy")
            self.check_limits()
            time.sleep(min(left, POLL_SECONDS))


def seconds_to_wait(busy: Busy | ResearcherFailed, ours: float) -> float:
    """What the service asked for, within reason; else what we think."""
    if not isinstance(busy, Busy) or busy.wait is None:
        return ours
    return min(max(busy.wait, LEAST_ASKED), LONGEST_ASKED)
