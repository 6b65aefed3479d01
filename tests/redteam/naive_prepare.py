"""prepare.py as harnesses of the usual kind have it: data, clock and score live in train.py's own process."""

import json
import math
import os
import time
from base64 import b64decode
from pathlib import Path

import numpy as np

from constants import EVAL_TOKENS, MAX_SEQ_LEN, TIME_BUDGET, VOCAB_SIZE

DATA = Path(os.environ["AUTORESEARCH_CACHE"]) / "prepared" / f"stdlib-v{VOCAB_SIZE}-t{MAX_SEQ_LEN}"


def load_rows(split):
    return np.fromfile(DATA / f"{split}.bin", "<u2").reshape(-1, MAX_SEQ_LEN + 1)


def token_bytes():
    ranks = json.loads((DATA / "tokenizer.json").read_text())["ranks"]
    return np.array([len(b64decode(token)) for token in ranks] + [0] * (VOCAB_SIZE - len(ranks)))


def open_run():
    return Run()


class Run:
    seed = int(os.environ.get("AUTORESEARCH_SEED", "1337"))
    val_bpb = math.nan

    def start(self, model):
        rows = load_rows("train")
        rows = rows[np.random.default_rng(self.seed).permutation(len(rows))]
        self.began = time.time()
        return rows

    def remaining(self):
        return TIME_BUDGET - (time.time() - self.began)

    def evaluate_bpb(self, model, logits_fn, batch_rows):
        rows = load_rows("val")[: EVAL_TOKENS // MAX_SEQ_LEN]
        given = [logits_fn(rows[at : at + batch_rows, :-1]) for at in range(0, len(rows), batch_rows)]
        nats, targets = [], rows[:, 1:]
        for at, logits in zip(range(0, len(rows), batch_rows), given, strict=True):
            logits = logits - logits.max(-1, keepdims=True)
            right = np.take_along_axis(logits, targets[at : at + batch_rows, :, None].astype(np.int64), -1)[..., 0]
            nats.append(np.log(np.exp(logits).sum(-1)) - right)
        sizes = token_bytes()[targets]
        self.val_bpb = float(np.concatenate(nats)[sizes > 0].sum(dtype=np.float64) / (math.log(2) * sizes.sum()))
        return self.val_bpb

    def summary(self, **figures):
        print("---", f"val_bpb:          {self.val_bpb:.6f}", "num_steps:        1", sep="\n", flush=True)
