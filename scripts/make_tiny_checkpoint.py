"""Write a random-weight checkpoint of any size in the published layout.

The values are drawn so that mistakes show: dt_bias lies on both sides of softplus^-1(0.001), the
correction bias changes the router's choice, batch-norm statistics differ from (0, 1), norms and
biases are not trivial, and the ViT's position table is smaller than some grids. Every tensor is
drawn from a generator seeded by its own name, so the bytes are the same on every machine.

Usage:
    python scripts/make_tiny_checkpoint.py OUT --preset base
    python scripts/make_tiny_checkpoint.py OUT --preset wide --set llm_config.hidden_size=128
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from published_config import CLIP_MEAN, CLIP_STD, CONFIG
from tiny_tokenizer import CHAT_TEMPLATE, write_tokenizer

from edge.engines.safetensors import SafetensorsWriter

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)

BASE_LLM = {
    "model_type": "nemotron_h",
    "vocab_size": 512,
    "hidden_size": 64,
    "hybrid_override_pattern": "MEM*EM*E",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 32,
    "n_groups": 4,
    "conv_kernel": 4,
    "chunk_size": 16,
    "n_routed_experts": 16,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 96,
    "intermediate_size": 48,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "layer_norm_epsilon": 1e-5,
    "mlp_hidden_act": "relu2",
    "max_position_embeddings": 262144,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 11,
    "pad_token_id": 0,
}
BASE_VISION = {
    "version": "c-radio_v4-h",
    "architectures": ["RADIOModel"],
    "patch_size": 16,
    "max_resolution": 256,
    "video_target_num_patches": 64,
    "video_maintain_aspect_ratio": True,
    "video_temporal_patch_size": 2,
    "separate_video_embedder": True,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "args": {
        "model": "tiny",
        "cpe_max_size": 256,
        "register_multiple": 10,
        "min_num_patches": 16,
        "max_num_patches": 256,
    },
}
BASE_SOUND = {
    "model_type": "parakeet",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_kernel_size": 9,
    "convolution_bias": False,
    "subsampling_conv_channels": 16,
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "subsampling_factor": 8,
    "num_mel_bins": 128,
    "projection_hidden_size": 96,
    "projection_bias": False,
    "sampling_rate": 16000,
}

# What each preset changes. `shards` and `dtype` shape the files, not config.json.
PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    # Group-limited routing, bfloat16 weights.
    "grouped": {"dtype": BF16, "llm_config": {"n_group": 2, "topk_group": 1}},
    # Other sizes everywhere, attention first, a position table smaller than the grids, shards.
    "wide": {
        "dtype": BF16,
        "shards": 3,
        "projector_hidden_size": 200,
        "llm_config": {
            "hidden_size": 96,
            "hybrid_override_pattern": "*MEEM*M",
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "mamba_num_heads": 12,
            "mamba_head_dim": 8,
            "ssm_state_size": 16,
            "n_groups": 3,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
        },
        "vision_config": {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "args": {"cpe_max_size": 128, "min_num_patches": 64},
        },
        "sound_config": {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "conv_kernel_size": 5,
            "subsampling_conv_channels": 8,
        },
    },
    # One expert a token without renormalisation, one K/V head, one Mamba group.
    "single": {
        "llm_config": {
            "hybrid_override_pattern": "EM*ME",
            "num_key_value_heads": 1,
            "n_groups": 1,
            "num_experts_per_tok": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.7,
        }
    },
}

Shape = tuple[int, ...]


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, nested mappings key by key."""
    out = dict(base)
    for key, value in change.items():
        out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


def checkpoint_config(change: dict[str, Any]) -> dict[str, Any]:
    """config.json of a preset: the published one with small sizes."""
    base = {
        **CONFIG,
        "projector_hidden_size": 160,
        "llm_config": BASE_LLM,
        "vision_config": BASE_VISION,
        "sound_config": BASE_SOUND,
    }
    config = merged(base, {k: v for k, v in change.items() if k not in ("dtype", "shards")})
    config["llm_config"]["num_hidden_layers"] = len(config["llm_config"]["hybrid_override_pattern"])
    config["vit_hidden_size"] = config["vision_config"]["hidden_size"]
    config["torch_dtype"] = "bfloat16" if change.get("dtype") == BF16 else "float32"
    return config


