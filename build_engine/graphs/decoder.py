"""The decoder as two ONNX graphs, for decode and for prefill: `edge.model.decoder` emitted.

Everything is standard but edge::MoE. States and weights are inputs, so that the graph is made of
names and shapes alone, and both graphs take the same ones. T tokens a call: 1 in decode's graph,
up to MAX_PREFILL_TOKENS in prefill's.

    embeddings [T, H]                          logits float32 [1, vocabulary], of the last token
    past_len int32 [1]                         top_values float32, top_ids int32 [1, n_top]
    past_k.L, past_v.L [C, K/V heads, D]       new_k.L, new_v.L [T, K/V heads, D]
    conv.L [taps - 1, conv_dim]                new_conv.L
    ssm.L float32 [heads, head dim, state]     new_ssm.L
    every weight by the bundle's own name

C >= 1 rows of the cache are bound, of which the first past_len count; those behind must be finite,
as zeros or stale rows are. Between products of matrices everything is float32, the residual too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto

from build_engine.graphs.moe import DOMAIN, kernels_function, moe_function, operator_name
from build_engine.graphs.onnx_ops import Graph
from build_engine.graphs.scan import MASKED, Scan, scan
from build_engine.graphs.weight_formats import BFLOAT16, Stored, bind, decoded, stored
from edge.engines.safetensors import Layout
from edge.model.decoder import advance
from edge.model.spec import DecoderSpec
from gpu_kernels.plugins import Phase

N_TOP = 64
FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
EPSILON = np.float32(1e-20)
"""Of the router's normalisation."""
SQUARES = ".shared_down"
"""End of the name of a weight that meets squares: they may pass float16's largest number."""


@dataclass(frozen=True, slots=True)
class Precision:
    """In which types a graph binds activations and multiplies matrices."""

    activation: np.dtype[Any]
    """Of the bindings, of K/V, and of products with weights of four bits."""
    wide: np.dtype[Any]
    """Of products that may leave float16's range, or whose weights are bfloat16."""
    fp8: bool
    """Whether FP8 exists: as the type of weights, and of the activations that meet them."""


REFERENCE = Precision(FLOAT32, FLOAT32, fp8=False)
DEVICE = Precision(FLOAT16, BFLOAT16, fp8=False)
"""Orin, and every GPU before those that multiply FP8."""
DEVICE_FP8 = Precision(FLOAT16, BFLOAT16, fp8=True)


def decoder_model(
    spec: DecoderSpec,
    layout: Layout,
    precision: Precision,
    n_top: int = N_TOP,
    *,
    kernels: bool = False,
    phase: Phase = "prefill",
) -> ModelProto:
    """One graph of a decoder whose weights a bundle holds like this.

    Args:
        layout: dtype and shape of every tensor of decoder.safetensors.
        n_top: how many of the highest logits are given beside all of them.
        kernels: the routed experts are our GPU kernels, not operators.
        phase: which of the two graphs.
    Raises:
        BundleError: a weight is missing or of no known format.
    """
    ops = OnnxOps(spec, layout, precision, kernels=kernels, phase=phase)
    graph, hidden = ops.graph, spec.hidden_size
    rows = graph.input("embeddings", precision.activation, [ops.n_tokens, hidden])
    logits = advance(ops, spec, ops.begin(rows))
    graph.output(logits, "logits", np.float32, [1, spec.vocab_size])
    n_top = min(n_top, spec.vocab_size)
    top, ids = graph.ops("TopK", logits, np.array([n_top], np.int64), n_outputs=2, axis=1)
    graph.output(top, "top_values", np.float32, [1, n_top])
    graph.output(graph.cast(ids, np.int32), "top_ids", np.int32, [1, n_top])
    return graph.model(phase, list(ops.functions.values()))


