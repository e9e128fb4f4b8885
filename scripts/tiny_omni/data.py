"""Batches for training: scenes and sounds become media, questions become prompts with a loss mask.

Prompts are the runtime's own: its chat template, its words around media, its tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scenes import FRAME_S, Scene, Thing, place, render
from tasks import (
    ABOUT_A_FILM,
    ABOUT_A_PICTURE,
    Asked,
    ask_color,
    ask_count,
    ask_exist,
    ask_move,
    ask_see,
    ask_shape,
    ask_where,
    spoken,
    typed_only,
    word_said,
)
from torch import Tensor
from train_vision import GRIDS

from edge.features.mel import mel_filter_bank
from edge.features.pixels import image_patches, tubelet_patches
from edge.model.prompt import ChatTemplate, audio_text, image_text, tubelet_text
from edge.model.spec import VisionSpec
from edge.model.tokenizer import Tokenizer

IMAGE_ID, AUDIO_ID, TURN_END_ID = 18, 27, 11
SPOKEN = (ask_color, ask_shape, ask_count, ask_exist, ask_where, ask_move, ask_see)
CLIP_TOKENS = (13, 19, 25, 32, 38)
"""Lengths of sound in a batch: 1, 1.5, 2, 2.5 and 3 s."""


@dataclass(frozen=True)
class Batch:
    """Rows of one layout: the same media in each, texts of different length."""

    ids: Tensor
    """[B, L], padded with 0."""
    answer: Tensor
    """[B, L], True at tokens that the model must say."""
    tasks: list[list[tuple[str, int, int]]]
    """By row: task, first and last + 1 position of each answer."""
    patches: Tensor | None = None
    """[B * n, patches, features]."""
    embedder: str = ""
    grid: tuple[int, int] = (0, 0)
    mel: Tensor | None = None
    """[B, frames, mels]."""


@dataclass
class Row:
    """One conversation on its way: media in order of time, then turns."""

    media: list[str] = field(default_factory=list)
    turns: list[Asked] = field(default_factory=list)


class Writer:
    """Writes conversations as token ids."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer, self.template = Tokenizer(folder), ChatTemplate(folder)

    def write(self, row: Row) -> tuple[list[int], list[tuple[str, int, int]]]:
        """Ids of the whole conversation, and where its answers are."""
        ids: list[int] = []
        places = []
        messages: list[dict[str, str]] = []
        for i, turn in enumerate(row.turns):
            content = "\n".join([*row.media, turn.question]) if i == 0 else turn.question
            messages.append({"role": "user", "content": content})
            prompt = self.template.render(messages, thinking=False)
            ids = self.tokenizer.encode(prompt).tolist()
            answer = [*self.tokenizer.encode(turn.answer).tolist(), TURN_END_ID]
            places.append((turn.task, len(ids), len(ids) + len(answer)))
            ids += answer
            messages.append({"role": "assistant", "content": turn.answer})
        return ids, places

    def batch(self, rows: list[Row], **media: object) -> Batch:
        """Pad conversations to one length."""
        written = [self.write(row) for row in rows]
        longest = max(len(ids) for ids, _ in written)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        answer = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, (tokens, places) in enumerate(written):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            for _, start, end in places:
                answer[i, start:end] = True
        return Batch(ids, answer, [places for _, places in written], **media)  # type: ignore[arg-type]


