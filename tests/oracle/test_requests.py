"""A request's prompt is, token by token, the one that the checkpoint's own processor makes."""

from __future__ import annotations

import base64
import io
import json
import os
from typing import Any

import av
import numpy as np
import pytest
from make_media import MILLISECONDS

from edge.config import Config, for_model
from edge.features.pixels import video_grid
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.serve.chat import parse_request
from edge.session.attached import encode_attached
from edge.session.live_prompt import LivePrompt

SIZES = [(90, 50), (64, 64), (50, 90), (40, 200)]
FPS, N_FRAMES, N_SAMPLES = 10, 45, 17_000
"""N_SAMPLES: not one of the lengths at which transformers counts one token more than the model's
encoder gives (its frames a multiple of 8)."""


def film_file(width: int, height: int) -> bytes:
    """Random frames at 10 a second, lossless, with sound."""
    rng = np.random.default_rng(width)
    frames = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(N_FRAMES)]
    samples = rng.integers(-3000, 3000, (1, N_SAMPLES), np.int16)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        seen, heard = (
            output.add_stream("ffv1", rate=1000),
            output.add_stream("pcm_s16le", 16_000, layout="mono"),
        )
        seen.width, seen.height, seen.pix_fmt = width, height, "bgr0"
        seen.time_base = seen.codec_context.time_base = MILLISECONDS
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = k * 1000 // FPS, MILLISECONDS
            output.mux(seen.encode(frame))
        output.mux(seen.encode(None))
        sound = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        sound.sample_rate = 16_000
        output.mux(heard.encode(sound))
        output.mux(heard.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module", params=["base", "wide"])
def checkpoint_folder(request, checkpoint):
    """The other presets differ in their decoders only."""
    return checkpoint(request.param)


@pytest.fixture(scope="module")
def processor(checkpoint_folder):
    """transformers' processor as far as it writes prompts, and the checkpoint's tokenizer.

    Its picture and video processors need torchvision, which is not here: how many tokens a tubelet
    takes is held to the published formula elsewhere (tests/unit/test_pixels.py).
    """
    if os.environ.get("CI") != "true":  # in CI an absent oracle is a failure
        for name in ("torch", "transformers"):
            pytest.importorskip(name, reason=f"the oracle needs {name}: make .venv/.oracle")
    from transformers import PreTrainedTokenizerFast
    from transformers.models.nemotron_h_omni import processing_nemotron_h_omni

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint_folder / "tokenizer.json"),
        chat_template=(checkpoint_folder / "chat_template.jinja").read_text(),
    )
    kind = processing_nemotron_h_omni.NemotronH_Omni_Reasoning_V3Processor
    bare = object.__new__(kind)
    vars(bare).update(
        image_token="<image>",
        image_start_token="<img>",
        image_end_token="</img>",
        audio_token="<so_embedding>",
        audio_start_token="<so_start>",
        audio_end_token="<so_end>",
        audio_hop_length=160,
        audio_subsampling_factor=8,
        video_temporal_patch_dim=2,
    )
    return bare, tokenizer


def prompt_of(engine: Any, folder: Any, body: dict[str, Any]) -> list[int]:
    """Our prompt for a request, where nothing has been perceived."""
    config = for_model(Config(), 131_072, 262_144)
    request = parse_request(json.dumps(body).encode(), "", config, Sampling())
    steps = encode_attached(engine, request.question.messages[0].media, 100_000)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            attached = done.value
            break
    prompt = LivePrompt(Tokenizer(folder), ChatTemplate(folder), system="")
    asked = prompt.question(request.question, after_media=False, attached=attached.texts)
    return [*prompt.anchor().tolist(), *asked.tolist()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_sound", [False, True])
@pytest.mark.parametrize(("io_kwargs", "n"), [({}, 9), ({"fps": 1}, 4), ({"num_frames": 5}, 5)])
def test_a_film(processor, checkpoint_folder, bundle, engine, size, with_sound, io_kwargs, n):
    from transformers.video_utils import VideoMetadata

    data = film_file(*size)
    url = f"data:video/x-matroska;base64,{base64.b64encode(data).decode()}"
    text = "Describe what happens in this video."
    parts = [{"type": "text", "text": text}, {"type": "video_url", "video_url": {"url": url}}]
    body = {
        "messages": [{"role": "user", "content": parts}],
        "media_io_kwargs": {"video": io_kwargs},
        "mm_processor_kwargs": {"use_audio_in_video": with_sound},
    }
    ours = prompt_of(engine(checkpoint_folder.name), bundle(checkpoint_folder.name), body)

    # What vLLM's loader hands to the processor, by `multimodal/video.py`.
    taken = np.linspace(0, N_FRAMES - 1, n, dtype=int)
    metadata = VideoMetadata(
        total_num_frames=N_FRAMES, fps=FPS, frames_indices=taken.tolist(), duration=N_FRAMES / FPS
    )
    bare, tokenizer = processor
    vision = engine(checkpoint_folder.name).spec.vision
    rows, columns = video_grid(*size, vision.video_target_patches)
    film = bare.replace_video_token(
        {"num_tokens": [rows * columns // 4]}, 0, num_frames=n, video_metadata=metadata
    )
    n_heard = bare._estimate_audio_num_embeddings(N_SAMPLES)
    sound = bare.replace_audio_token({"num_tokens": [n_heard]}, 0) if with_sound else ""
    chat = tokenizer.apply_chat_template(
        [{"role": "system", "content": ""}, {"role": "user", "content": f"{film}{sound}\n{text}"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert ours == tokenizer(chat, add_special_tokens=False)["input_ids"]
