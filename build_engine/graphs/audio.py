"""The audio encoder as one ONNX graph: Parakeet (FastConformer) and its projector.

Only the valid mel frames of one clip are fed, so that nothing is masked: what a mask would set to
zero after each convolution is what the convolutions pad with, and no attention score is hidden.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto

from build_engine.checkpoint import Checkpoint
from build_engine.graphs.onnx_ops import ExternalData, Graph
from edge.engines.engine import MAX_AUDIO_FRAMES
from edge.types import Float32

TOWER = "sound_encoder.encoder"
MAX_TOKENS = -(-MAX_AUDIO_FRAMES // 8)
"""Of the longest clip: three convolutions of stride 2."""


def audio_model(checkpoint: Checkpoint, weights: ExternalData | None = None) -> ModelProto:
    """The graph from log-mel features to embeddings of the decoder.

    Input:
        mel: float32 (1, frames, n_mels), the valid frames of one clip, normalised; 1 to 3000.
    Output:
        embeddings: float32 (1, ceil(frames / 8), hidden size).

    Args:
        checkpoint: the weights; read in float32.
        weights: takes them, one by one; None keeps them in the model.
    Raises:
        CheckpointError: a weight is missing, has another shape, or is not finite.
    Source: transformers 5.23.0 `models/parakeet` and `nemotron_h_omni`, `get_audio_features`.
    """
    spec, hidden = checkpoint.spec.audio, checkpoint.spec.decoder.hidden_size
    graph = Graph(weights)
    mel = graph.input("mel", np.float32, [1, "frames", spec.n_mels])
    x = _subsample(graph, checkpoint, mel)
    if spec.scale_input:
        x = graph.op("Mul", x, np.float32(np.sqrt(spec.hidden_size)))
    n_tokens = graph.size(x, 1)
    table = relative_positions(MAX_TOKENS, spec.hidden_size)
    for i in range(spec.n_layers):
        x = _block(graph, checkpoint, f"{TOWER}.layers.{i}", x, n_tokens, table)

    def projection(layer: str, x: str, *shape: int) -> str:
        return _linear(
            graph, checkpoint, f"sound_projection.{layer}", x, shape, spec.projection_bias
        )

    width, projector = spec.hidden_size, spec.projector_size
    norm = checkpoint.float32("sound_projection.norm.weight", (width,))
    x = graph.rms_norm(x, norm, spec.projector_norm_eps)
    x = graph.relu2(projection("linear1", x, projector, width))
    x = projection("linear2", x, hidden, projector)
    graph.output(x, "embeddings", np.float32, [1, "tokens", hidden])
    return graph.model("audio")


def _linear(
    graph: Graph,
    checkpoint: Checkpoint,
    name: str,
    x: str,
    shape: tuple[int, ...],
    has_bias: bool,
    share: float = 1,
) -> str:
    """`share` of the linear layer `name`, (out, in) or (out, in, 1)."""
    weight = checkpoint.float32(f"{name}.weight", shape).reshape(shape[:2]) * np.float32(share)
    if not has_bias:
        return graph.linear(x, weight)
    return graph.linear(
        x, weight, checkpoint.float32(f"{name}.bias", shape[:1]) * np.float32(share)
    )


def relative_positions(n_tokens: int, width: int) -> Float32:
    """Sinusoids of the relative positions n_tokens - 1 down to -(n_tokens - 1).

    Returns:
        (2 * n_tokens - 1, width), sine and cosine interleaved.
    Source: transformers 5.23.0 `ParakeetEncoderRelPositionalEncoding`.
    """
    positions = np.arange(n_tokens - 1, -n_tokens, -1)
    angles = positions[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(-1, width).astype(np.float32)


def _subsample(graph: Graph, checkpoint: Checkpoint, mel: str) -> str:
    """[1, frame, mel] -> [1, token, channel] by three convolutions of stride 2."""
    spec, name = checkpoint.spec.audio, f"{TOWER}.subsampling"
    channels = spec.subsampling_channels

    def conv(layer: int, x: str, fan_in: int, side: int, **attributes: Any) -> str:
        shape = (channels, fan_in, side, side)
        weight = checkpoint.float32(f"{name}.layers.{layer}.weight", shape)
        bias = checkpoint.float32(f"{name}.layers.{layer}.bias", (channels,))
        return graph.op("Conv", x, weight, bias, kernel_shape=[side, side], **attributes)

    halve = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    x = graph.op("Unsqueeze", mel, np.array([1], np.int64))
    x = graph.op("Relu", conv(0, x, 1, 3, **halve))
    for depthwise in (2, 5):
        x = conv(depthwise, x, 1, 3, group=channels, **halve)
        x = graph.op("Relu", conv(depthwise + 1, x, channels, 1))
    features = channels * (spec.n_mels // 8)
    x = graph.reshape(graph.transpose(x, 0, 2, 1, 3), 1, -1, features)
    weight = checkpoint.float32(f"{name}.linear.weight", (spec.hidden_size, features))
    return graph.linear(x, weight, checkpoint.float32(f"{name}.linear.bias", (spec.hidden_size,)))


def _block(
    graph: Graph, checkpoint: Checkpoint, name: str, x: str, n_tokens: str, table: Float32
) -> str:
    spec = checkpoint.spec.audio

    def norm(layer: str, x: str) -> str:
        weight, bias = (
            checkpoint.float32(f"{name}.norm_{layer}.{kind}", (spec.hidden_size,))
            for kind in ("weight", "bias")
        )
        return graph.layer_norm(x, weight, bias, spec.norm_eps)

    y = _half_feed_forward(graph, checkpoint, f"{name}.feed_forward1", norm("feed_forward1", x))
    x = graph.op("Add", x, y)
    y = _attention(graph, checkpoint, f"{name}.self_attn", norm("self_att", x), n_tokens, table)
    x = graph.op("Add", x, y)
    x = graph.op("Add", x, _convolution(graph, checkpoint, f"{name}.conv", norm("conv", x)))
    y = _half_feed_forward(graph, checkpoint, f"{name}.feed_forward2", norm("feed_forward2", x))
    return norm("out", graph.op("Add", x, y))


def _half_feed_forward(graph: Graph, checkpoint: Checkpoint, name: str, x: str) -> str:
    spec = checkpoint.spec.audio
    width, wide, bias = spec.hidden_size, spec.mlp_size, spec.attention_bias
    x = graph.silu(_linear(graph, checkpoint, f"{name}.linear1", x, (wide, width), bias))
    # a conformer block adds half of each feed-forward; halving a weight is exact
    return _linear(graph, checkpoint, f"{name}.linear2", x, (width, wide), bias, share=0.5)


def _attention(
    graph: Graph, checkpoint: Checkpoint, name: str, x: str, n_tokens: str, table: Float32
) -> str:
    """Full attention with relative positions (Transformer-XL)."""
    spec = checkpoint.spec.audio
    width, heads = spec.hidden_size, spec.n_heads
    head_dim = width // heads
    scale = np.float32(head_dim**-0.5)

    def linear(layer: str, x: str) -> str:
        at = f"{name}.{layer}"
        return _linear(graph, checkpoint, at, x, (width, width), spec.attention_bias)

    def by_head(layer: str) -> str:
        return graph.reshape(linear(layer, x), 0, 0, heads, head_dim)

    def bias(layer: str) -> Float32:
        values = checkpoint.float32(f"{name}.{layer}", (heads, head_dim))
        return values.reshape(heads, 1, head_dim) * scale

    q = graph.op("Mul", graph.transpose(by_head("q_proj"), 0, 2, 1, 3), scale)
    k, v = by_head("k_proj"), by_head("v_proj")
    content = graph.op("MatMul", graph.op("Add", q, bias("bias_u")), graph.transpose(k, 0, 2, 3, 1))
    # no input reaches relative_k_proj: its product with the longest table is a constant
    relative = checkpoint.float32(f"{name}.relative_k_proj.weight", (width, width))
    keys = table.astype(np.float64) @ relative.T.astype(np.float64)
    keys = keys.reshape(-1, heads, head_dim).transpose(1, 2, 0).astype(np.float32)
    centre = np.array([MAX_TOKENS], np.int64)
    start = graph.op("Sub", centre, n_tokens)
    end = graph.op("Add", centre - 1, n_tokens)
    near = graph.slice(graph.const(keys), 2, start, end)
    position = graph.op("MatMul", graph.op("Add", q, bias("bias_v")), near)
    position = relative_shift(graph, position, heads, n_tokens)

    probabilities = graph.op("Softmax", graph.op("Add", content, position), axis=-1)
    y = graph.op("MatMul", probabilities, graph.transpose(v, 0, 2, 1, 3))
    y = graph.reshape(graph.transpose(y, 0, 2, 1, 3), 0, 0, width)
    return linear("o_proj", y)


def relative_shift(graph: Graph, scores: str, heads: int, n_tokens: str) -> str:
    """From scores by relative position to scores by key: out[i, j] = scores[i, T - 1 - i + j].

    One zero before each row, and the same values read in rows one shorter, move row i by i.

    Args:
        scores: (1, heads, T, 2 T - 1), of the positions T - 1 down to -(T - 1).
        n_tokens: T, as a `Graph.size`.
    Returns:
        (1, heads, T, T).
    """
    padded = graph.op("Pad", scores, np.array([0, 0, 0, 1, 0, 0, 0, 0], np.int64))
    rows = graph.slice(graph.reshape(padded, 1, heads, -1, n_tokens), 2, 1)
    return graph.slice(graph.reshape(rows, 1, heads, n_tokens, -1), 3, 0, n_tokens)


def _convolution(graph: Graph, checkpoint: Checkpoint, name: str, x: str) -> str:
    """Gated pointwise, depthwise over time with its batch norm folded in, pointwise."""
    spec = checkpoint.spec.audio
    width, kernel = spec.hidden_size, spec.conv_kernel

    def pointwise(layer: str, x: str, n_out: int) -> str:
        at, shape = f"{name}.{layer}", (n_out, width, 1)
        return _linear(graph, checkpoint, at, x, shape, spec.convolution_bias)

    y, gate = graph.ops(
        "Split", pointwise("pointwise_conv1", x, 2 * width), n_outputs=2, axis=-1, num_outputs=2
    )
    y = graph.transpose(graph.op("Mul", y, graph.op("Sigmoid", gate)), 0, 2, 1)
    weight, bias = _folded_batch_norm(checkpoint, name)
    padding = (kernel - 1) // 2
    y = graph.op(
        "Conv", y, weight, bias, kernel_shape=[kernel], pads=[padding, padding], group=width
    )
    return pointwise("pointwise_conv2", graph.transpose(graph.silu(y), 0, 2, 1), width)


def _folded_batch_norm(checkpoint: Checkpoint, name: str) -> tuple[Float32, Float32]:
    """Weight (channel, 1, kernel) and bias of the depthwise convolution and its batch norm."""
    spec = checkpoint.spec.audio
    width = spec.hidden_size
    gamma, beta, mean, variance = (
        checkpoint.float32(f"{name}.norm.{kind}", (width,)).astype(np.float64)
        for kind in ("weight", "bias", "running_mean", "running_var")
    )
    gain = gamma / np.sqrt(variance + spec.batch_norm_eps)
    weight = checkpoint.float32(f"{name}.depthwise_conv.weight", (width, 1, spec.conv_kernel))
    if spec.convolution_bias:
        mean = mean - checkpoint.float32(f"{name}.depthwise_conv.bias", (width,))
    folded = weight * gain[:, None, None]
    return folded.astype(np.float32), (beta - mean * gain).astype(np.float32)
