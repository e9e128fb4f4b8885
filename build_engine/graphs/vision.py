"""The vision encoder as one ONNX graph, for images and for tubelets of video.

C-RADIO ViT, pixel shuffle and projector. Attention is full within one image or tubelet, so a batch
is independent items of one grid.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from build_engine.checkpoint import Checkpoint
from build_engine.graphs.onnx_ops import ExternalData, Graph
from build_engine.inventory import FINAL_NORMS
from edge.model.spec import VisionSpec
from edge.types import Float32

TOWER = "vision_model.radio_model.model"
IMAGE, TUBELET = 0, 1
"""Values of the input `embedder`."""


def vision_model(checkpoint: Checkpoint, weights: ExternalData | None = None) -> ModelProto:
    """The graph from patches to embeddings of the decoder.

    Inputs, with h x w the patch grid (both even) and F = 3 x patch_size^2 x tubelet_frames:
        patches: float32 (batch, h * w, F), row-major, normalised. A tubelet's features are
            (frame, channel, y, x); an image's (channel, y, x), zero-padded to F.
        embedder: int32 (1,), 0 for images, 1 for tubelets.
        row_weights, column_weights: float32 (h, table) and (w, table), from
            `edge.features.positions.interpolation_weights`.
    Output:
        embeddings: float32 (batch, h * w / 4, hidden size), row-major after 2 x 2 merging.

    Args:
        checkpoint: the weights; read in float32.
        weights: takes them, one by one; None keeps them in the model.
    Raises:
        CheckpointError: a weight is missing, has another shape, or is not finite.
    Source: transformers 5.23.0 `models/radio` and `nemotron_h_omni`, `get_image_features`.
    """
    spec, hidden = checkpoint.spec.vision, checkpoint.spec.decoder.hidden_size
    graph, table = Graph(weights), spec.position_grid
    features = 3 * spec.patch_size**2 * spec.tubelet_frames
    patches = graph.input("patches", np.float32, ["batch", "patches", features])
    embedder = graph.input("embedder", np.int32, [1])
    rows = graph.input("row_weights", np.float32, ["rows", table])
    columns = graph.input("column_weights", np.float32, ["columns", table])

    weight = graph.op("Gather", _embedders(checkpoint, features), embedder, axis=0)
    x = graph.op("MatMul", patches, graph.reshape(weight, features, spec.hidden_size))
    # h * w rows already; cut to the patches' count so that a TensorRT profile, whose maxima of h, w
    # and h * w belong to different grids, is consistent in itself
    positions = _positions(graph, checkpoint, rows, columns)
    x = graph.op("Add", x, graph.slice(positions, 0, 0, graph.size(patches, 1)))
    prefix = checkpoint.float32(
        f"{TOWER}.patch_generator.cls_token.token", (spec.n_prefix_tokens, spec.hidden_size)
    )
    per_item = graph.op("Concat", graph.size(patches, 0), np.array(prefix.shape), axis=0)
    x = graph.op("Concat", graph.op("Expand", prefix, per_item), x, axis=1)
    for b in range(spec.n_layers):
        x = _block(graph, checkpoint, f"{TOWER}.blocks.{b}", x)
    x = graph.slice(x, 1, spec.n_prefix_tokens)
    if spec.final_norm:
        x = graph.layer_norm(x, *_final_norm(checkpoint), spec.norm_eps)

    x = pixel_shuffle(graph, x, graph.size(columns, 0), spec.hidden_size)
    x = _project(graph, checkpoint, x)
    graph.output(x, "embeddings", np.float32, ["batch", "tokens", hidden])
    return graph.model("vision")


def _final_norm(checkpoint: Checkpoint) -> tuple[Float32, Float32]:
    """Weight and bias of the norm behind the ViT: 1 and 0 where the checkpoint has none."""
    shape = (checkpoint.spec.vision.hidden_size,)
    for name in FINAL_NORMS:
        if checkpoint.has(f"{name}.weight"):
            weight, bias = (checkpoint.float32(f"{name}.{k}", shape) for k in ("weight", "bias"))
            return weight, bias
    return np.ones(shape, np.float32), np.zeros(shape, np.float32)


def _embedders(checkpoint: Checkpoint, features: int) -> Float32:
    """Both patch embedders, [embedder, feature, channel]; the image's padded with zeros."""
    spec = checkpoint.spec.vision
    stacked = np.zeros((2, features, spec.hidden_size), np.float32)
    for index, name in ((IMAGE, "embedder"), (TUBELET, "video_embedder")):
        width = features if index == TUBELET else features // spec.tubelet_frames
        shape = (spec.hidden_size, width)
        weight = checkpoint.float32(f"{TOWER}.patch_generator.{name}.weight", shape)
        stacked[index, :width] = weight.T
    return stacked


