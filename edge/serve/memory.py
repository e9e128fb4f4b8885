"""Memory in use, as the allocators count it: it grows with a leak, and not with what they keep."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class _Mallinfo2(ctypes.Structure):
    """glibc's, mallinfo(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


class AllocatedMemory(Collector):
    """What malloc and Python have given out, at each scrape."""

    def __init__(self) -> None:
        self._mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
        """None before glibc 2.33, and elsewhere."""
        if self._mallinfo is not None:
            self._mallinfo.restype = _Mallinfo2

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        blocks = "Objects and buffers that Python has allocated."
        yield GaugeMetricFamily("edge_python_blocks", blocks, value=sys.getallocatedblocks())
        if self._mallinfo is not None:
            info = self._mallinfo()
            used = "Memory that malloc has given out and not got back, of all threads."
            value = info.uordblks + info.hblkhd
            yield GaugeMetricFamily("edge_malloc_used_bytes", used, value=value)
