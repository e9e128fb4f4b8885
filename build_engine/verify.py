"""Self-check: a bundle carries inputs and what they gave; an engine must reproduce them.

The stored outputs are the cpu engine's, with activations in float32. Every engine replays the same
inputs by the same calls; only the tolerance differs, because a GPU computes in other formats.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import edge
from edge.engines.bundle import REBUILD, SELF_CHECK, Bundle, Manifest
from edge.engines.choose import CPU, TENSORRT, open_tensorrt
from edge.engines.cpu import CpuEngine
from edge.engines.engine import AnyEngine
from edge.engines.stored_check import check_grid
from edge.engines.tensorrt import TensorrtEngine
from edge.errors import BundleError
from edge.model.prompt import ChatTemplate
from edge.model.spec import ModelSpec
from edge.model.tokenizer import Tokenizer

N_TEXT_TOKENS = 24
N_DECODED_TOKENS = 4
N_GREEDY_TOKENS = 64
FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be from the stored one."""

    error: float
    """Largest difference, as a part of the largest stored value."""
    cosine: float
    """Between the rows' deviations from their mean."""


EXACT = Tolerance(5e-5, 1 - 1e-8)
"""The cpu engine: BLAS and ONNX Runtime versions differ by about 1e-6 in float32."""
ENCODERS = Tolerance(1e-1, 0.995)
"""bfloat16 has 8 bits: 24 to 32 layers of it. An estimate; no device has been measured."""
HALF = Tolerance(1e-1, 0.995)
"""Weights of 16 bits or fewer, activations in float16. Emulated on 12 small random models: at most
8.3e-3, cosine at least 0.9999; the rest is for a routed expert that flips at a near tie."""
FP8 = Tolerance(5e-1, 0.9)
"""Activations in FP8 too, where the GPU multiplies them and the recipe has scales for them. An
estimate: emulated on the same models, whose narrow layers average little out, the median was 0.31
and 0.96, the worst 1.05 and 0.75. The first report from a device should replace it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output beside the stored one."""

    name: str
    error: float
    cosine: float
    tolerance: Tolerance

    @property
    def agrees(self) -> bool:
        """Within both bounds; a NaN is not."""
        return self.error <= self.tolerance.error and self.cosine >= self.tolerance.cosine


@dataclass(frozen=True, slots=True)
class Verification:
    """What a self-check found. Nothing in it names a person, a machine or a folder."""

    engine: str
    gpu: str | None
    tensorrt: str | None
    recipe: str
    checkpoint_sha256: str
    omni_edge: str
    outputs: tuple[Comparison, ...]
    controls: tuple[Comparison, ...]
    """The same of wrong inputs: these must not agree."""
    n_greedy_same: int
    """Of N_GREEDY_TOKENS: where the stored token is the likeliest here too."""
    seconds: dict[str, float]
    memory_bytes: dict[str, int]
    plan_warnings: dict[str, tuple[str, ...]]
    """Of each graph, what TensorRT said when its plan was made."""

    @property
    def problem(self) -> str | None:
        """The first thing that is wrong."""
        for found in self.outputs:
            if not found.agrees:
                return (
                    f"self-check of {found.name} differs by {found.error:.1e} of its largest value "
                    f"(cosine {found.cosine:.6f}); {found.tolerance.error:.0e} may be"
                )
        for found in self.controls:
            if found.agrees:
                return f"self-check of {found.name} agrees with wrong inputs: it shows nothing"
        return None

    def require(self, path: Path) -> None:
        """Refuse the bundle if something is wrong.

        Raises:
            BundleError: so it is.
        """
        if self.problem:
            what = "machine's numpy and onnxruntime" if self.engine == CPU else "plans"
            raise BundleError(path, self.problem, f"check the {what}, or {REBUILD}")

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"passed": self.problem is None, "problem": self.problem, **asdict(self)}

    def table(self) -> str:
        """For people."""
        where = f"tensorrt {self.tensorrt} on {self.gpu}" if self.gpu else self.engine
        line = "{:10} {:>10} {:>10} {:>11}   {:10}"
        rows = [f"engine {where}, recipe {self.recipe}", ""]
        rows += [line.format("output", "max error", "allowed", "cosine", "")]
        for kind, found in [
            *(("", found) for found in self.outputs),
            *(("control", found) for found in self.controls),
        ]:
            right = found.agrees is not bool(kind)
            rows.append(
                line.format(
                    found.name,
                    f"{found.error:.1e}",
                    f"{'>' if kind else ''}{found.tolerance.error:.0e}",
                    f"{found.cosine:.6f}",
                    f"{kind} {'ok' if right else 'WRONG'}".strip(),
                )
            )
        rows.append(f"{'greedy':10} {self.n_greedy_same} of {N_GREEDY_TOKENS} tokens are the same")
        rows += ["", *(f"{name:28} {s * 1e3:10.2f} ms" for name, s in self.seconds.items())]
        rows += [f"{name:28} {n / 1e6:10.1f} MB" for name, n in self.memory_bytes.items()]
        return "\n".join(rows)


