"""What a model service's error means for the loop: end, wait, or try again.

Read are error messages alone, never what a model says: those words are not ours to be led by.
"""

import re

from autoresearch.errors import NotReady
from autoresearch.researchers import Busy, Cost, ResearcherFailed, Unreachable
from autoresearch.results import clean

SHOWN = 200  # characters of a message

NO_ACCESS = re.compile(
    r"\b40[123]\b|unauthori[sz]ed|unauthenticated|authenticat|permission_denied|not logged in|please (run )?/?log ?in"
    r"|login required|\b(invalid|incorrect|missing|no|expired)\W{0,3}(\w+\W){0,2}(api[ _-]?key|credentials?|token)\b"
    r"|api[ _-]?key\W{0,3}(\w+\W){0,4}(missing|required|invalid|not (set|found|valid))"
    r"|insufficient_quota|credit balance|out of credits?|billing|payment required",
    re.IGNORECASE,
)
OVERLOAD = re.compile(
    r"\b429\b|\b5(00|02|03|04|20|22|24|29)\b|rate.?limit|too many requests|overloaded|resource.?exhausted|usage limit|quota"
    r"|server.?error|service unavailable|temporarily unavailable|bad gateway",
    re.IGNORECASE,
)
AWAY = re.compile(
    r"ECONN(REFUSED|RESET)|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|getaddrinfo|fetch failed|error sending request"
    r"|connection (error|refused|reset)|connectionerror|network (error|is unreachable)|unable to connect|could not resolve",
    re.IGNORECASE,
)
WAIT = re.compile(
    r"(?:retry|try again|reset)\D{0,24}?(\d+(?:\.\d+)?)\s*(ms|milliseconds?|seconds?|secs?|s|minutes?|mins?|m|hours?|h)?\b",
    re.IGNORECASE,
)
UNITS = {"m": 60.0, "h": 3600.0}


def fault(name: str, message: str, cost: Cost = Cost(), way_out: str = "") -> Exception:  # noqa: B008 - frozen
    """The exception for `message`, which researcher `name` gave. `way_out`: how to log in."""
    told = clean(message)[:SHOWN] or "no reason given"
    if NO_ACCESS.search(message):
        hint = f": {way_out}" if way_out else ""
        return NotReady(f"'{name}' has no access to its model ({told}){hint}")
    if OVERLOAD.search(message):
        return Busy(f"'{name}': {told}", wait(message))
    kind = Unreachable if AWAY.search(message) else ResearcherFailed
    return kind(f"'{name}' failed: {told}", cost)


def wait(message: str) -> float | None:
    """Seconds that a message asks to wait, if it does."""
    found = WAIT.search(message)
    if not found:
        return None
    unit = (found[2] or "s").lower()
    if unit.startswith(("ms", "milli")):
        return float(found[1]) / 1000
    return float(found[1]) * UNITS.get(unit[0], 1.0)
