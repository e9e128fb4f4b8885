"""One conversation with an image, a pruned video, sound and text, through every stage.

The runtime computes it here; `oracle/conversation.py` computes the same by transformers, and the
stored goldens are that oracle's outputs. Names and tolerances are shared, so that all three meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engines.cpu import CpuEngine
from edge.features.evs import retention_mask
from edge.features.mel import log_mel
from edge.features.pixels import image_grid, image_patches, tubelet_patches, video_grid
from edge.model.decoder import blocks, head
from edge.model.prompt import (
    ChatTemplate,
    audio_text,
    expand,
    flatten,
    frame_times_s,
    image_text,
    video_text,
)
from edge.model.tokenizer import Tokenizer
from edge.session.perceive import embed_media

GOLDENS = Path(__file__).parent / "assets" / "goldens"
SYSTEM = "You see and hear."
QUESTION = "Where is the red circle, and what did the voice say?"
FRAME_INDICES, SOURCE_FPS = (0, 12, 25, 37, 50), 29.97
PRUNING_RATES = (0.3, 0.5, 0.7, 0.9)
PROMPT_PRUNING_RATE = 0.5
N_GREEDY = 64
GOLDEN_ROWS = slice(None, None, 3)
"""Tokens whose block outputs and logits are stored: every third, to keep the files small."""

# The issue of exactness, by output: absolute, or relative to the largest value, or identical (0).
# Measured, worst of four presets and four instruction sets, and of 24 strange models: mel 4e-7,
# patches 1.2e-6, features 1.4e-6, blocks 1.5e-5, logits 1.9e-5; of these presets 4e-6 and 5e-6, and
# 2.0e-5 of the logits of every row, which the oracle compares, beside torch on another processor.
ABSOLUTE = {"mel": 5e-6, "patches": 5e-6, "tubelet_patches": 5e-6}
RELATIVE = {
    "image_features": 5e-6,
    "tubelet_features": 5e-6,
    "audio_features": 5e-6,
    "blocks": 2e-5,
    "logits": 3e-5,
}

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Media:
    """What the conversation shows: odd frame count, non-square, an odd length of sound."""

    image: NDArray[np.uint8]
    frames: list[NDArray[np.uint8]]
    samples: NDArray[np.float32]


def media() -> Media:
    """The same pixels and samples on every machine, made by integer arithmetic."""

    def picture(height: int, width: int, shift: int) -> NDArray[np.uint8]:
        y, x = np.mgrid[:height, :width]
        planes = [(x * 3 + y * 5 + shift) % 256, (x * y + 7 * shift) % 256, (y * 11 + x) % 256]
        pixels = np.stack(planes, -1).astype(np.uint8)
        pixels[10 + shift : 24 + shift, 20 : 40 + 2 * shift] = (220, 30, 30)
        return pixels

    k = np.arange(20_900)
    samples = ((k * 7919 % 2001 - 1000) / 4000 * (0.2 + (k // 400 % 7) / 7)).astype(np.float32)
    return Media(picture(58, 75, 0), [picture(50, 90, 3 * i) for i in range(5)], samples)


def runtime_outputs(engine: CpuEngine, bundle: Path) -> Outputs:
    """Every stage's output as the runtime computes it."""
    shown, spec, out = media(), engine.spec, Outputs()
    vision = spec.vision
    height, width = shown.image.shape[:2]
    budget = (vision.max_patches, vision.min_patches, vision.patch_size)
    image_at = image_grid(width, height, *budget)
    out["patches"] = image_patches(shown.image, image_at, vision)
    out["image_features"] = engine.encode_image(out["patches"], image_at)

    height, width = shown.frames[0].shape[:2]
    video_at = video_grid(width, height, vision.video_target_patches)
    out["tubelet_patches"] = tubelet_patches(shown.frames, video_at, vision)
    tubelets = engine.encode_tubelets(out["tubelet_patches"], video_at)
    out["tubelet_features"] = tubelets
    rows, columns = video_at[0] // vision.merge, video_at[1] // vision.merge
    shaped = tubelets.reshape(len(tubelets), rows, columns, -1)
    for rate in PRUNING_RATES:
        out[f"evs_mask_{rate}"] = retention_mask(shaped, rate).reshape(-1)

    out["mel"] = log_mel(shown.samples, spec.audio.n_mels)
    out["audio_features"] = engine.encode_audio(out["mel"])

    kept = retention_mask(shaped, PROMPT_PRUNING_RATE)
    text = expand(
        flatten(QUESTION, ["<image>", "<video>", "<so_embedding>"]),
        images=[image_text(len(out["image_features"]))],
        videos=[video_text(frame_times_s(FRAME_INDICES, SOURCE_FPS), kept.sum((1, 2)).tolist())],
        audios=[audio_text(len(out["audio_features"]))],
    )
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    prompt = ChatTemplate(bundle).render(messages, thinking=False)
    tokenizer = Tokenizer(bundle)
    out["prompt_ids"] = tokenizer.encode(prompt)
    placed = np.concatenate([out["image_features"], shaped[kept], out["audio_features"]])
    embeddings = embed_media(engine, tokenizer, prompt, placed)

    ops = engine.ops(engine.new_state())
    after = list(blocks(ops, spec.decoder, embeddings))
    out["blocks"], out["logits"] = np.stack(after), head(ops, after[-1])
    state = engine.new_state()
    logits, greedy = engine.prefill(state, embeddings), []
    for _ in range(N_GREEDY):
        greedy.append(int(logits.argmax()))
        logits = engine.decode(state, greedy[-1])
    out["greedy"] = np.array(greedy, np.int32)
    return out


def golden_part(outputs: Mapping[str, NDArray[Any]]) -> Outputs:
    """What of the outputs is stored: features instead of the larger tubelet patches."""
    part = {name: values for name, values in outputs.items() if name != "tubelet_patches"}
    part["blocks"] = part["blocks"][:, GOLDEN_ROWS]
    part["logits"] = part["logits"][GOLDEN_ROWS]
    return part


def difference(name: str, got: NDArray[Any], expected: NDArray[Any]) -> float:
    """How far apart, in the measure of the output's tolerance; infinite where shapes differ."""
    if got.shape != expected.shape or not np.isfinite(np.asarray(got, np.float64)).all():
        return float("inf")
    if name in ABSOLUTE:
        return float(np.abs(got - expected).max())
    if name == "blocks":
        by_block = np.abs(got - expected).max((1, 2)) / np.abs(expected).max((1, 2))
        return float(by_block.max())
    if name in RELATIVE:
        return float(np.abs(got - expected).max() / np.abs(expected).max())
    return float(np.count_nonzero(got != expected))


def disagreements(got: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> Any:
    """Outputs beyond their tolerance, with the difference: empty where all is well."""
    found = {}
    for name, values in expected.items():
        by = difference(name, got[name], values)
        if not by <= ABSOLUTE.get(name, RELATIVE.get(name, 0)):
            found[name] = by
    return found
