"""Claims about runs that are repeated: which are, what is written of them, and that no death between them loses one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, git, scored, toy
from labs import agent, copy_of, forked, journal, picture, rows, setting, state, tip
from test_recover import at, die, killed

from autoresearch import judge
from autoresearch.experiment import runner
from autoresearch.experiment.runner import RunPlan, seed_of
from autoresearch.journal import CRASHED, SCORED, Experiment, Journal, RunResult

SEEDS = [seed_of(1337, repeat) for repeat in range(4)]  # of the baseline
OWN = [seed_of(seed_of(2, 1337), repeat) for repeat in range(4)]  # of experiment 2
NEAR = {"LR": 0.103}  # better than the toy as it is by less than the noise of a CPU's runs
NEARLY = setting("LR", NEAR["LR"])
BETTER, WORSE = setting("LR", 0.2), setting("LR", 0.05)


@pytest.fixture(autouse=True)
def a_baseline_may_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And candidates are, whatever is near: as after a lab's first five experiments."""
    monkeypatch.setattr(judge, "CPU", replace(judge.CPU, hurried=0))


@pytest.fixture
def lab(made: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    """On autoresearch/test, with the toy train.py, and no baseline yet."""
    return copy_of(made, tmp_path / "lab")


def noisy(lab: Path, noise: float) -> None:
    """The lab's train.py scores differently with each seed."""
    (lab / "train.py").write_text(toy(NOISE=noise))
    git(lab, "commit", "--quiet", "--all", "--message=noise")


def untouched(lab: Path) -> list[str]:
    """All that verify leaves as it is: everything but the log of the last run."""
    return [line for line in picture(lab) if "/run.log " not in line]


def later_runs(lab: Path) -> list[dict[str, Any]]:
    path = lab / ".autoresearch" / "repeats.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mean(noise: float, seeds: list[int], **literals: float) -> str:
    return f"{sum(scored(**literals, NOISE=noise, seed=seed) for seed in seeds) / len(seeds):.6f}"


# -- what the journal holds ------------------------------------------------------------------------------------------


def test_an_experiment_s_score_is_the_mean_of_its_runs_and_none_if_one_of_them_has_none() -> None:
    told = {"n": 2, "session": "s", "stage": "running", "description": "d", "researcher": "r", "fingerprint": "f", "code_key": "k"}
    fresh = Experiment.from_dict({**told, "parent": "p", "started": "now"})
    assert fresh.val_bpb is None
    twice = fresh.ran(RunResult(SCORED, val_bpb=1.0, seed=1)).ran(RunResult(SCORED, val_bpb=2.0, seed=2))
    assert (twice.val_bpb, twice.scores, twice.result) == (1.5, (1.0, 2.0), twice.runs[1])
    assert Experiment.from_json(json.dumps(asdict(twice)).encode()) == twice
    assert twice.ran(RunResult(CRASHED)).val_bpb is None
    assert twice.refuted(RunResult(CRASHED)).scores == (1.0,)


def test_a_journal_from_before_there_were_repeats_is_read_as_one_run_each() -> None:
    told = {"n": 2, "session": "s", "stage": "settled", "description": "d", "researcher": "r", "fingerprint": "f", "code_key": "k"}
    old = Experiment.from_dict({**told, "parent": "p", "started": "then", "result": {"outcome": "scored", "val_bpb": 1.25}})
    assert (old.val_bpb, len(old.counted)) == (1.25, 1)


# -- which runs are repeated -----------------------------------------------------------------------------------------


def test_a_baseline_is_run_with_as_many_seeds_as_asked_for_and_its_row_has_their_mean(lab: Path, call: Cli, tmp_path: Path) -> None:
    noisy(lab, 0.001)
    done = call("loop", "--max", "1", "--noise-runs", "3", "--researcher", agent(tmp_path, BETTER))
    assert done.returncode == 0, done.stderr
    baseline = journal(lab)[0]
    assert [run["seed"] for run in baseline["runs"]] == SEEDS[:3]
    assert len({run["val_bpb"] for run in baseline["runs"]}) == 3
    assert rows(lab)[0][1:] == (mean(0.001, SEEDS[:3]), rows(lab)[0][2], "keep", "baseline n=3")
    assert git(lab, "log", "--format=%s", "-1", tip(lab, "refs/autoresearch/test/1")) == f"val_bpb {rows(lab)[0][1]}: baseline"
    assert "the baseline is run 3 times" in done.stderr
    assert journal(lab)[1]["judgement"]["measured"] == 2
    assert "Noise: one run scatters by " in done.stdout and "kept: 1 on 1 run, 1 on 3 runs" in done.stdout
    known = json.loads(call("results", "--json").stdout)["noise"]
    assert known["measured"] == 2 and 0 < known["sigma"] < 0.008, "three close runs draw it below the prior"
    assert f"Two runs of one train.py differ by about {2**0.5 * known['sigma']:.6f}" in call("brief").stdout


def test_a_gain_inside_the_noise_is_run_again_and_so_is_the_incumbent_and_neither_believed(
    lab: Path, call: Cli, tmp_path: Path
) -> None:
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, NEARLY))
    assert done.returncode == 0, done.stderr
    assert scored(**NEAR) < scored()
    assert [row[1:] for row in rows(lab)[1:]] == [(f"{scored(**NEAR):.6f}", rows(lab)[1][2], "discard", "LR 0.103 n=2")]
    assert [run["seed"] for run in journal(lab)[1]["runs"]] == OWN[:2]
    assert [(run["n"], run["result"]["seed"]) for run in later_runs(lab)] == [(1, SEEDS[1])], "and the incumbent once more"
    assert (lab / ".autoresearch/runs/1/model.safetensors").exists(), "a keep's weights stay"
    assert not (lab / ".autoresearch/scratch/again/model.safetensors").exists()


