"""What the model is: every size and constant, read from a checkpoint's own config.json.

Source: sections 2, 5, 6 and 7 of the published model's configuration and of transformers
5.23.0 (`models/nemotron_h`, `models/nemotron_h_omni`, `models/radio`, `models/parakeet`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from edge.errors import CheckpointError
from edge.model.config_keys import (
    GENERATION,
    IMAGES,
    judge,
    judge_config,
    numbers,
    published_names,
    refuse,
)

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
PICTURE_PATCHES = (1024, 13_312)
"""Fewest and most patches of a picture where no file tells: transformers' image processor's own."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels where no file tells."""
MAX_PATCHES = 1 << 14
"""Of a picture or a frame: attention among more would take gigabytes."""
MAX_TAPS = 16
"""Columns of the decoder's convolution that the kernels hold."""
MAX_EXPERTS = 1 << 12
MAX_EXPERTS_PER_TOKEN = 64
"""As many as the kernels take for one row."""
MAX_SIZE = 1 << 31


class DecoderSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
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
    conv_bias: bool = True
    """Whether the checkpoint has biases of the convolution; a bundle has zeros in their place."""

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


class VisionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
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
    final_norm: bool = False
    """A LayerNorm ends the ViT. Megatron gives every tower one where the decoder predicts tokens
    ahead (num_nextn_predict_layers)."""


class AudioSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
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
    attention_bias: bool = False
    """The linears of attention and of the feed-forwards have biases."""
    convolution_bias: bool = False
    projection_bias: bool = False
    scale_input: bool = False
    """What is subsampled is multiplied by sqrt(hidden_size)."""


class SamplingSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The checkpoint's own generation defaults."""

    stop_ids: tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int = 0
    """0 is all."""


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole model."""

    decoder: DecoderSpec
    vision: VisionSpec
    audio: AudioSpec
    sampling: SamplingSpec


def contradiction(spec: ModelSpec) -> str | None:
    """Why a specification that somebody wrote is none that `model_spec` gives; None: it may be one.

    Sizes that tensors have are held to the tensors: here is what makes no sense of its own.
    """
    for name in ("decoder", "vision", "audio", "sampling"):
        part = getattr(spec, name)
        for key in part.__struct_fields__:
            value = getattr(part, key)
            lowest = 0 if key in ("top_k", "stop_ids") else 1
            for one in value if isinstance(value, tuple) else (value,):
                if type(one) is int and not lowest <= one < MAX_SIZE:
                    return f"spec.{name}.{key} is {value}"
    return next(_contradictions(spec), None)


def _contradictions(spec: ModelSpec) -> Iterator[str]:
    decoder, vision, audio = spec.decoder, spec.vision, spec.audio
    for letter in sorted({*decoder.pattern} - LAYER_LETTERS.keys()):
        yield f"spec.decoder.pattern has the unknown layer letter {letter!r}"
    groups, each = decoder.n_expert_groups, decoder.n_experts // decoder.n_expert_groups
    for wrong, why in (
        (not decoder.pattern, "spec.decoder.pattern has no layer"),
        (decoder.conv_kernel > MAX_TAPS, f"spec.decoder.conv_kernel is above {MAX_TAPS}"),
        (decoder.n_experts > MAX_EXPERTS, f"spec.decoder.n_experts is above {MAX_EXPERTS}"),
        (
            decoder.n_q_heads % decoder.n_kv_heads,
            "spec.decoder.n_kv_heads does not divide n_q_heads",
        ),
        (
            decoder.mamba_n_heads % decoder.n_groups,
            "spec.decoder.n_groups does not divide its heads",
        ),
        (decoder.n_experts % groups, "spec.decoder.n_expert_groups does not divide n_experts"),
        (groups > 1 and each < 2, "spec.decoder.n_expert_groups leaves a group one expert"),
        (decoder.n_expert_groups_per_token > groups, "spec.decoder.n_expert_groups_per_token"),
        (
            decoder.n_experts_per_token
            > min(each * decoder.n_expert_groups_per_token, MAX_EXPERTS_PER_TOKEN),
            "spec.decoder.n_experts_per_token is more than can be chosen",
        ),
        (vision.hidden_size % vision.n_heads, "spec.vision.n_heads does not divide hidden_size"),
        (vision.merge != 2, "spec.vision.merge is not 2"),
        (vision.tubelet_frames < 2, "spec.vision.tubelet_frames is 1"),
        (
            not vision.merge**2
            <= min(vision.min_patches, vision.max_patches, vision.video_target_patches)
            <= max(vision.min_patches, vision.max_patches, vision.video_target_patches)
            <= MAX_PATCHES,
            f"spec.vision has a number of patches outside {vision.merge**2}..{MAX_PATCHES}",
        ),
        (min(decoder.norm_eps, vision.norm_eps, audio.norm_eps) < 0, "spec has a norm_eps below 0"),
        (not min(vision.norm_std) > 0, "spec.vision.norm_std is 0"),
        (not 0 <= vision.video_pruning_rate < 1, "spec.vision.video_pruning_rate is outside 0..1"),
        (audio.hidden_size % audio.n_heads, "spec.audio.n_heads does not divide hidden_size"),
        (audio.hidden_size % 2, "spec.audio.hidden_size is odd"),
        (not audio.conv_kernel % 2, "spec.audio.conv_kernel is even"),
        (audio.n_mels % 8, "spec.audio.n_mels is no multiple of 8"),
        (not spec.sampling.stop_ids, "spec.sampling.stop_ids is empty"),
        (not 0 <= spec.sampling.temperature <= 2, "spec.sampling.temperature is outside 0..2"),
        (not 0 < spec.sampling.top_p <= 1, "spec.sampling.top_p is outside 0..1"),
    ):
        if wrong:
            yield why


T = TypeVar("T")


class _Section:
    """One mapping of a configuration file, read key by key with errors that name the key."""

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
        except (TypeError, ValueError, OverflowError):
            raise self.wrong(key, f"which is not {kind.__doc__}") from None

    def size(self, key: str, *default: int, most: int | None = None) -> int:
        value = self.get(key, _int, *default)
        if value < 1:
            raise self.wrong(key, "below 1")
        if most is not None and value > most:
            raise self.wrong(key, f"above {most}, the most that is served")
        return value

    def section(self, key: str) -> _Section:
        return _Section(self.get(key, _dict), f"{self.name}.{key}")

    def wrong(self, key: str, how: str) -> CheckpointError:
        """The error of a value that cannot be right."""
        value = repr(self.values.get(key))
        value = value if len(value) <= 60 else f"{value[:57]}..."
        return CheckpointError(
            f"{self.name}.{key}", f"is {value}, {how}", "restore the published file"
        )


def _int(value: Any) -> int:
    """a whole number"""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    """a finite number"""
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _bool(value: Any) -> bool:
    """true or false"""
    if not isinstance(value, bool):
        raise ValueError
    return value


def _str(value: Any) -> str:
    """a text"""
    if not isinstance(value, str):
        raise ValueError
    return value


def _dict(value: Any) -> dict[str, Any]:
    """an object"""
    if not isinstance(value, dict):
        raise ValueError
    return value


def _three_floats(values: Any) -> tuple[float, float, float]:
    """three finite numbers"""
    red, green, blue = (_float(v) for v in values)
    return red, green, blue


def _ids(values: Any) -> tuple[int, ...]:
    """a token id or a list of them"""
    ids = tuple(_int(v) for v in (values if isinstance(values, list) else [values]))
    if not ids or min(ids) < 0:
        raise ValueError
    return ids


def model_spec(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    processors: Mapping[str, Mapping[str, Any]] | None = None,
) -> ModelSpec:
    """Read the model's sizes from its configuration files.

    Args:
        config: config.json with llm_config, vision_config and sound_config.
        generation: generation_config.json.
        processors: by name, what is said of the processing of pictures and sound; it may tell what
            config.json leaves out, and must not contradict it.
    Raises:
        CheckpointError: a key is missing, its value cannot be served, or values contradict.
    """
    config = published_names(config)
    refuse(judge_config(config))
    refuse(judge("generation_config.json", generation, GENERATION))
    told = [_Section(values, name) for name, values in (processors or {}).items()]
    for section in told:
        refuse(judge(section.name, section.values, IMAGES))
    top = _Section(config, "config.json")
    decoder, vision, audio = _decoder(top), _vision(top, told), _audio(top.section("sound_config"))
    return ModelSpec(decoder, vision, audio, _sampling(generation, top))


def _sampling(generation: Mapping[str, Any], top: _Section) -> SamplingSpec:
    own = _Section(generation, "generation_config.json")
    stops = next(
        (s for s in (own, top) if s.values.get("eos_token_id") is not None),
        top.section("llm_config"),
    )
    drawn = own.get("do_sample", _bool, True)
    spec = SamplingSpec(
        stop_ids=stops.get("eos_token_id", _ids),
        temperature=own.get("temperature", _float, 1.0) if drawn else 0.0,
        top_p=own.get("top_p", _float, 1.0),
        top_k=own.get("top_k", _int, 0),
    )
    if not 0 <= spec.temperature <= 2:
        raise own.wrong("temperature", "outside 0..2")
    if not 0 < spec.top_p <= 1:
        raise own.wrong("top_p", "outside 0..1")
    if spec.top_k < 0:
        raise own.wrong("top_k", "below 0")
    return spec


def _decoder(top: _Section) -> DecoderSpec:
    llm = top.section("llm_config")
    max_tokens = llm.size("max_position_embeddings", 262_144)
    pattern = llm.get("hybrid_override_pattern", _str)
    for i, letter in enumerate(pattern):
        if letter not in LAYER_LETTERS:
            what = "a dense MLP, '-'," if letter == "-" else f"the unknown layer letter {letter!r}"
            raise CheckpointError(
                f"{llm.name}.hybrid_override_pattern",
                f"has {what} at position {i}",
                f"this runtime knows {', '.join(f'{k} ({v})' for k, v in LAYER_LETTERS.items())}",
            )
    if not pattern:
        raise llm.wrong("hybrid_override_pattern", "no layer at all")
    if llm.size("num_hidden_layers", len(pattern)) != len(pattern):
        raise llm.wrong("num_hidden_layers", f"but the pattern has {len(pattern)} letters")
    low, high = llm.get("time_step_limit", _limits, (0.0, math.inf))
    if low > 0 or high < 1e30:
        raise llm.wrong("time_step_limit", "but steps are not limited here")
    n_q_heads = llm.size("num_attention_heads")
    # transformers: 8 where it is absent, as many as queries where it is null
    n_kv_heads = n_q_heads if "num_key_value_heads" in llm.values else 8
    spec = DecoderSpec(
        pattern=pattern,
        hidden_size=llm.size("hidden_size"),
        vocab_size=llm.size("vocab_size"),
        max_tokens=max_tokens,
        norm_eps=llm.get("layer_norm_epsilon", _float, 1e-5),
        n_q_heads=n_q_heads,
        n_kv_heads=llm.size("num_key_value_heads", n_kv_heads),
        head_dim=llm.size("head_dim", 128),
        mamba_n_heads=llm.size("mamba_num_heads"),
        mamba_head_dim=llm.size("mamba_head_dim", 64),
        n_groups=llm.size("n_groups", 8),
        state_size=llm.size("ssm_state_size", 128),
        conv_kernel=llm.size("conv_kernel", 4, most=MAX_TAPS),
        n_experts=llm.size("n_routed_experts", most=MAX_EXPERTS),
        n_experts_per_token=llm.size("num_experts_per_tok", most=MAX_EXPERTS_PER_TOKEN),
        n_expert_groups=llm.size("n_group", 1),
        n_expert_groups_per_token=llm.size("topk_group", 1),
        norm_topk_prob=llm.get("norm_topk_prob", _bool, True),
        routed_scaling_factor=llm.get("routed_scaling_factor", _float, 1.0),
        expert_size=llm.size("moe_intermediate_size"),
        shared_expert_size=llm.size("moe_shared_expert_intermediate_size"),
        trained_tokens=top.size("max_sequence_length", max_tokens),
        conv_bias=llm.get("use_conv_bias", _bool, True),
    )
    if spec.norm_eps < 0:
        raise llm.wrong("layer_norm_epsilon", "below 0")
    _multiple(llm, "num_attention_heads", spec.n_q_heads, "num_key_value_heads", spec.n_kv_heads)
    _multiple(llm, "mamba_num_heads", spec.mamba_n_heads, "n_groups", spec.n_groups)
    _multiple(llm, "n_routed_experts", spec.n_experts, "n_group", spec.n_expert_groups)
    _check_routing(llm, spec)
    return spec


def _check_routing(llm: _Section, spec: DecoderSpec) -> None:
    """See that as many experts can be chosen as are asked for."""
    groups, each = spec.n_expert_groups, spec.n_experts // spec.n_expert_groups
    if groups > 1 and each < 2:
        raise llm.wrong("n_group", "but a group's score is that of its two best experts")
    if spec.n_expert_groups_per_token > groups:
        raise llm.wrong("topk_group", f"above n_group = {groups}")
    at_most = each * spec.n_expert_groups_per_token
    if spec.n_experts_per_token > at_most:
        raise llm.wrong("num_experts_per_tok", f"but the groups chosen have {at_most} experts")


def _limits(values: Any) -> tuple[float, float]:
    """two numbers"""
    low, high = (float(v) for v in numbers(values))
    return low, high


def _multiple(section: _Section, key: str, value: int, of_key: str, of: int) -> None:
    if value % of:
        raise CheckpointError(
            f"{section.name}.{key}",
            f"is {value}, not a multiple of {of_key} = {of}",
            "restore the published config.json",
        )


def _vision(top: _Section, processors: Sequence[_Section]) -> VisionSpec:
    vision = top.section("vision_config")
    args = _Section(vision.get("args", _dict, {}), f"{vision.name}.args")
    name = args.get("model", _str, "")
    # what transformers saves has the sizes of its RadioConfig instead, with ViT-H for its defaults
    radio = "args" not in vision.values and vision.values.get("model_type") == "radio"
    width, layers, heads = VIT_GEOMETRY.get("vit_huge_patch16_224" if radio else name, (0, 0, 0))
    if not width and "hidden_size" not in vision.values:
        raise CheckpointError(
            "config.json.vision_config.args.model",
            f"is {name!r}, an unknown ViT without explicit sizes",
            f"use one of {', '.join(VIT_GEOMETRY)}, or give hidden_size, num_hidden_layers "
            "and num_attention_heads in vision_config",
        )
    given = {"hidden_size": width, **vision.values}
    hidden = _agreed(
        _int, 0, (_Section(given, vision.name), "hidden_size"), (top, "vit_hidden_size")
    )
    patch = _agreed(_int, 16, *((s, "patch_size") for s in (vision, top, *processors)))
    mean, std = (
        _agreed(
            _three_floats,
            # what transformers' tower would normalize by is what its processor does instead
            vision.get(f"norm_{kind}", _three_floats, default),
            *((s, f"norm_{kind}") for s in (top, *processors)),
            *((s, f"image_{kind}") for s in processors),
        )
        for kind, default in (("mean", CLIP_MEAN), ("std", CLIP_STD))
    )
    fewest, most = (
        _agreed(_int, default, *((s, f"{kind}_num_patches") for s in (args, vision, *processors)))
        for kind, default in zip(("min", "max"), PICTURE_PATCHES, strict=True)
    )
    frames = _agreed(
        _int,
        2,
        (vision, "video_temporal_patch_size"),
        (top, "video_temporal_patch_size"),
        *((s, "video_temporal_patch_dim") for s in processors),
    )
    target = _agreed(_int, 1024, *((s, "video_target_num_patches") for s in (vision, *processors)))
    if radio:
        side = vision.size("max_img_size", 2048)
        prefix = vision.size("num_cls_tokens", 3) + vision.size("num_registers", 7)
    else:
        side, prefix = args.size("cpe_max_size"), args.size("register_multiple", 10)
    spec = VisionSpec(
        hidden_size=hidden,
        n_layers=vision.size("num_hidden_layers", layers),
        n_heads=vision.size("num_attention_heads", heads),
        mlp_size=vision.size(
            "intermediate_size", int(vision.get("mlp_ratio", _float, 4.0) * hidden)
        ),
        patch_size=patch,
        position_grid=side // patch,
        n_prefix_tokens=prefix,
        projector_size=top.size("projector_hidden_size"),
        norm_mean=mean,
        norm_std=std,
        min_patches=fewest,
        max_patches=most,
        video_target_patches=target,
        tubelet_frames=frames,
        video_pruning_rate=top.get("video_pruning_rate", _float, 0.0),
        norm_eps=vision.get("layer_norm_eps", _float, 1e-6),
        final_norm=top.section("llm_config").get("num_nextn_predict_layers", _int, 0) > 0,
    )
    _check_vision(spec, vision, top)
    return spec


def _check_vision(spec: VisionSpec, vision: _Section, top: _Section) -> None:
    """See that the values can be served, and go together."""
    _heads(vision, spec.hidden_size, spec.n_heads)
    lowest = {
        "patch_size": spec.patch_size,
        "intermediate_size": spec.mlp_size,
        "args.cpe_max_size": spec.position_grid,
        "video_temporal_patch_size": spec.tubelet_frames - 1,  # one frame makes no tubelet
    }
    for key, value in lowest.items():
        if value < 1:
            raise CheckpointError(
                f"{vision.name}.{key}", "is too small", "restore the published config.json"
            )
    for key, value in {
        "min_num_patches": spec.min_patches,
        "max_num_patches": spec.max_patches,
        "video_target_num_patches": spec.video_target_patches,
    }.items():
        if not spec.merge**2 <= value <= MAX_PATCHES:
            raise CheckpointError(
                f"{vision.name}.{key}",
                f"is {value}, outside {spec.merge**2}..{MAX_PATCHES}",
                "restore the published config.json",
            )
    if not min(spec.norm_std) > 0:
        raise top.wrong("norm_std", "not above 0")
    if not 0 <= spec.video_pruning_rate < 1:
        raise top.wrong("video_pruning_rate", "outside 0..1")
    if spec.norm_eps < 0:
        raise vision.wrong("layer_norm_eps", "below 0")


def _agreed(kind: Callable[[Any], T], default: T, *places: tuple[_Section, str]) -> T:
    """The one value that is told in several places; readers look into one or the other.

    Raises:
        CheckpointError: they differ.
    """
    told = [
        (section.get(key, kind), f"{section.name}.{key}")
        for section, key in places
        if section.values.get(key) is not None
    ]
    for value, at in told:
        if value != told[0][0]:
            raise CheckpointError(
                at,
                f"is {value}, but {told[0][1]} is {told[0][0]}",
                "restore the published files",
            )
    return told[0][0] if told else default


def _heads(section: _Section, width: int, heads: int) -> None:
    """See that heads divide the width, and are as wide as transformers would make them."""
    if width % heads:
        raise CheckpointError(
            f"{section.name}.num_attention_heads",
            f"is {heads}, which does not divide hidden_size = {width}",
            "restore the published config.json",
        )
    if section.size("head_dim", width // heads) != width // heads:
        raise section.wrong("head_dim", f"but {width} by {heads} heads is {width // heads}")


def _audio(sound: _Section) -> AudioSpec:
    spec = AudioSpec(
        hidden_size=sound.size("hidden_size"),
        n_layers=sound.size("num_hidden_layers"),
        n_heads=sound.size("num_attention_heads"),
        mlp_size=sound.size("intermediate_size"),
        conv_kernel=sound.size("conv_kernel_size", 9),
        subsampling_channels=sound.size("subsampling_conv_channels", 256),
        n_mels=sound.size("num_mel_bins", 80),
        projector_size=sound.size("projection_hidden_size"),
        attention_bias=sound.get("attention_bias", _bool, False),
        convolution_bias=sound.get("convolution_bias", _bool, True),
        projection_bias=sound.get("projection_bias", _bool, False),
        scale_input=sound.get("scale_input", _bool, False),
    )
    _heads(sound, spec.hidden_size, spec.n_heads)
    if spec.hidden_size % 2:
        raise sound.wrong("hidden_size", "odd: positions are pairs of sine and cosine")
    if not spec.conv_kernel % 2:
        raise sound.wrong("conv_kernel_size", "even: it would move sound by half a frame")
    if spec.n_mels % 8:
        raise sound.wrong("num_mel_bins", "not a multiple of 8, which three convolutions halve")
    return spec
