"""What fits a board by a recipe, how long the context lasts, and the bandwidth limit on decode."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from build_engine.boards import BOARDS, GIB, Board
from build_engine.decoder_layout import bundle_layout, recipe_layout
from build_engine.decoder_weights import linears
from build_engine.footprint import (
    MEL_FRAMES_PER_S,
    ROUTED_EXPERTS,
    Part,
    decode_bytes,
    decoder_parts,
    footprint,
    has_gpu_experts,
    kv_bytes_per_token,
    vision_scratch_bytes,
)
from build_engine.graphs.decoder import DEVICE, DEVICE_FP8
from build_engine.plans import TARGETS
from build_engine.profiles import LARGE_PICTURE, PAST_STEP_ROWS, longest_past, vision_profiles
from build_engine.recipe import Recipe, known_recipes, load_recipe
from build_engine.traffic import BANDWIDTH_SHARE, MODULES, PEERS, Peer, decode_traffic
from edge.engines.bundle import MANIFEST, Bundle, Plans
from edge.engines.tensorrt import FIRST_BUCKET_ROWS
from edge.errors import CheckpointError, ConfigurationError
from edge.model.spec import DecoderSpec, ModelSpec, model_spec
from gpu_kernels.launch import FORMATS

AUDIO_TOKENS_PER_S = MEL_FRAMES_PER_S / 8
COUNTED = "what the kernels of a compiled plan read and write"
STORED = "what is stored; no plan of this recipe and these sizes was counted for this board"
CPU_ONLY = "cpu engine only: no GPU kernels for such experts"
VISION_PLAN = "vision.plan"
SEPARATOR_TOKENS = 14
"""Words around a tubelet ("Frame 3 sampled at ..."), assumed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer: what is needed, what fits, and what bandwidth allows."""

    board: Board
    recipe: str
    context_tokens: int
    fps: float
    parts: tuple[Part, ...]
    vision_tokens_s: float
    separator_tokens_s: float
    audio_tokens_s: float
    kv_bytes_per_token: int
    decode_bytes: int
    """Read and written for one token while the context is empty."""
    decode_bytes_full: int
    """The same when the context is full."""
    decode_bytes_compiled: bool
    """They are what a compiled plan's kernels move; else what is stored, which no kernel can do
    without."""
    cpu_only: bool
    """No plan can be compiled: there are no GPU kernels for such experts."""
    peers: tuple[Peer, ...]
    """What others reach on such a board."""
    largest_context: int
    """Tokens that this board could hold with this recipe; 0: not even one."""
    recipes_that_fit: tuple[str, ...]
    """Fewest bytes of a token first, then those of which no plan was counted."""
    boards_that_fit: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        """Sum of the parts."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def free_bytes(self) -> int:
        """What is left; below zero when it does not fit."""
        return self.board.memory_bytes - self.needed_bytes

    @property
    def tokens_s(self) -> float:
        """Tokens that perception appends in a second."""
        return self.vision_tokens_s + self.separator_tokens_s + self.audio_tokens_s

    @property
    def context_s(self) -> float:
        """Seconds of perception until the context is full."""
        return self.context_tokens / self.tokens_s

    @property
    def kv_bytes_per_hour(self) -> float:
        """Growth of the K/V cache if nothing were rebuilt."""
        return self.tokens_s * 3600 * self.kv_bytes_per_token

    @property
    def decode_tokens_s(self) -> tuple[float, float] | None:
        """At `BANDWIDTH_SHARE` of the board's bandwidth: context empty, context full.

        None where no plan can be compiled.
        """
        if self.cpu_only:
            return None
        rate = BANDWIDTH_SHARE * self.board.bandwidth_bytes_s
        return rate / self.decode_bytes, rate / self.decode_bytes_full

    def require_fit(self) -> None:
        """Say what would fit, if this does not.

        Raises:
            ConfigurationError: the board's memory is too small.
        """
        if self.free_bytes >= 0:
            return
        ways = []
        if self.recipes_that_fit:
            ways.append(f"--recipe {' | '.join(self.recipes_that_fit)}")
        if self.largest_context:
            ways.append(f"--context {self.largest_context}")
        if self.boards_that_fit:
            ways.append(f"--board {self.boards_that_fit[0]}")
        raise ConfigurationError(
            f"{self.recipe} with {self.context_tokens:,} tokens on {self.board.name}",
            f"needs {_gib(self.needed_bytes)} of {_gib(self.board.memory_bytes)} GiB",
            f"use {', or '.join(ways)}" if ways else "no known board, recipe or context fits",
        )

    def as_dict(self) -> dict[str, Any]:
        """For machines: bytes, tokens and seconds."""
        empty, full = self.decode_tokens_s or (None, None)
        return {
            **asdict(self),
            "peers": [peer._asdict() for peer in self.peers],
            "fits": self.free_bytes >= 0,
            "needed_bytes": self.needed_bytes,
            "free_bytes": self.free_bytes,
            "tokens_s": self.tokens_s,
            "context_s": self.context_s,
            "kv_bytes_per_hour": self.kv_bytes_per_hour,
            "decode_tokens_s": empty,
            "decode_tokens_s_full": full,
        }

    def table(self) -> str:
        """For people."""
        line = "{:34}{:>16}  {:8}{:>9}"
        rows = [
            f"{self.recipe} on {self.board.name}, {self.context_tokens:,} tokens of context, "
            f"{self.fps:g} frames/s",
            "",
            line.format("", "parameters", "format", "GiB"),
        ]
        for part in self.parts:
            count = f"{part.n_parameters:,}" if part.n_parameters else ""
            rows.append(line.format(part.name, count, part.format, _gib(part.n_bytes)))
        verdict = "free" if self.free_bytes >= 0 else "DOES NOT FIT"
        for name, n_bytes in (
            ("needed", self.needed_bytes),
            ("board", self.board.memory_bytes),
            (verdict, self.free_bytes),
        ):
            rows.append(line.format(name, "", "", _gib(n_bytes)))
        facts = {
            "perception": f"{self.tokens_s:.1f} tokens/s = {self.vision_tokens_s:.1f} vision + "
            f"{self.separator_tokens_s:.1f} separators + {self.audio_tokens_s:.1f} sound",
            "context": f"{self.context_tokens:,} tokens last {_duration(self.context_s)}; K/V grow "
            f"by {self.kv_bytes_per_hour / 2**20:,.0f} MiB/h",
            "decode": self._decode(),
            "bytes of a token": f"{'' if self.decode_bytes_compiled else 'at least '}"
            f"{self.decode_bytes / 1e9:.2f} GB, {self.decode_bytes_full / 1e9:.2f} with the "
            f"context full: {COUNTED if self.decode_bytes_compiled else STORED}",
            "largest context": f"{self.largest_context:,} tokens",
            "recipes that fit": ", ".join(self.recipes_that_fit) or "none",
            "boards that fit": ", ".join(self.boards_that_fit) or "none",
        }
        rows += ["", *(f"{name:18}{text}" for name, text in facts.items())]
        rows += [
            f"{'others reach':18}{peer.tokens_s} tokens/s: {peer.what} ({peer.source})"
            for peer in self.peers
        ]
        rows += [f"{'note':18}{note}" for note in self.notes]
        return "\n".join(rows)

    def _decode(self) -> str:
        if self.decode_tokens_s is None:
            return CPU_ONLY
        empty, full = self.decode_tokens_s
        return (
            f"{'' if self.decode_bytes_compiled else 'at most '}{empty:.1f} tokens/s, "
            f"{full:.1f} with the context full, at {BANDWIDTH_SHARE:.0%} of "
            f"{self.board.bandwidth_bytes_s / 1e9:g} GB/s"
        )


