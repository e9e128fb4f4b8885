"""Stage 2, answering: the whole model on conversations, from the towers that stage 1 trained.

    python scripts/tiny_omni/train_all.py --steps 10000 --threads 2

Continues from its saved state when there is one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import settings
import torch
from data import AUDIO_ID, IMAGE_ID, Batch, Mixer, Writer
from export import write_texts
from model import TinyOmni
from sounds import Sounds
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from training import Run, begin, optimizer, schedule, stage_parser

from edge.engines.safetensors import SafetensorsFile
from edge.model.spec import model_spec

STAGE_1 = {"vision": ("vision_model", "mlp1"), "audio": ("sound_encoder", "sound_projection")}
TOWERS = tuple(prefix for prefixes in STAGE_1.values() for prefix in prefixes)
TOWER_SHARE = 0.3
"""The towers know their trade: they learn at this share of the decoder's rate."""
EASY_SHARE = 0.35
"""Share of the steps with short prompts and still towers, before the whole mix."""
EASY_MIX = (("film", 0.45), ("image", 0.3), ("word", 0.2), ("text", 0.05))
MIX = (("film", 0.3), ("image", 0.15), ("film_with_sound", 0.4), ("word", 0.1), ("text", 0.05))
SIZES = {"film": 12, "image": 16, "film_with_sound": 12, "word": 24, "text": 24}
SPOKEN_WEIGHT = 4.0
"""Of an answer to a spoken question: the rarest and the hardest."""
EVALUATE_EVERY_STEPS = 500


def draw(mixer: Mixer, rng: np.random.Generator, easy: bool, only: list[str]) -> Batch:
    """A batch of a random kind."""
    mix = {k: share for k, share in (EASY_MIX if easy else MIX) if k in only}
    kind = str(rng.choice(list(mix), p=np.array(list(mix.values())) / sum(mix.values())))
    if easy and kind == "film":
        return mixer.film(rng, 2 * SIZES[kind], n_tubelets=1)
    batch: Batch = getattr(mixer, kind)(rng, SIZES[kind])
    return batch


def logits(model: TinyOmni, batch: Batch, train_towers: bool = True) -> Tensor:
    """[B, L, vocabulary]."""
    x = model.embed(batch.ids)
    with torch.set_grad_enabled(train_towers and torch.is_grad_enabled()):
        media = []
        if batch.patches is not None:
            media.append((IMAGE_ID, model.see(batch.patches, batch.embedder, batch.grid)))
        if batch.mel is not None:
            media.append((AUDIO_ID, model.hear(batch.mel)))
    for placeholder, rows in media:
        x = x.masked_scatter((batch.ids == placeholder)[..., None], rows.to(x.dtype))
    return model.decode(x)


def answer_loss(out: Tensor, batch: Batch) -> Tensor:
    """Cross entropy of the answers' tokens."""
    wanted = batch.answer[:, 1:]
    loss = F.cross_entropy(out[:, :-1][wanted], batch.ids[:, 1:][wanted], reduction="none")
    weights = torch.ones(batch.ids.shape)
    for row, places in zip(weights, batch.tasks, strict=True):
        for task, start, end in places:
            if task.startswith("spoken"):
                row[start:end] = SPOKEN_WEIGHT
    weights = weights[:, 1:][wanted]
    return (loss * weights).sum() / weights.sum()


def hits(out: Tensor, batch: Batch) -> dict[str, list[bool]]:
    """By task: whether every token of an answer is the likeliest, which is greedy decoding."""
    right = out[:, :-1].argmax(-1) == batch.ids[:, 1:]
    found: dict[str, list[bool]] = {}
    for i, places in enumerate(batch.tasks):
        for task, start, end in places:
            found.setdefault(task, []).append(bool(right[i, start - 1 : end - 1].all()))
    return found


@torch.no_grad()
def evaluate(
    model: TinyOmni, mixer: Mixer, kinds: list[str], n_batches: int = 4
) -> dict[str, float]:
    """Accuracy by task on scenes and voices that are never trained on."""
    model.eval()
    found: dict[str, list[bool]] = {}
    for kind in kinds:
        for k in range(n_batches):
            rng = np.random.default_rng([999, k])
            batch = getattr(mixer, kind)(rng, SIZES[kind])
            for task, right in hits(logits(model, batch), batch).items():
                found.setdefault(task, []).extend(right)
    model.train()
    return {task: sum(right) / len(right) for task, right in sorted(found.items())}


def take_over(model: TinyOmni, path: Path) -> None:
    """Take the tensors of a checkpoint's folder, of a tower from stage 1, or of a saved run."""
    with torch.no_grad():
        if path.is_dir():
            file = SafetensorsFile(path / "model.safetensors")
            for name in file.names():
                model.t(name).copy_(torch.from_numpy(file.tensor(name).astype(np.float32)))
        else:
            state = torch.load(path, weights_only=True)["model"]
            prefixes = STAGE_1.get(path.stem, ("",))
            own = model.state_dict()
            taken = {k: v for k, v in state.items() if k[2:].startswith(prefixes)}
            model.load_state_dict({**own, **taken})


def main() -> None:
    parser = stage_parser(__doc__, n_steps=10_000, lr=1.2e-3)
    parser.add_argument("--name", default="all", help="of the run: its state and its log")
    parser.add_argument(
        "--start-from", type=Path, nargs="+", metavar="PATH", help="checkpoints and saved runs"
    )
    parser.add_argument("--easy-share", type=float, default=EASY_SHARE)
    parser.add_argument("--kinds", nargs="+", choices=[k for k, _ in MIX], help="only these")
    arguments = begin(parser)
    model = TinyOmni(settings.config(), arguments.seed)
    for path in arguments.start_from or [arguments.work / f"{name}.pt" for name in STAGE_1]:
        take_over(model, path)
    kinds = arguments.kinds or list(SIZES)
    spec = model_spec(model.config, {"eos_token_id": 11}).vision
    write_texts(arguments.work / "texts")
    sounds, writer = Sounds(arguments.work / "speech.npz"), Writer(arguments.work / "texts")
    train, held_out = (Mixer(writer, spec, sounds, split) for split in ("train", "held_out"))
    parts = dict(model.named_parameters())
    towers = {n: p for n, p in parts.items() if n[2:].startswith(TOWERS)}
    decoder = {n: p for n, p in parts.items() if n not in towers}
    opt = optimizer((decoder, 1.0), (towers, TOWER_SHARE))
    run = Run(arguments.name, {"model": model}, opt, arguments)
    for step in run:
        rng = np.random.default_rng([arguments.seed, step])
        schedule(opt, arguments.lr, step, arguments.steps)
        easy = step < arguments.easy_share * arguments.steps
        batch = draw(train, rng, easy, kinds)
        out = logits(model, batch, train_towers=not easy)
        loss = answer_loss(out, batch)
        opt.zero_grad()
        loss.backward()
        clip_grad_norm_(parts.values(), 1.0)
        opt.step()
        if step < 0.9 * arguments.steps:
            model.balance(1e-3)
        right = {task: float(np.mean(r)) for task, r in hits(out, batch).items()}
        run.log(loss.item(), right)
        if (step + 1) % EVALUATE_EVERY_STEPS == 0:
            run.note({k: round(v, 3) for k, v in evaluate(model, held_out, kinds).items()})


if __name__ == "__main__":
    main()