def decoder_tensors(llm: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the language model."""
    hidden, vocab = llm["hidden_size"], llm["vocab_size"]
    d_inner = llm["mamba_num_heads"] * llm["mamba_head_dim"]
    conv_dim = d_inner + 2 * llm["n_groups"] * llm["ssm_state_size"]
    heads = (llm["mamba_num_heads"],)
    q, kv = (llm[k] * llm["head_dim"] for k in ("num_attention_heads", "num_key_value_heads"))
    yield "language_model.backbone.embeddings.weight", (vocab, hidden)
    for i, letter in enumerate(llm["hybrid_override_pattern"]):
        at = f"language_model.backbone.layers.{i}"
        yield f"{at}.norm.weight", (hidden,)
        if letter == "M":
            yield f"{at}.mixer.in_proj.weight", (d_inner + conv_dim + heads[0], hidden)
            yield f"{at}.mixer.conv1d.weight", (conv_dim, 1, llm["conv_kernel"])
            yield f"{at}.mixer.conv1d.bias", (conv_dim,)
            for name in ("A_log", "D", "dt_bias"):
                yield f"{at}.mixer.{name}", heads
            yield f"{at}.mixer.norm.weight", (d_inner,)
            yield f"{at}.mixer.out_proj.weight", (hidden, d_inner)
        elif letter == "*":
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                yield f"{at}.mixer.{name}_proj.weight", (rows, hidden)
            yield f"{at}.mixer.o_proj.weight", (hidden, q)
        else:
            n, size = llm["n_routed_experts"], llm["moe_intermediate_size"]
            yield f"{at}.mixer.gate.weight", (n, hidden)
            yield f"{at}.mixer.gate.e_score_correction_bias", (n,)
            shared = llm["moe_shared_expert_intermediate_size"]
            mlps = [(f"experts.{e}", size) for e in range(n)] + [("shared_experts", shared)]
            for name, width in mlps:
                yield f"{at}.mixer.{name}.up_proj.weight", (width, hidden)
                yield f"{at}.mixer.{name}.down_proj.weight", (hidden, width)
    yield "language_model.backbone.norm_f.weight", (hidden,)
    yield "language_model.lm_head.weight", (vocab, hidden)


def vision_tensors(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the vision tower and its projector."""
    vision, at = config["vision_config"], "vision_model.radio_model"
    width, patch = vision["hidden_size"], vision["patch_size"]
    mlp = vision.get("intermediate_size", 4 * width)
    grid = vision["args"]["cpe_max_size"] // patch
    features, frames = 3 * patch * patch, vision["video_temporal_patch_size"]
    yield f"{at}.input_conditioner.norm_mean", (3, 1, 1)
    yield f"{at}.input_conditioner.norm_std", (3, 1, 1)
    yield f"{at}.model.patch_generator.embedder.weight", (width, features)
    yield f"{at}.model.patch_generator.video_embedder.weight", (width, features * frames)
    yield f"{at}.model.patch_generator.pos_embed", (1, grid * grid, width)
    prefix = vision["args"]["register_multiple"]
    yield f"{at}.model.patch_generator.cls_token.token", (prefix, width)
    for b in range(vision["num_hidden_layers"]):
        block = f"{at}.model.blocks.{b}"
        for norm in ("norm1", "norm2"):
            yield f"{block}.{norm}.weight", (width,)
            yield f"{block}.{norm}.bias", (width,)
        sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        sizes |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
        for name, shape in sizes.items():
            yield f"{block}.{name}.weight", shape
            yield f"{block}.{name}.bias", shape[:1]
    projector, hidden = config["projector_hidden_size"], config["llm_config"]["hidden_size"]
    yield "mlp1.0.weight", (4 * width,)
    yield "mlp1.1.weight", (projector, 4 * width)
    yield "mlp1.3.weight", (hidden, projector)


def audio_tensors(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the audio tower and its projector."""
    sound, at = config["sound_config"], "sound_encoder.encoder"
    d, channels, mels = (
        sound[k] for k in ("hidden_size", "subsampling_conv_channels", "num_mel_bins")
    )
    yield f"{at}.feature_extractor.featurizer.fb", (1, mels, 257)
    yield f"{at}.feature_extractor.featurizer.window", (400,)
    for layer in (0, 2, 3, 5, 6):
        pointwise = layer in (3, 6)
        kernel = (channels, channels, 1, 1) if pointwise else (channels, 1, 3, 3)
        yield f"{at}.subsampling.layers.{layer}.weight", kernel
        yield f"{at}.subsampling.layers.{layer}.bias", (channels,)
    yield f"{at}.subsampling.linear.weight", (d, channels * (mels // 8))
    yield f"{at}.subsampling.linear.bias", (d,)
    heads = sound["num_attention_heads"]
    for i in range(sound["num_hidden_layers"]):
        layer_at = f"{at}.layers.{i}"
        for norm in ("feed_forward1", "self_att", "conv", "feed_forward2", "out"):
            yield f"{layer_at}.norm_{norm}.weight", (d,)
            yield f"{layer_at}.norm_{norm}.bias", (d,)
        for ff in ("feed_forward1", "feed_forward2"):
            yield f"{layer_at}.{ff}.linear1.weight", (sound["intermediate_size"], d)
            yield f"{layer_at}.{ff}.linear2.weight", (d, sound["intermediate_size"])
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "relative_k_proj"):
            yield f"{layer_at}.self_attn.{name}.weight", (d, d)
        for name in ("bias_u", "bias_v"):
            yield f"{layer_at}.self_attn.{name}", (heads, d // heads)
        yield f"{layer_at}.conv.pointwise_conv1.weight", (2 * d, d, 1)
        yield f"{layer_at}.conv.depthwise_conv.weight", (d, 1, sound["conv_kernel_size"])
        yield f"{layer_at}.conv.pointwise_conv2.weight", (d, d, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield f"{layer_at}.conv.norm.{name}", (d,)
        yield f"{layer_at}.conv.norm.num_batches_tracked", ()
    hidden, projection = config["llm_config"]["hidden_size"], sound["projection_hidden_size"]
    yield "sound_projection.norm.weight", (d,)
    yield "sound_projection.linear1.weight", (projection, d)
    yield "sound_projection.linear2.weight", (hidden, projection)


def tensor_dtype(name: str, default: np.dtype[Any]) -> np.dtype[Any]:
    """The file's dtype of a tensor: the router and frozen buffers are not in the model's dtype."""
    if name.endswith("num_batches_tracked"):
        return np.dtype(np.int64)
    frozen = ("e_score_correction_bias", "gate.weight", ".featurizer.fb", ".featurizer.window")
    return F32 if name.endswith(frozen) else default


def tensor_values(name: str, shape: Shape, seed: int) -> NDArray[Any]:
    """The random (or fixed) values of one tensor, float32 or int64."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    normal = rng.standard_normal(shape, np.float32)
    if name.endswith("num_batches_tracked"):
        return np.asarray(1000, np.int64)
    if name.endswith("input_conditioner.norm_mean"):
        return np.reshape(np.asarray(CLIP_MEAN, np.float32), shape)
    if name.endswith("input_conditioner.norm_std"):
        return np.reshape(np.asarray(CLIP_STD, np.float32), shape)
    if name.endswith(".featurizer.window"):
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)).astype(np.float32)
    if name.endswith(".featurizer.fb"):
        from edge.features.mel import mel_filter_bank

        return mel_filter_bank(shape[1])[None]
    if name.endswith("dt_bias"):
        return rng.uniform(-9, -5, shape).astype(np.float32)
    if name.endswith("A_log"):
        return np.log(rng.uniform(1, 16, shape)).astype(np.float32)
    if name.endswith("mixer.D"):
        return 0.02 * normal
    if name.endswith("conv1d.weight"):
        return 0.5 * normal
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("e_score_correction_bias", "running_mean")):
        return 0.1 * normal
    if name.endswith(("bias", "bias_u", "bias_v")):
        return 0.05 * normal
    if name.endswith(("embeddings.weight", "pos_embed", "cls_token.token")):
        return 0.5 * normal
    if len(shape) == 1:
        return 1 + 0.1 * normal
    gain = 1.6 if name.endswith("in_proj.weight") else 0.6
    return normal * np.float32(gain / math.sqrt(math.prod(shape[1:])))


