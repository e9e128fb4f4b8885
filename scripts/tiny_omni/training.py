"""What the stages share: optimizer, schedule, a run that saves, continues and logs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from settings import WORK
from torch import nn
from tqdm import tqdm

WARM_UP_STEPS = 100
SAVE_EVERY_STEPS = 250
LOG_EVERY_STEPS = 25
SMOOTHING = 0.97


def optimizer(parameters: dict[str, nn.Parameter], lr: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    trained = [p for p in parameters.values() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def schedule(opt: torch.optim.Optimizer, lr: float, step: int, n_steps: int) -> None:
    """Warm up, hold, and fall as a cosine over the last 40 %."""
    done = step / n_steps
    fall = 1.0 if done < 0.6 else 0.03 + 0.485 * (1 + math.cos(math.pi * (done - 0.6) / 0.4))
    for group in opt.param_groups:
        group["lr"] = lr * min(1.0, (step + 1) / WARM_UP_STEPS) * fall


class Run:
    """Iterates over the steps that are left; saves itself, so that a killed run continues."""

    def __init__(
        self, name: str, modules: dict[str, nn.Module], opt: torch.optim.Optimizer, n_steps: int
    ) -> None:
        self.name, self.modules, self.opt, self.n_steps = name, modules, opt, n_steps
        WORK.mkdir(parents=True, exist_ok=True)
        self.state_path = WORK / f"{name}.pt"
        self.log_path = WORK / f"{name}.jsonl"
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
            while self.step < self.n_steps:
                yield self.step
                self.step += 1
                bar.update()
                if self.step % LOG_EVERY_STEPS == 0:
                    shown = {k: round(v, 4) for k, v in self.smooth.items()}
                    bar.set_postfix(shown, refresh=False)
                    row = {"step": self.step, "s": round(time.monotonic() - began, 1), **shown}
                    with self.log_path.open("a") as log:
                        log.write(json.dumps(row) + "\n")
                if self.step % SAVE_EVERY_STEPS == 0 or self.step == self.n_steps:
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
