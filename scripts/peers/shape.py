"""The published model scaled down: 388 M parameters, of which a token meets 150 M."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCALED_DOWN: dict[str, Any] = {
    "vocab_size": 32768,
    "hidden_size": 1024,
    "hybrid_override_pattern": "MEMEM*EMEMEM",
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "mamba_num_heads": 32,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "chunk_size": 128,
    "n_routed_experts": 32,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 768,
    "intermediate_size": 768,
    "moe_shared_expert_intermediate_size": 1536,
}


def bytes_of_a_token(sizes: Mapping[str, int]) -> int:
    """Bytes of weights that decoding one token reads: of experts its share, of the table one row.

    Args:
        sizes: bytes by tensor, named as transformers or as llama.cpp does.
    """
    total = 0
    for name, size in sizes.items():
        if ".experts." in name or "_exps." in name:
            size = size * SCALED_DOWN["num_experts_per_tok"] // SCALED_DOWN["n_routed_experts"]
        elif "token_embd" in name or "embeddings" in name:
            size //= SCALED_DOWN["vocab_size"]
        total += size
    return total
