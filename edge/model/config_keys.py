"""What each key of a checkpoint's configuration files means here.

Every key that transformers 5.23.0 reads is honoured (`edge.model.spec` reads it), served at certain
values only, or neutral: it changes nothing that an answer is made of. A key of none of these kinds
is one that transformers does not read either; it is ignored and named.

Source: transformers 5.23.0, configuration and processing of `nemotron_h`, `nemotron_h_omni`,
`radio` and `parakeet`; vLLM 0.33 `nano_nemotron_vl`, `nemotron_h` and `radio` where both differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from edge.errors import CheckpointError

Values: TypeAlias = Mapping[str, Any]
Verdict: TypeAlias = Literal["honoured", "fixed", "neutral", "unknown", "refused"]


@dataclass(frozen=True)
class Fixed:
    """A key that is served at some values only."""

    served: tuple[Any, ...]
    """The first is what is meant where the key is absent or null."""
    reason: str
    """Why no other value is."""


@dataclass(frozen=True)
class Keys:
    """The keys of one section."""

    honoured: str = ""
    """Names, separated by blanks."""
    fixed: Mapping[str, Fixed] = field(default_factory=dict)
    neutral: str = ""
    """Names, separated by blanks; one that ends in * stands for all that begin so."""

    def verdict(self, key: str, value: Any) -> Verdict:
        """What is done about one key."""
        if key in self.fixed:
            served = self.fixed[key].served
            plain = value if value is None else _number(value)
            return "fixed" if plain is None or plain in served else "refused"
        if key in self.honoured.split():
            return "honoured"
        names = [*self.neutral.split(), *COMMON.split()]
        if any(key == name or (name[-1] == "*" and key.startswith(name[:-1])) for name in names):
            return "neutral"
        return "unknown"


@dataclass(frozen=True)
class Judged:
    """One key of one file."""

    name: str
    """`config.json.llm_config.hidden_size`."""
    value: Any
    verdict: Verdict
    reason: str = ""

    def refusal(self) -> CheckpointError:
        """The error for a value that is not served."""
        return CheckpointError(
            self.name,
            f"is {_shown(self.value)}, {self.reason}",
            "restore the published file, or use another checkpoint",
        )


COMMON = """
    _* architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label
    initializer_factor initializer_range is_encoder_decoder label2id model_type name_or_path
    output_attentions output_hidden_states pad_token_id problem_type return_dict torch_dtype
    transformers_version use_cache