def check_inputs(spec: ModelSpec) -> dict[str, NDArray[Any]]:
    """Random inputs of every kind, the same for the same model."""
    rng = np.random.default_rng(0)
    vision = spec.vision
    n_patches, n_features = math.prod(check_grid(vision)), 3 * vision.patch_size**2
    tubelet_shape = (2, n_patches, vision.tubelet_frames * n_features)
    return {
        "image": rng.standard_normal((n_patches, n_features), np.float32),
        "tubelets": rng.standard_normal(tubelet_shape, np.float32),
        "mel": rng.standard_normal((43, spec.audio.n_mels), np.float32),
        "ids": rng.integers(0, spec.decoder.vocab_size, N_TEXT_TOKENS, np.int32),
    }


class Stopwatch:
    """Seconds by name; each name's shortest turn counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, call: Any, *arguments: Any) -> Any:
        """What the call gives."""
        started = time.monotonic()
        result = call(*arguments)
        took = time.monotonic() - started
        self.seconds[name] = min(took, self.seconds.get(name, math.inf))
        return result


def perceive(
    engine: AnyEngine, inputs: Mapping[str, NDArray[Any]], watch: Stopwatch
) -> tuple[dict[str, NDArray[Any]], Any, NDArray[Any]]:
    """Features of each sense; a state that has seen them and the text; its last logits."""
    grid = check_grid(engine.spec.vision)
    image = watch.time("image", engine.encode_image, inputs["image"], grid)
    tubelets = watch.time("two tubelets", engine.encode_tubelets, inputs["tubelets"], grid)
    audio = watch.time("0.43 s of sound", engine.encode_audio, inputs["mel"])
    rows = np.concatenate([image, *tubelets, audio, engine.embed(inputs["ids"])])
    state, n_text = engine.new_state(), len(inputs["ids"])
    engine.prefill(state, rows[:-n_text])
    logits = watch.time(f"prefill of {n_text} tokens", engine.prefill, state, rows[-n_text:])
    return {"image": image, "tubelets": tubelets, "audio": audio}, state, logits


def replay(
    engine: AnyEngine,
    inputs: Mapping[str, NDArray[Any]],
    greedy: NDArray[np.int32] | None = None,
    watch: Stopwatch | None = None,
) -> dict[str, NDArray[Any]]:
    """What `engine` makes of the inputs.

    Args:
        greedy: tokens to go on with, each the likeliest to another engine; None: to this one.
    Returns:
        Features of each sense; `logits` after them and after some tokens; `restored`, the same
        tokens' after a snapshot was restored; `greedy` and how much likelier than each of these
        tokens another one was here (`shortfall`, of the largest logit).
    """
    watch = watch or Stopwatch()
    outputs, state, last = perceive(engine, inputs, watch)
    before = watch.time("snapshot", engine.snapshot, state)
    tokens = [int(token) for token in inputs["ids"][:N_DECODED_TOKENS]]
    decoded = [engine.decode(state, token) for token in tokens]
    watch.time("restore", engine.restore, state, before)
    again = [engine.decode(state, token) for token in tokens]
    engine.restore(state, before)
    outputs["logits"], outputs["restored"] = np.stack([last, *decoded]), np.stack(again)
    said, shortfall, logits = [], [], last
    for i in range(N_GREEDY_TOKENS):
        said.append(int(logits.argmax()) if greedy is None else int(greedy[i]))
        shortfall.append((logits.max() - logits[said[-1]]) / np.abs(logits).max())
        logits = watch.time("decode of a token", engine.decode, state, said[-1])
    outputs["greedy"] = np.array(said, np.int32)
    outputs["shortfall"] = np.array(shortfall, np.float32)
    return outputs


def write_self_check(engine: AnyEngine, folder: Path) -> None:
    """Store the inputs and outputs as the bundle's selfcheck.npz."""
    inputs = check_inputs(engine.spec)
    outputs = replay(engine, inputs)
    stored: dict[str, Any] = {f"input.{name}": values for name, values in inputs.items()}
    stored |= {f"output.{name}": values for name, values in outputs.items()}
    np.savez(folder / SELF_CHECK, **stored)


def verify(path: Path, engine: str | None = None) -> Verification:
    """Open a bundle, check every byte, replay its self-check.

    Args:
        engine: None is tensorrt if the bundle holds plans, cpu if it does not.
    Raises:
        BundleError: it is damaged, or not for this machine.
        CheckpointError: its tokenizer or its chat template cannot be used.
        DeviceError: there is no GPU for it.
    """
    bundle = Bundle(path)
    check_prompts(path)
    started = time.monotonic()
    if (engine or (TENSORRT if bundle.manifest.plans else CPU)) == CPU:
        return examine(bundle, CpuEngine(bundle, exact=True, frugal=True), started)
    on_gpu = open_tensorrt(bundle, unverified=True)
    found = examine(bundle, on_gpu, started)
    on_gpu.close()
    return found


