"""The encoders' threads: only on the cores that the process may use, and asleep between calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from edge.engines.bundle import Bundle
from edge.engines.encoders import Encoders
from edge.errors import BundleError

CHILD = """
import json, os, sys, time
from pathlib import Path

core = int(sys.argv[2])
if core >= 0:
    os.sched_setaffinity(0, {core})
import numpy as np
from edge.engines.bundle import Bundle
from edge.engines.encoders import Encoders

bundle = Bundle(Path(sys.argv[1]))
spec = bundle.manifest.spec
mel = np.zeros((200, spec.audio.n_mels), np.float32)

def tasks():
    return {task.name for task in Path("/proc/self/task").iterdir()}

def cpu_s(encoders):
    took = []
    encoders.encode_audio(mel)
    for _ in range(10):
        began = time.process_time()
        encoders.encode_audio(mel)
        time.sleep(0.1)
        took.append(time.process_time() - began)
    return sorted(took)[len(took) // 2]

one = Encoders(bundle.path, spec, 1)
one.encode_audio(mel)
before = tasks()
own = Encoders(bundle.path, spec)
own.encode_audio(mel)
new = tasks() - before
allowed = []
for task in new:
    status = (Path("/proc/self/task") / task / "status").read_text()
    allowed.append(status.split("Cpus_allowed_list:")[1].split()[0])
whole = Path("/proc/self/status").read_text().split("Cpus_allowed_list:")[1].split()[0]
two = Encoders(bundle.path, spec, 2)
print(json.dumps({"own": allowed, "process": whole, "one_s": cpu_s(one), "two_s": cpu_s(two)}))
"""


def measured(bundle, core):
    command = [sys.executable, "-c", CHILD, str(bundle("base")), str(core)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_process_that_was_given_one_core_has_no_encoder_thread_beside_its_own(bundle):
    given = sorted(os.sched_getaffinity(0))[0]
    found = measured(bundle, given)
    assert found["process"] == str(given)
    assert set(found["own"]) <= {str(given)}
    assert len(found["own"]) == 1  # the one that loads; calls run on the caller's


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_encoder_threads_are_bound_to_no_core_and_sleep_between_calls(bundle):
    """Measured: 1.2 times the processor time of one thread (scripts/bench_encoders.py), up to 1.8
    in calls this short beside other work; 23 times where threads spin."""
    found = measured(bundle, -1)
    assert len(found["own"]) == len(os.sched_getaffinity(0))
    assert set(found["own"]) == {found["process"]}
    assert found["two_s"] <= 4 * found["one_s"]


def test_an_encoder_that_cannot_be_loaded_is_named(bundle, tmp_path):
    spec = Bundle(bundle("base")).manifest.spec
    (tmp_path / "audio.onnx").write_bytes(b"no graph")
    encoders = Encoders(tmp_path, spec, 1)
    with pytest.raises(BundleError, match=r"audio\.onnx: cannot be loaded \("):
        encoders.encode_audio(np.zeros((80, spec.audio.n_mels), np.float32))
