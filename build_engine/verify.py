"""Self-check: a bundle carries inputs and what they gave; an engine must reproduce them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engines.bundle import REBUILD, SELF_CHECK, Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.engine import AnyEngine
from edge.errors import BundleError
from edge.model.spec import ModelSpec

RELATIVE_TOLERANCE = 5e-5
"""Of the largest value. BLAS and ONNX Runtime versions differ by about 1e-6 in float32."""
N_TEXT_TOKENS = 24
N_DECODED_TOKENS = 4


def check_inputs(spec: ModelSpec) -> dict[str, NDArray[Any]]:
    """Random inputs of every kind, the same for the same model."""
    rng = np.random.default_rng(0)
    vision = spec.vision
    n_features = 3 * vision.patch_size**2
    return {
        "image": rng.standard_normal((24, n_features), np.float32),
        "tubelets": rng.standard_normal((2, 24, vision.tubelet_frames * n_features), np.float32),
        "mel": rng.standard_normal((43, spec.audio.n_mels), np.float32),
        "ids": rng.integers(0, spec.decoder.vocab_size, N_TEXT_TOKENS, np.int32),
    }


def replay(engine: AnyEngine, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What `engine` makes of the inputs: features of each sense, then logits over all of them."""
    grid = (4, 6)
    image = engine.encode_image(inputs["image"], grid)
    tubelets = engine.encode_tubelets(inputs["tubelets"], grid)
    audio = engine.encode_audio(inputs["mel"])
    text = engine.embed(inputs["ids"])
    state = engine.new_state()
    rows = np.concatenate([image, *tubelets, audio, text])
    logits = [engine.prefill(state, rows)]
    for token in inputs["ids"][:N_DECODED_TOKENS]:
        logits.append(engine.decode(state, int(token)))
    return {"image": image, "tubelets": tubelets, "audio": audio, "logits": np.stack(logits)}


def write_self_check(engine: AnyEngine, folder: Path) -> None:
    """Store the inputs and outputs as the bundle's selfcheck.npz."""
    inputs = check_inputs(engine.spec)
    outputs = replay(engine, inputs)
    stored: dict[str, Any] = {f"input.{name}": values for name, values in inputs.items()}
    stored |= {f"output.{name}": values for name, values in outputs.items()}
    np.savez(folder / SELF_CHECK, **stored)


def verify(path: Path) -> dict[str, float]:
    """Open a bundle, check every byte, replay its self-check.

    Returns:
        The largest relative difference of each output.
    Raises:
        BundleError: it is damaged, or an output differs.
    """
    bundle = Bundle(path)
    stored = bundle.self_check()
    inputs = {k.removeprefix("input."): v for k, v in stored.items() if k.startswith("input.")}
    differences = {}
    for name, values in replay(CpuEngine(bundle, exact=True, frugal=True), inputs).items():
        expected = stored[f"output.{name}"]
        difference = float(np.abs(values - expected).max() / np.abs(expected).max())
        differences[name] = difference
        if not difference <= RELATIVE_TOLERANCE:
            raise BundleError(
                path,
                f"self-check of {name} differs by {difference:.1e} of its largest value",
                f"check the machine's numpy and onnxruntime, or {REBUILD}",
            )
    return differences
