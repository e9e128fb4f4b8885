"""Broken checkpoints and bundles: one clear line, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from build_engine import cli as build_cli
from build_engine.bundle import save_manifest
from edge.engines.bundle import FORMAT, Bundle, file_entry
from edge.engines.safetensors import SafetensorsFile, SafetensorsWriter
from edge.errors import BundleError


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A checkpoint of one's own to break."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("base"), folder)
    return folder


def build(folder, capsys):
    """Exit code and the one line on standard error."""
    out = folder.parent / "bundle"
    code = build_cli.main(["bundle", str(folder), str(out), "--target", "cpu", "--json"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert not out.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    return code, lines[0]


def edit_json(path: Path, *keys: str, value) -> None:
    values = json.loads(path.read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(values))


def rewrite(path: Path, change) -> None:
    """Write the tensors again as `change` leaves them."""
    file = SafetensorsFile(path)
    tensors = {name: file.tensor(name).copy() for name in file.names()}
    change(tensors)
    layout = {name: (values.dtype, values.shape) for name, values in tensors.items()}
    with SafetensorsWriter(path.with_suffix(".new"), layout) as writer:
        for name, values in tensors.items():
            writer.write(name, [values])
    path.with_suffix(".new").rename(path)


NORM = "language_model.backbone.layers.3.norm.weight"


def test_a_missing_tensor_is_named(broken, capsys):
    rewrite(broken / "model.safetensors", lambda tensors: tensors.pop(NORM))
    code, line = build(broken, capsys)
    assert code == 65
    assert f"{NORM}: is missing from" in line
    assert line.endswith("download the checkpoint again, complete")


def test_a_wrong_shape_is_named(broken, capsys):
    rewrite(
        broken / "model.safetensors",
        lambda tensors: tensors.update({NORM: np.ones((63,), np.float32)}),
    )
    code, line = build(broken, capsys)
    assert code == 65
    assert f"{NORM}: has shape (63,), but config.json means (64,)" in line


def test_a_nan_is_named(broken, capsys):
    def poison(tensors):
        tensors[NORM][5] = np.nan

    rewrite(broken / "model.safetensors", poison)
    code, line = build(broken, capsys)
    assert (code, f"{NORM}: holds a NaN" in line) == (65, True)


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        (
            ("llm_config", "hybrid_override_pattern"),
            "MEX*EM*E",
            "unknown layer letter 'X' at position 2",
        ),
        (("llm_config", "hybrid_override_pattern"), None, "hybrid_override_pattern: is missing"),
        (("llm_config", "head_dim"), "big", "head_dim: is 'big', which is not a int"),
        (("llm_config", "n_groups"), 3, "mamba_num_heads: is 8, not a multiple of n_groups = 3"),
        (("llm_config", "n_group"), 3, "n_routed_experts: is 16, not a multiple of n_group = 3"),
        (("llm_config", "hidden_size"), 0, "hidden_size: is 0, below 1"),
        (("vision_config", "args", "model"), "vit_x", None),
        (("vision_config", "hidden_size"), None, "is 'tiny', an unknown ViT"),
        (("sound_config", "sampling_rate"), 8000, "has sampling_rate 8000"),
        (("downsample_ratio",), 0.25, "downsample_ratio: is 0.25"),
        (("max_sequence_length",), 0, "config.json.max_sequence_length: is 0, below 1"),
    ],
)
def test_a_wrong_configuration_is_named(broken, capsys, keys, value, expected):
    edit_json(broken / "config.json", *keys, value=value)
    if expected is None:
        assert (
            build_cli.main(["bundle", str(broken), str(broken.parent / "b"), "--target", "cpu"])
            == 0
        )
        return
    code, line = build(broken, capsys)
    assert code == 65
    assert expected in line


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ],
)
def test_a_missing_file_is_named(broken, capsys, name):
    (broken / name).unlink()
    code, line = build(broken, capsys)
    assert code == 65
    assert name in line


def test_a_tokenizer_without_a_special_token_is_named(broken, capsys):
    path = broken / "tokenizer.json"
    path.write_text(path.read_text().replace("<so_start>", "<so_begin>"))
    code, line = build(broken, capsys)
    assert code == 65
    assert "has no special token '<so_start>'" in line


WHOLE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% if %}", "is not a chat template"),
        ("{% nothing %}", "is not a chat template"),
        (b"\xff\xfe", "is not a chat template"),
        ("{{ unknown.thing }}" + WHOLE, "failed on these messages"),
        (WHOLE + "{% if tools %}{{ raise_exception('no tools') }}{% endif %}", "no tools"),
        ("{% if enable_thinking %}{{ 1 / 0 }}{% endif %}" + WHOLE, "division by zero"),
        ("{{ messages[0].role }}", "drops the user's content"),
        ("{{ messages[1].content }}", "drops the user's content"),
    ],
)
def test_a_template_that_would_fail_in_service_is_not_built(broken, capsys, template, problem):
    data = template if isinstance(template, bytes) else template.encode()
    (broken / "chat_template.jinja").write_bytes(data)
    code, line = build(broken, capsys)
    assert code == 65
    assert "chat_template.jinja" in line
    assert problem in line


def test_a_bundle_is_not_verified_with_such_a_template(bundle, tmp_path, capsys):
    folder = tmp_path / "b"
    shutil.copytree(bundle("base"), folder)
    manifest, path = Bundle(folder).manifest, folder / "chat_template.jinja"
    path.write_text("{{ messages[0].role }}")
    files = {**manifest.files, path.name: file_entry(path)}
    save_manifest(msgspec.structs.replace(manifest, files=files), folder)
    assert build_cli.main(["verify", str(folder)]) == 65
    assert "chat_template.jinja: drops the user's content" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", None, None),
        ("top_p", None, None),
        ("eos_token_id", None, None),
        ("temperature", "hot", "generation_config.json.temperature: is 'hot'"),
        ("top_p", [], "generation_config.json.top_p: is []"),
        ("eos_token_id", "</s>", "generation_config.json.eos_token_id: is '</s>'"),
        ("eos_token_id", [2, None], "generation_config.json.eos_token_id: is [2, None]"),
    ],
)
def test_generation_settings_may_be_null_and_else_are_checked(
    broken, capsys, name, value, expected
):
    path = broken / "generation_config.json"
    settings = json.loads(path.read_text()) | {name: value}
    path.write_text(json.dumps(settings))
    if expected is None:
        out = broken.parent / "b"
        assert build_cli.main(["bundle", str(broken), str(out), "--target", "cpu"]) == 0
        return
    code, line = build(broken, capsys)
    assert code == 65
    assert expected in line


@pytest.mark.parametrize("n_bytes", [4, 2000, 100_000])
def test_a_truncated_shard_is_named(broken, capsys, n_bytes):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    code, line = build(broken, capsys)
    assert code == 65
    assert "model.safetensors" in line


def test_a_full_disk_leaves_nothing_behind(broken, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "decoder.safetensors")

    monkeypatch.setattr(SafetensorsWriter, "write", full)
    code, line = build(broken, capsys)
    assert code == 74
    assert "No space left on device" in line


def test_an_existing_bundle_is_not_overwritten(bundle, checkpoint, capsys):
    folder = bundle("base")
    code = build_cli.main(["bundle", str(checkpoint("base")), str(folder), "--target", "cpu"])
    assert code == 78
    assert f"{folder}: exists already" in capsys.readouterr().err
    Bundle(folder)


@pytest.fixture
def damaged(bundle, tmp_path):
    """A bundle of one's own to damage."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle("base"), folder)
    return folder


