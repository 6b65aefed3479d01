"""The red team's table: how many cheats fool a harness that greps run.log, and how many fool ours.

    uv run --group dev python benchmarks/redteam.py [--each]

Runs tests/redteam and counts what its tests recorded. A cheat that is tried in several sandboxes counts as one, and as one that
fools ours if it does so in any of them. With --each every cheat has its own line.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Counts:
    """A pytest plugin that keeps what the tests say of each cheat."""

    def __init__(self) -> None:
        self.naive: dict[str, bool] = {}
        self.audited = 0
        self.ours: dict[str, bool] = defaultdict(bool)
        self.skipped = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.skipped += report.skipped and not hasattr(report, "wasxfail")
        said = dict(report.user_properties)
        if report.when == "call" and "cheat" in said:
            name = str(said["cheat"])
            self.audited += bool(said.get("needs the audit"))
            self.naive[name] = bool(said["fools naive"])
            self.ours[name] |= bool(said["fools ours"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", action="store_true", help="a line for every cheat")
    arguments = parser.parse_args()
    counts = Counts()
    code = pytest.main([str(ROOT / "tests" / "redteam"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"], plugins=[counts])
    print("\n| cheats tried | fool a harness that greps run.log | fool ours |\n|---|---|---|")
    print(f"| {len(counts.naive)} | {sum(counts.naive.values())} | {sum(counts.ours.values())} |")
    print(f"\n{counts.audited} of them are found by the audit alone, for certain")
    if counts.skipped:
        print(f"\n{counts.skipped} tests were skipped: a sandbox is not to be had here")
    if arguments.each:
        print("\n| cheat | fools a harness that greps run.log | fools ours |\n|---|---|---|")
        for name, naive in counts.naive.items():
            print(f"| {name} | {'yes' if naive else 'no'} | {'yes' if counts.ours[name] else 'no'} |")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
