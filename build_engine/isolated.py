"""A build in a process of its own: some warnings come once a process, and memory is given back."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import traceback
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from build_engine.compile import Built, LoadPlugins, Order, Progress, compile_graph
from edge.errors import BundleError, ConfigurationError, EdgeError
from gpu_kernels.plugins import register_plugins


@dataclass(frozen=True, slots=True)
class _Failed:
    """An error on its way between processes, as one of ours."""

    kind: type[EdgeError]
    thing: str
    problem: str
    remedy: str
    trace: str


class ElsewhereError(Exception):
    """Where, in the other process, an error came from: the text of its traceback."""


def require(module: str, remedy: str) -> None:
    """See that a module can be imported.

    Raises:
        ConfigurationError: it is not installed.
    """
    top = module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise ConfigurationError(module, "is not installed", remedy)


def compile_isolated(
    module: str, order: Order, progress: Progress, kernels: Path | None = None
) -> Built:
    """`compile_graph` in a new process.

    Args:
        module: name of TensorRT's, `tensorrt` or `tensorrt_rtx`.
        kernels: folder of compiled GPU kernels, which become plugins.
    Raises:
        EdgeError: as `compile_graph`, or the process ended without a word; its cause is the
            traceback of the other process.
    """
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_build, args=(send, module, order, kernels))
    process.start()
    send.close()
    result: object = None
    try:
        while not isinstance(result, Built | _Failed):
            result = receive.recv()
            if isinstance(result, tuple):
                progress(*result)
    except EOFError:
        pass  # the process has ended; its exit code tells how
    finally:
        if not isinstance(result, Built | _Failed):
            process.terminate()
        process.join()
    if isinstance(result, Built):
        return result
    if isinstance(result, _Failed):
        error = result.kind(result.thing, result.problem, result.remedy)
        raise error from ElsewhereError(result.trace)
    raise BundleError(
        order.onnx.name,
        f"ended the process that compiled it (exit code {process.exitcode})",
        "see if memory ran out (dmesg), and TensorRT's message above",
    )


def _build(send: Connection, module: str, order: Order, kernels: Path | None) -> None:
    try:
        trt = importlib.import_module(module)
        load: LoadPlugins | None = None
        if kernels:
            plugin = importlib.import_module(f"{module}.plugin")
            load = partial(register_plugins, trtp=plugin, folder=kernels)
        result: object = compile_graph(
            trt, order, lambda done, total: send.send((done, total)), load
        )
    except EdgeError as error:
        kind, trace = type(error), traceback.format_exc()
        result = _Failed(kind, error.thing, error.problem, error.remedy, trace)
    except Exception as error:  # noqa: BLE001  # NVIDIA's Python raises what it likes
        problem = " ".join(f"fails with {type(error).__name__}: {error}".split())
        remedy, trace = "see where with --verbose, and report it", traceback.format_exc()
        result = _Failed(BundleError, order.onnx.name, problem, remedy, trace)
    send.send(result)
