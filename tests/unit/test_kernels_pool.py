"""The pool of threads: every piece once, from several threads, after a fork, on any number."""

from __future__ import annotations

import functools
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import case

from edge import _kernels
from edge.engines import kernels
from edge.errors import ConfigurationError


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = _kernels.threads()
    yield
    _kernels.set_threads(before)


@functools.cache
def example() -> tuple[_kernels.Weight, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((1, 70)).astype(np.float32)
    return case("bfloat16", 3000, 70)[0], x


def linear() -> np.ndarray:
    weight, x = example()
    return kernels.linear(weight, x, exact=True)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    results = []
    for n_threads in (1, 2, 5, 3, 1, 4):
        _kernels.set_threads(n_threads)
        assert _kernels.threads() == n_threads
        results += [linear() for _ in range(50)]
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_several_threads_call_at_once() -> None:
    _kernels.set_threads(3)
    expected, wrong = linear(), []

    def call() -> None:
        for _ in range(50):
            if not np.array_equal(linear(), expected):
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _child(queue: multiprocessing.Queue[float]) -> None:
    queue.put(float(linear().sum()))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads() -> None:
    _kernels.set_threads(3)
    expected = float(linear().sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()


def test_a_wrong_number_is_refused() -> None:
    with pytest.raises(ValueError, match="n_threads is negative"):
        _kernels.set_threads(-1)


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_KERNELS", "mmx")
    with pytest.raises(ConfigurationError, match="EDGE_KERNELS: is 'mmx'; use one of"):
        kernels.choose_instruction_set()


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _kernels.instruction_set()
    monkeypatch.setenv("EDGE_KERNELS", _kernels.instruction_sets()[-1])
    kernels.choose_instruction_set()
    assert _kernels.instruction_set() == _kernels.instruction_sets()[-1]
    _kernels.use_instruction_set(before)


WITHOUT_ROOM = """
import resource
import numpy as np
from edge import _kernels
from edge.engines import kernels
from kernel_cases import case

weight, _ = case("bfloat16", 3000, 70)
x = np.random.default_rng(0).standard_normal((1, 70)).astype(np.float32)
_kernels.set_threads(1)
alone = kernels.linear(weight, x, exact=True)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20),) * 2)  # less than a thread's stack
_kernels.set_threads(4)
for _ in range(20):
    np.testing.assert_array_equal(kernels.linear(weight, x, exact=True), alone)
"""


def test_where_no_thread_can_be_had_the_caller_does_it_all() -> None:
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", WITHOUT_ROOM]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
