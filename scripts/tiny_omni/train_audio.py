"""Stage 1, hearing: audio tower and projector learn what is said, by a throwaway head.

    python scripts/tiny_omni/train_audio.py --steps 6000 --threads 1

Continues from its saved state when there is one.
"""

from __future__ import annotations

import numpy as np
import settings
import torch
from data import QUESTION_TOKENS, WORD_TOKENS, log_mel
from model import TinyOmni
from sounds import Sounds, Split
from speech import QUESTIONS, WORDS
from torch import Tensor, nn
from torch.nn import functional as F
from training import Run, begin, optimizer, schedule, stage_parser

TEXTS = (*WORDS, *QUESTIONS)
NO_WORD = len(TEXTS)
BATCH = 24
EVALUATE_EVERY_STEPS = 250


def batch(rng: np.random.Generator, sounds: Sounds, split: Split, n: int) -> tuple[Tensor, Tensor]:
    """Log-mel [n, frames, mels] of words or of questions, and which text each is."""
    clips, labels = [], []
    if rng.random() < 0.5:
        n_samples = int(rng.choice(WORD_TOKENS)) * 1280
        for _ in range(n):
            samples, word = sounds.word(rng, split, n_samples)
            clips.append(samples)
            labels.append(NO_WORD if word is None else TEXTS.index(word))
    else:
        n_samples = int(rng.choice(QUESTION_TOKENS)) * 1280
        for _ in range(n):
            samples, text = sounds.question(rng, split, n_samples)
            clips.append(samples)
            labels.append(TEXTS.index(text))
    samples = torch.from_numpy(np.stack(clips))
    return log_mel(samples, rng if split == "train" else None), torch.tensor(labels)


@torch.no_grad()
def evaluate(model: TinyOmni, head: nn.Module, sounds: Sounds) -> dict[str, float]:
    """Accuracy on voices that are never trained on."""
    model.eval()
    right: dict[str, list[float]] = {"words": [], "questions": []}
    for k in range(16):
        mel, labels = batch(np.random.default_rng([999, k]), sounds, "held_out", 32)
        hit = head(model.hear(mel).mean(1)).argmax(-1) == labels
        for one, label in zip(hit.tolist(), labels.tolist(), strict=True):
            right["questions" if len(WORDS) <= label < NO_WORD else "words"].append(one)
    model.train()
    return {kind: sum(hits) / max(1, len(hits)) for kind, hits in right.items()}


def main() -> None:
    arguments = begin(stage_parser(__doc__, n_steps=5000, lr=1.5e-3))
    model = TinyOmni(settings.config(), arguments.seed)
    sounds = Sounds(arguments.work / "speech.npz")
    head = nn.Linear(model.llm["hidden_size"], len(TEXTS) + 1)
    parts = {n: p for n, p in model.named_parameters() if "sound" in n}
    parts |= {f"head.{n}": p for n, p in head.named_parameters()}
    opt = optimizer((parts, 1.0))
    run = Run("audio", {"model": model, "head": head}, opt, arguments)
    for step in run:
        rng = np.random.default_rng([arguments.seed, step])
        schedule(opt, arguments.lr, step, arguments.steps)
        mel, labels = batch(rng, sounds, "train", BATCH)
        out = head(model.hear(mel).mean(1))
        loss = F.cross_entropy(out, labels)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(parts.values()), 1.0)
        opt.step()
        run.log(loss.item(), {"right": (out.argmax(-1) == labels).float().mean().item()})
        if (step + 1) % EVALUATE_EVERY_STEPS == 0:
            run.note(evaluate(model, head, sounds))


if __name__ == "__main__":
    main()
