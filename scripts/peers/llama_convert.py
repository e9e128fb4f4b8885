"""A text-only checkpoint to GGUF with llama.cpp's own converter, but for the vocabulary.

    python scripts/peers/llama_convert.py LLAMA CHECKPOINT OUT.gguf

The converter knows the published tokenizer by a hash and refuses others; a random model has no use
for one, so the file says how many tokens there are and nothing else of them. Quantized tensors keep
their format (NVFP4), all others become BF16 as far as the converter wishes.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    llama, checkpoint, out = map(Path, sys.argv[1:])
    source = llama / "vendor/llama.cpp"
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import torch
    from conversion import nemotron
    from conversion.base import gguf

    nemotron.NemotronHModel.set_vocab = nemotron.NemotronHModel._set_vocab_none
    with torch.inference_mode():
        model = nemotron.NemotronHModel(checkpoint, gguf.LlamaFileType.MOSTLY_BF16, out)
        model.write()


if __name__ == "__main__":
    main()
