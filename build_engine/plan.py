"""What a board must hold and read for a recipe: memory, context, and the bandwidth limit on decode.

Pure arithmetic over the model's sizes; nothing is measured and no weight is read. Terms marked
ESTIMATE are bounds of ours until a device has reported its own.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_engine.decoder_weights import packed_tensors
from edge.errors import CheckpointError, ConfigurationError
from edge.model.spec import AudioSpec, DecoderSpec, ModelSpec, VisionSpec, model_spec

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Board:
    """A module's memory, shared by CPU and GPU.

    Source: NVIDIA's data sheets and product pages, "up to" figures at the highest memory clock.
    AGX Orin: DS-10662-001 v1.8, memory subsystem, 256-bit LPDDR5 at 3200 MHz. Orin NX: DS-10712,
    128-bit LPDDR5. Orin Nano: the Super clocks of JetPack 6.1 (68 GB/s before them). Thor: the
    product pages of T4000 and T5000, 256-bit LPDDR5X.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_s: int
    low_precision: bool
    """It multiplies FP8 and FP4 itself; Orin does not."""


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board("orin-nano-8", 8 * GIB, 102_000_000_000, low_precision=False),
        Board("orin-nx-16", 16 * GIB, 102_400_000_000, low_precision=False),
        Board("agx-orin-32", 32 * GIB, 204_800_000_000, low_precision=False),
        Board("agx-orin-64", 64 * GIB, 204_800_000_000, low_precision=False),
        Board("thor-64", 64 * GIB, 273_000_000_000, low_precision=True),
        Board("thor-128", 128 * GIB, 273_000_000_000, low_precision=True),
    )
}


