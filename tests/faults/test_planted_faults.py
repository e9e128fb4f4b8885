"""`build-engine check` on checkpoints with planted faults: each is found by name.

Nothing is compared with transformers here; `tests/oracle/test_check.py` does that.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import shutil
import socket

import numpy as np
import pytest
from faults.test_checkpoint import edit_json, rewrite
from make_tiny_checkpoint import PRESETS, checkpoint_config
from synthesize_checkpoint import synthesize

from build_engine import check as checking
from build_engine.check import check, read_report
from edge.engines.safetensors import SafetensorsFile

TINY = checkpoint_config(PRESETS["grouped"])
EXPERT = "language_model.backbone.layers.1.mixer.experts.{}.up_proj.weight"


@pytest.fixture(autouse=True, scope="module")
def without_transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "find_spec", lambda name: None)
        yield


def no_progress(step, done, total):
    """Tests are silent."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A BF16 one and its report."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoint"
    synthesize(folder, TINY, "bf16", shard_bytes=300_000)
    check(folder, folder.parent / "whole", None, no_progress)
    return folder, folder.parent / "whole.json"


@pytest.fixture
def own(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def shard_of(folder, name):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def faults(folder, against=None):
    """By thing, what is wrong."""
    report = check(folder, folder.parent / "report", against, no_progress)
    return {found.thing: found.problem for found in report.faults}


def test_the_report_names_no_person_machine_or_folder(own, tmp_path):
    edit_json(own / "config.json", "llm_config", "mlp_bias", value=True)
    check(own, tmp_path / "bad", None, no_progress)
    path = next(own.glob("*.safetensors"))
    edit_json(own / "config.json", "llm_config", "mlp_bias", value=False)
    path.write_bytes(path.read_bytes()[:-9])
    (own / "tokenizer.json").write_text("{")
    check(own, tmp_path / "worse", None, no_progress)
    for name in ("bad", "worse"):
        for suffix in ("json", "txt"):
            text = (tmp_path / f"{name}.{suffix}").read_text()
            assert "fault" in text.lower()
            for private in (str(tmp_path), "/tmp", "/root", socket.gethostname()):
                assert private not in text
            assert getpass.getuser() not in text.replace("root of", "")


def test_a_wrong_tensor_is_named(own, whole):
    name = EXPERT.format(3)

    def change(tensors):
        tensors[name][5, 7] = 1

    rewrite(shard_of(own, name), change)
    assert faults(own, whole[1]) == {
        name: "is another tensor than in the report that this is held against"
    }


def test_exchanged_experts_are_named(own, whole):
    one, two = EXPERT.format(3), EXPERT.format(5)
    values = {n: SafetensorsFile(shard_of(own, n)).tensor(n).copy() for n in (one, two)}
    for name, other in ((one, two), (two, one)):
        rewrite(shard_of(own, name), lambda t, n=name, o=other: t.update({n: values[o]}))
    assert faults(own, whole[1]) == {
        one: f"holds what is {two} in that report",
        two: f"holds what is {one} in that report",
    }


def test_a_tensor_of_another_form_is_named(own):
    name = "sound_encoder.encoder.layers.1.conv.norm.running_mean"
    rewrite(shard_of(own, name), lambda t: t.update({name: t[name][:-1]}))
    found = faults(own)
    assert found[name].startswith("has shape (63,), but config.json means (64,)")


def test_a_value_that_is_none_is_named(own):
    name = EXPERT.format(3)

    def change(tensors):
        tensors[name][5, 7] = np.nan

    rewrite(shard_of(own, name), change)
    assert list(faults(own)) == [name]


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("llm_config", "mlp_hidden_act"), "silu", "config.json.llm_config.mlp_hidden_act"),
        (("llm_config", "topk_group"), 3, "config.json.llm_config.topk_group"),
    ],
)
def test_a_wrong_key_is_named(own, keys, value, named):
    edit_json(own / "config.json", *keys, value=value)
    report = check(own, own.parent / "report", None, no_progress)
    assert [found.thing for found in report.faults] == [named]
    assert report.keys


def test_a_changed_key_is_named(own, whole):
    edit_json(own / "config.json", "llm_config", "routed_scaling_factor", value=2.0)
    found = faults(own, whole[1])
    assert found["config.json.llm_config.routed_scaling_factor"] == (
        "is 2.0, and 2.5 in that report"
    )
    assert set(found) == {"config.json.llm_config.routed_scaling_factor", "config.json"}


def test_a_changed_tokenizer_is_named(own, whole):
    path = own / "tokenizer.json"
    path.write_text(path.read_text().replace('"<|im_end|>"', '"<|im_stop|>"'))
    assert "tokenizer.json" in faults(own)
    tokenizer = json.loads((whole[0] / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    (one, id_one), (two, id_two) = list(vocabulary.items())[300:302]
    vocabulary[one], vocabulary[two] = id_two, id_one
    path.write_text(json.dumps(tokenizer))
    assert list(faults(own, whole[1])) == ["tokenizer.json"]


def test_a_cut_shard_is_named(own):
    path = sorted(own.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1000])
    found = faults(own)
    assert path.name in found
    assert found[path.name].startswith("is truncated")


@pytest.mark.parametrize("what", ["shard", "tokenizer"])
def test_a_file_that_is_not_what_was_published_is_named(own, what):
    """As `hf download` leaves hashes: sha256 of large files, git's of small ones."""
    downloaded = own / ".cache" / "huggingface" / "download"
    downloaded.mkdir(parents=True)
    for path in [p for p in own.iterdir() if p.is_file()]:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if path.suffix != ".safetensors":
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (downloaded / f"{path.name}.metadata").write_text(f"{'a' * 40}\n{digest}\n1.5\n")
    assert faults(own) == {}
    report = read_report(own.parent / "report.json")
    assert report.facts["revision"] == "a" * 40
    if what == "shard":
        name = EXPERT.format(3)
        changed = shard_of(own, name)
        content = bytearray(changed.read_bytes())
        content[SafetensorsFile(changed).offset(name)] ^= 1
        changed.write_bytes(content)
    else:
        changed = own / "tokenizer.json"
        changed.write_text(changed.read_text() + "\n")
    assert faults(own) == {changed.name: "is not what was published; download it again"}


def test_an_interrupted_check_goes_on(own, monkeypatch):
    """It compares no part twice, and comes to the same."""
    name, taken = own.parent / "report", []
    part = checking._Steps._part

    def interrupted(self, name, *rest):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(name)
        part(self, name, *rest)

    monkeypatch.setattr(checking._Steps, "_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(own, name, None, no_progress)
    assert sorted(p.name for p in own.parent.iterdir()) == [
        "checkpoint",
        "report.partial.json",
        "report.partial.npy",
    ]
    monkeypatch.setattr(
        checking._Steps, "_part", lambda self, n, *rest: (taken.append(n), part(self, n, *rest))
    )
    report = check(own, name, None, no_progress)
    assert len(taken) == len(set(taken)) == 10  # embeddings, eight blocks, the head
    assert report.faults == []


def test_without_transformers_it_says_what_was_left_out(own):
    report = check(own, own.parent / "report", None, no_progress)
    assert report.faults == []
    assert report.compared == []
    assert report.notes[0].startswith("nothing was compared with transformers: torch and")
    assert len(report.tensors) == len(
        json.loads((own / "model.safetensors.index.json").read_text())["weight_map"]
    )
