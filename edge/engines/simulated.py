"""An engine that computes nothing: it charges what each operation costs on a board to a clock.

So the real loop runs for simulated days in minutes, and its decisions can be looked at. Values mean
nothing; counts and times do. Every cost says where it comes from: "published" is a figure that
others measured, "proxy" one of another model of this size, "our plan" follows from the bytes that
our compiled kernels move, "roofline" is arithmetic of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from edge.clock import NS_PER_MS, VirtualClock
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.model.spec import ModelSpec
from edge.types import Float32, Int32

MEL_FRAMES_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Cost:
    """A call that costs `floor_ms`, and `per_token_ms` for each token."""

    floor_ms: float
    per_token_ms: float
    source: str

    def ms(self, n_tokens: int) -> float:
        """Of one call."""
        return self.floor_ms + n_tokens * self.per_token_ms


@dataclass(frozen=True, slots=True)
class Costs:
    """What the operations cost on one board, with the recipe of which its plan moves least."""

    see: Cost
    """Vision encoder, by tokens of its output (4 patches each)."""
    hear: Cost
    prefill: Cost
    decode: Cost
    past: Cost
    """On top of both, for each token of the context before the call: its keys and values are read
    (floor), and every new token attends to it."""
    snapshot: Cost


KEY_VALUE_BYTES = 6 * 2 * 128 * 2 * 2
"""Of one token: 6 attention layers, 2 heads of 128, keys and values, FP16."""
ATTENTION_FLOP = 6 * 32 * 128 * 2 * 2
"""Of one pair of tokens: 6 layers, 32 heads of 128, two products, 2 a multiply-add."""
STATE_BYTES = 46.8 * 2**20
PLAN_BYTES = {"thor": 3.3e9, "agx-orin-64": 4.7e9}
"""Of one token, which the kernels of decode.plan read and write with an empty context: NVFP4
experts and FP8 linears on Thor; on Orin the experts' weights in NVFP4, all else BF16. Added up over
the kernels of full-size layers that TensorRT-RTX compiled for SM121 and SM86, with our expert
kernels in place of edge::MoE's body."""
BANDWIDTH_BYTES_S = {"thor": 273e9, "agx-orin-64": 204.8e9}
BANDWIDTH_SHARE = 0.75
"""ESTIMATE: of the published bandwidth, what a decode that waits for memory gets."""


def _decode(board: str) -> Cost:
    seconds = PLAN_BYTES[board] / (BANDWIDTH_SHARE * BANDWIDTH_BYTES_S[board])
    gigabytes = f"{PLAN_BYTES[board] / 1e9:.1f} GB a token"
    return Cost(1000 * seconds, 0.0, f"our plan: {gigabytes} at {BANDWIDTH_SHARE:.0%} of the peak")


COSTS: dict[str, Costs] = {
    "thor": Costs(
        see=Cost(0.0, 127.3 / 1664, "published: TensorRT Edge-LLM 0.9.0, ViT of 1,664 tokens"),
        hear=Cost(4.4, 0.05, "roofline: 1.2 GB of BF16 weights at 273 GB/s, 40 % of the peak"),
        prefill=Cost(70.9, 0.0453, "published: 66 tokens 73.9 ms, 2,048 tokens 163.6 ms"),
        decode=_decode("thor"),
        past=Cost(
            KEY_VALUE_BYTES / 273e9 * 1e3,
            ATTENTION_FLOP / (0.4 * 258e12) * 1e3,
            "roofline: 273 GB/s; 40 % of 258 TFLOPS (FP16, dense)",
        ),
        snapshot=Cost(2 * STATE_BYTES / 273e9 * 1e3, 0.0, "roofline: state read and written"),
    ),
    "agx-orin-64": Costs(
        see=Cost(0.0, 0.30, "roofline: 5 GFLOP a token at 40 % of 42 TFLOPS (FP16, dense)"),
        hear=Cost(5.9, 0.08, "roofline: 1.2 GB of FP16 weights at 205 GB/s, 40 % of the peak"),
        prefill=Cost(
            67.2,
            0.70,
            "proxy: Edge-LLM 0.9.0, INT4, Qwen3-30B-A3B 61 tokens 91 ms and 437 (in 8) 389, "
            "Qwen3.5-35B-A3B 296 tokens 300 ms and 2,118 (in 8) 1,402; 0.62 to 0.78 a token",
        ),
        decode=_decode("agx-orin-64"),
        past=Cost(
            KEY_VALUE_BYTES / 205e9 * 1e3,
            ATTENTION_FLOP / (0.4 * 42e12) * 1e3,
            "roofline: 205 GB/s; 40 % of 42 TFLOPS (FP16, dense)",
        ),
        snapshot=Cost(2 * STATE_BYTES / 205e9 * 1e3, 0.0, "roofline: state read and written"),
    ),
}


