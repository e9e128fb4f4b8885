"""`build-engine inspect` and `evaluate`, through the command line."""

from __future__ import annotations

import json

import pytest

from build_engine.cli import main
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
