"""What the tensorrt engine asks of the driver: in which order, how much, and what if it fails."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
from fake_cuda import FakeDriver, Misuse
from fake_gpu import load, redescribed
from fake_tensorrt import FakeTensorRT
from unit.test_laws import rows_of

from edge.engines.bundle import Bundle
from edge.engines.cuda import Cuda
from edge.errors import BundleError, CapacityError, DeviceError, EngineError, MediaError

STEP = ["upload", "enqueue", "download", "append", "wait"]


@pytest.fixture
def board(machine):
    found = machine("base")
    found.driver.log.clear()
    return found


def test_calls_come_in_this_order(board):
    executor, log = board.engine, board.driver.log

    def calls(call, *arguments):
        log.clear()
        result = call(*arguments)
        return result, list(log)

    state, made = calls(executor.new_state)
    assert made == ["fill"]
    rows = rows_of(executor, 0, 300)
    assert calls(executor.prefill, state, rows)[1] == STEP + STEP
    assert calls(executor.decode, state, 3)[1] == ["launch", "append", "wait"]
    assert calls(executor.prefill, state, rows[:1])[1] == ["launch", "append", "wait"]
    snapshot, made = calls(executor.snapshot, state)
    assert made == ["copy"]
    assert calls(executor.restore, state, snapshot)[1] == ["copy"]
    image = np.zeros((24, 3 * executor.spec.vision.patch_size**2), np.float32)
    expected = ["upload"] * 4 + ["enqueue", "download", "wait"]
    assert calls(executor.encode_image, image, (4, 6))[1] == expected


def test_what_was_returned_stays_as_it_is(board):
    """The next call writes the same pinned memory."""
    executor = board.engine
    state, mels = executor.new_state(), executor.spec.audio.n_mels
    given = [executor.decode(state, 1), executor.encode_audio(np.zeros((20, mels), np.float32))]
    kept = [values.copy() for values in given]
    executor.decode(state, 2)
    executor.encode_audio(np.ones((20, mels), np.float32))
    for values, expected in zip(given, kept, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_nothing_is_allocated_after_the_start(board):
    executor = board.engine
    before = board.driver.n_allocations, board.trt.n_contexts_made
    for _ in range(3):
        state = executor.new_state()
        executor.prefill(state, rows_of(executor, 1, 299))
        snapshot = executor.snapshot(state)
        executor.decode(state, 2)
        executor.restore(state, snapshot)
        executor.encode_audio(np.zeros((50, executor.spec.audio.n_mels), np.float32))
        del snapshot
    assert (board.driver.n_allocations, board.trt.n_contexts_made) == before


def test_everything_is_given_back(compiled):
    board = load(Bundle(compiled("single")), FakeDriver(), max_states=1)
    taken = board.driver.leaks()
    assert set(taken) == {"blocks", "host", "streams", "graphs", "contexts"}
    board.engine.new_state()
    board.engine.close()
    assert board.driver.leaks() == {}
    assert not board.trt.contexts


def test_what_was_taken_is_given_back_when_memory_runs_out(compiled):
    """At every allocation that could be the one."""
    bundle = Bundle(compiled("single"))
    whole = load(bundle, FakeDriver(), max_states=1)
    needed = sum(whole.engine.memory_bytes.values())
    for part in (0.01, 0.2, 0.5, 0.9, 0.99):
        driver = FakeDriver(total_bytes=int(needed * part))
        with pytest.raises(DeviceError, match=r"GB are free; stop other programs") as caught:
            load(bundle, driver, max_states=1)
        assert caught.value.exit_code == 75
        assert driver.leaks() == {}
    whole.engine.close()


@pytest.mark.parametrize(
    ("call", "act"),
    [
        ("cuMemcpyHtoDAsync", "prefill"),
        ("cuMemcpyDtoHAsync", "prefill"),
        ("cuMemcpy2DAsync", "prefill"),
        ("cuStreamSynchronize", "prefill"),
        ("cuGraphLaunch", "decode"),
        ("cuMemcpyDtoDAsync", "snapshot"),
        ("cuMemsetD8Async", "new_state"),
    ],
)
@pytest.mark.parametrize(("code", "name"), [(700, "CUDA_ERROR_ILLEGAL_ADDRESS"), (4242, "4242")])
def test_a_failing_call_is_an_engine_error_that_names_it(board, call, act, code, name):
    executor = board.engine
    state = executor.new_state()
    rows = rows_of(executor, 0, 3)
    acts = {
        "prefill": lambda: executor.prefill(state, rows),
        "decode": lambda: executor.decode(state, 1),
        "snapshot": lambda: executor.snapshot(state),
        "new_state": executor.new_state,
    }
    board.driver.failing[call] = code
    try:
        with pytest.raises(EngineError, match=f"{call}.*{name}") as caught:
            acts[act]()
    finally:
        board.driver.failing.clear()
        board.cuda.synchronize(executor._stream)
    assert caught.value.exit_code == 1
    assert executor.n_tokens(state) == 0


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (100, r"^GPU: the driver sees none \(CUDA_ERROR_NO_DEVICE \(100\)\).*--engine cpu"),
        (801, r"^CUDA driver: cuInit gave CUDA_ERROR_NOT_SUPPORTED.*/dev/dri/renderD"),
        (1, r"^CUDA driver: cuInit gave CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_the_probe_says_why_there_is_no_gpu(code, says):
    driver = FakeDriver()
    driver.failing["cuInit"] = code
    with pytest.raises(DeviceError, match=says):
        Cuda(driver)
    assert driver.leaks() == {}


def test_the_probe_says_that_there_is_no_driver():
    driver = FakeDriver()
    driver.no_library = True
    with pytest.raises(DeviceError, match=r"^CUDA driver: libcuda.so.1 is not on .*--engine cpu"):
        Cuda(driver)
    with pytest.raises(Misuse, match="without a driver"):
        FakeTensorRT(driver).Runtime(object())


def test_states_and_snapshots_are_few_and_come_back(machine):
    executor = machine("single").engine
    states = [executor.new_state() for _ in range(5)]
    with pytest.raises(CapacityError, match="all 5 are in use"):
        executor.new_state()
    snapshots = [executor.snapshot(states[0]) for _ in range(2)]
    with pytest.raises(CapacityError, match="all are in use"):
        executor.snapshot(states[0])
    with pytest.raises(EngineError, match="of another state"):
        executor.restore(states[1], snapshots[0])
    del snapshots, states
    executor.snapshot(executor.new_state())


def test_a_state_in_a_cycle_comes_back_when_it_is_needed(machine):
    executor = machine("single").engine
    for _ in range(6):
        cycle = [executor.new_state(), executor.snapshot(executor.new_state())]
        cycle.append(cycle)
        del cycle


def test_a_full_context_is_refused_and_stays_as_it_is(board):
    executor = board.engine
    assert executor.spec.decoder.max_tokens == 640
    state = executor.new_state()
    executor.prefill(state, rows_of(executor, 0, 640))
    with pytest.raises(CapacityError, match="would reach 641 of 640 tokens"):
        executor.decode(state, 1)
    assert executor.n_tokens(state) == 640


def test_media_that_no_profile_admits_is_refused_alone(board):
    executor, width = board.engine, 3 * board.engine.spec.vision.patch_size**2
    with pytest.raises(MediaError, match=r"is a size that vision\.plan was not compiled for"):
        executor.encode_image(np.zeros((4000, width), np.float32), (2, 2000))
    assert len(executor.encode_image(np.zeros((24, width), np.float32), (4, 6))) == 6


def test_any_thread_may_use_it(board):
    """The service makes the engine in one thread and runs it in another."""
    executor, found = board.engine, []

    def work():
        state = executor.new_state()
        found.append(executor.decode(state, 1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], executor.decode(executor.new_state(), 1))


def changed_plan(folder, change):
    path = folder / "decoder.plan"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))


def lack(name):
    return lambda plan: plan["bindings"].pop(name)


def become(name, kind, shape):
    return lambda plan: plan["bindings"].update({name: [True, kind, shape]})


def fewer_rows(plan):
    for profile in plan["profiles"]:
        hidden = profile["embeddings"][0][1]
        profile["embeddings"] = [[1, hidden], [1, hidden], [128, hidden]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lack("past_len"), "lacks past_len"),
        (become("past_len", "INT32", [2]), r"has past_len \(2,\), not past_len \(1,\)"),
        (become("past_len", "INT64", [1]), "has past_len of INT64"),
        (become("nothing", "FLOAT", [4]), "lacks nothing, which its plan takes"),
        (become("norm", "FLOAT", [3]), r"holds norm as float32 .* its plan takes FLOAT \(3,\)"),
        (become("norm", "INT32", [64]), "its plan takes INT32"),
        (fewer_rows, "is for .*128.* rows a call, not 1 and 256"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(compiled, tmp_path, change, says):
    folder = tmp_path / "bundle"
    shutil.copytree(compiled("base"), folder)
    changed_plan(folder, change)
    driver = FakeDriver()
    with pytest.raises(BundleError, match=says):
        load(redescribed(folder), driver)
    assert driver.leaks() == {}


def test_a_file_that_is_no_plan_is_refused(compiled, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(compiled("base"), folder)
    (folder / "decoder.plan").write_bytes(b"nonsense")
    driver = FakeDriver()
    with pytest.raises(BundleError, match=r"decoder\.plan: is refused by this TensorRT; compile"):
        load(redescribed(folder), driver)
    assert driver.leaks() == {}
