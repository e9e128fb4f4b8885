"""What a model takes by a recipe: weights, K/V cache, states, buffers, and bytes of a token.

Arithmetic over the model's sizes, no weight is read. What the tensorrt engine takes itself is told
to the byte; the plans' scratch memory is what they say, or an ESTIMATE until they are compiled.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from build_engine.decoder_layout import recipe_layout
from build_engine.decoder_weights import Packed, packed_tensors
from build_engine.graphs.decoder import DEVICE, N_TOP, Precision
from build_engine.graphs.weight_formats import E4M3, stored
from build_engine.pack import BITS
from build_engine.profiles import audio_profiles, longest_past, vision_profiles
from build_engine.recipe import Recipe
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.plan_memory import ALIGNMENT, PINNED, aligned
from edge.engines.safetensors import Layout
from edge.engines.tensorrt import MAX_SNAPSHOTS, MAX_STATES
from edge.model.spec import AudioSpec, DecoderSpec, ModelSpec, VisionSpec
from gpu_kernels.launch import FORMATS

ROUTED_EXPERTS = "routed experts"
# The decoder's weights by kind, and the last part of the packed tensors' names that belong to it.
KINDS: dict[str, tuple[str, ...]] = {
    "embeddings": ("embeddings",),
    "lm_head": ("head",),
    "Mamba linears": ("in_proj", "out_proj"),
    "attention q, k, v": ("q_proj", "k_proj", "v_proj"),
    "attention o": ("o_proj",),
    ROUTED_EXPERTS: ("experts_up", "experts_down"),
    "shared experts": ("shared_up", "shared_down"),
    "router": ("gate",),
    "small tensors": (),
}
MEL_FRAMES_PER_S = 100
WEIGHTS, SCRATCH, CACHE, STATE = "weights", "scratch memory", "K/V cache", "state"
"""What the engine calls them."""
INPUT_SCALE = ".input_scale"
FLOAT32_BYTES = 4
SCORE_BYTES, VISION_BYTES, AUDIO_BYTES = 6, 32, 6
"""In flight: of a query head's score, a patch's column, a value after the first convolution."""
ATTENTION_BYTES, BESIDE_TABLES_BYTES, SCAN_BYTES, PAIR_BYTES = 96, 32, 83, 4.2
"""Of a row's column in attention, and there beside a decoded weight; in the scan of a row's column,
and of a pair of tokens in one head."""
DECODED_BYTES = {"nvfp4": 8, "int4": 8, "fp8": 4}
"""Of a weight that is decoded by tables, as it is stored."""
ATTENTION_LINEARS = (".q_proj", ".k_proj", ".v_proj", ".o_proj")
MAMBA_LINEARS = (".in_proj", ".out_proj")


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the table."""

    name: str
    n_bytes: int
    n_parameters: int = 0
    format: str = ""


class Decoded(NamedTuple):
    """Bytes of the largest linear that is decoded by tables, by where it is; 0: none is."""

    attention: int
    mamba: int
    anywhere: int


def footprint(
    spec: ModelSpec,
    recipe: Recipe,
    context_tokens: int,
    precision: Precision = DEVICE,
    scratch: int | None = None,
) -> Iterator[Part]:
    """Everything of the model that takes memory.

    No scratch memory is told where there can be no plans: see `has_gpu_experts`.

    Args:
        context_tokens: that the plans are compiled for.
        precision: of the target's plans.
        scratch: bytes that compiled plans need while they compute; None estimates them.
    """
    weights = _recipe_weight_bytes(spec.decoder, recipe, precision)
    told = scratch is not None
    if scratch is None:
        decoded = _recipe_decoded_bytes(spec.decoder, recipe, precision)
        scratch = scratch_bytes(spec, decoded, context_tokens)
    taken = engine_bytes(spec, weights, precision, context_tokens, scratch)
    kinds = decoder_parts(spec.decoder, recipe)
    on_gpu = sum(part.n_bytes for part in kinds if part.name != "embeddings")
    yield from kinds
    yield Part("scales of tensors, alignment", taken.pop(WEIGHTS) - on_gpu)
    encoders = encoder_parameters(spec.vision, spec.audio, spec.decoder.hidden_size)
    for name, count in encoders.items():
        yield Part(name, 2 * count, count, "bf16")
    yield Part(f"K/V cache, {MAX_STATES} states", taken.pop(CACHE), format="fp16")
    yield Part(f"recurrent state, {MAX_STATES} states twice", taken.pop(STATE), format="fp32")
    yield Part(f"recurrent state, {MAX_SNAPSHOTS} snapshots", taken.pop("snapshots"), format="fp32")
    scratch = taken.pop(SCRATCH)
    if told or has_gpu_experts(spec.decoder, recipe):
        yield Part(f"scratch memory ({'the plans say' if told else 'estimate'})", scratch)
    yield Part("inputs, outputs, pinned memory", sum(taken.values()))


