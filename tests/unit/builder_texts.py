"""What the builder says and counts of the published model and of a tiny one, as texts to compare.

    python tests/unit/builder_texts.py      # from the root; writes tests/assets/builder

test_builder_texts.py makes the same texts again: whoever changes a figure or a word that a person
or a machine is told sees it in a difference of text.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in (".", "kernels/gpu", "scripts", "tests")]

import msgspec  # noqa: E402
from make_tiny_checkpoint import PRESETS, checkpoint_config  # noqa: E402
from published_config import CONFIG  # noqa: E402

from build_engine import cli, inventory, plans, traffic  # noqa: E402
from build_engine.boards import BOARDS  # noqa: E402
from build_engine.chart import bars, curves  # noqa: E402
from build_engine.decoder_layout import recipe_layout  # noqa: E402
from build_engine.decoder_weights import linears, packed_tensors  # noqa: E402
from build_engine.footprint import (  # noqa: E402
    decoded_bytes,
    encoder_parameters,
    engine_bytes,
    scratch_bytes,
    vision_scratch_bytes,
    weight_bytes,
)
from build_engine.plan import make_plan  # noqa: E402
from build_engine.plans import Options, workspace_bytes  # noqa: E402
from build_engine.profiles import profiles_of  # noqa: E402
from build_engine.quantization_config import quantization_configuration  # noqa: E402
from build_engine.recipe import known_recipes, load_recipe  # noqa: E402
from build_engine.verify import check_grid, check_inputs  # noqa: E402
from edge.model.spec import model_spec  # noqa: E402

KEPT = ROOT / "tests" / "assets" / "builder"
SPEC = model_spec(CONFIG, {})
TINY = model_spec(checkpoint_config(PRESETS["grouped"]), {})
TINY = msgspec.structs.replace(
    TINY, decoder=msgspec.structs.replace(TINY.decoder, pattern="M*E", n_experts=4)
)
PLANS = (
    ("orin-nano-8", "int4", 1, 0.0),
    ("orin-nx-16", "w4a16", 2048, 1.0),
    ("agx-orin-32", "nvfp4", 8192, 2.0),
    ("agx-orin-64", "orin", 100_000, 0.5),
    ("thor-64", "nvfp4-all", 16_384, 8.0),
    ("thor-128", "bf16", 262_144, 30.0),
)


def _flat(value: Any, at: str = "") -> Iterator[str]:
    """A line for each leaf, which may be a list."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _flat(one, f"{at} / {key}" if at else str(key))
    else:
        yield f"{at}: {json.dumps(value)}"


def _json(value: Any) -> str:
    return "\n".join(_flat(msgspec.to_builtins(value)))


def a_plan(board: str, recipe: str, context: int, fps: float) -> str:
    """For people, then for machines."""
    plan = make_plan(SPEC, board, recipe, context, fps)
    return f"{plan.table()}\n{_json(plan.as_dict())}"


def sizes() -> str:
    """Shapes that are compiled for, and the memory that they take; in bytes."""
    found: dict[str, Any] = {}
    for name, spec in (("published", SPEC), ("tiny", TINY)):
        decoder = spec.decoder
        found[f"{name}: encoders"] = encoder_parameters(
            spec.vision, spec.audio, decoder.hidden_size
        )
        found[f"{name}: vision scratch"] = vision_scratch_bytes(spec.vision)
        found[f"{name}: grid of the check"] = check_grid(spec.vision)
        inputs = check_inputs(spec)
        found[f"{name}: inputs of the check"] = {
            n: (v.shape, str(v.dtype), round(float(v.flat[0]), 4)) for n, v in inputs.items()
        }
        for rows in (1, 9000):
            if rows > decoder.max_tokens:
                continue
            found[f"{name}: profiles, {rows} rows"] = {
                graph: {profile.name: dict(profile.shapes) for profile in profiles}
                for graph, profiles in profiles_of(spec, rows).items()
            }
            for target in plans.TARGETS.values():
                for recipe in ("orin", "fp8", "w4a16-all"):
                    layout = recipe_layout(decoder, load_recipe(recipe))
                    decoded = decoded_bytes(layout, target.precision)
                    found[f"{name}: {recipe} on {target.name}, {rows} rows"] = {
                        "decoded": decoded._asdict(),
                        "scratch": scratch_bytes(spec, decoded, rows),
                        "workspace": workspace_bytes(spec, layout, target, rows),
                    }
    for target in plans.TARGETS.values():
        layout = recipe_layout(SPEC.decoder, load_recipe("nvfp4"))
        weights = weight_bytes(layout, target.precision)
        found[f"published: engine on {target.name}"] = engine_bytes(
            SPEC, weights, target.precision, 8192, 7
        )
    found["targets"] = {
        name: (t.name, t.compute_capability, t.stand_in, t.precision.fp8)
        for name, t in plans.TARGETS.items()
    }
    found["computes in FP8"] = {
        f"{major}.{minor}": plans.Target("one", (major, minor), "SM86").precision.fp8
        for major, minor in ((8, 7), (8, 8), (8, 9), (9, 0), (10, 0))
    }
    found["boards"] = {
        b.name: (b.memory_bytes, b.bandwidth_bytes_s, b.target, b.reserved_bytes())
        for b in BOARDS.values()
    }
    found["peers"] = traffic.PEERS
    found["modules"] = traffic.MODULES
    found["options"] = dataclasses.asdict(Options(8192))
    return _json(found)


