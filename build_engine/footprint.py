"""What a model takes by a recipe: weights, K/V cache, states, activations, and bytes of a token.

Pure arithmetic over the model's sizes; nothing is measured and no weight is read. Terms marked
ESTIMATE are bounds of ours until a device has reported its own.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from build_engine.decoder_weights import Packed, packed_tensors
from build_engine.pack import BITS
from build_engine.recipe import Recipe
from edge.model.spec import AudioSpec, DecoderSpec, ModelSpec, VisionSpec

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
N_SLOTS = 2
"""A live state, and a second one in which a shorter state is rebuilt."""
PREFILL_TOKENS = 256
AUDIO_CLIP_S = 30
MEL_FRAMES_PER_S = 100


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the table."""

    name: str
    n_bytes: int
    n_parameters: int = 0
    format: str = ""


def footprint(spec: ModelSpec, recipe: Recipe, context_tokens: int) -> Iterator[Part]:
    """Everything of the model that takes memory.

    Each slot has its own K/V rows: rebuilt, the second one is live and grows to the same bound.
    """
    yield from decoder_parts(spec.decoder, recipe)
    encoders = encoder_parameters(spec.vision, spec.audio, spec.decoder.hidden_size)
    for name, count in encoders.items():
        yield Part(name, 2 * count, count, "bf16")
    cache = context_tokens * kv_bytes_per_token(spec.decoder, recipe)
    yield Part("K/V cache, live slot", cache, format=recipe.kv_cache)
    yield Part("K/V cache, second slot", cache * (N_SLOTS - 1), format=recipe.kv_cache)
    state = N_SLOTS * recurrent_state_bytes(spec.decoder)
    yield Part(f"recurrent state, {N_SLOTS} slots", state, format="fp32")
    yield Part("activations (estimate)", activation_bytes(spec), format="16 bit")


@functools.cache
def decoder_parts(spec: DecoderSpec, recipe: Recipe) -> tuple[Part, ...]:
    """The decoder's weights, by kind and by the recipe's format.

    The scales of whole tensors, 8 bytes a linear, are left out.
    """
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    counts: dict[str, Counter[tuple[str, float]]] = {kind: Counter() for kind in KINDS}
    for packed in packed_tensors(spec):
        kind = kind_of.get(packed.name.rpartition(".")[2], "small tensors")
        for source in packed.sources:
            stored = _format_and_bits(packed, source, recipe)
            counts[kind][stored] += math.prod(packed.source_shape)
    return tuple(
        Part(kind, int(count * bits / 8), count, name)
        for kind, by_format in counts.items()
        for (name, bits), count in by_format.items()
    )


def _format_and_bits(packed: Packed, source: str, recipe: Recipe) -> tuple[str, float]:
    """How a bundle keeps one of the sources of `packed`; recipes decide on linears only."""
    if not packed.matrix:
        return "fp32", 32
    module = source.removeprefix("language_model.").removesuffix(".weight")
    chosen = recipe.format_of(module) if packed.linear else "bf16"
    return chosen, BITS[chosen]


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


def kv_bytes_per_token(spec: DecoderSpec, recipe: Recipe) -> int:
    """Keys and values of one token in all attention blocks."""
    elements = 2 * len(spec.layers("*")) * spec.n_kv_heads * spec.head_dim
    return int(elements * BITS[recipe.kv_cache] / 8)


def recurrent_state_bytes(spec: DecoderSpec) -> int:
    """SSM state in float32 and the convolution's last columns in 16 bit, of one sequence."""
    ssm = spec.mamba_n_heads * spec.mamba_head_dim * spec.state_size
    conv = spec.conv_dim * (spec.conv_kernel - 1)
    return len(spec.layers("M")) * (4 * ssm + 2 * conv)


def activation_bytes(spec: ModelSpec) -> int:
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


def decode_bytes(spec: DecoderSpec, recipe: Recipe) -> int:
    """Weights that one token meets, one row of the embeddings, the state read and written."""
    total = 2 * spec.hidden_size + 2 * recurrent_state_bytes(spec)
    for part in decoder_parts(spec, recipe):
        if part.name == "routed experts":
            total += part.n_bytes // spec.n_experts * spec.n_experts_per_token
        elif part.name != "embeddings":
            total += part.n_bytes
    return total
