"""How far one bundle's decoder is from another's, block by block and in what it would say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from build_engine.chart import bars
from edge.engines.cpu import CpuEngine
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.errors import BundleError
from edge.model.decoder import blocks, head
from edge.types import Float32


@dataclass(frozen=True)
class Comparison:
    """Over all rows of all samples; the reference is the bundle that is compared against."""

    n_tokens: int
    layers: str
    """Kinds of the blocks: M Mamba2, * attention, E experts."""
    cosine: list[float]
    """By block: of the residual stream after it, mean over rows."""
    relative_error: list[float]
    """By block: norm of the difference / norm of the reference."""
    kl: float
    """Mean Kullback-Leibler divergence of the next-token distributions, nats."""
    top_1: float
    """Share of rows where both find the same token likeliest."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def picture(self) -> str:
        """Relative error by block as an SVG."""
        error = {f"{i} {kind}": self.relative_error[i] for i, kind in enumerate(self.layers)}
        return bars("Relative error of the residual stream after each block", {"error": error})


def compare(engine: CpuEngine, reference: CpuEngine, samples: Sequence[Float32]) -> Comparison:
    """Run the same embedded prompts [n, H] through both decoders.

    Raises:
        BundleError: they are not of one architecture.
    """
    if engine.spec.decoder != reference.spec.decoder:
        raise BundleError(
            "bundle", "has another decoder than the one it is compared with", "give two of a kind"
        )
    n_layers = len(engine.spec.decoder.pattern)
    cosine, difference, size = (np.zeros(n_layers) for _ in range(3))
    kl = agreed = 0.0
    for rows in samples:
        both = zip(_stages(engine, rows), _stages(reference, rows), strict=True)
        for (stage, ours), (_, theirs) in both:
            if stage < n_layers:
                norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
                cosine[stage] += ((ours * theirs).sum(axis=1) / norms).sum()
                difference[stage] += np.square(ours - theirs).sum()
                size[stage] += np.square(theirs).sum()
            else:
                agreed += float((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
                kl += sum(map(_divergence, theirs, ours))
    n_tokens = sum(map(len, samples))
    return Comparison(
        n_tokens=n_tokens,
        layers=engine.spec.decoder.pattern,
        cosine=(cosine / n_tokens).tolist(),
        relative_error=np.sqrt(difference / size).tolist(),
        kl=kl / n_tokens,
        top_1=agreed / n_tokens,
    )


def _stages(engine: CpuEngine, rows: Float32) -> Iterator[tuple[int, Float32]]:
    """The residual stream after each block and then the logits, a chunk of rows at a time.

    One of them is held at a time, however long the prompt is.

    Yields:
        The block's number, or how many there are with the logits; the values.
    """
    decoder, state = engine.spec.decoder, engine.new_state()
    for start in range(0, len(rows), MAX_PREFILL_TOKENS):
        chunk = rows[start : start + MAX_PREFILL_TOKENS]
        ops = engine.ops(state)
        for n, after in enumerate(blocks(ops, decoder, chunk)):
            yield n, after
        yield len(decoder.pattern), head(ops, after)
        state.n_tokens += len(chunk)


def _divergence(reference: Float32, ours: Float32) -> float:
    """Kullback-Leibler divergence of one row's distribution from the reference's, nats."""
    p, q = _log_softmax(reference), _log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: Float32) -> np.ndarray[Any, np.dtype[np.float64]]:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