def engine_bytes(
    spec: ModelSpec, weights: int, precision: Precision, context_tokens: int, scratch: int
) -> dict[str, int]:
    """What the tensorrt engine takes, by what for, with plans compiled for this context.

    Args:
        weights: `weight_bytes` of the decoder.
        scratch: bytes that the plans need while they compute.
    """
    decoder, act = spec.decoder, precision.activation.itemsize
    n_cached = 2 * len(decoder.layers("*"))
    kv_row = act * decoder.n_kv_heads * decoder.head_dim
    rows = min(longest_past(context_tokens), decoder.max_tokens)
    recurrent = recurrent_state_bytes(decoder, act)
    input_bytes = ALIGNMENT + MAX_PREFILL_TOKENS * decoder.hidden_size * act
    n_top = min(N_TOP, decoder.vocab_size)
    logits = FLOAT32_BYTES * decoder.vocab_size
    encoders = {
        "vision encoder": list(_vision_bindings(spec)),
        "audio encoder": list(_audio_bindings(spec)),
    }
    pinned = [input_bytes, logits, *(n for sizes in encoders.values() for n in sizes)]
    outputs = {"logits": logits, **dict.fromkeys(("top_values", "top_ids"), FLOAT32_BYTES * n_top)}
    return {
        SCRATCH: scratch,
        **{name: sum(max(n, ALIGNMENT) for n in sizes) for name, sizes in encoders.items()},
        WEIGHTS: weights,
        "input": input_bytes,
        "staged keys and values": n_cached * aligned(MAX_PREFILL_TOKENS * kv_row),
        **{name: max(n, ALIGNMENT) for name, n in outputs.items()},
        CACHE: MAX_STATES * n_cached * aligned(rows * kv_row),
        STATE: 2 * MAX_STATES * recurrent,
        "snapshots": MAX_SNAPSHOTS * recurrent,
        PINNED: sum(pinned),
    }


@functools.cache
def has_gpu_experts(spec: DecoderSpec, recipe: Recipe) -> bool:
    """Whether the GPU's kernels read all routed experts; as operators they are too large."""
    layout = recipe_layout(spec, recipe)
    names = (name for name in layout if name.endswith(KINDS[ROUTED_EXPERTS]))
    return all(stored(layout, name).kind in FORMATS for name in names)


@functools.cache
def _recipe_weight_bytes(spec: DecoderSpec, recipe: Recipe, precision: Precision) -> int:
    return weight_bytes(recipe_layout(spec, recipe), precision)


@functools.cache
def _recipe_decoded_bytes(spec: DecoderSpec, recipe: Recipe, precision: Precision) -> Decoded:
    return decoded_bytes(recipe_layout(spec, recipe), precision)


def weight_bytes(layout: Layout, precision: Precision) -> int:
    """Of the tensors that the decoder's graphs take, each aligned.

    The table of embeddings stays mapped, only rows of it are given; activations have a scale where
    they meet weights as FP8.

    Args:
        layout: dtype and shape of every tensor of decoder.safetensors.
    """
    total = 0
    for name, (dtype, shape) in layout.items():
        weight = name.removesuffix(INPUT_SCALE)
        scaled = precision.fp8 and layout[weight][0] == E4M3
        if name != "embeddings" and (weight == name or scaled):
            total += aligned(math.prod(shape) * dtype.itemsize)
    return total


def _vision_bindings(spec: ModelSpec) -> Iterator[int]:
    shapes = vision_profiles(spec.vision)[0].shapes
    yield FLOAT32_BYTES  # which embedder
    for _, _, largest in shapes.values():
        yield FLOAT32_BYTES * math.prod(largest)
    n_tokens = shapes["patches"][2][1] // spec.vision.merge**2
    yield FLOAT32_BYTES * n_tokens * spec.decoder.hidden_size


