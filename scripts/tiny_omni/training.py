"""What the stages share: optimizer, schedule, a run that saves, continues and logs."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from settings import WORK
from torch import nn
from tqdm import tqdm

WARM_UP_STEPS = 100
SAVE_EVERY_STEPS = 250
LOG_EVERY_STEPS = 25
SMOOTHING = 0.97


def optimizer(*parts: tuple[dict[str, nn.Parameter], float]) -> torch.optim.AdamW:
    """AdamW with decay on matrices only.

    Args:
        parts: parameters, and their share of the learning rate.
    """
    groups = []
    for parameters, share in parts:
        trained = [p for p in parameters.values() if p.requires_grad]
        matrices, vectors = ([p for p in trained if (p.ndim > 1) == big] for big in (True, False))
        groups += [
            {"params": matrices, "weight_decay": 0.05, "share": share},
            {"params": vectors, "weight_decay": 0.0, "share": share},
        ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


def schedule(opt: torch.optim.Optimizer, lr: float, step: int, n_steps: int) -> None:
    """Warm up, hold, and fall as a cosine over the last 40 %."""
    done = step / n_steps
    fall = 1.0 if done < 0.6 else 0.03 + 0.485 * (1 + math.cos(math.pi * (done - 0.6) / 0.4))
    for group in opt.param_groups:
        group["lr"] = lr * group["share"] * min(1.0, (step + 1) / WARM_UP_STEPS) * fall


def stage_parser(description: str | None, n_steps: int, lr: float) -> argparse.ArgumentParser:
    """The command line that all stages share."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=n_steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--work", type=Path, default=WORK, help="states, logs and the corpus")
    parser.add_argument("--save-every", type=int, default=SAVE_EVERY_STEPS, metavar="STEPS")
    parser.add_argument(
        "--stop-after", type=int, metavar="STEPS", help="end early, to continue later"
    )
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and set what holds for the whole process."""
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    return arguments


class Run:
    """Iterates over the steps that are left; saves itself, so that a killed run continues."""

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        opt: torch.optim.Optimizer,
        arguments: argparse.Namespace,
    ) -> None:
        """Continue from the run's saved state, if there is one.

        Args:
            arguments: of `begin`.
        """
        self.name, self.modules, self.opt = name, modules, opt
        self.seed = arguments.seed
        self.n_steps, self.save_every = arguments.steps, arguments.save_every
        self.last = min(self.n_steps, arguments.stop_after or self.n_steps)
        arguments.work.mkdir(parents=True, exist_ok=True)
        self.state_path = arguments.work / f"{name}.pt"
        self.log_path = arguments.work / f"{name}.jsonl"
        self.step, self.smooth = 0, {}
        if self.state_path.exists():
            state = torch.load(self.state_path, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(state[key])
            opt.load_state_dict(state["opt"])
            self.step, self.smooth = state["step"], state["smooth"]
        else:
            self.log_path.write_text("")

    def __iter__(self) -> Iterator[int]:
        began = time.monotonic()
        with tqdm(total=self.n_steps, initial=self.step, desc=self.name, mininterval=5) as bar:
            while self.step < self.last:
                torch.manual_seed(self.seed + self.step)  # so that a continued run drops the same
                yield self.step
                self.step += 1
                bar.update()
                if self.step % LOG_EVERY_STEPS == 0:
                    shown = {k: round(v, 4) for k, v in self.smooth.items()}
                    bar.set_postfix(shown, refresh=False)
                    row = {"step": self.step, "s": round(time.monotonic() - began, 1), **shown}
                    with self.log_path.open("a") as log:
                        log.write(json.dumps(row) + "\n")
                if self.step % self.save_every == 0 or self.step == self.last:
                    self.save()

    def log(self, loss: float, figures: dict[str, float]) -> None:
        """Take one step's figures into the running averages."""
        for key, value in {"loss": loss, **figures}.items():
            if value == value:  # a batch without any such case has NaN
                old = self.smooth.get(key, value)
                self.smooth[key] = SMOOTHING * old + (1 - SMOOTHING) * value

    def note(self, figures: dict[str, float]) -> None:
        """Log figures that are measured now and then."""
        with self.log_path.open("a") as log:
            log.write(json.dumps({"step": self.step + 1, "held_out": figures}) + "\n")

    def save(self) -> None:
        """Write the state beside the old one, then put it in its place."""
        state: dict[str, Any] = {key: module.state_dict() for key, module in self.modules.items()}
        state |= {"opt": self.opt.state_dict(), "step": self.step, "smooth": self.smooth}
        partial = self.state_path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_path)
