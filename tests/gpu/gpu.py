"""Compiled kernels on a GPU, called as `gpu_interpreter.launch` calls those of the interpreter."""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engines.cuda import Cuda, host_array
from gpu_kernels.launch import KERNELS

Arguments = Mapping[str, NDArray[Any] | int]
N_TIMED, N_REPEATS = 10, 3
"""Calls in a CUDA graph, and its launches, of which the shortest counts."""
FLUSH_BYTES = 256 << 20
"""Overwritten before each call that is timed, so that no weight is in the GPU's cache."""
BYTE = np.dtype(np.uint8)


class Gpu:
    """A GPU with all kernels of a folder."""

    def __init__(self, cuda: Cuda, folder: Path, flush_bytes: int = FLUSH_BYTES) -> None:
        self.cuda, self.stream = cuda, cuda.stream()
        self.seconds: dict[str, float] = {}
        """Shortest time of a call, by kernel, while `is_timed`."""
        self.is_timed = False
        self._flush_bytes = flush_bytes
        self._flushed = cuda.allocate(flush_bytes, "what flushes the cache")
        self._kernels: dict[str, tuple[Any, int, int, int]] = {}
        for name, made in json.loads((folder / "kernels.json").read_text()).items():
            ptx = (folder / f"{name}.ptx").read_text()
            module = cuda._call("cuModuleLoadData", ptx.encode() + b"\0")
            function = cuda._call("cuModuleGetFunction", module, made["entry"].encode())
            n_parameters = len(re.findall(r"^\s*\.param ", ptx.partition(")")[0], re.MULTILINE))
            self._kernels[name] = (function, made["threads"], made["shared_bytes"], n_parameters)

    def close(self) -> None:
        """Give all of it back."""
        self.cuda.free(self._flushed)
        self.cuda.free_stream(self.stream)
        self.cuda.close()

    def launch(self, _: object, name: str, arguments: Arguments, **sizes: int) -> None:
        """Run a kernel as the launch table says; outputs are written."""
        kernel = KERNELS[name]
        assert set(arguments) == set(kernel.arguments)
        outputs = [a for a, kind in kernel.arguments.items() if kind[0] == "*"][-kernel.n_outputs :]
        with contextlib.ExitStack() as stack:
            given = {
                argument: value if isinstance(value, int) else stack.enter_context(self.at(value))
                for argument, value in arguments.items()
            }
            self.enqueue(name, given, **sizes)
            for argument in outputs:
                self.download(arguments[argument], given[argument])
            if self.is_timed:
                took_s = self.time(lambda: self.enqueue(name, given, **sizes))
                self.seconds[name] = min(took_s, self.seconds.get(name, np.inf))

    def enqueue(self, name: str, given: Mapping[str, int], **sizes: int) -> None:
        """Put a kernel into the stream: addresses and sizes by the launch table's names."""
        kernel, (function, threads, shared, n_parameters) = KERNELS[name], self._kernels[name]
        values = [given[argument] for argument in kernel.arguments]
        kinds: list[Any] = [
            ctypes.c_void_p if kind[0] == "*" else ctypes.c_int
            for kind in kernel.arguments.values()
        ]
        n_scratch = n_parameters - len(values)  # Triton's own, which no kernel uses
        parameters = ((*values, *[0] * n_scratch), (*kinds, *[ctypes.c_void_p] * n_scratch))
        grid = kernel.grid({**given, **sizes})
        block = (threads, 1, 1)
        where = (shared, self.stream, parameters, 0)
        self.cuda._call("cuLaunchKernel", function, *grid, *block, *where)

    @contextlib.contextmanager
    def at(self, values: NDArray[Any]) -> Iterator[int]:
        """Address of these values on the GPU, within a copy of what they are a part of."""
        whole = values
        if not values.flags.c_contiguous:
            assert isinstance(values.base, np.ndarray)
            whole = values.base
        address = self.cuda.allocate(whole.nbytes, "an argument")
        self.upload(address, whole)
        yield address + values.ctypes.data - whole.ctypes.data
        self.cuda.free(address)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy to the GPU, and wait."""
        host = self.cuda.allocate_host(values.nbytes)
        host_array(host, BYTE, values.nbytes)[:] = values.reshape(-1).view(np.uint8)
        self.cuda.upload(address, host, values.nbytes, self.stream)
        self.cuda.synchronize(self.stream)
        self.cuda.free_host(host)

    def download(self, values: Any, address: int) -> None:
        """Copy from the GPU into `values`, which may be a part of something, and wait."""
        n_bytes = values.itemsize + sum(
            (n - 1) * step for n, step in zip(values.shape, values.strides, strict=True)
        )
        host = self.cuda.allocate_host(n_bytes)
        self.cuda.download(host, address, n_bytes, self.stream)
        self.cuda.synchronize(self.stream)
        found = host_array(host, BYTE, n_bytes).copy()
        self.cuda.free_host(host)
        values[...] = np.lib.stride_tricks.as_strided(
            found[: values.itemsize].view(values.dtype), values.shape, values.strides
        )

    def captured(self, enqueue: Callable[[], None]) -> int:
        """A CUDA graph of what `enqueue` puts into the stream."""
        self.cuda.begin_capture(self.stream)
        enqueue()
        return self.cuda.end_capture(self.stream)

    def time(self, enqueue: Callable[[], None]) -> float:
        """Seconds of one call whose data are in no cache: of calls in a CUDA graph."""

        def flush() -> None:
            self.cuda.zero(self._flushed, self._flush_bytes, self.stream)

        def both() -> None:
            flush()
            enqueue()

        return self._replayed(both) - self._replayed(flush)

    def copied_bytes_s(self) -> float:
        """What memory gives at most, in bytes read and written a second: those of a copy."""
        half = self._flush_bytes // 2

        def copy() -> None:
            self.cuda.copy(self._flushed + half, self._flushed, half, self.stream)

        self.cuda.zero(self._flushed, self._flush_bytes, self.stream)
        return 2 * half / self._replayed(copy)

    def _replayed(self, enqueue: Callable[[], None]) -> float:
        graph = self.captured(lambda: [enqueue() for _ in range(N_TIMED)] and None)
        spent: list[float] = []
        for _ in range(N_REPEATS):
            began_s = time.perf_counter()
            self.cuda.launch(graph, self.stream)
            self.cuda.synchronize(self.stream)
            spent.append(time.perf_counter() - began_s)
        self.cuda.free_graph(graph)
        return min(spent) / N_TIMED
