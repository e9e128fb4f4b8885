"""Batches for training: scenes and sounds become media, questions become prompts with a loss mask.

Prompts are the runtime's own: its chat template, its words around media, its tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scenes import FRAME_S, Scene, render
from stories import SPOKEN, a_scene, some_turns
from tasks import Asked, quoted, spoken, transcript, typed_only, word_said
from torch import Tensor
from train_vision import GRIDS

from edge.features.mel import mel_filter_bank
from edge.features.pixels import image_patches, tubelet_patches
from edge.model.prompt import ChatTemplate, audio_text, image_text, tubelet_text
from edge.model.spec import VisionSpec
from edge.model.tokenizer import Tokenizer

IMAGE_ID, AUDIO_ID, TURN_END_ID = 18, 27, 11
FILM_TUBELETS = (1, 1, 2, 2, 3, 3, 4, 5)
WORD_TOKENS, QUESTION_TOKENS = (8, 10, 13, 19), (16, 19, 22, 25, 32)
"""Lengths of sound in a batch, 0.08 s each: cut close, as where speech ends, or with silence."""
P_QUOTED = 0.45
"""Share of questions that are written where others are spoken, which leads to those."""


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


WARPS = np.geomspace(0.8, 1.25, 15)
"""Factors between the vocal tracts of trained-on speakers and others."""


@lru_cache(maxsize=1)
def _filter_banks(n_mels: int) -> Tensor:
    """[warps, mels, bins]: the filter bank with its frequencies stretched."""
    bank = mel_filter_bank(n_mels)
    bins = np.arange(bank.shape[1])
    warped = [[np.interp(bins * warp, bins, row, right=0.0) for row in bank] for warp in WARPS]
    return torch.from_numpy(np.array(warped, np.float32))


def log_mel(samples: Tensor, rng: np.random.Generator | None = None, n_mels: int = 128) -> Tensor:
    """[B, n] at 16 kHz -> [B, n // 160, mels]: as `edge.features.mel`, but float32 batches.

    Args:
        rng: for training: speakers get other vocal tracts, bands and moments go missing.
    """
    emphasised = torch.cat([samples[:, :1], samples[:, 1:] - 0.97 * samples[:, :-1]], 1)
    window = torch.hann_window(400, periodic=False)
    spectrum = torch.stft(
        emphasised, 512, 160, 400, window, pad_mode="constant", return_complex=True
    )
    power = spectrum.abs().square()[:, :, : samples.shape[1] // 160].transpose(1, 2)
    if rng is None:
        filters = torch.from_numpy(np.array(mel_filter_bank(n_mels)))
    else:
        filters = _filter_banks(n_mels)[rng.integers(len(WARPS), size=len(samples))]
    log = torch.log(power @ filters.mT + 2.0**-24)
    mel = (log - log.mean(1, keepdim=True)) / (log.std(1, keepdim=True) + 1e-5)
    if rng is not None:
        for row in mel:
            for _ in range(2):
                low, start = rng.integers(0, n_mels - 18), rng.integers(0, len(row) - 10)
                row[:, low : low + rng.integers(0, 18)] = 0
                row[start : start + rng.integers(0, 10)] = 0
    return mel


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


class Mixer:
    """Draws batches of every kind."""

    def __init__(
        self, writer: Writer, spec: VisionSpec, sounds: object, split: str = "train"
    ) -> None:
        self.writer, self.spec, self.sounds, self.split = writer, spec, sounds, split

    def image(self, rng: np.random.Generator, n: int, turns: int = 6) -> Batch:
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

    def film(self, rng: np.random.Generator, n: int, turns: int = 6, n_tubelets: int = 0) -> Batch:
        rows, patches, grid = self._films(rng, n, n_tubelets, turns)
        return self.writer.batch(rows, patches=patches, embedder="video_embedder", grid=grid)

    def _films(
        self, rng: np.random.Generator, n: int, n_tubelets: int, turns: int
    ) -> tuple[list[Row], Tensor, tuple[int, int]]:
        grid = GRIDS[rng.integers(len(GRIDS))]
        n_tubelets = n_tubelets or FILM_TUBELETS[rng.integers(len(FILM_TUBELETS))]
        rows, patches = [], []
        for _ in range(n):
            scene = a_scene(rng, grid[1] / grid[0], 2 * n_tubelets)
            texts, tubelets = film_media(rng, scene, grid, self.spec)
            patches.append(tubelets)
            rows.append(Row(texts, self._film_turns(rng, scene, turns)))
        return rows, torch.from_numpy(np.concatenate(patches)), grid

    def _film_turns(self, rng: np.random.Generator, scene: Scene, n: int) -> list[Asked]:
        """Questions about a film, some of them quoted."""
        turns = some_turns(rng, scene, film=True, n=n)
        return [quoted(turn) if rng.random() < P_QUOTED else turn for turn in turns]

    def word(self, rng: np.random.Generator, n: int) -> Batch:
        """A word, or only noise; or a spoken question, to be written down."""
        whole = bool(rng.random() < 0.5)
        n_tokens = int(rng.choice(QUESTION_TOKENS if whole else WORD_TOKENS))
        rows, clips = [], []
        for _ in range(n):
            if whole:
                samples, aloud = self.sounds.question(rng, self.split, n_tokens * 1280)  # type: ignore[attr-defined]
                asked = transcript(aloud)
            else:
                samples, word = self.sounds.word(rng, self.split, n_tokens * 1280)  # type: ignore[attr-defined]
                asked = word_said(word)
            clips.append(samples)
            rows.append(Row([audio_text(n_tokens)], [asked]))
        return self.writer.batch(rows, mel=self.mel(rng, clips))

    def film_with_sound(self, rng: np.random.Generator, n: int) -> Batch:
        """A short film, then a spoken question about it, or a word."""
        grid = GRIDS[rng.integers(len(GRIDS))]
        n_tubelets = FILM_TUBELETS[rng.integers(len(FILM_TUBELETS))]
        n_tokens = int(rng.choice(QUESTION_TOKENS))
        rows, clips, patches = [], [], []
        while len(rows) < n:
            scene = a_scene(rng, grid[1] / grid[0], 2 * n_tubelets)
            maker = SPOKEN[rng.integers(len(SPOKEN))]
            asked = maker(rng, scene)
            if asked is None:
                continue
            texts, tubelets = film_media(rng, scene, grid, self.spec)
            if rng.random() < 0.1:
                samples, word = self.sounds.word(rng, self.split, n_tokens * 1280)  # type: ignore[attr-defined]
                turns = [word_said(word), *self._film_turns(rng, scene, 4)]
            else:
                aloud, answer = spoken(asked)
                samples = self.sounds.said(rng, self.split, aloud, n_tokens * 1280)  # type: ignore[attr-defined]
                turns = [answer, *self._film_turns(rng, scene, 3)]
                if rng.random() < 0.5:
                    turns.insert(rng.integers(len(turns) + 1), transcript(aloud))
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
            mel=self.mel(rng, clips),
        )

    def mel(self, rng: np.random.Generator, clips: list[NDArray[np.float32]]) -> Tensor:
        """Log-mel of clips, varied in training."""
        samples = torch.from_numpy(np.stack(clips))
        return log_mel(samples, rng if self.split == "train" else None)

    def text(self, rng: np.random.Generator, n: int) -> Batch:
        rows = [Row([], [typed_only(rng) for _ in range(3)]) for _ in range(n)]
        return self.writer.batch(rows)
