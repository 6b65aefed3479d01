"""A GPT trained from nothing for TIME_BUDGET seconds: the one file that a researcher changes.

The recipe, each part with its source:
- pre-norm transformer, RMSNorm without weights, untied head, no biases; ReLU^2 MLP (Primer, arXiv 2109.08668)
- rotary positions (RoFormer, 2104.09864), then QK-norm (2010.04245); most layers see a block of the row (Longformer, 2004.05150)
- every head's result passes a gate (2505.06708)
- pairs of a token and its predecessor have embeddings, which share the rows of one table (hash embeddings, 1709.03933)
- value embeddings: tokens feed the attention's values directly, through a gate for each head (value residual, 2410.17897)
- every layer takes in the residual stream and the first embedding, both with learned weights; a token's first embedding has some of
  its predecessor's in it, and before the head a share of the middle layer's stream is taken out ("smear", "backout": nanochat 2026)
- logits with a soft cap (Gemma 2, 2408.00118)
- matrices: Muon (Jordan 2024) with Polar Express (2505.16932), NorMuon's per-neuron scale (2510.05491) and cautious weight
  decay (2510.12402); all else: AdamW. The learning rate has no warm-up and falls for most of the run.

Weights are float32, arithmetic runs in the fastest type of the device. The weights of all blocks lie in three stacked tensors,
so that one batched product serves every layer in the optimizer.
"""

import contextlib
import gc
import math
import os
import sys
import time
from collections.abc import Callable
from functools import reduce
from importlib.util import find_spec

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # what is freed can be used for any size; before the import

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prepare
from prepare import MAX_SEQ_LEN, VOCAB_SIZE

# --------------------------------------------------------------------------------------------------------------------
# What a researcher tunes. `setup` writes the sizes for this machine; the rest is the same everywhere.
# The search reads these lines: a literal is tuned around its value, "one of:" names choices, "fixed" keeps it out.

# Model
DEPTH = 9  # transformer blocks
NUM_HEADS = 5  # attention heads; the model is NUM_HEADS * HEAD_DIM wide
HEAD_DIM = 128  # channels of one head, even; fixed
MLP_RATIO = 4  # hidden width of the MLP over the model's width
WINDOW_PATTERN = "SSSSL"  # layers' attention, repeated: S short, L whole; one of: L, SL, SSL, SSSL, SSSSL
SHORT_WINDOW = 512  # tokens of a block; in an S layer a query sees what its own block has before it
QK_SCALE = 1.2  # queries and keys are this long after their norm: sharper attention
ROPE_BASE = 200_000.0  # longest wavelength of the rotary positions, in tokens over 2 pi
SOFTCAP = 15.0  # logits are bent into (-SOFTCAP, SOFTCAP)
VALUE_EMBED_EVERY = 2  # a value embedding on every n-th layer, counted back from the last; 0: on none; one of: 1, 2, 3
GATE_CHANNELS = 32  # channels of a token that decide on its gates, of the heads' results and of its value embedding; fixed

PAIR_ROWS = 20  # rows of the table of token pairs over VOCAB_SIZE; 0: no table; one of: 0, 5, 10, 20, 40
SMEAR_CHANNELS = 24  # channels of a token that decide how much of the previous token's embedding it takes in; fixed

# Initial values
INIT_SCALE = 0.68  # matrices are uniform with standard deviation INIT_SCALE / sqrt(width)
MLP_INIT_SCALE = 0.4  # the same for the MLP's first matrix
HEAD_INIT_STD = 0.001  # standard deviation of the output head; fixed
X0_LAMBDA = 0.05  # weight of the first embedding in every block's input
BACKOUT = 0.2  # weight with which the stream of the middle layer is taken out before the head

# Batch
TOTAL_BATCH = 2**17  # tokens of one optimizer step; a power of two
DEVICE_BATCH = 64  # rows of one device step, halved until it fits; fixed

# Optimizer; learning rates of AdamW are for a width of 768 and grow with 1 / sqrt(width)
MATRIX_LR = 0.04  # Muon, the matrices of the blocks
EMBED_LR = 0.9  # AdamW, token and value embeddings
HEAD_LR = 0.005  # AdamW, output head
PAIR_LR = 0.03  # AdamW, embeddings of pairs, at any width
SCALAR_LR = 0.5  # AdamW, weights of the first embedding; the residual weights and the gates take 1% of it
MUON_MOMENTUM = 0.95  # momentum of Muon after its ramp
MUON_MOMENTUM_START = 0.85  # momentum of Muon at the first step; fixed
MUON_RAMP = 0.15  # fraction of the run that the ramp takes
MUON_BETA2 = 0.95  # decay of NorMuon's second moments
ADAM_BETA1 = 0.8  # decay of AdamW's first moments
ADAM_BETA2 = 0.95  # decay of AdamW's second moments
MATRIX_DECAY = 0.1  # cautious weight decay of the matrices, falls to 0 over the run
EMBED_DECAY = 0.001  # weight decay of the token embedding
VALUE_DECAY = 0.003  # weight decay of the value embeddings
HEAD_DECAY = 0.01  # weight decay of the output head
PAIR_DECAY = 0.1  # weight decay of the embeddings of pairs
WARMDOWN = 0.75  # last fraction of the run in which the learning rates fall linearly
FINAL_LR = 0.05  # where they end, as a fraction of their peak

