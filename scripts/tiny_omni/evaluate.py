"""Accuracy of the small model by task, on held-out scenes and voices, run through the runtime.

    python scripts/tiny_omni/evaluate.py BUNDLE [BUNDLE ...] --n 200 --picture accuracy.svg

Each case is answered twice: streamed in as a live session and then asked, and as one request.
`--without video` or `--without audio` withholds a sense, to see what really depends on it.
`--evs 16` answers each film once more, live with pruned tubelets within 16 tokens a second.
Sound needs the corpus that `speech.py` makes.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenes import FRAME_S, render
from settings import WORK
from sounds import Sounds
from stories import SPOKEN, a_scene
from tasks import ABOUT_A_FILM, NONE, NOTHING, Asked, spoken, typed_only, word_said
from tqdm import tqdm

from build_engine.chart import bars
from edge.clock import NS_PER_S, VirtualClock
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.features.evs import CausalPruner
from edge.features.mel import log_mel
from edge.features.pixels import tubelet_patches, video_grid
from edge.model.prompt import ChatTemplate, audio_text, flatten, video_text
from edge.model.sampling import Sampling
from edge.model.spec import SAMPLE_RATE_HZ
from edge.model.tokenizer import Tokenizer
from edge.senses.turns import UtteranceDetector
from edge.session.answer import answer
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.perceive import Listener, Watcher, embed_media, encoded
from edge.session.turn import Done, Message, Question, TextDelta, Turn
from edge.types import AudioChunk, Frame

SIZES = ((240, 320), (360, 640), (256, 256), (480, 360), (144, 192))
"""Heights and widths of the cameras."""
MAX_ANSWER_TOKENS = 32
MAX_TUBELETS_PER_S = 1
CHUNK = SAMPLE_RATE_HZ // 10
HONEST = "honest none"
"""All cases whose truth is that there is none."""
FILM_TASKS = {maker.__name__.removeprefix("ask_"): maker for maker in ABOUT_A_FILM}
HEARD = ("word", "spoken")
TASKS = (*FILM_TASKS, "text", *HEARD)


@dataclass(frozen=True)
class Case:
    """What is shown and said, what is asked, and what is true."""

    frames: list[NDArray[np.uint8]]
    sound: NDArray[np.float32] | None
    asked: Asked


class Subject:
    """The runtime with a bundle."""

    def __init__(self, path: Path, whole_pictures: bool = True) -> None:
        self.engine = CpuEngine(Bundle(path))
        self.tokenizer, self.template = Tokenizer(path), ChatTemplate(path)
        self.prompt = LivePrompt(self.tokenizer, self.template, system="")
        self.whole_pictures = whole_pictures
        self.n_kept = self.n_pruned = 0

    def live(self, case: Case, evs_tokens_per_s: int = 0) -> str:
        """Stream the case in, then ask; with a budget, tubelets are pruned, and that is counted."""
        clock, engine = VirtualClock(), self.engine
        anchor, separator = self.prompt.anchor(), self.prompt.separator()
        context = LiveContext(engine, anchor, separator, max_tokens=4096, keep_tokens=2048)
        pruner = None
        if evs_tokens_per_s:
            pruner = CausalPruner(
                evs_tokens_per_s, MAX_TUBELETS_PER_S, whole_pictures=self.whole_pictures
            )
        watcher = Watcher(engine, self.tokenizer, clock, 0, pruner)
        listener = Listener(engine, self.tokenizer, clock, UtteranceDetector())
        for i, pixels in enumerate(case.frames):
            frame = Frame(pixels, int(i * FRAME_S * NS_PER_S), i, "camera")
            watcher.take(frame)
            for seen in encoded(watcher):
                context.append(seen.perceived)
                if pruner is not None:
                    self.n_kept += seen.stages.n_kept
                    self.n_pruned += seen.stages.n_pruned
        if case.sound is not None:
            start_ns = int(len(case.frames) * FRAME_S * NS_PER_S)
            for at in range(0, len(case.sound), CHUNK):
                since_ns = at * NS_PER_S // SAMPLE_RATE_HZ
                chunk = AudioChunk(case.sound[at : at + CHUNK], start_ns + since_ns, "microphone")
                listener.take(chunk)
                for seen in encoded(listener):
                    context.append(seen.perceived)
            listener.flush()
            for seen in encoded(listener):
                context.append(seen.perceived)
        events: list[object] = []
        message = Message("user", case.asked.question)
        question = Question((message,), Sampling(), MAX_ANSWER_TOKENS)
        done = answer(context, self.prompt, Turn(question, 0, events.append), clock)
        assert isinstance(done, Done)
        return "".join(event.text for event in events if isinstance(event, TextDelta))

    def request(self, case: Case) -> str:
        """The whole case as one prompt."""
        engine, vision, media, texts = self.engine, self.engine.spec.vision, [], []
        if case.frames:
            height, width = case.frames[0].shape[:2]
            grid = video_grid(width, height, vision.video_target_patches)
            tubelets = engine.encode_tubelets(tubelet_patches(case.frames, grid, vision), grid)
            times = [i * FRAME_S for i in range(len(case.frames))]
            texts.append(video_text(times, [tubelets.shape[1]] * len(tubelets)))
            media.append(tubelets.reshape(-1, tubelets.shape[-1]))
        if case.sound is not None:
            heard = engine.encode_audio(log_mel(case.sound, engine.spec.audio.n_mels))
            texts.append(audio_text(len(heard)))
            media.append(heard)
        content = flatten(case.asked.question, texts)
        prompt = self.template.render([{"role": "user", "content": content}], thinking=False)
        hidden = engine.spec.decoder.hidden_size
        placed = np.concatenate([np.zeros((0, hidden), np.float32), *media])
        state = engine.new_state()
        logits = engine.prefill(state, embed_media(engine, self.tokenizer, prompt, placed))
        ids: list[int] = []
        while len(ids) < MAX_ANSWER_TOKENS:
            token = int(logits.argmax())
            if token in engine.spec.sampling.stop_ids:
                break
            ids.append(token)
            logits = engine.decode(state, token)
        return self.tokenizer.decode(ids)


def cases(kind: str, n: int, sounds: Sounds | None, seed: int) -> Iterator[Case]:
    """n cases of one kind: a film task's name, `word`, `spoken` or `text`."""
    rng = np.random.default_rng([seed, 77, sum(kind.encode())])
    found = 0
    while found < n:
        height, width = SIZES[rng.integers(len(SIZES))]
        frames: list[NDArray[np.uint8]] = []
        sound: NDArray[np.float32] | None = None
        asked: Asked | None
        if kind == "text":
            asked = typed_only(rng)
        elif kind == "word":
            assert sounds is not None
            sound, word = sounds.word(rng, "held_out", 24_000)
            asked = word_said(word)
        else:
            n_frames = 2 * int(rng.integers(2 if kind == "change" else 1, 4))
            scene = a_scene(rng, width / height, n_frames)
            maker = SPOKEN[rng.integers(len(SPOKEN))] if kind == "spoken" else FILM_TASKS[kind]
            asked = maker(rng, scene)
            if asked is None:
                continue
            frames = [render(scene, i, height, width) for i in range(n_frames)]
            if kind == "spoken":
                assert sounds is not None
                aloud, asked = spoken(asked)
                sound = sounds.said(rng, "held_out", aloud, 40_000)
        found += 1
        yield Case(frames, sound, asked)


