"""How well turns are told: onsets, ends, pauses, the robot's own voice, and what it costs.

    python scripts/bench_turns.py [--placements 120] [--conversations 40] [--seed 0]

Needs recorded speech (Debian's alsa-utils) and flite. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from turn_scenes import (
    NOISES,
    Conversation,
    Noise,
    babble,
    chunks,
    conversations,
    placements,
    recorded,
    synthesized,
)

from edge.clock import NS_PER_S
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses.sound import BLOCK_SAMPLES
from edge.senses.turn_events import Ended, SpeechStarted, TurnEvent
from edge.senses.turns import TurnDetector
from edge.types import Float32

MAX_ONSET_S, MAX_END_S = 0.15, 0.25
PERSON_DB = (-10.0, -5.0, 0.0, 5.0)
PAUSE_S = 0.4


def heard(samples: Float32, played: Float32 | None = None) -> list[TurnEvent]:
    """The events of one sound, to its end."""
    detector = TurnDetector()
    events: list[TurnEvent] = []
    for chunk in chunks(samples):
        if played is not None:
            first = chunk.capture_ns * SAMPLE_RATE_HZ // NS_PER_S
            piece = played[first : first + len(chunk.samples)]
            for part in chunks(piece, start_ns=chunk.capture_ns):
                detector.play(part)
        events += detector.push(chunk)
    return events + detector.flush()


def bounds(events: list[TurnEvent]) -> tuple[list[float], list[float]]:
    """Onsets and ends, in seconds."""
    onsets = [event.onset_ns / NS_PER_S for event in events if isinstance(event, SpeechStarted)]
    ended = [event.utterance for event in events if isinstance(event, Ended)]
    return onsets, [said.end_ns / NS_PER_S for said in ended if said is not None]


def timing(
    clips: Mapping[str, Float32], noise: Noise, n: int, rng: np.random.Generator
) -> dict[str, float]:
    """Shares of placements whose onset and end were told in time, and of those told as one."""
    onset_errors, end_errors, n_whole = [], [], 0
    for placed in placements(clips, noise, n, rng):
        onsets, ends = bounds(heard(placed.samples))
        onset_errors.append(min((onset - placed.onset_s for onset in onsets), key=abs, default=9.0))
        end_errors.append(min((end - placed.end_s for end in ends), key=abs, default=9.0))
        n_whole += len(onsets) == len(ends) == 1
    return {
        "onset_share": float((np.abs(onset_errors) <= MAX_ONSET_S).mean()),
        "end_share": float((np.abs(end_errors) <= MAX_END_S).mean()),
        "whole_share": n_whole / n,
        "onset_median_s": round(float(np.median(onset_errors)), 3),
        "end_median_s": round(float(np.median(end_errors)), 3),
    }


def pauses_kept(clips: Mapping[str, Float32], n: int, rng: np.random.Generator) -> float:
    """The share of sentences with a pause of 0.4 s that stayed one."""
    names, n_kept = list(clips), 0
    for _ in range(n):
        first, second = (clips[str(name)] for name in rng.choice(names, 2))
        second_s = np.zeros(SAMPLE_RATE_HZ, np.float32)
        pause = np.zeros(int(PAUSE_S * SAMPLE_RATE_HZ), np.float32)
        samples = np.concatenate([second_s, first, pause, second, second_s])
        samples += (1e-4 * rng.standard_normal(len(samples))).astype(np.float32)
        n_kept += len(bounds(heard(samples))[0]) == 1
    return n_kept / n


def own_voice(
    talks: list[Conversation], persons_db: Sequence[float] = PERSON_DB
) -> dict[str, float]:
    """The share of talks in which the robot interrupted itself, and by how loud a person is
    beside the echo, in which a person could."""
    shares = {"itself": sum(bool(bounds(heard(t.heard(None), t.played))[0]) for t in talks)}
    for person_db in persons_db:
        n_hits = 0
        for talk in talks:
            onsets, _ = bounds(heard(talk.heard(person_db), talk.played))
            n_hits += any(talk.onset_s - 0.2 <= onset <= talk.end_s for onset in onsets)
        shares[f"person at {person_db:+.0f} dB"] = n_hits
    return {name: n / len(talks) for name, n in shares.items()}


def false_starts(minutes: int, rng: np.random.Generator) -> int:
    """In minutes of silence, and as many of white noise at two levels."""
    n = minutes * 60 * SAMPLE_RATE_HZ
    sounds: list[Float32] = [np.zeros(n, np.float32)]
    sounds += [(level * rng.standard_normal(n)).astype(np.float32) for level in (0.003, 0.1)]
    return sum(len(bounds(heard(sound))[0]) for sound in sounds)


def cost_ms(clips: Mapping[str, Float32], with_voice: bool) -> float:
    """Of a block of 32 ms, the median of one minute."""
    rng = np.random.default_rng(0)
    sound = 0.1 * babble(clips, 60 * SAMPLE_RATE_HZ, rng)
    detector, times = TurnDetector(), []
    for chunk in chunks(sound, BLOCK_SAMPLES):
        if with_voice:
            detector.play(chunk)
        start = time.perf_counter()
        detector.push(chunk)
        times.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(times)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--placements", type=int, default=120, help="in each kind of noise")
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--minutes", type=int, default=5, help="of each kind of noise alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        sentences = synthesized(Path(folder))
    clips = recorded() | sentences

    print(f"{len(clips)} clips on {platform.machine()}, {os.cpu_count()} cores\n")
    print(f"{'noise':<8}{'onset in 0.15 s':>17}{'end in 0.25 s':>15}{'one utterance':>15}")
    told = {noise: timing(clips, noise, options.placements, rng) for noise in NOISES}
    for noise, row in told.items():
        shares = (row["onset_share"], row["end_share"], row["whole_share"])
        print(f"{noise:<8}{shares[0]:>17.1%}{shares[1]:>15.1%}{shares[2]:>15.1%}")
    kept = pauses_kept(clips, options.placements, rng)
    print(f"\na pause of {PAUSE_S} s stays inside: {kept:.1%}")
    n_false = false_starts(options.minutes, rng)
    print(f"false starts in {options.minutes} min each of silence and two noises: {n_false}")
    interrupted = own_voice(list(conversations(sentences, options.conversations, rng)))
    print("\nthe robot is interrupted by")
    for name, share in interrupted.items():
        print(f"  {name:<18}{share:>7.1%}")
    cost = {"alone_ms": cost_ms(clips, False), "with_own_voice_ms": cost_ms(clips, True)}
    print(
        f"\na block of 32 ms costs {cost['alone_ms']} ms, {cost['with_own_voice_ms']} ms while",
        end="",
    )
    print(" the robot speaks\n")
    figures = {
        "placements": options.placements,
        "conversations": options.conversations,
        "seed": options.seed,
        "timing": told,
        "pause_kept": kept,
        "false_starts": n_false,
        "own_voice": interrupted,
        "cost": cost,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
