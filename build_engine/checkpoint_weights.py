"""A checkpoint's decoder weights under the names that the runtime's decoder uses."""

from __future__ import annotations

import numpy as np

from build_engine.checkpoint import Checkpoint
from build_engine.decoder_weights import Packed, packed_tensors
from edge.types import Float32, Int32


class CheckpointWeights:
    """Reads a weight when it is used and keeps none."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._packed = {packed.name: packed for packed in packed_tensors(checkpoint.spec.decoder)}

    def __getitem__(self, name: str) -> Float32:
        """One whole weight that is not a stack of experts."""
        packed = self._packed[name]
        return self._read(packed, 0).reshape(packed.shape)

    def expert(self, name: str, index: int) -> Float32:
        """One matrix out of a stack."""
        return self._read(self._packed[name], index)

    def rows(self, name: str, ids: Int32) -> Float32:
        """Chosen rows of a table."""
        packed = self._packed[name]
        table = self._checkpoint.tensor(packed.sources[0], packed.source_shape)
        return table[ids].astype("float32")

    def _read(self, packed: Packed, index: int) -> Float32:
        if not packed.sources:
            return np.zeros(packed.source_shape, np.float32)
        return self._checkpoint.float32(packed.sources[index], packed.source_shape)
