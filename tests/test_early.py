"""Claims about early stops: what ends a run, what never does, and what is left of one that was ended."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import ROOT, Cli, git, toy
from labs import agent, copy_of, journal, rows, setting, state, tip

from autoresearch.experiment import curve
from autoresearch.experiment.crossing import slack
from autoresearch.experiment.curve import Point, Recorder
from autoresearch.experiment.early import Ended, Slack, check
from autoresearch.experiment.runner import Progress
from autoresearch.experiment.watch import Against, Watch
from autoresearch.experiment.witness import Witness

STEPS = 200
WHOLE = Slack()
SHIPPED = (ROOT / "train.py").read_text()


def course(behind: Callable[[float], float] = lambda _: 0.0, steps: int = STEPS, luck: random.Random | None = None) -> list[Point]:
    """A run's curve, a point a step: from 7.6 to about 3.7 nats, and `behind` at each percent. With `luck` its batches scatter by
    0.15 nats and it is smoothed, as by train.py on a CPU."""
    points, smooth = [], 0.0
    for step in range(1, steps + 1):
        percent = 100 * step / steps
        loss = 7.6 - 0.85 * math.log1p(percent) + behind(percent)
        if luck:
            smooth = 0.9 * smooth + 0.1 * (loss + luck.gauss(0.0, 0.15))
            loss = smooth / (1 - 0.9**step)
        points.append(Point(percent, loss, step))
    return points


def end(run: list[Point], incumbent: list[Point], slack: Slack = WHOLE, steady: bool = True) -> tuple[str, float] | None:
    """What ends the run, and at which percent."""
    for i, now in enumerate(run):
        if ended := check(now, run[:i], incumbent, slack, steady):
            return ended.kind, now.percent
    return None


# -- the rule --------------------------------------------------------------------------------------------------------


def test_a_run_like_the_incumbent_goes_on() -> None:
    assert end(course(), course()) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_a_run_at_once(loss: float) -> None:
    run = [*course()[:2], Point(1.5, loss, 3)]
    assert end(run, course()) == ("non-finite", 1.5) == end(run, [], Slack(False, None))


def test_a_loss_above_that_of_an_untrained_model_has_blown_up() -> None:
    up = course(lambda percent: 9.0 if percent > 40 else 0.0)
    assert end(up, course()) == ("blown-up", 40.5) == end(up, course(), Slack(behind=None))
    assert end(up, course(), Slack(blown_up=False, behind=None)) is None


@pytest.mark.parametrize(("behind", "where"), [(0.2, 30.0), (0.05, 72.5), (0.005, None)])
def test_far_behind_ends_a_run_at_30_percent_and_less_far_at_72(behind: float, where: float | None) -> None:
    assert end(course(lambda _: behind), course()) == (("behind", where) if where else None)


def test_where_speed_jumps_fewer_steps_are_not_held_against_a_run() -> None:
    """The loss follows the steps, so one code at 60% of its speed is behind at equal times and not at equal steps."""

    def at_speed(speed: float, worse: float = 0.0) -> list[Point]:
        return [Point(p.percent / speed, p.loss + worse, p.step) for p in course() if p.percent / speed <= 100]

    assert end(at_speed(0.6), course()) == ("slow", pytest.approx(25.0, abs=1))
    assert end(at_speed(0.8), course()) == ("behind", pytest.approx(30.0, abs=1))
    for speed in (0.5, 0.6, 0.8, 1.0):
        assert end(at_speed(speed), course(), steady=False) is None
        assert end(at_speed(speed, 0.3), course(), steady=False) == ("behind", pytest.approx(30.0, abs=1))
    assert end(at_speed(0.35), course(), steady=False) == ("slow", pytest.approx(43.0, abs=1))


def test_who_is_catching_up_or_had_one_bad_stretch_goes_on() -> None:
    assert end(course(lambda percent: 0.3 if percent < 23 else 0.0), course()) is None
    assert end(course(lambda percent: 0.3 if 66 < percent < 73 else 0.0), course()) is None


def test_what_crosses_late_is_not_ended_for_being_behind_and_a_small_step_has_twice_the_margin() -> None:
    assert end(course(lambda _: 1.0), course(), Slack(behind=None)) is None
    assert end(course(lambda _: 0.15), course(), Slack(behind=2.0)) == ("behind", 72.5)
    assert end(course(lambda _: 0.025), course(), Slack(behind=2.0)) is None
    assert end(course(lambda _: 0.025), course()) == ("behind", 72.5)


def test_less_than_70_percent_of_the_incumbents_steps_end_a_run_after_30_of_them() -> None:
    assert end(course(steps=130), course()) == ("slow", pytest.approx(100 * 30 / 130))
    assert end(course(steps=145), course()) is None
    assert end(course(steps=130), course(), Slack(behind=None)) is None


def test_of_runs_of_one_code_hardly_one_in_a_hundred_is_ended_however_their_batches_scatter() -> None:
    luck = random.Random(1)
    ends = [end(course(luck=luck), course(luck=luck)) for _ in range(300)]
    assert sum(each is not None for each in ends) <= 3


def test_through_the_same_scatter_a_run_that_is_far_behind_is_ended() -> None:
    luck = random.Random(2)
    ends = [end(course(lambda _: 0.25, luck=luck), course(luck=luck)) for _ in range(100)]
    assert sum(each is not None for each in ends) >= 95


def test_without_an_incumbents_curve_nothing_is_compared() -> None:
    assert end(course(lambda _: 5.0), []) is None


def test_the_noise_of_a_curve_is_that_of_its_windows_and_not_its_bend() -> None:
    luck = random.Random(3)
    found = [curve.noise(course(luck=luck)) for _ in range(50)]
    windows = [curve.mean(course(luck=luck), 60.0, 67.5) or math.nan for _ in range(200)]
    assert statistics.mean(found) == pytest.approx(statistics.stdev(windows), rel=0.3)
    assert curve.noise(course()) < 0.1 * statistics.mean(found)
    assert curve.noise(course()[:100]) == 0.0


# -- which changes cross late ----------------------------------------------------------------------------------------


def changed(old: str, new: str) -> Slack:
    assert SHIPPED.count(old) == 1, old
    return slack(SHIPPED, SHIPPED.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DEPTH = 9 ", "DEPTH = 12 "),
        ("F.relu(z).square()", "F.gelu(z)"),
        ("x = mix[0] * reduce(torch.add, stream) + mix[1] * first", "x = mix[0] * reduce(torch.add, stream)"),
        ('"""A GPT trained', '"""Schedules, momentum and decay of a GPT trained'),
        ("# where they end, as", "# momentum, as"),
    ],
)
def test_the_model_and_the_words_about_it_do_not(old: str, new: str) -> None:
    assert changed(old, new) == Slack()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WARMDOWN = 0.75 ", "WARMDOWN = 0.9 "),  # 0.25 before it becomes 0.1
        ("MATRIX_LR = 0.04 ", "MATRIX_LR = 0.08 "),
        ("MUON_MOMENTUM = 0.95 ", "MUON_MOMENTUM = 0.98 "),
        ("MATRIX_DECAY = 0.1 ", "MATRIX_DECAY = 0.0 "),
        ("TOTAL_BATCH = 2**17 ", "TOTAL_BATCH = 2**16 "),
        ("return 1.0 if left >= WARMDOWN", "return 0.9 if left >= WARMDOWN"),
        ("shrink = decay * (update * p >= 0)", "shrink = 0.0"),
        ("        m.lerp_(g, 1 - beta1)\n", ""),
        ("g.lerp(momentum, beta1).to(numbers)", "momentum.to(numbers)"),
        ("        self.optimizer.step(count, progress)\n", "        clip(self)\n        self.optimizer.step(count, progress)\n"),
    ],
)
def test_schedules_momentum_decay_and_batch_do(old: str, new: str) -> None:
    assert changed(old, new) == Slack(behind=None)


def test_another_loss_is_not_even_compared() -> None:
    assert changed("return (total - target).mean()", "return (total - target).mean() + 1e-4 * total.square().mean()") == Slack(
        blown_up=False, behind=None
    )


@pytest.mark.parametrize(("old", "new"), [("WARMDOWN = 0.75 ", "WARMDOWN = 0.7 "), ("ADAM_BETA2 = 0.95 ", "ADAM_BETA2 = 0.94 ")])
def test_a_small_step_in_them_doubles_the_margin(old: str, new: str) -> None:
    assert changed(old, new) == Slack(behind=2.0)


def test_a_researchers_word_can_only_switch_it_off() -> None:
    deeper, other = SHIPPED.replace("DEPTH = 9 ", "DEPTH = 12 "), SHIPPED.replace("shrink = decay *", "shrink = 2 * decay *")
    assert slack(SHIPPED, deeper, "architecture") == Slack()
    assert slack(SHIPPED, deeper, "schedule") == Slack(behind=None)
    assert slack(SHIPPED, other, "architecture") == Slack(behind=None)


# -- the curve on disk -----------------------------------------------------------------------------------------------


def test_a_curve_is_small_comes_back_and_holds_numbers_alone(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    for point in course(steps=5000):
        recorder.add(point)
    recorder.add(Point(99.0, 1.0, 1))  # back in time
    recorder.add(Point(400.0, 1.0, 1))
    kept = curve.read(tmp_path)
    assert 190 <= len(kept) <= 201 and (tmp_path / curve.FILE).stat().st_size < 8000
    assert [(point.percent, point.step) for point in kept] == [(round(p.percent, 1), p.step) for p in recorder.points]
    with (tmp_path / curve.FILE).open("a") as file:
        file.write("99.9\t3.")
    assert curve.read(tmp_path) == kept
    Recorder(tmp_path)
    assert curve.read(tmp_path) == [] == curve.read(tmp_path / "none")


def told(point: Point) -> Progress:
    return Progress(point.step, point.percent, point.loss, 1000.0, 1.0)


class Saying(Witness):
    """A witness with an answer of its own."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def look(self) -> None:
        pass

    def disturbed(self) -> str:
        return self.answer


