"""The tensorrt engine on a fake GPU, and a look into that GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from fake_cuda import FakeDriver
from fake_tensorrt import VERSION, FakeTensorRT

from build_engine.bundle import save_manifest
from edge.engines.bundle import MANIFEST, Bundle, Manifest, Plans
from edge.engines.cuda import Cuda
from edge.engines.hashing import file_entry
from edge.engines.tensorrt import PLANS, DeviceState, TensorrtEngine

COMPILED = Plans(tensorrt=VERSION, compute_capability="8.7", max_past_rows=640)


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


def describe_plans(folder: Path, plans: Plans = COMPILED) -> None:
    """Write a bundle's manifest as `build-engine compile` leaves it."""
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    files = {name: file_entry(folder / name) for name in (*manifest.files, *PLANS)}
    save_manifest(msgspec.structs.replace(manifest, files=files, plans=plans), folder)


def redescribed(folder: Path) -> Bundle:
    """A bundle whose plans were changed since."""
    describe_plans(folder)
    return Bundle(folder)
