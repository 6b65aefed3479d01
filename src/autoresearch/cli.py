"""The commands: argument parsing and calls, nothing else.

Data goes to stdout, everything said to a person to stderr. Exit codes: 0 done, 3 the machine or the lab is not ready, 64 a wrong
call, 70 our own fault, 130 stopped by a person; `run` also 1 for a crash and 2 for a time-out.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from autoresearch import report, results
from autoresearch.errors import Interrupted, NotReady, WrongCall
from autoresearch.lab import PROGRAM, TRAIN, Lab, find_lab
from autoresearch.terminal import tell as say

if TYPE_CHECKING:
    from autoresearch.experiment.refereeing import Conditions
    from autoresearch.journal import Experiment, Journal
    from autoresearch.judge import Rule
    from autoresearch.ledger import Ledger
    from autoresearch.ratchet import Ratchet
    from autoresearch.runs import Runs
    from autoresearch.session import Session
    from autoresearch.setup import Wishes
    from autoresearch.view import View

CRASH, TIMEOUT, NOT_READY, WRONG, FAULT, STOPPED = 1, 2, 3, 64, 70, 130
# Seconds of a run beyond its budget (start-up, evaluation), for the first estimate of a session's length: 8 were measured on two
# CPU cores, 20 warm to 83 cold on an H200.
BEYOND_BUDGET = {"cuda": 60.0, "mps": 30.0, "cpu": 8.0}
RECENT = 50  # runs that later ones go by


class Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise WrongCall(f"{self.prog}: {message} (see {self.prog} --help)")


def lab_here() -> Lab:
    return find_lab(Path.cwd(), os.environ.get("AUTORESEARCH_HOME"))


# -- commands --------------------------------------------------------------------------------------------------------


def command_check(arguments: argparse.Namespace) -> int:
    from autoresearch import hardware
    from autoresearch.experiment import sandbox
    from autoresearch.profiles import profile_for
    from autoresearch.researchers.choose import readiness

    found = hardware.probe()
    ready, problems = hardware.readiness(found)
    facts = hardware.report(found, profile_for(found).name, ready, problems)
    level, reason = sandbox.best(found.device == "cuda")
    facts |= {"sandbox": level, "sandbox_problem": reason or None, "researchers": readiness()}
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            shown = [f"{key}: {told}" for key, told in value.items()] if isinstance(value, dict) else value
            print(f"{name}: {shown if not isinstance(shown, list) else '; '.join(map(str, shown)) or 'none'}")
    return 0 if ready else 1


def command_setup(arguments: argparse.Namespace) -> int:
    from autoresearch import hardware
    from autoresearch.experiment.runner import check_disk
    from autoresearch.journal import Journal
    from autoresearch.setup import setup

    lab = lab_here()
    with Journal(lab).lock():
        check_disk(lab.journal)
        setup(lab, hardware.probe(), _wishes(arguments), say)
    say("ready: write your directions into program.md, then 'bash scripts/run-loop.sh --max 100'")
    return 0


def command_run(arguments: argparse.Namespace) -> int:
    from autoresearch.journal import Journal
    from autoresearch.literals import override

    if arguments.record is not None and not arguments.record.strip():
        raise WrongCall("--record needs a text: what you tried, in one line")
    if arguments.record is not None and arguments.set:
        raise WrongCall("--set is for a look, --record for an edit of train.py: give one of them")
    lab = lab_here()
    source = lab.train_source()
    try:
        source = override(source, arguments.set)
    except ValueError as error:
        raise WrongCall(f"--set {error}") from None
    with Journal(lab).lock():
        if arguments.record is not None:
            return _record(lab, source, arguments)
        return _run_once(lab, source, arguments)


def _run_once(lab: Lab, source: str, arguments: argparse.Namespace) -> int:
    """One run of the working tree's train.py; nothing is logged or committed."""
    from autoresearch.experiment import runner
    from autoresearch.experiment.caches import adopt
    from autoresearch.experiment.refereeing import CACHES
    from autoresearch.journal import SCORED, TIMED_OUT, Journal
    from autoresearch.lab import copy_helpers, data_fingerprint
    from autoresearch.view import View

    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the run does not outlive us
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    journal = Journal(lab)
    helpers = copy_helpers(lab, journal.root / "scratch" / "helpers")
    data_fingerprint(helpers)  # tells missing data in one line
    view = View()
    plan = runner.RunPlan(
        source=source,
        helpers=helpers,
        folder=journal.by_hand,
        budget=float(lab.constants()["TIME_BUDGET"]),
        caches=journal.root / "caches",
        allowance=arguments.allowance,
        refereed=_conditions(lab, helpers, journal.by_hand, arguments.sandbox),
    )
    try:
        with view.run("train.py", plan.budget):
            result = runner.execute(plan, view.progress, lambda: False)
    finally:
        if (plan.folder / "run.log").exists():
            lab.log.write_bytes((plan.folder / "run.log").read_bytes())
    if result.outcome == SCORED:
        print(f"val_bpb: {result.val_bpb:.6f}")
        print(f"peak_vram_mb: {result.memory_mb or 0:.1f}")
        adopt(plan.folder / CACHES, plan.caches)
        changed = f" with {', '.join(arguments.set)}, not committed" if arguments.set else ""
        say(f"measured by the referee{changed}, sandbox {result.sandbox}; the whole output is in {lab.log}")
        return 0
    say(f"{result.outcome} ({result.crash_class}): {result.detail}; the whole output is in {lab.log}")
    return TIMEOUT if result.outcome == TIMED_OUT else CRASH


