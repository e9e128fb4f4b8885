"""A checkpoint beside another implementation, which here says what ours does, or a little else."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from make_tiny_checkpoint import make_checkpoint
from run_again import run_again

from build_engine import check as checking
from build_engine.check import CHATS, TOOL, Compared, Found, Report, check, read_report
from edge.errors import ConfigurationError
from edge.features.mel import log_mel
from edge.model.prompt import ChatTemplate
from edge.model.tokenizer import Tokenizer


class Other:
    """Says again what ours has just said, each value larger by a share of its own."""

    ERRORS = (RuntimeError,)

    def __init__(self, checkpoint):
        self.checkpoint, self.said, self.shares, self.broken = checkpoint, {}, {}, set()
        self.asked, self.says_other_text = [], False

    def _of(self, name):
        if name in self.broken:
            raise RuntimeError(f"no {name}\n in {self.checkpoint.folder}")
        return self.said[name] * np.float32(1 + self.shares.get(name, 0.0))

    def tokenizer(self):
        return self

    def __call__(self, text, *, add_special_tokens):
        assert add_special_tokens is False
        ids = Tokenizer(self.checkpoint.folder).encode(text).tolist()
        return SimpleNamespace(input_ids=[*ids, 1] if self.says_other_text else ids)

    def apply_chat_template(self, messages, **settings):
        self.asked.append((messages, settings))
        tools, thinking = settings["tools"] or [], settings["enable_thinking"]
        template = ChatTemplate(self.checkpoint.folder)
        said = template.render(messages, thinking=thinking, tools=tools)
        return said + " " if self.says_other_text else said

    def mel(self, samples):
        self.said["mel"] = log_mel(samples, self.checkpoint.spec.audio.n_mels)
        if "mel" in self.shares:
            return self.said["mel"] + np.float32(self.shares["mel"])
        return self._of("mel")

    def embeddings(self, ids):
        assert len(ids) >= 40
        return self._of("embeddings")

    def mixed(self, number, rows, chosen):
        assert len(rows) >= len(chosen)
        n_experts = self.checkpoint.spec.decoder.n_experts
        assert set(chosen.reshape(-1).tolist()) == set(range(n_experts))
        return self._of(f"block {number}"), None

    def head(self, rows):
        return self._of("head")

    def vision(self, patches, frames, grid):
        return self._of("pictures"), self._of("tubelets")

    def audio(self, mel):
        return self._of("sound")


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Check the base preset beside an `Other` that a test has changed."""
    folder = tmp_path / "checkpoint"
    make_checkpoint(folder, "base")
    made = []

    def remember(module, name, key):
        real = getattr(module, name)

        def wrapped(*words, **settings):
            found = real(*words, **settings)
            made[0].said[key(*words)] = found
            return found

        monkeypatch.setattr(module, name, wrapped)

    remember(checking, "mixed", lambda _ops, _spec, number, _rows: f"block {number}")
    remember(checking, "head", lambda *_: "head")
    remember(checking.DecoderWeights, "rows", lambda *_: "embeddings")
    remember(checking.Encoders, "encode_image", lambda *_: "pictures")
    remember(checking.Encoders, "encode_tubelets", lambda *_: "tubelets")
    remember(checking.Encoders, "encode_audio", lambda *_: "sound")
    monkeypatch.setattr(checking, "find_spec", lambda _: object())

    def run(change=lambda _: None, progress=lambda *_: None):
        def begin(checkpoint):
            made[:] = [Other(checkpoint)]
            change(made[0])
            return made[0]

        theirs = SimpleNamespace(TransformersModel=begin, versions=lambda: {"transformers": "5"})
        monkeypatch.setitem(sys.modules, "build_engine.transformers_model", theirs)
        return check(folder, tmp_path / "report", None, progress), made[0]

    return run


def test_every_part_is_compared_and_the_same_is_no_fault(beside):
    steps = []
    report, other = beside(progress=lambda *step: steps.append(step))
    assert report.faults == []
    pattern = other.checkpoint.spec.decoder.pattern
    parts = [found.part for found in report.compared]
    n_blocks = sum(part.startswith("block ") for part in parts)
    assert n_blocks == len(pattern)
    assert [p for p in parts if not p.startswith("block")] == [
        "log-mel", "embeddings", "head", "pictures", "tubelets", "sound"
    ]  # fmt: skip
    assert {found.error for found in report.compared} == {0.0}
    n_steps = 5 + 2 + n_blocks + 2
    assert steps == [("check", n, n_steps) for n in range(n_steps + 1)]
    assert len(report.done) == n_steps
    assert {"text", "sound", "keys", "inventory", "files", "towers"} <= {*report.done}
    assert report.facts["transformers"] == "5"
    n_tensors = len(other.checkpoint.names())
    assert report.facts["tensors"] == str(n_tensors)
    assert not any("transformers" in note for note in report.notes)
    # Chats are asked for as clients of transformers do.
    assert len(other.asked) == 8
    for messages, settings in other.asked:
        assert {message["role"] for message in messages} <= {"user", "system", "assistant"}
        assert all(message["content"] for message in messages)
        assert settings["tokenize"] is False
        assert settings["add_generation_prompt"] is True
    forms = [(settings["enable_thinking"], settings["tools"]) for _, settings in other.asked[:4]]
    assert forms == [(False, None), (False, [TOOL]), (True, None), (True, [TOOL])]