def _positions(graph: Graph, checkpoint: Checkpoint, rows: str, columns: str) -> str:
    """The position table resized to the grid, [h * w, channel]."""
    spec = checkpoint.spec.vision
    side, width = spec.position_grid, spec.hidden_size
    table = checkpoint.float32(f"{TOWER}.patch_generator.pos_embed", (1, side * side, width))
    by_row = graph.op("MatMul", rows, table.reshape(side, side * width))
    by_column = graph.op("MatMul", columns, graph.reshape(by_row, -1, side, width))
    return graph.reshape(by_column, -1, width)


def _block(graph: Graph, checkpoint: Checkpoint, name: str, x: str) -> str:
    spec = checkpoint.spec.vision

    def linear(layer: str, x: str, n_in: int, n_out: int) -> str:
        weight = checkpoint.float32(f"{name}.{layer}.weight", (n_out, n_in))
        return graph.linear(x, weight, checkpoint.float32(f"{name}.{layer}.bias", (n_out,)))

    def norm(layer: str, x: str) -> str:
        weight, bias = (
            checkpoint.float32(f"{name}.{layer}.{kind}", (spec.hidden_size,))
            for kind in ("weight", "bias")
        )
        return graph.layer_norm(x, weight, bias, spec.norm_eps)

    width = spec.hidden_size
    y = linear("attn.qkv", norm("norm1", x), width, 3 * width)
    y = linear("attn.proj", _attention(graph, y, spec), width, width)
    x = graph.op("Add", x, y)
    y = _gelu(graph, linear("mlp.fc1", norm("norm2", x), width, spec.mlp_size))
    return graph.op("Add", x, linear("mlp.fc2", y, spec.mlp_size, width))


def _attention(graph: Graph, qkv: str, spec: VisionSpec) -> str:
    """Full attention; qkv [batch, token, 3 * channel] -> [batch, token, channel]."""
    head_dim = spec.hidden_size // spec.n_heads
    q, k, v = (
        graph.reshape(part, 0, 0, spec.n_heads, head_dim)
        for part in graph.ops("Split", qkv, n_outputs=3, axis=-1, num_outputs=3)
    )
    # q is scaled, not the scores: they are larger by tokens / head_dim, and may overflow fp16
    q = graph.op("Mul", graph.transpose(q, 0, 2, 1, 3), np.float32(head_dim**-0.5))
    scores = graph.op("MatMul", q, graph.transpose(k, 0, 2, 3, 1))
    probabilities = graph.op("Softmax", scores, axis=-1)
    y = graph.op("MatMul", probabilities, graph.transpose(v, 0, 2, 1, 3))
    return graph.reshape(graph.transpose(y, 0, 2, 1, 3), 0, 0, spec.hidden_size)


def _gelu(graph: Graph, x: str) -> str:
    """The exact GELU: x * normal_cdf(x)."""
    erf = graph.op("Erf", graph.op("Mul", x, np.float32(math.sqrt(0.5))))
    cdf = graph.op("Mul", graph.op("Add", erf, np.float32(1)), np.float32(0.5))
    return graph.op("Mul", x, cdf)


def pixel_shuffle(graph: Graph, x: str, n_columns: str, channels: int) -> str:
    """Join each 2 x 2 block of a row-major grid into one token, channels in row-major order.

    Args:
        x: (batch, h * w, channels).
        n_columns: w, as a `Graph.size`.
    Returns:
        (batch, h * w / 4, 4 * channels).
    """
    # by place, not by reshaping to h x w: TensorRT takes h to be as long as all patches at the
    # narrowest, reserves memory for so many rows of the widest, and that is gigabytes
    bounds = np.array(0), graph.op("Squeeze", graph.size(x, 1), _at(0)), np.array(1)
    token, corner = _divided(graph, graph.op("Range", *bounds), np.array(4))
    row, column = _divided(graph, token, graph.op("Div", n_columns, _at(2)))
    down, right = _divided(graph, corner, np.array(2))
    place = graph.op("Mul", graph.op("Add", graph.op("Mul", row, np.array(2)), down), n_columns)
    place = graph.op("Add", place, graph.op("Add", graph.op("Mul", column, np.array(2)), right))
    return graph.reshape(graph.op("Gather", x, place, axis=1), 0, -1, 4 * channels)


def _divided(graph: Graph, n: str, by: str | NDArray[np.int64]) -> tuple[str, str]:
    """Quotient and remainder."""
    quotient = graph.op("Div", n, by)
    return quotient, graph.op("Sub", n, graph.op("Mul", quotient, by))


def _at(value: int) -> NDArray[np.int64]:
    return np.array([value], np.int64)


def _project(graph: Graph, checkpoint: Checkpoint, x: str) -> str:
    spec = checkpoint.spec.vision
    width, projector = spec.merge**2 * spec.hidden_size, spec.projector_size
    x = graph.rms_norm(x, checkpoint.float32("mlp1.0.weight", (width,)), spec.projector_norm_eps)
    x = graph.relu2(graph.linear(x, checkpoint.float32("mlp1.1.weight", (projector, width))))
    hidden = checkpoint.spec.decoder.hidden_size
    return graph.linear(x, checkpoint.float32("mlp1.3.weight", (hidden, projector)))