# Machine
COMPILE = True  # torch.compile the model and the optimizer; fixed

WIDTH = NUM_HEADS * HEAD_DIM
ADAM_EPS = 1e-10  # fixed
LOSS_SCALE = 4096.0  # for float16 alone: keeps small gradients above its smallest number; fixed
# Peak dense bf16 FLOP/s by a part of the GPU's name, from the makers' data sheets; MFU is told for these only.
PEAK_FLOPS = {"H200": 989.5e12, "H100": 989.5e12, "A100": 312e12, "4090": 165e12, "3090": 71e12, "L40S": 362e12, "B200": 2250e12}


def check_shapes() -> None:
    """What can't work is told before any GPU time is spent. Raises ValueError with the name of the literal."""
    if min(DEPTH, NUM_HEADS, HEAD_DIM, MLP_RATIO, SHORT_WINDOW, DEVICE_BATCH) < 1:
        raise ValueError("DEPTH, NUM_HEADS, HEAD_DIM, MLP_RATIO, SHORT_WINDOW and DEVICE_BATCH must be at least 1")
    if PAIR_ROWS < 0:
        raise ValueError(f"PAIR_ROWS = {PAIR_ROWS} must be 0 or more")
    if HEAD_DIM % 2:
        raise ValueError(f"HEAD_DIM = {HEAD_DIM} is odd: rotary positions turn channels in pairs")
    if not WINDOW_PATTERN or set(WINDOW_PATTERN) - set("SL"):
        raise ValueError(f"WINDOW_PATTERN = {WINDOW_PATTERN!r} may hold S and L alone")
    if max(GATE_CHANNELS, SMEAR_CHANNELS) > WIDTH:
        raise ValueError(f"GATE_CHANNELS = {GATE_CHANNELS} or SMEAR_CHANNELS = {SMEAR_CHANNELS} is more than the width {WIDTH}")
    if SHORT_WINDOW < MAX_SEQ_LEN and MAX_SEQ_LEN % SHORT_WINDOW:
        raise ValueError(f"SHORT_WINDOW = {SHORT_WINDOW} does not divide MAX_SEQ_LEN = {MAX_SEQ_LEN} into blocks")
    if TOTAL_BATCH < MAX_SEQ_LEN or TOTAL_BATCH % MAX_SEQ_LEN:
        raise ValueError(f"TOTAL_BATCH = {TOTAL_BATCH} is not a multiple of MAX_SEQ_LEN = {MAX_SEQ_LEN}")


# --------------------------------------------------------------------------------------------------------------------
# The machine


def pick_device() -> tuple[torch.device, torch.dtype]:
    """The device, and the type of its arithmetic: bf16 where the chip multiplies it fast, else fp16 on GPUs, fp32 on CPUs."""
    if torch.cuda.is_available():
        has_bf16 = torch.cuda.get_device_capability()[0] >= 8
        return torch.device("cuda"), torch.bfloat16 if has_bf16 else torch.float16
    if torch.backends.mps.is_available():
        return torch.device("mps"), torch.float32
    has_bf16 = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    return torch.device("cpu"), torch.bfloat16 if has_bf16 else torch.float32


DEVICE, DTYPE = pick_device()


def compiled(function: Callable) -> Callable:
    """Without passes and trials that cost seconds of a first start and make none of these graphs faster."""
    options = {"pattern_matcher": False, "triton.autotune_pointwise": False}
    return torch.compile(function, dynamic=False, options=options) if COMPILE else function


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    elif DEVICE.type == "mps":
        torch.mps.synchronize()


# --------------------------------------------------------------------------------------------------------------------
# Attention: (B, T, H, D) x 3 -> (B, T, H, D), causal. A short layer is whole attention inside blocks of tokens (as in Longformer's
# chunks, 2004.05150), because the fastest kernels know any length but no window: blocks of 512 beat a sliding window of 256.


def whole_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = QK_SCALE**2 / math.sqrt(HEAD_DIM)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=scale)
    return out.transpose(1, 2)


def pick_kernel() -> str:
    """The fastest attention that really runs here, forwards and backwards: cuDNN's on a GPU that has it."""
    if DEVICE.type != "cuda":
        return "sdpa"
    backends = torch.backends.cuda
    others = (backends.enable_flash_sdp, backends.enable_mem_efficient_sdp, backends.enable_math_sdp)
    for enable in others:
        enable(False)
    try:
        q, k, v = (torch.randn(1, 128, 1, HEAD_DIM, device=DEVICE, dtype=DTYPE, requires_grad=True) for _ in range(3))
        whole_attention(q, k, v).sum().backward()
        return "cudnn"
    except RuntimeError:
        for enable in others:
            enable(True)
        return "sdpa"


