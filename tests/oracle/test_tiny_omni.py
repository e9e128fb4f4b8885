"""Training of the small model: the same mathematics as the runtime, the same run every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "tiny_omni"
RELATIVE_TOLERANCE = 1e-5  # measured: 8e-7

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The model in torch, and the engine that runs what was exported of it."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import settings
        from export import write_texts, write_weights
        from model import TinyOmni

        from build_engine.bundle import build_bundle
        from edge.engines.bundle import Bundle
        from edge.engines.cpu import CpuEngine
    finally:
        sys.path.remove(str(SCRIPTS))
    folder = tmp_path_factory.mktemp("tiny_omni")
    model = TinyOmni(settings.config(), seed=3).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "gate/weight" not in name:  # all else is rounded to bfloat16 when it is exported
                values.copy_(values.to(torch.bfloat16).float())
    write_texts(folder / "checkpoint")
    write_weights(folder / "checkpoint", model.state_dict())
    build_bundle(folder / "checkpoint", folder / "bundle", "cpu", lambda *_: None)
    return model, CpuEngine(Bundle(folder / "bundle"), n_threads=1)


def difference(got, expected):
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_the_trained_model_is_the_model_that_runs(pair):
    model, engine = pair
    rng = np.random.default_rng(0)
    tubelets = rng.standard_normal((2, 60, 1536), np.float32)
    image = rng.standard_normal((48, 768), np.float32)
    mel = rng.standard_normal((152, 128), np.float32)
    rows = np.concatenate(
        [
            engine.embed(rng.integers(0, 500, 60, np.int32)),
            rng.standard_normal((60, engine.spec.decoder.hidden_size), np.float32),
        ]
    )
    with torch.no_grad():
        seen = model.see(torch.from_numpy(tubelets), "video_embedder", (6, 10)).numpy()
        looked = model.see(torch.from_numpy(image)[None], "embedder", (6, 8))[0].numpy()
        heard = model.hear(torch.from_numpy(mel)[None])[0].numpy()
        logits = model.decode(torch.from_numpy(rows)[None])[0, -1].numpy()
    worst = {
        "tubelets": difference(engine.encode_tubelets(tubelets, (6, 10)), seen),
        "image": difference(engine.encode_image(image, (6, 8)), looked),
        "audio": difference(engine.encode_audio(mel), heard),
        "logits": difference(engine.prefill(engine.new_state(), rows), logits),
    }
    assert max(worst.values()) <= RELATIVE_TOLERANCE, worst


def train(work: Path, *words: object) -> dict[str, float]:
    """Some steps of the first stage; the saved running averages."""
    command = [sys.executable, str(SCRIPTS / "train_vision.py"), "--work", str(work)]
    subprocess.run([*command, *map(str, words)], check=True, capture_output=True)
    state = torch.load(work / "vision.pt", weights_only=True)
    return {"step": state["step"], **state["smooth"]}


def test_a_run_is_repeatable_and_continues_where_it_ended(tmp_path):
    steps = ("--steps", 8, "--threads", 1)
    whole = train(tmp_path / "whole", *steps)
    again = train(tmp_path / "again", *steps)
    assert whole == again
    train(tmp_path / "parts", *steps, "--stop-after", 3)
    assert train(tmp_path / "parts", *steps) == pytest.approx(whole, rel=1e-6)
    assert whole["step"] == 8
    assert json.dumps(whole)
