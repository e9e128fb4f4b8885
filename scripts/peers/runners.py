"""The engines of the comparison behind one small protocol. Each is imported only where it runs."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from shape import bytes_of_a_token

Tokens = NDArray[np.int32]
Float32 = NDArray[np.float32]
MAX_TOKENS = 1024
"""Context of an engine that wants to know it beforehand."""


class Runner(Protocol):
    """One sequence of one loaded model."""

    version: str
    bytes_a_token: int
    """Of weights that decoding one token reads: of the experts its share, of the table one row."""

    def begin(self) -> None:
        """Forget the sequence."""

    def advance(self, tokens: Tokens) -> None:
        """Advance over `tokens` [n] at once, and compute the logits of the last."""

    def logits(self) -> Float32:
        """[vocabulary], after the last token."""


class OmniEdge:
    """The cpu engine on a bundle."""

    def __init__(self, path: Path, n_threads: int) -> None:
        import edge
        from edge import _kernels, bench
        from edge.engines.bundle import Bundle
        from edge.engines.cpu import CpuEngine

        bundle = Bundle(path)
        self._engine = CpuEngine(bundle, n_threads)
        self.version = f"{edge.__version__}, {_kernels.instruction_set()}"
        spec = self._engine.spec.decoder
        self.bytes_a_token = bench.bytes_of_a_token(bundle.decoder_weights(), spec)
        self.begin()

    def begin(self) -> None:
        self._state = self._engine.new_state()

    def advance(self, tokens: Tokens) -> None:
        self._logits = self._engine.prefill(self._state, self._engine.embed(tokens))

    def logits(self) -> Float32:
        return self._logits


class Transformers:
    """`NemotronHForCausalLM` in float32."""

    def __init__(self, path: Path, n_threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(n_threads)
        transformers.logging.set_verbosity_error()
        model = transformers.NemotronHForCausalLM.from_pretrained(path, dtype=torch.float32)
        for layer in model.model.layers:
            if hasattr(layer.mixer, "time_step_limit"):
                # 5.23.0 clamps dt at time_step_min in prefill; the published model does not
                layer.mixer.time_step_limit = (0.0, float("inf"))
        self._torch, self._model = torch, model.eval()
        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        self.bytes_a_token = bytes_of_a_token({n: p.nbytes for n, p in model.named_parameters()})
        self.begin()

    def begin(self) -> None:
        self._cache: Any = None

    def advance(self, tokens: Tokens) -> None:
        ids = self._torch.from_numpy(tokens.astype(np.int64))[None]
        with self._torch.inference_mode():
            out = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache, self._logits = out.past_key_values, out.logits

    def logits(self) -> Float32:
        values: Float32 = self._logits[0, -1].float().numpy()
        return values


class LlamaCpp:
    """llama.cpp on a GGUF file, through the binding of llama-cpp-python and with its defaults."""

    def __init__(self, path: Path, n_threads: int, llama: Path) -> None:
        self._api = api = llama_library(llama)
        api.llama_backend_init()
        of_model = api.llama_model_default_params()
        of_model.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(os.fsencode(path), of_model)
        of_context = api.llama_context_default_params()
        of_context.n_ctx = of_context.n_batch = MAX_TOKENS
        of_context.n_threads = of_context.n_threads_batch = n_threads
        self._context = self._model and api.llama_init_from_model(self._model, of_context)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        system = api.llama_print_system_info().decode().replace(" = 1 |", "").strip()
        self.version = f"llama-cpp-python {sys.modules['llama_cpp'].__version__}, {system}"
        sys.path.insert(0, str(llama / "vendor/llama.cpp/gguf-py"))
        import gguf

        sizes = {str(t.name): int(t.n_bytes) for t in gguf.GGUFReader(path).tensors}
        self.bytes_a_token = bytes_of_a_token(sizes)

    def begin(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def advance(self, tokens: Tokens) -> None:
        ids = (ctypes.c_int32 * len(tokens))(*tokens.tolist())
        batch = self._api.llama_batch_get_one(ids, len(tokens))
        if self._api.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp: llama_decode failed")
        self._api.llama_synchronize(self._context)

    def logits(self) -> Float32:
        n = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        found = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (n,)).copy()


def llama_library(llama: Path) -> Any:
    """The C interface of the llama.cpp that was built in `llama`/build."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(llama / "build/bin")
    sys.path.insert(0, str(llama))
    api = importlib.import_module("llama_cpp.llama_cpp")
    api.llama_log_set(_say_nothing, None)
    return api


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _say_nothing(level: int, text: bytes, data: int) -> None:
    """llama.cpp's log; kept here, since the library keeps no reference."""
