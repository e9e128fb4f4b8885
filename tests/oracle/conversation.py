"""The conversation of `parity.py`, computed by transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from oracle.reference import Reference
from parity import (
    FRAME_INDICES,
    N_GREEDY,
    PROMPT_PRUNING_RATE,
    PRUNING_RATES,
    QUESTION,
    SYSTEM,
    media,
)
from transformers import PreTrainedTokenizerFast

IMAGE_ID, AUDIO_ID = 18, 27
FRAME_TIMES = ("0.00", "0.40", "0.82", "1.22", "1.65")
"""FRAME_INDICES at 29.97 frames a second, which counts as 33 ms a frame."""
GRIDS = {
    # Rows and columns in patches of the 75 x 58 image and the 90 x 50 frames, worked by hand from
    # the published formulas: the smallest image of `wide` has 64 patches, of the others 16.
    "base": ((4, 6), (6, 10)),
    "grouped": ((4, 6), (6, 10)),
    "single": ((4, 6), (6, 10)),
    "wide": ((8, 10), (6, 10)),
}


def reference_outputs(reference: Reference, folder: Path) -> dict[str, NDArray[Any]]:
    """Every stage's output as transformers computes it."""
    shown, out = media(), {}
    (rows, columns), video_grid = GRIDS[folder.name]
    out["patches"] = reference.patches(shown.image, rows, columns)
    out["image_features"] = reference.image_features(out["patches"], rows, columns)

    frames = [*shown.frames, shown.frames[-1]]
    flat = np.stack([reference.patches(frame, *video_grid) for frame in frames])
    out["tubelet_patches"] = np.concatenate([flat[0::2], flat[1::2]], axis=-1)
    out["tubelet_features"] = reference.tubelet_features(_unpatched(flat, *video_grid))
    n_tubelets, n_tokens, hidden = out["tubelet_features"].shape
    video = out["tubelet_features"].reshape(-1, hidden)
    merged = (video_grid[0] // 2, video_grid[1] // 2)
    masks = {q: reference.evs_mask(video, n_tubelets, *merged, q) for q in PRUNING_RATES}
    out |= {f"evs_mask_{q}": mask for q, mask in masks.items()}

    out["mel"] = reference.mel(shown.samples)
    out["audio_features"] = reference.audio_features(out["mel"])

    kept = masks[PROMPT_PRUNING_RATE]
    counts = kept.reshape(n_tubelets, n_tokens).sum(1)
    ids = _prompt_ids(folder, len(out["image_features"]), counts, len(out["audio_features"]))
    out["prompt_ids"] = np.array(ids, np.int32)
    embeddings = reference.embed(ids).copy()
    embeddings[out["prompt_ids"] == AUDIO_ID] = out["audio_features"]
    embeddings[out["prompt_ids"] == IMAGE_ID] = np.concatenate([out["image_features"], video[kept]])
    out["blocks"], out["logits"] = reference.hidden_states(embeddings)
    out["greedy"] = np.array(reference.greedy(embeddings, N_GREEDY), np.int32)
    return out


def _unpatched(patches: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """[n, rows * columns, 768] -> [n, 3, height, width]."""
    n = len(patches)
    planes = patches.reshape(n, rows, columns, 3, 16, 16).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(planes.reshape(n, 3, rows * 16, columns * 16))


def _prompt_ids(folder: Path, n_image: int, n_video: Any, n_audio: int) -> list[int]:
    assert len(FRAME_INDICES) == len(FRAME_TIMES)
    stamps = [
        f"Frame 1 sampled at {FRAME_TIMES[0]} seconds and frame 2 sampled at {FRAME_TIMES[1]}",
        f"Frame 3 sampled at {FRAME_TIMES[2]} seconds and frame 4 sampled at {FRAME_TIMES[3]}",
        f"Frame 5 sampled at {FRAME_TIMES[4]}",
    ]
    lines = ["<img>" + "<image>" * n_image + "</img>"]
    lines += [
        f"{stamp} seconds: <img>{'<image>' * n}</img>"
        for stamp, n in zip(stamps, n_video, strict=True)
    ]
    lines += ["<so_start>" + "<so_embedding>" * n_audio + "<so_end>", QUESTION]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n".join(lines)}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return list(tokenizer(prompt, add_special_tokens=False).input_ids)
