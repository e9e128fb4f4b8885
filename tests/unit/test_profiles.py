"""The shapes that plans are made for: every call that the engine can make is within them."""

from __future__ import annotations

import math

import msgspec
import pytest
from published_config import CONFIG

from build_engine.profiles import (
    audio_profiles,
    decoder_profiles,
    longest_past,
    profiles_of,
    vision_profiles,
)
from edge.engines.engine import MAX_AUDIO_FRAMES, MAX_PREFILL_TOKENS
from edge.model.spec import model_spec

SPEC = model_spec(CONFIG, {})


@pytest.mark.parametrize(
    ("wanted", "rows"), [(1, 256), (255, 256), (256, 256), (257, 512), (8192, 8192)]
)
def test_a_past_is_as_long_as_wanted_in_steps_of_256(wanted, rows):
    assert longest_past(wanted) == rows


@pytest.mark.parametrize(
    ("context", "typical", "longest"), [(300, 512, 512), (4096, 4096, 4096), (9000, 4096, 9216)]
)
def test_the_decoder_takes_one_token_or_a_whole_call_with_any_past(context, typical, longest):
    decode, prefill = decoder_profiles(SPEC.decoder, context)
    hidden = SPEC.decoder.hidden_size
    assert decode.name == "decode"
    assert decode.shapes["embeddings"] == ((1, hidden),) * 3
    assert prefill.name == "prefill"
    most = (MAX_PREFILL_TOKENS, hidden)
    assert prefill.shapes["embeddings"] == ((2, hidden), most, most)
    heads = SPEC.decoder.n_kv_heads, SPEC.decoder.head_dim
    for profile in (decode, prefill):
        past = {name: shape for name, shape in profile.shapes.items() if name != "embeddings"}
        layers = SPEC.decoder.layers("*")
        assert list(past) == [f"past_{kind}.{layer}" for layer in layers for kind in "kv"]
        assert set(past.values()) == {((1, *heads), (typical, *heads), (longest, *heads))}


def vision_of(typical, most):
    return msgspec.structs.replace(SPEC.vision, video_target_patches=typical, max_patches=most)


@pytest.mark.parametrize(
    ("typical", "most", "live"),
    [
        (1024, 13_312, 3328),  # the published sizes: a quarter of the largest picture
        (1024, 8192, 2048),
        (1024, 4096, 2048),  # a tubelet's longest strip has twice as many
        (1024, 2049, 2048),
        (1024, 2048, None),  # one profile is enough
        (1024, 1024, None),
    ],
)
def test_the_live_path_has_a_profile_of_its_own_where_pictures_are_larger(typical, most, live):
    profiles = {p.name: p.shapes["patches"] for p in vision_profiles(vision_of(typical, most))}
    features = 3 * SPEC.vision.patch_size**2 * SPEC.vision.tubelet_frames

    def patches(*counts):
        return tuple((1, n, features) for n in counts)

    expected = {"live": patches(4, typical, live or most)}
    if live:
        expected["large"] = patches(4, live, most)
    assert profiles == expected


@pytest.mark.parametrize(
    ("typical", "most", "live", "large"),
    [
        (1024, 13_312, (2, 32, 128), (2, 58, 256)),  # 58 x 58 holds 3328
        (1025, 2048, (2, 33, 128), None),
        (16, 64, (2, 4, 16), (2, 6, 32)),  # a strip of two rows has half of all patches
    ],
)
def test_sides_of_a_grid(typical, most, live, large):
    table = SPEC.vision.position_grid
    for profile, sides in zip(
        vision_profiles(vision_of(typical, most)), (live, large), strict=False
    ):
        assert sides is not None
        expected = tuple((side, table) for side in sides)
        assert profile.shapes["row_weights"] == profile.shapes["column_weights"] == expected
        least, square, longest = sides
        assert least**2 == profile.shapes["patches"][0][1]
        assert (square - 1) ** 2 < profile.shapes["patches"][1][1] <= square**2
        assert longest <= math.ceil(profile.shapes["patches"][2][1] / 2)


def test_a_clip_is_of_one_frame_to_thirty_seconds():
    (clip,) = audio_profiles(SPEC.audio)
    mels = SPEC.audio.n_mels
    assert clip.name == "clip"
    assert clip.shapes == {"mel": ((1, 1, mels), (1, 500, mels), (1, MAX_AUDIO_FRAMES, mels))}
    assert MAX_AUDIO_FRAMES == 3000


def test_each_graph_has_its_profiles():
    found = profiles_of(SPEC, 1000)
    assert {graph: [p.name for p in profiles] for graph, profiles in found.items()} == {
        "vision": ["live", "large"],
        "audio": ["clip"],
        "decode": ["decode"],
        "prefill": ["prefill"],
    }
    past = f"past_k.{SPEC.decoder.layers('*')[0]}"
    assert {found[graph][0].shapes[past][2][0] for graph in ("decode", "prefill")} == {1024}
