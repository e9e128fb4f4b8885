"""The decoder's weights as the cpu engine maps them: one file, named by layer, experts stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_engine.checkpoint import Checkpoint
from edge.engines.safetensors import SafetensorsWriter
from edge.model.spec import DecoderSpec

ROOT = "language_model.backbone"
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Packed:
    """One tensor of the bundle and where it comes from."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    """Checkpoint tensors; more than one are stacked along a new first dimension."""
    source_shape: tuple[int, ...]

    def values(self, checkpoint: Checkpoint) -> NDArray[np.float32]:
        """Read, convert and lay out."""
        parts = [checkpoint.float32(source, self.source_shape) for source in self.sources]
        return np.stack(parts).reshape(self.shape)


def packed_tensors(spec: DecoderSpec) -> Iterator[Packed]:
    """Every tensor of the decoder, in the order in which a token meets it."""

    def one(name: str, source: str, *shape: int) -> Packed:
        return Packed(name, shape, (source,), shape)

    hidden, vocab = spec.hidden_size, spec.vocab_size
    yield one("embeddings", f"{ROOT}.embeddings.weight", vocab, hidden)
    for layer, letter in enumerate(spec.pattern):
        at, mixer = f"layers.{layer}", f"{ROOT}.layers.{layer}.mixer"
        yield one(f"{at}.norm", f"{ROOT}.layers.{layer}.norm.weight", hidden)
        if letter == "M":
            width = spec.d_inner + spec.conv_dim + spec.mamba_n_heads
            yield one(f"{at}.in_proj", f"{mixer}.in_proj.weight", width, hidden)
            yield Packed(
                f"{at}.conv_weight",
                (spec.conv_dim, spec.conv_kernel),
                (f"{mixer}.conv1d.weight",),
                (spec.conv_dim, 1, spec.conv_kernel),
            )
            yield one(f"{at}.conv_bias", f"{mixer}.conv1d.bias", spec.conv_dim)
            for name in ("dt_bias", "A_log", "D"):
                yield one(f"{at}.{name}", f"{mixer}.{name}", spec.mamba_n_heads)
            yield one(f"{at}.gated_norm", f"{mixer}.norm.weight", spec.d_inner)
            yield one(f"{at}.out_proj", f"{mixer}.out_proj.weight", hidden, spec.d_inner)
        elif letter == "*":
            q, kv = (n * spec.head_dim for n in (spec.n_q_heads, spec.n_kv_heads))
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                yield one(f"{at}.{name}_proj", f"{mixer}.{name}_proj.weight", rows, hidden)
            yield one(f"{at}.o_proj", f"{mixer}.o_proj.weight", hidden, q)
        else:
            yield one(f"{at}.gate", f"{mixer}.gate.weight", spec.n_experts, hidden)
            bias = f"{mixer}.gate.e_score_correction_bias"
            yield one(f"{at}.gate_bias", bias, spec.n_experts)
            shapes = {"up": (spec.expert_size, hidden), "down": (hidden, spec.expert_size)}
            for name, shape in shapes.items():
                experts = range(spec.n_experts)
                sources = tuple(f"{mixer}.experts.{e}.{name}_proj.weight" for e in experts)
                stacked = (spec.n_experts, *shape)
                yield Packed(f"{at}.experts_{name}", stacked, sources, shape)
            shared = spec.shared_expert_size
            for name, shape in (("up", (shared, hidden)), ("down", (hidden, shared))):
                source = f"{mixer}.shared_experts.{name}_proj.weight"
                yield one(f"{at}.shared_{name}", source, *shape)
    yield one("norm", f"{ROOT}.norm_f.weight", hidden)
    yield one("head", "language_model.lm_head.weight", vocab, hidden)


def write_decoder(
    checkpoint: Checkpoint, path: Path, progress: Callable[[str, int, int], None]
) -> None:
    """Write the decoder of `checkpoint` to `path`, holding one tensor at a time."""
    tensors = list(packed_tensors(checkpoint.spec.decoder))
    layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        tensor.name: (FLOAT32, tensor.shape) for tensor in tensors
    }
    with SafetensorsWriter(path, layout) as writer:
        for done, tensor in enumerate(tensors):
            progress("decoder", done, len(tensors))
            writer.write(tensor.name, tensor.values(checkpoint))
    progress("decoder", len(tensors), len(tensors))