ATTENTION_KERNEL = pick_kernel()


def attend(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Queries see the tokens before them in their own block of `block` tokens."""
    if DEVICE.type == "cpu":
        q, k, v = q.float(), k.float(), v.float()  # bf16 attention is slower there: backwards twice over
    B, T, H, D = q.shape
    if block >= T:
        return whole_attention(q, k, v).to(DTYPE)
    return whole_attention(*(x.reshape(-1, block, H, D) for x in (q, k, v))).reshape(B, T, H, D).to(DTYPE)


# --------------------------------------------------------------------------------------------------------------------
# The MLP's products with what follows them. a: (rows, depth), b: (cols, depth), out and hidden: (rows, cols).
# out = relu(a @ b^T)^2, or where such squares are given as `hidden`, (a @ b^T) times their derivative, 2 sqrt(hidden).


@compiled
def plain_product(a: Tensor, b: Tensor, hidden: Tensor | None = None) -> Tensor:
    z = a @ b.t()
    return F.relu(z).square() if hidden is None else z * (2 * hidden.sqrt())


if DEVICE.type == "cuda" and find_spec("triton"):
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    @triton.jit
    def product_kernel(
        a, b, out, hidden, rows, cols, depth, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GRAD: tl.constexpr
    ):
        """Tiles of (BM, BN), one after the other; half a tile is written at a time, beside the next one's loads."""
        across = tl.cdiv(cols, BN)
        for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BM) * across, tl.num_programs(0), flatten=True):
            row, col = tile // across * BM, tile % across * BN
            z = tl.zeros((BM, BN), tl.float32)
            for at in range(0, depth, BK):
                z = tl.dot(a.load([row, at]), b.load([col, at]).T, z)
            left, right = z.reshape(BM, 2, BN // 2).permute(0, 2, 1).split()
            if GRAD:
                left *= 2 * tl.sqrt(hidden.load([row, col]).to(tl.float32))
                out.store([row, col], left.to(tl.bfloat16))
                right *= 2 * tl.sqrt(hidden.load([row, col + BN // 2]).to(tl.float32))
            else:
                left, right = tl.maximum(left, 0.0), tl.maximum(right, 0.0)
                out.store([row, col], (left * left).to(tl.bfloat16))
                right *= right
            out.store([row, col + BN // 2], right.to(tl.bfloat16))


def fused_product(a: Tensor, b: Tensor, hidden: Tensor | None = None) -> Tensor:
    b, out = b.contiguous(), a.new_empty(len(a), len(b))
    tile = TensorDescriptor.from_tensor
    tiles = tile(a, [128, 64]), tile(b, [256, 64]), tile(out, [128, 128]), tile(out if hidden is None else hidden, [128, 128])
    programs = torch.cuda.get_device_properties(a.device).multi_processor_count
    sizes = len(a), len(b), a.size(1)
    product_kernel[(programs,)](*tiles, *sizes, 128, 256, 64, hidden is not None, num_warps=8, num_stages=3)
    return out


def pick_product() -> Callable:
    """The fused one where it really runs: it wants Hopper's copies and 200 kB of shared memory. Else each takes a pass more."""
    if DEVICE.type == "cuda" and torch.cuda.get_device_capability() >= (9, 0) and DTYPE == torch.bfloat16 and WIDTH % 8 == 0:
        with contextlib.suppress(Exception):
            x = torch.full((256, 256), 1 / 16, device=DEVICE, dtype=DTYPE)
            if (fused_product(x, x) == 1).all() and (fused_product(x, x, x) == 0.5).all():
                return fused_product
    return plain_product


product = pick_product()


# --------------------------------------------------------------------------------------------------------------------
# Model


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of (..., D): channel i turns together with channel i + D/2; the second half of `sin` is negative."""
    return x * cos + x.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * sin


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Normed and turned, and what it was multiplied with for that."""
    size = (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return rotate(x * size, cos, sin).to(DTYPE), size


@compiled
def turn(qk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return *turned(qk[:, :, 0], cos, sin), *turned(qk[:, :, 1], cos, sin)


@compiled
def turn_grad(into: Tensor, grad: Tensor, out: Tensor, size: Tensor, cos: Tensor, sin: Tensor) -> None:
    along = (grad.float() * out).mean(-1, keepdim=True)
    into.copy_((rotate(grad, cos, -sin) - along * rotate(out, cos, -sin)) * size)


class Turn(torch.autograd.Function):
    """Queries and keys of one product (B, T, 2, H, D), normed and turned by their positions. Its backward is written out: as a turn
    changes no length, the norm's derivative can be told from what the attention keeps anyway."""

    @staticmethod
    def forward(ctx, qk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, q_size, k, k_size = turn(qk, cos, sin)
        ctx.save_for_backward(q, k, q_size, k_size, cos, sin)
        return q, k

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        q, k, q_size, k_size, *turns = ctx.saved_tensors
        both = q.new_empty(*q.shape[:2], 2, *q.shape[2:])
        turn_grad(both[:, :, 0], grads[0], q, q_size, *turns)
        turn_grad(both[:, :, 1], grads[1], k, k_size, *turns)
        return both, None, None


@compiled
def added(*parts: Tensor) -> Tensor:
    return reduce(torch.add, parts)


class Fan(torch.autograd.Function):
    """A tensor for each of its readers: their gradients are added up at once, not one by one."""

    @staticmethod
    def forward(ctx, x: Tensor, readers: int) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for _ in range(readers))

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return added(*grads), None


@compiled
def stem(tokens: Tensor, embed: Tensor, pairs: Tensor, smear: Tensor, smear_gate: Tensor) -> Tensor:
    """The first embedding (B, T, WIDTH): the token's, through a gate that of the token before it, and that of the two as a pair."""
    x = norm(F.embedding(tokens, embed).to(DTYPE))
    gate = smear * torch.sigmoid(F.linear(x[..., :SMEAR_CHANNELS], smear_gate.to(DTYPE)))
    x = x + gate * F.pad(x, (0, 0, 1, 0))[:, :-1]
    if not PAIR_ROWS:
        return x
    before = F.pad(tokens, (1, 0))[:, :-1]
    row = (tokens * 2_654_435_761 + before * 2_246_822_519) % len(pairs)  # large primes spread the pairs over the rows
    return x + F.embedding(row, pairs).to(DTYPE)


def gate(y: Tensor, weight: Tensor) -> Tensor:
    """A factor for each head from a token's first channels, (B, T, H, 1): 1 while the weights are 0."""
    return 2 * torch.sigmoid(F.linear(y[..., :GATE_CHANNELS], weight))[..., None]


@compiled
def project(
    stream: tuple[Tensor, ...], first: Tensor, mix: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor, Tensor], value: tuple
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A block's input from the stream's parts and the first embedding, (B, T, WIDTH) each; from its norm queries and keys
    (B, T, 2, H, D), values (B, T, H, D) and the heads' gates (B, T, H, 1). `value`: tokens, embeddings and gates, or nothing."""
    qk_weight, value_weight, gate_weight = weights
    B, T, _ = first.shape
    x = mix[0] * reduce(torch.add, stream) + mix[1] * first
    y = norm(x)
    v = F.linear(y, value_weight).view(B, T, NUM_HEADS, HEAD_DIM)
    if value:
        tokens, embeds, gates = value
        v = v + gate(y, gates) * F.embedding(tokens, embeds).to(DTYPE).view(B, T, NUM_HEADS, HEAD_DIM)
    return x, F.linear(y, qk_weight).view(B, T, 2, NUM_HEADS, HEAD_DIM), v, gate(y, gate_weight)


@compiled
def join(x: Tensor, attended: Tensor, gates: Tensor, out_weight: Tensor) -> tuple[Tensor, Tensor]:
    """The stream after a block's attention, and its norm."""
    x = x + F.linear((attended * gates).flatten(2), out_weight)
    return x, norm(x)


class MLP(torch.autograd.Function):
    """relu(y @ mlp_in^T)^2 @ mlp_out^T on (tokens, WIDTH). Its backward is written out: so one large tensor is kept in place of
    two, and products take in what follows them."""

    @staticmethod
    def forward(ctx, y: Tensor, mlp_in: Tensor, mlp_out: Tensor) -> Tensor:
        hidden = product(y, mlp_in)
        ctx.save_for_backward(y, mlp_in, mlp_out, hidden)
        return hidden @ mlp_out.t()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mlp_in, mlp_out, hidden = ctx.saved_tensors
        inner = product(grad, mlp_out.t(), hidden)
        return inner @ mlp_in, inner.t() @ y, grad.t() @ hidden


@compiled
def unembed(stream: tuple[Tensor, ...], middle: Tensor, backout: Tensor, head: Tensor) -> Tensor:
    return F.linear(norm(reduce(torch.add, stream) - backout * middle) / SOFTCAP, head.to(DTYPE))


class GPT(nn.Module):
    """(B, T) tokens -> (B, T, V) raw logits over SOFTCAP, in DTYPE; V is VOCAB_SIZE rounded up to 64, the rest is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab = -(-VOCAB_SIZE // 64) * 64
        start = (DEPTH - 1) % VALUE_EMBED_EVERY if VALUE_EMBED_EVERY else DEPTH
        self.value_layers = list(range(start, DEPTH, VALUE_EMBED_EVERY or 1))
        short = [WINDOW_PATTERN[i % len(WINDOW_PATTERN)] == "S" and i < DEPTH - 1 for i in range(DEPTH)]  # the last sees all
        self.reach = [SHORT_WINDOW if is_short else MAX_SEQ_LEN for is_short in short]

        hidden = MLP_RATIO * WIDTH
        self.embed = nn.Parameter(torch.empty(self.vocab, WIDTH))
        self.pairs = nn.Parameter(torch.empty(PAIR_ROWS * self.vocab, WIDTH))
        self.smear_gate = nn.Parameter(torch.empty(1, SMEAR_CHANNELS))
        self.smear = nn.Parameter(torch.empty(()))
        self.value_embeds = nn.Parameter(torch.empty(len(self.value_layers), self.vocab, WIDTH))
        self.value_gates = nn.Parameter(torch.empty(len(self.value_layers), NUM_HEADS, GATE_CHANNELS))
        self.attention = nn.Parameter(torch.empty(DEPTH, 4, WIDTH, WIDTH))  # query, key, value, output
        self.gates = nn.Parameter(torch.empty(DEPTH, NUM_HEADS, GATE_CHANNELS))
        self.mlp_in = nn.Parameter(torch.empty(DEPTH, hidden, WIDTH))
        self.mlp_out = nn.Parameter(torch.empty(DEPTH, WIDTH, hidden))
        self.residual = nn.Parameter(torch.empty(DEPTH))
        self.first = nn.Parameter(torch.empty(DEPTH))
        self.backout = nn.Parameter(torch.empty(()))
        self.head = nn.Parameter(torch.empty(self.vocab, WIDTH))

        frequency = ROPE_BASE ** -(torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        angle = torch.outer(torch.arange(MAX_SEQ_LEN).float(), frequency)[None, :, None, :]
        self.register_buffer("cos", torch.cat([angle.cos(), angle.cos()], -1), persistent=False)
        self.register_buffer("sin", torch.cat([angle.sin(), -angle.sin()], -1), persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        bound = math.sqrt(3 / WIDTH)
        nn.init.normal_(self.embed)
        nn.init.zeros_(self.pairs)
        nn.init.zeros_(self.smear_gate)
        nn.init.zeros_(self.smear)
        nn.init.uniform_(self.value_embeds, -INIT_SCALE * bound, INIT_SCALE * bound)
        nn.init.zeros_(self.value_gates)
        nn.init.zeros_(self.gates)
        nn.init.uniform_(self.attention, -INIT_SCALE * bound, INIT_SCALE * bound)
        nn.init.zeros_(self.attention[:, 3])  # every block begins as the identity
        nn.init.uniform_(self.mlp_in, -MLP_INIT_SCALE * bound, MLP_INIT_SCALE * bound)
        nn.init.zeros_(self.mlp_out)
        nn.init.ones_(self.residual)
        nn.init.constant_(self.residual[0], 0.5)  # the first block's stream is the embedding twice: one graph serves all blocks
        nn.init.constant_(self.first, X0_LAMBDA)
        nn.init.constant_(self.backout, BACKOUT)
        nn.init.normal_(self.head, std=HEAD_INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.size(1)
        turns = self.cos[:, :T], self.sin[:, :T]
        attention = self.attention.to(DTYPE)
        qk, value, out = attention[:, :2].flatten(1, 2).unbind(), attention[:, 2].unbind(), attention[:, 3].unbind()
        into = list(zip(qk, value, self.gates.to(DTYPE).unbind(), strict=True))
        mlp_in, mlp_out = self.mlp_in.to(DTYPE).unbind(), self.mlp_out.to(DTYPE).unbind()
        residual, first_weight = self.residual.unbind(), self.first.unbind()
        tables = zip(self.value_embeds.unbind(), self.value_gates.to(DTYPE).unbind(), strict=True)
        values = {layer: (tokens, *table) for layer, table in zip(self.value_layers, tables, strict=True)}

        begin = Fan.apply(stem(tokens, self.embed, self.pairs, self.smear, self.smear_gate), DEPTH + 2)
        stream, first, middle = begin[:2], begin[2:], begin[0]
        for i in range(DEPTH):
            mix = residual[i], first_weight[i]
            x, heads, v, gates = project(stream, first[i], mix, into[i], values.get(i, ()))
            q, k = Turn.apply(heads, *turns)
            x, y = join(x, attend(q, k, v, self.reach[i]), gates, out[i])
            stream = x, MLP.apply(y.flatten(0, 1), mlp_in[i], mlp_out[i]).view_as(y)  # added up where they are read
            if i == DEPTH // 2:
                middle = x
        return unembed(stream, middle, self.backout, self.head)

    def flops_per_token(self) -> float:
        """Forward and backward: 6 for each weight of a product, 12 D for each pair of a query and a key it may see."""
        products = self.attention.numel() + self.mlp_in.numel() + self.mlp_out.numel() + self.head.numel()
        return 6 * products + 12 * NUM_HEADS * HEAD_DIM * sum(min(reach, MAX_SEQ_LEN) for reach in self.reach)


@compiled
def softcap(logits: Tensor) -> Tensor:
    """SOFTCAP * tanh(logits), by a faster function. The model's logits come divided by SOFTCAP: cheaper there than on V columns."""
    return SOFTCAP * (2 * torch.sigmoid(2 * logits.float()) - 1)


@compiled
def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token. Apart from the model, so that training and evaluation share the model's one graph."""
    capped = softcap(logits)[..., :VOCAB_SIZE]
    total = (capped - SOFTCAP).exp().sum(-1).log() + SOFTCAP  # bent logits need no search for their largest
    target = torch.where(torch.arange(VOCAB_SIZE, device=logits.device) == targets[..., None], capped, 0.0).sum(-1)
    return (total - target).mean()


# --------------------------------------------------------------------------------------------------------------------
# Optimizer. Everything that changes from step to step comes in as a 0-d tensor: nothing is compiled twice. Each function takes
# all tensors at once: few graphs start faster than many.


@compiled
def adamw_step(entries: list[tuple[Tensor, ...]], beta1: Tensor, beta2: Tensor, step: Tensor) -> None:
    """AdamW (1711.05101) in place. An entry: parameter, gradient, both moments, learning rate, weight decay."""
    for p, g, m, v, lr, decay in entries:
        p.mul_(1 - lr * decay)
        m.lerp_(g, 1 - beta1)
        v.lerp_(g.square(), 1 - beta2)
        denominator = (v / (1 - beta2**step)).sqrt() + ADAM_EPS
        p.sub_(lr / (1 - beta1**step) * m / denominator)


# Polar Express: the best odd polynomials of degree 5 for singular values in [0.001, 1], one after the other (2505.16932, table for
# a safety factor of 1.02).
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(g: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, for a stack (N, rows, cols). Products, nearly: not compiled."""
    tall = g.size(-2) > g.size(-1)
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


@compiled
def nesterov(entries: list[tuple[Tensor, Tensor]], beta1: Tensor) -> list[Tensor]:
    """Muon's first half on stacks of (gradient, momentum): the momentum in place, and the update to orthogonalize."""
    numbers = DTYPE if DTYPE == torch.bfloat16 else torch.float32
    for g, momentum in entries:
        momentum.lerp_(g, 1 - beta1)
    return [g.lerp(momentum, beta1).to(numbers) for g, momentum in entries]


@compiled
def muon_step(entries: list[tuple[Tensor, ...]], lr: Tensor, decay: Tensor, beta2: Tensor) -> None:
    """Its second half: even out the neurons, decay with caution. An entry: stack of matrices, update, second moments."""
    for p, update, second in entries:
        update = update.float()
        # NorMuon: the longer side's neurons get equal size over time; the update keeps its whole norm.
        side = -1 if p.size(-2) >= p.size(-1) else -2
        second.lerp_(update.square().mean(dim=side, keepdim=True), 1 - beta2)
        size = update.norm(dim=(-2, -1), keepdim=True)
        update = update * second.clamp_min(1e-10).rsqrt()
        update = update * (size / update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10))
        rate = lr * max(1.0, p.size(-2) / p.size(-1)) ** 0.5
        shrink = decay * (update * p >= 0)  # decay only where it agrees with the step
        p.sub_(rate * (update + shrink * p))


class Optimizer:
    """Muon for the blocks' matrices, AdamW for the rest; one table says which tensor gets what."""

    def __init__(self, model: GPT) -> None:
        wide = (WIDTH / 768) ** -0.5
        self.adamw = [  # parameter, learning rate, weight decay
            (model.embed, EMBED_LR * wide, EMBED_DECAY),
            (model.value_embeds, EMBED_LR * wide, VALUE_DECAY),
            (model.head, HEAD_LR * wide, HEAD_DECAY),
            (model.pairs, PAIR_LR, PAIR_DECAY),
            (model.first, SCALAR_LR, 0.0),
        ]
        small = (model.residual, model.gates, model.value_gates, model.smear, model.smear_gate, model.backout)
        self.adamw += [(p, SCALAR_LR * 0.01, 0.0) for p in small]
        self.adamw = [entry for entry in self.adamw if entry[0].numel()]
        self.muon = [model.attention, model.mlp_in, model.mlp_out]
        self.adamw_state = [(torch.zeros_like(p), torch.zeros_like(p)) for p, _, _ in self.adamw]
        self.muon_state = [(torch.zeros_like(s), torch.zeros_like(self._second(s))) for s in map(stack_of, self.muon)]
        self.scalars: dict[str, Tensor] = {}

    @staticmethod
    def _second(p: Tensor) -> Tensor:
        return p[..., :1] if p.size(-2) >= p.size(-1) else p[..., :1, :]

    def _scalar(self, name: str, value: float) -> Tensor:
        """A 0-d tensor that lives on the CPU, where kernels read it without a copy to wait for."""
        return self.scalars.setdefault(name, torch.zeros(())).fill_(value)

    @torch.no_grad()
    def step(self, count: int, progress: float) -> None:
        """`count`: steps done so far; `progress`: fraction of the run behind us."""
        scale = learning_rate_scale(progress)
        beta1, beta2 = self._scalar("beta1", ADAM_BETA1), self._scalar("beta2", ADAM_BETA2)
        entries = []
        for i, ((p, lr, decay), (m, v)) in enumerate(zip(self.adamw, self.adamw_state, strict=True)):
            rate, shrink = self._scalar(f"lr{i}", lr * scale), self._scalar(f"decay{i}", decay)
            entries.append((p, p.grad, m, v, rate, shrink))
        adamw_step(entries, beta1, beta2, self._scalar("step", count + 1))
        ramp = min(1.0, progress / MUON_RAMP) if MUON_RAMP > 0 else 1.0
        momentum = self._scalar("momentum", MUON_MOMENTUM_START + ramp * (MUON_MOMENTUM - MUON_MOMENTUM_START))
        rate, shrink = self._scalar("muon_lr", MATRIX_LR * scale), self._scalar("muon_decay", MATRIX_DECAY * (1 - progress))
        second_decay = self._scalar("muon_beta2", MUON_BETA2)
        firsts, seconds = zip(*self.muon_state, strict=True)
        grads = [stack_of(p.grad) for p in self.muon]
        updates = map(orthogonalize, nesterov(list(zip(grads, firsts, strict=True)), momentum))
        muon_step(list(zip(map(stack_of, self.muon), updates, seconds, strict=True)), rate, shrink, second_decay)
        for p in self.parameters():
            p.grad = None

    def parameters(self) -> list[Tensor]:
        return [p for p, _, _ in self.adamw] + self.muon

    def state(self) -> list[Tensor]:
        return [tensor for pair in self.adamw_state + self.muon_state for tensor in pair]


def stack_of(p: Tensor) -> Tensor:
    """A bank of any number of matrices as (N, rows, cols), without a copy."""
    return p.flatten(0, -3)


def learning_rate_scale(progress: float) -> float:
    """1 at first, then a line down to FINAL_LR at the end of the run."""
    left = 1 - min(1.0, progress)
    return 1.0 if left >= WARMDOWN else FINAL_LR + (1 - FINAL_LR) * left / WARMDOWN


# --------------------------------------------------------------------------------------------------------------------
# Data: rows lie on the device in large blocks, so that a step waits for no copy


class Batches:
    """Hands out (inputs, targets) of `rows_per_step` rows, over the rows again and again. rows: uint16 (N, T + 1)."""

    BLOCK_BYTES = 256 * 2**20

    def __init__(self, rows, rows_per_step: int) -> None:
        if len(rows) < rows_per_step:
            raise ValueError(f"a device step takes {rows_per_step} rows and the data has {len(rows)}: lower DEVICE_BATCH")
        self.rows, self.count = rows, rows_per_step
        per_block = max(1, self.BLOCK_BYTES // rows[0].nbytes // rows_per_step) * rows_per_step
        usable = len(rows) - len(rows) % rows_per_step
        self.starts = [(at, min(at + per_block, usable)) for at in range(0, usable, per_block)]
        self.block_index, self.at, self.block = -1, 0, None

    def __call__(self) -> tuple[Tensor, Tensor]:
        if self.block is None or self.at >= len(self.block):
            self.block_index = (self.block_index + 1) % len(self.starts)
            if self.block is None or len(self.starts) > 1:
                start, end = self.starts[self.block_index]
                self.block = torch.from_numpy(self.rows[start:end].astype("int32")).to(DEVICE)
            self.at = 0
        batch = self.block[self.at : self.at + self.count].long()
        self.at += self.count
        return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


# --------------------------------------------------------------------------------------------------------------------
# Training


class Trainer:
    """Model, compiled forward and optimizer at one device batch."""

    def __init__(self, device_rows: int) -> None:
        self.device_rows = device_rows
        self.accumulation = TOTAL_BATCH // (device_rows * MAX_SEQ_LEN)
        with torch.device(DEVICE):
            self.model = GPT()
        self.model.init_weights()
        self.forward = self.model
        self.optimizer = Optimizer(self.model)
        self.scale = LOSS_SCALE if DTYPE == torch.float16 else 1.0

    def step(self, batches: Callable, count: int, progress: float) -> Tensor:
        """One optimizer step over TOTAL_BATCH tokens. Returns the mean loss, still on the device."""
        total = torch.zeros((), device=DEVICE)
        for _ in range(self.accumulation):
            inputs, targets = batches()
            loss = loss_of(self.forward(inputs), targets)
            (loss * (self.scale / self.accumulation)).backward()
            total += loss.detach() / self.accumulation
        if self.scale != 1:
            for p in self.optimizer.parameters():
                p.grad.div_(self.scale)
        self.optimizer.step(count, progress)
        return total

    def logits(self, tokens: Tensor) -> Tensor:
        """What evaluation asks for. Gradients stay on, because the graph that training compiled has them."""
        return softcap(self.forward(tokens).detach())

    def warm_up(self) -> None:
        """Compile and try everything on made-up tokens, then put weights and optimizer back as they were."""
        before = [p.detach().clone() for p in self.optimizer.parameters()]

        def made_up() -> tuple[Tensor, Tensor]:
            tokens = torch.randint(VOCAB_SIZE, (self.device_rows, MAX_SEQ_LEN + 1), device=DEVICE)
            return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

        for count in range(2):
            self.step(made_up, count, 0.0)
        self.logits(made_up()[0])
        with torch.no_grad():
            for p, saved in zip(self.optimizer.parameters(), before, strict=True):
                p.copy_(saved)
            for tensor in self.optimizer.state():
                tensor.zero_()
        synchronize()


def largest_that_fits() -> Trainer:
    """DEVICE_BATCH, halved until a step fits into memory; more accumulation keeps the optimizer's batch."""
    rows = TOTAL_BATCH // MAX_SEQ_LEN
    device_rows = min(DEVICE_BATCH, rows)
    while rows % device_rows:
        device_rows -= 1
    while True:
        try:
            trainer = Trainer(device_rows)
            trainer.warm_up()
            return trainer
        except torch.OutOfMemoryError:
            if device_rows == 1:
                raise
        trainer = None  # frees the memory before the next try
        gc.collect()
        torch.cuda.empty_cache()
        device_rows = max(d for d in range(1, device_rows // 2 + 1) if rows % d == 0)
        print(f"out of memory: {device_rows} rows a device step, with more accumulation", flush=True)


def train(run: prepare.Run, trainer: Trainer, rows) -> int:
    """Steps until the next one would end after the budget. Returns how many were made."""
    if run.remaining() <= 0:
        return 0
    batches = Batches(rows, trainer.device_rows)
    lag = 1 if DEVICE.type == "cuda" else 0  # steps that the GPU may be behind: the loss is read one step late
    pending: list[Tensor] = []
    smooth, shown, step = 0.0, 0.0, 0
    while True:
        progress = min(1.0, run.elapsed() / run.budget)
        pending.append(trainer.step(batches, step, progress))
        step += 1
        if len(pending) > lag:
            loss = pending.pop(0).item()
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step}")
            smooth = 0.9 * smooth + 0.1 * loss
        elapsed = run.elapsed()
        per_step = elapsed / step
        done = elapsed + (1 + lag) * per_step > run.budget
        if done or (step > lag and elapsed - shown > 0.2):
            shown = elapsed
            mean = smooth / (1 - 0.9 ** max(1, step - lag))
            show_progress(step, elapsed, run.budget, mean, trainer.model)
        if done:
            print()
            return step


def mfu_percent(tokens_per_second: float, model: GPT) -> float | None:
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    return 100 * tokens_per_second * model.flops_per_token() / peak if peak else None


def show_progress(step: int, elapsed: float, budget: float, loss: float, model: GPT) -> None:
    speed = step * TOTAL_BATCH / elapsed
    mfu = mfu_percent(speed, model)
    print(
        f"\rstep {step:05d} ({100 * min(1.0, elapsed / budget):.1f}%) | loss: {loss:.4f} | tok/s: {speed:,.0f} | "
        f"mfu: {f'{mfu:.1f}%' if mfu is not None else '-'} | left: {max(0.0, budget - elapsed):.0f}s   ",
        end="",
        flush=True,
    )


def main() -> None:
    check_shapes()
    run = prepare.open_run()
    torch.manual_seed(run.seed)
    torch.set_float32_matmul_precision("high")
    began = time.monotonic()
    trainer = largest_that_fits()
    params = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"device: {DEVICE.type} {str(DTYPE).removeprefix('torch.')} | attention: {ATTENTION_KERNEL} | "
        f"MLP: {'fused' if product is fused_product else 'plain'} | "
        f"{params / 1e6:.1f}M parameters | {trainer.device_rows} rows x {trainer.accumulation} | "
        f"ready in {time.monotonic() - began:.1f}s",
        flush=True,
    )
    torch.manual_seed(run.seed)
    rows = run.start(trainer.model)
    gc.collect()
    gc.freeze()  # a collection in the middle of a step is a bubble on the GPU
    gc.disable()
    steps = train(run, trainer, rows)
    run.evaluate_bpb(trainer.model, trainer.logits, trainer.device_rows)
    tokens = steps * TOTAL_BATCH
    run.summary(
        num_steps=steps,
        total_tokens=tokens,
        num_params=params,
        depth=DEPTH,
        mfu=mfu_percent(tokens / run.elapsed(), trainer.model) if steps else None,
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FloatingPointError, torch.OutOfMemoryError) as error:
        sys.exit(f"train.py: {type(error).__name__}: {error}")
    sys.stdout.flush()
    os._exit(0)  # what Python and CUDA would tidy up takes seconds
