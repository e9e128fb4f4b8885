"""GPU kernels run on the CPU, by Triton's interpreter, over numpy arrays."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_kernels.launch import ALIGNMENT_BYTES, KERNELS
from gpu_kernels.traffic import CACHED

MODULES = ("weights", "experts", "frames")


class _Storage:
    """What the interpreter asks of a tensor's memory: here it is on the CPU already."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def data_ptr(self) -> int:
        return self._values.ctypes.data

    def cpu(self) -> _Storage:
        return self

    def copy_(self, other: _Storage) -> None:
        """The memory is the same."""


class Tensor:
    """A numpy array as Triton's interpreter takes tensors, without torch."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        self.dtype = values.dtype.name

    def data_ptr(self) -> int:
        return self._values.ctypes.data

    def untyped_storage(self) -> _Storage:
        return _Storage(self._values)

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self._values.shape

    def stride(self) -> tuple[int, ...]:
        return self._values.strides

    def new_empty(self, size: int, device: str) -> Tensor:
        return Tensor(self._values)

    def set_(self, *storage: Any) -> None:
        """It is that storage already."""


def require_triton() -> None:
    """Skip with the reason without Triton, or fail in CI."""
    if importlib.util.find_spec("triton") is None:
        reason = "GPU kernels need triton: make .venv/.dev"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def interpreted() -> dict[str, ModuleType]:
    """The kernels' modules, by name, made for the interpreter.

    Triton decides that when it is imported, for the whole process: what compiles kernels does it in
    a process of its own.
    """
    assert "triton" not in sys.modules or "TRITON_INTERPRET" in os.environ, "triton was imported"
    os.environ["TRITON_INTERPRET"] = "1"
    return {name: importlib.import_module(f"gpu_kernels.{name}") for name in MODULES}


def launch(
    modules: Mapping[str, ModuleType],
    name: str,
    arguments: Mapping[str, NDArray[Any] | int],
    **sizes: int,
) -> None:
    """Run a kernel as the launch table says, over its whole grid.

    Args:
        modules: of `interpreted`.
        name: in the launch table.
        arguments: by the names of the table; outputs are written.
        sizes: what the grid asks for beside the arguments' own sizes.
    """
    kernel = KERNELS[name]
    assert set(arguments) == set(kernel.arguments), set(arguments) ^ set(kernel.arguments)
    for argument, value in arguments.items():
        kind = kernel.arguments[argument]
        assert kind.startswith("*") != isinstance(value, int), argument
        if not isinstance(value, int):
            expected = {"*u32": "uint32", "*u8": "uint8", "*i32": "int32"}.get(kind)
            assert value.dtype.name == (expected or kind.replace("*fp", "float")), argument
            if argument not in kernel.any_address:
                assert value.flags.c_contiguous, argument
                assert value.ctypes.data % ALIGNMENT_BYTES == 0, argument
        elif argument in kernel.multiples_of_16:
            assert value % 16 == 0, argument
    known = {k: v for k, v in arguments.items() if isinstance(v, int)} | sizes
    grid = kernel.grid(known)
    module, function = kernel.function
    given = {k: v if isinstance(v, int) else Tensor(v) for k, v in arguments.items()}
    getattr(modules[module], function)[grid](**given, **kernel.constants)


@contextmanager
def traced(arguments: Mapping[str, NDArray[Any] | int]) -> Iterator[Counter[str]]:
    """Count the bytes that the launches inside load and store, by argument.

    As `gpu_kernels.traffic` counts: every load and store of every program, less what is masked;
    lanes of one load that ask for the same address are one, and of an argument that is cached each
    byte counts once.

    Args:
        arguments: of the launches.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    arrays = {name: value for name, value in arguments.items() if not isinstance(value, int)}
    begins = {name: array.ctypes.data for name, array in arrays.items()}
    seen = {name: np.zeros(a.nbytes, bool) for name, a in arrays.items() if name in CACHED}
    moved: Counter[str] = Counter(dict.fromkeys(arrays, 0))

    def count(pointers: Any, mask: Any, *, store: bool) -> None:
        addresses = np.unique(pointers.data[mask.data])
        if not len(addresses):
            return
        low, high = int(addresses[0]), int(addresses[-1])
        (name,) = (n for n, at in begins.items() if at <= low < at + arrays[n].nbytes)
        assert high < begins[name] + arrays[name].nbytes, f"{name}: outside"
        size = pointers.get_element_ty().primitive_bitwidth // 8
        moved[name] += len(addresses) * size
        if name in seen and not store:
            seen[name][addresses - begins[name]] = True
            moved[name] = np.count_nonzero(seen[name]) * size

    load, save = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        count(pointers, mask, store=False)
        return load(builder, pointers, mask, *rest)

    def counted_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        count(pointers, mask, store=True)
        return save(builder, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_load = counted_load
    InterpreterBuilder.create_masked_store = counted_store
    try:
        yield moved
    finally:
        InterpreterBuilder.create_masked_load = load
        InterpreterBuilder.create_masked_store = save
