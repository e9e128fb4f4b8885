"""Write the trained model as a checkpoint in the published layout, in bfloat16.

python scripts/tiny_omni/export.py          # from the state of stage 2
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import settings
import torch
from make_tiny_checkpoint import BF16, F32, tensor_dtype, write_files
from settings import CHECKPOINT, WORK
from tasks import corpus
from tiny_tokenizer import write_tokenizer

from edge.engines.safetensors import write_safetensors


def write_texts(out: Path) -> None:
    """Everything but the weights."""
    out.mkdir(parents=True, exist_ok=True)
    write_files(out, settings.config())
    write_tokenizer(out, settings.config()["llm_config"]["vocab_size"], corpus())


def write_weights(out: Path, state: dict[str, torch.Tensor]) -> int:
    """The weights, rounded to bfloat16 but for the router and frozen tables; returns bytes."""
    tensors = {}
    for key, values in state.items():
        name = key.removeprefix("w.").replace("/", ".")
        array = values.detach().float().numpy()
        if name.endswith("num_batches_tracked"):
            array = np.asarray(1000, np.int64)
        tensors[name] = array.astype(tensor_dtype(name, BF16, router=F32))
    path = out / "model.safetensors"
    write_safetensors(path, tensors)
    return path.stat().st_size


def main() -> None:
    state = torch.load(WORK / "all.pt", weights_only=True)
    write_texts(CHECKPOINT)
    n_bytes = write_weights(CHECKPOINT, state["model"])
    n_parameters = sum(v.numel() for v in state["model"].values())
    print(f"{CHECKPOINT}: {n_parameters / 1e6:.2f} M parameters, {n_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
