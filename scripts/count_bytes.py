"""Count the bytes that compiled decoders move, kernel by kernel, and compare them with the record.

    python scripts/count_bytes.py                                # all pairs: some minutes
    python scripts/count_bytes.py --target orin --recipe orin
    python scripts/count_bytes.py --record      # build_engine/traffic.json, docs and README.md anew

One block of each kind of the published model, and the head, are compiled by TensorRT-RTX for what
stands for the target, without a GPU. TensorRT's description of the plan names the tensors that each
kernel reads and writes; each counts whole, once a kernel. Plugins are cut out of the graph, what
they read becomes its outputs and what they make its inputs, and count by `gpu_kernels.traffic`.

Ends with 1 where a part moves more than is recorded, or so much less that it should be recorded.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels" / "gpu"))

import msgspec
import onnx
from onnx import ModelProto, TensorProto, helper
from onnx.inliner import inline_local_functions
from published_config import CONFIG, GENERATION_CONFIG

from build_engine import plans
from build_engine.boards import BOARDS
from build_engine.compile import LAYERS, Order, compile_graph
from build_engine.decoder_layout import recipe_layout
from build_engine.footprint import recurrent_state_bytes
from build_engine.profiles import Profile
from build_engine.recipe import load_recipe
from build_engine.traffic import (
    BANDWIDTH_SHARE,
    MODULES,
    PARTS,
    PEERS,
    RECORD,
    Moved,
    Part,
    Parts,
    Record,
    recorded,
    whole,
)
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.tensorrt import FIRST_BUCKET_ROWS
from edge.model.spec import model_spec
from gpu_kernels.launch import KERNELS
from gpu_kernels.plugins import NAMESPACE, PLUGINS, Phase
from gpu_kernels.traffic import moved_bytes

SPEC = model_spec(CONFIG, GENERATION_CONFIG)
CONTEXT = 8192
TOKENS: dict[Phase, int] = {"decode": 1, "prefill": MAX_PREFILL_TOKENS}
PREFILL_ROWS = 256
"""Of the K/V cache; a prefill is counted with all shapes fixed."""
DEFAULTS = {"orin": "orin", "thor": "nvfp4"}
"""The recipe that is documented for each target."""
RECIPES = ("orin", "w4a16", "w4a16-all", "int4", "nvfp4", "nvfp4-all")
"""Those whose experts our kernels read."""
PAIRS = [(target, recipe) for target in DEFAULTS for recipe in RECIPES]
SLACK = 0.01
"""By which a part may differ from the record."""
ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, README = ROOT / "docs" / "bytes.md", ROOT / "README.md"
BEGIN, END = "<!-- by scripts/count_bytes.py -->\n", "<!-- end -->\n"

BITS = {
    **dict.fromkeys(("Float", "Int32"), 32),
    **dict.fromkeys(("Half", "BFloat16"), 16),
    **dict.fromkeys(("Int8", "UInt8", "Bool", "FP8"), 8),
    **dict.fromkeys(("Int4", "FP4"), 4),
    "Int64": 64,
}
"""Of TensorRT's types, as its descriptions call them."""
KERNEL = re.compile(
    r"Name: (?P<name>.*?), LayerType: \w+, Inputs: \[(?P<reads>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<writes>.*?)\], TacticName:"
)
TENSOR = re.compile(
    r"\{ Name: (?P<name>[^,]+), .*?Dimensions: \[(?P<shape>[-\d,]*)\].*?Datatype: (?P<type>\w+)"
)
ONNX_TYPES = {
    "*fp16": TensorProto.FLOAT16, "*fp32": TensorProto.FLOAT, "*i32": TensorProto.INT32
}  # fmt: skip

Launch = tuple[str, dict[str, Sequence[int]]]
"""A plugin's name and the shapes of its arguments."""


