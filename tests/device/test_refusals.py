"""`edge run` and `build-engine verify` where something is missing: one line, with the remedy."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import sys
from types import SimpleNamespace

import msgspec
import pytest
from fake_cuda import FakeDriver
from fake_gpu import COMPILED, describe_plans
from fake_tensorrt import FakeTensorRT

from build_engine import cli as build_cli
from edge import cli
from edge.engines.bundle import Bundle, Plans
from edge.engines.choose import check_plans
from edge.engines.cuda import Device
from edge.engines.tensorrt import TensorrtEngine
from edge.errors import BundleError
from jetson import doctor

ORIN = Device("Orin", "8.7", 16)


@pytest.fixture
def folder(compiled, tmp_path):
    """A compiled bundle that may be changed."""
    shutil.copytree(compiled("base", "HALF"), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def driver(monkeypatch):
    """This machine has the fake GPU, with TensorRT."""
    found = FakeDriver()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", found)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(found))
    return found


def refused(capsys, *arguments):
    """Exit code, and the one line."""
    code = cli.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return code, lines[0]


def run(capsys, folder, *options):
    socket_path = folder.parent / "edge.sock"
    return refused(capsys, "run", folder, "--quiet", "--socket", socket_path, *options)


def test_a_bundle_without_plans(bundle, tmp_path, capsys):
    shutil.copytree(bundle("base"), tmp_path / "bundle")
    code, line = run(capsys, tmp_path / "bundle", "--engine", "tensorrt")
    assert code == 78
    assert "holds no TensorRT plans; make them with `build-engine compile`" in line
    assert "--engine cpu" in line


def test_plans_of_an_older_builder(folder, driver, capsys):
    """One plan for both phases: such a bundle is compiled again, or runs on the CPU."""
    (folder / "prefill.plan").rename(folder / "decoder.plan")
    (folder / "decode.plan").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    files = manifest["files"]
    files["decoder.plan"] = files.pop("prefill.plan")
    del files["decode.plan"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, line = run(capsys, folder, "--unverified")
    assert code == 78
    assert "holds an older builder's plans: it lacks decode.plan and prefill.plan; " in line
    assert "compile it again with `build-engine compile`, or run on the CPU" in line
    assert driver.leaks() == {}


@pytest.mark.parametrize("options", [(), ("--engine", "tensorrt")])
def test_no_driver(folder, driver, capsys, options):
    """Plans in the bundle choose the engine: the CPU is never taken silently."""
    driver.no_library = True
    code, line = run(capsys, folder, *options)
    assert (code, line) == (
        75,
        "edge: CUDA driver: libcuda.so.1 is not on this machine; install JetPack's or NVIDIA's "
        "driver, or run on the CPU with `--engine cpu`",
    )


def test_no_device(folder, driver, capsys):
    driver.failing["cuInit"] = 100
    code, line = run(capsys, folder)
    assert code == 75
    assert "the driver sees none (CUDA_ERROR_NO_DEVICE (100))" in line


@pytest.mark.parametrize("module", ["cuda.bindings.driver", "tensorrt"])
@pytest.mark.parametrize("empty", [False, True])
def test_no_module(folder, driver, capsys, monkeypatch, module, empty):
    """A folder of type stubs looks like an empty module."""
    monkeypatch.setitem(sys.modules, module, SimpleNamespace() if empty else None)
    code, line = run(capsys, folder)
    assert code == 78
    assert f"module {module}: is not installed; " in line
    assert "--engine cpu" in line
    assert driver.leaks() == {}


@pytest.mark.parametrize("kind", ["ImportError", "OSError"])
def test_a_module_that_does_not_load(folder, driver, capsys, monkeypatch, tmp_path, kind):
    """JetPack's, where a library of it was removed."""
    text = f"raise {kind}('libnvinfer.so.10: cannot open shared object file')\n"
    (tmp_path / "tensorrt.py").write_text(text)
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    code, line = run(capsys, folder)
    assert code == 78
    said = f"({kind}: libnvinfer.so.10: cannot open shared object file); install that of JetPack"
    assert f"module tensorrt: cannot be imported {said}" in line
    assert "--engine cpu" in line
    assert driver.leaks() == {}


def test_a_tensorrt_that_is_too_old(folder, driver, capsys, monkeypatch):
    """JetPack 6's: to compile again is no remedy there."""
    monkeypatch.setattr(FakeTensorRT, "__version__", "10.3.0")
    code, line = run(capsys, folder)
    assert code == 78
    assert "TensorRT 10.3.0: is too old: plans need 10.9; flash JetPack 7.2" in line
    assert driver.leaks() == {}


def examined(folder, *, try_it=False):
    return {check.name: check for check in doctor.examine(folder, try_it=try_it)}


@pytest.mark.parametrize("try_it", [False, True])
def test_the_doctor_passes_what_run_takes(folder, driver, try_it):
    describe_plans(folder, msgspec.structs.replace(COMPILED, verified=str(ORIN)))
    found = examined(folder, try_it=try_it)
    assert (found["plans"].verdict, found["plans"].found) == ("ok", f"verified on this {ORIN}")
    assert "self-check" not in found or found["self-check"].verdict == "ok"
    assert ("self-check" in found) is try_it
    assert driver.leaks() == {}


