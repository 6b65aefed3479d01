"""Several researchers that take turns, each by its share: `search:0.7,claude:0.3`.

Whose turn it is follows from how often each was asked in this session: the one that is furthest behind its share. So a session that
was stopped goes on as if it had not been, and one that fails does not keep the others from their turns. All see the same history.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoresearch.researchers import Researcher


@dataclass(frozen=True)
class Member:
    researcher: Researcher
    share: float  # of the turns; the shares need not add up to 1


@dataclass(frozen=True)
class Team:
    members: Sequence[Member]

    @property
    def name(self) -> str:
        return ",".join(each.researcher.name for each in self.members)

    def turn(self, asked: Mapping[str, int]) -> Researcher:
        """Whose turn it is. `asked`: how often each was asked so far, by name."""
        whole = sum(each.share for each in self.members)
        total = 1 + sum(asked.get(each.researcher.name, 0) for each in self.members)

        def behind(member: Member) -> float:
            return total * member.share / whole - asked.get(member.researcher.name, 0)

        return max(self.members, key=behind).researcher
