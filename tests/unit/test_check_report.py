"""`build-engine check`, whole: its report, and what it compares with transformers, in whose place
`StandIn` stands."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from faults.test_checkpoint import rewrite
from make_tiny_checkpoint import PRESETS, checkpoint_config
from synthesize_checkpoint import synthesize
from unit.builder_texts import KEPT
from unit.transformers_stand_in import in_place_of_transformers

from build_engine import check as checking
from build_engine import survey
from build_engine.check import Compared, Found, Report, check, read_report
from build_engine.checkpoint import Checkpoint
from edge.errors import CheckpointError, ConfigurationError

N_SHARDS, N_TENSORS, N_STEPS = 8, 259, 17
N_ROWS = 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check") / "checkpoint"
    synthesize(folder, checkpoint_config(PRESETS["grouped"]), "bf16", shard_bytes=300_000)
    return folder


@pytest.fixture(scope="module")
def checked(tiny):
    """The report of a right one, how far it was told to be, and what was asked."""
    told = []
    with in_place_of_transformers(tiny.parent / "encoders") as made:
        report = check(tiny, tiny.parent / "right", None, lambda *step: told.append(step))
    return report, told, made


@pytest.fixture
def checked_with(tiny, tmp_path):
    """Check beside a stand-in of which something is wrong."""

    def run(folder=tiny, against=None, **wrong):
        with in_place_of_transformers(tiny.parent / "encoders", **wrong):
            return check(folder, tmp_path / "report", against, lambda *step: None)

    return run


@pytest.fixture
def own(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def things(report):
    return [found.thing for found in report.faults]


def test_a_right_one_is_told_as_it_was(checked, tiny):
    """If another text is meant: write it to tests/assets/builder/check_of_tiny."""
    report, _, _ = checked
    text = (tiny.parent / "right.txt").read_text()
    assert text == report.table() + "\n"
    rounding = re.findall(r"^  .* (\d\.\de[+-]\d\d)$", text, re.MULTILINE)
    assert len(rounding) == N_STEPS
    assert all(float(error) < 2e-6 for error in rounding)
    text = re.sub(r"\d\.\de[+-]\d\d$", "...", text, flags=re.MULTILINE)
    own = r"^(omni-edge|python|numpy|processor|most memory)( +).*"
    text = re.sub(own, r"\1\2...", text, flags=re.MULTILINE)
    assert text.splitlines() == (KEPT / "check_of_tiny").read_text().splitlines()


def test_the_report_for_machines_holds_all(checked, tiny):
    report, told, _ = checked
    path = tiny.parent / "right.json"
    assert read_report(path) == report
    assert "\n" in path.read_text()
    small = [p for p in tiny.iterdir() if p.suffix != ".safetensors"]
    assert report.files == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in small}
    weight_map = json.loads((tiny / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(report.tensors) == set(weight_map)
    assert len(weight_map) == N_TENSORS
    assert told == [("check", n, N_STEPS) for n in range(N_STEPS + 1)]
    assert report.summary() == {
        "passed": True,
        "facts": report.facts,
        "compared": {found.part: found.error for found in report.compared},
        "faults": [],
        "notes": report.notes,
    }
    left = sorted(p.name for p in tiny.parent.iterdir())
    assert left == ["checkpoint", "encoders", "right.json", "right.txt"]
    assert re.fullmatch(r"[0-9a-f]{64}", report.source)


def test_texts_and_chats_are_shown_to_both(checked):
    _, _, (stand_in,) = checked
    assert stand_in.texts == list(checking.TEXTS)
    tool = {
        "type": "function",
        "function": {
            "name": "move",
            "description": "Drive on.",
            "parameters": {"type": "object", "properties": {"metres": {"type": "number"}}},
        },
    }
    one = [{"role": "user", "content": "Hello"}]
    more = [
        {"role": "system", "content": "You see."},
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "And now?"},
    ]
    assert stand_in.chats == [
        (chat, tools, {"enable_thinking": thinking})
        for chat in (one, more)
        for thinking in (False, True)
        for tools in (None, [tool])
    ]


def test_tables_are_of_what_was_found():
    keys = [
        {"name": name, "verdict": verdict}
        for name, verdict in (
            ("a", "neutral"),
            ("b", "refused"),
            ("c", "unknown"),
            ("d", "refused"),
        )
    ]
    report = Report(
        facts={"python": "3", "blocks": "ME"},
        keys=keys,
        compared=[Compared("head", 0.00123), Compared("block 10, mamba2", float("nan"))],
        faults=[Found("head", "differs")],
        notes=["one", "two"],
    )
    assert report.table().splitlines() == [
        "python         3",
        "blocks         ME",
        "",
        "2 keys are refused:",
        "b, d",
        "",
        "1 keys are unknown:",
        "c",
        "",
        "1 keys are neutral:",
        "a",
        "",
        "compared with transformers               relative difference",
        "  head                                   1.2e-03",
        "  block 10, mamba2                       nan",
        "",
        "note: one",
        "note: two",
        "FAULT head: differs",
        "1 faults",
    ]
    summary = report.summary()
    assert summary["passed"] is False
    assert summary["faults"] == [{"thing": "head", "problem": "differs"}]
    assert summary["notes"] == ["one", "two"]
    assert list(summary["compared"]) == ["head", "block 10, mamba2"]
    long = Report(keys=[{"name": f"a-long-{'name' * 5}", "verdict": "fixed"}] * 9)
    assert {len(line) <= 98 for line in long.table().splitlines()} == {True}
    assert "a-long" in long.table().split("9 keys are fixed:")[1]


def test_each_part_that_differs_is_named(checked_with):
    asked = {
        "embeddings": "embeddings",
        "block_0": "block 0, mamba2",
        "block_1": "block 1, mixture of experts",
        "block_3": "block 3, attention",
        "each_of_4": "block 4, each of its experts",
        "head": "head",
        "pictures": "pictures",
        "tubelets": "tubelets",
        "sound": "sound",
    }
    differs = "differs from transformers by 2.0e-04; 1e-04 may be; report this, with the report"
    faults = checked_with(**dict.fromkeys(asked, 1 / 0.9998)).faults
    assert faults == [Found(part, differs) for part in asked.values()]


def test_rounding_is_no_fault_and_nan_is(checked_with):
    names = (
        "embeddings",
        "block_0",
        "block_1",
        "each_of_1",
        "head",
        "pictures",
        "tubelets",
        "sound",
    )
    assert checked_with(**dict.fromkeys(names, 1 + 8e-5), mel=8e-4).faults == []
    wrong = checked_with(block_2=float("nan"), mel=1.2e-3)
    assert wrong.faults == [
        Found("log-mel", "differs from transformers by 1.2e-03; 1e-03 may be; report this, "
              "with the report"),
        Found("block 2, mamba2", "differs from transformers by nan; 1e-04 may be; report this, "
              "with the report"),
    ]  # fmt: skip


def test_one_row_may_take_another_expert_and_two_may_not(checked_with):
    rows = np.ones((N_ROWS, 1))
    rows[7] = 2
    assert things(checked_with(block_1=rows, block_2=rows)) == ["block 2, mamba2"]
    rows[9] = 2
    assert things(checked_with(block_1=rows)) == ["block 1, mixture of experts"]


def test_another_tokenizer_and_another_template_are_named(checked_with):
    found = checked_with(text=2, chat="x").faults
    theirs = "than transformers makes of it; report this"
    assert found == [
        *(Found("tokenizer.json", f"text {n} has other tokens {theirs}") for n in range(1, 5)),
        *(
            Found("chat_template.jinja", f"chat {n} is another prompt {theirs}")
            for n in range(1, 9)
        ),
    ]


def test_what_transformers_cannot_compute_is_noted(checked_with, tiny):
    report = checked_with(
        block_3=RuntimeError(f"no such\n  size in {tiny}/x"), sound=RuntimeError("deaf")
    )
    assert report.faults == []
    assert report.notes[-2:] == [
        "transformers could not compute a part (no such size in x)",
        "transformers could not compute a part (deaf)",
    ]
    parts = [found.part for found in report.compared]
    assert len(parts) == N_STEPS - 2
    assert not {"block 3, attention", "sound"} & set(parts)
    with pytest.raises(KeyError):  # a fault of ours
        checked_with(head=KeyError("ours"))


def test_what_differs_from_another_report_is_named(checked, checked_with, tmp_path):
    report, _, _ = checked
    other = json.loads(json.dumps({"files": report.files, "tensors": report.tensors}))
    names = sorted(report.tensors)
    one, two, three, four = names[3], names[5], names[7], names[9]
    tensors = other["tensors"]
    tensors[one], tensors[two] = tensors[two], tensors[one]
    tensors[three] = "0" * 64
    del tensors[four]
    tensors["theirs"] = "1" * 64
    other["files"]["config.json"] = other["files"]["tokenizer.json"]
    del other["files"]["generation_config.json"]
    keys = [dict(key) for key in report.keys]
    changed, dropped = keys[1], keys.pop(2)
    changed["value"] = [changed["value"]]
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**other, "keys": keys}))
    found = {f.thing: f.problem for f in checked_with(against=path).faults}
    assert found == {
        one: f"holds what is {two} in that report",
        two: f"holds what is {one} in that report",
        three: "is another tensor than in the report that this is held against",
        four: "is only here, unlike in that report",
        "theirs": "is not here, unlike in that report",
        "config.json": "is another file than in the report that this is held against",
        "generation_config.json": "is only here, unlike in that report",
        changed["name"]: f"is {changed['value'][0]!r}, and {changed['value']!r} in that report",
        dropped["name"]: f"is {dropped['value']!r}, and None in that report",
    }


@pytest.mark.parametrize("content", [None, "{", '{"facts": 5}'])
def test_what_is_no_report_is_not_held_against(tiny, tmp_path, content):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"is no report \(.+\); give a report's \.json"):
        check(tiny, tmp_path / "report", path, lambda *step: None)
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("config", [None, "{", "[]", '{"llm_config": 3}'])
def test_what_has_no_configuration_has_a_report_all_the_same(own, tmp_path, config):
    (own / "config.json").unlink()
    if config is not None:
        (own / "config.json").write_text(config)
    report = check(own, tmp_path / "report", None, lambda *step: None)
    assert len(report.faults) == 1
    assert report.faults[0].thing.startswith("config.json")
    assert report.tensors == {}
    assert read_report(tmp_path / "report.json") == report


def test_few_of_many_faults_are_told(own, checked_with):
    index = own / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    gone = sorted(n for n in told["weight_map"] if n.startswith("sound_encoder"))[:55]
    assert len(gone) == 55
    for name in gone:
        del told["weight_map"][name]
    index.write_text(json.dumps(told))
    report = checked_with(own)
    assert "after 50 faults no others were looked for" in report.notes
    assert len(report.faults) == 50
    assert set(things(report)) <= set(gone)


def test_a_check_goes_on_only_with_the_same_files(own, tmp_path, monkeypatch):
    steps, started = checking._Steps, []
    towers = steps._towers

    def interrupted(self):
        raise KeyboardInterrupt

    def started_here(self):
        started.append(len(self._report.done))
        towers(self)

    keys = steps._keys
    monkeypatch.setattr(steps, "_keys", lambda self: (started.append("keys"), keys(self)))
    for change in ("nothing", "file"):
        monkeypatch.setattr(steps, "_towers", interrupted)
        with in_place_of_transformers(tmp_path / "encoders"):
            with pytest.raises(KeyboardInterrupt):
                check(own, tmp_path / "report", None, lambda *step: None)
            started.clear()
            if change == "file":
                os.utime(own / "config.json", ns=(1, 1))
            monkeypatch.setattr(steps, "_towers", started_here)
            report = check(own, tmp_path / "report", None, lambda *step: None)
        assert started == ([15] if change == "nothing" else ["keys", 15])
        assert len(report.done) == len(set(report.done)) == N_STEPS
        assert len(report.tensors) == N_TENSORS
        assert len(report.compared) == N_STEPS


def test_bytes_are_told_beside_the_published_ones(own, checked_with, monkeypatch):
    n_bytes = sum(path.stat().st_size for path in own.glob("*.safetensors"))
    for known, note in (
        (n_bytes, "the shards are as published"),
        (n_bytes + 1500, "the shards are -1,500 bytes beside published"),
    ):
        monkeypatch.setattr(checking, "PUBLISHED_BYTES", {N_SHARDS: (known, "published")})
        report = checked_with(own)
        assert note in report.notes
        assert report.facts["shards"] == f"{N_SHARDS}, {n_bytes:,} bytes"


def test_the_published_bytes_are_those_of_the_published_index():
    assert checking.PUBLISHED_BYTES == {17: (66_032_308_536, "the published BF16 files")}


def test_hashes_that_a_download_left_are_compared(own, checked_with):
    """As the hub's cache links them, and as a folder of one's own keeps them."""
    downloaded = own / ".cache" / "huggingface" / "download"
    downloaded.mkdir(parents=True)
    blobs = own.parent / "blobs"
    blobs.mkdir()
    config = (own / "config.json").read_bytes()
    right = hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()
    for name, text in {
        "config.json": f"{'a' * 40}\n{right}\n",
        "generation_config.json": "b" * 40,  # a revision alone
        "gone.json": f"{'a' * 40}\n{right}\n",
        "tokenizer.json": "\n",
    }.items():
        (downloaded / f"{name}.metadata").write_text(text)
    for name, of in (("tokenizer.json", b"{}"), ("tokenizer_config.json", None)):
        content = (own / name).read_bytes()
        blob = blobs / hashlib.sha256(content if of is None else of).hexdigest()
        (own / name).rename(blob)
        (own / name).symlink_to(blob)
    (own.parent / "elsewhere.txt").write_text("of one's own")
    (own / "notes.txt").symlink_to(own.parent / "elsewhere.txt")
    report = checked_with(own)
    assert report.faults == [
        Found("tokenizer.json", "is not what was published; download it again")
    ]
    assert "3 files have the hashes that were published" in report.notes
    assert report.facts["revision"] == f"{'a' * 40}, {'b' * 40}"


def test_a_step_that_fails_is_a_fault_told_once(own, checked_with, monkeypatch):
    def failing(self):
        raise CheckpointError(own / "config.json", f"is odd in {own}", f"look into {own}/x")

    monkeypatch.setattr(checking._Steps, "_sound", failing)
    monkeypatch.setattr(checking._Steps, "_text", failing)
    report = checked_with(own)
    assert report.faults == [Found("config.json", "is odd in the folder; look into x")]
    assert len(report.done) == N_STEPS


def stored_elsewise(folder, name, tensors):
    """Replace one tensor by others, in its shard and in the index."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"].pop(name)
    index["weight_map"] |= dict.fromkeys(tensors, shard)
    path.write_text(json.dumps(index))

    def change(held):
        del held[name]
        held.update(tensors)

    rewrite(folder / shard, change)


@pytest.mark.parametrize("expert", [3, 15])
def test_the_one_expert_that_is_in_another_format_is_named(own, expert):
    module = "language_model.backbone.layers.1.mixer.experts.{}.up_proj"
    name = f"{module.format(expert)}.weight"
    shape = Checkpoint(own).shape(name)
    scaled = {name: np.ones(shape, ml_dtypes.float8_e4m3fn)}
    scaled[f"{module.format(expert)}.weight_scale"] = np.float32(1).reshape(())
    stored_elsewise(own, name, scaled)
    fault, *_ = survey.faults(Checkpoint(own))
    assert str(fault) == (
        f"{name}: is in another format than {module.format(0)}.weight; "
        "quantize all experts of a layer alike"
    )


def test_a_final_norm_may_have_no_weights_of_its_own(own):
    config = json.loads((own / "config.json").read_text())
    config["llm_config"]["num_nextn_predict_layers"] = 1
    (own / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(own)
    assert checkpoint.spec.vision.final_norm
    assert list(survey.faults(checkpoint)) == []
