"""How far one bundle's decoder is from another's, block by block and in what it would say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from build_engine.chart import bars
from edge.engines.cpu import CpuEngine
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
    pairs = [zip(_stages(engine, x), _stages(reference, x), strict=True) for x in samples]
    n_layers = len(engine.spec.decoder.pattern)
    cosine, difference, size = (np.zeros(n_layers) for _ in range(3))
    kl = agreed = 0.0
    for pair in pairs:
        for stage, (ours, theirs) in enumerate(pair):
            if stage < n_layers:
                norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
                cosine[stage] += ((ours * theirs).sum(axis=1) / norms).sum()
                difference[stage] += np.square(ours - theirs).sum()
                size[stage] += np.square(theirs).sum()
            else:
                p, q = _log_softmax(theirs), _log_softmax(ours)
                kl += float((np.exp(p) * (p - q)).sum())
                agreed += float((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    n_tokens = sum(map(len, samples))
    return Comparison(
        n_tokens=n_tokens,
        layers=engine.spec.decoder.pattern,
        cosine=(cosine / n_tokens).tolist(),
        relative_error=np.sqrt(difference / size).tolist(),
        kl=kl / n_tokens,
        top_1=agreed / n_tokens,
    )


def _stages(engine: CpuEngine, rows: Float32) -> Sequence[Float32]:
    """The residual stream after each block, then the logits of every row."""
    ops = engine.ops(engine.new_state())
    after = list(blocks(ops, engine.spec.decoder, rows))
    return [*after, head(ops, after[-1])]


def _log_softmax(logits: Float32) -> np.ndarray[Any, np.dtype[np.float64]]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
