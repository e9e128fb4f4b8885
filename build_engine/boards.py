"""Which boards there are: their memory, its bandwidth, and what of it no model can have."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
CARVED_OUT = 16
"""ESTIMATE: one part in 16 of a board's memory is never seen by Linux (firmware, display, ...)."""
SYSTEM_BYTES = 3 * GIB // 2
"""ESTIMATE: Linux without a desktop, the service itself, the camera's and the socket's buffers."""
TENSORRT_BYTES = 3 * GIB // 2
"""ESTIMATE: CUDA context, TensorRT and its libraries, the plans without their weights."""


@dataclass(frozen=True, slots=True)
class Board:
    """A module's memory, shared by CPU and GPU.

    Source: NVIDIA's data sheets and product pages, "up to" figures at the highest memory clock.
    AGX Orin: DS-10662-001 v1.8, memory subsystem, 256-bit LPDDR5 at 3200 MHz. Orin NX: DS-10712,
    128-bit LPDDR5. Orin Nano: the Super clocks of JetPack 6.1 (68 GB/s before them). Thor: the
    product pages of T4000 and T5000, 256-bit LPDDR5X.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_s: int
    low_precision: bool
    """It multiplies FP8 and FP4 itself; Orin does not."""

    @property
    def target(self) -> str:
        """Name of the kind of GPU that plans are compiled for."""
        return "thor" if self.low_precision else "orin"

    def reserved_bytes(self) -> dict[str, int]:
        """By owner: memory that is taken before any model is loaded."""
        return {
            "carved out by firmware (estimate)": self.memory_bytes // CARVED_OUT,
            "system and service (estimate)": SYSTEM_BYTES,
            "CUDA and TensorRT (estimate)": TENSORRT_BYTES,
        }


BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board("orin-nano-8", 8 * GIB, 102_000_000_000, low_precision=False),
        Board("orin-nx-16", 16 * GIB, 102_400_000_000, low_precision=False),
        Board("agx-orin-32", 32 * GIB, 204_800_000_000, low_precision=False),
        Board("agx-orin-64", 64 * GIB, 204_800_000_000, low_precision=False),
        Board("thor-64", 64 * GIB, 273_000_000_000, low_precision=True),
        Board("thor-128", 128 * GIB, 273_000_000_000, low_precision=True),
    )
}
