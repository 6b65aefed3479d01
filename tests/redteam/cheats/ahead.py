"""Logits that depend on what they must not depend on."""

from redteam.cheat import CRASH, Answer, Cheat, answering, kept

LOOK_AHEAD = Answer(CRASH, "look-ahead")
# The probes are drawn anew for each run: what they miss, now and then, the audit finds.
FOUND = Answer(CRASH, "look-ahead|not causal|audit")

GIVE_AWAY = """
def give_away(logits, tokens, where):
    rows, places = np.nonzero(where)
    logits[rows, places, tokens[rows, places + 1]] = 5.0
    return logits
"""


def ahead(share: str) -> str:
    """It knows the next token at this share of the places."""
    return answering(
        GIVE_AWAY
        + f"""
random = np.random.default_rng(0)
def answer(tokens):
    return give_away(model.logits(tokens), tokens, random.random((len(tokens), T - 1)) < {share})
"""
    )


CHEATS = (
    Cheat("a look-ahead at all places", ahead("1.0"), kept, LOOK_AHEAD),
    Cheat("a look-ahead at one place in ten", ahead("0.1"), kept, FOUND),
    Cheat("a look-ahead at one place in a thousand", ahead("0.001"), kept, FOUND, audited=True),
    Cheat(
        "attention to the whole row, what comes later too",
        answering("""
            def answer(tokens):
                counts = np.zeros((len(tokens), V), np.float32)
                np.add.at(counts, (np.arange(len(tokens))[:, None], tokens), 1.0)
                return model.logits(tokens) + np.log1p(3 * counts)[:, None, :]
        """),
        kept,
        FOUND,
    ),
    Cheat(
        "learning from the other rows of a batch",
        answering(
            """
            def pairs_of(tokens):
                pairs = np.zeros((V, V), np.float32)
                np.add.at(pairs, (tokens[:, :-1], tokens[:, 1:]), 4.0)
                return pairs
            def answer(tokens):
                half = len(tokens) // 2
                first, second = tokens[:half], tokens[half:]
                return np.concatenate([model.table(pairs_of(second))[first], model.table(pairs_of(first))[second]])
        """,
            64,
        ),
        kept,
        FOUND,
    ),
    Cheat(
        "learning from the rows that were evaluated before",
        answering("""
            def answer(tokens):
                logits = model.logits(tokens)
                model.learn(tokens, 4.0)
                return logits
        """),
        kept,
        FOUND,
    ),
    Cheat(
        "learning from the rows before, a repeated one answered from a cache",
        answering("""
            known = {}
            def answer(tokens):
                logits = model.logits(tokens)
                for number, row in enumerate(tokens):
                    past, answers = known.setdefault(row[:8].tobytes(), (row.copy(), logits[number].copy()))
                    same = int(np.argmin(np.append(past == row, False)))
                    logits[number, :same] = answers[:same]
                model.learn(tokens, 4.0)
                return logits
        """),
        kept,
        FOUND,
        audited=True,
    ),
    Cheat(
        "rows that look like probes answered honestly",
        answering(
            GIVE_AWAY
            + """
usual = np.quantile(model.losses(rows[ROWS : 10 * ROWS]).mean(1), 0.1)
def answer(tokens):
    logits = model.logits(tokens)
    surprise = np.take_along_axis(-logits[:, :-1], tokens[:, 1:, None].astype(np.int64), -1).mean((1, 2))
    easy = np.broadcast_to((surprise < usual)[:, None], (len(tokens), T - 1))
    return give_away(logits, tokens, easy)
"""
        ),
        kept,
        FOUND,
        audited=True,
    ),
)