def withheld(case: Case, sense: str | None) -> Case:
    """The case without one sense."""
    if sense == "video":
        return replace(case, frames=[])
    return replace(case, sound=None) if sense == "audio" else case


def measure(
    subject: Subject,
    tasks: Sequence[str],
    n: int,
    seed: int,
    without: str | None,
    sounds: Sounds | None,
    quiet: bool,
    evs_tokens_per_s: int,
) -> dict[str, Any]:
    """Shares of right answers by task, live and as one request, and how often both agree.

    With a budget, also live with pruned tubelets, and the share of their tokens that was kept.
    """
    live: dict[str, list[bool]] = defaultdict(list)
    request: dict[str, list[bool]] = defaultdict(list)
    pruned: dict[str, list[bool]] = defaultdict(list)
    agree: list[bool] = []
    for kind in tasks:
        for case in tqdm(cases(kind, n, sounds, seed), total=n, desc=kind, disable=quiet):
            shown = withheld(case, without)
            one, other = subject.live(shown), subject.request(shown)
            truth = case.asked.answer
            live[kind].append(one == truth)
            request[kind].append(other == truth)
            agree.append(one == other)
            if evs_tokens_per_s and shown.frames:
                pruned[kind].append(subject.live(shown, evs_tokens_per_s) == truth)
            if truth in (NONE, NOTHING, "no"):
                live[HONEST].append(one == truth)
                request[HONEST].append(other == truth)
    return {
        "live": _shares(live),
        "request": _shares(request),
        "evs": _shares(pruned),
        "evs_kept": round(subject.n_kept / max(1, subject.n_kept + subject.n_pruned), 4),
        "cases": {kind: len(hits) for kind, hits in live.items()},
        "agree": round(float(np.mean(agree)), 4),
    }


