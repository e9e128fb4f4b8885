"""What the model is: every size and constant, read from a checkpoint's own config.json.

Source: sections 2, 5, 6 and 7 of the published model's configuration and of transformers
5.23.0 (`models/nemotron_h`, `models/nemotron_h_omni`, `models/radio`, `models/parakeet`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from edge.errors import CheckpointError

LAYER_LETTERS = {"M": "mamba2", "E": "mixture of experts", "*": "attention"}

# Constants of the audio front end, which no configuration file carries.
SAMPLE_RATE_HZ = 16_000
# timm's ViT geometries by the name that vision_config.args.model gives: width, layers, heads.
VIT_GEOMETRY = {
    "vit_tiny_patch16_224": (192, 12, 3),
    "vit_small_patch16_224": (384, 12, 6),
    "vit_base_patch16_224": (768, 12, 12),
    "vit_large_patch16_224": (1024, 24, 16),
    "vit_huge_patch16_224": (1280, 32, 16),
}
PUBLISHED_TRAINED_TOKENS = 131_072
"""max_sequence_length of the published config.json."""
IMAGE_CONTEXT_TOKENS = 16_384
"""Context that the published preprocessor budgets for (preprocessor_config.json max_model_len)."""


class DecoderSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The hybrid decoder: Mamba2, attention and mixture-of-experts blocks."""

    pattern: str
    """One letter a block: M Mamba2, E mixture of experts, * attention."""
    hidden_size: int
    vocab_size: int
    max_tokens: int
    norm_eps: float
    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    mamba_n_heads: int
    mamba_head_dim: int
    n_groups: int
    state_size: int
    conv_kernel: int
    n_experts: int
    n_experts_per_token: int
    n_expert_groups: int
    n_expert_groups_per_token: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    expert_size: int
    shared_expert_size: int
    trained_tokens: int = PUBLISHED_TRAINED_TOKENS
    """Longest sequence that the checkpoint is made for; the published one's, in manifests that were
    written before it was told."""

    @property
    def d_inner(self) -> int:
        """Channels of the Mamba2 mixer (heads x head dim; `expand` is not used)."""
        return self.mamba_n_heads * self.mamba_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels through the causal convolution: x, B and C."""
        return self.d_inner + 2 * self.n_groups * self.state_size

    def layers(self, letter: str) -> list[int]:
        """Indices of the blocks of one kind."""
        return [i for i, kind in enumerate(self.pattern) if kind == letter]


class VisionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """C-RADIO ViT, pixel shuffle and projector, with what preprocessing needs."""

    hidden_size: int
    n_layers: int
    n_heads: int
    mlp_size: int
    patch_size: int
    position_grid: int
    """The learned position table is position_grid x position_grid."""
    n_prefix_tokens: int
    projector_size: int
    norm_mean: tuple[float, float, float]
    norm_std: tuple[float, float, float]
    min_patches: int
    max_patches: int
    video_target_patches: int
    tubelet_frames: int
    video_pruning_rate: float
    merge: int = 2
    """Pixel shuffle joins merge x merge patches into one token."""
    norm_eps: float = 1e-6
    projector_norm_eps: float = 1e-5


class AudioSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parakeet (FastConformer) encoder and projector."""

    hidden_size: int
    n_layers: int
    n_heads: int
    mlp_size: int
    conv_kernel: int
    subsampling_channels: int
    n_mels: int
    projector_size: int
    norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
    projector_norm_eps: float = 1e-5


class SamplingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checkpoint's own generation defaults."""

    stop_ids: tuple[int, ...]
    temperature: float
    top_p: float


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole model."""

    decoder: DecoderSpec
    vision: VisionSpec
    audio: AudioSpec
    sampling: SamplingSpec


T = TypeVar("T")

_NAMES = {"_ids": "one or more token ids", "_number": "a number of 0 or more"}


class _Section:
    """One mapping of config.json, read key by key with errors that name the key."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.values, self.name = values, name

    def get(self, key: str, kind: Callable[[Any], T], *default: T) -> T:
        if key not in self.values or self.values[key] is None:
            if default:
                return default[0]
            raise CheckpointError(
                f"{self.name}.{key}", "is missing", "use a Nemotron 3 Nano Omni checkpoint"
            )
        try:
            return kind(self.values[key])
        except (TypeError, ValueError):
            expected = _NAMES.get(kind.__name__, f"a {kind.__name__}")
            raise CheckpointError(
                f"{self.name}.{key}",
                f"is {self.values[key]!r}, which is not {expected}",
                "restore the published config.json",
            ) from None

    def size(self, key: str, *default: int) -> int:
        value = self.get(key, int, *default)
        if value < 1:
            raise CheckpointError(
                f"{self.name}.{key}", f"is {value}, below 1", "restore the published config.json"
            )
        return value

    def section(self, key: str) -> _Section:
        return _Section(self.get(key, dict), f"{self.name}.{key}")