class Decoders:
    """Compiles blocks of the published model and counts what they move; each graph once."""

    def __init__(self, trt: Any, folder: Path) -> None:
        self._trt, self._folder = trt, folder
        self._known: dict[str, Moved] = {}

    def parts(self, target: str, recipe: str, phase: Phase) -> Parts:
        """What each part moves in a call: a block is what it adds to the head alone."""
        head = self.moved(target, recipe, phase, "")
        blocks: Parts = {
            part: self.moved(target, recipe, phase, part).less(head) for part in ("M", "*", "E")
        }
        return {**blocks, "head": head}

    def moved(self, target: str, recipe: str, phase: Phase, pattern: str) -> Moved:
        """What a model of these blocks moves in a call."""
        order, model = self._graph(target, recipe, phase, pattern)
        launches = cut_plugins(model, TOKENS[phase])
        path = self._folder / "without_plugins.onnx"
        path.write_bytes(model.SerializeToString())
        key = f"{target} {phase} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        if key not in self._known:
            said: list[str] = []
            order = replace(order, onnx=path, stand_in=plans.TARGETS[target].stand_in)
            compile_graph(self._trt, order, lambda *_: None, inspect=said.append)
            self._known[key] = count(said[0])
        total = self._known[key]
        for plugin, shapes in launches:
            total += Moved(1, sum(moved_bytes(plugin, shapes).values()))
        return total

    def _graph(
        self, target: str, recipe: str, phase: Phase, pattern: str
    ) -> tuple[Order, ModelProto]:
        """As `build-engine compile` would order it, with the profile of this phase alone."""
        spec = msgspec.structs.replace(
            SPEC, decoder=msgspec.structs.replace(SPEC.decoder, pattern=pattern)
        )
        layout = recipe_layout(spec.decoder, load_recipe(recipe))
        options = plans.Options(CONTEXT, kernels=self._folder)
        orders = plans.orders(spec, layout, None, self._folder, plans.TARGETS[target], options)
        for order in orders:
            for profile in order.profiles:
                if profile.name == phase:
                    model = inline_local_functions(onnx.load(order.onnx))
                    return replace(order, profiles=[_counted(profile)]), model
        raise LookupError(f"no graph has a profile {phase}")


def _counted(profile: Profile) -> Profile:
    """Decode as it is; a prefill with all shapes fixed, for its description to name them."""
    if profile.name == "decode":
        return profile
    shapes = {}
    for name, (_, typical, _) in profile.shapes.items():
        n = PREFILL_ROWS if name.startswith("past_") else MAX_PREFILL_TOKENS
        shapes[name] = ((n, *typical[1:]),) * 3
    return replace(profile, shapes=shapes)


def cut_plugins(model: ModelProto, n_tokens: int) -> list[Launch]:
    """Take the plugins out of a graph; returns them.

    What they read of other nodes becomes an output, what those read of them an input.
    """
    graph, d = model.graph, SPEC.decoder
    plugins = [node for node in graph.node if node.domain == NAMESPACE]
    others = [node for node in graph.node if node.domain != NAMESPACE]
    routes = (n_tokens, d.n_experts_per_token)
    rows = {"x": (n_tokens, d.hidden_size), "ids": routes, "weights": routes}
    shapes: dict[str, Sequence[int]] = {
        i.name: [dim.dim_value for dim in i.type.tensor_type.shape.dim] for i in graph.input
    }
    types: dict[str, int] = {}
    launches: list[Launch] = []
    for node in plugins:
        plugin, kernel = PLUGINS[node.op_type], KERNELS[node.op_type]
        addresses = [(a, kind) for a, kind in kernel.arguments.items() if kind[0] == "*"]
        given = zip(plugin.inputs, node.input, strict=True)
        known = {name: shapes.get(tensor, rows.get(name, ())) for name, tensor in given}
        attributes = {a.name: a.i for a in node.attribute if a.name in plugin.attributes}
        made = plugin.outputs({**known, **attributes})
        outputs = addresses[-kernel.n_outputs :]
        shapes |= dict(zip(node.output, made, strict=True))
        types |= {
            tensor: ONNX_TYPES[kind]
            for tensor, (_, kind) in zip((*node.input, *node.output), addresses, strict=True)
            if kind in ONNX_TYPES
        }
        launches.append(
            (node.op_type, known | {n: s for (n, _), s in zip(outputs, made, strict=True)})
        )
    by_plugins = {name for node in plugins for name in node.output}
    read = {name for node in others for name in node.input}
    made_by_others = {name for node in others for name in node.output}
    kept = [i for i in graph.input if i.name in read]
    kept += [
        helper.make_tensor_value_info(name, types[name], shapes[name])
        for name in sorted(by_plugins & read)
    ]
    wanted = {name for node in plugins for name in node.input} & made_by_others
    graph.output.extend(
        helper.make_tensor_value_info(name, types[name], None) for name in sorted(wanted)
    )
    for field, values in ((graph.input, kept), (graph.node, others)):
        del field[:]
        field.extend(values)
    return launches


def count(description: str) -> Moved:
    """What TensorRT says of a plan: kernels, and the bytes that they read and write.

    Raises:
        ValueError: a line or a type is unknown.
    """
    lines = [line for line in description.splitlines() if "LayerType:" in line]
    if not description.startswith(LAYERS) or not lines:
        raise ValueError(f"no description of a plan: {description[:80]!r}")
    total = Moved(0, 0)
    for line in lines:
        kernel = KERNEL.search(line)
        if kernel is None:
            raise ValueError(f"a line of another form: {line[:200]}")
        sides = [list(_tensors(kernel[side])) for side in ("reads", "constants", "writes")]
        if any(sides):  # others are signals between streams
            total += Moved(1, 0)
        for side in sides:
            for tensor in {str(t["name"]): t for t in side}.values():
                total += _size(tensor)
    return total


