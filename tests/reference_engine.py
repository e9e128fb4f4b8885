"""The cpu engine on numpy instead of the kernels."""

from __future__ import annotations

from edge.engines.cpu import CpuEngine
from edge.engines.reference_ops import ReferenceOps
from edge.engines.state import DecoderState
from edge.model.ops import Ops
from edge.types import Float32


class ReferenceEngine(CpuEngine):
    """What the kernels are held to."""

    def ops(self, state: DecoderState) -> Ops[Float32]:
        return ReferenceOps(self.spec.decoder, self.weights, state)