def log_mel(samples: Tensor, n_mels: int = 128) -> Tensor:
    """[B, n] at 16 kHz -> [B, n // 160, mels]: as `edge.features.mel`, but float32 batches."""
    emphasised = torch.cat([samples[:, :1], samples[:, 1:] - 0.97 * samples[:, :-1]], 1)
    window = torch.hann_window(400, periodic=False)
    spectrum = torch.stft(
        emphasised, 512, 160, 400, window, pad_mode="constant", return_complex=True
    )
    power = spectrum.abs().square()[:, :, : samples.shape[1] // 160].transpose(1, 2)
    filters = torch.from_numpy(np.array(mel_filter_bank(n_mels)))
    log = torch.log(power @ filters.T + 2.0**-24)
    return (log - log.mean(1, keepdim=True)) / (log.std(1, keepdim=True) + 1e-5)


def a_scene(rng: np.random.Generator, aspect: float, n_frames: int) -> Scene:
    """A scene for a conversation; a film may move or change."""
    event = rng.random() if n_frames > 1 else 1.0
    things = list(
        place(
            rng,
            int(rng.integers(0 if rng.random() < 0.1 else 1, 4)),
            aspect,
            n_frames,
            event < 0.55,
        )
    )
    if n_frames >= 4 and 0.55 <= event < 0.85 and things:
        i = int(rng.integers(len(things)))
        at = 2 * int(rng.integers(1, n_frames // 2))
        frames = (at, 1 << 30) if rng.random() < 0.5 else (0, at)
        old = things[i]
        things[i] = Thing(old.shape, old.color, old.x, old.y, old.radius, 0, frames)
    return Scene(tuple(things), aspect, n_frames, int(rng.integers(1 << 31)))


def film_media(
    rng: np.random.Generator, scene: Scene, grid: tuple[int, int], spec: VisionSpec
) -> tuple[list[str], NDArray[np.float32]]:
    """Prompt texts and patches of a film's tubelets; the session may have begun long before."""
    height, width = (side * spec.patch_size for side in grid)
    frames = [render(scene, i, height, width) for i in range(scene.n_frames)]
    patches = tubelet_patches(frames, grid, spec)
    start = 0 if rng.random() < 0.5 else int(rng.integers(0, 60))
    texts = []
    for k in range(len(patches)):
        first = 2 * start + 2 * k
        times = [(first + j) * FRAME_S + rng.uniform(0, 0.04) for j in range(2)]
        texts.append(tubelet_text(first + 1, times, grid[0] * grid[1] // 4))
    return texts, patches


def some_turns(rng: np.random.Generator, scene: Scene, film: bool, n: int) -> list[Asked]:
    """Different questions about a scene, in random order."""
    makers = list(ABOUT_A_FILM if film else ABOUT_A_PICTURE)
    rng.shuffle(makers)  # type: ignore[arg-type]
    turns: list[Asked] = []
    for maker in makers:
        asked = maker(rng, scene)
        if asked and len(turns) < n and all(asked.question != old.question for old in turns):
            turns.append(asked)
    return turns


class Mixer:
    """Draws batches of every kind."""

    def __init__(
        self, writer: Writer, spec: VisionSpec, sounds: object, split: str = "train"
    ) -> None:
        self.writer, self.spec, self.sounds, self.split = writer, spec, sounds, split

    def image(self, rng: np.random.Generator, n: int, turns: int = 4) -> Batch:
        grid = GRIDS[rng.integers(len(GRIDS))]
        height, width = (side * self.spec.patch_size for side in grid)
        rows, patches = [], []
        for _ in range(n):
            scene = a_scene(rng, width / height, 1)
            patches.append(image_patches(render(scene, 0, height, width), grid, self.spec))
            asked = some_turns(rng, scene, film=False, n=turns)
            rows.append(Row([image_text(grid[0] * grid[1] // 4)], asked))
        stacked = torch.from_numpy(np.stack(patches))
        return self.writer.batch(rows, patches=stacked, embedder="embedder", grid=grid)

    def film(self, rng: np.random.Generator, n: int, turns: int = 4, n_tubelets: int = 0) -> Batch:
        rows, patches, grid = self._films(rng, n, n_tubelets, turns)
        return self.writer.batch(rows, patches=patches, embedder="video_embedder", grid=grid)

    def _films(
        self, rng: np.random.Generator, n: int, n_tubelets: int, turns: int
    ) -> tuple[list[Row], Tensor, tuple[int, int]]:
        grid = GRIDS[rng.integers(len(GRIDS))]
        n_tubelets = n_tubelets or int(rng.integers(1, 4))
        rows, patches = [], []
        for _ in range(n):
            scene = a_scene(rng, grid[1] / grid[0], 2 * n_tubelets)
            texts, tubelets = film_media(rng, scene, grid, self.spec)
            patches.append(tubelets)
            rows.append(Row(texts, some_turns(rng, scene, film=True, n=turns)))
        return rows, torch.from_numpy(np.concatenate(patches)), grid

    def word(self, rng: np.random.Generator, n: int) -> Batch:
        """A word, or only noise."""
        n_tokens = CLIP_TOKENS[rng.integers(2)]
        rows, clips = [], []
        for _ in range(n):
            samples, word = self.sounds.word(rng, self.split, n_tokens * 1280)  # type: ignore[attr-defined]
            clips.append(samples)
            rows.append(Row([audio_text(n_tokens)], [word_said(word)]))
        return self.writer.batch(rows, mel=log_mel(torch.from_numpy(np.stack(clips))))

    def film_with_sound(self, rng: np.random.Generator, n: int) -> Batch:
        """A short film, then a spoken question about it, or a word."""
        grid = GRIDS[rng.integers(len(GRIDS))]
        n_tubelets, n_tokens = (
            int(rng.integers(1, 3)),
            CLIP_TOKENS[rng.integers(2, len(CLIP_TOKENS))],
        )
        rows, clips, patches = [], [], []
        while len(rows) < n:
            scene = a_scene(rng, grid[1] / grid[0], 2 * n_tubelets)
            maker = SPOKEN[rng.integers(len(SPOKEN))]
            asked = maker(rng, scene)
            if asked is None:
                continue
            texts, tubelets = film_media(rng, scene, grid, self.spec)
            if rng.random() < 0.2:
                samples, word = self.sounds.word(rng, self.split, n_tokens * 1280)  # type: ignore[attr-defined]
                turns = [word_said(word), *some_turns(rng, scene, film=True, n=2)]
            else:
                aloud, answer = spoken(asked)
                samples = self.sounds.said(rng, self.split, aloud, n_tokens * 1280)  # type: ignore[attr-defined]
                turns = [answer, *some_turns(rng, scene, film=True, n=2)]
                if rng.random() < 0.5:
                    turns = [*turns[1:], turns[0]]
            clips.append(samples)
            patches.append(tubelets)
            rows.append(Row([*texts, audio_text(n_tokens)], turns))
        return self.writer.batch(
            rows,
            patches=torch.from_numpy(np.concatenate(patches)),
            embedder="video_embedder",
            grid=grid,
            mel=log_mel(torch.from_numpy(np.stack(clips))),
        )

    def text(self, rng: np.random.Generator, n: int) -> Batch:
        rows = [Row([], [typed_only(rng) for _ in range(3)]) for _ in range(n)]
        return self.writer.batch(rows)
