"""What a training run keeps in memory, counted piece by piece in bytes. `estimate.py` adds the pieces up.

Everything here is a count that can be followed with pen and paper, but for the numbers in ASSUMED.
"""

from __future__ import annotations

from typing import NamedTuple

from recr1_lite.shapes import Shape, adapter_weights, linear_weights, linears, other_weights, parameters

FLOAT32 = 4  # bytes
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = 2  # of AdamW, for each trained weight
NF4_BLOCK, NF4_SECOND = 64, 256  # weights that share a scale, scales that share a scale of their own
NF4_TABLES = 16 + 256 + 1  # float32 numbers a matrix: the values of a 4-bit code and of a scale's, and an offset
LARGE_LOGITS, PART = 512 * 2**20, 2**25  # of rollouts.py: bytes above which logits are made in parts, and their size
SFT_CHUNK = 256  # tokens of which trl's SFTTrainer holds logits at once (chunked_nll, its default)
UNSLOTH_GROWTH = 512  # tokens by which unsloth's key-value cache grows
UNSLOTH_PARTS = 4  # pieces of a rollout's logits that unsloth's loss makes one after the other

ASSUMED = {
    # the Python process, its libraries, a task and its index: measured, peak of a GRPO step of a model of 2 layers
    "process, CPU": 0.8e9,
    # CUDA context, cuBLAS workspace, loaded kernels (not yet measured here)
    "context, CUDA": 1.0e9,
    # of what comes and goes; PyTorch's allocator leaves gaps between tensors of unequal size (not yet measured here)
    "fragmentation, CUDA": 0.10,
    # glibc keeps freed tensors below 32 MB for itself: 0.26 to 0.77 measured in seven runs of a GRPO step; with
    # MALLOC_MMAP_THRESHOLD_=65536, which forbids it, the peaks were within 3% of the counts
    "fragmentation, CPU": 0.5,
    # tensors as large as the logits, in float32, alive at once in loss and backward pass: measured on a CPU (3.1)
    "logits, copies": 3,
    # of a layer's backward pass: gradients as wide as the MLP, and as wide as the hidden state, alive at once
    "backward, wide": 3,
    "backward, narrow": 2,
    # of a layer without gradients (prompts of rollouts): tensors as wide as the MLP and as the hidden state
    "forward, wide": 3,
    "forward, narrow": 3,
    # (rows, vocabulary) in float32 while a token is drawn; with top_p also sorted values and their 8-byte indices
    "draw, copies": 4,
    "draw with top_p, copies": 8,
    "unsloth's fused SFT loss": 1.0e9,  # it takes what is free, so this is what it needs and not what it takes
}


class Work(NamedTuple):
    """One training step. rows: rollouts of a step (or targets, in SFT), at_once of them written together, micro of them
    in a backward pass, group of them on one prompt; prompt and completion in tokens."""

    rows: int
    at_once: int
    micro: int
    group: int
    prompt: int
    completion: int


class Pass(NamedTuple):
    """One run of the decoder: rows of `length` tokens, each looking at up to `width` tokens."""

    rows: int
    length: int
    width: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def weights(shape: Shape, dtype: str, four_bit: bool = False) -> int:
    """The model: all weights in `dtype`, or its matrices in NF4 and the rest in `dtype`."""
    if not four_bit:
        return parameters(shape) * BYTES[dtype]
    packed = shape.layers * sum(nf4(inputs * outputs) for inputs, outputs in linears(shape).values())
    return packed + other_weights(shape) * BYTES[dtype]


