"""What a person set for the researchers and the loop: flags of `loop`, else `[tool.autoresearch]` in the lab's pyproject.toml.

[tool.autoresearch]
researcher = "search:0.7,claude:0.3"
keep = "measured"                   # or "strict": one run, lower wins
noise-runs = 3                      # of the baseline
keep-simpler = "on"                 # as good and clearly less code is kept
early-stop = "on"                   # what is far behind the incumbent is stopped

[tool.autoresearch.claude]          # for one of them; 'acp' and 'command' are names too
model = "..."
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from autoresearch import judge
from autoresearch.errors import NotReady
from autoresearch.lab import Lab
from autoresearch.researchers import KNOWN, Options, choose
from autoresearch.researchers.team import Team

FILE = "pyproject.toml"
TEXT, POSITIVE, COUNT, TEXTS, HOME_FILES, VARIABLE = (
    "a text",
    "a number above 0",
    "a whole number above 0",
    "a list of texts",
    "a list of paths from your home folder on, like '.netrc'",
    "a variable's name",
)
# Keys of the table: the field of Options and what it must be.
KEYS = {
    "model": ("model", TEXT),
    "endpoint": ("endpoint", TEXT),
    "key-variable": ("key_variable", VARIABLE),
    "time-limit": ("time_limit", POSITIVE),
    "turns": ("turns", COUNT),
    "budget": ("budget", POSITIVE),
    "input-price": ("input_price", POSITIVE),
    "output-price": ("output_price", POSITIVE),
    "variables": ("variables", TEXTS),
    "files": ("files", HOME_FILES),
}
NAMES = (*KNOWN, "acp", "command")
# Of the loop and the judge, for the whole table: what each may be.
CHOICES = {"keep": (judge.MEASURED, judge.STRICT), "keep-simpler": ("on", "off"), "early-stop": ("on", "off")}
NOISE_RUNS = "noise-runs"


def table(lab: Lab) -> dict[str, Any]:
    """[tool.autoresearch], checked. Raises NotReady that names the key."""
    try:
        data = tomllib.loads(lab.read(FILE))
    except tomllib.TOMLDecodeError as error:
        raise NotReady(f"{lab.root / FILE} is not valid TOML ({error}): mend it or 'git checkout -- {FILE}'") from None
    found = data.get("tool", {}).get("autoresearch", {}) if isinstance(data.get("tool", {}), dict) else {}
    if not isinstance(found, dict):
        raise NotReady(f"{lab.root / FILE}: [tool.autoresearch] must be a table")
    for key, value in found.items():
        if key == "researcher" and isinstance(value, str):
            continue
        if key in CHOICES or key == NOISE_RUNS:
            _check_judge(lab, key, value)
            continue
        if key in NAMES and isinstance(value, dict):
            for inner, setting in value.items():
                _check(lab, f"{key}.{inner}", inner, setting)
        else:
            _check(lab, key, key, value)
    return found


def _check(lab: Lab, shown: str, key: str, value: Any) -> None:
    where = f"{lab.root / FILE}, [tool.autoresearch]: "
    if key not in KEYS:
        known = ", ".join(("researcher", *KEYS, *CHOICES, NOISE_RUNS, *NAMES))
        raise NotReady(f"{where}there is no setting '{shown}': known are {known}")
    wanted = KEYS[key][1]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
    good = {
        TEXT: isinstance(value, str),
        VARIABLE: isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z_]\w*", value)),
        POSITIVE: number and 0 < value < float("inf"),
        COUNT: number and isinstance(value, int) and value > 0,
        TEXTS: texts,
        HOME_FILES: texts and not any(PurePath(each).is_absolute() or ".." in PurePath(each).parts for each in value),
    }
    if not good[wanted]:
        raise NotReady(f"{where}{shown} = {value!r} must be {wanted}")


def _check_judge(lab: Lab, key: str, value: Any) -> None:
    where = f"{lab.root / FILE}, [tool.autoresearch]: {key} = {value!r} must be "
    if key in CHOICES and value not in CHOICES[key]:
        raise NotReady(where + " or ".join(f'"{choice}"' for choice in CHOICES[key]))
    if key == NOISE_RUNS and not (type(value) is int and value > 0):
        raise NotReady(where + COUNT)


def rule(lab: Lab, flags: Mapping[str, Any], device: str) -> judge.Rule:
    """How a session judges: what flags say, else the lab's table, else what fits the device. Raises NotReady."""
    asked = table(lab) | {name: value for name, value in flags.items() if value is not None}
    found = judge.GPU if device == "cuda" else judge.CPU
    keep = asked.get("keep", found.keep)
    runs = asked.get(NOISE_RUNS, 1 if keep == judge.STRICT else found.noise_runs)
    return replace(found, keep=keep, noise_runs=runs, simpler=asked.get("keep-simpler", "on") == "on")


def early_stop(lab: Lab, flag: str | None) -> bool:
    """Whether runs may be ended early: what the flag says, else the lab's table."""
    return (table(lab).get("early-stop", "on") if flag is None else flag) == "on"


def options_for(settings: Mapping[str, Any], flags: Mapping[str, Any]) -> Callable[[str], Options]:
    """The options of a researcher, by its name: what its own table says, over the common one; a flag over both."""

    def options(name: str) -> Options:
        common = {key: value for key, value in settings.items() if key in KEYS}
        merged = {**common, **settings.get(name, {})}
        fields: dict[str, Any] = {KEYS[key][0]: tuple(value) if isinstance(value, list) else value for key, value in merged.items()}
        return Options(**fields | {name: value for name, value in flags.items() if value is not None})

    return options


def team(lab: Lab, spec: str | None, flags: Mapping[str, Any]) -> Team:
    """The researchers that `spec`, else the lab's table, else nobody names. Raises WrongCall or NotReady."""
    found = table(lab)
    return choose.team(found.get("researcher", "search") if spec is None else spec, options_for(found, flags))