def _conditions(lab: Lab, helpers: Path, folder: Path, asked: str | None) -> "Conditions":
    from autoresearch import hardware
    from autoresearch.experiment import sandbox
    from autoresearch.experiment.refereeing import Conditions, gpu_of, hidden_files
    from autoresearch.experiment.runner import DEFAULT_SEED

    gpu = gpu_of(hardware.probe())
    level = sandbox.choose(asked, False, say, gpu is not None)
    budget = float(lab.constants()["TIME_BUDGET"])
    hidden = hidden_files(helpers) if level != sandbox.NONE else ()
    return Conditions(level, helpers, folder, DEFAULT_SEED, budget, hidden, gpu)


def _record(lab: Lab, source: str, arguments: argparse.Namespace) -> int:
    """A whole turn for the edit in the working tree: commit, run, judge, row, settle."""
    from autoresearch.experiment import sandbox
    from autoresearch.journal import TIMED_OUT
    from autoresearch.loop import Loop, row_of
    from autoresearch.researchers.team import Team
    from autoresearch.settings import early_stop
    from autoresearch.stop import Stop
    from autoresearch.view import View

    early = early_stop(lab, None)
    view = View()
    session = _open_session(lab, arguments, view, allowed=(TRAIN,))
    level = sandbox.choose(arguments.sandbox, False, say, session.machine.device == "cuda")
    rule = _rule(session, arguments)
    loop = Loop(session, Team(()), view, Stop(view), arguments.allowance, early_stop=early, sandbox=level, rule=rule)
    done = loop.record(source, arguments.record)
    if done is None:
        say("train.py is unchanged: this was the baseline; change train.py and record again")
        return 0
    print(results.format_row(row_of(done)))
    timed_out = done.result is not None and done.result.outcome == TIMED_OUT
    return 0 if done.status != results.CRASH else TIMEOUT if timed_out else CRASH


def command_loop(arguments: argparse.Namespace) -> int:
    from autoresearch import owner
    from autoresearch.experiment import sandbox
    from autoresearch.journal import Journal
    from autoresearch.ledger import Limits
    from autoresearch.loop import Loop
    from autoresearch.settings import early_stop, team
    from autoresearch.stop import Stop
    from autoresearch.view import View

    if arguments.max < 0:
        raise WrongCall(f"--max {arguments.max}: a number of experiments, or 0 for no limit")
    lab = lab_here()
    names = ("model", "endpoint", "key_variable", "time_limit", "turns", "budget")
    researchers = team(lab, arguments.researcher, {name: getattr(arguments, name) for name in names})
    early = early_stop(lab, arguments.early_stop)
    limits = Limits(time.monotonic(), arguments.max_cost, arguments.max_hours * 3600)
    if arguments.detach:
        return _detach(lab)
    view, journal, mine = View(), Journal(lab), owner.me()
    with journal.lock(loop=True):
        session = _open_session(lab, arguments, view)
        stop = Stop(view, lambda: journal.is_asked_to_stop(mine))
        rule = _rule(session, arguments)
        say(_estimate(session, arguments.max, rule))
        say(_told(rule, session))
        level = sandbox.choose(arguments.sandbox, researchers.name == "search", say, session.machine.device == "cuda")
        if researchers.name == "search":
            say("search tunes the ALL_CAPS literals of train.py; program.md is for agents and commands (--researcher)")
        try:
            loop = Loop(
                session, researchers, view, stop, arguments.allowance, limits, arguments.ahead, early, sandbox=level, rule=rule
            )
            loop.run(arguments.max)
        finally:
            _end(session)
        if journal.is_asked_to_stop(mine):
            say("stopped, as 'autoresearch stop' asked; the same command goes on from here")
    return STOPPED if stop.now else 0


