"""An encoder's plan on the GPU: inputs up, embeddings down."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engines.cuda import Cuda
from edge.engines.encoder_inputs import Inputs
from edge.engines.plan import COMPILE, Binding, Context, Plan
from edge.engines.plan_memory import Memory
from edge.errors import BundleError, DeviceError, MediaError
from edge.types import Float32

OUTPUT = "embeddings"


class Room:
    """Memory for the largest inputs and outputs of one profile, on the GPU and pinned."""

    def __init__(self, memory: Memory, what: str) -> None:
        self._memory, self._what = memory, what
        self.device: dict[str, int] = {}
        self.host: dict[str, int] = {}
        self.views: dict[str, NDArray[Any]] = {}

    def take(self, binding: Binding, shape: tuple[int, ...]) -> None:
        """For one binding in this shape."""
        name, n_bytes = binding.name, binding.n_bytes(shape)
        self.device[name] = self._memory.on_device(n_bytes, self._what)
        self.host[name] = self._memory.on_host(n_bytes)
        self.views[name] = self._memory.host_array(
            self.host[name], binding.dtype, (math.prod(shape),)
        )


class PlanEncoder:
    """Runs one encoder at every size that one of the plan's profiles admits.

    The memory of the first profile, which is the live path's, is kept; that of a larger one is
    taken for a call and given back.
    """

    def __init__(self, plan: Plan, cuda: Cuda, memory: Memory, scratch: int, stream: int) -> None:
        """Take memory for the first profile's largest inputs and their embeddings.

        Args:
            scratch: address of as much as that profile needs.
        Raises:
            BundleError: the plan gives something else than `embeddings`.
        """
        self._plan, self._cuda, self._stream = plan, cuda, stream
        outputs = [binding.name for binding in plan.bindings.values() if not binding.is_input]
        if outputs != [OUTPUT]:
            raise BundleError(plan.path, f"gives {', '.join(outputs)}, not {OUTPUT}", COMPILE)
        self._profiles = [plan.context(i, stream) for i in range(plan.n_profiles)]
        self._profiles[0].lend(scratch)
        self._room = self._take(0, memory)

    def _take(self, profile: int, memory: Memory) -> Room:
        context, plan = self._profiles[profile], self._plan
        shapes = {name: plan.shapes(name, profile)[1] for name in plan.bindings if name != OUTPUT}
        context.shape(shapes)
        room = Room(memory, f"{plan.path.stem} encoder")
        for name, shape in (shapes | {OUTPUT: context.output_shape(OUTPUT)}).items():
            room.take(plan.bindings[name], shape)
        context.bind(room.device)
        return room

    def max_batch(self, name: str, shape: tuple[int, ...]) -> int:
        """How many items of an input of this shape [n, ...] one call takes; at least 1."""
        admitted = (self._plan.shapes(name, i) for i in range(len(self._profiles)))
        return max(
            (
                largest[0]
                for smallest, largest in admitted
                if _within(shape[1:], smallest[1:], largest[1:])
            ),
            default=1,
        )

    def run(self, inputs: Inputs) -> Float32:
        """Embeddings of the inputs, by their names.

        Raises:
            MediaError: no profile of the plan admits their shapes, or there is no memory for them.
        """
        self._cuda.use()
        profile = self._admitting(inputs)
        if profile == 0:
            return self._run(self._profiles[0], self._room, inputs)
        with self._for_a_call(profile) as room:
            return self._run(self._profiles[profile], room, inputs)

    @contextlib.contextmanager
    def _for_a_call(self, profile: int) -> Iterator[Room]:
        with contextlib.ExitStack() as stack:
            memory = Memory(self._cuda, stack)
            try:
                scratch = memory.on_device(self._plan.scratch_bytes[profile], "scratch memory")
                room = self._take(profile, memory)
            except DeviceError as error:
                problem = f"has no memory at this size ({error.thing} {error.problem})"
                raise MediaError(self._plan.path.name, problem, "send a smaller one") from None
            self._profiles[profile].lend(scratch)
            yield room

    def _run(self, context: Context, room: Room, inputs: Inputs) -> Float32:
        for name, values in inputs.items():
            view = room.views[name]
            view[: values.size] = values.reshape(-1)
            n_bytes = values.size * view.dtype.itemsize
            self._cuda.upload(room.device[name], room.host[name], n_bytes, self._stream)
        context.shape({name: values.shape for name, values in inputs.items()})
        context.enqueue(self._stream)
        shape, view = context.output_shape(OUTPUT), room.views[OUTPUT]
        n = math.prod(shape)
        n_bytes = n * view.dtype.itemsize
        self._cuda.download(room.host[OUTPUT], room.device[OUTPUT], n_bytes, self._stream)
        self._cuda.synchronize(self._stream)
        embeddings: Float32 = view[:n].reshape(shape).astype(np.float32)
        return embeddings

    def _admitting(self, inputs: Inputs) -> int:
        for i in range(len(self._profiles)):
            if all(_within(v.shape, *self._plan.shapes(name, i)) for name, v in inputs.items()):
                return i
        shapes = ", ".join(f"{name} {values.shape}" for name, values in inputs.items())
        raise MediaError(
            shapes, f"is a size that {self._plan.path.name} was not compiled for", "send another"
        )


def _within(shape: tuple[int, ...], smallest: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    three = zip(shape, smallest, largest, strict=True)
    return all(least <= n <= most for n, least, most in three)
