"""Honest variations of train.py through referee, probes and audit: each must pass, whatever its score.

    uv run python benchmarks/false_alarms.py [--count 200] [--budget 0.5] [--compiled 2] [--audits 1] [--workers 1] [--only N ...]

Draws variations of the shipped train.py with a fixed seed: depths, heads, widths, windows, context lengths, batches, learning
rates, number formats, optimizers, and edits of its structure. Each trains for a moment on the standard library's text and is scored
and audited as if it were to be kept, on the GPU where there is one (CUDA_VISIBLE_DEVICES=-1 keeps to the CPU). Prints a line for
each alarm with its reason, and how many passed.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from autoresearch import hardware
from autoresearch.experiment import audit, sandbox
from autoresearch.experiment.refereeing import Conditions, gpu_of
from autoresearch.experiment.runner import RunPlan, execute
from autoresearch.lab import held_out_files
from autoresearch.literals import set_literals

ROOT = Path(__file__).resolve().parent.parent
SEED = 3
VOCAB = 1024
LENGTHS = (64, 128)
EVAL_ROWS = 128

Edit = tuple[str, str]  # what stands in train.py, and what shall stand there


def evaluated_in(rows: int) -> tuple[Edit, Edit]:
    """Batches of another size than in training; what is compiled for them is compiled before the clock starts."""
    return (
        ("trainer.logits, trainer.device_rows)", f"trainer.logits, {rows})"),
        ("self.logits(made_up()[0])", f"self.logits(torch.zeros({rows}, MAX_SEQ_LEN, dtype=torch.long, device=DEVICE))"),
    )


def mlp_with(activation: str) -> tuple[Edit]:
    return (
        (
            "MLP.apply(y.flatten(0, 1), mlp_in[i], mlp_out[i]).view_as(y)",
            f"F.linear({activation}(F.linear(y, mlp_in[i])), mlp_out[i])",
        ),
    )


def numbers_of(dtype: str) -> Edit:
    return ("DEVICE, DTYPE = pick_device()", f"DEVICE, DTYPE = pick_device()[0], torch.{dtype}")


QUERIES_AND_KEYS = "q, k = Turn.apply(heads, *turns)"
FIRST_EMBEDDING = "return x + gate * F.pad(x, (0, 0, 1, 0))[:, :-1]"
BACKWARD = "loss = loss_of(self.forward(inputs), targets)"

# Structures that researchers try. Each is honest: no token sees what comes later, or another row.
EDITS: dict[str, tuple[Edit, ...]] = {
    "GELU in the MLP": mlp_with("F.gelu"),
    "SiLU in the MLP": mlp_with("F.silu"),
    "ReLU in the MLP": mlp_with("F.relu"),
    "layer norm": (("return F.rms_norm(x, (x.size(-1),))", "return F.layer_norm(x, (x.size(-1),))"),),
    "no rotary positions": ((QUERIES_AND_KEYS, "q, k = norm(heads).unbind(2)"),),
    "no QK-norm": ((QUERIES_AND_KEYS, "q, k = (rotate(part, *turns).to(DTYPE) for part in heads.unbind(2))"),),
    "no soft cap": (("return SOFTCAP * (2 * torch.sigmoid(2 * logits.float()) - 1)", "return SOFTCAP * logits.float()"),),
    "parallel MLP": (
        ("x, heads, v = project(", "before = norm(reduce(torch.add, stream))\n            x, heads, v = project("),
        ("MLP.apply(y.flatten(0, 1),", "MLP.apply(before.flatten(0, 1),"),
    ),
    "the token before mixed in": ((FIRST_EMBEDDING, FIRST_EMBEDDING.replace("gate", "(0.3 + gate)")),),
    "running mean of what came before": (
        (
            FIRST_EMBEDDING,
            "count = torch.arange(1, x.size(1) + 1, device=x.device)[:, None]\n"
            f"    {FIRST_EMBEDDING} + 0.1 * (x.float().cumsum(1) / count).to(DTYPE)",
        ),
    ),
    "tied head": (
        ("unembed(stream, middle, self.backout, self.head)", "unembed(stream, middle, self.backout, self.embed / WIDTH**0.5)"),
        (BACKWARD, f"{BACKWARD} + 0 * self.model.head.sum()"),
    ),
    "SGD for the matrices": (("p.sub_(lr * (update + shrink * p))", "p.sub_(lr * (g + shrink * p))"),),
    "float32 throughout": (numbers_of("float32"),),
    "bfloat16 throughout": (numbers_of("bfloat16"),),
    "float16 throughout": (numbers_of("float16"),),
    "float64 throughout": (numbers_of("float64"), ("q, k, v = q.float(), k.float(), v.float()", "pass")),
    "bfloat16 logits": (
        ("return softcap(self.forward(tokens).detach())", "return softcap(self.forward(tokens).detach()).bfloat16()"),
    ),
    "evaluated one row at a time": evaluated_in(1),
    "evaluated in large batches": evaluated_in(24),
    "dropout while it trains": ((BACKWARD, "loss = loss_of(F.dropout(self.forward(inputs), 0.1), targets)"),),
    "labels smoothed": (("return (total - target).mean()", "return (total - 0.9 * target - 0.1 * capped.mean(-1)).mean()"),),
    "averaged weights": (
        ("self.optimizer.step(count, progress)", "self.optimizer.step(count, progress)\n        self.average(count)"),
        (
            "    def logits(self, tokens: Tensor)",
            "    @torch.no_grad()\n    def average(self, count: int) -> None:\n"
            "        for p in self.optimizer.parameters():\n"
            "            mean = self.__dict__.setdefault('means', {}).setdefault(id(p), p.clone())\n"
            "            p.copy_(mean.lerp_(p, 0.5))\n\n    def logits(self, tokens: Tensor)",
        ),
    ),
    "many threads": (("import prepare\nfrom prepare", "torch.set_num_threads(3)\nimport prepare\nfrom prepare"),),
}


@dataclass(frozen=True)
class Variation:
    name: str
    source: str
    length: int


def draw(chance: random.Random, source: str, number: int, compiled: bool) -> Variation:
    """One variation: other literals, and in two of three cases an edit of the structure."""
    length = chance.choice(LENGTHS)
    head_dim, heads = chance.choice([(8, 2), (16, 2), (16, 3), (16, 4), (32, 1), (32, 2), (32, 4), (64, 2)])
    rows = chance.choice([2, 4, 8, 16])
    literals = {
        "DEPTH": chance.randint(1, 6),
        "NUM_HEADS": heads,
        "HEAD_DIM": head_dim,
        "GATE_CHANNELS": min(32, heads * head_dim),
        "SMEAR_CHANNELS": min(24, heads * head_dim),
        "MLP_RATIO": chance.choice([1, 2, 3, 4]),
        "WINDOW_PATTERN": chance.choice(["L", "SL", "SSL", "SSSL", "S"]),
        "SHORT_WINDOW": chance.choice([8, 16, 32, length // 4]),
        "ROPE_BASE": chance.choice([1000.0, 10_000.0, 200_000.0]),
        "SOFTCAP": chance.choice([5.0, 15.0, 30.0, 50.0]),
        "VALUE_EMBED_EVERY": chance.choice([0, 1, 2, 3]),
        "INIT_SCALE": chance.choice([0.3, 0.68, 1.2]),
        "HEAD_INIT_STD": chance.choice([0.001, 0.02]),
        "TOTAL_BATCH": rows * length * chance.choice([1, 1, 2]),
        "DEVICE_BATCH": rows,
        "MATRIX_LR": chance.choice([0.01, 0.04, 0.1]),
        "EMBED_LR": chance.choice([0.1, 0.9]),
        "HEAD_LR": chance.choice([0.005, 0.02]),
        "MUON_MOMENTUM": chance.choice([0.8, 0.95]),
        "ADAM_BETA1": chance.choice([0.7, 0.8, 0.9]),
        "WARMDOWN": chance.choice([0.3, 0.75, 1.0]),
        "COMPILE": compiled,
    }
    text, edits = set_literals(source, literals), []
    if chance.random() < 2 / 3:
        edits = [chance.choice(sorted(EDITS))]
        for before, after in EDITS[edits[0]]:
            if text.count(before) != 1:
                raise SystemExit(f"train.py has no single {before!r}: mend the edit '{edits[0]}'")
            text = text.replace(before, after)
    shape = f"depth {literals['DEPTH']}, {heads} x {head_dim}, {literals['WINDOW_PATTERN']}, {rows} rows of {length}"
    return Variation(f"#{number} {', '.join([shape, *edits, *(['compiled'] if compiled else [])])}", text, length)


def lay_out(folder: Path, length: int, budget: float) -> Path:
    """Copies of prepare.py and constants.py for this length, with their data prepared."""
    folder.mkdir()
    shutil.copy(ROOT / "prepare.py", folder)
    constants = {
        "TIME_BUDGET": budget,
        "MAX_SEQ_LEN": length,
        "EVAL_TOKENS": EVAL_ROWS * length,
        "VOCAB_SIZE": VOCAB,
        "DATASET": "stdlib",
    }
    (folder / "constants.py").write_text(set_literals((ROOT / "constants.py").read_text(), constants))
    subprocess.run([sys.executable, "-B", "prepare.py"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def judge(variation: Variation, folder: Path, helpers: Path, hidden: tuple[Path, ...], budget: float) -> tuple[str, str]:
    """(what came of it, why): passed, alarm, or failed for one that doesn't run."""
    level = sandbox.best()[0]
    run = folder / "run"
    conditions = Conditions(level, helpers, run, SEED, budget, hidden, gpu=gpu_of(hardware.probe()))
    plan = RunPlan(variation.source, helpers, run, budget, folder / "caches", SEED, 300.0, conditions)
    result = execute(plan, lambda _: None, lambda: False)
    if result.val_bpb is None:
        kind = "alarm" if result.crash_class in ("foul", "non-finite", "overtime") else "failed"
        return kind, f"{result.crash_class}: {result.detail}"
    report = audit.audit(plan, lambda: False)
    return ("alarm", f"audit: {report.reason}") if report.reason else ("passed", f"val_bpb {result.val_bpb:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--budget", type=float, default=0.5, help="seconds of training for each")
    parser.add_argument("--compiled", type=int, default=2, help="how many of them with COMPILE = True: a minute and a half each")
    parser.add_argument("--audits", type=int, default=1, help="processes of each audit; a real one has 2, which do the same")
    parser.add_argument("--only", type=int, nargs="+", help="these of them alone")
    parser.add_argument("--workers", type=int, default=1, help="how many at a time")
    arguments = parser.parse_args()
    audit.PROCESSES = arguments.audits
    source, chance, began = (ROOT / "train.py").read_text(), random.Random(SEED), time.monotonic()
    compiled = {arguments.count * (2 * each + 1) // (2 * arguments.compiled) for each in range(arguments.compiled)}
    came: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="autoresearch-") as temporary:
        folder = Path(temporary)
        helpers = {length: lay_out(folder / f"t{length}", length, arguments.budget) for length in LENGTHS}
        hidden = held_out_files(helpers[LENGTHS[0]])
        variations = [draw(chance, source, number, number in compiled) for number in range(arguments.count)]

        def tried(number: int) -> tuple[str, str]:
            own, variation = folder / str(number), variations[number]
            own.mkdir()
            try:
                return judge(variation, own, helpers[variation.length], hidden, arguments.budget)
            finally:
                shutil.rmtree(own)

        chosen = arguments.only or range(arguments.count)
        with ThreadPoolExecutor(arguments.workers) as pool:
            for number, (kind, why) in zip(chosen, pool.map(tried, chosen), strict=True):
                came[kind] += 1
                if kind != "passed" or sys.stderr.isatty() or arguments.only:
                    print(f"{kind}: {variations[number].name}: {why}", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{came['passed'] + came['alarm']} honest variations: {came['passed']} passed, {came['alarm']} false alarms; ", end="")
    print(f"{came['failed']} more did not run; {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