def _open_session(lab: Lab, arguments: argparse.Namespace, view: "View", allowed: tuple[str, ...] = ()) -> "Session":
    """The session of the current or named branch; the lab is set up first if that was not done."""
    from dataclasses import replace

    from autoresearch import hardware
    from autoresearch.experiment.runner import check_disk
    from autoresearch.journal import Journal
    from autoresearch.ratchet import Ratchet
    from autoresearch.session import Session, gone
    from autoresearch.setup import Wishes, check_clean, setup, tag_of

    ratchet, journal = Ratchet(lab.root), Journal(lab)
    journal.read_ahead()
    machine = hardware.probe()
    ready, problems = hardware.readiness(machine)
    if not ready:
        raise NotReady("; ".join(problems))
    check_disk(lab.journal)
    results.check_header(lab.results)  # a foreign one stops us before anything has changed
    tag = tag_of(ratchet, arguments.tag)
    record = journal.session(tag)
    here = record is not None and ratchet.branch() == record.branch
    if record and here and not ratchet.commit_of(f"refs/heads/{record.branch}"):
        raise gone(record, journal)
    ratchet.check_repository()
    lab.train_source()
    if record is None or not record.profile or not here:
        if allowed and ratchet.changed_files():  # the edit would be taken for the profile's literals
            way_out = "'git stash', 'bash scripts/setup.sh', 'git stash pop', then record again"
            raise NotReady(f"the lab is not set up on this branch and has uncommitted changes: {way_out}")
        record = setup(lab, machine, Wishes(tag=tag), say)
    elif _edited_by_us(lab, journal, ratchet):
        allowed = (TRAIN,)
    check_clean(ratchet, (PROGRAM, *allowed))
    if title := getattr(arguments, "desc", None):
        record = replace(record, title=results.clean(title))
    return Session(lab, journal, record, machine, view.say)


def _edited_by_us(lab: Lab, journal: "Journal", ratchet: "Ratchet") -> bool:
    """Whether train.py differs from the branch's only because a turn was cut off: recovery then puts it right."""
    left = journal.unfinished()
    if left is None:
        return False
    parent = ratchet.show(left.parent, TRAIN).encode()
    return lab.train.read_bytes() in (parent, (journal.folder(left.n) / TRAIN).read_bytes())


def _rule(session: "Session", arguments: argparse.Namespace) -> "Rule":
    from autoresearch import settings

    names = {"keep": "keep", settings.NOISE_RUNS: "noise_runs", "keep-simpler": "keep_simpler"}
    flags = {name: getattr(arguments, field, None) for name, field in names.items()}
    return settings.rule(session.lab, flags, session.machine.device)


def _told(rule: "Rule", session: "Session") -> str:
    """How this session judges, in a line."""
    from autoresearch import judge

    if rule.keep == judge.STRICT:
        return "keep rule: strict: one run each, lower is kept"
    known = session.noise()
    source = f"from {known.measured} repeats and a prior" if known.measured else f"a prior: {session.prior.source}"
    baseline = "once (--noise-runs N for more)" if rule.noise_runs == 1 else f"{rule.noise_runs} times"
    return (
        f"keep rule: measured: a run scatters by {known.sigma:.4f} ({source}); the baseline is run {baseline}, a candidate up to "
        f"{rule.most_runs} times, until it is better beyond that noise or not"
    )


