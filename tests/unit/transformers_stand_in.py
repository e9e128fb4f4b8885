"""In transformers' place where `build-engine check` compares: plain numpy, and wrong on demand."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from build_engine import check as checking
from build_engine.checkpoint_weights import CheckpointWeights
from build_engine.encoder_graphs import write_encoders
from edge.engines.encoders import Encoders
from edge.engines.reference_ops import ReferenceOps
from edge.engines.state import DecoderState
from edge.features.mel import log_mel
from edge.model.decoder import head, mixed
from edge.model.prompt import ChatTemplate
from edge.model.tokenizer import Tokenizer


class StandIn:
    """What check.py asks of `TransformersModel`, from the same checkpoint by other ways.

    `wrong` holds, by what is asked, a factor that its values are multiplied by (of each row, or of
    all), or an error that is raised. `chats` and `texts` are what was asked.
    """

    ERRORS = (RuntimeError,)

    def __init__(self, checkpoint, scratch: Path, wrong):
        self._checkpoint, self._scratch, self._wrong = checkpoint, scratch, wrong
        self._spec, self._weights = checkpoint.spec, CheckpointWeights(checkpoint)
        self.chats, self.texts = [], []

    def _made(self, what, values):
        factor = self._wrong.get(what, 1)
        if isinstance(factor, Exception):
            raise factor
        return values * np.asarray(factor, np.float32)

    def _ops(self):
        decoder = self._spec.decoder
        return ReferenceOps(decoder, self._weights, DecoderState.empty(decoder))

    def tokenizer(self):
        return self

    def __call__(self, text, *, add_special_tokens):
        assert not add_special_tokens
        self.texts.append(text)
        ids = Tokenizer(self._checkpoint.folder).encode(text).tolist()
        return types.SimpleNamespace(input_ids=ids[: self._wrong.get("text", len(ids))])

    def apply_chat_template(self, messages, *, tools, tokenize, add_generation_prompt, **others):
        assert not tokenize
        assert add_generation_prompt
        (thinking,) = (others[key] for key in others)
        self.chats.append((messages, tools, others))
        template = ChatTemplate(self._checkpoint.folder)
        said = template.render(messages, thinking=thinking, tools=tools or [])
        return said + self._wrong.get("chat", "")

    def mel(self, samples):
        return log_mel(samples, self._spec.audio.n_mels) + np.float32(self._wrong.get("mel", 0))

    def embeddings(self, ids):
        return self._made("embeddings", self._weights.rows("embeddings", ids))

    def head(self, rows):
        return self._made("head", head(self._ops(), rows))

    def mixed(self, layer, rows, chosen):
        ops = self._ops()
        added, each = mixed(ops, self._spec.decoder, layer, rows), None
        if self._spec.decoder.pattern[layer] == "E":
            weights = np.ones(chosen.shape, np.float32)
            each = ops.experts(rows[: len(chosen)], chosen, weights, layer)
            each = self._made(f"each of {layer}", each)
        return self._made(f"block {layer}", added), each

    def _encoders(self):
        if not any(self._scratch.iterdir()):
            write_encoders(self._checkpoint, self._scratch)
        return Encoders(self._scratch, self._spec, frugal=True)

    def vision(self, patches, frames, grid):
        """The tubelet is cut patch by patch here, one pixel's place after another."""
        side, rows = self._spec.vision.patch_size, []
        for i, j in np.ndindex(*grid):
            square = frames[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side]
            rows.append(square.reshape(-1))
        encoders = self._encoders()
        tubelets = encoders.encode_tubelets(np.stack(rows)[None], grid)
        image = encoders.encode_image(patches, grid)
        return self._made("pictures", image), self._made("tubelets", tubelets)

    def audio(self, mel):
        return self._made("sound", self._encoders().encode_audio(mel))


@contextlib.contextmanager
def in_place_of_transformers(scratch: Path, **wrong) -> Iterator[list[StandIn]]:
    """Where check.py finds torch and transformers, it finds this; those that were made."""
    made = []

    def stand_in(checkpoint):
        made.append(
            StandIn(checkpoint, scratch, {k.replace("_", " "): v for k, v in wrong.items()})
        )
        return made[-1]

    module = types.SimpleNamespace(TransformersModel=stand_in, versions=lambda: {"torch": "0"})
    scratch.mkdir(exist_ok=True)
    with (
        mock.patch.dict(sys.modules, {"build_engine.transformers_model": module}),
        mock.patch.object(checking, "find_spec", lambda name: name in ("torch", "transformers")),
    ):
        yield made