def _audio_bindings(spec: ModelSpec) -> Iterator[int]:
    _, _, mel = audio_profiles(spec.audio)[0].shapes["mel"]
    yield FLOAT32_BYTES * math.prod(mel)
    yield FLOAT32_BYTES * -(-mel[1] // 8) * spec.decoder.hidden_size


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


def kv_bytes_per_token(spec: DecoderSpec) -> int:
    """Keys and values of one token in all attention blocks, as the graphs bind them.

    A recipe's `kv_cache` is for engines that keep them in FP8; this one does not.
    """
    elements = 2 * len(spec.layers("*")) * spec.n_kv_heads * spec.head_dim
    return elements * DEVICE.activation.itemsize


def recurrent_state_bytes(
    spec: DecoderSpec, activation_bytes: int = DEVICE.activation.itemsize
) -> int:
    """SSM state in float32 and the convolution's last columns, of one sequence."""
    ssm = spec.mamba_n_heads * spec.mamba_head_dim * spec.state_size
    conv = spec.conv_dim * (spec.conv_kernel - 1)
    each = aligned(FLOAT32_BYTES * ssm) + aligned(activation_bytes * conv)
    return len(spec.layers("M")) * each


def scratch_bytes(spec: ModelSpec, decoded: Decoded, context_tokens: int) -> int:
    """ESTIMATE: what the plans need while they compute, the one that needs most; they share it.

    From what TensorRT-RTX 1.7.1 reserves for SM86 at the published sizes, within 2.5 % of it
    (docs/graphs.md). Attention to a past of any length is not fused there, and a linear that is
    decoded by tables is there whole. The routed experts are taken as kernels, which need less than
    these.

    Args:
        decoded: `decoded_bytes` of the decoder.
    """
    decoder, tokens = spec.decoder, MAX_PREFILL_TOKENS
    rows = min(longest_past(context_tokens), decoder.max_tokens)
    columns = decoder.hidden_size * tokens
    attention = SCORE_BYTES * decoder.n_q_heads * tokens * (rows + tokens) + max(
        ATTENTION_BYTES * columns, decoded.attention + BESIDE_TABLES_BYTES * columns
    )
    scan = SCAN_BYTES * decoder.d_inner * tokens + max(
        int(PAIR_BYTES * decoder.mamba_n_heads * tokens**2), decoded.mamba
    )
    mel = audio_profiles(spec.audio)[0].shapes["mel"][2][1]
    subsampled = (mel // 2) * (spec.audio.n_mels // 2) * spec.audio.subsampling_channels
    return max(
        attention if decoder.layers("*") else 0,
        scan if decoder.layers("M") else 0,
        decoded.anywhere,
        vision_scratch_bytes(spec.vision)[0],
        AUDIO_BYTES * subsampled,
    )


def vision_scratch_bytes(spec: VisionSpec) -> list[int]:
    """ESTIMATE: what the encoder's plan needs in each profile; a fifth too much in the second."""
    largest = (profile.shapes["patches"][2] for profile in vision_profiles(spec))
    return [VISION_BYTES * n_patches * spec.hidden_size for _, n_patches, _ in largest]


def decoded_bytes(layout: Layout, precision: Precision) -> Decoded:
    """What the plans hold decoded at a time, the routed experts apart.

    Args:
        layout: dtype and shape of every tensor of decoder.safetensors.
    """
    found: dict[str, int] = {}
    for name, (_, shape) in layout.items():
        if len(shape) != 2 or name.endswith("scale"):
            continue
        weight = stored(layout, name)
        if weight.kind in DECODED_BYTES and not (precision.fp8 and weight.kind == "fp8"):
            found[name] = weight.n * weight.k * DECODED_BYTES[weight.kind]
    largest = (
        max((n for name, n in found.items() if name.endswith(ends)), default=0)
        for ends in (ATTENTION_LINEARS, MAMBA_LINEARS, "")
    )
    return Decoded(*largest)


def decode_bytes(spec: DecoderSpec, recipe: Recipe) -> int:
    """Weights that one token meets, one row of the embeddings, the state read and written."""
    total = 2 * spec.hidden_size + 2 * recurrent_state_bytes(spec)
    for part in decoder_parts(spec, recipe):
        if part.name == ROUTED_EXPERTS:
            total += part.n_bytes // spec.n_experts * spec.n_experts_per_token
        elif part.name != "embeddings":
            total += part.n_bytes
    return total