def test_what_is_far_better_or_far_worse_is_run_once(lab: Path, call: Cli, tmp_path: Path) -> None:
    done = call("loop", "--max", "2", "--researcher", agent(tmp_path, WORSE, BETTER))
    assert done.returncode == 0, done.stderr
    assert [row[3:] for row in rows(lab)[1:]] == [("discard", "LR 0.05"), ("keep", "LR 0.2")]
    assert later_runs(lab) == []


def test_strict_never_repeats_and_keeps_whatever_is_lower(lab: Path, call: Cli, tmp_path: Path) -> None:
    done = call("loop", "--max", "1", "--keep", "strict", "--researcher", agent(tmp_path, NEARLY))
    assert done.returncode == 0, done.stderr
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("keep", "LR 0.103")]
    assert later_runs(lab) == []


def test_the_lab_s_own_settings_say_how_to_judge_and_flags_go_before_them(lab: Path, call: Cli, tmp_path: Path) -> None:
    with (lab / "pyproject.toml").open("a") as file:
        file.write('\n[tool.autoresearch]\nkeep = "strict"\nnoise-runs = 2\nkeep-simpler = "off"\n')
    git(lab, "commit", "--quiet", "--all", "--message=settings")
    done = call("loop", "--max", "1", "--noise-runs", "1", "--researcher", agent(tmp_path, NEARLY))
    assert done.returncode == 0, done.stderr
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("keep", "LR 0.103")]


@pytest.mark.parametrize("wrong", ['keep = "always"', "noise-runs = 0", "noise-runs = true", 'keep-simpler = "maybe"'])
def test_a_setting_that_can_t_be_is_told_by_its_name(lab: Path, call: Cli, wrong: str) -> None:
    with (lab / "pyproject.toml").open("a") as file:
        file.write(f"\n[tool.autoresearch]\n{wrong}\n")
    git(lab, "commit", "--quiet", "--all", "--message=settings")
    done = call("loop", "--max", "1")
    assert done.returncode == 3
    assert f"[tool.autoresearch]: {wrong.partition(' ')[0]} = " in done.stderr
    assert not (lab / "results.tsv").exists()


def test_a_candidate_that_fails_with_another_seed_is_a_crash(lab: Path, call: Cli, tmp_path: Path) -> None:
    fragile = toy(**NEAR).replace(
        "    weights = referee.start()\n", f"    assert referee.seed == {OWN[0]}\n    weights = referee.start()\n"
    )
    (tmp_path / "fragile.py").write_text(fragile)
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, f"cp '{tmp_path}/fragile.py' train.py; echo fragile"))
    assert done.returncode == 0, done.stderr
    assert rows(lab)[1][1:] == ("crash", "—", "crash", "fragile n=2")
    assert [run["outcome"] for run in journal(lab)[1]["runs"]] == ["scored", "crash"]


def test_an_incumbent_that_fails_when_it_is_run_again_is_not_tried_for_ever(lab: Path, call: Cli, tmp_path: Path) -> None:
    fragile = toy().replace("    weights = referee.start()\n", "    assert referee.seed == 1337\n    weights = referee.start()\n")
    (lab / "train.py").write_text(fragile)
    git(lab, "commit", "--quiet", "--all", "--message=fragile")
    (tmp_path / "next.py").write_text(toy(**NEAR))
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, f"cp '{tmp_path}/next.py' train.py; echo next"))
    assert done.returncode == 0, done.stderr
    assert [run["result"]["outcome"] for run in later_runs(lab)] == ["crash"]
    assert rows(lab)[1][3:] == ("discard", "next n=2")


