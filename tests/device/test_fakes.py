"""The fake GPU is as strict as it says: what a GPU would silently compute, it refuses."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from fake_cuda import CUstreamCaptureMode, FakeDriver, Misuse

from edge.engines.cuda import Cuda, host_array


@pytest.fixture
def driver():
    return FakeDriver()


@pytest.fixture
def cuda(driver):
    return Cuda(driver)


@pytest.fixture
def stream(cuda):
    return cuda.stream()


def test_memory_is_read_after_it_was_written(cuda, stream):
    memory, host = cuda.allocate(512, "test"), cuda.allocate_host(512)
    cuda.zero(memory, 256, stream)
    cuda.download(host, memory, 257, stream)
    with pytest.raises(Misuse, match="read before they are written"):
        cuda.synchronize(stream)


def test_memory_is_alive_and_long_enough(cuda, stream):
    memory = cuda.allocate(512, "test")
    cuda.zero(memory, 513, stream)
    with pytest.raises(Misuse, match="pass the end"):
        cuda.synchronize(stream)
    cuda.free(memory)
    cuda.zero(memory, 1, stream)
    with pytest.raises(Misuse, match="was freed"):
        cuda.synchronize(stream)
    cuda.zero(7, 1, stream)
    with pytest.raises(Misuse, match="no address on the GPU"):
        cuda.synchronize(stream)


def test_work_is_done_when_someone_waits(cuda, stream):
    memory, host = cuda.allocate(16, "test"), cuda.allocate_host(16)
    values = host_array(host, np.dtype(np.float32), 4)
    values[:] = 1
    cuda.upload(memory, host, 16, stream)
    values[:] = 2  # too early: the upload takes these
    cuda.download(host, memory, 16, stream)
    assert np.isnan(values).all()  # nor has this arrived
    cuda.synchronize(stream)
    assert np.isnan(values).all()  # the upload took what the download left
    values[:] = 3
    cuda.upload(memory, host, 16, stream)
    cuda.synchronize(stream)
    cuda.download(host, memory, 16, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(values, np.full(4, 3, np.float32))


def test_only_pinned_memory_is_copied(cuda, stream):
    buffer = (ctypes.c_uint8 * 16)()
    with pytest.raises(Misuse, match="not pinned"):
        cuda.upload(cuda.allocate(16, "test"), ctypes.addressof(buffer), 16, stream)


def test_a_capture_remembers_and_forbids(cuda, driver, stream):
    memory = cuda.allocate(256, "test")
    cuda.begin_capture(stream)
    cuda.zero(memory, 256, stream)
    with pytest.raises(Misuse, match="while a stream is captured"):
        cuda.synchronize(stream)
    with pytest.raises(Misuse, match="while a stream is captured"):
        cuda.allocate(256, "test")
    with pytest.raises(Misuse, match="within a capture"):
        driver.cuStreamBeginCapture(stream, CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    graph = cuda.end_capture(stream)
    cuda.synchronize(stream)
    with pytest.raises(Misuse, match="before they are written"):
        driver.read(memory, 256)
    cuda.launch(graph, stream)
    cuda.synchronize(stream)
    assert not driver.read(memory, 256).any()


def test_a_thread_needs_a_context(driver):
    assert driver.cuMemAlloc(1)[0].name == "CUDA_ERROR_INVALID_CONTEXT"


def test_a_captured_context_is_left_alone(machine):
    board = machine("single")
    context = board.engine._captured[0]._context
    with pytest.raises(Misuse, match="is used again"):
        context.execute_async_v3(board.engine._stream)
    address = context.addresses["logits"]
    context.set_tensor_address("logits", address)  # the same one, and still a change
    state = board.engine.new_state()
    graph = board.engine._graphs[0, 0, 64]
    board.cuda.launch(graph, board.engine._stream)
    with pytest.raises(Misuse, match="was changed"):
        board.cuda.synchronize(board.engine._stream)
    context.version -= 1
    assert board.engine.n_tokens(state) == 0


def test_what_is_written_overlaps_nothing(machine):
    board = machine("single")
    engine = board.engine
    state = engine.new_state()
    name = engine._recurrent[0].name
    engine._prefill.shape(engine._shapes(2, 64))
    engine._prefill.bind(engine._state_addresses(state.place, 0))
    engine._prefill.bind({f"new_{name}": state.place.halves[0]})
    engine._rows_in[:2] = 0
    engine._enqueue(engine._prefill, 2)
    with pytest.raises(Misuse, match="overlap"):
        board.cuda.synchronize(engine._stream)