def _shares(hits: dict[str, list[bool]]) -> dict[str, float]:
    return {kind: round(float(np.mean(right)), 4) for kind, right in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="only these")
    parser.add_argument("--n", type=int, default=200, help="cases a task")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--without", choices=("video", "audio"), help="withhold a sense")
    parser.add_argument(
        "--evs", type=int, default=0, metavar="N", help="also live within N picture tokens a second"
    )
    parser.add_argument("--evs-keep", choices=("pictures", "places"), default="pictures")
    parser.add_argument("--speech", type=Path, default=WORK / "speech.npz")
    parser.add_argument("--json", action="store_true", help="one JSON line for machines")
    parser.add_argument("--picture", type=Path, help="write the accuracies as an SVG")
    arguments = parser.parse_args()
    sounds = Sounds(arguments.speech) if arguments.speech.exists() else None
    reports = {
        path.name: measure(
            Subject(path, arguments.evs_keep == "pictures"),
            [task for task in arguments.tasks if sounds or task not in HEARD],
            arguments.n,
            arguments.seed,
            arguments.without,
            sounds,
            arguments.json,
            arguments.evs,
        )
        for path in arguments.bundles
    }
    if arguments.picture:
        series = {
            (kind if len(reports) == 1 else f"{name}, {kind}"): report[key]
            for name, report in reports.items()
            for key, kind in (("live", "live session"), ("request", "one request"))
        }
        title = "Accuracy on held-out scenes and voices"
        arguments.picture.write_text(bars(title, series))
    if arguments.json:
        print(json.dumps({"n": arguments.n, "without": arguments.without, "bundles": reports}))
        return
    print(f"{'live session':14}" + "".join(f"{name:>12}" for name in reports) + "   cases, pruned")
    for kind, n in next(iter(reports.values()))["cases"].items():
        shares = "".join(f"{report['live'][kind]:12.1%}" for report in reports.values())
        pruned = "".join(f"{r['evs'][kind]:12.1%}" for r in reports.values() if kind in r["evs"])
        print(f"{kind:14}{shares}   {n:5}{pruned}")
    agreed = "".join(f"{report['agree']:12.1%}" for report in reports.values())
    print(f"{'one request':14}{agreed}   agrees with it")
    if arguments.evs:
        kept = "".join(f"{report['evs_kept']:12.1%}" for report in reports.values())
        print(f"{'tokens kept':14}{kept}   of films, within {arguments.evs} a second")


if __name__ == "__main__":
    main()
