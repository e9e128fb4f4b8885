"""Everything that is wrong with a checkpoint as far as names, shapes and small values can tell.

A build surveys its source first, so that nothing is written of one that cannot be built.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from build_engine.checkpoint import RESTORE, Checkpoint
from build_engine.decoder_weights import Packed, packed_tensors
from build_engine.inventory import FINAL_NORMS, audio_tensors, unread, vision_tensors
from build_engine.stored import sources, stored_layout
from edge.errors import CheckpointError
from edge.model.prompt import ChatTemplate
from edge.model.tokenizer import AUDIO, IMAGE, Tokenizer

log = logging.getLogger(__name__)


def require_sound(checkpoint: Checkpoint) -> None:
    """Survey a checkpoint; say which of its keys are ignored.

    Raises:
        CheckpointError: the first thing that is wrong.
    """
    for fault in faults(checkpoint):
        raise fault
    unknown = [found.name for found in checkpoint.judged() if found.verdict == "unknown"]
    if unknown:
        log.warning(
            "%d keys are ignored, as transformers does not read them either: %s",
            len(unknown),
            ", ".join(unknown),
        )


def faults(checkpoint: Checkpoint) -> Iterator[CheckpointError]:
    """One error for each thing that is wrong."""
    read = set[str]()
    for packed in packed_tensors(checkpoint.spec.decoder):
        for source in packed.sources:
            yield from _faults_of(checkpoint, packed, source, read)
    for name, shape in _encoder_tensors(checkpoint):
        read.add(name)
        yield from _shape_fault(checkpoint, name, shape)
    for name in checkpoint.names():
        if name not in read:
            yield from _unread_faults(checkpoint, name)
    yield from _token_faults(checkpoint)


def _faults_of(
    checkpoint: Checkpoint, packed: Packed, source: str, read: set[str]
) -> Iterator[CheckpointError]:
    """Of one tensor of the decoder and its scales, whose names `read` takes."""
    read.add(source)
    if not packed.matrix:
        yield from _shape_fault(checkpoint, source, packed.source_shape)
        return
    try:
        layout = stored_layout(checkpoint, source, packed.source_shape)
        names = sources(checkpoint, source, packed.source_shape)
        if layout != stored_layout(checkpoint, packed.sources[0], packed.source_shape):
            raise CheckpointError(
                source,
                f"is in another format than {packed.sources[0]}",
                "quantize all experts of a layer alike",
            )
    except CheckpointError as error:
        yield error
        return
    for suffix, (_, shape) in layout.items():
        read.add(names[suffix])
        yield from _shape_fault(checkpoint, names[suffix], shape)


def _encoder_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...]]]:
    vision, hidden = checkpoint.spec.vision, checkpoint.spec.decoder.hidden_size
    yield from vision_tensors(vision, hidden)
    yield from audio_tensors(checkpoint.spec.audio, hidden)
    norms = [name for name in FINAL_NORMS if checkpoint.has(f"{name}.weight")]
    if vision.final_norm and norms:
        yield f"{norms[0]}.weight", (vision.hidden_size,)
        yield f"{norms[0]}.bias", (vision.hidden_size,)


def _shape_fault(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...]
) -> Iterator[CheckpointError]:
    try:
        checkpoint.check(name, shape)
    except CheckpointError as error:
        yield error


def _unread_faults(checkpoint: Checkpoint, name: str) -> Iterator[CheckpointError]:
    """A tensor that nothing reads is a fault, unless nothing is lost by it."""
    why = unread(name)
    if why is None:
        yield CheckpointError(
            name,
            "is in the checkpoint, and nothing of this model reads it",
            "use a checkpoint without it: it would make other answers",
        )
        return
    reason, value = why
    if value is None:
        return
    found = checkpoint.tensor(name, checkpoint.shape(name)).astype(np.float32)
    if (found != value).any():
        yield CheckpointError(
            name,
            f"is not read, because it {reason}, but it holds {found[found != value].flat[0]:.6g}",
            "use a checkpoint without it: it would make other answers",
        )


def _token_faults(checkpoint: Checkpoint) -> Iterator[CheckpointError]:
    """Tokens that config.json, tokenizer_config.json and tokenizer.json tell differently."""
    try:
        ChatTemplate(checkpoint.folder)
        tokenizer = Tokenizer(checkpoint.folder)
    except CheckpointError as error:
        yield error
        return
    said = {"img_context_token_id": IMAGE, "sound_context_token_id": AUDIO}
    for key, name in said.items():
        told, token = checkpoint.config.get(key), tokenizer.find(name)
        if told is not None and told != token:
            yield CheckpointError(
                f"config.json.{key}",
                f"is {told!r}, but {name} is token {token} in tokenizer.json",
                RESTORE,
            )
    largest, size = max(tokenizer.control_tokens.ids), checkpoint.spec.decoder.vocab_size
    if largest >= size:
        yield CheckpointError(
            "tokenizer.json",
            f"has the special token {largest}, of {size} that are embedded",
            RESTORE,
        )
    for stop in checkpoint.spec.sampling.stop_ids:
        if stop >= size:
            yield CheckpointError(
                "eos_token_id", f"is {stop}, and there are {size} tokens", RESTORE
            )
    yield from _added_token_faults(checkpoint, tokenizer)


def _added_token_faults(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Iterator[CheckpointError]:
    """transformers adds the tokens of tokenizer_config.json to those of tokenizer.json."""
    added: Any = checkpoint.tokenizer_config.get("added_tokens_decoder") or {}
    special = set(tokenizer.control_tokens.ids)
    for token, about in added.items() if isinstance(added, dict) else ():
        content = about.get("content") if isinstance(about, dict) else None
        known = content is not None and str(tokenizer.find(content)) == token
        if not known or (about.get("special", False) and int(token) not in special):
            yield CheckpointError(
                f"tokenizer_config.json.added_tokens_decoder.{token}",
                f"is {json.dumps(content)}, and tokenizer.json knows no such special token",
                RESTORE,
            )
