"""Record the demo's session: a scene that moves and changes, with one question spoken aloud.

    python scripts/tiny_omni/record_session.py OUT_FOLDER

Needs the speech corpus; the voice is one that the model was never trained on. The questions and
the truth go beside it as session.json, which the demo reads. The spoken question alone is cut out:

    ffmpeg -ss 4.4 -t 2.2 -i session.mp4 -bitexact question.wav
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from scenes import COLORS, FRAME_S, MOTIONS, SHAPES, Scene, Thing, render
from settings import WORK
from speech import load_corpus
from tasks import ANSWER_IT

HEIGHT, WIDTH, FPS = 240, 320, 10
LENGTH_S = 8.0
SAMPLE_RATE_HZ = 16_000
APPEARS_AT_S, SPOKEN_AT_S = 3.0, 4.6
ALOUD = "what color is the triangle"


@dataclass(frozen=True)
class Query:
    """What the demo asks."""

    at_s: float
    """Since the session began."""
    question: str
    truth: str
    aloud: str = ""
    """What was said just before, if the typed text only points at it."""


SESSION = (
    Query(1.8, "How does the circle move?", "right"),
    Query(2.6, "What color is the square?", "blue"),
    Query(4.3, "How many shapes are there?", "three"),
    Query(7.0, ANSWER_IT, "green", ALOUD),
    Query(7.6, "Is there a cross?", "no"),
)


def scene() -> Scene:
    """A red circle that moves, a blue square that stays, a green triangle that appears."""
    red, green, blue = (COLORS.index(name) for name in ("red", "green", "blue"))
    circle, square, triangle = (SHAPES.index(n) for n in ("circle", "square", "triangle"))
    right = MOTIONS.index("right")
    appears = (round(APPEARS_AT_S / FRAME_S), 1 << 30)
    return Scene(
        things=(
            Thing(circle, red, 0.17, 0.25, 0.15, right, speed=0.063),
            Thing(square, blue, 1.05, 0.72, 0.16),
            Thing(triangle, green, 0.42, 0.72, 0.16, frames=appears),
        ),
        aspect=WIDTH / HEIGHT,
        n_frames=round(LENGTH_S / FRAME_S),
        style=4,
        max_grain=0.03,
    )


def soundtrack(corpus_path: Path) -> np.ndarray:
    """A quiet room, and the question; float32 [n]."""
    corpus = load_corpus(corpus_path)
    rng = np.random.default_rng(3)
    chosen = [
        i for i in corpus.indices("held_out", ALOUD) if corpus.voice(i).synthesizer == "espeak-ng"
    ]
    spoken = corpus.clip(chosen[0])
    track = 0.002 * rng.standard_normal(int(LENGTH_S * SAMPLE_RATE_HZ)).astype(np.float32)
    start = int(SPOKEN_AT_S * SAMPLE_RATE_HZ)
    track[start : start + len(spoken)] += spoken
    return track


def record(path: Path, corpus_path: Path) -> None:
    """Write the session as H.264 and AAC."""
    shown = scene()
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "30"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        for i in range(int(LENGTH_S * FPS)):
            pixels = render(shown, i / FPS / FRAME_S, HEIGHT, WIDTH)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        track = soundtrack(corpus_path)
        heard = av.AudioFrame.from_ndarray(track[None], format="fltp", layout="mono")
        heard.sample_rate, heard.pts = SAMPLE_RATE_HZ, 0
        container.mux(sound.encode(heard))
        container.mux(sound.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path, help="folder for session.mp4 and session.json")
    parser.add_argument("--speech", type=Path, default=WORK / "speech.npz")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    film = arguments.out / "session.mp4"
    record(film, arguments.speech)
    queries = [asdict(query) for query in SESSION]
    (arguments.out / "session.json").write_text(json.dumps(queries, indent=1) + "\n")
    print(f"{film}: {film.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