@dataclass(slots=True)
class SimulatedState:
    """A state without content."""

    n_tokens: int = 0


class SimulatedEngine:
    """Charges costs; its embeddings are one value wide."""

    def __init__(self, costs: Costs, clock: VirtualClock, spec: ModelSpec) -> None:
        """Take the sizes of `spec`, except for the width of an embedding."""
        self._costs, self._clock = costs, clock
        narrow = msgspec.structs.replace(spec.decoder, hidden_size=1, vocab_size=2)
        self._spec = msgspec.structs.replace(spec, decoder=narrow)
        self._logits = np.array([0.0, 1.0], np.float32)
        self.slowdown = 1.0
        """Factor on every cost: a board that is hot."""
        self.stall_ms = 0.0
        """The next operation takes this much longer."""
        self.busy_ms = 0.0

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def _charge(self, cost: Cost, n_tokens: int, n_past: int = 0) -> None:
        ms = cost.ms(n_tokens) + n_past * self._costs.past.ms(n_tokens)
        ms = ms * self.slowdown + self.stall_ms
        self.stall_ms = 0.0
        self.busy_ms += ms
        self._clock.sleep_until(self._clock.now_ns() + round(ms * NS_PER_MS))

    def encode_image(self, patches: Float32, _grid: tuple[int, int]) -> Float32:
        embeddings: Float32 = self.encode_tubelets(patches[None], _grid)[0]
        return embeddings

    def encode_tubelets(self, patches: Float32, _grid: tuple[int, int]) -> Float32:
        n, n_patches = patches.shape[:2]
        n_tokens = n_patches // self._spec.vision.merge**2
        self._charge(self._costs.see, n * n_tokens)
        return np.zeros((n, n_tokens, 1), np.float32)

    def encode_audio(self, mel: Float32) -> Float32:
        n_tokens = -(-len(mel) // MEL_FRAMES_PER_TOKEN)
        self._charge(self._costs.hear, n_tokens)
        return np.zeros((n_tokens, 1), np.float32)

    def embed(self, ids: Int32) -> Float32:
        return np.zeros((len(ids), 1), np.float32)

    def new_state(self) -> SimulatedState:
        return SimulatedState()

    def n_tokens(self, state: SimulatedState) -> int:
        return state.n_tokens

    def prefill(self, state: SimulatedState, embeddings: Float32) -> Float32:
        for start in range(0, len(embeddings), MAX_PREFILL_TOKENS):
            n = min(MAX_PREFILL_TOKENS, len(embeddings) - start)
            self._charge(self._costs.prefill, n, state.n_tokens)
            state.n_tokens += n
        return self._logits

    def decode(self, state: SimulatedState, _token: int) -> Float32:
        self._charge(self._costs.decode, 1, state.n_tokens)
        state.n_tokens += 1
        return self._logits

    def snapshot(self, state: SimulatedState) -> int:
        self._charge(self._costs.snapshot, 0)
        return state.n_tokens

    def restore(self, state: SimulatedState, snapshot: int) -> None:
        self._charge(self._costs.snapshot, 0)
        state.n_tokens = snapshot
