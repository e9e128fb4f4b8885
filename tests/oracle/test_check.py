"""`build-engine check` beside transformers: published layouts, and a fault of the builder's."""

from __future__ import annotations

import json
import os

import pytest
from make_tiny_checkpoint import PRESETS, checkpoint_config
from synthesize_checkpoint import synthesize

from build_engine import check as checking
from build_engine import cli
from build_engine.check import check, read_report
from build_engine.decoder_weights import packed_tensors

TINY = checkpoint_config(PRESETS["grouped"])
PARTS = 17
"""Log-mel, embeddings, eight blocks, the experts of three, the head, pictures, tubelets, sound."""


@pytest.fixture(autouse=True)
def oracle():
    if os.environ.get("CI") != "true":  # in CI an absent oracle is a failure
        for name in ("torch", "transformers"):
            pytest.importorskip(name, reason=f"the oracle needs {name}: make .venv/.oracle")


def no_progress(step, done, total):
    """Tests are silent."""


@pytest.fixture(scope="module", params=["bf16", "fp8", "nvfp4"])
def published(request, tmp_path_factory):
    """Small, with the dtypes, shards and words of a published layout."""
    folder = tmp_path_factory.mktemp("published") / request.param
    synthesize(folder, TINY, request.param, shard_bytes=300_000)
    return folder


def test_a_published_layout_is_right(published, tmp_path, capsys):
    arguments = ["check", str(published), "--report", str(tmp_path / "out"), "--json"]
    assert cli.main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["passed"]
    assert len(said["compared"]) == PARTS
    assert max(v for n, v in said["compared"].items() if n != "log-mel") <= 2e-6
    report = read_report(tmp_path / "out.json")
    assert {key["verdict"] for key in report.keys} == {"honoured", "fixed", "neutral"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.txt"]
    n_tensors = json.loads((published / "model.safetensors.index.json").read_text())
    assert set(report.tensors) == set(n_tensors["weight_map"])


def test_a_builder_that_exchanges_experts_is_noticed(tmp_path, monkeypatch):
    """What the comparison with transformers is for: a fault of ours, in one block."""

    def exchanged(spec):
        for packed in packed_tensors(spec):
            if packed.name == "layers.4.experts_up":
                first, second, *others = packed.sources
                object.__setattr__(packed, "sources", (second, first, *others))
            yield packed

    monkeypatch.setattr(checking, "packed_tensors", exchanged)
    synthesize(tmp_path / "checkpoint", TINY, "bf16")
    report = check(tmp_path / "checkpoint", tmp_path / "report", None, no_progress)
    assert [found.thing for found in report.faults] == ["block 4, each of its experts"]
    errors = {found.part: found.error for found in report.compared}
    assert errors["block 4, each of its experts"] > 0.1
