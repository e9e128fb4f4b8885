"""Every tensor of a checkpoint: what is read by the specification, and what need not be."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import TypeAlias

from build_engine.decoder_weights import packed_tensors
from edge.model.spec import AudioSpec, ModelSpec, VisionSpec

Shape: TypeAlias = tuple[int, ...]
VISION = "vision_model.radio_model"
AUDIO = "sound_encoder.encoder"
FINAL_NORMS = ("vision_final_layernorm", "vision_projector.vision_final_layernorm")
"""transformers' name and vLLM's. Where neither is there, the norm has no weights of its own."""
UNREAD: dict[str, tuple[str, float | None]] = {
    "*.input_conditioner.norm_mean": ("pixels are normalized before by config.json's values", None),
    "*.input_conditioner.norm_std": ("pixels are normalized before by config.json's values", None),
    "*.feature_extractor.featurizer.fb": ("the runtime computes the same filters", None),
    "*.feature_extractor.featurizer.window": ("the runtime computes the same window", None),
    "*.num_batches_tracked": ("counts batches of the training", None),
    "vision_model.*summary_idxs": ("chooses a summary, which the decoder does not see", None),
    "*.k_scale": ("is for a cache of keys in FP8, and the cache is wider here", None),
    "*.v_scale": ("is for a cache of values in FP8, and the cache is wider here", None),
    "*.k_proj.output_scale": ("is for a cache of keys in FP8, and the cache is wider here", None),
    "*.v_proj.output_scale": ("is for a cache of values in FP8, and the cache is wider here", None),
    "*.input_scale": ("is for activations in FP8 or NVFP4", None),
    "mtp.*": ("predicts tokens ahead, which transformers drops as well", None),
    "language_model.mtp.*": ("predicts tokens ahead, which transformers drops as well", None),
    f"{VISION}.model.blocks.*.layer_scale?.lambda1": ("scales by 1", 1.0),
    f"{VISION}.model.blocks.*.ls?.gamma": ("scales by 1", 1.0),
    "*.bias": ("adds 0", 0.0),
}
"""By pattern of name: why a tensor that nothing reads changes nothing, and the value that it must
hold for that."""


def unread(name: str) -> tuple[str, float | None] | None:
    """Why nothing is lost where a tensor is not read, and the one value that it must hold."""
    found = (why for pattern, why in UNREAD.items() if fnmatch.fnmatchcase(name, pattern))
    return next(found, None)


def tensors(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every tensor that a bundle is made of, before any is quantized."""
    for packed in packed_tensors(spec.decoder):
        for source in packed.sources:
            yield source, packed.source_shape
    yield from vision_tensors(spec.vision, spec.decoder.hidden_size)
    yield from audio_tensors(spec.audio, spec.decoder.hidden_size)


def vision_tensors(spec: VisionSpec, hidden: int) -> Iterator[tuple[str, Shape]]:
    """Of the vision tower and its projector. A final norm has none that must be there."""
    width, mlp = spec.hidden_size, spec.mlp_size
    features = 3 * spec.patch_size**2
    at = f"{VISION}.model.patch_generator"
    yield f"{at}.embedder.weight", (width, features)
    yield f"{at}.video_embedder.weight", (width, features * spec.tubelet_frames)
    yield f"{at}.pos_embed", (1, spec.position_grid**2, width)
    yield f"{at}.cls_token.token", (spec.n_prefix_tokens, width)
    sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    sizes |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
    for b in range(spec.n_layers):
        block = f"{VISION}.model.blocks.{b}"
        for norm in ("norm1", "norm2"):
            yield f"{block}.{norm}.weight", (width,)
            yield f"{block}.{norm}.bias", (width,)
        for name, shape in sizes.items():
            yield f"{block}.{name}.weight", shape
            yield f"{block}.{name}.bias", shape[:1]
    yield "mlp1.0.weight", (spec.merge**2 * width,)
    yield "mlp1.1.weight", (spec.projector_size, spec.merge**2 * width)
    yield "mlp1.3.weight", (hidden, spec.projector_size)


def audio_tensors(spec: AudioSpec, hidden: int) -> Iterator[tuple[str, Shape]]:
    """Of the audio tower and its projector."""
    d, channels = spec.hidden_size, spec.subsampling_channels

    def linear(name: str, shape: Shape, bias: bool) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.weight", shape
        if bias:
            yield f"{name}.bias", shape[:1]

    for layer in (0, 2, 3, 5, 6):
        kernel = (channels, channels, 1, 1) if layer in (3, 6) else (channels, 1, 3, 3)
        yield from linear(f"{AUDIO}.subsampling.layers.{layer}", kernel, bias=True)
    subsampled = (d, channels * (spec.n_mels // 8))
    yield from linear(f"{AUDIO}.subsampling.linear", subsampled, bias=True)
    for i in range(spec.n_layers):
        at = f"{AUDIO}.layers.{i}"
        for norm in ("feed_forward1", "self_att", "conv", "feed_forward2", "out"):
            yield f"{at}.norm_{norm}.weight", (d,)
            yield f"{at}.norm_{norm}.bias", (d,)
        for ff in ("feed_forward1", "feed_forward2"):
            yield from linear(f"{at}.{ff}.linear1", (spec.mlp_size, d), spec.attention_bias)
            yield from linear(f"{at}.{ff}.linear2", (d, spec.mlp_size), spec.attention_bias)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from linear(f"{at}.self_attn.{name}", (d, d), spec.attention_bias)
        yield f"{at}.self_attn.relative_k_proj.weight", (d, d)
        for name in ("bias_u", "bias_v"):
            yield f"{at}.self_attn.{name}", (spec.n_heads, d // spec.n_heads)
        kernels: dict[str, Shape] = {"pointwise_conv1": (2 * d, d, 1), "pointwise_conv2": (d, d, 1)}
        kernels["depthwise_conv"] = (d, 1, spec.conv_kernel)
        for name, shape in kernels.items():
            yield from linear(f"{at}.conv.{name}", shape, spec.convolution_bias)
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield f"{at}.conv.norm.{name}", (d,)
    yield "sound_projection.norm.weight", (d,)
    for name, shape in (
        ("linear1", (spec.projector_size, d)),
        ("linear2", (hidden, spec.projector_size)),
    ):
        yield from linear(f"sound_projection.{name}", shape, spec.projection_bias)


def buffers(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """What the published files hold besides, and nothing reads."""
    for name in ("norm_mean", "norm_std"):
        yield f"{VISION}.input_conditioner.{name}", (3, 1, 1)
    yield f"{AUDIO}.feature_extractor.featurizer.fb", (1, spec.audio.n_mels, 257)
    yield f"{AUDIO}.feature_extractor.featurizer.window", (400,)
    for i in range(spec.audio.n_layers):
        yield f"{AUDIO}.layers.{i}.conv.norm.num_batches_tracked", ()