def check_prompts(folder: Path) -> None:
    """Whether what makes prompts can: the tokenizer is whole, the template writes conversations.

    Raises:
        CheckpointError: it cannot.
    """
    Tokenizer(folder)
    ChatTemplate(folder).probe()


def examine(bundle: Bundle, engine: AnyEngine, started: float) -> Verification:
    """Replay a bundle's self-check on an engine that began to load at `started`."""
    watch = Stopwatch()
    watch.seconds["load"] = time.monotonic() - started
    stored = bundle.self_check()
    inputs = {k.removeprefix("input."): v for k, v in stored.items() if k.startswith("input.")}
    expected = {k.removeprefix("output."): v for k, v in stored.items() if k.startswith("output.")}
    if "shortfall" not in expected:
        raise BundleError(bundle.path, "has a self-check of an older builder", REBUILD)
    outputs = replay(engine, inputs, expected["greedy"], watch)
    wrong, _, logits = perceive(engine, wrong_inputs(inputs), Stopwatch())
    wrong["logits"] = np.broadcast_to(logits, expected["logits"].shape)
    manifest, on_gpu = bundle.manifest, isinstance(engine, TensorrtEngine)
    allowed = tolerances(bundle) if on_gpu else dict.fromkeys(expected, EXACT)
    comparisons = [
        compare(name, outputs[name], expected[name], allowed[name])
        for name in ("image", "tubelets", "audio", "logits", "restored")
    ]
    late = float(outputs["shortfall"].max())
    comparisons.append(Comparison("greedy", late, 1.0, allowed["logits"]))
    return Verification(
        engine=TENSORRT if on_gpu else CPU,
        gpu=str(engine.device) if isinstance(engine, TensorrtEngine) else None,
        tensorrt=manifest.plans.tensorrt if on_gpu and manifest.plans else None,
        recipe=manifest.recipe,
        checkpoint_sha256=manifest.checkpoint_sha256,
        omni_edge=edge.__version__,
        outputs=tuple(comparisons),
        controls=tuple(compare(n, v, expected[n], allowed[n]) for n, v in wrong.items()),
        n_greedy_same=int(np.count_nonzero(outputs["shortfall"] == 0)),
        seconds=watch.seconds,
        memory_bytes=(
            engine.memory_bytes
            if isinstance(engine, TensorrtEngine)
            else {"resident at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        ),
        plan_warnings=manifest.plans.warnings if on_gpu and manifest.plans else {},
    )


def wrong_inputs(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Others of the same kind: in reverse order, and what is seen and heard also negated."""
    backwards = {name: np.ascontiguousarray(values[::-1]) for name, values in inputs.items()}
    return {n: values if n == "ids" else np.negative(values) for n, values in backwards.items()}


def tolerances(bundle: Bundle) -> dict[str, Tolerance]:
    """What a GPU may differ by, by output."""
    plans = bundle.manifest.plans
    capability = tuple(map(int, plans.compute_capability.split("."))) if plans else (0, 0)
    scaled = any(name.endswith(".input_scale") for name in bundle.decoder_weights())
    decoder = FP8 if scaled and capability >= FP8_CAPABILITY else HALF
    return {
        **dict.fromkeys(("image", "tubelets", "audio"), ENCODERS),
        **dict.fromkeys(("logits", "restored"), decoder),
    }


def compare(
    name: str, values: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance
) -> Comparison:
    """One output and the stored one."""
    a, b = values.astype(np.float64), expected.astype(np.float64)
    if a.shape != b.shape:
        return Comparison(name, math.inf, 0.0, tolerance)
    if not b.any():  # a model whose sizes or weights leave nothing
        return Comparison(name, math.inf if a.any() else 0.0, 1.0, tolerance)
    error = float(np.abs(a - b).max() / np.abs(b).max())
    common = b.mean(axis=-2, keepdims=True)  # of all rows: any input gives that part
    a, b = a - common, b - common
    lengths = math.sqrt((a * a).sum() * (b * b).sum())
    cosine = float((a * b).sum() / lengths) if lengths else float(np.array_equal(a, b))
    return Comparison(name, error, cosine, tolerance)


def marked(manifest: Manifest, found: Verification) -> Manifest:
    """The manifest of a bundle whose plans were found right on a GPU."""
    if manifest.plans is None or found.gpu is None:
        return manifest
    return msgspec.structs.replace(
        manifest, plans=msgspec.structs.replace(manifest.plans, verified=found.gpu)
    )