"""
"""What every configuration of transformers may hold, and nothing is computed from."""
NO_BIAS = "the decoder's kernels add no bias there"

TOP = Keys(
    honoured="""
        llm_config vision_config sound_config quantization_config max_sequence_length
        projector_hidden_size norm_mean norm_std video_pruning_rate eos_token_id
        patch_size vit_hidden_size video_temporal_patch_size
        img_context_token_id sound_context_token_id
    """,
    fixed={
        "downsample_ratio": Fixed((0.5,), "tokens are made of 2 x 2 patches"),
        "ps_version": Fixed(("v2",), "the pixel shuffle v2 is defined, v1 is another order"),
        "img_context_token": Fixed(("<image>",), "the runtime writes this word into prompts"),
        "img_start_token": Fixed(("<img>",), "the runtime writes this word into prompts"),
        "img_end_token": Fixed(("</img>",), "the runtime writes this word into prompts"),
        "video_context_token": Fixed(("<video>",), "the runtime writes this word into prompts"),
        "sound_context_token": Fixed(
            ("<so_embedding>",), "the runtime writes this word into prompts"
        ),
        "tie_word_embeddings": Fixed((False,), "the head has a matrix of its own"),
    },
    # tiles and thumbnails belong to the fixed resolution, which this model does not use; the video
    # placeholder is text and is never embedded
    neutral="""
        force_image_size use_thumbnail template image_tag_type video_context_token_id
    """,
)
LLM = Keys(
    honoured="""
        hybrid_override_pattern num_hidden_layers hidden_size vocab_size max_position_embeddings
        layer_norm_epsilon num_attention_heads num_key_value_heads head_dim mamba_num_heads
        mamba_head_dim n_groups ssm_state_size conv_kernel use_conv_bias n_routed_experts
        num_experts_per_tok n_group topk_group norm_topk_prob routed_scaling_factor
        moe_intermediate_size moe_shared_expert_intermediate_size num_nextn_predict_layers
        time_step_limit
    """,
    fixed={
        "mlp_hidden_act": Fixed(("relu2",), "experts are computed with the squared ReLU"),
        "mamba_hidden_act": Fixed(("silu", "swish"), "the convolution is computed with SiLU"),
        "use_bias": Fixed((False,), NO_BIAS),
        "mlp_bias": Fixed((False,), NO_BIAS),
        "mamba_proj_bias": Fixed((False,), NO_BIAS),
        "attention_bias": Fixed((False,), NO_BIAS),
        "sliding_window": Fixed((None,), "attention sees the whole past"),
        "n_shared_experts": Fixed((1,), "one shared expert is computed"),
        "moe_latent_size": Fixed((None,), "experts read the residual stream, not a projection"),
        "tie_word_embeddings": Fixed((False,), "the head has a matrix of its own"),
    },
    # no reader applies positions; expand and chunk_size say how to compute, not what; the state
    # and the residual stream are float32 here whatever is asked for; predicted tokens are not used
    neutral="""
        rope_* partial_rotary_factor expand chunk_size norm_eps intermediate_size time_step_min
        time_step_max time_step_floor residual_in_fp32 rescale_prenorm_residual
        num_logits_to_keep use_mamba_kernels mamba_ssm_cache_dtype attention_dropout hidden_dropout
        moe_shared_expert_overlap output_router_logits mtp_*
    """,
)
VISION = Keys(
    honoured="""
        args hidden_size num_hidden_layers num_attention_heads head_dim intermediate_size mlp_ratio
        patch_size layer_norm_eps video_target_num_patches video_temporal_patch_size
        max_img_size num_cls_tokens num_registers min_num_patches max_num_patches norm_mean norm_std
    """,
    fixed={
        "video_maintain_aspect_ratio": Fixed((True,), "frames keep their shape, no square tile"),
        "separate_video_embedder": Fixed((True,), "tubelets have an embedder of their own"),
        "feature_normalizer_config": Fixed((None,), "features are not normalized"),
        "vitdet_window_size": Fixed((None,), "attention sees the whole picture"),
        "hidden_act": Fixed(("gelu",), "the ViT is computed with the exact GELU"),
        "use_swiglu_ffn": Fixed((False,), "the ViT's MLP has no gate"),
        "qkv_bias": Fixed((True,), "the ViT's queries, keys and values have biases"),
        "qk_normalization": Fixed((False,), "queries and keys are not normalized"),
        "layerscale_value": Fixed((1.0,), "the ViT has no LayerScale"),
        "num_channels": Fixed((3,), "pictures are RGB"),
    },
    neutral="""
        version max_resolution preferred_resolution image_size patch_dim video_patch_dim
        summary_idxs adaptor_* inter_feature_normalizer_config drop_path_rate hidden_dropout_prob
        attention_probs_dropout_prob
    """,
)
VISION_ARGS = Keys(
    honoured="model cpe_max_size register_multiple min_num_patches max_num_patches",
    # of how it was trained; a norm of its own would be a tensor that nothing reads
    neutral="*",
)
SOUND = Keys(
    honoured="""
        hidden_size num_hidden_layers num_attention_heads head_dim intermediate_size
        conv_kernel_size subsampling_conv_channels num_mel_bins projection_hidden_size
        attention_bias convolution_bias projection_bias scale_input
    """,
    fixed={
        "hidden_act": Fixed(("silu", "swish"), "the conformer is computed with SiLU"),
        "subsampling_factor": Fixed((8,), "three convolutions halve the time"),
        "subsampling_conv_kernel_size": Fixed((3,), "they are 3 x 3"),
        "subsampling_conv_stride": Fixed((2,), "they halve"),
        "sampling_rate": Fixed((16_000,), "sound is resampled to 16 kHz"),
    },
    neutral="""
        dropout dropout_positions layerdrop activation_dropout attention_dropout
        max_position_embeddings num_key_value_heads
    """,
)
_NEUTRAL_DRAWING: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "length_penalty": (1.0,),
    "exponential_decay_length_penalty": (None,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_p": (0.0,),
    "top_h": (None,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "sequence_bias": (None,),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "watermarking_config": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "penalty_alpha": (None, 0.0),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "min_length": (0,),
    "min_new_tokens": (None, 0),
    "stop_strings": (None, []),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
}
GENERATION = Keys(
    honoured="eos_token_id temperature top_p top_k do_sample",
    fixed={
        name: Fixed(served, "unasked, answers are drawn by temperature, top_p and top_k alone")
        for name, served in _NEUTRAL_DRAWING.items()
    },
    neutral="""
        max_new_tokens max_length max_time reasoning_* early_stopping diversity_penalty
        num_return_sequences output_* return_* cache_* use_* prompt_lookup_* assistant_* token_*
        num_assistant_* is_assistant max_cache_len max_matching_ngram_size speculation_type
        target_lookbehind prefill_chunk_size compile_config
        disable_compile continuous_batching_config decoder_start_token_id low_memory dola_layers
    """,
)
IMAGES = Keys(
    honoured="""
        patch_size norm_mean norm_std image_mean image_std min_num_patches max_num_patches
        video_target_num_patches video_temporal_patch_dim
    """,
    fixed={
        "downsample_ratio": TOP.fixed["downsample_ratio"],
        "video_maintain_aspect_ratio": VISION.fixed["video_maintain_aspect_ratio"],
        "do_rescale": Fixed((True,), "pixels are divided by 255"),
        "rescale_factor": Fixed((1 / 255, 0.00392156862745098), "pixels are divided by 255"),
        "do_normalize": Fixed((True,), "pixels are normalized"),
        "do_resize": Fixed((True,), "pictures are resized to their grid"),
        "do_convert_rgb": Fixed((True,), "pictures are RGB"),
        "do_center_crop": Fixed((False,), "pictures are shown whole"),
        "do_pad": Fixed((False, True), "pictures fill their grid"),
        "resample": Fixed((3,), "pictures are resized bicubically"),
        "feature_size": Fixed((80, 128), "the number of mel bands is sound_config's"),
        "hop_length": Fixed((160,), "log-mel frames are 10 ms apart"),
        "audio_hop_length": Fixed((160,), "log-mel frames are 10 ms apart"),
        "n_fft": Fixed((512,), "log-mel frames are transformed over 512 samples"),
        "win_length": Fixed((400,), "log-mel frames are 25 ms wide"),
        "preemphasis": Fixed((0.97,), "sound is pre-emphasized by 0.97"),
        "sampling_rate": SOUND.fixed["sampling_rate"],
        "audio_sampling_rate": SOUND.fixed["sampling_rate"],
        "audio_subsampling_factor": SOUND.fixed["subsampling_factor"],
    },
    # how many tokens pictures may take follows from the context that is served, not from this;
    # sound's padding is cut off before it is encoded
    neutral="""
        max_model_len image_processor* video_processor* feature_extractor* processor_class size
        crop_size pad_size padding* data_format input_data_format device disable_grouping
        default_to_square do_sample_frames fps num_frames image_seq_length return_*
        video_metadata size_divisor chat_template tokenizer
    """,
)
TOKENIZER = Keys(
    honoured="added_tokens_decoder chat_template",
    fixed={
        "split_special_tokens": Fixed((False,), "special tokens of a prompt are one token each"),
    },
    # tokenizer.json says all else; prompts get no token before or behind what the template writes,
    # and answers are decoded as they come, so that nothing is cleaned up
    neutral="*",
)
SECTIONS = {
    "llm_config": LLM,
    "vision_config": VISION,
    "vision_config.args": VISION_ARGS,
    "sound_config": SOUND,
}
RENAMED: dict[str, dict[str, str]] = {
    "": {
        "text_config": "llm_config",
        "audio_config": "sound_config",
        "vision_hidden_size": "vit_hidden_size",
        "image_token_id": "img_context_token_id",
        "video_token_id": "video_context_token_id",
        "audio_token_id": "sound_context_token_id",
    },
    "llm_config": {
        "layers_block_type": "hybrid_override_pattern",
        "layer_types": "hybrid_override_pattern",
        "num_local_experts": "n_routed_experts",
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_expand": "expand",
        "mamba_conv_bias": "use_conv_bias",
        "mamba_chunk_size": "chunk_size",
        "mamba_dt_limit": "time_step_limit",
        "mamba_dt_min": "time_step_min",
        "mamba_dt_max": "time_step_max",
        "mamba_dt_init_floor": "time_step_floor",
    },
}
"""Newer or older names of published keys, which transformers takes for the same."""
LETTERS = {
    "linear_attention": "M",
    "mamba": "M",
    "moe": "E",
    "full_attention": "*",
    "attention": "*",
    "mlp": "-",
}
"""transformers' names of blocks, by those of hybrid_override_pattern."""