def model_spec(config: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelSpec:
    """Read the model's sizes from its configuration files.

    Args:
        config: config.json with llm_config, vision_config and sound_config.
        generation: generation_config.json.
    Raises:
        CheckpointError: a key is missing or its value cannot be served.
    """
    top = _Section(config, "config.json")
    decoder = _decoder(top)
    audio = _audio(top.section("sound_config"))
    return ModelSpec(decoder, _vision(top), audio, _sampling(top, generation))


def _sampling(top: _Section, generation: Mapping[str, Any]) -> SamplingSpec:
    """A null says nothing, as in transformers."""
    own = _Section(generation, "generation_config.json")
    told = own if generation.get("eos_token_id") is not None else top
    return SamplingSpec(
        stop_ids=told.get("eos_token_id", _ids),
        temperature=own.get("temperature", _number, 1.0),
        top_p=own.get("top_p", _number, 1.0),
    )


def _decoder(top: _Section) -> DecoderSpec:
    llm = top.section("llm_config")
    max_tokens = llm.size("max_position_embeddings", 262_144)
    pattern = llm.get("hybrid_override_pattern", str)
    for i, letter in enumerate(pattern):
        if letter not in LAYER_LETTERS:
            raise CheckpointError(
                "config.json.llm_config.hybrid_override_pattern",
                f"has the unknown layer letter {letter!r} at position {i}",
                f"this runtime knows {', '.join(f'{k} ({v})' for k, v in LAYER_LETTERS.items())}",
            )
    spec = DecoderSpec(
        pattern=pattern,
        hidden_size=llm.size("hidden_size"),
        vocab_size=llm.size("vocab_size"),
        max_tokens=max_tokens,
        norm_eps=llm.get("layer_norm_epsilon", float, 1e-5),
        n_q_heads=llm.size("num_attention_heads"),
        n_kv_heads=llm.size("num_key_value_heads"),
        head_dim=llm.size("head_dim"),
        mamba_n_heads=llm.size("mamba_num_heads"),
        mamba_head_dim=llm.size("mamba_head_dim"),
        n_groups=llm.size("n_groups"),
        state_size=llm.size("ssm_state_size"),
        conv_kernel=llm.size("conv_kernel"),
        n_experts=llm.size("n_routed_experts"),
        n_experts_per_token=llm.size("num_experts_per_tok"),
        n_expert_groups=llm.size("n_group", 1),
        n_expert_groups_per_token=llm.size("topk_group", 1),
        norm_topk_prob=llm.get("norm_topk_prob", bool, True),
        routed_scaling_factor=llm.get("routed_scaling_factor", float, 1.0),
        expert_size=llm.size("moe_intermediate_size"),
        shared_expert_size=llm.size("moe_shared_expert_intermediate_size"),
        trained_tokens=top.size("max_sequence_length", max_tokens),
    )
    _multiple(llm, "num_attention_heads", spec.n_q_heads, "num_key_value_heads", spec.n_kv_heads)
    _multiple(llm, "mamba_num_heads", spec.mamba_n_heads, "n_groups", spec.n_groups)
    _multiple(llm, "n_routed_experts", spec.n_experts, "n_group", spec.n_expert_groups)
    return spec


def _multiple(section: _Section, key: str, value: int, of_key: str, of: int) -> None:
    if value % of:
        raise CheckpointError(
            f"{section.name}.{key}",
            f"is {value}, not a multiple of {of_key} = {of}",
            "restore the published config.json",
        )


def _vision(top: _Section) -> VisionSpec:
    vision = top.section("vision_config")
    args = vision.section("args")
    name = args.get("model", str, "")
    width, layers, heads = VIT_GEOMETRY.get(name, (0, 0, 0))
    if not width and "hidden_size" not in vision.values:
        raise CheckpointError(
            "config.json.vision_config.args.model",
            f"is {name!r}, an unknown ViT without explicit sizes",
            f"use one of {', '.join(VIT_GEOMETRY)}, or give hidden_size, num_hidden_layers "
            "and num_attention_heads in vision_config",
        )
    hidden = vision.size("hidden_size", width)
    patch = vision.size("patch_size", 16)
    downsample = top.get("downsample_ratio", float, 0.5)
    if downsample != 0.5:
        raise CheckpointError(
            "config.json.downsample_ratio", f"is {downsample}", "only 0.5 is defined"
        )
    if top.get("ps_version", str, "v2") != "v2":
        raise CheckpointError(
            "config.json.ps_version",
            f"is {top.get('ps_version', str)!r}",
            "only the pixel shuffle v2 is defined",
        )
    mean, std = (top.get(k, _three_floats) for k in ("norm_mean", "norm_std"))
    return VisionSpec(
        hidden_size=hidden,
        n_layers=vision.size("num_hidden_layers", layers),
        n_heads=vision.size("num_attention_heads", heads),
        mlp_size=vision.size("intermediate_size", 4 * hidden),
        patch_size=patch,
        position_grid=args.size("cpe_max_size") // patch,
        n_prefix_tokens=args.size("register_multiple", 10),
        projector_size=top.size("projector_hidden_size"),
        norm_mean=mean,
        norm_std=std,
        min_patches=args.size("min_num_patches"),
        max_patches=args.size("max_num_patches"),
        video_target_patches=vision.size("video_target_num_patches", 1024),
        tubelet_frames=vision.size("video_temporal_patch_size", 2),
        video_pruning_rate=top.get("video_pruning_rate", float, 0.0),
    )


def _audio(sound: _Section) -> AudioSpec:
    rate = sound.size("sampling_rate", SAMPLE_RATE_HZ)
    factor = sound.size("subsampling_factor", 8)
    if (rate, factor) != (SAMPLE_RATE_HZ, 8):
        raise CheckpointError(
            sound.name,
            f"has sampling_rate {rate} and subsampling_factor {factor}",
            f"only {SAMPLE_RATE_HZ} Hz and 8 are defined",
        )
    return AudioSpec(
        hidden_size=sound.size("hidden_size"),
        n_layers=sound.size("num_hidden_layers"),
        n_heads=sound.size("num_attention_heads"),
        mlp_size=sound.size("intermediate_size"),
        conv_kernel=sound.size("conv_kernel_size"),
        subsampling_channels=sound.size("subsampling_conv_channels"),
        n_mels=sound.size("num_mel_bins"),
        projector_size=sound.size("projection_hidden_size"),
    )


def _ids(value: Any) -> tuple[int, ...]:
    found = tuple(value) if isinstance(value, list) else (value,)
    if not found or not all(type(one) is int and one >= 0 for one in found):
        raise ValueError
    return found


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise ValueError
    return number


def _three_floats(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    if not all(math.isfinite(v) for v in (red, green, blue)):
        raise ValueError
    return red, green, blue
