"""Every call of edge.engines.cuda through cuda-python, into whatever libcuda.so.1 is found."""

from __future__ import annotations

import numpy as np
from cuda.bindings import driver

from edge.engines.cuda import Cuda, host_array
from edge.errors import EdgeError

BYTE = np.dtype(np.uint8)


def main() -> None:
    cuda = Cuda(driver)
    print(cuda.device(), cuda.memory_bytes())
    stream = cuda.stream()
    source, target = cuda.allocate(1024, "source"), cuda.allocate(4096, "target")
    sent, received = cuda.allocate_host(1024), cuda.allocate_host(4096)
    values, found = host_array(sent, BYTE, 1024), host_array(received, BYTE, 4096)
    values[:] = np.arange(1024) % 251
    cuda.upload(source, sent, 1024, stream)
    cuda.zero(target, 4096, stream)
    cuda.copy_pieces((target + 10, 100), (source + 3, 50), 20, 4, stream)
    cuda.copy(target + 3000, source, 200, stream)
    cuda.download(received, target, 4096, stream)
    cuda.synchronize(stream)
    expected = np.zeros(4096, np.uint8)
    for i in range(4):
        expected[10 + 100 * i :][:20] = values[3 + 50 * i :][:20]
    expected[3000:3200] = values[:200]
    print("copies are right:", bool((found == expected).all()))
    cuda.begin_capture(stream)
    cuda.zero(target, 4096, stream)
    graph = cuda.end_capture(stream)
    cuda.download(received, target, 4096, stream)
    cuda.synchronize(stream)
    print("a capture does nothing:", bool(found.any()))
    cuda.launch(graph, stream)
    cuda.download(received, target, 4096, stream)
    cuda.synchronize(stream)
    print("a launch does it:", not found.any())
    for call, argument in ((cuda.synchronize, 99), (cuda.free_graph, 1)):
        try:
            call(argument)
        except EdgeError as error:
            print(error)
    try:
        cuda.allocate(10**10, "weights")
    except EdgeError as error:
        print(error)
    cuda.free_graph(graph)
    cuda.free_stream(stream)
    for address in (source, target):
        cuda.free(address)
    for address in (sent, received):
        cuda.free_host(address)
    cuda.close()
    print("done")


if __name__ == "__main__":
    try:
        main()
    except EdgeError as error:
        print(type(error).__name__, error)