def read_spec(folder: Path) -> ModelSpec:
    """The model's sizes: of a bundle, or a checkpoint, of which only config.json needs to exist.

    Raises:
        BundleError: it is a damaged bundle.
        CheckpointError: the file is absent, or not a configuration of this model.
    """
    if (folder / MANIFEST).is_file():
        return Bundle(folder, check_hashes=False).manifest.spec
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(path, "is missing", "give a checkpoint's folder") from None
    except ValueError as error:
        raise CheckpointError(path, f"is not JSON ({error})", "download it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(path, "is not a JSON object", "download it again")
    return model_spec(config, {})


def make_plan(
    spec: ModelSpec,
    board: str,
    recipe: str,
    context_tokens: int,
    fps: float,
    folder: Path | None = None,
) -> Plan:
    """Weigh `recipe` on `board`.

    Args:
        recipe: its name, or a file of one's own.
        context_tokens: bound of the live context.
        fps: frames a second taken from the camera; 0: sound only.
        folder: a bundle, whose plans count where they are for this board, recipe and context.
    Raises:
        BundleError: it is a damaged bundle.
        ConfigurationError: a name is unknown, or a number is out of range.
    """
    if board not in BOARDS:
        raise ConfigurationError("--board", f"is {board!r}", f"known: {', '.join(BOARDS)}")
    place, chosen = BOARDS[board], load_recipe(recipe)
    chosen.check(linears(spec.decoder))
    most = spec.decoder.max_tokens
    if not 1 <= context_tokens <= most:
        raise ConfigurationError("--context", f"is {context_tokens}", f"give 1..{most} tokens")
    if not 0 <= fps < math.inf:
        raise ConfigurationError("--fps", f"is {fps}", "give frames a second, or 0 for sound only")
    tubelets_s = fps / spec.vision.tubelet_frames
    per_token = kv_bytes_per_token(spec.decoder)
    decode, decode_full, compiled = _decode_bytes(spec.decoder, place, recipe, context_tokens)
    known = {name: load_recipe(name) for name in known_recipes()}
    compiled_plans = _compiled_plans(folder, spec, place, chosen, context_tokens)
    rows, scratch = context_tokens, None
    if compiled_plans:
        rows, scratch = compiled_plans.max_past_rows, compiled_plans.kept_scratch_bytes
    cpu_only = compiled_plans is None and not has_gpu_experts(spec.decoder, chosen)

    def slowest_last(name: str) -> tuple[bool, int]:
        n_bytes, _, counted = _decode_bytes(spec.decoder, place, name, context_tokens)
        return not counted, n_bytes

    return Plan(
        board=place,
        recipe=recipe,
        context_tokens=context_tokens,
        fps=fps,
        parts=tuple(_parts(spec, place, chosen, rows, scratch)),
        vision_tokens_s=tubelets_s * (spec.vision.video_target_patches // spec.vision.merge**2),
        separator_tokens_s=tubelets_s * SEPARATOR_TOKENS,
        audio_tokens_s=AUDIO_TOKENS_PER_S,
        kv_bytes_per_token=per_token,
        decode_bytes=decode,
        decode_bytes_full=decode_full,
        decode_bytes_compiled=compiled,
        cpu_only=cpu_only,
        peers=_peers(place),
        largest_context=_largest_context(spec, place, chosen),
        recipes_that_fit=tuple(
            name
            for name in sorted(known, key=slowest_last)
            if has_gpu_experts(spec.decoder, known[name])
            and _largest_context(spec, place, known[name]) >= context_tokens
        ),
        boards_that_fit=tuple(
            other.name
            for other in BOARDS.values()
            if _largest_context(spec, other, chosen) >= context_tokens
        ),
        notes=tuple(_notes(spec, place, chosen, context_tokens, compiled_plans)),
    )


def _compiled_plans(
    folder: Path | None, spec: ModelSpec, board: Board, recipe: Recipe, context_tokens: int
) -> Plans | None:
    """A bundle's plans, where this board would run them with this recipe and context."""
    if folder is None or not (folder / MANIFEST).is_file():
        return None
    plans = Bundle(folder, check_hashes=False).manifest.plans
    capability = ".".join(map(str, TARGETS[board.target].compute_capability))
    if not plans or plans.compute_capability != capability or plans.max_past_rows < context_tokens:
        return None
    return plans if bundle_layout(folder) == recipe_layout(spec.decoder, recipe) else None


def _peers(board: Board) -> tuple[Peer, ...]:
    """Of boards with the same GPU and as fast a memory."""
    told = BOARDS[MODULES[board.target]]
    same = board.bandwidth_bytes_s == told.bandwidth_bytes_s
    return tuple(peer for peer in PEERS if same and peer.target == board.target)


def _parts(
    spec: ModelSpec,
    board: Board,
    recipe: Recipe,
    context_tokens: int,
    scratch: int | None = None,
) -> Iterator[Part]:
    """Everything that takes memory."""
    precision = DEVICE_FP8 if board.low_precision else DEVICE
    yield from footprint(spec, recipe, context_tokens, precision, scratch)
    for name, n_bytes in board.reserved_bytes().items():
        yield Part(name, n_bytes)


def _decode_bytes(
    spec: DecoderSpec, board: Board, recipe: str, context_tokens: int
) -> tuple[int, int, bool]:
    """Of a token, context empty and full, and whether a compiled plan was counted."""
    if moved := decode_traffic(spec, board.target, recipe):
        empty, full = (
            moved.n_bytes + moved.row_bytes * max(rows, FIRST_BUCKET_ROWS)
            for rows in (0, context_tokens)
        )
        return empty, full, True
    chosen = load_recipe(recipe)
    stored = decode_bytes(spec, chosen)
    return stored, stored + context_tokens * kv_bytes_per_token(spec), False


def _largest_context(spec: ModelSpec, board: Board, recipe: Recipe) -> int:
    def needed(step: int) -> int:
        return sum(p.n_bytes for p in _parts(spec, board, recipe, min(step * PAST_STEP_ROWS, most)))

    most = spec.decoder.max_tokens
    steps = range(longest_past(most) // PAST_STEP_ROWS + 1)
    n_fitting = bisect.bisect_right(steps, board.memory_bytes, key=needed)
    return min(max(n_fitting - 1, 0) * PAST_STEP_ROWS, most)


def _notes(
    spec: ModelSpec, board: Board, recipe: Recipe, context_tokens: int, plans: Plans | None
) -> Iterator[str]:
    if plans is None and not has_gpu_experts(spec.decoder, recipe):
        yield "an engine on the GPU would compute the experts by our kernels, which take " + (
            f"{' and '.join(name.upper() for name in FORMATS)} weights only"
        )
        return
    if decoded := _decoded_by_tables(spec.decoder, board, recipe):
        yield (
            f"{board.name} reads the routed experts as they are, by our kernels; other linears in "
            f"{' and '.join(decoded)} are decoded by tables into memory and read again, which "
            "saves memory only"
        )
    if len(vision_profiles(spec.vision)) > 1:
        told = plans.scratch_bytes.get(VISION_PLAN, {}).get(LARGE_PICTURE) if plans else None
        large = told or vision_scratch_bytes(spec.vision)[1]
        yield (
            f"a large picture takes {large / 1e6:,.0f} MB more for its call"
            f"{'' if told else ' (estimate)'}"
        )
    if plans and longest_past(context_tokens) < longest_past(plans.max_past_rows):
        yield (
            f"the bundle's plans hold a K/V cache of {plans.max_past_rows:,} tokens, whatever "
            "--context says: compile again for less"
        )
    yield "decode is bandwidth only, a share of the published peak; nothing here is measured"


def _decoded_by_tables(spec: DecoderSpec, board: Board, recipe: Recipe) -> list[str]:
    """The formats of linears that no kernel of the board's plans reads as they are."""
    others = (p.format for p in decoder_parts(spec, recipe) if p.name != ROUTED_EXPERTS)
    as_it_is = {"bf16", "fp32", "fp8"} if board.low_precision else {"bf16", "fp32"}
    return sorted({name.upper() for name in others if name not in as_it_is})


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
