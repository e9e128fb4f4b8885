"""Pruned tubelets on the live path: the trained small model's own embeddings, and a real clip."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from build_engine.bundle import build_bundle
from edge.clock import NS_PER_S, VirtualClock
from edge.config import load_config
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.features.evs import CausalPruner
from edge.features.pixels import tubelet_patches, video_grid
from edge.model.prompt import ChatTemplate, tubelet_text
from edge.model.tokenizer import Tokenizer
from edge.senses.recording import Recording
from edge.service import _pruner
from edge.session.live_prompt import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.perceive import Watcher
from edge.session.sense import Sense
from edge.types import Frame

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "tiny_omni"))

import scenes  # noqa: E402

pytest_plugins = ["media"]

HEIGHT, WIDTH = 240, 320
PLENTY = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "bundle"
    build_bundle(ROOT / "tests" / "assets" / "tiny_omni", path, "cpu", lambda *_: None)
    return path


@pytest.fixture(scope="module")
def trained(folder):
    return CpuEngine(Bundle(folder), n_threads=1)


def embedded(engine, frames):
    height, width = frames[0].shape[:2]
    grid = video_grid(width, height, engine.spec.vision.video_target_patches)
    media = engine.encode_tubelets(tubelet_patches(frames, grid, engine.spec.vision), grid)
    merge = engine.spec.vision.merge
    return media.reshape(len(media), grid[0] // merge, grid[1] // merge, -1)


def scene(seed, n_frames, moving):
    rng = np.random.default_rng(seed)
    things = scenes.place(rng, 3, WIDTH / HEIGHT, min(n_frames, 6), moving=moving)
    return scenes.Scene(things, WIDTH / HEIGHT, n_frames, seed)


def kept_of(tubelets):
    pruner = CausalPruner(PLENTY, 2)
    return np.array([pruner.keep(tubelet, t * NS_PER_S) for t, tubelet in enumerate(tubelets)])


@pytest.mark.parametrize("seed", range(4))
def test_a_still_scene_drops_nine_tenths_in_spite_of_noise(trained, seed):
    still = scene(seed, 40, moving=False)
    frames = [scenes.render(still, i, HEIGHT, WIDTH) for i in range(40)]
    kept = kept_of(embedded(trained, frames))
    assert kept[0].all()
    assert kept[1:].mean() <= 0.1


def test_a_moving_shape_keeps_nine_tenths_of_what_changed(trained):
    n_changed = n_kept = 0
    for seed in range(12):
        moving = scene(seed, 6, moving=True)
        kept = kept_of(
            embedded(trained, [scenes.render(moving, i, HEIGHT, WIDTH) for i in range(6)])
        )
        cover = np.array([_cover(moving, i, kept.shape[1:]) for i in range(6)])
        for t in (1, 2):
            shown = cover[2 * t - 2 : 2 * t + 2]
            changed = (shown.max(0) - shown.min(0)).sum(0) > 0.1
            n_changed += changed.sum()
            n_kept += kept[t][changed].sum()
    assert n_changed > 50
    assert n_kept >= 0.9 * n_changed


def _cover(shown, frame, places):
    """How much of each place each thing covers, [things, rows, columns]."""
    rows, columns = places
    masks = scenes.coverage(shown, frame, rows * 32, columns * 32, 2.0)
    return masks.reshape(len(masks), rows, 32, columns, 32).mean((2, 4))


def a_loop(folder, engine, clock, changes):
    """A loop that watches what is put."""
    config = load_config(None, changes)
    prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), "")
    pruner = _pruner(config.perception, engine.spec.vision.tubelet_frames)
    watcher = Watcher(engine, prompt.tokenizer, clock, 0, pruner)
    sight = Sense("video", watcher, engine.spec.vision.tubelet_frames)
    return LiveLoop(engine, prompt, config, clock, "tiny_omni", [sight], start_ns=0), prompt, sight


def test_a_real_clip_is_pruned_and_every_token_is_accounted_for(folder, trained, clips):
    clock = VirtualClock()
    changes = {"perception": {"evs_tokens_per_s": 16, "evs_keep": "places"}}
    loop, prompt, sight = a_loop(folder, trained, clock, changes)
    recording = Recording.open(clips / "carphone_pristine.mp4")
    frames = list(recording.video(clock, 0, 2.0).frames())
    frames = frames[: len(frames) // 2 * 2]
    for frame in frames:
        sight.put(frame)
        while loop.step():
            pass
    status, ledger = loop.status(), loop._context.ledger
    assert sum(segment.n_tokens for segment in ledger) == status.n_context_tokens
    places = embedded(trained, [frame.pixels for frame in frames[:2]])[0].shape[:2]
    n_all = len(frames) // 2 * places[0] * places[1]
    counters = status.counters
    assert counters["video_tokens_kept"] + counters["video_tokens_pruned"] == n_all
    assert counters["video_tokens_pruned"] > 0
    n_text = 0
    for t, stages in enumerate(status.recent):
        times = [frame.capture_ns / NS_PER_S for frame in frames[2 * t : 2 * t + 2]]
        text = prompt.tokenizer.encode(tubelet_text(2 * t + 1, times, stages.n_kept))
        assert stages.n_tokens == len(text)  # its text is whole, with a placeholder for each kept
        assert stages.n_kept >= 1
        n_text += len(text)
    separators = len(prompt.separator()) * (len(status.recent) - 1)
    assert status.n_context_tokens == len(prompt.anchor()) + n_text + separators


def test_after_a_rebuild_the_next_picture_is_whole(folder, trained, clips):
    changes = {
        "perception": {"evs_tokens_per_s": 16},
        "context": {"max_tokens": 300, "keep_tokens": 100},
        "answer": {"max_tokens": 16},
    }
    loop, _, sight = a_loop(folder, trained, VirtualClock(), changes)
    (frame, *_) = (
        Recording.open(clips / "carphone_pristine.mp4").video(VirtualClock(), 0, 2).frames()
    )
    after_rebase = []
    for i in range(40):
        before = loop._context.n_rebases
        pixels = np.roll(frame.pixels, 40 * (i // 4), axis=1)  # every second tubelet is still
        sight.put(replace(frame, pixels=pixels, capture_ns=i * NS_PER_S // 2, frame_id=i))
        while loop.step():
            pass
        after_rebase.append(loop._context.n_rebases > before)
    rebased = after_rebase.index(True) // 2
    n_kept = [stages.n_kept for stages in loop.status().recent]
    assert (rebased + 1) % 2 == 1
    assert n_kept[rebased + 1] == n_kept[0]
    assert set(n_kept[1:rebased:2]) == {0}


def test_a_still_picture_costs_no_token_and_its_evidence_reaches_until_now(folder, trained, clips):
    loop, _, sight = a_loop(
        folder, trained, VirtualClock(), {"perception": {"evs_tokens_per_s": 16}}
    )
    (frame, *_) = (
        Recording.open(clips / "carphone_pristine.mp4").video(VirtualClock(), 0, 2).frames()
    )
    n_tokens = []
    for i in range(20):
        sight.put(replace(frame, capture_ns=i * NS_PER_S // 2, frame_id=i))
        while loop.step():
            pass
        n_tokens.append(loop.status().n_context_tokens)
    assert len(set(n_tokens[1:])) == 1
    assert loop.status().counters["video_segments"] == 10
    (evidence,) = loop._context.evidence()
    assert evidence.frame_ids == (0, 1)
    assert (evidence.start_ns, evidence.end_ns) == (0, 19 * NS_PER_S // 2)
    recalled = loop._context.recall(8 * NS_PER_S, 9 * NS_PER_S)
    assert [segment.evidence for segment in recalled.ledger[1:]] == [evidence]


def test_without_settings_the_context_is_as_long_as_the_model_is_made_for(folder, trained):
    loop, _, sight = a_loop(folder, trained, VirtualClock(), {})
    most = 0
    for i in range(80):
        sight.put(Frame(np.full((360, 640, 3), i, np.uint8), i * NS_PER_S // 2, i, "camera"))
        while loop.step():
            most = max(most, loop.status().n_context_tokens)
    status = loop.status()
    assert status.max_context_tokens == 512
    assert 256 < most <= 512
    assert status.counters["rebases"] > 1
    assert "segments_refused" not in status.counters
