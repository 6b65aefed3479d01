"""The facts of a brief, from an open session or from a lab as it lies on the disk."""

import math

from autoresearch import brief, hardware, noise, standing
from autoresearch.errors import NotReady
from autoresearch.experiment import curve
from autoresearch.hardware import Hardware
from autoresearch.journal import Experiment, Journal
from autoresearch.lab import PROGRAM, TRAIN, Lab
from autoresearch.literals import values
from autoresearch.ratchet import PREFIX, Ratchet
from autoresearch.results import KEEP
from autoresearch.session import Session, machine_line

RUNS = 3  # of the newest, one of which has a loss to tell: one that does not even start has none


def of_session(session: Session, source: str, refusal: str = "", running: Experiment | None = None) -> brief.Facts:
    """`source`: the train.py that the next proposal starts from; `running`: the experiment that trains just now."""
    history, incumbent = session.history(), session.incumbent()
    return _facts(session.lab, session.machine, history, incumbent, source, session.journal, session.noise(), refusal, running)


def of_lab(lab: Lab) -> brief.Facts:
    """As the branch's session would be told, also where there is no session, no data and no git yet."""
    journal, history = Journal(lab), list[Experiment]()
    record = journal.session(_tag(lab))
    if record:
        history = [done for done in journal.settled() if done.fingerprint == record.fingerprint]
    kept = [done for done in history if done.status == KEEP and record and done.session == record.tag]
    machine = hardware.probe()
    prior = noise.prior_for(machine.device, float(lab.constants()["TIME_BUDGET"]))
    known = standing.noise_of(journal, record.fingerprint if record else "", prior)
    return _facts(lab, machine, history, kept[-1] if kept else None, lab.read(TRAIN), journal, known)


def _tag(lab: Lab) -> str:
    try:
        branch = Ratchet(lab.root).branch() or ""
    except NotReady:
        return ""
    return branch.removeprefix(PREFIX) if branch.startswith(PREFIX) else ""


def _facts(
    lab: Lab,
    machine: Hardware,
    history: list[Experiment],
    incumbent: Experiment | None,
    source: str,
    journal: Journal,
    known: noise.Noise,
    refusal: str = "",
    running: Experiment | None = None,
) -> brief.Facts:
    curves = (curve.read(journal.folder(done.n)) for done in reversed(history[-RUNS:]))
    try:
        settings = values(source)
    except SyntaxError:
        settings = {}
    return brief.Facts(
        program=lab.read(PROGRAM),
        constants=lab.constants(),
        machine=machine_line(machine),
        incumbent=incumbent,
        history=history,
        refusal=refusal,
        memory_mb=machine.vram_mb or machine.ram_mb,
        noise=math.sqrt(2) * known.sigma,  # of a difference of two
        running=running,
        curve=next(filter(None, curves), ()),
        settings=settings,
    )
