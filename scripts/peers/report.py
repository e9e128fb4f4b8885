"""From seconds to figures: what the comparison prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

Seconds = Mapping[str, Sequence[float]]
"""By engine, one a round."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one engine did. Ratios compare the same rounds: ours is `reference`."""

    name: str
    mb_a_token: float
    decode_tokens_s: float
    of_the_limit: float
    """Share of the memory's measured bandwidth that decoding uses."""
    decode_ratio: float
    """How many times faster ours decodes."""
    busy_tokens_s: float | None
    busy_loss: float | None
    """Share of its speed that decoding loses beside a busy process."""
    prefill_tokens_s: float
    prefill_ratio: float
    cosine: float | None
    """Of its logits with those of transformers in float32."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of every round of one run."""

    decode: Seconds
    busy: Seconds
    prefill: Seconds
    read_gb_s: Sequence[float]
    n_decode: int
    n_prefill: int


def rows(
    measured: Measured,
    bytes_a_token: Mapping[str, int],
    cosines: Mapping[str, float],
    reference: str,
) -> list[Row]:
    """One row an engine; medians over rounds, of ratios too."""
    limit_gb_s = median(measured.read_gb_s)
    found = []
    for name, seconds in measured.decode.items():
        decode_tokens_s = measured.n_decode / median(seconds)
        busy = measured.busy.get(name)
        loss = None if busy is None else round(1 - paired(busy, seconds), 3)
        found.append(
            Row(
                name,
                mb_a_token=round(bytes_a_token[name] / 1e6, 1),
                decode_tokens_s=round(decode_tokens_s, 1),
                of_the_limit=round(decode_tokens_s * bytes_a_token[name] / 1e9 / limit_gb_s, 3),
                decode_ratio=round(paired(measured.decode[reference], seconds), 2),
                busy_tokens_s=None if busy is None else round(measured.n_decode / median(busy), 1),
                busy_loss=loss,
                prefill_tokens_s=round(measured.n_prefill / median(measured.prefill[name]), 1),
                prefill_ratio=round(paired(measured.prefill[reference], measured.prefill[name]), 2),
                cosine=None if name not in cosines else round(cosines[name], 4),
            )
        )
    return found


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times longer theirs takes: the median over rounds of each round's own ratio.

    A neighbour that slows one round down slows both sides of it.
    """
    return median(b / a for a, b in zip(ours, theirs, strict=True))


HEADINGS = {
    "name": "engine, weights",
    "mb_a_token": "MB/token",
    "decode_tokens_s": "decode tok/s",
    "of_the_limit": "of limit",
    "decode_ratio": "ours is",
    "busy_tokens_s": "busy tok/s",
    "busy_loss": "lost",
    "prefill_tokens_s": "prefill tok/s",
    "prefill_ratio": "ours is",
    "cosine": "cosine",
}
SHARES, RATIOS = ("of_the_limit", "busy_loss"), ("decode_ratio", "prefill_ratio")


def table(found: Sequence[Row]) -> str:
    """Rows in Markdown."""
    lines = ["| " + " | ".join(HEADINGS.values()) + " |", "|---" * len(HEADINGS) + "|"]
    for row in found:
        cells = (_cell(key, asdict(row)[key]) for key in HEADINGS)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in SHARES:
        return f"{100 * value:.0f} %"
    return f"{value:.2f}x" if key in RATIOS else str(value)
