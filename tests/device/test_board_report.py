"""`edge doctor --board-report`: here, on a fake GPU, with steps that hang or say too much."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from edge import board_report, demo
from edge.board_report import Step, carried_out, steps
from edge.cli import main
from edge.engines.bundle import Bundle

DEVICE_TESTS = Path(__file__).resolve().parent
FILES = demo.files()
FAKES = """\
from fake_cuda import FakeDriver
from fake_tensorrt import FakeTensorRT
driver = FakeDriver()
trt = FakeTensorRT(driver)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def by_name(made: list[Step]) -> dict[str, board_report.Result]:
    return {result.name: result for result in carried_out(made)}


def test_a_machine_without_a_gpu_does_what_it_can(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    slow = ("session", "speed of the CPU", "V4L2 cameras", "microphones")
    made = [s for s in steps(FILES.checkpoint, tmp_path, None) if s.name not in slow]
    found = by_name(made)
    for name in ("board", "quantize", "bundle", "verify on the CPU", "try"):
        assert found[name].verdict == "ok", found[name]
    assert found["quantize"].right in " ".join(found["quantize"].output)
    n_mb = sum(f.n_bytes for f in Bundle(tmp_path / "bundle").manifest.files.values()) / 1e6
    assert f"{n_mb:.0f} MB" in found["bundle"].right
    assert any("ok" in line for line in found["verify on the CPU"].output)
    assert found["GPU"].verdict == "failure"
    assert found["GPU"].exit_code in (75, 78)  # no driver; no cuda-python
    for name, why in (("compile", "GPU"), ("verify", "compile"), ("verify with them", "compile w")):
        assert (found[name].verdict, found[name].why[: 6 + len(why)]) == (
            "left out",
            f"needs {why}",
        )


def test_the_gpus_steps_on_a_fake_gpu(tmp_path, compiled, monkeypatch):
    """TensorRT's builder is missing there: that step fails, and the others go on."""
    fakes = tmp_path / "fakes"
    (fakes / "cuda" / "bindings").mkdir(parents=True)
    for package in ("cuda", "cuda/bindings"):
        (fakes / package / "__init__.py").write_text("")
    (fakes / "fakes.py").write_text(FAKES)
    for path, what in (("cuda/bindings/driver.py", "driver"), ("tensorrt.py", "trt")):
        text = f"import sys\nfrom fakes import {what}\nsys.modules[__name__] = {what}\n"
        (fakes / path).write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [fakes, *sys.path])))
    shutil.copytree(compiled("base", "HALF"), tmp_path / "bundle")
    made = {step.name: replace(step, needs=()) for step in steps(tmp_path, tmp_path, None)}
    found = by_name([made["compile"], made["GPU"], made["verify"], made["verify with them"]])
    assert found["compile"].verdict == "failure"
    assert found["GPU"].verdict == "ok", found["GPU"]
    assert found["GPU"].output[0].startswith("Orin (sm 8.7, 16 SMs)")
    for name in ("verify", "verify with them"):
        assert found[name].verdict == "ok", found[name]
        assert found[name].output[0].startswith("engine tensorrt 10.13")
    assert Bundle(tmp_path / "bundle").manifest.plans.verified


def test_what_hangs_ends_with_all_that_it_started(tmp_path):
    sleep = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    hang = f"import subprocess, sys; print('begun', flush=True); subprocess.run({sleep})"
    began_s = time.monotonic()
    made = [
        Step("hangs", "", python(hang), 2.0),
        Step("fails", "", python("print('x' * 9); raise SystemExit(3)"), 60),
        Step("after", "", python("print(1)"), 60, ("fails",)),
        Step("well", "", python("print(1)"), 60),
    ]
    found = by_name(made)
    assert time.monotonic() - began_s < 60
    assert found["hangs"].verdict == "timed out"
    assert found["hangs"].output == ["begun"]
    assert (found["fails"].verdict, found["fails"].exit_code) == ("failure", 3)
    assert (found["after"].verdict, found["after"].why) == ("left out", "needs fails")
    assert (found["well"].verdict, found["well"].output) == ("ok", ["1"])


def test_after_its_time_nothing_begins():
    made = [Step("late", "", python("print(1)"), 60)]
    (result,) = carried_out(made, total_s=0)
    assert (result.verdict, result.why) == ("left out", "0 s are over")


def test_nothing_private_is_written(tmp_path, monkeypatch, capsys):
    kernels, bundle = tmp_path / "kernels", tmp_path / "board" / "bundle"
    private = [Path.home() / "robot", bundle, kernels, "/home/anna/x", "/media/anna/stick"]
    private += [Path.cwd(), sys.prefix, f"by {getpass.getuser()}:", f"on {socket.gethostname()}"]
    private = "\n".join(map(str, private))
    step = Step("says", "much", python(f"print({private!r})"), 60)
    monkeypatch.setattr(
        board_report, "steps", lambda *_: [step, replace(step, name="left", missing=str(bundle))]
    )
    monkeypatch.setattr(demo, "files", lambda: replace(FILES, kept=tmp_path))
    file = tmp_path / "report.json"
    assert main(["doctor", "--board-report", str(file), "--kernels", str(kernels)]) == 0
    text = file.read_text()
    for word in (str(Path.home()), str(tmp_path), socket.gethostname(), "anna", sys.prefix):
        assert word not in text, word
    (said, left) = json.loads(text)["steps"]
    assert said["output"][1] == "WORK/bundle"
    if getpass.getuser() != "root":
        assert "by USER:" in said["output"]
    assert (left["verdict"], left["why"]) == ("left out", "needs WORK/bundle")
    assert "right: much" in capsys.readouterr().out


def test_it_makes_its_own_bundle(tmp_path, capsys):
    assert main(["doctor", str(tmp_path), "--board-report", str(tmp_path / "r")]) == 78
    assert "makes a bundle of its own" in capsys.readouterr().err
