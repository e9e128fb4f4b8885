"""Two builders at once, and a source that changes under one: nothing is built of two halves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from faults.test_quantize import W4A16, files, interrupted, rewrite, run

from build_engine import cli, plans
from build_engine.building import building, kept, work_folder
from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.compile import Built
from build_engine.verify import verify
from edge.engines.bundle import Bundle
from edge.engines.hashing import Hashing
from edge.engines.safetensors import SafetensorsFile, write_safetensors
from edge.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from build_engine.building import building

with building(Path(sys.argv[1])):
    print("has it", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def source(checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("base"), folder)
    return folder


def louder(tensors):
    """Other weights of the same names, shapes and dtypes."""
    for name, values in tensors.items():
        if name.endswith("proj.weight"):
            tensors[name] = (values * np.float32(1.5)).astype(values.dtype)


def change(folder, keep_times=False):
    for path in folder.glob("*.safetensors"):
        about = path.stat()
        rewrite(path, louder)
        if keep_times:
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_run_is_not_continued_on_other_weights_of_the_same_shapes(
    source, tmp_path, capsys, keep_times
):
    interrupted(source, tmp_path / "out")
    change(source, keep_times)
    code, line = run(capsys, source, tmp_path / "out")
    assert code == 78
    assert ".out.partial: holds another, interrupted run (its source" in line
    shutil.rmtree(tmp_path / ".out.partial")
    assert run(capsys, source, tmp_path / "out")[0] == 0


def test_shards_of_which_nobody_knows_what_they_were_made_are_made_again(source, tmp_path, capsys):
    assert run(capsys, source, tmp_path / "whole")[0] == 0
    interrupted(source, tmp_path / "out")
    (tmp_path / ".out.partial" / "run.json").unlink()
    change(source)
    assert run(capsys, source, tmp_path / "out")[0] == 0
    assert run(capsys, source, tmp_path / "again")[0] == 0
    assert files(tmp_path / "out") == files(tmp_path / "again") != files(tmp_path / "whole")


def identity(folder):
    return json.loads((folder / "provenance.json").read_text())["checkpoint"]


def test_the_identity_of_a_checkpoint_is_that_of_its_weights(source, tmp_path, capsys):
    def built(name):
        out = tmp_path / name
        assert cli.main(["bundle", str(source), str(out), "--target", "cpu", "--json"]) == 0
        assert run(capsys, source, tmp_path / f"{name}-q")[0] == 0
        return Bundle(out).manifest.checkpoint_sha256, identity(tmp_path / f"{name}-q")

    first = built("first")
    whole = {}
    for path in [*source.glob("*.safetensors")]:
        file = SafetensorsFile(path)
        whole |= {name: file.tensor(name).copy() for name in file.names()}
        path.unlink()
    (source / "model.safetensors.index.json").unlink(missing_ok=True)
    write_safetensors(source / "model.safetensors", whole)
    assert built("in-one-shard") == first
    change(source)
    other = built("other")
    assert other[0] != first[0]
    assert other[1] != first[1]
    interrupted(source, tmp_path / "resumed-q")
    assert run(capsys, source, tmp_path / "resumed-q")[0] == 0
    assert identity(tmp_path / "resumed-q") == other[1]


def test_the_identity_needs_what_was_read(source):
    opened = Checkpoint(source)
    before = opened.sha256()
    name = "language_model.backbone.norm_f.weight"
    opened.finite(name, opened.shape(name))
    assert opened.sha256() != before


@pytest.mark.parametrize("command", [["bundle", "--target", "cpu"], ["quantize", *W4A16]])
def test_a_second_builder_is_refused_and_the_first_goes_on(source, tmp_path, capsys, command):
    out = tmp_path / "out"
    words = [command[0], str(source), str(out), *command[1:], "--json"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], cwd=ROOT, **pipes) as first:
        assert first.stdout.readline() == b"has it\n"
        mine = work_folder(out) / "mine"
        mine.write_text("precious")
        assert cli.main(words) == 78
        said = capsys.readouterr().err
        assert f"{work_folder(out)}: is being built by process {first.pid}; wait for it" in said
        assert mine.read_text() == "precious"
        first.kill()
    mine.unlink()
    assert cli.main(words) == 0  # a lock does not outlive its process
    assert not work_folder(out).exists()


@pytest.mark.parametrize("command", [["bundle", "--target", "cpu"], ["quantize", *W4A16]])
def test_builders_that_start_at_any_time_leave_one_whole_result(source, tmp_path, command):
    """What is there at the end is what one alone makes, and who did not make it says so."""
    program = [sys.executable, "-m", "build_engine.cli", command[0], str(source)]
    whole = [*program, str(tmp_path / "whole"), *command[1:]]
    subprocess.run(whole, cwd=ROOT, check=True, capture_output=True)
    out = [*program, str(tmp_path / "out"), *command[1:]]
    builders = [
        subprocess.Popen(out, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    said = [builder.communicate()[1].decode() for builder in builders]
    codes = [builder.returncode for builder in builders]
    assert codes.count(0) == 1, said
    others = [text for code, text in zip(codes, said, strict=True) if code]
    assert all("is being built by" in text or "exists already" in text for text in others), said
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_folder_that_its_builder_renames_is_not_taken_for_the_next(tmp_path):
    """Who opened it just before has the lock of what is finished now, and none of the new one."""
    out = tmp_path / "out"
    with building(out) as folder:
        folder.rename(out)
    shutil.rmtree(out)
    with building(out) as folder:
        assert folder.is_dir()


HOLD_BUNDLE = """
import sys
from pathlib import Path
from build_engine.building import kept

