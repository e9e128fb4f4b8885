"""Calibration without ModelOpt: what runs through a block, and what its quantizers are shown.

Stand-ins take the place of ModelOpt and torch; tests/oracle/test_calibration.py has the real ones.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from build_engine.checkpoint import Checkpoint
from build_engine.checkpoint_weights import CheckpointWeights
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.reference_ops import ReferenceOps
from edge.engines.state import DecoderState
from edge.model.decoder import block


class Quantizer:
    """As ModelOpt's: it collects only where it is told to, and tells what it has loaded."""

    def __init__(self, config):
        self.config, self.quantizes, self.collects = config, True, False
        self.largest, self.amax = 0.0, None

    def disable_quant(self):
        self.quantizes = False

    def enable_calib(self):
        self.collects = True

    def load_calib_amax(self):
        self.amax = np.float32(self.largest)

    def __call__(self, values):
        assert not self.quantizes
        assert values.flags.c_contiguous
        if self.collects:
            self.largest = max(self.largest, float(np.abs(values).max()))


@pytest.fixture
def calibrate(monkeypatch):
    """The module, on stand-ins."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    parts = {
        "torch": {"from_numpy": lambda values: values, "__version__": "2.13"},
        "modelopt": {"__version__": "0.47.0"},
        "modelopt.torch": {},
        "modelopt.torch.quantization": {},
        "modelopt.torch.quantization.config": {"QuantizerAttributeConfig": SimpleNamespace},
        "modelopt.torch.quantization.nn": {"TensorQuantizer": Quantizer},
    }
    for name, values in parts.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "build_engine.calibrate", raising=False)
    yield importlib.import_module("build_engine.calibrate")
    sys.modules.pop("build_engine.calibrate", None)


@pytest.fixture
def source(checkpoint):
    """Layers M E M * E M * E."""
    return Checkpoint(checkpoint("base"))


def prompts(hidden, *lengths):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, hidden), np.float32) for n in lengths]


def expected(source, layer, samples):
    """Each sample as one sequence, and the largest magnitude at each linear's input."""
    seen = {}

    class Watching(ReferenceOps):
        def _see(self, name, values):
            seen[name] = max(seen.get(name, 0.0), float(np.abs(values).max()))

        def linear(self, x, weight):
            self._see(weight, x)
            y = super().linear(x, weight)
            if weight.endswith(("k_proj", "v_proj")):
                self._see(f"{weight}.output", y)
            return y

        def expert_linear(self, x, weight, expert):
            self._see(f"{weight}.{expert}", x)
            return super().expert_linear(x, weight, expert)

    spec, weights, after = source.spec.decoder, CheckpointWeights(source), []
    for rows in samples:
        ops = Watching(spec, weights, DecoderState.empty(spec))
        after.append(block(ops, spec, layer, rows))
    return after, seen


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_every_linear_of_a_block_is_watched(calibrate, source, layer):
    """Mamba2, experts, attention; samples that are longer than a call go on where they were."""
    hidden = source.spec.decoder.hidden_size
    samples = prompts(hidden, 5, MAX_PREFILL_TOKENS + 7, 1)
    after, largest = calibrate.calibrate_block(source, layer, samples)
    wanted, seen = expected(source, layer, samples)
    assert [len(rows) for rows in after] == [5, MAX_PREFILL_TOKENS + 7, 1]
    for got, rows in zip(after, wanted, strict=True):
        np.testing.assert_allclose(got, rows, atol=1e-4)
    assert set(largest) == set(seen)
    assert largest == pytest.approx(seen, rel=1e-4)
    assert all(isinstance(value, float) for value in largest.values())
    at = f"layers.{layer}"
    names = {
        0: {f"{at}.in_proj", f"{at}.out_proj"},
        3: {f"{at}.{k}_proj" for k in "qkvo"} | {f"{at}.{k}_proj.output" for k in "kv"},
    }
    if layer in names:
        assert set(largest) == names[layer]
    else:
        assert {f"{at}.gate", f"{at}.shared_up", f"{at}.shared_down"} < set(largest)
        assert sum(name.startswith(f"{at}.experts_up.") for name in largest) > 3


def test_experts_see_all_samples_at_once_and_the_others_a_call_at_a_time(
    calibrate, source, monkeypatch
):
    calls = []
    real = calibrate.block

    def counted(ops, spec, layer, rows):
        calls.append((layer, len(rows), ops.state.n_tokens))
        return real(ops, spec, layer, rows)

    monkeypatch.setattr(calibrate, "block", counted)
    samples = prompts(source.spec.decoder.hidden_size, MAX_PREFILL_TOKENS + 4, 3)
    for layer in (1, 0):
        calibrate.calibrate_block(source, layer, samples)
    assert calls == [
        (1, MAX_PREFILL_TOKENS + 7, 0),
        (0, MAX_PREFILL_TOKENS, 0),
        (0, 4, MAX_PREFILL_TOKENS),
        (0, 3, 0),
    ]


def test_the_quantizers_are_e4m3_of_a_whole_tensor_and_nothing_is_fetched(calibrate):
    observers = calibrate.Observers()
    observers.see("a", np.float32([[1, -3], [2, 0]]).T)
    observers.see("a", np.float32([[-2]]))
    observers.see("b", np.float32([[0.5]]))
    assert observers.largest() == {"a": 3, "b": 0.5}
    assert [q.config for q in observers.quantizers.values()] == [
        SimpleNamespace(num_bits=(4, 3), axis=None)
    ] * 2
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert calibrate.versions() == {
        "modelopt": "0.47.0", "torch": "2.13", "numpy": np.__version__
    }  # fmt: skip