def _tensors(text: str) -> Iterator[re.Match[str]]:
    found = list(TENSOR.finditer(text))
    if len(found) != text.count("{ Name:"):
        raise ValueError(f"tensors of another form: {text[:200]}")
    yield from found


def _size(tensor: re.Match[str]) -> Moved:
    """A dimension of -1 is the rows of the K/V cache: that alone is dynamic."""
    if tensor["type"] not in BITS:
        raise ValueError(f"{tensor['name']} is of the unknown type {tensor['type']}")
    shape = [int(n) for n in tensor["shape"].split(",") if n]
    if shape.count(-1) > 1:
        raise ValueError(f"{tensor['name']} has two dynamic dimensions: {shape}")
    n_bytes = abs(math.prod(shape)) * BITS[tensor["type"]] // 8
    return Moved(0, 0, n_bytes) if -1 in shape else Moved(0, n_bytes)


def stored_bytes(recipe: str, part: Part, phase: Phase = "decode") -> int:
    """What a call cannot do without: each weight that it meets once, and states in and out.

    A prefill meets all experts.
    """
    d = msgspec.structs.replace(SPEC.decoder, pattern=part if part != "head" else "")
    total = 2 * recurrent_state_bytes(d)
    for name, (dtype, shape) in recipe_layout(d, load_recipe(recipe)).items():
        of_block = name.startswith("layers.")
        if name == "embeddings" or of_block != (part != "head"):
            continue
        n_bytes = math.prod(shape) * dtype.itemsize
        if ".experts_" in name and phase == "decode":
            n_bytes = n_bytes // d.n_experts * d.n_experts_per_token
        total += n_bytes
    return total


def token_bytes(moved: Moved) -> int:
    """With an empty context: as many rows of the cache are bound as the engine ever binds least."""
    return moved.n_bytes + FIRST_BUCKET_ROWS * moved.row_bytes


def compare(counted: Parts, known: Parts | None) -> list[str]:
    """What a part moves more or less than the record says, in words; nothing where it agrees."""
    if known is None:
        return ["is not recorded"]
    said = []
    for part, moved in counted.items():
        now, before = token_bytes(moved), token_bytes(known[part])
        what = f"{PARTS[part]}: {now / 1e6:.2f} MB a call, recorded {before / 1e6:.2f}"
        if now > before * (1 + SLACK):
            said.append(f"{what}: it moves more than it did")
        elif now < before * (1 - SLACK):
            said.append(f"{what}: it moves less; record it: scripts/count_bytes.py --record")
    return said


def tokens_s(target: str, n_bytes: int) -> float:
    """At the share of the bandwidth that a decode is taken to reach."""
    return BANDWIDTH_SHARE * BOARDS[MODULES[target]].bandwidth_bytes_s / n_bytes


