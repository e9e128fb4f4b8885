"""The decoder's weights as the cpu engine maps them: one file, named by layer, experts stacked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_engine.checkpoint import Checkpoint
from build_engine.stored import Layout, stored, stored_layout
from edge.engines.layout import FLOAT32, decoder_weights
from edge.engines.safetensors import SafetensorsWriter
from edge.errors import CheckpointError
from edge.model.spec import DecoderSpec

log = logging.getLogger(__name__)

ROOT = "language_model.backbone"


@dataclass(frozen=True, slots=True)
class Packed:
    """One weight of the bundle and where it comes from."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    """Checkpoint tensors; more than one are stacked along a new first dimension. None: zeros."""
    source_shape: tuple[int, ...]
    matrix: bool
    """Kept as the checkpoint has it, quantized or BF16; all else becomes float32."""

    @property
    def linear(self) -> bool:
        """A recipe may quantize it: a matrix, and not the table of embeddings."""
        return self.matrix and self.name != "embeddings"

    def layout(self, checkpoint: Checkpoint) -> Layout:
        """Name, dtype and shape of each tensor that holds it, without reading any.

        Raises:
            CheckpointError: the stacked experts are not all in one format.
        """
        if not self.matrix:
            return {self.name: (FLOAT32, self.shape)}
        parts = [stored_layout(checkpoint, source, self.source_shape) for source in self.sources]
        for source, part in zip(self.sources, parts, strict=True):
            if part != parts[0]:
                raise CheckpointError(
                    source,
                    f"is in another format than {self.sources[0]}",
                    "quantize all experts of a layer alike",
                )
        stack = self.shape[: len(self.shape) - len(self.source_shape)]
        return {self.name + end: (dtype, stack + shape) for end, (dtype, shape) in parts[0].items()}

    def write(self, checkpoint: Checkpoint, writer: SafetensorsWriter) -> None:
        """Write its tensors, one source at a time."""
        for name, (_, shape) in self.layout(checkpoint).items():
            suffix = name.removeprefix(self.name)
            writer.write(name, self._values(checkpoint, suffix, shape))

    def _values(
        self, checkpoint: Checkpoint, suffix: str, shape: tuple[int, ...]
    ) -> Iterator[NDArray[Any]]:
        if not self.sources:
            yield np.zeros(shape, np.float32)
        for source in self.sources:
            if self.matrix:
                yield stored(checkpoint, source, self.source_shape, suffix)
            else:
                yield checkpoint.float32(source, self.source_shape).reshape(shape)


SOURCES = {
    "norm": "norm.weight",
    "in_proj": "mixer.in_proj.weight",
    "conv_weight": "mixer.conv1d.weight",
    "conv_bias": "mixer.conv1d.bias",
    "dt_bias": "mixer.dt_bias",
    "A_log": "mixer.A_log",
    "D": "mixer.D",
    "gated_norm": "mixer.norm.weight",
    "out_proj": "mixer.out_proj.weight",
    **{f"{name}_proj": f"mixer.{name}_proj.weight" for name in "qkvo"},
    "gate": "mixer.gate.weight",
    "gate_bias": "mixer.gate.e_score_correction_bias",
    **{f"experts_{name}": f"mixer.experts.{{}}.{name}_proj.weight" for name in ("up", "down")},
    **{f"shared_{name}": f"mixer.shared_experts.{name}_proj.weight" for name in ("up", "down")},
}
"""By a weight's name in its block: the checkpoint's."""
OUTSIDE_BLOCKS = {
    "embeddings": f"{ROOT}.embeddings.weight",
    "norm": f"{ROOT}.norm_f.weight",
    "head": "language_model.lm_head.weight",
}


def packed_tensors(spec: DecoderSpec) -> Iterator[Packed]:
    """Every tensor of the decoder, in the order in which a token meets it."""
    for weight in decoder_weights(spec):
        block, _, name = weight.name.rpartition(".")
        source = f"{ROOT}.{block}.{SOURCES[name]}" if block else OUTSIDE_BLOCKS[name]
        sources: tuple[str, ...] = (source,)
        if weight.n_stacked:
            sources = tuple(source.format(expert) for expert in range(weight.n_stacked))
        elif name == "conv_bias" and not spec.conv_bias:
            sources = ()
        shape = weight.shape
        if name == "conv_weight":
            shape = (shape[0], 1, shape[1])
        is_matrix = weight.stored != "float32"
        yield Packed(weight.name, weight.stack + weight.shape, sources, shape, is_matrix)


def linears(spec: DecoderSpec) -> list[str]:
    """Modules below `language_model.` whose format a recipe decides."""
    return [
        source.removeprefix("language_model.").removesuffix(".weight")
        for packed in packed_tensors(spec)
        if packed.linear
        for source in packed.sources
    ]


def write_decoder(
    checkpoint: Checkpoint, path: Path, progress: Callable[[str, int, int], None]
) -> None:
    """Write the decoder of `checkpoint` to `path`, holding one matrix at a time."""
    write_tensors(checkpoint, list(packed_tensors(checkpoint.spec.decoder)), path, progress)
    if checkpoint.saturated:
        log.warning(
            "%d block scales of %d matrices are NaN over values, as of an older ModelOpt; "
            "they are read as 448, the largest that there is",
            sum(checkpoint.saturated.values()),
            len(checkpoint.saturated),
        )


def write_tensors(
    checkpoint: Checkpoint,
    tensors: Sequence[Packed],
    path: Path,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write some of the decoder's tensors as a bundle holds them."""
    layout = {name: part for t in tensors for name, part in t.layout(checkpoint).items()}
    with SafetensorsWriter(path, layout) as writer:
        for done, tensor in enumerate(tensors):
            progress("decoder", done, len(tensors))
            tensor.write(checkpoint, writer)
            checkpoint.release()
    _leave_page_cache(path)
    progress("decoder", len(tensors), len(tensors))


def _leave_page_cache(path: Path) -> None:
    """Who reads the file next gets it in large pages; those of writing are small and stay so."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
