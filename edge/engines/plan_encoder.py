"""An encoder's plan on the GPU: inputs up, embeddings down."""

from __future__ import annotations

import math

import numpy as np

from edge.engines.cuda import Cuda
from edge.engines.encoder_inputs import Inputs
from edge.engines.plan import COMPILE, Context, Plan
from edge.engines.plan_memory import Memory
from edge.errors import BundleError, MediaError
from edge.types import Float32

OUTPUT = "embeddings"


class PlanEncoder:
    """Runs one encoder at every size that one of the plan's profiles admits."""

    def __init__(self, plan: Plan, cuda: Cuda, memory: Memory, scratch: int, stream: int) -> None:
        """Take memory for the largest inputs and their embeddings.

        Raises:
            BundleError: the plan gives something else than `embeddings`.
        """
        self._plan, self._cuda, self._stream = plan, cuda, stream
        outputs = [binding.name for binding in plan.bindings.values() if not binding.is_input]
        if outputs != [OUTPUT]:
            raise BundleError(plan.path, f"gives {', '.join(outputs)}, not {OUTPUT}", COMPILE)
        self._profiles = [plan.context(i, scratch, stream) for i in range(plan.n_profiles)]
        n_bytes = dict.fromkeys(plan.bindings, 0)
        for i, context in enumerate(self._profiles):
            largest = {name: plan.shapes(name, i)[1] for name in plan.bindings if name != OUTPUT}
            context.shape(largest)
            for name, shape in [*largest.items(), (OUTPUT, context.output_shape(OUTPUT))]:
                n_bytes[name] = max(n_bytes[name], plan.bindings[name].n_bytes(shape))
        what = f"{plan.path.stem} encoder"
        self._device = {name: memory.on_device(n, what) for name, n in n_bytes.items()}
        self._host = {name: memory.on_host(n) for name, n in n_bytes.items()}
        self._views = {
            name: memory.host_array(self._host[name], dtype, (n_bytes[name] // dtype.itemsize,))
            for name, dtype in ((b.name, b.dtype) for b in plan.bindings.values())
        }
        for context in self._profiles:
            context.bind(self._device)

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
            MediaError: no profile of the plan admits their shapes.
        """
        self._cuda.use()
        context = self._admitting(inputs)
        for name, values in inputs.items():
            view = self._views[name]
            view[: values.size] = values.reshape(-1)
            n_bytes = values.size * view.dtype.itemsize
            self._cuda.upload(self._device[name], self._host[name], n_bytes, self._stream)
        context.shape({name: values.shape for name, values in inputs.items()})
        context.enqueue(self._stream)
        shape, view = context.output_shape(OUTPUT), self._views[OUTPUT]
        n = math.prod(shape)
        n_bytes = n * view.dtype.itemsize
        self._cuda.download(self._host[OUTPUT], self._device[OUTPUT], n_bytes, self._stream)
        self._cuda.synchronize(self._stream)
        embeddings: Float32 = view[:n].reshape(shape).astype(np.float32)
        return embeddings

    def _admitting(self, inputs: Inputs) -> Context:
        for i, context in enumerate(self._profiles):
            if all(_within(v.shape, *self._plan.shapes(name, i)) for name, v in inputs.items()):
                return context
        shapes = ", ".join(f"{name} {values.shape}" for name, values in inputs.items())
        raise MediaError(
            shapes, f"is a size that {self._plan.path.name} was not compiled for", "send another"
        )


def _within(shape: tuple[int, ...], smallest: tuple[int, ...], largest: tuple[int, ...]) -> bool:
    three = zip(shape, smallest, largest, strict=True)
    return all(least <= n <= most for n, least, most in three)