def _estimate(session: "Session", limit: int, rule: "Rule") -> str:
    """'5 experiments and the baseline, about 44 s each: about 4 to 10 minutes in all, by how many have to be run again'."""
    from autoresearch import judge

    scored = [done for done in session.history() if done.val_bpb]
    seconds = [done.result.wall_seconds for done in scored[-RECENT:] if done.result]
    budget = float(session.constants["TIME_BUDGET"])
    each = sorted(seconds)[len(seconds) // 2] if seconds else budget + BEYOND_BUDGET[session.machine.device]
    runs = limit + (rule.noise_runs if session.incumbent() is None else 0)
    if limit == 0:
        return f"experiments until you stop with Ctrl-C, about {each:.0f} s each ({budget:.0f} s of training)"
    what = f"{limit} experiment{'s' if limit > 1 else ''}{' and the baseline' if runs > limit else ''}"
    repeats = 0 if rule.keep == judge.STRICT else limit * (rule.most_runs - 1) + rule.most_reference
    unit, name = (60, "minutes") if runs * each >= 120 else (1, "s")
    whole = f"{runs * each / unit:.0f} {name} in all"
    if repeats:
        whole = f"{runs * each / unit:.0f} to {(runs + repeats) * each / unit:.0f} {name} in all, by how many have to be run again"
    return f"{what}, about {each:.0f} s each ({budget:.0f} s of training): about {whole}"


def _end(session: "Session") -> None:
    numbers = session.journal.numbers(session.record.tag)
    rows = [row for row in results.read(session.lab.results)[0] if row.commit in numbers]
    if rows:
        title = f"{session.record.title or session.record.tag}\n"
        print(title + report.text(rows, top=10, kept_only=False, numbers=numbers), flush=True)
        _print_account(session.journal, session.ledger, session.record.tag)
        say(f"to take the best into your branch: {session.merge_line()}")


def _print_account(journal: "Journal", ledger: "Ledger", tag: str | None = None) -> None:
    from autoresearch.history import account

    for line in account(journal, ledger, tag):
        print(line, flush=True)


def command_status(arguments: argparse.Namespace) -> int:
    from autoresearch import status

    print(status.show(lab_here(), arguments.json))
    return 0


def command_stop(arguments: argparse.Namespace) -> int:
    from autoresearch import status

    say(status.stop(lab_here()))
    return 0


def command_brief(arguments: argparse.Namespace) -> int:
    from autoresearch import brief, facts

    print(brief.write(facts.of_lab(lab_here())), end="")
    return 0


def command_history(arguments: argparse.Namespace) -> int:
    from autoresearch import history
    from autoresearch.journal import Journal

    found = history.search(Journal(lab_here()).wholes(), arguments.search)
    print(history.as_json(found) if arguments.json else history.as_text(found))
    return 0


def command_mcp(arguments: argparse.Namespace) -> int:
    from autoresearch import mcp_server

    return mcp_server.serve(lab_here())


def _detach(lab: Lab) -> int:
    """Start the same loop in a session of its own, which a closed terminal does not end."""
    from autoresearch.journal import Journal

    Journal(lab).create()
    log = lab.journal / "loop.log"
    words = [word for word in sys.argv[1:] if word != "--detach"]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autoresearch", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        code = process.wait(timeout=3)
    except subprocess.TimeoutExpired:
        print(f"running as process {process.pid}; follow it: tail -f {log}; stop it after this experiment: kill -INT {process.pid}")
        return 0
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    say(last[0] if last else "the loop ended at once")
    return code


def command_audit(arguments: argparse.Namespace) -> int:
    """Start a kept experiment's train.py again with its weights and compare its losses with the scored ones."""
    from autoresearch.experiment.audit import audit
    from autoresearch.journal import Journal

    lab = lab_here()
    with Journal(lab).lock():
        runs = _open_runs(lab, arguments)
        found = _named(runs.session, "audit", arguments.commit)
        report = audit(runs.plan(found), lambda: runs.stop.now)
    print(json.dumps(report.as_dict() | {"passed": not report.reason}))
    say(report.reason or f"experiment {found.n} gives its losses again from its weights alone")
    return CRASH if report.reason else 0


def command_verify(arguments: argparse.Namespace) -> int:
    """Run a kept experiment and the session's start again, with fresh seeds, and say what of the gain is real."""
    from autoresearch.journal import Journal
    from autoresearch.verify import Verifier, text, verify_all, verify_one

    if arguments.all and arguments.commit:
        raise WrongCall("--all verifies the whole session: give a COMMIT or --all")
    lab = lab_here()
    with Journal(lab).lock():
        runs = _open_runs(lab, arguments)
        runs.end_left_over()
        verifier = Verifier(runs)
        rounds = arguments.runs or (3 if runs.session.machine.device == "cuda" else 2)
        wanted = _named(runs.session, "verify", arguments.commit) if arguments.commit else None
        findings = verify_all(verifier, rounds) if arguments.all else verify_one(verifier, wanted, rounds)
    print(json.dumps([finding.as_dict() for finding in findings], indent=2) if arguments.json else text(findings))
    return 0 if all(finding.gain or not finding.runs for finding in findings) else CRASH


def _open_runs(lab: Lab, arguments: argparse.Namespace) -> "Runs":
    """For what runs train.py and proposes nothing."""
    from autoresearch.experiment import sandbox
    from autoresearch.runs import Runs
    from autoresearch.stop import Stop
    from autoresearch.view import View

    view = View()
    session = _open_session(lab, arguments, view)
    level = sandbox.choose(arguments.sandbox, False, say, session.machine.device == "cuda")
    return Runs(session, view, Stop(view), level, arguments.allowance)


def _named(session: "Session", command: str, wanted: str) -> "Experiment":
    """The experiment with this commit or number. Raises WrongCall."""
    named = {done.n: str(done.n) if wanted.isdigit() and len(wanted) < 7 else done.commit or "" for done in session.history()}
    found = [done for done in session.history() if wanted and named[done.n].startswith(wanted)]
    found = [done for done in found if named[done.n] == wanted] or found
    if len(found) != 1:
        raise WrongCall(f"{command} {wanted}: {len(found)} experiments of these conditions fit: give a commit of results.tsv")
    return found[0]


def command_results(arguments: argparse.Namespace) -> int:
    from autoresearch.history import newest_judged
    from autoresearch.journal import Journal
    from autoresearch.ledger import Ledger

    lab = lab_here()
    if arguments.top < 1:
        raise WrongCall(f"--top {arguments.top}: how many rows to show, 1 or more")
    if arguments.diff is not None or arguments.restore is not None:
        return _code_of(lab, arguments)
    rows, warnings = results.read(lab.results)
    for warning in warnings[:5]:
        say(warning)
    if len(warnings) > 5:
        say(f"and {len(warnings) - 5} more lines like these")
    if arguments.plot:
        from autoresearch.plot import plot

        summary = results.summarize(rows)
        plot(rows, Path(arguments.plot), f"{summary.experiments} experiments, {summary.improvements} kept improvements")
        say(f"drawn: {arguments.plot}")
    journal = Journal(lab)
    numbers = journal.numbers()
    if arguments.json:
        newest = newest_judged(journal.settled())
        judgement = newest.judgement if newest else None
        known = {"noise": {name: judgement[name] for name in ("sigma", "measured")} if judgement else None}
        print(json.dumps(report.as_dict(rows, arguments.top, arguments.kept_only, numbers) | known, indent=2))
    elif not arguments.plot:
        print(report.text(rows, arguments.top, arguments.kept_only, numbers))
        _print_account(journal, Ledger(journal.root))
    return 0


def _code_of(lab: Lab, arguments: argparse.Namespace) -> int:
    """`--diff N`: what experiment N changed. `--restore N`: its train.py into the working tree, for you to look at or commit."""
    from autoresearch.files import write_atomically
    from autoresearch.journal import Journal

    number = arguments.diff if arguments.diff is not None else arguments.restore
    folder = lab.journal / "runs" / str(number)
    if not (folder / TRAIN).is_file():
        raise WrongCall(f"there is no experiment {number} in {lab.journal / 'runs'}")
    if arguments.diff is not None:
        patch = folder / "patch"
        print(patch.read_text(encoding="utf-8") if patch.exists() else "", end="")
        return 0
    from autoresearch.ratchet import Ratchet

    with Journal(lab).lock():  # a loop that is at work would stop over a changed train.py
        if TRAIN in Ratchet(lab.root).changed_files():
            raise NotReady(f"train.py has uncommitted changes: commit them, or 'git checkout -- {TRAIN}', then restore again")
        write_atomically(lab.train, (folder / TRAIN).read_bytes())
    say(f"train.py is now that of experiment {number}; keep it with 'git commit -am', or go back with 'git checkout -- {TRAIN}'")
    return 0


def _wishes(arguments: argparse.Namespace) -> "Wishes":
    from autoresearch.setup import Wishes

    return Wishes(arguments.tag, arguments.seq_len, arguments.source, arguments.time_budget, arguments.num_shards)


# -- parsing ---------------------------------------------------------------------------------------------------------


def parser() -> Parser:
    top = Parser(
        prog="autoresearch",
        description="Autonomous research on train.py: one idea at a time, 300 seconds each, one number.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    check = commands.add_parser("check", help="what this machine has, and whether it is ready: exit code 0 ready, 1 not")
    check.add_argument("--json", action="store_true", help="as JSON")
    check.set_defaults(call=command_check)

    setup = commands.add_parser("setup", help="fit the lab to this machine and prepare the data")
    setup.add_argument("--seq-len", type=int, metavar="N", help="MAX_SEQ_LEN, a power of two (default: by memory)")
    setup.add_argument(
        "--source", metavar="NAME", help="fineweb-edu, climbmix, stdlib, or a folder with text (default: by machine)"
    )
    setup.add_argument("--num-shards", type=int, metavar="N", help="training shards to download (default: 10)")
    setup.add_argument("--time-budget", type=int, metavar="S", help="seconds of training in a run (default: 300, on a CPU 30)")
    _tag(setup)
    setup.set_defaults(call=command_setup)

    run = commands.add_parser("run", help="run train.py once")
    run.add_argument("--record", metavar="TEXT", help="make it a whole turn: commit, run, judge, row; TEXT says what was tried")
    set_help = "run with this literal of train.py changed, or multiplied (DEPTH=2x); nothing is committed; may be repeated"
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=set_help)
    _judge(run)
    _sandbox(run)
    _tag(run)
    _allowance(run)
    run.set_defaults(call=command_run)

    loop = commands.add_parser("loop", help="propose, run, keep or revert, repeat")
    loop.add_argument(
        "--max",
        type=int,
        default=0,
        metavar="N",
        help="further experiments, beside the baseline (default 0: until stopped)",
    )
    loop.add_argument("--desc", metavar="TEXT", help="a title for the session")
    _researcher(loop)
    _judge(loop)
    early_help = "end a run that is far behind the incumbent (default on)"
    loop.add_argument("--early-stop", choices=("on", "off"), help=early_help)
    loop.add_argument("--detach", action="store_true", help="go on after the terminal is closed")
    _sandbox(loop)
    _tag(loop)
    _allowance(loop)
    loop.set_defaults(call=command_loop)

    audit = commands.add_parser("audit", help="make a kept experiment give its losses again: exit code 0 it does, 1 it doesn't")
    audit.add_argument("commit", metavar="COMMIT", help="the experiment's commit, as in results.tsv, or its number")
    _sandbox(audit)
    _tag(audit)
    _allowance(audit)
    audit.set_defaults(call=command_audit)

    verify = commands.add_parser("verify", help="run a kept commit again with fresh seeds: what of its gain is real")
    verify.add_argument(
        "commit", nargs="?", metavar="COMMIT", help="a kept commit, as in results.tsv, or its number (default: the best)"
    )
    verify.add_argument("--all", action="store_true", help="the whole gain, and what each kept step is worth at the end")
    verify.add_argument(
        "--runs", type=count, metavar="N", help="runs of each (default: on a GPU 3, else 2); more calls add to them"
    )
    verify.add_argument("--json", action="store_true", help="as JSON")
    _sandbox(verify)
    _tag(verify)
    _allowance(verify)
    verify.set_defaults(call=command_verify)

    show = commands.add_parser("results", help="report on results.tsv")
    show.add_argument("--top", type=int, default=10, metavar="N", help="how many of the best to list (default 10)")
    show.add_argument("--kept-only", action="store_true", help="the kept ones in order, with their gain over the one before")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.add_argument("--plot", metavar="FILE", help="draw the session into FILE (.png, .svg, .pdf)")
    show.add_argument("--diff", type=int, metavar="N", help="what experiment N changed in train.py")
    show.add_argument("--restore", type=int, metavar="N", help="put experiment N's train.py into the working tree")
    show.set_defaults(call=command_results)

    status = commands.add_parser("status", help="what runs now, since when, the curve so far, the last ten rows")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(call=command_status)

    stop = commands.add_parser("stop", help="ask the loop of this lab, in whatever terminal, to end after its experiment")
    stop.set_defaults(call=command_stop)

    brief = commands.add_parser("brief", help="what a researcher would be told now")
    brief.set_defaults(call=command_brief)

    history = commands.add_parser("history", help="every experiment: what was tried and why, what was expected, what came of it")
    history.add_argument("--json", action="store_true", help="as JSON")
    history.add_argument("--search", default="", metavar="TEXT", help="only those in which every word of TEXT stands")
    history.set_defaults(call=command_history)

    mcp = commands.add_parser("mcp", help="serve brief, run_experiment, history and results to an agent (needs the extra 'mcp')")
    mcp.set_defaults(call=command_mcp)
    return top


def _researcher(loop: argparse.ArgumentParser) -> None:
    loop.add_argument(
        "--researcher",
        metavar="WHO",
        help="search (default), claude, codex, opencode, gemini, aider, acp:COMMAND, llm, a mixture as search:0.7,claude:0.3, "
        "or a command: './my-agent --flag' (needs a space or slash)",
    )
    loop.add_argument("--model", metavar="NAME", help="the agent's or llm's model, by the name that it knows")
    loop.add_argument("--endpoint", metavar="URL", help="another model server, as http://127.0.0.1:11434/v1")
    loop.add_argument("--key-variable", metavar="NAME", help="the environment variable with that server's key")
    loop.add_argument(
        "--researcher-timeout", dest="time_limit", type=above_0, metavar="S", help="seconds for one proposal (default 900)"
    )
    loop.add_argument("--turns", type=count, metavar="N", help="an agent's turns in a proposal (default 30), if it takes a limit")
    loop.add_argument("--budget", type=above_0, metavar="D", help="dollars for a proposal (default 2), where the agent counts them")
    loop.add_argument("--max-cost", type=above_0, default=float("inf"), metavar="D", help="stop when proposals have cost D dollars")
    loop.add_argument("--max-hours", type=above_0, default=float("inf"), metavar="H", help="begin no experiment after H hours")
    loop.add_argument(
        "--no-ahead", dest="ahead", action="store_false", help="don't ask for the next proposal while an experiment trains"
    )


def _judge(command: argparse.ArgumentParser) -> None:
    keep_help = "measured: better beyond the noise, by as many runs as that takes (default); strict: one run, lower wins"
    command.add_argument("--keep", choices=("measured", "strict"), help=keep_help)
    command.add_argument("--noise-runs", type=count, metavar="N", help="runs of the baseline (default: on a GPU 3, else 1)")
    simpler_help = "whether a train.py that is as good and has clearly less code is kept too (default on)"
    command.add_argument("--keep-simpler", choices=("on", "off"), help=simpler_help)


def _tag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tag",
        metavar="NAME",
        help="work on the branch autoresearch/NAME (default: the current one, else today's date)",
    )


