"""PTX with the arguments of the launch table, and no others.

Triton gives each kernel two addresses more than are declared, of scratch memory that these kernels
do not use. TensorRT passes nothing for them: a launch would read past the end of its arguments.
"""

from __future__ import annotations

import re

N_SCRATCH = 2
"""Addresses after the declared arguments: Triton's global and profile scratch."""


def without_scratch(ptx: str, n_arguments: int) -> str:
    """PTX of one kernel without Triton's two parameters behind the declared ones.

    Raises:
        RuntimeError: it has another number of parameters, or reads what would be taken out.
    """
    head, _, body = ptx.partition("\n)\n")
    entry, _, listed = head.partition(".entry")
    name, _, listed = listed.partition("(\n")
    parameters = listed.split(",\n")
    if len(parameters) != n_arguments + N_SCRATCH:
        raise RuntimeError(f"{len(parameters)} parameters in PTX, not {n_arguments + N_SCRATCH}")
    kept, scratch = parameters[:n_arguments], parameters[n_arguments:]
    for parameter in scratch:
        if re.search(rf"\b{parameter.split()[-1]}\b", body):
            raise RuntimeError(f"a kernel reads its scratch memory: {parameter.strip()}")
    return f"{entry}.entry{name}(\n" + ",\n".join(kept) + f"\n)\n{body}"
