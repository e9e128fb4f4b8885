"""Sizes of the small trained model, and where its parts lie."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts" / "tiny_omni")]

from make_tiny_checkpoint import BF16, checkpoint_config  # noqa: E402

WORK = ROOT / ".cache" / "tiny_omni"
"""Speech corpus, training states and logs; not part of the repository."""
CHECKPOINT = ROOT / "tests" / "assets" / "tiny_omni"
"""The trained checkpoint."""

SIZES: dict[str, Any] = {
    "dtype": BF16,
    "max_sequence_length": 512,
    "projector_hidden_size": 384,
    "llm_config": {
        "vocab_size": 512,
        "hidden_size": 192,
        "hybrid_override_pattern": "MEM*EM*E",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "ssm_state_size": 32,
        "n_groups": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "moe_shared_expert_intermediate_size": 256,
        "intermediate_size": 128,
    },
    "vision_config": {
        "hidden_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "video_target_num_patches": 64,
        "args": {"cpe_max_size": 256, "min_num_patches": 64, "max_num_patches": 100},
    },
    "sound_config": {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "subsampling_conv_channels": 32,
        "projection_hidden_size": 256,
    },
}


def config() -> dict[str, Any]:
    """config.json of the small model."""
    return checkpoint_config(SIZES)