# -- a keep that took several runs -----------------------------------------------------------------------------------


def test_a_keep_after_repeats_is_audited_on_the_run_whose_weights_are_there(lab: Path, call: Cli, tmp_path: Path) -> None:
    """Each seed has weights of its own, so that an audit of another run's would fail."""
    noisy(lab, 0.0005)
    done = call("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.106)))
    assert done.returncode == 0, done.stderr
    kept = journal(lab)[1]
    assert (kept["status"], len(kept["runs"])) == ("keep", 2)
    assert kept["audit"]["reason"] == ""
    assert rows(lab)[1][4] == "LR 0.106 n=2"
    assert tip(lab) == kept["commit"]
    assert call("audit", "2").returncode == 0


def test_equal_and_clearly_simpler_is_kept_and_its_row_says_so(lab: Path, call: Cli, tmp_path: Path) -> None:
    """Not where that is turned off, and not when the margins of the session are used up."""
    dead = (
        "\ndef unused_{n}(x: int) -> int:\n    y = x * x + {n}\n    z = y * y + x\n    print(x, y, z)\n    return z + y * x - {n}\n"
    )
    tail = [dead.format(n=n) for n in range(3)]
    (lab / "train.py").write_text("".join(tail) + toy())
    git(lab, "commit", "--quiet", "--all", "--message=long")
    for left in range(3):  # better by less than can be told
        (tmp_path / f"{left}.py").write_text("".join(tail[:left]) + toy(LR=0.1 + 0.001 * (3 - left)))
    moves = [f"cp '{tmp_path}/{left}.py' train.py; echo {left} left" for left in (2, 1, 0)]
    options = ("loop", "--no-ahead", "--researcher", agent(tmp_path, *moves))
    off = call(*options, "--max", "1", "--keep-simpler", "off")
    assert off.returncode == 0, off.stderr

    def rig() -> None:
        judge.MARGINS = 1

    done = call(*options, "--max", "2", rigged=rig)
    assert done.returncode == 0, done.stderr
    assert [row[3] for row in rows(lab)[1:]] == ["discard", "keep", "discard"]
    assert ["(simpler: " in row[4] and "nodes less, equal within 0.00" in row[4] for row in rows(lab)[1:]] == [False, True, False]
    assert journal(lab)[2]["judgement"]["outcome"] == "as good, and simpler"


def test_a_proposal_that_was_made_ahead_is_still_there_after_repeats(lab: Path, call: Cli, tmp_path: Path) -> None:
    done = call("loop", "--max", "3", "--researcher", agent(tmp_path, NEARLY, BETTER, setting("DEPTH", 5)))
    assert done.returncode == 0, done.stderr
    assert [row[3:] for row in rows(lab)[1:]] == [("discard", "LR 0.103 n=2"), ("keep", "LR 0.2"), ("keep", "DEPTH 5")]
    assert (tmp_path / "calls").read_text().strip() == "3", "none was asked for twice"


# -- deaths ----------------------------------------------------------------------------------------------------------


def at_state(stage: str, runs: int, when: str) -> Callable[[], None]:
    """Die before or after this stage of #2 with so many runs is on disk."""
    return at(stage, when, lambda experiment: len(experiment.runs) == runs and experiment.n == 2)


def in_the_incumbent_s_run() -> None:
    execute = runner.execute

    def rigged(plan: RunPlan, *rest: Any) -> Any:
        return die() if plan.folder.name == "again" else execute(plan, *rest)

    runner.execute = rigged


def after_the_incumbent_s_run(part: float) -> Callable[[], None]:
    """Die with a part of its line written."""

    def rig() -> None:
        add = Journal.add_repeat

        def rigged(self: Journal, n: int, result: Any) -> None:
            add(self, n, result)
            path = self.root / "repeats.jsonl"
            text = path.read_text()
            path.write_text(text[: int(part * len(text))])
            die()

        Journal.add_repeat = rigged  # type: ignore[method-assign]

    return rig


INSTANTS = {
    "after the first run is noted": at_state("measured", 1, "after"),
    "before a repeat is begun": at_state("running", 1, "before"),
    "in a repeat": at_state("running", 1, "after"),
    "before a repeat is noted": at_state("measured", 2, "before"),
    "in the incumbent's run": in_the_incumbent_s_run,
    "while the incumbent's run is noted": after_the_incumbent_s_run(0.5),
    "after the incumbent's run is noted": after_the_incumbent_s_run(1.0),
}


@pytest.fixture(scope="module")
def measured(made: Path, prepared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the baseline in its table."""
    lab = copy_of(made, tmp_path_factory.mktemp("measured") / "lab")
    before = os.environ.copy()
    os.environ.update({"AUTORESEARCH_CACHE": str(prepared_cache), "CUDA_VISIBLE_DEVICES": ""})
    try:
        done = forked(lab, "run", "--record", "as it is")
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert done.returncode == 0, done.stderr
    return lab


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_loop_that_is_killed_between_or_in_repeats_repeats_what_was_cut_and_no_other(
    measured: Path, environment: Mapping[str, str], tmp_path: Path, instant: str
) -> None:
    lab = copy_of(measured, tmp_path / "lab")
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, NEARLY, WORSE))
    killed(lab, *options, rigged=INSTANTS[instant])
    done = forked(lab, *options)
    assert done.returncode == 0, done.stderr
    assert [row[3:] for row in rows(lab)] == [("keep", "baseline"), ("discard", "LR 0.103 n=2"), ("discard", "LR 0.05")]
    assert [run["seed"] for run in journal(lab)[1]["runs"]] == OWN[:2]
    assert [(run["n"], run["result"]["seed"]) for run in later_runs(lab)] == [(1, SEEDS[1])], "and the incumbent once more"
    assert state(lab, 2)["stage"] == "settled"


def test_ctrl_c_between_two_runs_ends_the_loop_and_the_next_start_goes_on_with_the_second(
    measured: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    lab = copy_of(measured, tmp_path / "lab")

    def rig() -> None:
        save = Journal.save

        def rigged(self: Journal, experiment: Experiment, **changes: Any) -> Experiment:
            saved = save(self, experiment, **changes)
            if saved.n == 2 and saved.stage == "running" and not saved.runs:
                os.kill(os.getpid(), signal.SIGINT)
            return saved

        Journal.save = rigged  # type: ignore[method-assign]

    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, NEARLY, WORSE))
    stopped = forked(lab, *options, rigged=rig)
    assert stopped.returncode == 0, stopped.stderr
    assert "#2 has to be run again before it can be judged" in stopped.stderr
    assert len(rows(lab)) == 1
    assert len(state(lab, 2)["runs"]) == 1
    done = forked(lab, *options)
    assert done.returncode == 0, done.stderr
    assert rows(lab)[1][3:] == ("discard", "LR 0.103 n=2")


def test_an_experiment_of_other_conditions_is_judged_by_the_runs_that_it_has(
    measured: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    lab = copy_of(measured, tmp_path / "lab")
    killed(lab, "loop", "--max", "1", "--researcher", agent(tmp_path, NEARLY), rigged=at_state("running", 1, "before"))
    constants = lab / "constants.py"
    constants.write_text(constants.read_text().replace("TIME_BUDGET = 1 ", "TIME_BUDGET = 2 "))
    git(lab, "commit", "--quiet", "--all", "--message=longer")
    done = forked(lab, "loop", "--max", "1", "--researcher", agent(tmp_path, BETTER))
    assert done.returncode == 0, done.stderr
    (aside,) = lab.glob("results-*.tsv")
    assert [row[3:] for row in rows(lab, aside.name)] == [("keep", "baseline"), ("discard", "LR 0.103")]
    assert len(later_runs(lab)) == 1, "the one from before"


# -- verify ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(measured: Path, tmp_path_factory: pytest.TempPathFactory, prepared_cache: Path) -> Path:
    """With two keeps behind the baseline: LR 0.2, then DEPTH 5."""
    folder = tmp_path_factory.mktemp("kept")
    lab = copy_of(measured, folder / "lab")
    before = os.environ.copy()
    os.environ.update({"AUTORESEARCH_CACHE": str(prepared_cache), "CUDA_VISIBLE_DEVICES": ""})
    try:
        done = forked(lab, "loop", "--max", "2", "--researcher", agent(folder, BETTER, setting("DEPTH", 5)))
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert done.returncode == 0, done.stderr
    return lab


@pytest.fixture
def verified(kept: Path, environment: Mapping[str, str], tmp_path: Path) -> Path:
    return copy_of(kept, tmp_path / "lab")


def runs_of(lab: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (lab / ".autoresearch" / "verify.jsonl").read_text().splitlines()]


def test_verify_runs_start_and_best_in_turn_on_fresh_seeds_and_touches_no_row(verified: Path) -> None:
    before = untouched(verified)
    done = forked(verified, "verify", "--runs", "2")
    assert done.returncode == 0, done.stderr
    gain = scored() - scored(LR=0.2, DEPTH=5)
    assert done.stdout.startswith(f"#3 against the start, 2 runs each with fresh seeds: gain {gain:.6f} (")
    assert "real; " in done.stdout and "100% of it is there" in done.stdout
    made = runs_of(verified)
    assert [run["name"] for run in made] == ["the start", "#3"] * 2
    seeds = [run["result"]["seed"] for run in made]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert not set(seeds) & {seed_of(1337, repeat) for repeat in range(100)}
    assert untouched(verified) == before
    assert len(journal(verified)) == 3


def test_verify_takes_a_commit_or_a_number_and_adds_to_what_it_measured_before(verified: Path) -> None:
    commit = rows(verified)[1][0]
    assert forked(verified, "verify", commit, "--runs", "1").returncode == 0
    done = forked(verified, "verify", "2", "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    (finding,) = json.loads(done.stdout)
    assert (finding["after"], finding["runs"]) == ("#2", 2)
    assert finding["gain"]["value"] == pytest.approx(scored() - scored(LR=0.2), abs=1e-6)
    assert finding["gain"]["low"] < finding["gain"]["value"] < finding["gain"]["high"]
    assert finding["claimed"] == pytest.approx(scored() - scored(LR=0.2), abs=1e-6)
    assert len({run["result"]["seed"] for run in runs_of(verified)}) == 2


def test_verify_all_leaves_each_step_out(verified: Path) -> None:
    done = forked(verified, "verify", "--all", "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    whole, first, second = json.loads(done.stdout)
    end = scored(LR=0.2, DEPTH=5)
    assert whole["gain"]["value"] == pytest.approx(scored() - end, abs=1e-6)
    assert (first["before"], first["after"]) == ("#3 without #2", "#3")
    assert first["gain"]["value"] == pytest.approx(scored(DEPTH=5) - end, abs=1e-6)
    assert second["gain"]["value"] == pytest.approx(scored(LR=0.2) - end, abs=1e-6)
    said = forked(verified, "verify", "--all", "--runs", "1").stdout
    assert "#3 without #2: +" in said and "leaving it out hurts" in said


def test_a_step_that_others_build_on_can_t_be_left_out_and_that_is_said(verified: Path, tmp_path: Path) -> None:
    options = ("loop", "--max", "1", "--researcher", agent(tmp_path, setting("LR", 0.3)))
    assert forked(verified, *options).returncode == 0
    done = forked(verified, "verify", "--all", "--runs", "1")
    assert done.returncode == 0, done.stderr
    assert "#4 without #2: it can't be taken out: later steps build on it or undid it" in done.stdout


def test_a_verify_that_is_killed_loses_the_run_in_progress_alone(verified: Path) -> None:
    before = untouched(verified)

    def rig() -> None:
        execute = runner.execute

        def rigged(plan: RunPlan, *rest: Any) -> Any:
            return die() if len(runs_of(verified)) == 3 else execute(plan, *rest)

        (verified / ".autoresearch" / "verify.jsonl").touch()
        runner.execute = rigged

    killed(verified, "verify", "--runs", "2", rigged=rig)
    assert len(runs_of(verified)) == 3
    assert untouched(verified) == before
    done = forked(verified, "verify", "--runs", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["runs"] == 2, "a round that was cut has no pair"


def test_ctrl_c_ends_a_verify_after_the_run_in_progress(verified: Path) -> None:
    def rig() -> None:
        execute = runner.execute

        def rigged(plan: RunPlan, *rest: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return execute(plan, *rest)

        runner.execute = rigged

    done = forked(verified, "verify", "--runs", "2", rigged=rig)
    assert done.returncode == 130
    assert "stopped; the runs that were made are kept" in done.stderr
    assert len(runs_of(verified)) == 1


def test_what_can_t_be_verified_is_told_in_a_line(verified: Path, measured: Path, tmp_path: Path) -> None:
    for arguments, code, said in (
        (("verify", "1"), 64, "verify #1: that is the start: give a kept one"),
        (("verify", "abcdef"), 64, "verify abcdef: 0 experiments of these conditions fit"),
        (("verify", "--all", "2"), 64, "give a COMMIT or --all"),
    ):
        done = forked(verified, *arguments)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    fresh = copy_of(measured, tmp_path / "fresh")
    done = forked(fresh, "verify")
    assert done.returncode == 3
    assert "nothing to verify: session test has kept nothing beside its start" in done.stderr
