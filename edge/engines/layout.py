"""Which tensors decoder.safetensors holds: name, dtype and shape of each, by a model's sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np

from edge.engines.formats import INT4_BLOCK, NVFP4_GROUP
from edge.engines.safetensors import Layout
from edge.model.spec import DecoderSpec

FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
UINT8 = np.dtype(np.uint8)

Parts: TypeAlias = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Of one weight, by what follows its name: dtype and shape."""
Form: TypeAlias = Literal["fp8", "nvfp4", "int4"]
GROUPS: dict[Form, tuple[int, int]] = {
    "fp8": (1, 1),
    "nvfp4": (1, NVFP4_GROUP),
    "int4": (2, INT4_BLOCK),
}
"""Rows and columns that are quantized together."""
SUFFIXES = ("", ".scale", ".block_scale", ".input_scale")


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of the decoder."""

    name: str
    shape: tuple[int, ...]
    """Of all of it; [n, k] of each matrix of a stack."""
    stored: Literal["float32", "table", "linear"] = "linear"
    """float32: as such; table: in float32 or bfloat16; linear: likewise, or quantized."""
    n_stacked: int = 0
    """Experts along a first dimension; 0 is none."""

    @property
    def stack(self) -> tuple[int, ...]:
        """The dimension that is before those of each matrix, if there is one."""
        return (self.n_stacked,) if self.n_stacked else ()

    def layouts(self) -> Iterator[Parts]:
        """Each way in which a bundle may hold it."""
        yield {"": (FLOAT32, self.stack + self.shape)}
        if self.stored == "float32":
            return
        yield {"": (BFLOAT16, self.stack + self.shape)}
        if self.stored == "table":
            return
        for form, parts in quantized_layouts(self.shape).items():
            rows, columns = GROUPS[form]
            if self.shape[0] % rows or self.shape[1] % columns:
                continue
            stacked = {end: (dtype, self.stack + shape) for end, (dtype, shape) in parts.items()}
            yield stacked
            yield stacked | {".input_scale": (FLOAT32, self.stack)}


def quantized_layouts(shape: tuple[int, ...]) -> dict[Form, Parts]:
    """The tensors of a matrix [n, k] in each format, whose groups divide it."""
    n, k = shape
    return {
        "fp8": {"": (E4M3, shape), ".scale": (FLOAT32, ())},
        "nvfp4": {
            "": (UINT8, (n, k // 2)),
            ".block_scale": (E4M3, (n, k // NVFP4_GROUP)),
            ".scale": (FLOAT32, ()),
        },
        "int4": {
            "": (UINT8, (n // 2, k)),
            ".block_scale": (FLOAT32, (n, k // INT4_BLOCK)),
        },
    }


def decoder_weights(spec: DecoderSpec) -> Iterator[Weight]:
    """Every weight of the decoder, in the order in which a token meets it."""
    hidden, vocab = spec.hidden_size, spec.vocab_size
    yield Weight("embeddings", (vocab, hidden), "table")
    for layer, letter in enumerate(spec.pattern):
        at = f"layers.{layer}"
        yield Weight(f"{at}.norm", (hidden,), "float32")
        if letter == "M":
            width = spec.d_inner + spec.conv_dim + spec.mamba_n_heads
            yield Weight(f"{at}.in_proj", (width, hidden))
            yield Weight(f"{at}.conv_weight", (spec.conv_dim, spec.conv_kernel), "float32")
            yield Weight(f"{at}.conv_bias", (spec.conv_dim,), "float32")
            for name in ("dt_bias", "A_log", "D"):
                yield Weight(f"{at}.{name}", (spec.mamba_n_heads,), "float32")
            yield Weight(f"{at}.gated_norm", (spec.d_inner,), "float32")
            yield Weight(f"{at}.out_proj", (hidden, spec.d_inner))
        elif letter == "*":
            q, kv = (n * spec.head_dim for n in (spec.n_q_heads, spec.n_kv_heads))
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                yield Weight(f"{at}.{name}_proj", (rows, hidden))
            yield Weight(f"{at}.o_proj", (hidden, q))
        else:
            yield Weight(f"{at}.gate", (spec.n_experts, hidden), "float32")
            yield Weight(f"{at}.gate_bias", (spec.n_experts,), "float32")
            shapes = {"up": (spec.expert_size, hidden), "down": (hidden, spec.expert_size)}
            for name, shape in shapes.items():
                yield Weight(f"{at}.experts_{name}", shape, n_stacked=spec.n_experts)
            shared = spec.shared_expert_size
            yield Weight(f"{at}.shared_up", (shared, hidden))
            yield Weight(f"{at}.shared_down", (hidden, shared))
    yield Weight("norm", (hidden,), "float32")
    yield Weight("head", (vocab, hidden))


def difference(spec: DecoderSpec, found: Layout) -> str | None:
    """The first way in which tensors are not those of a model of these sizes."""
    left = dict(found)
    for weight in decoder_weights(spec):
        parts = {end: left.pop(weight.name + end) for end in SUFFIXES if weight.name + end in left}
        if parts in weight.layouts():
            continue
        if "" not in parts:
            return f"lacks {weight.name}"
        nearest = max(weight.layouts(), key=lambda other: len(parts.items() & other.items()))
        return f"holds {weight.name} as {_shown(parts)}, the manifest means {_shown(nearest)}"
    for name in left:
        return f"holds {name!r}, of which the manifest does not know"
    return None


def _shown(parts: Parts) -> str:
    return ", ".join(
        f"{dtype}{list(shape)}{f' {end}' if end else ''}" for end, (dtype, shape) in parts.items()
    )
