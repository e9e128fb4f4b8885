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
from edge.engines.bundle import FORMAT, Bundle
from edge.engines.hashing import file_entry
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
        (("llm_config", "head_dim"), "big", "head_dim: is 'big', which is not a whole number"),
        (("llm_config", "n_groups"), 3, "mamba_num_heads: is 8, not a multiple of n_groups = 3"),
        (("llm_config", "n_group"), 3, "n_routed_experts: is 16, not a multiple of n_group = 3"),
        (("llm_config", "hidden_size"), 0, "hidden_size: is 0, below 1"),
        (("vision_config", "args", "model"), "vit_x", None),
        (("vision_config", "hidden_size"), None, "is 'tiny', an unknown ViT"),
        (("sound_config", "sampling_rate"), 8000, "sampling_rate: is 8000, only 16000 is served"),
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


LLM, VISION, SOUND = ("llm_config",), ("vision_config",), ("sound_config",)
NOT_SERVED = [
    # another computation
    (*LLM, "mlp_hidden_act", "silu", "only 'relu2' is served"),
    (*LLM, "mamba_hidden_act", "relu", "only 'silu' is served"),
    (*LLM, "use_bias", True, "only False is served"),
    (*LLM, "mlp_bias", True, "only False is served"),
    (*LLM, "attention_bias", True, "only False is served"),
    (*LLM, "mamba_proj_bias", True, "only False is served"),
    (*LLM, "sliding_window", 1024, "attention sees the whole past"),
    (*LLM, "n_shared_experts", 2, "only 1 is served"),
    (*LLM, "moe_latent_size", 32, "experts read the residual stream"),
    (*LLM, "tie_word_embeddings", True, "the head has a matrix of its own"),
    (*LLM, "hybrid_override_pattern", "ME-*EM*E", "has a dense MLP, '-', at position 2"),
    (*LLM, "time_step_limit", [0.001, 0.1], "steps are not limited here"),
    (*VISION, "video_maintain_aspect_ratio", False, "only True is served"),
    (*VISION, "separate_video_embedder", False, "only True is served"),
    (*VISION, "feature_normalizer_config", {"dtype": "float32"}, "are not normalized"),
    (*VISION, "use_swiglu_ffn", True, "only False is served"),
    (*SOUND, "hidden_act", "relu", "only 'silu' is served"),
    (*SOUND, "subsampling_conv_kernel_size", 5, "only 3 is served"),
    (*SOUND, "subsampling_conv_stride", 4, "only 2 is served"),
    (*SOUND, "subsampling_factor", 4, "only 8 is served"),
    ("img_context_token", "<picture>", "writes this word into prompts"),
    # what contradicts itself
    (*LLM, "topk_group", 2, "topk_group: is 2, above n_group = 1"),
    (*LLM, "num_experts_per_tok", 17, "but the groups chosen have 16 experts"),
    (*LLM, "n_group", 16, "a group's score is that of its two best experts"),
    (*LLM, "num_hidden_layers", 7, "but the pattern has 8 letters"),
    (*LLM, "conv_kernel", 17, "above 16, the most that is served"),
    (*LLM, "norm_topk_prob", "false", "which is not true or false"),
    (*LLM, "num_attention_heads", True, "which is not a whole number"),
    (*LLM, "head_dim", 16.5, "which is not a whole number"),
    (*LLM, "layer_norm_epsilon", float("nan"), "which is not a finite number"),
    (*LLM, "n_routed_experts", 10**9, "above 4096, the most that is served"),
    (*VISION, "num_attention_heads", 5, "does not divide hidden_size = 64"),
    (*VISION, "patch_size", 14, "config.json.patch_size: is 16, but"),
    (*VISION, "hidden_size", 48, "vit_hidden_size: is 64, but"),
    (*VISION, "video_temporal_patch_size", 3, "video_temporal_patch_size: is 2, but"),
    (*VISION, "min_num_patches", 8, "min_num_patches: is 8, but"),
    (*VISION, "video_target_num_patches", 10**9, "outside 4..16384"),
    (*SOUND, "conv_kernel_size", 4, "even: it would move sound"),
    (*SOUND, "num_mel_bins", 84, "not a multiple of 8"),
    (*SOUND, "hidden_size", 63, "does not divide hidden_size = 63"),
    (*SOUND, "num_attention_heads", 3, "which does not divide hidden_size = 64"),
    (*SOUND, "head_dim", 32, "but 64 by 4 heads is 16"),
    ("norm_std", [0.2, 0.0, 0.2], "norm_std"),
    ("img_context_token_id", 19, "is 19, but <image> is token"),
    ("eos_token_id", 512, None),
    ("text_config", {"hidden_size": 32}, "its other name"),
    ("sound_config", None, "sound_config: is missing"),
    ("vision_config", [], "which is not an object"),
    ("quantization_config", {"quant_method": "compressed-tensors"}, "is by quant_method"),
    ("quantization_config", {"quantized_layers": ["a"]}, "is not of ModelOpt's form"),
    ("quantization_config", "fp8", "is not an object"),
]


