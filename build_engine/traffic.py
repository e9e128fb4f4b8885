"""What a compiled plan moves for a token, as `scripts/count_bytes.py` recorded it.

The record is of the published decoder: by target, recipe, profile and part, a part being one block
of a kind or the head. It was read off plans that were compiled, not measured on a device.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from edge.model.spec import DecoderSpec
from gpu_kernels.plugins import Phase

RECORD = Path(__file__).with_name("traffic.json")
BANDWIDTH_SHARE = 0.75
"""ESTIMATE: of a board's published bandwidth, what a decode that is bound by it reaches. Others
reach 0.8 on Thor, our own CPU engine 0.8 of its memory."""

Part: TypeAlias = Literal["M", "*", "E", "head"]
PARTS: dict[Part, str] = {"M": "Mamba2", "*": "attention", "E": "MoE", "head": "head"}


class Peer(NamedTuple):
    """What others reach, on the board itself; not measured here."""

    target: str
    what: str
    tokens_s: float
    """Of one sequence."""
    source: str


MODULES = {"orin": "agx-orin-64", "thor": "thor-128"}
"""The board of each target that figures are told for."""
PEERS = (
    Peer("thor", "TensorRT Edge-LLM 0.9, this model, NVFP4", 72.6, "NVIDIA's performance table"),
    Peer("thor", "vLLM, this model, NVFP4", 63.3, "published by its users"),
    Peer("thor", "llama.cpp, this model, Q4_K_M", 61.7, "published by its users"),
    Peer("orin", "TensorRT Edge-LLM, Qwen3-30B-A3B, INT4", 56.7, "NVIDIA's performance table"),
    Peer("orin", "llama.cpp, this model, Q4_K_M", 39.1, "published by its users"),
)


class Moved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a part's kernels read and write in one call."""

    kernels: int
    n_bytes: int
    row_bytes: int = 0
    """More for each row of the K/V cache that is bound."""

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.kernels + other.kernels,
            self.n_bytes + other.n_bytes,
            self.row_bytes + other.row_bytes,
        )

    def times(self, count: int) -> Moved:
        """Of so many such parts."""
        return Moved(self.kernels * count, self.n_bytes * count, self.row_bytes * count)

    def less(self, other: Moved) -> Moved:
        """Without the other."""
        return self + other.times(-1)


Parts: TypeAlias = dict[Part, Moved]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that was counted."""

    compiler: str
    decoder: DecoderSpec
    moved: dict[str, dict[str, dict[Phase, Parts]]]
    """By target and recipe."""


@functools.cache
def recorded() -> Record:
    """What the builder comes with."""
    return msgspec.json.decode(RECORD.read_bytes(), type=Record)


def whole(spec: DecoderSpec, parts: Parts) -> Moved:
    """All blocks and the head."""
    total = parts["head"]
    for part in PARTS:
        total += parts[part].times(spec.pattern.count(part))
    return total


def decode_traffic(spec: DecoderSpec, target: str, recipe: str) -> Moved | None:
    """What a token takes with an empty context; None where no such plan was counted.

    Args:
        recipe: its name.
    """
    record = recorded()
    lengths = {"max_tokens": spec.max_tokens, "trained_tokens": spec.trained_tokens}
    if msgspec.structs.replace(record.decoder, **lengths) != spec:
        return None
    phases = record.moved.get(target, {}).get(recipe)
    return whole(spec, phases["decode"]) if phases else None
