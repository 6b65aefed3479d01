"""What can end a command early: one type for each thing that a caller treats differently."""


class WrongCall(Exception):
    """The command line is wrong. Exit code 64."""


class NotReady(Exception):
    """The machine or the lab is not in a state to work; nothing was changed. Exit code 3."""


class Interrupted(Exception):
    """A person stopped the work; the next start goes on from here. Exit code 130."""


class Enough(Exception):
    """A limit that a person set is reached: the loop ends as after its last experiment. Exit code 0."""