with kept(Path(sys.argv[1]), changes=sys.argv[2] == "changes"):
    print("has it", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def built(bundle, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(bundle("single"), path)
    return path


def holding(path, how):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", HOLD_BUNDLE, str(path), how], cwd=ROOT, **pipes)


def test_a_bundle_that_somebody_compiles_is_neither_verified_nor_compiled(built, capsys):
    with holding(built, "changes") as first:
        assert first.stdout.readline() == b"has it\n"
        for words in (["verify"], ["compile", "--target", "thor", "--check"]):
            assert cli.main([words[0], str(built), *words[1:]]) == 78
            said = capsys.readouterr().err
            assert f"{built}: is being compiled or verified by process {first.pid}; wait" in said
        first.kill()
    assert cli.main(["verify", str(built)]) == 0  # a lock does not outlive its process


def test_those_who_only_read_a_bundle_do_so_together(built):
    with holding(built, "reads") as first:
        assert first.stdout.readline() == b"has it\n"
        with kept(built, changes=False):
            pass
        with pytest.raises(ConfigurationError, match=f"by process {first.pid}"), kept(built):
            pass
        first.kill()


def test_compiling_and_verifying_keep_each_other_out(built, monkeypatch, capsys):
    monkeypatch.setattr(plans, "COMPILER", "json")
    monkeypatch.setattr(plans, "check_tensorrt", lambda version: None)
    monkeypatch.setattr(plans, "local_compute_capability", lambda: (8, 7))
    codes = []

    def compiled(module, order, progress, kernels):
        codes.append(cli.main(["verify", str(built)]))
        codes.append(cli.main(["compile", str(built), "--target", "orin"]))
        order.plan.write_bytes(b"plan")
        return Built(order.graph, ("any",), 0.0, 4, 0, scratch_bytes=(12,))

    monkeypatch.setattr(plans, "compile_isolated", compiled)
    assert cli.main(["compile", str(built), "--target", "orin", "--context", "512"]) == 0
    assert codes == [78, 78] * 4

    def verified(path, engine):
        codes.append(cli.main(["compile", str(path), "--target", "orin", "--context", "512"]))
        return verify(path, engine)

    codes.clear()
    monkeypatch.setattr(cli, "verify", verified)
    assert cli.main(["verify", str(built), "--engine", "cpu"]) == 0
    assert codes == [78]
    assert capsys.readouterr().err.count("is being compiled or verified by process") == 9


def test_what_is_no_bundle_is_no_matter_of_locks(tmp_path, capsys):
    for path in (tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").write_text("x")
        assert cli.main(["verify", str(path)]) == 78
        assert "is being" not in capsys.readouterr().err


def test_a_file_is_hashed_when_it_is_written_and_when_it_is_verified(source, tmp_path, monkeypatch):
    hashed = Counter()

    real = Hashing._hash

    def counted(self, path, *where):
        hashed[path.name] += 1
        return real(self, path, *where)

    monkeypatch.setattr(Hashing, "_hash", counted)
    manifest = build_bundle(source, tmp_path / "out", "cpu", lambda *_: None)
    assert hashed == dict.fromkeys(manifest.files, 2)
