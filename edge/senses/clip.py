"""Films and sounds in memory, as clients send them: bounded before they are decoded.

Frames are chosen as the published model was trained and is served with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import av
import numpy as np

from edge.errors import MediaError
from edge.features.pixels import sample_frames
from edge.model.prompt import frame_times_s
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses import media
from edge.senses.damage import Damage
from edge.types import Float32, UInt8

FPS, MAX_FRAMES = 2.0, 256
"""How NVIDIA serves the model: the card's `--media-io-kwargs '{"video": {"fps": 2, "num_frames":
256}}'`."""
MAX_VIDEO_S = 120
"""The model's card allows no longer films."""
MAX_DECODED_PIXELS = 1 << 34
"""Of all frames of a film together: two minutes of 1920x1080 at 60 frames a second."""
MAX_DECODED_FRAMES = 1 << 15
"""Two minutes at 240 frames a second, and some."""
MAX_CLIP_BYTES = 1 << 29
"""What the chosen frames of a film may take as RGB; larger ones are made smaller."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """What the model sees and hears of a film."""

    frames: tuple[UInt8, ...]
    """RGB [H, W, 3], upright, in time order; at least one."""
    times_s: tuple[float, ...]
    """Of each frame, in the words of the prompt: from the film's beginning, and counted in whole
    milliseconds a frame (`prompt.frame_times_s`)."""
    sound: Float32
    """Its sound track [n], 16 kHz, -1..1, from the film's beginning; n is 0 where it has none."""
    n_damaged: int
    """Packets and frames that were left out."""


def decode_video(
    data: bytes,
    fps: float = FPS,
    max_frames: int = MAX_FRAMES,
    max_s: float = MAX_VIDEO_S,
    with_sound: bool = True,
    max_bytes: int | None = None,
) -> Clip:
    """Decode a film: its frames spread evenly from the first to the last, and its sound.

    Args:
        data: any film that FFmpeg decodes.
        fps: frames to take a second; 0 sets no rate.
        max_frames: most frames to take, at least 1.
        max_s: longest film.
        with_sound: False leaves its sound out.
        max_bytes: what its frames may take, instead of MAX_CLIP_BYTES.
    Raises:
        MediaError: it has no pictures, is cut short, damaged throughout, too long or too large.
    Source: vLLM `multimodal/video.py` (`VideoBackend`, which `nemotron_vl` is), and the model's
        card. Which frames there are is told by the packets, and not by the header.
    """
    contents = media.check(data, ["video"], max_s)
    damage = Damage("")
    width, height = contents.size
    max_pictures = min(MAX_DECODED_FRAMES, MAX_DECODED_PIXELS // (width * height))
    if contents.n_pictures > max_pictures:
        problem = f"has {contents.n_pictures} frames of {width}x{height} pixels"
        raise MediaError("video", problem, f"send at most {max_pictures} of this size")
    rate = contents.frames_per_s
    duration_s = float(contents.n_pictures / rate)
    chosen = sample_frames(contents.n_pictures, duration_s, fps, max_frames).tolist()
    max_bytes = max(1, MAX_CLIP_BYTES if max_bytes is None else max_bytes)
    shrink = math.ceil(math.sqrt(3 * len(chosen) * width * height / max_bytes))
    frames: list[UInt8] = []
    numbers: list[int] = []
    last: tuple[int, av.VideoFrame] | None = None
    shown: tuple[int, int] | None = None

    def take(number: int, frame: av.VideoFrame) -> None:
        frames.append(media.upright_rgb(frame, shrink))
        numbers.append(number)

    for number, (_, frame) in enumerate(media.video_frames(contents, damage)):
        shown = shown or (frame.width, frame.height)
        if (frame.width, frame.height) != shown:  # all that is bounded was, by the first one
            raise MediaError("video", "changes its size", "encode it again in one size")
        if len(frames) < len(chosen) and number >= chosen[len(frames)]:
            take(number, frame)
        last = number, frame
    if last is not None and len(frames) < len(chosen) and last[0] > numbers[-1]:
        take(*last)  # some were lost, or are not shown
    if not frames:
        raise MediaError("video", "has no frame that is whole", "send it again")
    sound: Float32 = np.zeros(0, np.float32)
    if with_sound and "sound" in contents.tracks:
        sound = _sound(contents, max_s, damage)
    return Clip(tuple(frames), tuple(frame_times_s(numbers, float(rate))), sound, damage.n)


def decode_audio(data: bytes, max_s: float) -> Float32:
    """Decode sound: a sound file, or the track of a film.

    Args:
        data: any media file that FFmpeg decodes.
        max_s: longest sound.
    Returns:
        float32 [n], 16 kHz mono, -1..1.
    Raises:
        MediaError: it has no sound, is cut short, damaged throughout or too long.
    """
    contents = media.check(data, ["sound"], max_s)
    return _sound(contents, max_s, Damage(""))


def _sound(contents: media.Contents, max_s: float, damage: Damage) -> Float32:
    """From the file's beginning, also where its sound begins later."""
    late = round((contents.first_s["sound"] - contents.zero_s) * SAMPLE_RATE_HZ)
    n_samples, max_samples = late if "video" in contents.tracks else 0, (max_s + 1) * SAMPLE_RATE_HZ
    blocks: list[Float32] = []

    def check() -> None:  # its packets may have told less
        if n_samples > max_samples:
            raise MediaError("sound", f"lasts more than {max_s:g} s", "send a shorter one")

    check()
    blocks.append(np.zeros(n_samples, np.float32))
    for _, block in media.mono_blocks(contents, damage):
        n_samples += len(block)
        check()
        blocks.append(block)
    return np.concatenate(blocks)
