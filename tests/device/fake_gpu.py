"""The tensorrt engine on a fake GPU, and a look into that GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fake_cuda import FakeDriver
from fake_tensorrt import FakeTensorRT

from edge.engines.bundle import Bundle
from edge.engines.cuda import Cuda
from edge.engines.tensorrt import DeviceState, TensorrtEngine


@dataclass
class Machine:
    """A GPU and the engine on it."""

    driver: FakeDriver
    trt: FakeTensorRT
    cuda: Cuda
    engine: TensorrtEngine

    def contents(self, state: DeviceState) -> dict[str, Any]:
        """Bytes of a state: the rows of the cache that count, and the half that counts."""
        engine, found = self.engine, {}
        engine._cuda.synchronize(engine._stream)
        for i, name in enumerate(engine._staged):
            n_bytes = state.n_tokens * engine._kv_row_bytes
            address = state.place.cache + i * engine._cache_pitch
            found[name] = self.driver.read(address, n_bytes) if n_bytes else np.zeros(0, np.uint8)
        half = state.place.halves[state.half]
        found["recurrent"] = self.driver.read(half, engine._recurrent_bytes)
        return found


def load(bundle: Bundle, driver: FakeDriver, **sizes: int) -> Machine:
    """Start the engine."""
    trt = FakeTensorRT(driver)
    cuda = Cuda(driver)
    return Machine(driver, trt, cuda, TensorrtEngine(bundle, trt, cuda, **sizes))  # type: ignore[arg-type]
