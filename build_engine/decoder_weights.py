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
from build_engine.stored import FLOAT32, Layout, stored, stored_layout
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


def packed_tensors(spec: DecoderSpec) -> Iterator[Packed]:
    """Every tensor of the decoder, in the order in which a token meets it."""

    def one(name: str, source: str, *shape: int) -> Packed:
        return Packed(name, shape, (source,), shape, matrix=False)

    def matrix(name: str, source: str, *shape: int) -> Packed:
        return Packed(name, shape, (source,), shape, matrix=True)

    hidden, vocab = spec.hidden_size, spec.vocab_size
    yield matrix("embeddings", f"{ROOT}.embeddings.weight", vocab, hidden)
    for layer, letter in enumerate(spec.pattern):
        at, mixer = f"layers.{layer}", f"{ROOT}.layers.{layer}.mixer"
        yield one(f"{at}.norm", f"{ROOT}.layers.{layer}.norm.weight", hidden)
        if letter == "M":
            width = spec.d_inner + spec.conv_dim + spec.mamba_n_heads
            yield matrix(f"{at}.in_proj", f"{mixer}.in_proj.weight", width, hidden)
            yield Packed(
                f"{at}.conv_weight",
                (spec.conv_dim, spec.conv_kernel),
                (f"{mixer}.conv1d.weight",),
                (spec.conv_dim, 1, spec.conv_kernel),
                matrix=False,
            )
            bias = (f"{mixer}.conv1d.bias",) if spec.conv_bias else ()
            channels = (spec.conv_dim,)
            yield Packed(f"{at}.conv_bias", channels, bias, channels, matrix=False)
            for name in ("dt_bias", "A_log", "D"):
                yield one(f"{at}.{name}", f"{mixer}.{name}", spec.mamba_n_heads)
            yield one(f"{at}.gated_norm", f"{mixer}.norm.weight", spec.d_inner)
            yield matrix(f"{at}.out_proj", f"{mixer}.out_proj.weight", hidden, spec.d_inner)
        elif letter == "*":
            q, kv = (n * spec.head_dim for n in (spec.n_q_heads, spec.n_kv_heads))
            for name, rows in (("q", q), ("k", kv), ("v", kv)):
                yield matrix(f"{at}.{name}_proj", f"{mixer}.{name}_proj.weight", rows, hidden)
            yield matrix(f"{at}.o_proj", f"{mixer}.o_proj.weight", hidden, q)
        else:
            yield one(f"{at}.gate", f"{mixer}.gate.weight", spec.n_experts, hidden)
            correction = f"{mixer}.gate.e_score_correction_bias"
            yield one(f"{at}.gate_bias", correction, spec.n_experts)
            shapes = {"up": (spec.expert_size, hidden), "down": (hidden, spec.expert_size)}
            for name, shape in shapes.items():
                experts = range(spec.n_experts)
                sources = tuple(f"{mixer}.experts.{e}.{name}_proj.weight" for e in experts)
                stacked = (spec.n_experts, *shape)
                yield Packed(f"{at}.experts_{name}", stacked, sources, shape, matrix=True)
            shared = spec.shared_expert_size
            for name, shape in (("up", (shared, hidden)), ("down", (hidden, shared))):
                source = f"{mixer}.shared_experts.{name}_proj.weight"
                yield matrix(f"{at}.shared_{name}", source, *shape)
    yield one("norm", f"{ROOT}.norm_f.weight", hidden)
    yield matrix("head", "language_model.lm_head.weight", vocab, hidden)


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