@pytest.mark.parametrize(
    "name",
    ["decoder.safetensors", "vision.onnx", "vision.onnx.data", "tokenizer.json", "selfcheck.npz"],
)
def test_one_flipped_bit_is_refused(damaged, name):
    path = damaged / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: is damaged: sha256"):
        Bundle(damaged)


def test_a_missing_or_short_file_is_refused(damaged):
    path = damaged / "audio.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="the manifest says"):
        Bundle(damaged)
    path.unlink()
    with pytest.raises(BundleError, match=r"audio\.onnx\.data: is missing"):
        Bundle(damaged)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"format": 99, "future": true}', r"is of format 99, this runtime reads .*; update"),
        ('{"format": 0}', "is of format 0"),
        (f'{{"format": {FORMAT}}}', "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_an_unreadable_or_newer_manifest_is_refused(damaged, text, expected):
    (damaged / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=expected):
        Bundle(damaged)


def test_a_manifest_from_before_trained_tokens_is_read(damaged):
    edit_json(damaged / "manifest.json", "spec", "decoder", "trained_tokens", value=None)
    assert Bundle(damaged).manifest.spec.decoder.trained_tokens == 131_072


def test_a_manifest_cannot_name_files_outside(damaged):
    edit_json(damaged / "manifest.json", "files", "../x", value={"n_bytes": 1, "sha256": ""})
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle(damaged)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle(tmp_path)


def test_verify_refuses_an_engine_that_disagrees(damaged, capsys, monkeypatch):
    monkeypatch.setattr(
        "edge.engines.cpu_ops.CpuOps.relu2", lambda self, x: np.square(np.maximum(x, 0.01))
    )
    assert build_cli.main(["verify", str(damaged)]) == 78
    assert "self-check of logits differs" in capsys.readouterr().err


def test_verify_prints_the_differences(damaged, capsys):
    assert build_cli.main(["verify", str(damaged), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    outputs = {found["name"]: found["error"] for found in report["outputs"]}
    assert set(outputs) == {"image", "tubelets", "audio", "logits", "restored", "greedy"}
    assert report["passed"]
    assert max(outputs.values()) <= 5e-5
    assert min(found["error"] for found in report["controls"]) > 1e-2
