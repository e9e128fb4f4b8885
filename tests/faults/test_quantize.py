"""Quantizing under bad conditions: killed, no room, damaged sources, contradictory wishes."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from make_tiny_checkpoint import PRESETS, checkpoint_config, make_checkpoint
from synthesize_checkpoint import synthesize

from build_engine import cli
from build_engine.checkpoint import Checkpoint
from build_engine.decoder_weights import packed_tensors
from build_engine.quantize import Job, quantize
from build_engine.recipe import load_recipe
from edge.engines.safetensors import SafetensorsFile, write_safetensors
from edge.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
MIXER = "language_model.backbone.layers.1.mixer"
EXPERT = f"{MIXER}.experts.3.up_proj"

RUN = """
import sys
from pathlib import Path
from build_engine.checkpoint import Checkpoint
from build_engine.quantize import Job, quantize
from build_engine.recipe import load_recipe

job = Job(Checkpoint(Path(sys.argv[1])), load_recipe("w4a16"), (), Path(sys.argv[2]))
quantize(job, lambda done, total: (print(done, flush=True), sys.stdin.readline()))
"""
LIMITED = """
import resource, sys
from build_engine.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(capsys, source: Path, out: Path, recipe: object = "w4a16") -> tuple[int, str]:
    """Exit code, and the one line on standard error if there is one."""
    code = cli.main(["quantize", str(source), str(out), "--recipe", str(recipe), "--json"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (code != 0), lines
    return code, "".join(lines)


def refused(capsys, source: Path, tmp_path: Path, recipe: object = "w4a16") -> tuple[int, str]:
    """As `run`, and nothing is left that looks finished."""
    code, line = run(capsys, source, tmp_path / "out", recipe)
    assert code != 0
    assert not (tmp_path / "out").exists()
    return code, line


@pytest.fixture(scope="module")
def many_layers(tmp_path_factory):
    """A checkpoint of 30 small layers, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("many")
    changes = {"llm_config": {"hybrid_override_pattern": "ME*" * 10}}
    make_checkpoint(folder / "checkpoint", "base", changes)
    assert cli.main(["quantize", *map(str, folder.iterdir()), str(folder / "whole"), *W4A16]) == 0
    return folder / "checkpoint", files(folder / "whole")


W4A16 = ("--recipe", "w4a16", "--json")


def kill(source: Path, out: Path, after: int, delay_s: float) -> bool:
    """Start or go on, and kill a moment after so many layers; False if it ended before."""
    command = [sys.executable, "-c", RUN, str(source), str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, bufsize=0, **pipes) as process:
        for _ in range(after):
            assert process.stdout.readline()
            process.stdin.write(b"\n")  # it waits for this after every layer
        until = time.perf_counter() + delay_s
        while time.perf_counter() < until:
            pass  # anywhere within the next layer: that is the point
        process.kill()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


def test_killed_ten_times_it_ends_with_the_same_bytes(many_layers, tmp_path):
    source, whole = many_layers
    rng, out = random.Random(7), tmp_path / "out"
    n_units = sum(name.endswith(".safetensors") for name in whole)
    assert n_units == 31
    interrupted, found = 0, set()
    for after in [*sorted(rng.sample(range(n_units), 9)), n_units]:
        interrupted += kill(source, out, after, rng.uniform(0, 0.006))
        if out.exists():
            break
        found.add(len(list((tmp_path / ".out.partial").glob("*.safetensors"))))
    else:
        command = [sys.executable, "-c", RUN, str(source), str(out)]
        subprocess.run(command, cwd=ROOT, check=True, input=b"", capture_output=True)
    assert interrupted >= 9  # the tenth may come too late
    assert len(found) >= 5, found
    assert files(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_survived(many_layers, tmp_path):
    """A limit on the size of files stands for the disk: the largest shard does not fit."""
    source, whole = many_layers
    out = tmp_path / "out"
    limit = max(map(len, whole.values())) - 1
    command = [sys.executable, "-c", LIMITED, str(limit), "quantize", str(source), str(out), *W4A16]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 74
    assert ended.stderr == "build-engine: while writing: File too large\n"
    assert not out.exists()
    shards = [p.name for p in (tmp_path / ".out.partial").glob("*.safetensors")]
    assert 0 < len(shards) < 31
    assert cli.main(["quantize", str(source), str(out), *W4A16]) == 0
    assert files(out) == whole


def test_a_disk_that_is_too_small_is_refused_before_the_start(
    checkpoint, tmp_path, capsys, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, line = refused(capsys, checkpoint("base"), tmp_path)
    assert code == 78
    assert "needs 0.3 GB, 0.0 GB are free; make room" in line
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_memory_that_is_too_small_is_refused_before_the_start(
    checkpoint, tmp_path, capsys, monkeypatch
):
    assert run(capsys, checkpoint("base"), tmp_path / "whole", "bf16")[0] == 0
    shards = [SafetensorsFile(path) for path in (tmp_path / "whole").glob("*.safetensors")]
    largest = max(sum(map(shard.n_bytes, shard.names())) for shard in shards)
    needed_kb = (2**30 + largest * 3 // 2) // 1024 + 1
    said = tmp_path / "meminfo"
    monkeypatch.setattr("build_engine.quantize.MEMINFO", said)
    said.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {needed_kb - 1} kB\nHugePages_Free: 0\n")
    code, line = refused(capsys, checkpoint("base"), tmp_path)
    assert code == 78
    assert "out: needs 1.1 GB of memory, 1.1 GB are available; end other programs" in line
    assert not list((tmp_path / ".out.partial").glob("*.safetensors"))
    said.write_text(f"MemAvailable: {needed_kb} kB\n")
    assert run(capsys, checkpoint("base"), tmp_path / "out")[0] == 0
    said.unlink()  # no Linux: nothing is known
    assert run(capsys, checkpoint("base"), tmp_path / "again")[0] == 0


def interrupted(source: Path, out: Path, recipe: str = "w4a16", n_units: int = 3) -> None:
    """Leave a run unfinished."""
    done = []

    def progress(*_: int) -> None:
        done.append(None)
        if len(done) == n_units:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(Job(Checkpoint(source), load_recipe(recipe), (), out), progress)


def test_what_a_kill_left_unfinished_is_written_again(checkpoint, tmp_path, capsys):
    """A shard that was being written, and files of the very end."""
    out, work = tmp_path / "out", tmp_path / ".out.partial"
    assert run(capsys, checkpoint("base"), tmp_path / "whole")[0] == 0
    interrupted(checkpoint("base"), out)
    next_shard = "model-00004-of-00009.safetensors"
    assert not (work / next_shard).exists()
    left = [f"{next_shard}.partial", "config.json", "config.json.partial", "tokenizer.json"]
    for name in [*left, "provenance.json.partial", "model.safetensors.index.json"]:
        (work / name).write_bytes(b'{"half')
    assert run(capsys, checkpoint("base"), out)[0] == 0
    assert files(out) == files(tmp_path / "whole")


def test_another_interrupted_run_is_not_continued(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    interrupted(checkpoint("base"), out)
    code, line = refused(capsys, checkpoint("base"), tmp_path, "bf16")
    assert code == 78
    assert ".out.partial: holds another, interrupted run" in line
    code, line = refused(capsys, checkpoint("single"), tmp_path)
    assert (code, "holds another, interrupted run" in line) == (78, True)
    assert run(capsys, checkpoint("base"), out)[0] == 0
    assert run(capsys, checkpoint("base"), tmp_path / "again")[0] == 0
    assert files(out) == files(tmp_path / "again")


def test_an_output_that_exists_is_left_alone(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    code, line = run(capsys, checkpoint("base"), out)
    assert code == 78
    assert f"{out}: exists already; remove it or name another folder" in line
    assert files(out) == {"mine": b"precious"}


@pytest.mark.parametrize("recipe", ["fp8", "nvfp4", "nvfp4-all"])
def test_missing_samples_are_named(checkpoint, tmp_path, capsys, recipe):
    code, line = refused(capsys, checkpoint("base"), tmp_path, recipe)
    assert code == 78
    assert "--samples: are missing: this recipe quantizes activations" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("there", "said"), [((), "modelopt: .*pip install"), (("modelopt",), "torch: .*install torch")]
)
def test_without_modelopt_or_torch_a_calibrated_recipe_says_what_to_install(
    checkpoint, tmp_path, monkeypatch, there, said
):
    known = {name: object() for name in there}
    monkeypatch.setattr("build_engine.quantize.find_spec", known.get)
    samples = (np.ones((3, 64), np.float32),)
    job = Job(Checkpoint(checkpoint("base")), load_recipe("fp8"), samples, tmp_path / "out")
    with pytest.raises(ConfigurationError, match=said):
        quantize(job, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def own_recipe(tmp_path: Path, **formats: str) -> Path:
    """A recipe of one rule for each pattern."""
    path = tmp_path / "own.toml"
    rules = [f'[[rules]]\nmodules = "{m}"\nformat = "{f}"\n' for m, f in formats.items()]
    path.write_text('description = "mine"\n' + "".join(rules))
    return path


def test_a_quantized_cache_alone_needs_samples_too(checkpoint, tmp_path, capsys):
    recipe = tmp_path / "own.toml"
    recipe.write_text('description = "mine"\nkv_cache = "fp8"\n')
    code, line = refused(capsys, checkpoint("base"), tmp_path, recipe)
    assert (code, "--samples: are missing" in line) == (78, True)


def test_samples_that_no_linear_needs_are_not_looked_at(checkpoint, tmp_path):
    """And ModelOpt is not imported."""
    samples = (np.ones((3, 64), np.float32),)
    for name, given in (("with", samples), ("without", ())):
        job = Job(Checkpoint(checkpoint("base")), load_recipe("w4a16"), given, tmp_path / name)
        assert quantize(job, lambda *_: None) == {"bf16": 1, "w4a16": 116}
    assert files(tmp_path / "with") == files(tmp_path / "without")


def test_experts_need_one_format(checkpoint, tmp_path, capsys):
    recipe = own_recipe(tmp_path, **{"*.experts.3.*": "bf16", "*_proj": "w4a16"})
    code, line = refused(capsys, checkpoint("base"), tmp_path, recipe)
    assert code == 78
    assert "layers.1.experts_up: has its experts in bf16 and w4a16 by this recipe" in line


@pytest.mark.parametrize(
    ("modules", "near"),
    [
        ("*.mixer.expert.*", "backbone.layers.*.mixer.experts.*.up_proj"),
        ("head", "lm_head"),
        ("*embeddings*", "backbone.layers.*.mixer."),
        ("*.mixer.gate", "backbone.layers.*.mixer."),
        ("vision_model.*", "backbone.layers.*.mixer."),
        ("language_model.*.in_proj", "backbone.layers.*.mixer.in_proj"),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "plan"])
def test_a_rule_that_names_no_linear_is_an_error(
    checkpoint, tmp_path, capsys, modules, near, command
):
    recipe = own_recipe(tmp_path, **{"*.in_proj": "w4a16", modules: "w4a16"})
    words = [str(checkpoint("base")), "--recipe", str(recipe)]
    words += ["--board", "thor-128"] if command == "plan" else []
    out = [str(tmp_path / "out")] if command == "quantize" else []
    assert cli.main([command, words[0], *out, *words[1:]]) == 78
    line = capsys.readouterr().err
    assert f"rule '{modules}': names no linear of this model; linears are " in line
    assert near in line
    assert not (tmp_path / ".out.partial").exists()


def test_a_rule_behind_others_that_decide_all_is_an_error(checkpoint, tmp_path, capsys):
    recipe = own_recipe(tmp_path, **{"*": "bf16", "*.in_proj": "w4a16"})
    code, line = refused(capsys, checkpoint("base"), tmp_path, recipe)
    assert (code, "rule '*.in_proj': rules before it decide all that it names" in line) == (
        78,
        True,
    )


def test_the_builders_own_recipes_are_for_models_without_some_layers_too(tmp_path, capsys):
    make_checkpoint(
        tmp_path / "checkpoint", "base", {"llm_config": {"hybrid_override_pattern": "MM"}}
    )
    assert run(capsys, tmp_path / "checkpoint", tmp_path / "out")[0] == 0


def test_a_recipe_that_the_sizes_forbid_is_named(checkpoint, tmp_path, capsys):
    code, line = refused(capsys, checkpoint("base"), tmp_path, "int4")
    assert code == 65
    assert "in_proj.weight: has the shape (520, 64); this format takes rows by 2" in line


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A checkpoint of one's own to break: three shards, bfloat16."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("wide"), folder)
    return folder


def shard_of(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def rewrite(path: Path, change) -> None:
    """Write the tensors again as `change` leaves them."""
    file = SafetensorsFile(path)
    tensors = {name: file.tensor(name).copy() for name in file.names()}
    change(tensors)
    write_safetensors(path.with_suffix(".new"), tensors)
    path.with_suffix(".new").rename(path)


IN_PROJ = "language_model.backbone.layers.1.mixer.in_proj.weight"


@pytest.mark.parametrize("n_bytes", [0, 4, 2000, -1])
def test_a_truncated_shard_is_named(broken, tmp_path, capsys, n_bytes):
    path = shard_of(broken, "language_model.lm_head.weight")
    path.write_bytes(path.read_bytes()[:n_bytes])
    code, line = refused(capsys, broken, tmp_path)
    assert code == 65
    assert f"{path}: " in line
    assert not (tmp_path / ".out.partial").exists()


def test_an_index_that_names_a_missing_file(broken, tmp_path, capsys):
    path = shard_of(broken, IN_PROJ)
    path.unlink()
    code, line = refused(capsys, broken, tmp_path)
    assert code == 65
    assert f"{path}: cannot be read" in line


def test_an_index_that_names_a_tensor_that_is_not_there(broken, tmp_path, capsys):
    norm = "language_model.backbone.layers.2.norm.weight"
    rewrite(shard_of(broken, norm), lambda tensors: tensors.pop(norm))
    code, line = refused(capsys, broken, tmp_path)
    assert (code, f"{norm}: is missing from {broken}" in line) == (65, True)


def test_a_tensor_of_another_shape(broken, tmp_path, capsys):
    wrong = {IN_PROJ: np.ones((3, 96), np.float32)}
    rewrite(shard_of(broken, IN_PROJ), lambda tensors: tensors.update(wrong))
    code, line = refused(capsys, broken, tmp_path)
    assert (code, f"{IN_PROJ}: has shape (3, 96), but" in line) == (65, True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "recipe"), [(IN_PROJ, "w4a16"), (IN_PROJ, "bf16"), ("mlp1.1.weight", "bf16")]
)
def test_a_weight_that_is_no_number(broken, tmp_path, capsys, name, recipe, value):
    def poison(tensors):
        tensors[name][-1, -1] = value

    rewrite(shard_of(broken, name), poison)
    code, line = refused(capsys, broken, tmp_path, recipe)
    assert (code, f"{name}: holds a NaN or an infinity" in line) == (65, True)


def test_a_source_that_is_quantized_already(checkpoint, tmp_path, capsys):
    assert run(capsys, checkpoint("base"), tmp_path / "first")[0] == 0
    for recipe in ("w4a16", "bf16"):
        code, line = refused(capsys, tmp_path / "first", tmp_path, recipe)
        assert code == 65
        assert "mixer.in_proj: is w4a16 already; quantize the BF16 checkpoint" in line


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A checkpoint in the published mix: do not change it."""
    folder = tmp_path_factory.mktemp("mixed") / "checkpoint"
    synthesize(folder, checkpoint_config(PRESETS["grouped"]), "nvfp4")
    return folder


@pytest.fixture
def quantized(mixed, tmp_path):
    """One's own to break."""
    shutil.copytree(mixed, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def unbundled(capsys, folder: Path) -> tuple[int, str]:
    """Exit code and error of a bundle that cannot be built."""
    out = folder.parent / "bundle"
    code = cli.main(["bundle", str(folder), str(out), "--target", "cpu", "--json"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    return code, lines[0]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (f"{EXPERT}.weight_scale_2", -1, "holds -1.0, a scale must be zero or above"),
        (f"{EXPERT}.weight_scale_2", np.nan, "holds a NaN or an infinity"),
        (f"{EXPERT}.input_scale", 0, "holds 0.0, a scale must be above zero"),
        (f"{EXPERT}.weight_scale", -1, "holds -1.0, a scale must be zero or above"),
        (f"{MIXER}.shared_experts.up_proj.weight_scale", -1, "holds -1.0, a scale"),
        (f"{MIXER}.shared_experts.up_proj.weight", np.nan, "holds a NaN or an infinity"),
    ],
)
def test_a_scale_that_is_none(quantized, capsys, name, value, expected):
    def spoil(tensors):
        tensors[name].reshape(-1)[-1] = value

    rewrite(shard_of(quantized, name), spoil)
    code, line = unbundled(capsys, quantized)
    assert (code, f"{name}: {expected}" in line) == (65, True)


def test_experts_of_one_layer_in_two_formats(quantized, capsys):
    def unquantize(tensors):
        shape = tensors[f"{EXPERT}.weight"].shape
        for name in [name for name in tensors if name.startswith(EXPERT)]:
            del tensors[name]
        weight = np.ones((shape[0], 2 * shape[1]), ml_dtypes.bfloat16)
        tensors[f"{EXPERT}.weight"] = weight

    shard = shard_of(quantized, f"{EXPERT}.weight")
    rewrite(shard, unquantize)
    index = json.loads((quantized / "model.safetensors.index.json").read_text())
    gone = {f"{EXPERT}.{name}" for name in ("weight_scale", "weight_scale_2", "input_scale")}
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if k not in gone}
    (quantized / "model.safetensors.index.json").write_text(json.dumps(index))
    say(quantized, EXPERT, None)
    code, line = unbundled(capsys, quantized)
    assert code == 65
    assert f"{EXPERT}.weight: is in another format than {MIXER}.experts.0.up_proj.weight" in line


def say(folder: Path, module: str, algorithm: str | None) -> None:
    """Let the configuration say another algorithm of a module, or nothing."""
    files = {"config.json": "quantization_config", "hf_quant_config.json": "quantization"}
    for name, key in files.items():
        told = json.loads((folder / name).read_text())
        layers = told[key]["quantized_layers"]
        layers.pop(module, None)
        if algorithm:
            layers[module] = {"quant_algo": algorithm}
        (folder / name).write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("module", "algorithm", "expected"),
    [
        (EXPERT, "FP8", "is fp8 by the quantization configuration, its tensors are nvfp4"),
        (EXPERT, "W4A16_NVFP4", "is w4a16 by the quantization configuration"),
        (EXPERT, None, "is bf16 by the quantization configuration, its tensors are nvfp4"),
        (EXPERT, "NVFP4_AWQ", "has the unknown quant_algo 'NVFP4_AWQ'; known: FP8, NVFP4"),
        (f"{MIXER}.shared_experts.up_proj", "NVFP4", "its tensors are fp8"),
        ("language_model.lm_head", "FP8", "is fp8 by the quantization configuration, its"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors(
    quantized, capsys, module, algorithm, expected
):
    say(quantized, module, algorithm)
    code, line = unbundled(capsys, quantized)
    assert code == 65
    assert line.startswith(f"build-engine: {module}: ")
    assert expected in line


def test_a_head_that_nothing_calibrates(checkpoint, tmp_path, capsys):
    recipe = own_recipe(tmp_path, lm_head="fp8")
    code, line = refused(capsys, checkpoint("base"), tmp_path, recipe)
    assert code == 78
    assert "lm_head: is to be fp8 by this recipe, and nothing calibrates its input" in line


def job_of(source: Path, out: Path, recipe: str = "w4a16", samples=()) -> Job:
    return Job(Checkpoint(source), load_recipe(recipe), samples, out)


def shards_of(folder: Path) -> dict[str, list[str]]:
    """Tensors by shard, in the order of the shards."""
    return {p.name: SafetensorsFile(p).names() for p in sorted(folder.glob("*.safetensors"))}


def test_each_block_is_a_shard_and_the_rest_follows_in_pieces(checkpoint, tmp_path, monkeypatch):
    """A piece ends before it would pass the bound; a larger tensor is a piece of its own."""
    source = Checkpoint(checkpoint("base"))
    others = [n for n in source.names() if not n.startswith("language_model.backbone.layers.")]
    sizes = [source.n_bytes(name) for name in others]
    bound = sizes[0] + sizes[1] + sizes[2]
    monkeypatch.setattr("build_engine.quantize.OTHERS_BYTES", bound)
    quantize(job_of(source.folder, tmp_path / "out"), lambda *_: None)
    shards = shards_of(tmp_path / "out")
    assert list(shards) == [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    n_layers = len(source.spec.decoder.pattern)
    assert len(shards) > n_layers + 2
    names = list(shards.values())
    for layer in range(n_layers):
        root = f"language_model.backbone.layers.{layer}."
        assert all(name.startswith(root) for name in names[layer])
    pieces = names[n_layers:]
    assert sorted(pieces[0]) == sorted(others[:3])  # exactly the bound
    together = [sum(map(source.n_bytes, piece)) for piece in pieces]
    for piece, size, following in zip(pieces, together, pieces[1:], strict=False):
        assert size <= bound or len(piece) == 1
        first = min(following, key=others.index)
        assert size + source.n_bytes(first) > bound


def test_progress_is_told_in_bytes_of_the_source(checkpoint, tmp_path):
    source, told = Checkpoint(checkpoint("base")), []
    counts = quantize(job_of(source.folder, tmp_path / "out"), lambda *step: told.append(step))
    assert counts == {"bf16": 1, "w4a16": 116}
    total = sum(map(source.n_bytes, source.names()))
    assert {of for _, of in told} == {total}
    done = [n for n, _ in told]
    assert done == sorted(set(done))
    assert done[-1] == total
    assert len(told) == len(shards_of(tmp_path / "out"))


def test_what_a_quantized_checkpoint_says_of_itself(checkpoint, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(checkpoint("base"), source)
    texts = ("a.json", "b.jinja", "c.py", "d.txt", "e.model")
    ours = ("hf_quant_config.json", "provenance.json", "model.safetensors.index.json")
    for name in (*texts, "f.bin", "g.md"):
        (source / name).write_text(f"text of {name}")
    (source / "provenance.json").write_text('"another"')
    job = job_of(source, out)
    quantize(job, lambda *_: None)
    weights = {name for name in files(out) if name.endswith(".safetensors")}
    small = {p.name for p in source.iterdir() if p.suffix in (".json", ".jinja")}
    assert set(files(out)) == weights | small | {*texts, *ours}
    for name in texts:
        assert (out / name).read_text() == f"text of {name}"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = {name: SafetensorsFile(out / name) for name in weights}
    assert index["weight_map"] == {n: s for s, file in shards.items() for n in file.names()}
    assert index["metadata"] == {
        "total_size": sum(sum(map(file.n_bytes, file.names())) for file in shards.values())
    }
    told = json.loads((out / "provenance.json").read_text())
    assert told["checkpoint"] == job.checkpoint.sha256()
    assert told["recipe"]["description"] == job.recipe.description
    assert (told["calibration_sha256"], told["calibration_tokens"]) == (None, 0)
    assert set(told["versions"]) == {"omni-edge", "numpy"}
    config = json.loads((out / "config.json").read_text())
    said = config.pop("quantization_config")
    assert config == job.checkpoint.config
    assert said["quant_algo"] == "W4A16_NVFP4"
    quantized = json.loads((out / "hf_quant_config.json").read_text())["quantization"]
    assert quantized["quant_algo"] == "W4A16_NVFP4"
    # whatever is kept is named, what is quantized is not
    modules = [name.removesuffix(".weight") for name in index["weight_map"]]
    excluded = quantized["exclude_modules"]
    assert said["ignore"] == excluded
    written = Checkpoint(out)
    for module in modules:
        packed = written.has(f"{module}.weight_scale")
        named = any(fnmatch.fnmatchcase(module, pattern) for pattern in excluded)
        is_matrix = written.has(f"{module}.weight") and len(written.shape(f"{module}.weight")) > 1
        assert not (packed and named), module
        assert packed or named or not is_matrix, module


@pytest.mark.parametrize("recipe", ["w4a16", "bf16"])
def test_exactly_enough_room_on_the_disk_is_enough(
    checkpoint, tmp_path, capsys, monkeypatch, recipe
):
    """What will be written, and a quarter of a GiB."""
    assert run(capsys, checkpoint("base"), tmp_path / "whole", recipe)[0] == 0
    written = 0
    for path in (tmp_path / "whole").glob("*.safetensors"):
        file = SafetensorsFile(path)
        for name in file.names():
            written += file.n_bytes(name) if not name.endswith("_scale_2") else 0
    needed = written + 2**28
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    code, line = refused(capsys, checkpoint("base"), tmp_path, recipe)
    assert (code, f"out: needs {needed / 1e9:.1f} GB, " in line) == (78, True)
    shutil.rmtree(tmp_path / ".out.partial")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert run(capsys, checkpoint("base"), tmp_path / "out", recipe)[0] == 0


def test_a_run_that_goes_on_needs_room_for_what_is_left(checkpoint, tmp_path, capsys, monkeypatch):
    assert run(capsys, checkpoint("base"), tmp_path / "whole")[0] == 0
    interrupted(checkpoint("base"), tmp_path / "out", n_units=4)
    there = {path.name for path in (tmp_path / ".out.partial").glob("*.safetensors")}
    left = [p for p in (tmp_path / "whole").glob("*.safetensors") if p.name not in there]
    needed = 2**28 + sum(path.stat().st_size for path in left)  # with headers: a little more
    usage = shutil.disk_usage(tmp_path)._replace(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert run(capsys, checkpoint("base"), tmp_path / "out")[0] == 0


@pytest.fixture
def fake_calibration(monkeypatch):
    """Stands for ModelOpt: each block adds 1 to all rows, and reports what reached it."""
    seen: dict[int, list[float]] = {}

    def calibrate_block(checkpoint, layer, samples):
        seen[layer] = [float(rows[0, 0]) for rows in samples]
        names = [packed.name for packed in packed_tensors(checkpoint.spec.decoder) if packed.matrix]
        names = [name for name in names if name.startswith(f"layers.{layer}.")]
        largest = dict.fromkeys(names, 1.0 + layer)
        largest |= {f"{name}.output": 44.8 for name in names}
        return [rows + 1 for rows in samples], largest

    fake = ModuleType("build_engine.calibrate")
    fake.calibrate_block = calibrate_block
    fake.versions = lambda: {"modelopt": "0.47.0", "torch": "2.13"}
    monkeypatch.setitem(sys.modules, "build_engine.calibrate", fake)
    monkeypatch.setattr("build_engine.quantize.find_spec", lambda name: object())
    return seen


SAMPLES = (np.full((3, 64), 5, np.float32), np.full((2, 64), 7, np.float32))
KV_RECIPE = """
description = "all that is calibrated"
kv_cache = "fp8"
rules = [{modules = "*.experts.*", format = "nvfp4"}, {modules = "*_proj", format = "fp8"}]
"""


def test_samples_go_from_block_to_block_and_scales_come_of_them(
    checkpoint, tmp_path, fake_calibration
):
    (tmp_path / "own.toml").write_text(KV_RECIPE)
    job = job_of(checkpoint("base"), tmp_path / "out", str(tmp_path / "own.toml"), SAMPLES)
    quantize(job, lambda *_: None)
    pattern = job.checkpoint.spec.decoder.pattern
    assert fake_calibration == {i: [5.0 + i, 7.0 + i] for i in range(len(pattern))}
    out = Checkpoint(tmp_path / "out")
    mixer = "language_model.backbone.layers.{}.mixer."
    for layer, letter in enumerate(pattern):
        at = mixer.format(layer)
        scaled = [n for n in out.names() if n.startswith(at) and n.endswith("input_scale")]
        assert scaled
        for name in scaled:
            by = 2688 if ".experts." in name else 448
            assert out.float32(name, ()) == np.float32(1 + layer) / np.float32(by)
        kept = {n for n in out.names() if n.startswith(at) and n.endswith(("k_scale", "v_scale"))}
        expected = {f"{at}{kind}_proj.{kind}_scale" for kind in "kv"} if letter == "*" else set()
        assert kept == expected
        for name in kept:
            assert out.float32(name, ()) == np.float32(44.8) / np.float32(448)
    told = json.loads((tmp_path / "out" / "provenance.json").read_text())
    digest = hashlib.sha256(b"".join(rows.tobytes() for rows in SAMPLES)).hexdigest()
    assert (told["calibration_sha256"], told["calibration_tokens"]) == (digest, 5)
    assert set(told["versions"]) == {"omni-edge", "numpy", "modelopt", "torch"}
    assert out.config["quantization_config"]["kv_cache_scheme"]["num_bits"] == 8
    assert not list((tmp_path / "out").glob("samples-*"))


def test_a_calibration_goes_on_with_the_samples_as_they_were(
    checkpoint, tmp_path, fake_calibration
):
    (tmp_path / "own.toml").write_text(KV_RECIPE)
    recipe = str(tmp_path / "own.toml")
    quantize(job_of(checkpoint("base"), tmp_path / "whole", recipe, SAMPLES), lambda *_: None)
    told = []

    def progress(*_: int) -> None:
        told.append(None)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(job_of(checkpoint("base"), tmp_path / "out", recipe, SAMPLES), progress)
    other = (SAMPLES[0], SAMPLES[1] + 1)
    with pytest.raises(ConfigurationError, match="samples or versions differ"):
        quantize(job_of(checkpoint("base"), tmp_path / "out", recipe, other), progress)
    fake_calibration.clear()
    quantize(job_of(checkpoint("base"), tmp_path / "out", recipe, SAMPLES), lambda *_: None)
    assert fake_calibration[3] == [8.0, 10.0]
    assert min(fake_calibration) == 3
    assert files(tmp_path / "out") == files(tmp_path / "whole")
