"""An encoder's plan on the GPU: inputs up, embeddings down."""

from __future__ import annotations

import math

import numpy as np

from edge.engines.cuda import Cuda
from edge.engines.encoder_inputs import Inputs
from edge.engines.plan import COMPILE, Plan
from edge.engines.plan_memory import Memory, aligned
from edge.errors import BundleError, EngineError
from edge.types import Float32

OUTPUT = "embeddings"


class PlanEncoder:
    """Runs one encoder at any size up to the largest that it was compiled for."""

    def __init__(self, plan: Plan, cuda: Cuda, memory: Memory, scratch: int, stream: int) -> None:
        """Take memory for the largest inputs and their embeddings.

        Raises:
            BundleError: the plan has no output `embeddings`.
        """
        self._plan, self._cuda, self._stream = plan, cuda, stream
        self._context = plan.context(0, scratch, stream)
        inputs = [binding for binding in plan.bindings.values() if binding.is_input]
        self._largest = {binding.name: plan.max_shape(binding.name, 0) for binding in inputs}
        if sorted(plan.bindings) != sorted([*self._largest, OUTPUT]):
            names = ", ".join(plan.bindings)
            raise BundleError(plan.path, f"gives no embeddings alone but {names}", COMPILE)
        self.max_batch = self._largest[inputs[0].name][0]
        self._context.shape(self._largest)
        n_bytes = plan.bindings[OUTPUT].n_bytes(self._context.output_shape(OUTPUT))
        sizes = {b.name: b.n_bytes(self._largest[b.name]) for b in inputs} | {OUTPUT: n_bytes}
        what = f"{plan.path.stem} encoder"
        self._device = {name: memory.on_device(size, what) for name, size in sizes.items()}
        self._host = {name: memory.on_host(aligned(size)) for name, size in sizes.items()}
        self._views = {
            name: memory.host_array(
                self._host[name],
                plan.bindings[name].dtype,
                (size // plan.bindings[name].dtype.itemsize,),
            )
            for name, size in sizes.items()
        }
        self._context.bind(self._device)

    def run(self, inputs: Inputs) -> Float32:
        """Embeddings of the inputs, by their names.

        Raises:
            EngineError: one is larger than the plan was compiled for.
        """
        self._cuda.use()
        for name, values in inputs.items():
            largest = self._largest[name]
            if any(n > most for n, most in zip(values.shape, largest, strict=True)):
                problem = f"has shape {values.shape}, the plan takes at most {largest}"
                raise EngineError(f"{self._plan.path.name}: {name}", problem, COMPILE)
            view = self._views[name]
            view[: values.size] = values.reshape(-1)
            n_bytes = values.size * view.dtype.itemsize
            self._cuda.upload(self._device[name], self._host[name], n_bytes, self._stream)
        self._context.shape({name: values.shape for name, values in inputs.items()})
        shape, view = self._context.output_shape(OUTPUT), self._views[OUTPUT]
        n = math.prod(shape)
        self._context.enqueue(self._stream)
        n_bytes = n * view.dtype.itemsize
        self._cuda.download(self._host[OUTPUT], self._device[OUTPUT], n_bytes, self._stream)
        self._cuda.synchronize(self._stream)
        embeddings: Float32 = view[:n].reshape(shape).astype(np.float32)
        return embeddings
