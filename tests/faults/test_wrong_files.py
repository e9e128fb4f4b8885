"""Bundles and files of tensors that are wrong, with the right hashes: each ends in one clear error.

`make fuzz-files` tries all of them and random ones, in processes of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import fuzz_files
import numpy as np
import pytest

from build_engine.checkpoint import Checkpoint
from edge.child import EDGE, python
from edge.cli import main
from edge.engines.bundle import DECODER_WEIGHTS, MANIFEST, Bundle, prompts
from edge.engines.safetensors import SafetensorsFile, write_safetensors
from edge.errors import BundleError, CheckpointError, EdgeError
from edge.files import open_regular, read_bounded


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle("base"), tmp_path / "bundle")


@pytest.fixture(scope="module")
def quantized(bundle, tmp_path_factory):
    """The form of a bundle with tensors in all formats."""
    folder = shutil.copytree(bundle("wide"), tmp_path_factory.mktemp("wrong") / "quantized")
    fuzz_files.quantize_in_form(folder)
    Bundle(folder)
    return folder


@pytest.mark.parametrize(("name", "content"), list(fuzz_files.headers()))
def test_a_header_that_no_writer_writes_is_refused(tmp_path, name, content):
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        SafetensorsFile(path)
    assert str(refusal.value).isprintable()
    assert str(path) in str(refusal.value)


def test_headers_of_other_writers_are_read(tmp_path):
    path = tmp_path / "some.safetensors"
    header = b'{"b":{"dtype":"F32","shape":[],"data_offsets":[0,4],"more":1},"__metadata__":null}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.float32(2).tobytes())
    assert SafetensorsFile(path).tensor("b") == 2


def test_a_dtype_that_nothing_reads_may_be_there(tmp_path):
    path = tmp_path / "some.safetensors"
    header = b'{"b":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"b: has the unknown dtype 'F8_E8M0'"):
        SafetensorsFile(path).tensor("b")


def test_a_few_wrong_bundles_of_each_kind_are_refused(bundle, quantized, tmp_path):
    whole = bundle("wide")
    wrong = fuzz_files.a_few(fuzz_files.faults(whole, quantized))
    assert len(wrong) >= 84
    not_refused = []
    for fault in wrong:
        copy = shutil.copytree(whole, tmp_path / "copy")
        fault.change(copy)
        found = fuzz_files.opened(copy)
        if not fuzz_files.refused(found) or found["code"] != 78:
            not_refused.append((fault.name, found))
        shutil.rmtree(copy)
    assert not not_refused


def as_float16(folder, name="layers.0.gated_norm"):
    path = folder / DECODER_WEIGHTS
    file = SafetensorsFile(path)
    tensors = {n: np.array(file.tensor(n)) for n in file.names()}
    tensors[name] = tensors[name].astype(np.float16)
    path.unlink()
    write_safetensors(path, tensors)
    fuzz_files.rehash(folder)


def test_a_tensor_of_another_dtype_ends_a_start_in_one_line(copied, tmp_path):
    as_float16(copied)
    command = python(EDGE, "run", copied, "--socket", tmp_path / "edge.sock", "--quiet")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 78
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        f"edge: {copied / DECODER_WEIGHTS}: holds layers.0.gated_norm as float16["
    )


def test_the_doctor_names_it_too(copied, capsys):
    as_float16(copied)
    assert main(["doctor", str(copied)]) == 78
    assert "decoder.safetensors holds layers.0.gated_norm as float16[" in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["base", "grouped", "wide", "single"])
def test_what_is_built_is_opened(bundle, preset):
    opened = Bundle(bundle(preset))
    prompts(opened)
    assert opened.unknown == []


def test_what_else_lies_in_the_folder_is_told_and_not_read(copied, caplog, capsys):
    (copied / "tokenizer_config.json").write_text('{"chat_template": "another"}')
    (copied / "lost+found").mkdir()
    assert Bundle(copied).unknown == ["lost+found", "tokenizer_config.json"]
    assert "event=unknown_files" in caplog.text
    main(["doctor", str(copied)])
    assert "warning  its folder  lost+found, tokenizer_config.json" in capsys.readouterr().out


def test_a_template_elsewhere_stands_for_none(copied):
    """As older checkpoints have it; in a bundle nobody has hashed that file."""
    template = copied / "chat_template.jinja"
    (copied / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    manifest = json.loads((copied / MANIFEST).read_bytes())
    del manifest["files"][template.name]
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"does not list chat_template\.jinja"):
        Bundle(copied)


def test_a_bundle_may_be_a_link_and_its_files_may_not(copied, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(copied)
    Bundle(link)
    inside = copied / "tokenizer.json"
    inside.rename(copied / "other")
    inside.symlink_to("other")
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read \(is a symbolic link"):
        Bundle(link)


def test_only_regular_files_are_read_and_no_more_than_may_be(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, "/dev/zero", tmp_path):
        with pytest.raises(OSError, match=r"is no regular file|Is a directory"):
            open_regular(type(tmp_path)(place))
    large = tmp_path / "large"
    large.write_bytes(bytes(100))
    assert read_bounded(large, 100) == bytes(100)
    with pytest.raises(OSError, match="more than the 99 bytes"):
        read_bounded(large, 99)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", b"[" * 100_000, "is not JSON"),
        ("config.json", b'{"a": "\xff"}', "is not JSON"),
        ("generation_config.json", b" " * ((1 << 26) + 1), "has more than"),
        ("tokenizer_config.json", b'{"a":' * 50_000, "is not JSON"),
        ("preprocessor_config.json", b"[]", "is not a JSON object"),
        ("config.json", None, "is no regular file"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b"}}', "is no file beside it"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}', "is no file beside it"),
    ],
)
def test_a_checkpoints_files_are_bounded(checkpoint, tmp_path, name, content, problem):
    folder = shutil.copytree(checkpoint("base"), tmp_path / "checkpoint")
    (folder / name).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        Checkpoint(folder)


def test_an_error_is_one_line_whatever_a_file_has_in_its_names():
    error = EdgeError("a\nb", "is \x1b[31m\ud800\u202e", "x" * 10_000)
    assert str(error).isprintable()
    assert str(error).startswith(r"a\nb: is \x1b[31m\ud800\u202e; xxx")
    assert len(str(error)) < 5000