def _sandbox(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sandbox",
        choices=("bubblewrap", "landlock", "none"),
        help="the box that train.py and a command researcher run in (default: the best that this machine has)",
    )


def seconds(text: str) -> float:
    if not 0 <= (number := float(text)) < float("inf"):
        raise ValueError("neither negative nor endless")
    return number


def above_0(text: str) -> float:
    if not (number := seconds(text)) > 0:
        raise ValueError("not above 0")
    return number


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError("not above 0")
    return number


def _allowance(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allowance",
        type=seconds,
        default=600.0,
        metavar="S",
        help="seconds a run may take beyond its budget before it is ended (default 600)",
    )


def main(argv: list[str] | None = None) -> int:
    try:
        arguments = parser().parse_args(argv)
        return int(arguments.call(arguments))
    except WrongCall as error:
        say(f"autoresearch: {error}")
        return WRONG
    except NotReady as error:
        say(f"autoresearch: {error}")
        return NOT_READY
    except Interrupted as error:
        say(f"autoresearch: {error}; the next start goes on from here")
        return STOPPED
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        what = f"{error.filename or 'the file system'}: {error.strerror or error}"
        say(f"autoresearch: {what}: nothing is lost, mend it and start again")
        return NOT_READY
    except Exception:
        traceback.print_exc()
        say("autoresearch: this is our own fault; nothing is lost, the next start goes on from here. Please report the lines above")
        return FAULT
