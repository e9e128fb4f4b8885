"""What a service tries before it says that it is ready."""

from __future__ import annotations

import numpy as np
import pytest

from edge.engines.bundle import Bundle
from edge.engines.self_check import MAX_DISTANCE, warm_up
from edge.errors import EngineError


@pytest.mark.parametrize("preset", ["base", "grouped"])
def test_a_right_engine_is_far_from_the_bound(engine, bundle, preset):
    distances = warm_up(engine(preset), Bundle(bundle(preset)))
    assert set(distances) == {"image", "tubelets", "audio", "logits"}
    assert max(distances.values()) < MAX_DISTANCE / 10, distances


@pytest.mark.parametrize("call", ["encode_image", "encode_tubelets", "encode_audio", "prefill"])
@pytest.mark.parametrize("factor", [-1.0, 0.5, np.nan])
def test_a_wrong_one_does_not_start(engine, bundle, monkeypatch, call, factor):
    own = engine("base")
    right = getattr(own, call)
    monkeypatch.setattr(own, call, lambda *arguments: np.float32(factor) * right(*arguments))
    with pytest.raises(EngineError, match="build-engine verify"):
        warm_up(own, Bundle(bundle("base")))
