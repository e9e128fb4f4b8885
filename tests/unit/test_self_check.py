"""What a service tries before it says that it is ready."""

from __future__ import annotations

import numpy as np
import pytest
from make_tiny_checkpoint import make_checkpoint

from build_engine.bundle import build_bundle
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.self_check import MAX_DISTANCE, warm_up
from edge.engines.stored_check import check_grid
from edge.errors import EngineError


@pytest.mark.parametrize("preset", ["base", "grouped"])
def test_a_right_engine_is_far_from_the_bound(engine, bundle, preset):
    distances = warm_up(engine(preset), Bundle(bundle(preset)))
    assert set(distances) == {"image", "tubelets", "audio", "logits"}
    assert max(distances.values()) < MAX_DISTANCE / 10, distances


def test_it_is_shown_what_the_bundle_holds_whatever_the_models_sizes(tmp_path):
    """The published model takes larger tubelets, and a larger grid is shown."""
    larger = {"vision_config": {"video_target_num_patches": 256}}
    make_checkpoint(tmp_path / "checkpoint", "base", changes=larger)
    build_bundle(tmp_path / "checkpoint", tmp_path / "bundle", "cpu", lambda *_: None)
    opened = Bundle(tmp_path / "bundle")
    assert check_grid(opened.manifest.spec.vision) == (8, 10)
    assert max(warm_up(CpuEngine(opened, 1), opened).values()) < MAX_DISTANCE / 10


@pytest.mark.parametrize("call", ["encode_image", "encode_tubelets", "encode_audio", "prefill"])
@pytest.mark.parametrize("factor", [-1.0, 0.5, np.nan])
def test_a_wrong_one_does_not_start(engine, bundle, monkeypatch, call, factor):
    own = engine("base")
    right = getattr(own, call)
    monkeypatch.setattr(own, call, lambda *arguments: np.float32(factor) * right(*arguments))
    with pytest.raises(EngineError, match="build-engine verify"):
        warm_up(own, Bundle(bundle("base")))