def tensors() -> str:
    """Name and shape of every tensor of a tiny model; what need not be read, and why."""
    lines = []
    for packed in packed_tensors(TINY.decoder):
        kinds = "".join("x" if flag else "-" for flag in (packed.matrix, packed.linear))
        lines.append(f"{packed.name} {packed.shape} {kinds} {packed.source_shape}")
        lines += [f"    {source}" for source in packed.sources[:3]]
    lines += ["", *linears(TINY.decoder)]
    decoder = {source for packed in packed_tensors(TINY.decoder) for source in packed.sources}
    listed = [*inventory.tensors(TINY), *inventory.buffers(TINY)]
    lines += ["", *(f"{name} {shape}" for name, shape in listed if name not in decoder)]
    lines += ["", *(f"{name}: {inventory.unread(name)}" for name in _unread_names())]
    for recipe in known_recipes():
        layout = recipe_layout(TINY.decoder, load_recipe(recipe))
        lines += ["", recipe, *(f"{n} {dtype} {shape}" for n, (dtype, shape) in layout.items())]
    return "\n".join(lines)


def _unread_names() -> Iterator[str]:
    """One that each pattern takes and no other does, and some that none may take."""
    for pattern in inventory.UNREAD:
        name = pattern.replace("?", "2").replace("*", "7")
        assert fnmatch.fnmatchcase(name, pattern)
        yield name
    yield from ("language_model.x.weight", "mtp", "a.k_scale.b", "vision_model.summary")


def quantization() -> str:
    """What a quantized checkpoint says of itself, by recipe."""
    found = {}
    names = [name.removesuffix(".weight") for name, shape in inventory.tensors(TINY)
             if len(shape) > 1 and name.endswith(".weight")]  # fmt: skip
    for recipe in known_recipes():
        rules = load_recipe(recipe)
        chosen = {
            m: rules.format_of(m.removeprefix("language_model.")) for m in linears(TINY.decoder)
        }
        others = {name for name in names if name not in chosen}
        for cache in ("bf16", "fp8") if recipe in ("bf16", "orin") else (rules.kv_cache,):
            said, embedded = quantization_configuration(chosen, others, cache)
            found[f"{recipe}, {cache}"] = {"said": said, "embedded": embedded}
    return _json(found)


def command_line() -> str:
    """Every argument of every command; argparse prints it as Python's version likes."""
    top = cli.parser()
    lines = [f"{top.prog} | {top.description} | {top.epilog}"]
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help for choice in commands._choices_actions}
    for name, command in commands.choices.items():
        run = command.get_default("run")
        about = " ".join(str(command.description).split())
        lines.append(f"{name} | {helps[name]} | {about} | {run.__name__}")
        for a in command._actions:
            if a.dest != "help":
                kind = getattr(a.type, "__name__", None)
                choices = None if a.choices is None else list(a.choices)
                shown = (a.option_strings, a.dest, a.nargs, a.const, a.default, kind, choices)
                lines.append(f"    {shown} {a.required} {a.metavar} {a.help}")
    return "\n".join(lines)


def pictures() -> str:
    """Bars and curves as they are drawn."""
    shares = {"ours": {"a & b": 0.5, "c": 1.0}, "theirs": {"c": 0.25, "d": 0.0}}
    loss = {"loss": [(0.0, 8.0), (50.0, 4.0), (80.0, 2.0)], "kl": [(25.0, 1.0)]}
    drawn = bars("Shares <1>", shares), curves("Loss", loss), curves("Nothing", {"none": []})
    drawn = *drawn, curves("Flat", {"zero": [(0.0, 0.0)]}), bars("One", {"only": {"x": 0.3}})
    return "\n".join(one.replace("><", ">\n<") for one in drawn)


TEXTS: dict[str, Callable[[], str]] = {
    **{f"plan_{one[0]}": lambda one=one: a_plan(*one) for one in PLANS},  # type: ignore[misc]
    "sizes": sizes,
    "tensors": tensors,
    "quantization": quantization,
    "command_line": command_line,
    "pictures": pictures,
}


def main() -> None:
    """Write them all."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name, text in TEXTS.items():
        (KEPT / f"{name}.txt").write_text(f"{text()}\n")


if __name__ == "__main__":
    main()
