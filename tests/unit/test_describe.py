"""`build-engine inspect` and `evaluate`, through the command line."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import numpy as np
import pytest

from build_engine.cli import main
from build_engine.describe import Description, Row, describe
from build_engine.evaluate import Comparison, compare
from edge.engines.bundle import DECODER_WEIGHTS, Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.safetensors import SafetensorsFile, write_safetensors
from edge.model.decoder import blocks, head
from edge.model.spec import DecoderSpec


def test_inspect_adds_up_to_the_files(checkpoint, capsys):
    folder = checkpoint("base")
    assert main(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    data = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    listed = sum(row["n_bytes"] for row in found["tensors"])
    assert 0 <= data - listed < 200_000  # the headers
    assert {row["format"] for row in found["tensors"]} == {"float32", "int64"}


def test_inspect_shows_a_bundle_with_its_hashes(bundle, capsys):
    assert main(["inspect", str(bundle("base"))]) == 0
    shown = capsys.readouterr().out
    assert "layers.N.experts_up" in shown
    assert "decoder.safetensors" in shown


def test_a_bundle_is_no_distance_from_itself(bundle, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("What do you see?")
    path, picture = str(bundle("base")), tmp_path / "error.svg"
    words = ["evaluate", path, "--against", path, "--samples", str(tmp_path / "text.txt")]
    assert main([*words, "--picture", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl"] == 0
    assert found["top_1"] == 1
    assert set(found["relative_error"]) == {0}
    assert found["cosine"] == pytest.approx([1] * len(found["layers"]))
    assert picture.read_text().startswith("<svg")


@pytest.fixture
def two_engines(bundle, engine, tmp_path):
    """The base preset, and the same with its head's rows a little larger."""
    folder = tmp_path / "louder"
    shutil.copytree(bundle("base"), folder)
    file = SafetensorsFile(folder / DECODER_WEIGHTS)
    tensors = {name: file.tensor(name).copy() for name in file.names()}
    for name in ("head", "layers.0.in_proj"):
        tensors[name] = (tensors[name] * np.float32(1.25)).astype(tensors[name].dtype)
    write_safetensors(folder / DECODER_WEIGHTS, tensors)
    return CpuEngine(Bundle(folder, check_hashes=False), 2, exact=True), engine("base")


def prompt(engine, n_tokens):
    ids = np.random.default_rng(n_tokens).integers(40, 500, n_tokens, dtype=np.int32)
    return engine.embed(ids)


