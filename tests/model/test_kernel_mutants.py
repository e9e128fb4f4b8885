"""Traps put into the native kernels' source: the goldens, or the kernels' own tests, must notice.

All mutants are compiled at once, in a copy: each place chooses by a number which expression holds,
so that one build serves them all. A process of its own then tries one number after another.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    "EDGE_TEST_MUTANTS" not in os.environ,
    reason="EDGE_TEST_MUTANTS=1 compiles the kernels once more and tries 32 mutants (40 s)",
)
ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "cpu"
CHOOSES = "#pragma once\ninline int edge_mutant = 0;\n"
"""In front of every file: the number of the mutant."""
SETS = '    module.def("set_mutant", [](int mutant) { edge_mutant = mutant; });\n'

TRY = """
import importlib.util, json, sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

root, built, work = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
sys.path[:0] = [str(root / "scripts"), str(root / "tests")]
loader = ExtensionFileLoader("edge._kernels", built)
kernels = importlib.util.module_from_spec(importlib.util.spec_from_loader("edge._kernels", loader))
loader.exec_module(kernels)
sys.modules["edge._kernels"] = kernels
import edge
edge.__dict__["_kernels"] = kernels
import numpy as np
import pytest
from parity import GOLDENS, disagreements, golden_part, runtime_outputs
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine

QUIET = ["-x", "-pno:terminal", "-pno:cacheprovider", "-oaddopts="]

class Failures(list):
    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.append(report.nodeid)

def failures(mutant, tests):
    failed = Failures()
    kernels.set_mutant(mutant)
    code = pytest.main([*QUIET, *tests], plugins=[failed])
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), (mutant, tests, code)
    return list(failed)

engines, found = {}, {}
for name, number, by in json.loads(sys.argv[4]):
    if "/" in by:
        found[name] = failures(number, by.split())
        # It is the mutant that they see, not how this module was compiled.
        assert not failures(0, found[name] or by.split()), found[name]
        continue
    kernels.set_mutant(number)
    if by not in engines:
        engines[by] = CpuEngine(Bundle(work / by), n_threads=1, exact=True)
    outputs = golden_part(runtime_outputs(engines[by], work / by))
    with np.load(GOLDENS / f"{by}.npz") as stored:
        found[name] = sorted(disagreements(outputs, dict(stored)))
