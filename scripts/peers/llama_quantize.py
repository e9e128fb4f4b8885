"""What `llama-quantize IN OUT Q4_0` does, through the library that the tool itself calls.

python scripts/peers/llama_quantize.py LLAMA IN.gguf OUT.gguf [--leave-output-tensor]
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def main() -> None:
    llama, source, out = map(Path, sys.argv[1:4])
    from runners import llama_library

    api = llama_library(llama)
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype = api.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.quantize_output_tensor = "--leave-output-tensor" not in sys.argv
    api.llama_backend_init()
    source_name, out_name = os.fsencode(source), os.fsencode(out)
    if api.llama_model_quantize(source_name, out_name, ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp cannot quantize {source}")


if __name__ == "__main__":
    main()