def test_what_is_asked_is_what_openai_calls_a_chat_and_a_tool():
    module = run_again("build_engine.check")
    assert module.TOOL == TOOL
    assert (TOOL["type"], set(TOOL["function"])) == (
        "function", {"name", "description", "parameters"}
    )  # fmt: skip
    parameters = TOOL["function"]["parameters"]
    assert (parameters["type"], [*parameters["properties"]]) == ("object", ["metres"])
    assert module.CHATS == CHATS
    assert {frozenset(m) for chat in CHATS for m in chat} == {frozenset(["role", "content"])}
    # As the card of the model has it: 66.0 GB in 17 files.
    assert {n: round(size / 1e9, 1) for n, (size, _) in module.PUBLISHED_BYTES.items()} == {
        17: 66.0
    }


def test_what_differs_is_a_fault_by_name(beside):
    parts = {"embeddings": "embeddings", "block 0": "block 0, mamba2", "head": "head"}
    parts |= {name: name for name in ("pictures", "tubelets", "sound")}

    def differ(other):
        other.shares = dict.fromkeys(parts, 0.25) | {"mel": 0.25}
        other.says_other_text = True

    report, _ = beside(differ)
    found = [(fault.thing, fault.problem.removesuffix("; report this")) for fault in report.faults]
    report_too = "; report this, with the report"
    assert found == [
        *(("tokenizer.json", f"text {n} has other tokens than transformers makes of it")
          for n in range(1, 5)),
        *(("chat_template.jinja", f"chat {n} is another prompt than transformers makes of it")
          for n in range(1, 9)),
        ("log-mel", f"differs from transformers by 2.5e-01; 1e-03 may be{report_too}"),
        *((name, f"differs from transformers by 2.0e-01; 1e-04 may be{report_too}")
          for name in parts.values()),
    ]  # fmt: skip


def test_what_the_other_cannot_compute_is_noted_without_a_folder(beside):
    report, other = beside(lambda other: other.broken.update({"head", "sound"}))
    assert report.faults == []
    parts = {found.part for found in report.compared}
    assert not {"head", "sound"} & parts
    notes = [note for note in report.notes if "could not compute" in note]
    assert len(notes) == 2
    assert str(other.checkpoint.folder) not in "".join(notes)
    assert "(no head in" in notes[0]


REPORT = Report(
    facts={"python": "3.12", "most memory": "1 GB"},
    keys=[
        {"name": "a.b", "value": 1, "verdict": "honoured"},
        {"name": "c", "value": 2, "verdict": "refused"},
        {"name": "d", "value": 2, "verdict": "honoured"},
    ],
    compared=[Compared("head", 1.25e-7)],
    faults=[Found("config.json", "is wrong")],
    notes=["nothing"],
)


def test_a_report_for_people():
    assert REPORT.table().splitlines() == [
        "python         3.12",
        "most memory    1 GB",
        "",
        "1 keys are refused:",
        "c",
        "",
        "2 keys are honoured:",
        "a.b, d",
        "",
        "compared with transformers               relative difference",
        "  head                                   1.2e-07",
        "",
        "note: nothing",
        "FAULT config.json: is wrong",
        "1 faults",
    ]


def test_a_report_for_machines(tmp_path):
    assert REPORT.summary() == {
        "passed": False,
        "facts": REPORT.facts,
        "compared": {"head": 1.25e-7},
        "faults": [{"thing": "config.json", "problem": "is wrong"}],
        "notes": ["nothing"],
    }
    assert Report().summary()["passed"] is True
    path = tmp_path / "report.json"
    path.write_bytes(msgspec.json.encode(REPORT))
    assert read_report(path) == REPORT
    for text in ("[]", "{", ""):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=r"is no report .*; give a report's \.json"):
            read_report(path)
    with pytest.raises(ConfigurationError, match="is no report"):
        read_report(tmp_path / "none.json")
