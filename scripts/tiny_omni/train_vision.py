"""Stage 1, seeing: vision tower and projector learn what covers each cell, by a throwaway head.

    python scripts/tiny_omni/train_vision.py --steps 8000 --threads 1

Continues from its saved state when there is one. Without this stage the language model learns
colours and counts, and nothing about shapes, within hours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import settings
import torch
from model import TinyOmni
from scenes import COLORS, MOTIONS, SHAPES, Scene, coverage, place, render
from torch import Tensor, nn
from torch.nn import functional as F
from training import Run, begin, optimizer, schedule, stage_parser

from edge.features.pixels import image_patches, tubelet_patches
from edge.model.spec import VisionSpec, model_spec

GRIDS = ((6, 8), (6, 10), (8, 8), (8, 6), (6, 8))
"""Rows and columns of patches: the grids of 4:3, 16:9, 1:1 and 3:4 frames."""
SPLIT = (len(SHAPES) + 1, len(COLORS) + 1, len(MOTIONS) + 1, 2)
"""Widths of the throwaway head: what covers a cell (0 is nothing), how it moves, its centre."""
MIN_COVER = 0.08
EASY_SHARE = 0.4
"""Share of the steps over which the scenes grow from easy to all that there is."""
BATCH = 32


@dataclass(frozen=True)
class Views:
    """Pictures or tubelets of one grid, and what is where in them."""

    patches: Tensor
    """[B, patches, features]."""
    embedder: str
    grid: tuple[int, int]
    cells: list[Tensor]
    """By cell of 2 x 2 patches: shape + 1, colour + 1, motion + 1 (0 is nothing), centre."""
    cover: Tensor
    """[B, patches, 16]: how much of each quarter-by-quarter of a patch is covered."""


def views(rng: np.random.Generator, spec: VisionSpec, n: int, difficulty: float) -> Views:
    """Draw n views.

    Args:
        difficulty: 0 is one large still thing without noise, 1 is all that the tasks have.
    """
    grid = GRIDS[rng.integers(len(GRIDS))]
    video = bool(rng.random() < 0.6)
    height, width = (side * spec.patch_size for side in grid)
    n_frames = 2 if video else 1
    patches, cells, covers = [], [], []
    for _ in range(n):
        moving = bool(video and rng.random() < 0.6 * difficulty)
        n_things = int(rng.integers(1, 3 + round(2 * difficulty)))
        smallest = 0.18 - 0.06 * difficulty
        things = place(rng, n_things, width / height, n_frames, moving, smallest)
        style = int(rng.integers(1 << 31))
        scene = Scene(things, width / height, n_frames, style, 0.07 * difficulty)
        frames = [render(scene, frame, height, width) for frame in range(n_frames)]
        if video:
            patches.append(tubelet_patches(frames, grid, spec)[0])
        else:
            patches.append(image_patches(frames[0], grid, spec))
        labels, cover = truth(scene, n_frames, grid)
        cells.append(labels)
        covers.append(cover)
    return Views(
        torch.from_numpy(np.stack(patches)),
        "video_embedder" if video else "embedder",
        grid,
        [torch.from_numpy(np.stack(kind)) for kind in zip(*cells, strict=True)],
        torch.from_numpy(np.stack(covers)),
    )


def truth(
    scene: Scene, n_frames: int, grid: tuple[int, int]
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Labels by cell and covers by patch of one view, in its last frame."""
    rows, columns = grid
    masks = coverage(scene, n_frames - 1, 4 * rows, 4 * columns, 1.0)
    cover = masks.sum(0).clip(0, 1).reshape(rows, 4, columns, 4)
    cover = cover.swapaxes(1, 2).reshape(rows * columns, 16)
    n_cells = rows * columns // 4
    by_cell = masks.reshape(-1, rows // 2, 8, columns // 2, 8).mean((2, 4)).reshape(-1, n_cells)
    shape, color, motion = (np.zeros(n_cells, np.int64) for _ in range(3))
    centre = np.zeros((n_cells, 2), np.float32)
    if len(scene.things):
        who, how_much = by_cell.argmax(0), by_cell.max(0)
        for cell in np.flatnonzero(how_much > MIN_COVER):
            thing = scene.things[who[cell]]
            shape[cell], color[cell] = thing.shape + 1, thing.color + 1
            motion[cell] = thing.motion + 1
            x, y = thing.at(n_frames - 1)
            centre[cell] = x / scene.aspect * 2 - 1, y * 2 - 1
    return (shape, color, motion, centre), cover


def losses(out: Tensor, cover: Tensor, shown: Views) -> tuple[Tensor, list[float]]:
    """The summed loss, and the share of covered cells whose shape, colour, motion are right."""
    labels, video = shown.cells, shown.embedder == "video_embedder"
    shape, color, motion, centre = out.split(SPLIT, -1)
    covered = labels[0] > 0
    loss = F.cross_entropy(shape.flatten(0, 1), labels[0].flatten())
    loss = loss + F.cross_entropy(color.flatten(0, 1), labels[1].flatten())
    loss = loss + (centre - labels[3])[covered].square().mean()
    loss = loss + 4 * (cover - shown.cover).square().mean()
    if video:
        loss = loss + 0.5 * F.cross_entropy(motion[covered], labels[2][covered])
    kinds = [shape, color] + ([motion] if video else [])
    hits = [
        (kind.argmax(-1) == truth)[covered].float().mean().item()
        for kind, truth in zip(kinds, labels, strict=False)
    ]
    return loss, hits


def main() -> None:
    arguments = begin(stage_parser(__doc__, n_steps=3000, lr=1.5e-3))
    model = TinyOmni(settings.config(), arguments.seed)
    spec = model_spec(model.config, {"eos_token_id": 11}).vision
    head = nn.Linear(model.llm["hidden_size"], sum(SPLIT))
    outline = nn.Linear(model.vis["hidden_size"], 16)
    parts = {n: p for n, p in model.named_parameters() if "vision" in n or "mlp1" in n}
    parts |= {f"head.{n}": p for n, p in head.named_parameters()}
    parts |= {f"outline.{n}": p for n, p in outline.named_parameters()}
    opt = optimizer((parts, 1.0))
    run = Run("vision", {"model": model, "head": head, "outline": outline}, opt, arguments)
    for step in run:
        rng = np.random.default_rng([arguments.seed, step])
        schedule(opt, arguments.lr, step, arguments.steps)
        shown = views(rng, spec, BATCH, min(1.0, step / (EASY_SHARE * arguments.steps)))
        tokens = model.vit(shown.patches, shown.embedder, shown.grid)
        out = head(model.project(tokens, shown.grid))
        loss, hits = losses(out, outline(tokens), shown)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(parts.values()), 1.0)
        opt.step()
        names = ("shape", "color", "motion")
        run.log(loss.item(), dict(zip(names, hits, strict=False)))


if __name__ == "__main__":
    main()