def test_a_comparison_in_chunks_is_that_of_whole_prompts(two_engines):
    """Longer than a chunk: the state is carried on."""
    ours, theirs = two_engines
    rows = prompt(theirs, 600)
    found = compare(ours, theirs, [rows, rows[:3]])

    def stages(engine, rows):
        ops = engine.ops(engine.new_state())
        after = list(blocks(ops, engine.spec.decoder, rows))
        return [*after, head(ops, after[-1])]

    def log_softmax(logits):
        return logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)

    pairs = [zip(stages(ours, x), stages(theirs, x), strict=True) for x in (rows, rows[:3])]
    *inner, logits = (
        map(np.concatenate, zip(*both, strict=True)) for both in zip(*pairs, strict=True)
    )
    inner = [tuple(both) for both in inner]
    errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in inner]
    np.testing.assert_allclose(found.relative_error, errors, rtol=1e-4)
    cosines = [
        ((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean()
        for a, b in inner
    ]
    np.testing.assert_allclose(found.cosine, cosines, rtol=1e-5)
    assert min(cosines) < 0.999
    a, b = logits
    p, q = log_softmax(b), log_softmax(a)
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-4)
    assert found.top_1 == (a.argmax(axis=1) == b.argmax(axis=1)).mean() < 1
    assert found.n_tokens == 603


def test_what_a_comparison_holds_does_not_grow_with_samples_or_their_length(two_engines):
    """Measured: 1.0 and 2.4 times (8 times the keys and values); 4 and 8 where all was held."""

    def peak(samples):
        tracemalloc.start()
        compare(*two_engines, samples)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    short, long = prompt(two_engines[1], 256), prompt(two_engines[1], 2048)
    assert peak([short] * 8) < 1.2 * peak([short] * 2)
    assert peak([long]) < 3 * peak([short])


def test_another_architecture_is_refused(bundle, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("Hello.")
    words = ["evaluate", str(bundle("base")), "--against", str(bundle("wide")), "--samples"]
    assert main([*words, str(tmp_path / "text.txt")]) == 78
    assert "another decoder" in capsys.readouterr().err
    assert DecoderSpec.__name__ not in capsys.readouterr().err


def test_a_sample_without_text_is_refused(bundle, tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    path = str(bundle("base"))
    words = ["evaluate", path, "--against", path, "--samples", str(tmp_path / "text.txt")]
    assert main(words) == 65
    assert "no UTF-8 text" in capsys.readouterr().err


def test_a_description_is_told_line_by_line():
    facts = {"bundle": "here", "layers": "ME"}
    rows = [Row("layers.N.up", "nvfp4", 46, 12_345_678), Row("head", "bfloat16", 1, 2_000)]
    found = Description(facts, rows)
    assert found.table().splitlines() == [
        "bundle             here",
        "layers             ME",
        "",
        "tensors      format          count         MB",
        "layers.N.up  nvfp4              46      12.35",
        "head         bfloat16            1       0.00",
        "                                        12.35",
    ]
    assert found.as_dict() == {
        "bundle": "here", "layers": "ME",
        "tensors": [
            {"name": "layers.N.up", "format": "nvfp4", "n": 46, "n_bytes": 12_345_678},
            {"name": "head", "format": "bfloat16", "n": 1, "n_bytes": 2_000},
        ],
    }  # fmt: skip


def test_inspect_tells_what_a_bundle_is(bundle):
    folder = bundle("base")
    manifest, told = Bundle(folder).manifest, describe(folder)
    assert list(told.facts)[:7] == [
        "bundle", "model", "target", "recipe", "layers", "checkpoint", "built by"
    ]  # fmt: skip
    assert list(told.facts.values())[:7] == [
        str(folder), "base", "cpu", "unquantized", "MEM*EM*E", manifest.checkpoint_sha256,
        manifest.builder_version,
    ]  # fmt: skip
    entry = manifest.files["tokenizer.json"]
    assert told.facts["tokenizer.json"] == f"{entry.n_bytes:>12} bytes {entry.sha256}"
    rows = {row.name: row for row in told.rows}
    assert (rows["layers.N.experts_up"].n, rows["layers.N.experts_up"].format) == (3, "float32")
    assert rows["layers.N.in_proj"].n == 3
    file = SafetensorsFile(folder / DECODER_WEIGHTS)
    assert sum(row.n_bytes for row in told.rows) == sum(map(file.n_bytes, file.names()))
    assert sum(row.n for row in told.rows) == len(file.names())


def test_inspect_counts_the_scales_with_their_weights(checkpoint, tmp_path, capsys):
    out = tmp_path / "quantized"
    words = [str(checkpoint("base")), str(out), "--recipe", "w4a16", "--json"]
    assert main(["quantize", *words]) == 0
    capsys.readouterr()
    told = describe(out)
    assert told.facts == {"checkpoint": str(out), "layers": "MEM*EM*E"}
    rows = {row.name: row for row in told.rows}
    root = "language_model.backbone.layers.N.mixer"
    up = rows[f"{root}.experts.N.up_proj.weight"]
    n_weights = 48 * 64
    assert (up.format, up.n) == ("w4a16", 3 * 16)
    assert up.n_bytes == 48 * (n_weights // 2 + n_weights // 16 + 4)
    assert not any(name.endswith(("_scale", "scale_2")) for name in rows)
    assert rows["language_model.lm_head.weight"].format == "float32"
    assert rows[f"{root}.gate.weight"].format == "float32"
    towers = [name for name in rows if name.startswith(("vision_model", "sound_encoder"))]
    assert set(towers) == {"vision_model.*", "sound_encoder.*"}
    source = sum(row.n for row in describe(checkpoint("base")).rows)
    assert sum(row.n for row in told.rows) == source


def test_what_was_evaluated_is_told_line_by_line(monkeypatch, tmp_path, capsys):
    found = Comparison(603, "M*E", [1.0, 0.98765, 0.5], [0.0, 0.0123, 1.5], 0.0345, 0.985)
    asked = []

    def samples(embedder, folder, paths):
        asked.append((embedder, folder, paths))
        return "samples"

    monkeypatch.setattr("build_engine.cli.Bundle", lambda path: f"bundle {path}")
    monkeypatch.setattr("build_engine.cli.CpuEngine", lambda bundle, exact: (bundle, exact))
    monkeypatch.setattr("build_engine.cli.read_samples", samples)
    monkeypatch.setattr("build_engine.cli.compare", lambda *args: asked.append(args) or found)
    picture = tmp_path / "x.svg"
    words = ["evaluate", "ours", "--against", "theirs", "--samples", "a", "b"]
    assert main([*words, "--picture", str(picture)]) == 0
    ours, theirs = ("bundle ours", True), ("bundle theirs", True)
    (embedder, folder, paths), compared = asked
    assert (embedder, str(folder), [str(path) for path in paths]) == (theirs, "theirs", ["a", "b"])
    assert compared == (ours, theirs, "samples")
    assert capsys.readouterr().out.splitlines() == [
        "block    cosine  relative error",
        "  0 M   1.00000        0.00e+00",
        "  1 *   0.98765        1.23e-02",
        "  2 E   0.50000        1.50e+00",
        "603 tokens: KL 3.45e-02 nats, same likeliest token 98.5%",
    ]
    drawn = picture.read_text()
    for text in ("Relative error of the residual", ">0 M<", ">1 *<", ">2 E<", ">error<", ">1.50<"):
        assert text in drawn
    assert main([*words, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "n_tokens": 603, "layers": "M*E", "cosine": [1.0, 0.98765, 0.5],
        "relative_error": [0.0, 0.0123, 1.5], "kl": 0.0345, "top_1": 0.985,
    }  # fmt: skip