def write_weights(
    out: Path, config: dict[str, Any], dtype: np.dtype[Any], shards: int, seed: int
) -> int:
    """Write the safetensors shards and their index; returns the number of tensors."""
    tensors = [
        *decoder_tensors(config["llm_config"]),
        *vision_tensors(config),
        *audio_tensors(config),
    ]
    layout = {name: (tensor_dtype(name, dtype), shape) for name, shape in tensors}
    sizes = {name: math.prod(shape) * d.itemsize for name, (d, shape) in layout.items()}
    total, weight_map, done = sum(sizes.values()), {}, 0
    parts: list[list[str]] = [[] for _ in range(shards)]
    for name in layout:
        parts[min(done * shards // total, shards - 1)].append(name)
        done += sizes[name]
    for number, names in enumerate(parts, 1):
        file = "model.safetensors"
        if shards > 1:
            file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        with SafetensorsWriter(out / file, {n: layout[n] for n in names}) as writer:
            for name in names:
                values = tensor_values(name, layout[name][1], seed)
                writer.write(name, [values.astype(layout[name][0])])
                weight_map[name] = file
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return len(layout)


def write_files(out: Path, config: dict[str, Any]) -> None:
    """Write the configuration files and the chat template."""
    vision = config["vision_config"]["args"]
    files = {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": [2, 11],
            "pad_token_id": 0,
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "max_new_tokens": 16384,
        },
        "preprocessor_config.json": {
            "patch_size": 16,
            "downsample_ratio": 0.5,
            "norm_mean": CLIP_MEAN,
            "norm_std": CLIP_STD,
            "min_num_patches": vision["min_num_patches"],
            "max_num_patches": vision["max_num_patches"],
            "max_model_len": 16384,
        },
    }
    for name, values in files.items():
        (out / name).write_text(json.dumps(values, indent=1))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def make_checkpoint(
    out: Path, preset: str, changes: dict[str, Any] | None = None, seed: int = 0
) -> int:
    """Write the whole checkpoint folder; returns the number of tensors."""
    change = merged(PRESETS[preset], changes or {})
    config = checkpoint_config(change)
    out.mkdir(parents=True, exist_ok=True)
    write_files(out, config)
    write_tokenizer(out, config["llm_config"]["vocab_size"])
    return write_weights(out, config, change.get("dtype", F32), change.get("shards", 1), seed)


def parse_change(text: str) -> dict[str, Any]:
    """`a.b=3` -> {"a": {"b": 3}}."""
    path, _, value = text.partition("=")
    change: Any = json.loads(value)
    for key in reversed(path.split(".")):
        change = {key: change}
    return dict(change)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="change a value of config.json, e.g. llm_config.hidden_size=128",
    )
    arguments = parser.parse_args()
    changes: dict[str, Any] = {}
    for text in arguments.changes:
        changes = merged(changes, parse_change(text))
    count = make_checkpoint(arguments.out, arguments.preset, changes, arguments.seed)
    print(f"{arguments.out}: {count} tensors, preset {arguments.preset}")


if __name__ == "__main__":
    main()