@pytest.mark.parametrize(
    ("change", "version", "says"),
    [
        ({}, COMPILED.tensorrt, "is not verified on this Orin"),
        ({"tensorrt": "10.9.0"}, COMPILED.tensorrt, "is compiled by TensorRT 10.9.0"),
        ({"compute_capability": "11.0"}, COMPILED.tensorrt, "is compiled for sm 11.0"),
        ({"verified": str(ORIN)}, "10.3.0", "is too old: plans need 10.9"),
    ],
)
def test_the_doctor_fails_what_run_refuses(
    folder, driver, capsys, monkeypatch, change, version, says
):
    describe_plans(folder, msgspec.structs.replace(COMPILED, **change))
    monkeypatch.setattr(FakeTensorRT, "__version__", version)
    assert run(capsys, folder)[0] == 78
    found = examined(folder, try_it=True)
    assert found["plans"].verdict == "failure"
    assert says in found["plans"].found
    assert "self-check" not in found  # it would pass, and that would say nothing
    assert driver.leaks() == {}
    assert cli.main(["doctor", str(folder), "--try"]) == 78
    assert "this machine: failed 1 check" in capsys.readouterr().err


def test_the_doctor_fails_plans_without_a_gpu(folder, driver):
    driver.no_library = True
    assert examined(folder)["plans"].verdict == "failure"


def test_unverified(folder, driver, capsys):
    code, line = run(capsys, folder)
    assert code == 78
    assert "is not verified on this Orin (sm 8.7, 16 SMs); run `build-engine verify`" in line
    assert "or give --unverified" in line
    assert driver.leaks() == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"compute_capability": "11.0"}, r"is compiled for sm 11\.0, this GPU is Orin \(sm 8\.7"),
        ({"tensorrt": "10.3.0"}, r"is compiled by TensorRT 10\.3\.0, here is 10\.13"),
        ({"verified": "Orin (sm 8.7, 8 SMs)"}, r"is verified on Orin \(sm 8\.7, 8 SMs\), not on"),
    ],
)
def test_plans_for_something_else(tmp_path, change, says):
    plans = msgspec.structs.replace(COMPILED, **({"verified": str(ORIN)} | change))
    with pytest.raises(BundleError, match=says):
        check_plans(tmp_path, plans, ORIN, COMPILED.tensorrt, unverified=False)
    if "verified" in change:
        check_plans(tmp_path, plans, ORIN, COMPILED.tensorrt, unverified=True)
    else:
        with pytest.raises(BundleError, match=says):
            check_plans(tmp_path, plans, ORIN, COMPILED.tensorrt, unverified=True)


def test_plans_for_this_machine(tmp_path):
    plans = msgspec.structs.replace(COMPILED, verified=str(ORIN))
    check_plans(tmp_path, plans, ORIN, COMPILED.tensorrt, unverified=False)


def test_plans_for_another_board(folder, driver, capsys):
    describe_plans(folder, msgspec.structs.replace(COMPILED, compute_capability="11.0"))
    code, line = run(capsys, folder, "--unverified")
    assert code == 78
    assert "is compiled for sm 11.0, this GPU is Orin" in line
    assert "compile it again with `build-engine compile` on this machine" in line
    assert driver.leaks() == {}


def verify(folder, *options):
    return build_cli.main(["verify", str(folder), *map(str, options)])


def test_verify_marks_the_bundle_for_this_gpu(folder, driver, tmp_path, capsys):
    warnings = {"vision": ["DLA requests all profiles have same min, max, and opt value."]}
    describe_plans(folder, msgspec.structs.replace(COMPILED, warnings=warnings))
    report = tmp_path / "report.json"
    assert verify(folder, "--report", report) == 0
    shown = capsys.readouterr().out
    assert "engine tensorrt 10.13.0.35 on Orin (sm 8.7, 16 SMs), recipe unquantized" in shown
    assert "weights" in shown
    assert "decode of a token" in shown
    assert "WRONG" not in shown
    plans = Bundle(folder).manifest.plans
    assert isinstance(plans, Plans)
    assert plans.verified == str(ORIN)
    assert driver.leaks() == {}
    found = json.loads(report.read_text())
    assert found["passed"]
    assert found["gpu"] == str(ORIN)
    assert found["plan_warnings"] == warnings
    assert all(error["error"] > 0 for error in found["outputs"] if error["name"] == "logits")
    private = {getpass.getuser(), socket.gethostname(), str(tmp_path), folder.parent.name}
    assert not [word for word in private if len(word) > 3 and word in report.read_text()]


@pytest.mark.parametrize(
    ("method", "mutant", "says"),
    [
        # keys and values are computed, and forgotten
        ("_append", lambda self, place, past, n: None, "self-check of logits differs"),
        # a snapshot is restored in name only
        (
            "restore",
            lambda self, state, snapshot: setattr(state, "n_tokens", snapshot.n_tokens),
            "self-check of restored differs",
        ),
    ],
)
def test_verify_refuses_an_engine_that_disagrees(
    folder, driver, tmp_path, capsys, monkeypatch, method, mutant, says
):
    monkeypatch.setattr(TensorrtEngine, method, mutant)
    report = tmp_path / "report.json"
    assert verify(folder, "--report", report) == 78
    captured = capsys.readouterr()
    assert says in captured.err
    assert "WRONG" in captured.out
    assert not json.loads(report.read_text())["passed"]
    plans = Bundle(folder).manifest.plans
    assert plans is not None
    assert plans.verified is None


def test_verify_refuses_a_check_that_shows_nothing(folder, driver, capsys, monkeypatch):
    monkeypatch.setattr("build_engine.verify.wrong_inputs", lambda inputs: inputs)
    assert verify(folder) == 78
    assert "agrees with wrong inputs: it shows nothing" in capsys.readouterr().err


def test_verify_on_the_cpu_marks_nothing(folder, capsys):
    assert verify(folder, "--engine", "cpu") == 0
    assert "engine cpu" in capsys.readouterr().out
    plans = Bundle(folder).manifest.plans
    assert plans is not None
    assert plans.verified is None