@pytest.mark.parametrize("case", NOT_SERVED, ids=lambda case: ".".join(map(str, case[:-2])))
def test_what_is_not_served_is_named_before_anything_is_written(broken, capsys, monkeypatch, case):
    *keys, value, expected = case
    if value is None:
        edit_json(broken / "config.json", *keys, value=None)
    else:
        edit_json(broken / "config.json", *keys, value=value)
    if expected is None:  # generation_config.json's comes first
        edit_json(broken / "generation_config.json", *keys, value=value)
        expected = "eos_token_id: is 512, and there are 512 tokens"

    def write(*_):
        raise AssertionError("something is written")

    monkeypatch.setattr("build_engine.bundle.building", write)
    code, line = build(broken, capsys)
    assert code == 65
    assert expected in line
    assert keys[-1] in line


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("generation_config.json", {"repetition_penalty": 1.1}, "only 1.0 is served"),
        ("generation_config.json", {"eos_token_id": None, "temperature": None}, None),
        ("generation_config.json", {"temperature": "hot"}, "which is not a finite number"),
        ("generation_config.json", {"temperature": 7.0}, "outside 0..2"),
        ("generation_config.json", {"top_p": 0}, "outside 0..1"),
        ("generation_config.json", {"eos_token_id": [2, None]}, "which is not a token id or"),
        ("generation_config.json", {"bad_words_ids": [[7]]}, "drawn by temperature"),
        ("preprocessor_config.json", {"norm_mean": [0.5, 0.5, 0.5]}, "but config.json.norm_mean"),
        ("preprocessor_config.json", {"max_num_patches": 300}, "max_num_patches: is 300, but"),
        ("preprocessor_config.json", {"do_normalize": False}, "pixels are normalized"),
        ("processor_config.json", {"image_processor": {"resample": 2}}, "bicubically"),
        ("processor_config.json", {"audio_hop_length": 80}, "10 ms apart"),
        ("video_preprocessor_config.json", {"video_target_num_patches": 8}, "is 8, but"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "only False is served"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"18": {"content": "<picture>", "special": True}}},
            'added_tokens_decoder.18: is "<picture>", and tokenizer.json knows no such',
        ),
        ("tokenizer_config.json", {"add_bos_token": True, "what": 1}, None),
    ],
)
def test_other_configurations_are_read_too(broken, capsys, name, values, expected):
    path = broken / name
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, **values}))
    if expected is None:
        out = str(broken.parent / "b")
        assert build_cli.main(["bundle", str(broken), out, "--target", "cpu"]) == 0
        return
    code, line = build(broken, capsys)
    assert code == 65
    assert name in line
    assert expected in line


def test_keys_that_nobody_reads_are_ignored_and_named(broken, caplog):
    edit_json(broken / "config.json", "llm_config", "logit_softcapping", value=30.0)
    edit_json(broken / "config.json", "colour", value="blue")
    out = str(broken.parent / "b")
    assert build_cli.main(["bundle", str(broken), out, "--target", "cpu"]) == 0
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 keys are ignored, as transformers does not read them either: "
        "config.json.colour, config.json.llm_config.logit_softcapping"
    )


MIXER = "language_model.backbone.layers.3.mixer"
TOWER = "sound_encoder.encoder.layers.0"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (f"{MIXER}.q_proj.bias", 0.5, "is not read, because it adds 0, but it holds 0.5"),
        (f"{MIXER}.q_proj.bias", 0.0, None),
        (f"{TOWER}.conv.pointwise_conv1.bias", 0.1, "it holds 0.1"),
        (f"{MIXER}.q_norm.weight", 1.0, "nothing of this model reads it"),
        (f"{MIXER}.k_proj.k_scale", 0.7, None),
        (f"{MIXER}.v_proj.v_scale", 0.7, None),
        (f"{MIXER}.q_proj.input_scale", 0.7, None),
        (f"{MIXER}.q_proj.weight_scale", 0.7, "with weight_scale: no known format"),
        ("mtp.layers.0.mixer.q_proj.weight", 0.7, None),
        ("language_model.backbone.layers.8.norm.weight", 1.0, "nothing of this model reads it"),
        ("vision_model.radio_model.model.norm.weight", 1.0, "nothing of this model reads it"),
        ("vision_model.radio_model.summary_idxs", 1.0, None),
        ("vision_model.radio_model.model.blocks.0.ls1.gamma", 1.0, None),
        ("vision_model.radio_model.model.blocks.0.ls1.gamma", 0.9, "it holds 0.9"),
    ],
)
def test_a_tensor_that_nothing_reads_is_named(broken, capsys, name, value, expected):
    rewrite(
        broken / "model.safetensors",
        lambda tensors: tensors.update({name: np.full((8,), value, np.float32)}),
    )
    if expected is None:
        out = str(broken.parent / "b")
        assert build_cli.main(["bundle", str(broken), out, "--target", "cpu"]) == 0
        return
    code, line = build(broken, capsys)
    assert code == 65
    assert line.startswith(f"build-engine: {name.removesuffix('.weight_scale')}")
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
        (b"\xff\xfe", "has no chat template that can be read"),
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


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("tokenizer_config.json", lambda text: text),
        ("tokenizer_config.json", lambda text: [{"name": "default", "template": text}]),
        ("chat_template.json", lambda text: text),
        ("processor_config.json", lambda text: text),
    ],
)
def test_a_template_may_be_where_older_checkpoints_have_it(broken, name, form):
    template, path = broken / "chat_template.jinja", broken / name
    text = template.read_text()
    template.unlink()
    told = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**told, "chat_template": form(text)}))
    out = broken.parent / "b"
    assert build_cli.main(["bundle", str(broken), str(out), "--target", "cpu"]) == 0
    assert (out / "chat_template.jinja").read_text() == text


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({}, "chat_template.jinja: is missing"),
        ([{"name": "tool_use", "template": "x"}], "has another chat template for tools"),
        ([{"name": "default"}], "has no chat template that can be read"),
    ],
)
def test_a_checkpoint_without_one_template_is_named(broken, capsys, told, problem):
    (broken / "chat_template.jinja").unlink()
    edit_json(broken / "tokenizer_config.json", "chat_template", value=told)
    code, line = build(broken, capsys)
    assert code == 65
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
