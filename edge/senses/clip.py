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
    n_pixels = contents.n_pictures * width * height
    if n_pixels > MAX_DECODED_PIXELS:
        problem = f"has {contents.n_pictures} frames of {width}x{height} pixels"
        remedy = f"send at most {MAX_DECODED_PIXELS // (width * height)} of this size"
        raise MediaError("video", problem, remedy)
    rate = contents.frames_per_s
    duration_s = float(contents.n_pictures / rate)
    chosen = sample_frames(contents.n_pictures, duration_s, fps, max_frames).tolist()
    max_bytes = max(1, MAX_CLIP_BYTES if max_bytes is None else max_bytes)
    shrink = math.ceil(math.sqrt(3 * len(chosen) * width * height / max_bytes))
    frames: list[UInt8] = []
    numbers: list[int] = []
    last: tuple[int, av.VideoFrame] | None = None
    for number, (_, frame) in enumerate(media.video_frames(contents, damage)):
        if len(frames) < len(chosen) and number >= chosen[len(frames)]:
            frames.append(media.upright_rgb(frame, shrink))
            numbers.append(number)
        last = number, frame
    if last is not None and len(frames) < len(chosen) and last[0] > numbers[-1]:
        frames.append(media.upright_rgb(last[1], shrink))  # some were lost, or are not shown
        numbers.append(last[0])
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
    blocks: list[Float32] = [np.zeros(late if "video" in contents.tracks else 0, np.float32)]
    n_samples, max_samples = len(blocks[0]), (max_s + 1) * SAMPLE_RATE_HZ
    for _, block in media.mono_blocks(contents, damage):
        n_samples += len(block)
        if n_samples > max_samples:  # its packets have told less
            raise MediaError("sound", f"lasts more than {max_s:g} s", "send a shorter one")
        blocks.append(block)
    return np.concatenate(blocks)
