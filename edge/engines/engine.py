"""What an engine promises. `cpu.py` is one; others execute the same bundle elsewhere.

Laws, each a property test in tests/unit/test_laws.py: prefill in any split equals prefill at
once; decode(token) equals prefill(embed([token])); restore(snapshot) is bit-identical; two states
never touch each other.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, TypeVar

from edge.model.spec import ModelSpec
from edge.types import Float32, Int32

State = TypeVar("State")
Snapshot = TypeVar("Snapshot")

MAX_PREFILL_TOKENS = 256
"""Engines cut longer prefills themselves: the scan of one call is quadratic in its tokens."""
MAX_AUDIO_FRAMES = 3000
"""Mel frames of the longest clip (30 s)."""


class Engine(Protocol[State, Snapshot]):
    """Executes a bundle. H is the hidden size; a state belongs to the engine that made it."""

    @property
    def spec(self) -> ModelSpec:
        """The model that this engine executes."""

    def encode_image(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        """One image -> embeddings.

        Args:
            patches: [rows * columns, 3 * patch * patch], normalised.
            grid: rows and columns, both even.
        Returns:
            [rows * columns / 4, H].
        """

    def encode_tubelets(self, patches: Float32, grid: tuple[int, int]) -> Float32:
        """Tubelets of one size -> embeddings [n, rows * columns / 4, H].

        Args:
            patches: [n, rows * columns, frames * 3 * patch * patch], normalised.
        """

    def encode_audio(self, mel: Float32) -> Float32:
        """One clip -> embeddings [ceil(frames / 8), H].

        Args:
            mel: [frames, mels], valid frames only, at most MAX_AUDIO_FRAMES.
        """

    def embed(self, ids: Int32) -> Float32:
        """Token ids [n] -> embeddings [n, H]."""

    def new_state(self) -> State:
        """An empty state."""

    def n_tokens(self, state: State) -> int:
        """How many tokens the state has seen."""

    def prefill(self, state: State, embeddings: Float32) -> Float32:
        """Advance the state over [n, H] embeddings, n >= 1; logits [vocabulary] after the last."""

    def decode(self, state: State, token: int) -> Float32:
        """Advance the state by one token; logits [vocabulary]."""

    def snapshot(self, state: State) -> Snapshot:
        """Remember the state as it is now."""

    def restore(self, state: State, snapshot: Snapshot) -> None:
        """Bring the state back to a snapshot of its own, bit by bit."""


AnyEngine: TypeAlias = Engine[Any, Any]