def tables(record: Record) -> str:
    """The record for people, in Markdown."""
    lines = [
        "| board | recipe | kernels | GB a token | stored GB | ratio | tokens/s | GB a prefill |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for target, recipe, phases in _pairs(record):
        decode, prefill = (whole(record.decoder, phases[phase]) for phase in get_args(Phase))
        stored = sum(
            stored_bytes(recipe, part) * (record.decoder.pattern.count(part) or 1) for part in PARTS
        )
        moved = token_bytes(decode)
        lines.append(
            f"| {target} | `{recipe}` | {decode.kernels} | {moved / 1e9:.2f} "
            f"| {stored / 1e9:.2f} | {moved / stored:.2f} | {tokens_s(target, moved):.1f} "
            f"| {prefill.n_bytes / 1e9:.1f} |"
        )
    lines += [
        "",
        "| part | board | recipes | kernels | MB a token | stored MB | ratio | MB a prefill |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (part, figures), recipes in _alike(record).items():
        for boards, names in recipes.items():
            lines.append(f"| {PARTS[part]} | {boards} | {names} | {figures} |")
    lines += [
        "",
        *(_row_line(record, target, recipe) for target, recipe in DEFAULTS.items()),
        "",
        "| board | others, on the board itself | tokens/s | source |",
        "|---|---|---|---|",
    ]
    lines += [f"| {board} | {what} | {speed} | {source} |" for board, what, speed, source in PEERS]
    return "\n".join(lines) + "\n"


def _row_line(record: Record, target: str, recipe: str) -> str:
    d, moved = record.decoder, record.moved[target][recipe]["decode"]["*"].row_bytes
    return (
        f"- On {target} with `{recipe}` each bound row of the K/V cache adds {moved:,} bytes in an "
        f"attention block; its keys and values are {2 * 2 * d.n_kv_heads * d.head_dim:,}."
    )


def _alike(record: Record) -> dict[tuple[Part, str], dict[str, str]]:
    """Part and figures -> boards -> the recipes that give these figures there."""
    found: dict[tuple[Part, str], dict[str, list[str]]] = {}
    for part in PARTS:
        for target, recipe, phases in _pairs(record):
            moved, stored = phases["decode"][part], stored_bytes(recipe, part)
            now = token_bytes(moved)
            figures = (
                f"{moved.kernels} | {now / 1e6:.1f} | {stored / 1e6:.1f} | {now / stored:.2f} "
                f"| {phases['prefill'][part].n_bytes / 1e6:.0f}"
            )
            found.setdefault((part, figures), {}).setdefault(f"`{recipe}`", []).append(target)
    alike: dict[tuple[Part, str], dict[str, str]] = {}
    for key, targets in found.items():
        by_boards = alike.setdefault(key, {})
        for name, boards in targets.items():
            both = ", ".join(boards)
            by_boards[both] = f"{by_boards[both]}, {name}" if both in by_boards else name
    return alike


def _pairs(record: Record) -> Iterator[tuple[str, str, Mapping[Phase, Parts]]]:
    for target, recipes in record.moved.items():
        for recipe, phases in recipes.items():
            yield target, recipe, phases


def document(record: Record) -> str:
    """docs/bytes.md with the record's tables in it."""
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    return before + BEGIN + tables(record) + END + rest.partition(END)[2]


def readme(record: Record) -> str:
    """README.md with the documented recipes' figures in its row."""
    figures = []
    for target, recipe in DEFAULTS.items():
        parts = record.moved[target][recipe]["decode"]
        moved = token_bytes(whole(record.decoder, parts))
        figures.append(
            f"{target} with `{recipe}` {moved / 1e9:.2f} GB a token, {tokens_s(target, moved):.1f} "
            f"tokens/s at {BANDWIDTH_SHARE:.0%} of the bandwidth"
        )
    row = (
        "| bytes that a compiled plan moves | counted in TensorRT-RTX's plans, which may only "
        f"shrink: {'; '.join(figures)}; **not measured** | [docs/bytes.md](docs/bytes.md), "
        "`make test-bytes` |"
    )
    return re.sub(r"^\| bytes that a compiled plan moves .*$", row, README.read_text(), flags=re.M)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", choices=DEFAULTS, help="this one only")
    parser.add_argument("--recipe", choices=RECIPES, help="this one only")
    parser.add_argument("--record", action="store_true", help="keep what is counted")
    options = parser.parse_args()
    trt = importlib.import_module(plans.CHECKER)
    record = Record(f"TensorRT-RTX {trt.__version__}", SPEC.decoder, {})
    if RECORD.is_file():
        record = msgspec.structs.replace(record, moved=dict(recorded().moved))
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        decoders = Decoders(trt, Path(folder))
        for target, recipe in PAIRS:
            if target != (options.target or target) or recipe != (options.recipe or recipe):
                continue
            known = record.moved.get(target, {}).get(recipe, {})
            counted: dict[Phase, Parts] = {}
            for phase in get_args(Phase):
                counted[phase] = decoders.parts(target, recipe, phase)
                said = compare(counted[phase], known.get(phase))
                problems += [f"{target} {recipe} {phase}: {problem}" for problem in said]
            record.moved.setdefault(target, {})[recipe] = counted
            moved = token_bytes(whole(SPEC.decoder, counted["decode"]))
            print(
                f"{target} {recipe}: {moved / 1e9:.2f} GB a token, "
                f"{tokens_s(target, moved):.1f} tokens/s",
                flush=True,
            )
    if options.record:
        in_order = {
            target: {recipe: by[recipe] for recipe in RECIPES if recipe in by}
            for target, by in ((target, record.moved.get(target, {})) for target in DEFAULTS)
        }
        record = msgspec.structs.replace(record, moved=in_order)
        text = json.dumps(msgspec.to_builtins(record), indent=1)
        RECORD.write_text(text + "\n")
        DOCUMENT.write_text(document(record))
        README.write_text(readme(record))
    else:
        print(*problems, sep="\n", file=sys.stderr)
    print(json.dumps(msgspec.to_builtins(record)["moved"]))
    return int(bool(problems) and not options.record)


if __name__ == "__main__":
    sys.exit(main())
