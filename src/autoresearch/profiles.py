"""What a lab looks like on each kind of machine: the table of references/hardware-config.md.

Memory decides, and it is the memory measured: a "24 GB" card has 24,564 MB, a 16 GB card 15,079 and more, a 40 GB card 40,536 and
more. MB is 2**20 bytes. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoresearch.hardware import Hardware


@dataclass(frozen=True)
class Profile:
    """What `setup` writes: `constants` into constants.py, `train` into the literals of train.py."""

    name: str
    device: str
    constants: dict[str, int | str]
    train: dict[str, int | float | str | bool]


# The table of references/hardware-config.md. TOTAL_BATCH counts tokens of one optimizer step, DEVICE_BATCH rows of one
# pass over the device; train.py halves DEVICE_BATCH by itself where memory runs out. A 16 GB card reports 15,079 MB and
# more, a 40 GB card 40,536 and more.
# fmt: off
_CONSTANTS = ["TIME_BUDGET", "MAX_SEQ_LEN", "EVAL_TOKENS", "VOCAB_SIZE", "DATASET"]
_CONSTANT_ROWS: dict[str, tuple[int | str, ...]] = {
    "gpu-70gb": (300,           2048,          20_971_520,    8192,         "fineweb-edu"),
    "gpu-36gb": (300,           1024,          10_485_760,    8192,         "fineweb-edu"),
    "gpu-15gb": (300,           512,           5_242_880,     8192,         "fineweb-edu"),
    "gpu-5gb":  (300,           256,           2_097_152,     8192,         "fineweb-edu"),
    "mps":      (300,           256,           131_072,       2048,         "stdlib"),
    "cpu":      (30,            256,           131_072,       2048,         "stdlib"),
}
_SIZES = ["DEPTH", "NUM_HEADS", "HEAD_DIM", "PAIR_ROWS", "TOTAL_BATCH", "DEVICE_BATCH", "WINDOW_PATTERN", "SHORT_WINDOW", "COMPILE"]
_SIZE_ROWS: dict[str, tuple[int | str, ...]] = {
    "gpu-70gb": (9,  5,           128,        20,          2**17,         64,             "SSSSL",          512,            True),
    "gpu-36gb": (9,  5,           128,        20,          2**17,         64,             "SSSSL",          512,            True),
    "gpu-15gb": (8,  4,           128,        20,          2**16,         64,             "SSSL",           256,            True),
    "gpu-5gb":  (6,  4,           64,         20,          2**15,         64,             "SSL",            128,            True),
    "mps":      (4,  4,           32,         0,           2**12,         16,             "SSSL",           128,            False),
    "cpu":      (4,  4,           32,         0,           2**11,         8,              "SSSL",           128,            False),
}
# fmt: on
_GPU_FROM_MB = {"gpu-70gb": 70_000, "gpu-36gb": 36_000, "gpu-15gb": 15_000, "gpu-5gb": 0}

MIN_SEQ_LEN, MAX_SEQ_LEN = 64, 65_536


def profile_for(hw: Hardware) -> Profile:
    """The profile of this machine. A GPU whose memory can't be told gets the smallest GPU profile."""
    if hw.device != "cuda":
        return _profile(hw.device, hw.device)
    return _profile(next(name for name, mb in _GPU_FROM_MB.items() if (hw.vram_mb or 0) >= mb), "cuda")


def _profile(name: str, device: str) -> Profile:
    constants = dict(zip(_CONSTANTS, _CONSTANT_ROWS[name], strict=True))
    return Profile(name, device, constants, dict(zip(_SIZES, _SIZE_ROWS[name], strict=True)))


def with_seq_len(profile: Profile, n: int) -> Profile:
    """The profile at a context of `n` tokens, with about as many tokens on the device as before.

    Raises ValueError, in one line that offers the nearest lengths that work, if `n` is none of 64, 128 ... 65536.
    """
    check_seq_len(n)
    old = {name: value for name, value in {**profile.constants, **profile.train}.items() if isinstance(value, int)}
    return replace(
        profile,
        constants={**profile.constants, "MAX_SEQ_LEN": n, "EVAL_TOKENS": min(old["EVAL_TOKENS"], eval_tokens(n))},
        train={
            **profile.train,
            "TOTAL_BATCH": max(old["TOTAL_BATCH"], n),  # a step holds at least one row
            "DEVICE_BATCH": max(1, old["DEVICE_BATCH"] * old["MAX_SEQ_LEN"] // n),
            "SHORT_WINDOW": min(old["SHORT_WINDOW"], n // 4),  # a window as long as the row would be no window
        },
    )


def check_seq_len(n: int) -> None:
    """Raises ValueError, in one line that offers the nearest lengths that work, if `n` is no usable context length."""
    if type(n) is not int:  # True is an int too
        raise ValueError(f"sequence length {n!r} is no whole number: take 256 or 512")
    if MIN_SEQ_LEN <= n <= MAX_SEQ_LEN and n & (n - 1) == 0:
        return
    below = 1 << (max(n, 1).bit_length() - 1)
    near = [str(x) for x in (below, 2 * below) if MIN_SEQ_LEN <= x <= MAX_SEQ_LEN]
    near = near or [str(MIN_SEQ_LEN if n < MIN_SEQ_LEN else MAX_SEQ_LEN)]
    raise ValueError(
        f"sequence length {n} won't work: it must be a power of two from {MIN_SEQ_LEN} to {MAX_SEQ_LEN}; take {' or '.join(near)}"
    )


def eval_tokens(seq_len: int) -> int:
    """Validation tokens worth scoring at this context length on a GPU (the table of references/hardware-config.md)."""
    if seq_len >= 2048:
        return 20_971_520
    return {1024: 10_485_760, 512: 5_242_880}.get(seq_len, 8192 * seq_len)  # 2,097,152 at 256