def nf4(count: int) -> int:
    """A matrix of `count` weights as bitsandbytes packs it with double quantisation.

    Half a byte a weight; a scale of one byte for each 64 weights; a float32 for each 256 scales; small tables.
    """
    scales = -(-count // NF4_BLOCK)
    return -(-count // 2) + scales + FLOAT32 * (-(-scales // NF4_SECOND) + NF4_TABLES)


def adapter(shape: Shape, rank: int) -> int:
    """LoRA's weights, float32. (trl makes them bfloat16 on a 4-bit model, unsloth does not: an upper bound there.)"""
    return adapter_weights(shape, rank) * FLOAT32


def merged_copy(shape: Shape, dtype: str) -> int:
    """rollouts.MergedCopy: the matrices once more."""
    return linear_weights(shape) * BYTES[dtype]


def kv_cache(shape: Shape, rows: int, tokens: int, dtype: str) -> int:
    """Keys and values of all layers: of the key heads, which are fewer than the query heads."""
    return 2 * shape.layers * rows * tokens * shape.keys * BYTES[dtype]


def rollout_cache(shape: Shape, rows: int, prompt: int, completion: int, dtype: str, backend: str) -> int:
    """The cache while rollouts are written, with the copies that its growth needs for a moment."""
    if backend == "unsloth":  # grows by 512 tokens at once; the prompts' keys are there twice when it is begun
        room = prompt + 1 + UNSLOTH_GROWTH * -(-(completion + 1) // UNSLOTH_GROWTH)
        return kv_cache(shape, rows, room + prompt, dtype)
    whole = kv_cache(shape, rows, prompt + completion, dtype)
    return whole + whole // (2 * shape.layers)  # torch.cat: one layer's keys, old and new


def draw(shape: Shape, rows: int, top_p: bool) -> int:
    """Choosing the next token of each row."""
    copies = ASSUMED["draw with top_p, copies" if top_p else "draw, copies"]
    return copies * rows * shape.vocab * FLOAT32


def forward(shape: Shape, tokens: int, dtype: str) -> int:
    """What one layer needs for `tokens` tokens when nothing is kept."""
    return _wide(shape, tokens, "forward") * BYTES[dtype]


def backward(shape: Shape, tokens: int, dtype: str, four_bit: bool) -> int:
    """Gradients of one layer's activations, and its widest matrix unpacked."""
    unpacked = shape.hidden * shape.intermediate if four_bit else 0
    return (_wide(shape, tokens, "backward") + unpacked) * BYTES[dtype]


def _wide(shape: Shape, tokens: int, way: str) -> int:
    return tokens * (ASSUMED[f"{way}, wide"] * shape.intermediate + ASSUMED[f"{way}, narrow"] * shape.hidden)


def layer(shape: Shape, run: Pass, rank: int, dtype: str, grouped: bool = False, copies: int = 0) -> int:
    """What one layer of transformers + peft keeps for the backward pass when LoRA is on all its matrices.

    The base matrices are frozen and keep nothing; LoRA keeps the input of each. grouped: with the kit's attention,
    else sdpa's. copies: bytes of a number where peft makes a copy of its own of each matrix's input (a 16-bit model:
    2 under autocast, 4 without); 0 where it shares them (float32, and 4-bit under autocast).
    """
    size, tokens, groups = BYTES[dtype], run.tokens, shape.heads // shape.kv_heads
    norms = tokens * 2 * (shape.hidden + 1) * FLOAT32  # inputs and their 1 / root mean square, float32 always
    keys = shape.keys if grouped else shape.query  # sdpa repeats keys and values for each query head
    attention = (2 * tokens * shape.query + 2 * run.rows * run.width * keys) * size  # queries, output; keys, values
    mask = run.rows * (groups if grouped else 1) * run.length * run.width * size
    sums = run.rows * shape.heads * run.length * FLOAT32  # log of the softmax's denominator
    mlp = 3 * tokens * shape.intermediate * size  # gate, its silu, up
    if copies:
        inputs = tokens * (5 * shape.hidden + shape.query + shape.intermediate) * copies
    else:  # one of query, key, value; one of gate and up; the output's where the kit's attention turns it round
        inputs = tokens * (2 * shape.hidden + (shape.query if grouped else 0) + shape.intermediate) * size
    inner = 7 * tokens * rank * (copies or size)
    return norms + attention + mask + sums + mlp + inputs + inner


def unsloth_layer(shape: Shape, run: Pass, rank: int, dtype: str) -> int:
    """The same with unsloth's kernels: no copies of an input, no silu kept, no mask, keys not repeated."""
    numbers = 4 * shape.hidden + 2 * shape.query + 2 * shape.keys + 2 * shape.intermediate + 7 * rank
    return run.tokens * numbers * BYTES[dtype] + run.rows * shape.heads * run.length * FLOAT32


def logits(shape: Shape, rows: int, completion: int, dtype: str, backend: str, trainer: str) -> int:
    """Logits of one backward pass with their gradients: the vocabulary is 100 times wider than the hidden state."""
    wide, copies = shape.vocab * FLOAT32, ASSUMED["logits, copies"]
    half = shape.vocab * BYTES[dtype] if dtype != "float32" else 0  # from the head, before they are made float32
    if trainer == "sft":
        fused = int(ASSUMED["unsloth's fused SFT loss"])
        return fused if backend == "unsloth" else SFT_CHUNK * (copies * wide + half)
    if backend == "unsloth":  # the compiled loss keeps them all in 16 bit, and float32 of a piece
        piece = rows * -(-completion // UNSLOTH_PARTS) // max(rows, 1)
        return rows * completion * shape.vocab * BYTES[dtype] + piece * (copies * wide + half)
    tokens = rows * (completion + (backend == "stock"))
    if backend == "transformers" and tokens * wide > LARGE_LOGITS:
        tokens = max(1, PART // shape.vocab)
    return tokens * (copies * wide + half)
