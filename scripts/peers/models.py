"""One random model, in every form that an engine of the comparison reads.

All forms come from one seeded BF16 checkpoint of the scaled-down model:

    checkpoint            published layout, BF16, with tiny encoders
    checkpoint-nvfp4      the same, every linear of the blocks quantized to NVFP4 (recipe w4a16)
    checkpoint-nvfp4-all  the head too (recipe w4a16-all)
    bundle-*              all, built for the cpu engine
    text, text-nvfp4-all  the language model alone, as transformers' NemotronHForCausalLM
    *.gguf                what llama.cpp makes of those

What exists already is not made again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from make_tiny_checkpoint import BF16, make_checkpoint
from peers.shape import SCALED_DOWN
from published_config import LLM_CONFIG

from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.quantize import Job, quantize
from build_engine.recipe import load_recipe
from edge.engines.safetensors import write_safetensors

SEED = 0
FOLDER = Path(__file__).resolve().parent
LLM = {**LLM_CONFIG, **SCALED_DOWN}
PREFIX = "language_model."


def our_bundles(work: Path) -> dict[str, Path]:
    """Bundles of the cpu engine by the format of their linears."""
    bf16 = _once(work / "checkpoint", _write_checkpoint)
    nvfp4 = _once(work / "checkpoint-nvfp4", lambda out: _quantize(bf16, out, "w4a16"))
    whole = _once(work / "checkpoint-nvfp4-all", lambda out: _quantize(bf16, out, "w4a16-all"))
    return {
        "NVFP4": _once(work / "bundle-nvfp4-all", lambda out: _bundle(whole, out)),
        "NVFP4, head BF16": _once(work / "bundle-nvfp4", lambda out: _bundle(nvfp4, out)),
        "BF16": _once(work / "bundle-bf16", lambda out: _bundle(bf16, out)),
    }


def text_models(work: Path) -> dict[str, Path]:
    """The language model alone, by format; call `our_bundles` first."""
    return {
        "BF16": _once(work / "text", lambda out: _write_text(work / "checkpoint", out)),
        "NVFP4": _once(
            work / "text-nvfp4-all", lambda out: _write_text(work / "checkpoint-nvfp4-all", out)
        ),
    }


def gguf_models(work: Path, llama: Path) -> dict[str, Path]:
    """llama.cpp's files by format: converted with its converter, quantized with its quantizer."""
    text = text_models(work)
    convert, pack = FOLDER / "llama_convert.py", FOLDER / "llama_quantize.py"
    bf16 = _once(work / "bf16.gguf", lambda out: _run(convert, llama, text["BF16"], out))
    return {
        "Q4_0": _once(work / "q4_0.gguf", lambda out: _run(pack, llama, bf16, out)),
        "Q4_0, head BF16": _once(
            work / "q4_0-head-bf16.gguf",
            lambda out: _run(pack, llama, bf16, out, "--leave-output-tensor"),
        ),
        "NVFP4": _once(
            work / "nvfp4-all.gguf", lambda out: _run(convert, llama, text["NVFP4"], out)
        ),
        "BF16": bf16,
    }


def _once(out: Path, make: Callable[[Path], object]) -> Path:
    """`out`, made under another name first so that a killed run leaves nothing that looks whole."""
    if not out.exists():
        print(f"making {out.name}", file=sys.stderr, flush=True)
        partial = out.with_name(f"partial-{out.name}")
        shutil.rmtree(partial, ignore_errors=True)  # of a killed run
        make(partial)
        partial.rename(out)
    return out


def _write_checkpoint(out: Path) -> None:
    make_checkpoint(out, "base", {"dtype": BF16, "llm_config": LLM}, SEED)


def _quantize(source: Path, out: Path, recipe: str) -> None:
    job = Job(Checkpoint(source), load_recipe(recipe), (), out)
    quantize(job, lambda *_: None)


def _bundle(source: Path, out: Path) -> None:
    build_bundle(source, out, "cpu", lambda *_: None)


def _write_text(source: Path, out: Path) -> None:
    """The language model under the names that `NemotronHForCausalLM` has in its own files."""
    checkpoint = Checkpoint(source)
    names = [name for name in checkpoint.names() if name.startswith(PREFIX)]
    out.mkdir()
    write_safetensors(
        out / "model.safetensors",
        {n.removeprefix(PREFIX): checkpoint.tensor(n, checkpoint.shape(n)) for n in names},
    )
    config = {
        **checkpoint.config["llm_config"],
        "architectures": ["NemotronHForCausalLM"],
        "torch_dtype": "bfloat16",
    }
    if "quantization_config" in checkpoint.config:
        config["quantization_config"] = checkpoint.config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config, indent=1))


def _run(script: Path, *arguments: Path | str) -> None:
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"bench_peers: {script.name} failed:\n{done.stderr[-3000:]}")