print(json.dumps(found))
"""

SEQUENCE, SCAN, EXPERTS = "sequence.cpp", "state_space.cpp", "experts.cpp"
ATTENTION, INNER = "attention.cpp", "vector_sequence.h"
QUANTIZED, PRODUCT, LINEAR = "vector_quantized.h", "vector_product.h", "linear.cpp"
TESTS = "tests/unit/test_kernels"
ONE_ROW, MANY_ROWS = f"{TESTS}_linear.py::test_one_row", f"{TESTS}_linear.py::test_many_rows"

# name: (file, the right expression, the wrong one, preset of the goldens that must disagree or the
# tests of which one must fail)
MUTANTS = {
    "none": (SEQUENCE, "r.n_groups > 1", "r.n_groups > 1", "base"),
    "none, grouped": (SEQUENCE, "r.n_groups > 1", "r.n_groups > 1", "grouped"),
    "none, single": (SEQUENCE, "r.n_groups > 1", "r.n_groups > 1", "single"),
    "correction bias ignored": (SEQUENCE, "scores[e] + bias[e]", "scores[e]", "base"),
    "correction bias in the weights": (
        *(SEQUENCE, "weights[slot] = scores[best]"),
        *("weights[slot] = scores[best] + bias[best]", "base"),
    ),
    "weights not normalised": (SEQUENCE, "r.normalise ? 1 / (total + 1e-20f) : 1", "1.0f", "base"),
    "weights normalised anyway": (
        *(SEQUENCE, "r.normalise ? 1 / (total + 1e-20f) : 1", "1 / (total + 1e-20f)"),
        "single",
    ),
    "groups ignored": (SEQUENCE, "r.n_groups > 1", "false", "grouped"),
    "a group counts by its best": (SEQUENCE, "best[0] + best[1]", "best[0]", "grouped"),
    "one weight for all groups' norms": (SEQUENCE, "weight + at", "weight", "base"),
    "taps from the newest": (
        *(INNER, "taps + t * stride", "taps + (n_taps - 1 - t) * stride"),
        "base",
    ),
    "no past before the convolution": (
        *(SEQUENCE, "row(i + t) + first", "row(i + n_past) + first"),
        "base",
    ),
    "gate without its sigmoid": (INNER, "v[0] * silu(v[1])", "v[0] * v[1]", "base"),
    "ReLU not squared": (INNER, "positive * positive", "positive", "base"),
    "dt clamped at 0.001": (
        *(SCAN, "softplus(dt.row(first + t)[head] + s.dt_bias[head])"),
        *("std::max(softplus(dt.row(first + t)[head] + s.dt_bias[head]), 0.001)", "base"),
    ),
    "dt clamped in decode": (
        *(SCAN, "softplus(dt.data[head] + s.dt_bias[head])"),
        *("std::max(softplus(dt.data[head] + s.dt_bias[head]), 0.001)", f"{TESTS}_sequence.py"),
    ),
    "no D in decode": (SCAN, "out + s.d[head] * x.data[p]", "out", "base"),
    "what enters the state is not stepped": (
        *(SCAN, "decays.step[t] * decays.since(n - 1, t)", "decays.since(n - 1, t)"),
        "base",
    ),
    "heads take groups in turn": (
        *(SCAN, "chunk * s.n_groups + head / (s.n_heads / s.n_groups)"),
        *("chunk * s.n_groups + head % s.n_groups", "base"),
    ),
    "decays summed in float32": (
        *(SCAN, "sum += step[t] * rate", "sum = static_cast<float>(sum + step[t] * rate)"),
        f"{TESTS}_sequence.py",
    ),
    "scores not scaled": (ATTENTION, "1 / std::sqrt(static_cast<float>(dim))", "1.0f", "base"),
    "the next token is seen": (
        *(ATTENTION, "job.n_past + first_token + r / heads + 1"),
        *("job.n_past + first_token + r / heads + 2", "base"),
    ),
    "query heads take K/V heads in turn": (
        *(ATTENTION, "kv_head * heads + r % heads", "r % heads * job.n_kv_heads + kv_head"),
        "base",
    ),
    "a tile's sum is not brought to the new largest": (
        *(INNER, "running->sum * lanes[0] + sum_of(scores, n)"),
        *("running->sum + sum_of(scores, n)", "base"),
    ),
    "answers of experts go to other tokens": (
        *(EXPERTS, "slots[group.begin + i]", "group.begin + i"),
        "base",
    ),
    "experts count alike in decode": (
        *(EXPERTS, "kernels().add_scaled(part + first, weights[slot], y + first, last - first)"),
        "kernels().add_scaled(part + first, weights[0], y + first, last - first)",
        "base",
    ),
    "frames without their window": ("mel.cpp", "TABLES.hann[i]", "1.0", "base"),
    "pixels without their mean": ("pixels.cpp", "sum * gain + offset", "sum * gain", "base"),
    "the last columns left out": (PRODUCT, "whole < k", "false", f"{MANY_ROWS} {ONE_ROW}"),
    "the last block of columns alone": (LINEAR, "column > 0", "false", f"{MANY_ROWS} {ONE_ROW}"),
    "NVFP4 codes without their offset": (
        *(QUANTIZED, "NVFP4_OFFSET * sum_of(to->codes, NVFP4_GROUP)", "0"),
        f"{ONE_ROW} -k nvfp4",
    ),
    "odd rows of INT4 with the scale of even ones": (
        *(QUANTIZED, "scales + 4 * (n_blocks + b)", "scales + 4 * b"),
        f"{ONE_ROW} -k int4",
    ),
    "activations rounded to 128 steps": (
        *(QUANTIZED, "amax < SMALLEST_AMAX ? 0 : 127 / amax"),
        *("amax < SMALLEST_AMAX ? 0 : 128 / amax", f"{ONE_ROW} -k portable-6-5-nvfp4"),
    ),
    "the last tile's scales are its first row's": (
        *(QUANTIZED, "scales[g * rows + r]", "scales[g * rows]"),
        f"{TESTS}_linear.py::test_every_number_of_outputs",
    ),
    "bins of logits a thousandth too narrow": (
        *("bins.cpp", "(most - logits[start + i]) * scale"),
        *("(most - logits[start + i]) * scale * 1.001", f"{TESTS}_bins.py"),
    ),
}
NUMBERS = {name: number for number, name in enumerate(MUTANTS, 1)}


def compiled(folder: Path) -> Path:
    """The module of kernels with all mutants in it, hardly optimized."""
    shutil.copytree(KERNELS, folder / "kernels" / "cpu")
    makes = (ROOT / "CMakeLists.txt").read_text()
    header = folder / "mutant.h"
    header.write_text(CHOOSES)
    assert makes.count("-O3") == 1
    (folder / "CMakeLists.txt").write_text(makes.replace("-O3", f"-O1 -include {header}"))
    places: dict[tuple[str, str], str] = {}
    for name, (file, right, wrong, _) in MUTANTS.items():
        before = places.get((file, right), f"({right})")
        places[file, right] = f"(edge_mutant == {NUMBERS[name]} ? ({wrong}) : {before})"
    for (file, right), choice in places.items():
        path = folder / "kernels" / "cpu" / file
        text = path.read_text()
        assert text.count(right) == 1, f"{file} has changed: {right!r} is there otherwise"
        path.write_text(text.replace(right, choice))
    module = folder / "kernels" / "cpu" / "module.cpp"
    begin = "NB_MODULE(_kernels, module) {\n"
    assert begin in module.read_text()
    module.write_text(module.read_text().replace(begin, begin + SETS))
    tools = Path(sys.executable).parent
    packages = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"],
        capture_output=True,
        text=True,
        check=True,
    )
    for command in (
        [
            *(tools / "cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build"),
            *(f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", f"-DPython_EXECUTABLE={sys.executable}"),
            *(f"-Dnanobind_DIR={packages.stdout.strip()}", "-DSKBUILD_STATE=editable"),
        ],
        [tools / "cmake", "--build", folder / "build", "--parallel", "2"],
    ):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    (built,) = (folder / "build").glob("_kernels*.so")
    return built


@pytest.fixture(scope="module")
def seen(tmp_path_factory, bundle) -> dict[str, list[str]]:
    """Of each mutant, which outputs disagree, or whether a test fails."""
    if shutil.which("c++") is None:
        pytest.skip("needs c++: apt-get install g++")
    folder = tmp_path_factory.mktemp("mutants")
    built = compiled(folder)
    for preset in ("base", "grouped", "single"):
        (folder / preset).symlink_to(bundle(preset))
    wanted = [[name, NUMBERS[name], by] for name, (*_, by) in MUTANTS.items()]
    run = subprocess.run(
        [sys.executable, "-c", TRY, ROOT, built, folder, json.dumps(wanted)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, list[str]] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", MUTANTS)
def test_the_goldens_or_the_kernels_tests_notice(name, seen):
    assert bool(seen[name]) is not name.startswith("none"), seen[name]