@dataclass(frozen=True, slots=True)
class Format:
    """How a matrix is stored: an element's bits, and scales along its columns."""

    bits: int
    block: int = 0
    """Columns that share a scale; 0: none do."""
    scale_bytes: int = 0
    scalar_bytes: int = 0
    """float32 scalars of the whole matrix: of weights, and of activations."""

    def n_bytes(self, rows: int, columns: int) -> int:
        """Bytes of one matrix."""
        blocks = math.ceil(columns / self.block) if self.block else 0
        return rows * (columns * self.bits // 8 + blocks * self.scale_bytes) + self.scalar_bytes


FORMATS: dict[str, Format] = {
    "bf16": Format(16),
    "fp8": Format(8, scalar_bytes=8),
    "nvfp4": Format(4, block=16, scale_bytes=1, scalar_bytes=8),
    "w4a16": Format(4, block=16, scale_bytes=1, scalar_bytes=4),
    "int4": Format(4, block=128, scale_bytes=2),
}
LOW_PRECISION = ("fp8", "nvfp4")
"""Formats that multiply in FP8 or FP4 where the board can."""

# The decoder's weights by kind, and the last part of the packed tensors' names that belong to it.
KINDS: dict[str, tuple[str, ...]] = {
    "embeddings": ("embeddings",),
    "lm_head": ("head",),
    "Mamba linears": ("in_proj", "out_proj"),
    "attention q, k, v": ("q_proj", "k_proj", "v_proj"),
    "attention o": ("o_proj",),
    "routed experts": ("experts_up", "experts_down"),
    "shared experts": ("shared_up", "shared_down"),
    "router": ("gate",),
    "small tensors": (),
}
LINEARS = ("Mamba linears", "attention q, k, v", "attention o", "routed experts", "shared experts")

# Recipe -> format of each kind, and of keys and values ("K/V"). What is not named stays BF16.
RECIPES: dict[str, dict[str, str]] = {
    "nvfp4": {
        **dict.fromkeys(LINEARS, "fp8"),
        "attention q, k, v": "bf16",
        "routed experts": "nvfp4",
        "K/V": "fp8",
    },
    "nvfp4-all": {**dict.fromkeys(LINEARS, "nvfp4"), "K/V": "fp8"},
    "fp8": {**dict.fromkeys(LINEARS, "fp8"), "K/V": "fp8"},
    "w4a16": dict.fromkeys(LINEARS, "w4a16"),
    "int4": dict.fromkeys(LINEARS, "int4"),
    "bf16": {},
}

N_SLOTS = 2
"""A live state, and a second one in which a shorter state is rebuilt."""
PREFILL_TOKENS = 256
AUDIO_CLIP_S = 30
MEL_FRAMES_PER_S = 100
AUDIO_TOKENS_PER_S = MEL_FRAMES_PER_S / 8
SEPARATOR_TOKENS = 14
"""Words around a tubelet ("Frame 3 sampled at ..."), assumed."""
CARVED_OUT = 16
"""ESTIMATE: one part in 16 of a module's memory is never seen by Linux (firmware, display, ...)."""
SYSTEM_BYTES = 3 * GIB // 2
"""ESTIMATE: Linux without a desktop, the service itself, the camera's and the socket's buffers."""
TENSORRT_BYTES = 3 * GIB // 2
"""ESTIMATE: CUDA context, TensorRT and its libraries, the plans without their weights."""


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the table."""

    name: str
    n_bytes: int
    n_parameters: int = 0
    format: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: what is needed, what fits, and what bandwidth allows."""

    board: Board
    recipe: str
    context_tokens: int
    fps: float
    parts: tuple[Part, ...]
    vision_tokens_s: float
    separator_tokens_s: float
    audio_tokens_s: float
    kv_bytes_per_token: int
    decode_bytes: int
    """Read and written for one token while the context is empty."""
    decode_bytes_full: int
    """The same when the context is full."""
    largest_context: int
    """Tokens that this board could hold with this recipe; 0: not even one."""
    recipes_that_fit: tuple[str, ...]
    boards_that_fit: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        """Sum of the parts."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def free_bytes(self) -> int:
        """What is left; below zero when it does not fit."""
        return self.board.memory_bytes - self.needed_bytes

    @property
    def tokens_s(self) -> float:
        """Tokens that perception appends in a second."""
        return self.vision_tokens_s + self.separator_tokens_s + self.audio_tokens_s

    @property
    def context_s(self) -> float:
        """Seconds of perception until the context is full."""
        return self.context_tokens / self.tokens_s

    @property
    def kv_bytes_per_hour(self) -> float:
        """Growth of the K/V cache if nothing were rebuilt."""
        return self.tokens_s * 3600 * self.kv_bytes_per_token

    @property
    def decode_tokens_s(self) -> tuple[float, float]:
        """Upper bounds by bandwidth: context empty, context full."""
        rate = self.board.bandwidth_bytes_s
        return rate / self.decode_bytes, rate / self.decode_bytes_full

    def require_fit(self) -> None:
        """Say what would fit, if this does not.

        Raises:
            ConfigurationError: the board's memory is too small.
        """
        if self.free_bytes >= 0:
            return
        ways = []
        if self.recipes_that_fit:
            ways.append(f"--recipe {' | '.join(self.recipes_that_fit)}")
        if self.largest_context:
            ways.append(f"--context {self.largest_context}")
        if self.boards_that_fit:
            ways.append(f"--board {self.boards_that_fit[0]}")
        raise ConfigurationError(
            f"{self.recipe} with {self.context_tokens:,} tokens on {self.board.name}",
            f"needs {_gib(self.needed_bytes)} of {_gib(self.board.memory_bytes)} GiB",
            f"use {', or '.join(ways)}" if ways else "no known board, recipe or context fits",
        )

    def as_dict(self) -> dict[str, Any]:
        """For machines: bytes, tokens and seconds."""
        empty, full = self.decode_tokens_s
        return {
            **asdict(self),
            "fits": self.free_bytes >= 0,
            "needed_bytes": self.needed_bytes,
            "free_bytes": self.free_bytes,
            "tokens_s": self.tokens_s,
            "context_s": self.context_s,
            "kv_bytes_per_hour": self.kv_bytes_per_hour,
            "decode_tokens_s": empty,
            "decode_tokens_s_full": full,
        }

    def table(self) -> str:
        """For people."""
        line = "{:34}{:>16}  {:8}{:>9}"
        rows = [
            f"{self.recipe} on {self.board.name}, {self.context_tokens:,} tokens of context, "
            f"{self.fps:g} frames/s",
            "",
            line.format("", "parameters", "format", "GiB"),
        ]
        for part in self.parts:
            count = f"{part.n_parameters:,}" if part.n_parameters else ""
            rows.append(line.format(part.name, count, part.format, _gib(part.n_bytes)))
        verdict = "free" if self.free_bytes >= 0 else "DOES NOT FIT"
        for name, n_bytes in (
            ("needed", self.needed_bytes),
            ("board", self.board.memory_bytes),
            (verdict, self.free_bytes),
        ):
            rows.append(line.format(name, "", "", _gib(n_bytes)))
        empty, full = self.decode_tokens_s
        facts = {
            "perception": f"{self.tokens_s:.1f} tokens/s = {self.vision_tokens_s:.1f} vision + "
            f"{self.separator_tokens_s:.1f} separators + {self.audio_tokens_s:.1f} sound",
            "context": f"{self.context_tokens:,} tokens last {_duration(self.context_s)}; K/V grow "
            f"by {self.kv_bytes_per_hour / 2**20:,.0f} MiB/h",
            "decode": f"at most {empty:.1f} tokens/s, {full:.1f} with the context full: "
            f"{self.decode_bytes / 1e9:.2f} and {self.decode_bytes_full / 1e9:.2f} GB a token "
            f"at {self.board.bandwidth_bytes_s / 1e9:g} GB/s",
            "largest context": f"{self.largest_context:,} tokens",
            "recipes that fit": ", ".join(self.recipes_that_fit) or "none",
            "boards that fit": ", ".join(self.boards_that_fit) or "none",
        }
        rows += ["", *(f"{name:18}{text}" for name, text in facts.items())]
        rows += [f"{'note':18}{note}" for note in self.notes]
        return "\n".join(rows)


def read_spec(checkpoint: Path) -> ModelSpec:
    """The model's sizes; only `checkpoint`/config.json needs to exist.

    Raises:
        CheckpointError: it is absent, or not a configuration of this model.
    """
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(path, "is missing", "give a checkpoint's folder") from None
    except ValueError as error:
        raise CheckpointError(path, f"is not JSON ({error})", "download it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(path, "is not a JSON object", "download it again")
    return model_spec(config, {})


def make_plan(spec: ModelSpec, board: str, recipe: str, context_tokens: int, fps: float) -> Plan:
    """Weigh `recipe` on `board`.

    Args:
        context_tokens: bound of the live context.
        fps: frames a second taken from the camera; 0: sound only.
    Raises:
        ConfigurationError: a name is unknown, or a number is out of range.
    """
    place = _named("--board", board, BOARDS)
    _named("--recipe", recipe, RECIPES)
    most = spec.decoder.max_tokens
    if not 1 <= context_tokens <= most:
        raise ConfigurationError("--context", f"is {context_tokens}", f"give 1..{most} tokens")
    if not 0 <= fps < math.inf:
        raise ConfigurationError("--fps", f"is {fps}", "give frames a second, or 0 for sound only")
    parts = tuple(_parts(spec, place, recipe, context_tokens))
    tubelets_s = fps / spec.vision.tubelet_frames
    per_token = kv_bytes_per_token(spec.decoder, recipe)
    decode = _decode_bytes(spec.decoder, recipe)
    return Plan(
        board=place,
        recipe=recipe,
        context_tokens=context_tokens,
        fps=fps,
        parts=parts,
        vision_tokens_s=tubelets_s * (spec.vision.video_target_patches // spec.vision.merge**2),
        separator_tokens_s=tubelets_s * SEPARATOR_TOKENS,
        audio_tokens_s=AUDIO_TOKENS_PER_S,
        kv_bytes_per_token=per_token,
        decode_bytes=decode,
        decode_bytes_full=decode + context_tokens * per_token,
        largest_context=_largest_context(spec, place, recipe),
        recipes_that_fit=tuple(
            name
            for name in sorted(RECIPES, key=lambda name: len(_not_native(place, name)))
            if _largest_context(spec, place, name) >= context_tokens
        ),
        boards_that_fit=tuple(
            other.name
            for other in BOARDS.values()
            if _largest_context(spec, other, recipe) >= context_tokens
        ),
        notes=tuple(_notes(spec.decoder, place, recipe, context_tokens)),
    )


@functools.cache
def decoder_weights(spec: DecoderSpec, recipe: str) -> tuple[Part, ...]:
    """The decoder's weights by kind, in the recipe's formats."""
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    counts, sizes = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for tensor in packed_tensors(spec):
        kind = kind_of.get(tensor.name.rpartition(".")[2], "small tensors")
        *rows, columns = tensor.source_shape
        n_sources = len(tensor.sources)
        form = FORMATS[_format(recipe, kind)]
        counts[kind] += n_sources * math.prod(tensor.source_shape)
        sizes[kind] += n_sources * form.n_bytes(math.prod(rows), columns)
    return tuple(Part(kind, sizes[kind], counts[kind], _format(recipe, kind)) for kind in KINDS)


def encoder_parameters(vision: VisionSpec, audio: AudioSpec, hidden_size: int) -> dict[str, int]:
    """Parameters of the towers and of their projectors into the decoder's `hidden_size`.

    Batch norm's running statistics and the log-mel buffers, which are no parameters, are left out:
    the graphs fold or do not use them.
    """
    width, wide = vision.hidden_size, vision.mlp_size
    pixels = 3 * vision.patch_size**2 * width
    block = 4 * width + 4 * width * (width + 1) + 2 * width * wide + wide + width
    tables = (vision.position_grid**2 + vision.n_prefix_tokens) * width
    merged = vision.merge**2 * width
    d, wide, channels = audio.hidden_size, audio.mlp_size, audio.subsampling_channels
    subsampling = 3 * 10 * channels + 2 * (channels + 1) * channels
    flattened = channels * (audio.n_mels // 8)
    layer = 10 * d + 4 * d * wide + 5 * d * d + 2 * d + 3 * d * d + (audio.conv_kernel + 2) * d
    return {
        "vision encoder": pixels * (1 + vision.tubelet_frames) + tables + vision.n_layers * block,
        "vision projector": merged + vision.projector_size * (merged + hidden_size),
        "audio encoder": subsampling + (flattened + 1) * d + audio.n_layers * layer,
        "audio projector": d + audio.projector_size * (d + hidden_size),
    }


def kv_bytes_per_token(spec: DecoderSpec, recipe: str) -> int:
    """Keys and values of one token in all attention blocks."""
    elements = 2 * len(spec.layers("*")) * spec.n_kv_heads * spec.head_dim
    return elements * FORMATS[_format(recipe, "K/V")].bits // 8


def recurrent_state_bytes(spec: DecoderSpec) -> int:
    """SSM state in float32 and the convolution's last columns in 16 bit, of one sequence."""
    ssm = spec.mamba_n_heads * spec.mamba_head_dim * spec.state_size
    conv = spec.conv_dim * (spec.conv_kernel - 1)
    return len(spec.layers("M")) * (4 * ssm + 2 * conv)


def active_parameters(spec: DecoderSpec) -> int:
    """Parameters that one token meets: no embedding table, selected experts only."""
    counts = {part.name: part.n_parameters for part in decoder_weights(spec, "bf16")}
    counts["routed experts"] = _selected(spec, counts["routed experts"])
    return sum(counts.values()) - counts["embeddings"]


def _selected(spec: DecoderSpec, of_all_experts: int) -> int:
    return of_all_experts // spec.n_experts * spec.n_experts_per_token


def _parts(spec: ModelSpec, board: Board, recipe: str, context_tokens: int) -> Iterator[Part]:
    """Everything that takes memory.

    Each slot has its own K/V rows: rebuilt, the second one is live and grows to the same bound.
    """
    yield from decoder_weights(spec.decoder, recipe)
    encoders = encoder_parameters(spec.vision, spec.audio, spec.decoder.hidden_size)
    for name, count in encoders.items():
        yield Part(name, 2 * count, count, "bf16")
    cache = context_tokens * kv_bytes_per_token(spec.decoder, recipe)
    kv_format = _format(recipe, "K/V")
    yield Part("K/V cache, live slot", cache, format=kv_format)
    yield Part("K/V cache, second slot", cache * (N_SLOTS - 1), format=kv_format)
    state = N_SLOTS * recurrent_state_bytes(spec.decoder)
    yield Part(f"recurrent state, {N_SLOTS} slots", state, format="fp32")
    yield Part("activations (estimate)", _activation_bytes(spec), format="16 bit")
    yield Part("carved out by firmware (estimate)", board.memory_bytes // CARVED_OUT)
    yield Part("system and service (estimate)", SYSTEM_BYTES)
    yield Part("CUDA and TensorRT (estimate)", TENSORRT_BYTES)


def _activation_bytes(spec: ModelSpec) -> int:
    """ESTIMATE: what the widest block of each graph has in flight, with attention fused.

    The three graphs are counted side by side: each keeps its own workspace.
    """
    decoder, vision, audio = spec.decoder, spec.vision, spec.audio
    tokens, hidden = PREFILL_TOKENS, decoder.hidden_size
    mamba = 3 * decoder.d_inner + 2 * decoder.conv_dim
    attention = (2 * decoder.n_q_heads + 2 * decoder.n_kv_heads) * decoder.head_dim
    experts = decoder.n_experts_per_token * (decoder.expert_size + hidden)
    row = 2 * hidden + max(mamba, attention, experts + decoder.shared_expert_size)
    # the chunk's decay and score matrices, and the row of logits, are float32
    chunk = 2 * decoder.mamba_n_heads * tokens * tokens + decoder.vocab_size
    patches = vision.max_patches + vision.n_prefix_tokens
    vit = patches * (5 * vision.hidden_size + vision.mlp_size)
    merged = vision.max_patches // vision.merge**2
    projector = merged * (vision.merge**2 * vision.hidden_size + vision.projector_size + hidden)
    mel = AUDIO_CLIP_S * MEL_FRAMES_PER_S
    convolution = audio.subsampling_channels * (mel // 2) * (audio.n_mels // 2)
    rows = mel // 8
    conformer = rows * (6 * audio.hidden_size + audio.mlp_size) + 3 * audio.n_heads * rows**2
    elements = tokens * row + vit + projector + 2 * convolution + conformer
    return 2 * elements + 4 * chunk


def _decode_bytes(spec: DecoderSpec, recipe: str) -> int:
    """Weights that one token meets, one row of the embeddings, the state read and written."""
    total = 2 * spec.hidden_size + 2 * recurrent_state_bytes(spec)
    for part in decoder_weights(spec, recipe):
        if part.name == "routed experts":
            total += _selected(spec, part.n_bytes)
        elif part.name != "embeddings":
            total += part.n_bytes
    return total


def _largest_context(spec: ModelSpec, board: Board, recipe: str) -> int:
    fixed = sum(part.n_bytes for part in _parts(spec, board, recipe, 0))
    per_token = N_SLOTS * kv_bytes_per_token(spec.decoder, recipe)
    room = max(board.memory_bytes - fixed, 0)
    most = spec.decoder.max_tokens
    if per_token == 0:
        return most if board.memory_bytes >= fixed else 0
    return min(room // per_token, most)


def _notes(spec: DecoderSpec, board: Board, recipe: str, context: int) -> Iterator[str]:
    decoded = _not_native(board, recipe)
    if decoded:
        names = " and ".join(name.upper() for name in decoded)
        yield (
            f"{board.name} has no FP8 or FP4 arithmetic: {names} would be decoded to FP16 by our "
            "kernel, which saves memory only; w4a16, int4 and bf16 are meant for it"
        )
    scores = 2 * spec.n_q_heads * PREFILL_TOKENS * context
    yield (
        f"attention is taken as fused; otherwise the scores of {PREFILL_TOKENS} tokens would add "
        f"{_gib(scores)} GiB"
    )
    yield "decode is bandwidth only, at the published peak; nothing here is measured"


def _not_native(board: Board, recipe: str) -> list[str]:
    """The recipe's formats in which the board cannot multiply."""
    used = set(RECIPES[recipe].values())
    return [] if board.low_precision else [name for name in LOW_PRECISION if name in used]


def _format(recipe: str, kind: str) -> str:
    return RECIPES[recipe].get(kind, "bf16")


def _named(option: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise ConfigurationError(option, f"is {name!r}, which is unknown", ", ".join(known))
    return known[name]


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
