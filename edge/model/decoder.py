"""The hybrid decoder of Nemotron 3 Nano Omni, written once against `Ops`.

Each block is x + mixer(rms_norm(x)) with exactly one mixer. Source: transformers 5.23.0
`models/nemotron_h/modeling_nemotron_h.py`, without its lower clamp of dt.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge.model.ops import Ops, T
from edge.model.spec import DecoderSpec


def blocks(ops: Ops[T], spec: DecoderSpec, rows: T) -> Iterator[T]:
    """Advance the state over `rows` [n, H]; yields the residual stream after each block."""
    for layer in range(len(spec.pattern)):
        rows = block(ops, spec, layer, rows)
        yield rows


def block(ops: Ops[T], spec: DecoderSpec, layer: int, rows: T) -> T:
    """One block over `rows` [n, H]: the residual stream after it."""
    return ops.add(rows, mixed(ops, spec, layer, rows))


def mixed(ops: Ops[T], spec: DecoderSpec, layer: int, rows: T) -> T:
    """What one block adds to the residual stream `rows` [n, H]."""
    mixers = {"M": mamba2, "*": attention, "E": mixture_of_experts}
    normed = ops.rms_norm(rows, f"layers.{layer}.norm")
    return mixers[spec.pattern[layer]](ops, spec, layer, normed)


def head(ops: Ops[T], rows: T) -> T:
    """[n, H] after the last block -> logits [n, vocabulary]."""
    return ops.linear(ops.rms_norm(rows, "norm"), "head")


def advance(ops: Ops[T], spec: DecoderSpec, rows: T) -> T:
    """Advance the state over `rows` [n, H]; returns the logits after the last, [1, vocabulary]."""
    for after_block in blocks(ops, spec, rows):
        rows = after_block
    return head(ops, ops.last_row(rows))


def mamba2(ops: Ops[T], spec: DecoderSpec, layer: int, x: T) -> T:
    """Selective state space: project, convolve, scan, gate and norm, project."""
    at = f"layers.{layer}"
    parts = (spec.d_inner, spec.conv_dim, spec.mamba_n_heads)
    gate, mixed, dt = ops.split(ops.linear(x, f"{at}.in_proj"), parts)
    group_width = spec.n_groups * spec.state_size
    convolved = ops.causal_conv1d(mixed, layer)
    inner, b, c = ops.split(convolved, (spec.d_inner, group_width, group_width))
    y = ops.ssd(inner, b, c, dt, layer)
    return ops.linear(ops.gated_rms_norm(y, gate, f"{at}.gated_norm"), f"{at}.out_proj")


def attention(ops: Ops[T], _spec: DecoderSpec, layer: int, x: T) -> T:
    """Grouped-query attention without any position encoding."""
    at = f"layers.{layer}"
    q, k, v = (ops.linear(x, f"{at}.{name}_proj") for name in ("q", "k", "v"))
    return ops.linear(ops.attention(q, k, v, layer), f"{at}.o_proj")


def mixture_of_experts(ops: Ops[T], _spec: DecoderSpec, layer: int, x: T) -> T:
    """Routed experts plus the shared expert, which every token takes unscaled."""
    at = f"layers.{layer}"
    ids, weights = ops.route(x, layer)
    shared = ops.linear(ops.relu2(ops.linear(x, f"{at}.shared_up")), f"{at}.shared_down")
    return ops.add(ops.experts(x, ids, weights, layer), shared)
