"""Each known trap of this model, put back into the source: the goldens must notice.

A mutant is one edit of one file in a copy of the project; a fresh process then compares that copy
with the goldens as `test_goldens.py` does, its operations in numpy, where they can be edited.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge import _kernels

ROOT = Path(__file__).resolve().parents[2]
COMPARE = """
import sys
from pathlib import Path
root, preset = Path(sys.argv[1]), sys.argv[2]
# An editable install puts a finder in front, which would find the original.
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
sys.path[:0] = [str(root), str(root / "scripts"), str(root / "tests")]
import numpy as np
from make_tiny_checkpoint import make_checkpoint
from build_engine.bundle import build_bundle
from edge.engines.bundle import Bundle
from reference_engine import ReferenceEngine
from parity import GOLDENS, disagreements, golden_part, runtime_outputs
make_checkpoint(root / "work" / preset, preset)
build_bundle(root / "work" / preset, root / "bundle", "cpu", lambda *_: None)
outputs = runtime_outputs(ReferenceEngine(Bundle(root / "bundle"), n_threads=1), root / "bundle")
with np.load(GOLDENS / f"{preset}.npz") as stored:
    wrong = disagreements(golden_part(outputs), dict(stored))
print("disagree:", " ".join(sorted(wrong)))
"""

OPS, DECODER, MEL = "edge/engines/reference_ops.py", "edge/model/decoder.py", "edge/features/mel.py"
AUDIO, VISION = "build_engine/graphs/audio.py", "build_engine/graphs/vision.py"
PIXELS = "edge/features/pixels.py"
SPEC, TOKENS = "edge/model/spec.py", "edge/model/prompt.py"

# name: (file, the right text, the wrong text, what must disagree, preset)
MUTANTS = {
    "none": (OPS, "import numpy as np", "import numpy as np", "", "base"),
    "dt clamped at 0.001": (
        OPS,
        'return softplus(dt + self.weights[f"layers.{layer}.dt_bias"])',
        'return np.maximum(softplus(dt + self.weights[f"layers.{layer}.dt_bias"]), 0.001)',
        "blocks",
        "base",
    ),
    "rotary positions": (
        OPS,
        "        row_shape = (n, spec.n_kv_heads, spec.head_dim)\n",
        "        row_shape = (n, spec.n_kv_heads, spec.head_dim)\n"
        "        q, k = (rotary(t, n_past, spec.head_dim) for t in (q, k))\n",
        "blocks",
        "base",
    ),
    "correction bias in the weights": (
        OPS,
        "weights = np.take_along_axis(scores, ids, axis=-1)",
        'weights = np.take_along_axis(scores + self.weights[f"layers.{layer}.gate_bias"], ids, 1)',
        "blocks",
        "base",
    ),
    "correction bias ignored": (
        OPS,
        'self.group_limited(scores + self.weights[f"layers.{layer}.gate_bias"])',
        "self.group_limited(scores)",
        "blocks",
        "base",
    ),
    "groups ignored": (
        OPS,
        "if spec.n_expert_groups == 1:",
        "if True:",
        "blocks",
        "grouped",
    ),
    "weights not normalised away": (
        OPS,
        "if spec.norm_topk_prob:",
        "if True:",
        "blocks",
        "single",
    ),
    "shared expert scaled": (
        DECODER,
        "return ops.add(ops.experts(x, ids, weights, layer), shared)",
        "return ops.add(ops.experts(x, ids, weights, layer), shared * 2.5)",
        "blocks",
        "base",
    ),
    "norm before gate": (
        OPS,
        "        gated = (y * silu(gate)).reshape(len(y), self.spec.n_groups, -1)\n"
        "        return _normalised(gated, self.spec.norm_eps).reshape(y.shape) "
        "* self.weights[weight]",
        "        grouped = y.reshape(len(y), self.spec.n_groups, -1)\n"
        "        return _normalised(grouped, self.spec.norm_eps).reshape(y.shape) "
        "* self.weights[weight] * silu(gate)",
        "blocks",
        "base",
    ),
    "one norm over all groups": (
        OPS,
        "gated = (y * silu(gate)).reshape(len(y), self.spec.n_groups, -1)",
        "gated = (y * silu(gate)).reshape(len(y), 1, -1)",
        "blocks",
        "base",
    ),
    "frames not centred": (
        MEL,
        "_compute_frames(samples, -_WINDOW // 2, frames, n_threads)",
        "_compute_frames(samples, 0, frames, n_threads)",
        "mel",
        "base",
    ),
    "relative position shifted by one": (
        AUDIO,
        "positions = np.arange(n_tokens - 1, -n_tokens, -1)",
        "positions = np.arange(n_tokens - 1, -n_tokens, -1) + 1",
        "audio_features",
        "base",
    ),
    "batch norm not applied": (
        AUDIO,
        "gain = gamma / np.sqrt(variance + spec.batch_norm_eps)",
        "gain = gamma",
        "audio_features",
        "base",
    ),
    "layer norm epsilon of the audio tower": (
        SPEC,
        "projector_size: int\n    norm_eps: float = 1e-5",
        "projector_size: int\n    norm_eps: float = 1e-6",
        "audio_features",
        "base",
    ),
    "GELU by tanh": (
        VISION,
        'erf = graph.op("Erf", graph.op("Mul", x, np.float32(math.sqrt(0.5))))',
        'erf = graph.op("Tanh", graph.op("Mul", x, np.float32(0.79788456)))',
        "image_features",
        "base",
    ),
    "positions without the half pixel": (
        "edge/features/positions.py",
        "source = np.maximum(output * scale - np.float32(0.5), np.float32(0))",
        "source = np.maximum((output - np.float32(0.5)) * scale, np.float32(0))",
        "image_features",
        "base",
    ),
    "odd frame dropped": (
        PIXELS,
        "time + 1 :] = tubelets[-1, :, time, None]",
        "time + 1 :] = tubelets[0, :, 0, None]",
        "tubelet_features",
        "base",
    ),
    "frame times in exact seconds": (
        TOKENS,
        "frame_ms = int(1000 / source_fps)",
        "frame_ms = 1000 / source_fps",
        "prompt_ids",
        "base",
    ),
}
ROTARY = """

def rotary(rows, n_past, head_dim):
    speeds = 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = (n_past + np.arange(len(rows)))[:, None] * speeds
    x = rows.reshape(len(rows), -1, head_dim)
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    turned = np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.reshape(rows.shape).astype(np.float32)
"""


def project_copy(folder: Path) -> None:
    for name in ("edge", "build_engine", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_kernels.__file__, folder / "edge")
    (folder / "tests" / "assets").mkdir(parents=True)
    for name in ("parity.py", "reference_engine.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    shutil.copytree(ROOT / "tests" / "assets" / "goldens", folder / "tests" / "assets" / "goldens")


@pytest.mark.parametrize("name", MUTANTS)
def test_the_goldens_notice(name, tmp_path):
    file, right, wrong, disagrees, preset = MUTANTS[name]
    project_copy(tmp_path)
    source = (tmp_path / file).read_text()
    assert source.count(right) == 1, f"{file} has changed: the mutant {name!r} needs a new text"
    (tmp_path / file).write_text(source.replace(right, wrong) + (ROTARY if file == OPS else ""))
    run = subprocess.run(
        [sys.executable, "-c", COMPARE, str(tmp_path), preset],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = run.stdout.split()[1:]
    assert found == [] if not disagrees else disagrees in found