@pytest.mark.parametrize(
    ("run", "reason"), [(course(steps=100), "of the incumbent's steps"), (course(lambda _: 0.5), "nats behind")]
)
def test_a_run_goes_on_while_others_keep_the_machine_from_it(tmp_path: Path, run: list[Point], reason: str) -> None:
    rule, shown = Against(course(), Slack()), list[Progress]()
    quiet = Watch(tmp_path, shown.append, rule, Saying(""))
    with pytest.raises(Ended, match=reason):
        for point in run:
            quiet(told(point))
    busy = Watch(tmp_path, shown.append, rule, Saying("other processes took 1.0 of 2 processors"))
    for point in run:
        busy(told(point))
    assert len(curve.read(tmp_path)) == len(run) > len(shown)
    with pytest.raises(Ended, match="the loss is nan"):
        busy(Progress(len(run), 99.0, math.nan, 1.0, 1.0))


# -- the loop --------------------------------------------------------------------------------------------------------


UNTIL_READ = """\
    import fcntl
    import termios
    while any(fcntl.ioctl(1, termios.FIONREAD, bytes(4))):
        time.sleep(0.002)
    time.sleep(0.02)
"""


def curvy(**literals: object) -> str:
    """The toy train.py with a curve of 100 steps, which lies GAP behind. It waits until that is read: the rest takes milliseconds,
    and what is printed after the evaluation has begun is no longer taken for progress."""
    source = toy(**literals)
    for old, new in (
        ("for step, percent in ((1, 50.0), (2, 100.0)):\n", "for step in range(1, 101):\n        percent = float(step)\n"),
        ("loss: {7.5 - step:.4f}", "loss: {7.5 - 0.02 * step + GAP:.4f}"),
        ("left: {2 - step}s", "left: 0s"),
        ("DEPTH = 4", "GAP = 0.0  # nats\nDEPTH = 4"),
        ("    print()\n", "    print()\n" + UNTIL_READ),
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    return source


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    """On autoresearch/test, with a train.py that tells a curve, and no baseline yet."""
    lab = copy_of(made, tmp_path / "lab")
    (lab / "train.py").write_text(curvy())
    git(lab, "commit", "--quiet", "--message=a curve", "--", "train.py")
    return lab


BEHIND = setting("DEPTH", 5) + "; " + setting("GAP", 0.5)  # it would have been better
TAIL = " (stopped: 0.50 nats behind the incumbent at 30%)"


def test_a_run_that_is_behind_is_a_discard_without_a_score_and_with_its_reason(lab: Path, tmp_path: Path, call: Cli) -> None:
    done = call("loop", "--max", "2", "--no-ahead", "--researcher", agent(tmp_path, BEHIND, setting("DEPTH", 5)))
    assert done.returncode == 0, done.stderr
    _, stopped, kept = rows(lab)
    assert (stopped[1], stopped[3]) == ("—", "discard") and stopped[4].endswith(TAIL)
    assert kept[3] == "keep"
    assert "(stopped: 0.50 nats behind the incumbent at 30%)" in done.stderr
    assert done.stdout.splitlines()[1] == "Session summary: 2 experiments, 1 improvements, 1 stopped early"
    result = state(lab, 2)["result"]
    assert (result["outcome"], result["crash_class"], result["val_bpb"]) == ("stopped", "behind", None)
    assert len(curve.read(lab / ".autoresearch" / "runs" / "1")) == 100
    assert len(curve.read(lab / ".autoresearch" / "runs" / "2")) == 30
    assert git(lab, "rev-parse", "refs/autoresearch/test/2").startswith(stopped[0])


def test_it_is_told_as_what_it_is(lab: Path, tmp_path: Path, call: Cli) -> None:
    assert call("loop", "--max", "1", "--researcher", agent(tmp_path, BEHIND)).returncode == 0
    told = call("brief").stdout
    assert "- discard, stopped early (behind):" in told and "- stopped early (behind), 1 times, as:" in told
    (found,) = json.loads(call("history", "--json", "--search", "behind").stdout)
    assert (found["status"], found["stopped"], found["gain"], found["val_bpb"]) == ("discard", "behind", None, None)
    assert json.loads(call("results", "--json").stdout)["stopped"] == 1


@pytest.mark.parametrize("how", ["flag", "table"])
def test_switched_off_the_same_run_is_measured_and_kept(lab: Path, tmp_path: Path, call: Cli, how: str) -> None:
    words = ["--early-stop", "off"] if how == "flag" else []
    if how == "table":
        with (lab / "pyproject.toml").open("a") as file:
            file.write('\n[tool.autoresearch]\nearly-stop = "off"\n')
        git(lab, "commit", "--quiet", "--message=off", "--", "pyproject.toml")
    done = call("loop", "--max", "1", *words, "--researcher", agent(tmp_path, BEHIND))
    assert done.returncode == 0, done.stderr
    assert [row[3] for row in rows(lab)] == ["keep", "keep"]


def test_a_loss_that_is_no_number_is_a_crash_at_once(lab: Path, tmp_path: Path, call: Cli) -> None:
    hang = "sed -i 's/^GAP = .*/GAP = float(\"nan\")/; s/^    print()$/    time.sleep(600)/' train.py; echo nan"
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, hang))
    assert done.returncode == 0, done.stderr
    assert rows(lab)[1][1:4] == ("crash", "—", "crash")
    assert state(lab, 2)["result"]["crash_class"] == "non-finite" and len(journal(lab)) == 2


def test_a_baseline_is_never_stopped(lab: Path, tmp_path: Path, call: Cli) -> None:
    assert call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.2))).returncode == 0
    before = tip(lab)
    (lab / "train.py").write_text(curvy(LR=0.2).replace("GAP = 0.0", "GAP = 2.0"))
    git(lab, "commit", "--quiet", "--message=by hand", "--", "train.py")
    assert call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.3))).returncode == 0
    assert tip(lab) != before and rows(lab)[2][3:] == ("keep", "baseline")


def test_a_setting_that_is_none_is_told(lab: Path, call: Cli) -> None:
    with (lab / "pyproject.toml").open("a") as file:
        file.write('\n[tool.autoresearch]\nearly-stop = "maybe"\n')
    done = call("loop", "--max", "1")
    assert done.returncode == 3 and 'early-stop = \'maybe\' must be "on" or "off"' in done.stderr
