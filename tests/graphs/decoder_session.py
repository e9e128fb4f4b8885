"""The decoder's graph on ONNX Runtime, with weights and states of the cpu engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.inliner import inline_local_functions

from edge.engines.onnx_runtime import onnxruntime
from edge.engines.state import DecoderState
from edge.model.spec import DecoderSpec

BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
Arrays = dict[str, NDArray[Any]]


class DecoderSession:
    """One graph, and the weights that it asks for by name."""

    def __init__(
        self, model: ModelProto, weights: Mapping[str, NDArray[Any]], *, fp8: bool = False
    ) -> None:
        """Load the graph; it takes FP8 as bytes, or as the type where `fp8`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 3
        # else INT4 and FP8 products are rewritten to ones with activations of 8 bits
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        if fp8:  # up to 1.24 the transpose of an FP8 constant is taken for one of bytes
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        whole = inline_local_functions(model).SerializeToString()
        self._session = onnxruntime.InferenceSession(
            whole, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {i.name: i for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]
        given = {name: weights[name] for name in self.inputs if name in weights}
        given.pop("embeddings", None)  # the table's name is also that of the rows
        self._weights = {name: ort_value(values, fp8) for name, values in given.items()}

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Every output by name."""
        feeds = self._weights | {n: ort_value(v) for n, v in inputs.items() if n in self.inputs}
        values = self._session.run_with_ort_values(self.outputs, feeds)
        return dict(zip(self.outputs, (v.numpy() for v in values), strict=True))


def ort_value(values: NDArray[Any], fp8: bool = False) -> onnxruntime.OrtValue:
    """An array for ONNX Runtime: bfloat16 by its bits, FP8 by them or as bytes; bytes as int8."""
    values = np.asarray(values, order="C")
    if values.dtype == E4M3 and fp8:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            values.view(np.uint8), TensorProto.FLOAT8E4M3FN
        )
    if values.dtype == BF16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            values.view(np.uint16), TensorProto.BFLOAT16
        )
    return onnxruntime.OrtValue.ortvalue_from_numpy(
        values.view(np.int8) if values.dtype in (E4M3, np.uint8) else values
    )


def state_inputs(
    spec: DecoderSpec, state: DecoderState, n_bound: int, rng: np.random.Generator
) -> Arrays:
    """A state as the graph takes it, in `n_bound` rows of cache: noise behind those that count."""
    inputs: Arrays = {"past_len": np.array([state.n_tokens], np.int32)}
    for layer, cache in state.kv.items():
        for name, rows in (("k", cache.keys), ("v", cache.values)):
            bound = rng.standard_normal((n_bound, spec.n_kv_heads, spec.head_dim), np.float32)
            bound[: state.n_tokens] = rows[: state.n_tokens]
            inputs[f"past_{name}.{layer}"] = bound
    inputs |= {f"conv.{layer}": columns for layer, columns in state.conv.items()}
    return inputs | {f"ssm.{layer}": values for layer, values in state.ssm.items()}


def state_outputs(state: DecoderState, n_past: int) -> Arrays:
    """What the graph must give of a state that has gone on from `n_past` tokens."""
    outputs: Arrays = {}
    for layer, cache in state.kv.items():
        for name, rows in (("k", cache.keys), ("v", cache.values)):
            outputs[f"new_{name}.{layer}"] = rows[n_past : state.n_tokens]
    outputs |= {f"new_conv.{layer}": columns for layer, columns in state.conv.items()}
    return outputs | {f"new_ssm.{layer}": values for layer, values in state.ssm.items()}


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference over the largest magnitude; infinite where shapes or finiteness differ."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - expected).max() / np.abs(expected).max())