class OnnxOps:
    """`Ops` that write nodes. A value is its name in the graph, float32 unless said otherwise."""

    def __init__(
        self,
        spec: DecoderSpec,
        layout: Layout,
        precision: Precision,
        *,
        kernels: bool = False,
        phase: Phase = "prefill",
    ) -> None:
        """Begin a graph for weights of these dtypes and shapes."""
        self._kernels, self._phase = kernels, phase
        self.n_tokens: int | str = 1 if phase == "decode" else "T"
        """Rows of a call, as a binding's dimension."""
        self.graph = Graph()
        self.functions: dict[str, FunctionProto] = {}
        self._spec, self._layout, self._precision = spec, layout, precision
        self._narrowed: dict[tuple[str, np.dtype[Any]], str] = {}

    def begin(self, embeddings: str) -> str:
        """Take [T, H] in the activations' type, and write what all layers share."""
        graph = self.graph
        n = graph.size(embeddings, 0)
        rows = self._range(n)
        earlier, later = (graph.op("Unsqueeze", rows, np.array([a], np.int64)) for a in (0, 1))
        self._causal = graph.op("LessOrEqual", earlier, later)  # [T, T]
        self._n, self._mask = n, ""
        return self._widen(embeddings)

    def linear(self, x: str, weight: str) -> str:
        held, graph, fp8 = stored(self._layout, weight), self.graph, self._precision.fp8
        if held.kind == "fp8" and fp8:
            return self._fp8_linear(x, held)
        dtype = self._product_dtype(held)
        if held.kind == dtype.name:  # as it is
            matrix = self._bind(weight)
        else:
            tensors = [self._bind(name) for name in held.tensors]
            matrix = self._narrow(decoded(graph, held, tensors), dtype)
        return self._widen(self._product(self._narrow(x, dtype), matrix), dtype)

    def _product_dtype(self, held: Stored) -> np.dtype[Any]:
        if held.kind == "float32":
            return FLOAT32
        wide = held.kind == "bfloat16" or held.name.endswith(SQUARES)
        return self._precision.wide if wide else self._precision.activation

    def _product(self, x: str, matrix: str) -> str:
        return self.graph.op("MatMul", x, self.graph.transpose(matrix, 1, 0))

    def _fp8_linear(self, x: str, held: Stored) -> str:
        """Both scales stay outside, as inputs: those of Q and DQ must be constant."""
        graph, wide = self.graph, self._precision.wide
        scale, one = self._bind(f"{held.name}.scale"), np.ones((), wide)
        codes = self._bind(held.name, fp8=True)
        if held.has_input_scale:
            input_scale = self._bind(f"{held.name}.input_scale")
            zero = np.zeros((), self._layout[held.name][0])
            x8 = graph.op("QuantizeLinear", graph.op("Div", x, input_scale), np.float32(1), zero)
            x = graph.op("DequantizeLinear", x8, one)
            scale = graph.op("Mul", scale, input_scale)
        else:
            x = self._narrow(x, wide)
        y = self._product(x, graph.op("DequantizeLinear", codes, one))
        return graph.op("Mul", self._widen(y, wide), scale)

    def rms_norm(self, x: str, weight: str) -> str:
        return self._normalised(x, self._bind(weight))

    def _normalised(self, x: str, weight: str) -> str:
        return self.graph.rms_norm(x, weight, self._spec.norm_eps)

    def add(self, a: str, b: str) -> str:
        return self.graph.op("Add", a, b)

    def relu2(self, x: str) -> str:
        return self.graph.relu2(x)

    def split(self, x: str, sizes: Sequence[int]) -> Sequence[str]:
        lengths = np.array(sizes, np.int64)
        return self.graph.ops("Split", x, lengths, n_outputs=len(sizes), axis=1)

    def last_row(self, x: str) -> str:
        return self.graph.slice(x, 0, -1)

    def causal_conv1d(self, x: str, layer: int) -> str:
        graph, spec, act = self.graph, self._spec, self._precision.activation
        n_taps, shape = spec.conv_kernel, [spec.conv_kernel - 1, spec.conv_dim]
        past = graph.input(f"conv.{layer}", act, shape)
        columns = graph.op("Concat", past, self._narrow(x, act), axis=0)  # [taps - 1 + T, conv_dim]
        graph.output(graph.slice(columns, 0, 1 - n_taps), f"new_conv.{layer}", act, shape)
        columns = self._widen(columns, act)
        taps = graph.transpose(self._bind(f"layers.{layer}.conv_weight"), 1, 0)
        y = self._bind(f"layers.{layer}.conv_bias")
        for tap in range(n_taps):
            end = {"end": tap + 1 - n_taps} if tap < n_taps - 1 else {}
            rows = graph.slice(columns, 0, tap, **end)
            y = graph.op("Add", graph.op("Mul", rows, graph.slice(taps, 0, tap, tap + 1)), y)
        return graph.silu(y)

    def ssd(self, x: str, b: str, c: str, dt: str, layer: int) -> str:
        graph, spec, at = self.graph, self._spec, f"layers.{layer}"
        shape = [spec.mamba_n_heads, spec.mamba_head_dim, spec.state_size]
        state = graph.input(f"ssm.{layer}", np.float32, shape)
        small = (self._bind(f"{at}.{name}") for name in ("dt_bias", "A_log", "D"))
        y, after = scan(graph, spec, Scan(x, b, c, dt, state, *small), self._causal)
        graph.output(after, f"new_ssm.{layer}", np.float32, shape)
        return y

    def gated_rms_norm(self, y: str, gate: str, weight: str) -> str:
        graph, spec = self.graph, self._spec
        gated = graph.op("Mul", y, graph.silu(gate))
        group_width = spec.d_inner // spec.n_groups
        grouped = graph.reshape(gated, -1, spec.n_groups, group_width)
        by_group = graph.reshape(self._bind(weight), spec.n_groups, group_width)
        return graph.reshape(self._normalised(grouped, by_group), -1, spec.d_inner)

    def attention(self, q: str, k: str, v: str, layer: int) -> str:
        graph, spec, act = self.graph, self._spec, self._precision.activation
        n_kv, width, n = spec.n_kv_heads, spec.head_dim, self._n
        per_kv = spec.n_q_heads // n_kv
        past_k, past_v = (
            graph.input(f"past_{name}.{layer}", act, ["C", n_kv, width]) for name in "kv"
        )
        k, v = (graph.reshape(self._narrow(rows, act), -1, n_kv, width) for rows in (k, v))
        for name, rows in (("k", k), ("v", v)):
            graph.output(rows, f"new_{name}.{layer}", act, [self.n_tokens, n_kv, width])
        n_past = graph.size(past_k, 0)
        n_rows = graph.op("Add", n_past, n)
        # the query heads of one K/V head are more rows of it: no key is repeated
        q = self._narrow(graph.op("Mul", q, np.float32(width**-0.5)), act)
        q = graph.transpose(graph.reshape(q, -1, n_kv, per_kv, width), 1, 2, 0, 3)
        q = graph.reshape(q, n_kv, -1, width)  # [K/V heads, query heads of one * T, D]
        # the scores are joined, not the keys: the past is never copied
        scores = graph.op(
            "Concat",
            *(graph.op("MatMul", q, graph.transpose(keys, 1, 2, 0)) for keys in (past_k, k)),
            axis=2,
        )
        scores = graph.reshape(self._widen(scores, act), n_kv, per_kv, n, n_rows)
        scores = graph.op("Add", scores, self._attention_mask(n_past))
        shares = self._narrow(graph.op("Softmax", scores, axis=-1), act)
        shares = graph.reshape(shares, n_kv, -1, n_rows)
        y = graph.op(
            "Add",
            graph.op("MatMul", graph.slice(shares, 2, 0, n_past), graph.transpose(past_v, 1, 0, 2)),
            graph.op("MatMul", graph.slice(shares, 2, n_past), graph.transpose(v, 1, 0, 2)),
        )
        y = graph.transpose(graph.reshape(y, n_kv, per_kv, n, width), 2, 0, 1, 3)
        return self._widen(graph.reshape(y, -1, spec.n_q_heads * width), act)

    def _attention_mask(self, n_past: str) -> str:
        """float32 [T, C + T]: the past that counts, and of the new rows those not later."""
        graph = self.graph
        if not self._mask:
            past_len = graph.cast(graph.input("past_len", np.int32, [1]), np.int64)
            counts = graph.op("Less", self._range(n_past), past_len)
            counts = graph.op("Unsqueeze", counts, np.array([0], np.int64))
            shape = graph.op("Concat", self._n, n_past, axis=0)
            visible = graph.op("Concat", graph.op("Expand", counts, shape), self._causal, axis=1)
            self._mask = graph.op("Where", visible, np.float32(0), MASKED)
        return self._mask

    def route(self, x: str, layer: int) -> tuple[str, str]:
        graph, spec = self.graph, self._spec
        scores = graph.op("Sigmoid", self.linear(x, f"layers.{layer}.gate"))
        choice = graph.op("Add", scores, self._bind(f"layers.{layer}.gate_bias"))
        ids = self._highest(self._group_limited(choice), spec.n_experts_per_token)
        weights = graph.op("GatherElements", scores, ids, axis=1)
        if spec.norm_topk_prob:
            total = graph.op("ReduceSum", weights, np.array([1], np.int64), keepdims=1)
            weights = graph.op("Div", weights, graph.op("Add", total, EPSILON))
        weights = graph.op("Mul", weights, np.float32(spec.routed_scaling_factor))
        return graph.cast(ids, np.int32), weights

    def _group_limited(self, choice: str) -> str:
        """Exclude the experts outside the best groups; a group counts by its two best."""
        graph, spec = self.graph, self._spec
        n_groups = spec.n_expert_groups
        if n_groups == 1:
            return choice
        grouped = graph.reshape(choice, -1, n_groups, spec.n_experts // n_groups)
        two = np.array([min(2, spec.n_experts // n_groups)], np.int64)
        best, _ = graph.ops("TopK", grouped, two, n_outputs=2, axis=2)
        strength = graph.op("ReduceSum", best, np.array([2], np.int64), keepdims=0)
        kept = self._highest(strength, spec.n_expert_groups_per_token)  # [T, kept]
        kept = graph.op("Unsqueeze", kept, np.array([1], np.int64))
        group = np.arange(n_groups).reshape(n_groups, 1)
        inside = graph.cast(graph.op("Equal", kept, group), np.float32)  # [T, groups, kept]
        inside = graph.op("ReduceMax", inside, np.array([2], np.int64), keepdims=1)
        inside = graph.op("Greater", inside, np.float32(0))
        return graph.reshape(graph.op("Where", inside, grouped, MASKED), -1, spec.n_experts)

    def _highest(self, values: str, count: int) -> str:
        """Indices [T, count] of the highest of each row, of equal ones the first."""
        wanted = np.array([count], np.int64)
        return self.graph.ops("TopK", values, wanted, n_outputs=2, axis=1)[1]

    def experts(self, x: str, ids: str, weights: str, layer: int) -> str:
        up, down = (
            stored(self._layout, f"layers.{layer}.experts_{side}") for side in ("up", "down")
        )
        name = operator_name(up, down)
        if name not in self.functions:
            self.functions[name] = (
                kernels_function(self._phase, up, down, self._spec.n_experts_per_token)
                if self._kernels
                else moe_function(up, down)
            )
        tensors = [self._bind(tensor) for tensor in (*up.tensors, *down.tensors)]
        act = self._precision.activation
        rows = self._narrow(x, act)
        return self._widen(self.graph.op(name, rows, ids, weights, *tensors, domain=DOMAIN), act)

    def _bind(self, name: str, *, fp8: bool = False) -> str:
        """A tensor of the bundle as an input."""
        return bind(self.graph, self._layout, name, fp8=fp8)

    def _narrow(self, x: str, dtype: np.dtype[Any]) -> str:
        """From float32, once for each value."""
        if dtype == FLOAT32:
            return x
        if (x, dtype) not in self._narrowed:
            self._narrowed[x, dtype] = self.graph.cast(x, dtype)
        return self._narrowed[x, dtype]

    def _widen(self, x: str, dtype: np.dtype[Any] | None = None) -> str:
        """To float32."""
        narrow = self._precision.activation if dtype is None else dtype
        return x if narrow == FLOAT32 else self.graph.cast(x, np.float32)

    def _range(self, n: str) -> str:
        """0 to n - 1, int64."""
        scalar = self.graph.op("Squeeze", n, np.array([0], np.int64))
        bounds: tuple[NDArray[Any], str, NDArray[Any]] = (np.array(0), scalar, np.array(1))
        return self.graph.op("Range", *bounds)