def published_names(config: Values) -> dict[str, Any]:
    """config.json in the words of the published one, whoever wrote it.

    Raises:
        CheckpointError: a key has another value under its other name.
    """
    top = _renamed(config, "")
    llm = top.get("llm_config")
    if isinstance(llm, dict):
        top["llm_config"] = llm = _renamed(llm, "llm_config")
    return top


def _renamed(values: Values, section: str) -> dict[str, Any]:
    renamed = dict(values)
    for name, published in RENAMED.get(section, {}).items():
        if name not in renamed:
            continue
        value = renamed.pop(name)
        if isinstance(value, list) and published == "hybrid_override_pattern":
            # an unknown name is refused as a letter is
            value = "".join(LETTERS.get(str(n), "?") for n in value)
        if value is None:
            continue
        if renamed.get(published) is None:
            renamed[published] = value
        if renamed[published] != value:
            raise CheckpointError(
                f"config.json.{section}.{name}".replace("..", "."),
                f"is {_shown(value)}, but {published}, its other name, is "
                f"{_shown(renamed[published])}",
                "leave one of them",
            )
    return renamed


def judge_config(config: Values) -> Iterator[Judged]:
    """Every key of a config.json in published words."""
    yield from judge("config.json", config, TOP)
    for path, keys in SECTIONS.items():
        values: Any = config
        for key in path.split("."):
            values = values.get(key) if isinstance(values, dict) else None
        if isinstance(values, dict):
            yield from judge(f"config.json.{path}", values, keys)


def judge(at: str, values: Values, keys: Keys) -> Iterator[Judged]:
    """Every key of one section."""
    for key, value in values.items():
        verdict = keys.verdict(key, value)
        fixed = keys.fixed.get(key)
        reason = f"only {_shown(fixed.served[0])} is served: {fixed.reason}" if fixed else ""
        yield Judged(f"{at}.{key}", value, verdict, reason)


def refuse(judged: Iterator[Judged]) -> None:
    """Stop at the first value that is not served.

    Raises:
        CheckpointError: there is one.
    """
    for found in judged:
        if found.verdict == "refused":
            raise found.refusal()


def _number(value: Any) -> Any:
    """transformers writes what JSON has no number for as {"__float__": "Infinity"}."""
    if isinstance(value, dict) and set(value) == {"__float__"}:
        return {"Infinity": math.inf, "-Infinity": -math.inf}.get(value["__float__"], math.nan)
    return value


def numbers(values: Any) -> Any:
    """A list with `_number` of each."""
    return [_number(v) for v in values] if isinstance(values, (list, tuple)) else values


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
