"""Check a checkpoint before hours are spent on it, and tell all that is found in one report.

Files against the hashes that a download leaves beside them; keys, names, shapes and small values
against the specification; tokenizer, template and log-mel against transformers; and every block and
tower, as a bundle stores it and the runtime computes it, against transformers' own, one at a time.
The report names no person, machine or folder. A check that was interrupted goes on.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import platform
import resource
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

import edge
from build_engine.checkpoint import Checkpoint
from build_engine.decoder_weights import Packed, packed_tensors, write_tensors
from build_engine.encoder_graphs import write_encoders
from build_engine.inventory import unread
from build_engine.survey import faults
from edge.engines import kernels
from edge.engines.cpu_ops import CpuOps, KernelWeights
from edge.engines.encoders import Encoders
from edge.engines.safetensors import SafetensorsFile
from edge.engines.state import DecoderState
from edge.engines.weights import DecoderWeights
from edge.errors import CheckpointError, ConfigurationError
from edge.features.mel import log_mel
from edge.model.config_keys import Judged, judge_config, published_names
from edge.model.decoder import head, mixed
from edge.model.prompt import ChatTemplate
from edge.model.spec import LAYER_LETTERS
from edge.model.tokenizer import Tokenizer
from edge.types import Float32

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a step's name, how many are done and how many there are."""

TOLERANCE = 1e-4
"""Of the largest value. Measured on random models, tiny and of full width: at most 1.4e-6. Two
experts exchanged are above 0.1; an epsilon of 1e-6 for 1e-5 can be as small as 1e-5, and is a key's
to tell."""
MEL_TOLERANCE = 1e-3
"""transformers' float32 transform rounds by up to 1.6e-4 in cells far below their neighbours."""
N_ROWS, N_MEL_FRAMES, GRID, N_SAMPLES = 40, 120, (12, 16), 20_900
MOST_FAULTS = 50
"""Of one step: what is wrong with a file is wrong with all of its tensors."""
HASHED_AT_ONCE = 1 << 24
PUBLISHED_BYTES = {17: (66_032_308_536, "the published BF16 files")}
"""By number of shards: bytes of all."""
SMALL_FILES = (".json", ".jinja", ".txt", ".model")
DOWNLOADED = Path(".cache", "huggingface", "download")
"""Where `hf download --local-dir` keeps the revision and the hash of each file."""
TEXTS = (
    "Where is the red circle? 12,345.67 m",
    "Grüße, 你好, नमस्ते, emoji 👩‍🔬 and  two  blanks\n\tand a tab",
    "<|im_start|>user\n<img><image></img>\n<so_start><so_embedding><so_end><|im_end|>\n",
    "<think>\nno\n</think><tool_call>\n<function=f>\n</function>\n</tool_call>",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "move",
        "description": "Drive on.",
        "parameters": {"type": "object", "properties": {"metres": {"type": "number"}}},
    },
}
CHATS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "You see."},
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "And now?"},
    ],
)


class Compared(msgspec.Struct):
    """One part beside transformers' own."""

    part: str
    error: float
    """Largest difference, as a part of the largest value."""


class Found(msgspec.Struct):
    """Something that is wrong."""

    thing: str
    problem: str


class Report(msgspec.Struct):
    """All that is known of a checkpoint so far."""

    facts: dict[str, Any] = {}
    keys: list[dict[str, Any]] = []
    files: dict[str, str] = {}
    """sha256 of each small file."""
    tensors: dict[str, str] = {}
    """sha256 of each tensor's bytes."""
    compared: list[Compared] = []
    faults: list[Found] = []
    notes: list[str] = []
    done: list[str] = []
    """Steps."""
    source: str = ""
    """Hash of what the checkpoint's files and our versions were: only the same goes on."""

    def summary(self) -> dict[str, Any]:
        """For machines, in one line: without the hashes."""
        return {
            "passed": not self.faults,
            "facts": self.facts,
            "compared": {found.part: found.error for found in self.compared},
            "faults": [msgspec.to_builtins(found) for found in self.faults],
            "notes": self.notes,
        }

    def table(self) -> str:
        """For people."""
        lines = [f"{key:14} {value}" for key, value in self.facts.items()]
        for verdict in ("refused", "unknown", "honoured", "fixed", "neutral"):
            names = [str(key["name"]) for key in self.keys if key["verdict"] == verdict]
            if names:
                lines += ["", f"{len(names)} keys are {verdict}:"]
                lines += textwrap.wrap(", ".join(names), 98, break_on_hyphens=False)
        lines += ["", f"{'compared with transformers':40} relative difference"]
        lines += [f"  {found.part:38} {found.error:.1e}" for found in self.compared]
        lines += ["", *(f"note: {note}" for note in self.notes)]
        lines += [f"FAULT {found.thing}: {found.problem}" for found in self.faults]
        return "\n".join([*lines, f"{len(self.faults)} faults"])


def read_report(path: Path) -> Report:
    """A report that was written before.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(path, f"is no report ({error})", "give a report's .json") from None


def check(folder: Path, name: Path, against: Path | None, progress: Progress) -> Report:
    """Check the checkpoint in `folder`; go on with a check that was interrupted.

    Args:
        name: of the report: NAME.json and NAME.txt are written, and NAME.partial.* meanwhile.
        against: report of the same checkpoint, made elsewhere or before.
    Raises:
        ConfigurationError: `against` is no report.
    """
    reference = None if against is None else read_report(against)
    try:
        checkpoint = Checkpoint(folder)
    except CheckpointError as error:
        report = Report(faults=[_found(error, folder)], keys=_keys_of(folder))
    else:
        report = _Steps(checkpoint, name).run(progress)
    if reference is not None:
        report.faults += _differences(report, reference)
    _put(name.with_name(f"{name.name}.json"), msgspec.json.format(msgspec.json.encode(report)))
    _put(name.with_name(f"{name.name}.txt"), f"{report.table()}\n".encode())
    for left in name.parent.glob(f"{name.name}.partial.*"):
        left.unlink()
    return report


class _Steps:
    """The steps of one check, and where it stands."""

    def __init__(self, checkpoint: Checkpoint, name: Path) -> None:
        self._checkpoint, self._spec = checkpoint, checkpoint.spec
        self._state = name.with_name(f"{name.name}.partial.json")
        self._rows_path = name.with_name(f"{name.name}.partial.npy")
        self._theirs: Any = None
        missing = [package for package in ("torch", "transformers") if find_spec(package) is None]
        kernels.choose_instruction_set()
        facts: dict[str, Any] = {
            "omni-edge": edge.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "processor": platform.machine(),
        }
        if not missing:  # seconds
            from build_engine.transformers_model import TransformersModel, versions

            self._theirs = TransformersModel(checkpoint)
            facts |= versions()
        self._report = Report(facts=facts)
        if missing:
            self._report.notes.append(
                f"nothing was compared with transformers: {' and '.join(missing)} not installed "
                "(make .venv/.oracle)"
            )

    def run(self, progress: Progress) -> Report:
        """Take every step that is not done yet."""
        self._go_on()
        parts = self._parts()
        steps: dict[str, Callable[[], None]] = {
            "keys": self._keys,
            "inventory": self._inventory,
            "files": self._files,
            "text": self._text,
            "sound": self._sound,
        }
        steps |= {name: functools.partial(self._part, name, *part) for name, part in parts.items()}
        steps |= {"towers": self._towers, "other tensors": self._others}
        for done, (step, take) in enumerate(steps.items()):
            progress("check", done, len(steps))
            if step in self._report.done:
                continue
            try:
                take()
            except CheckpointError as error:
                self._fault(error)
            self._report.tensors |= self._checkpoint.read
            self._report.done.append(step)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            self._report.facts["most memory"] = f"{peak / 1e9:.1f} GB"
            _put(self._state, msgspec.json.encode(self._report))
            self._checkpoint.release()
        progress("check", len(steps), len(steps))
        return self._report

    def _go_on(self) -> None:
        about = [self._checkpoint.config, self._checkpoint.generation, self._report.facts]
        text = json.dumps([*about, _stamps(self._checkpoint.folder)], sort_keys=True, default=str)
        self._report.source = hashlib.sha256(text.encode()).hexdigest()
        if self._state.exists():
            before = read_report(self._state)
            if before.source == self._report.source:
                self._report = before
                self._checkpoint.read |= before.tensors

    def _fault(self, error: CheckpointError) -> None:
        found = _found(error, self._checkpoint.folder)
        if found not in self._report.faults:
            self._report.faults.append(found)

    def _keys(self) -> None:
        decoder = self._spec.decoder
        self._report.keys = _as_dicts(self._checkpoint.judged())
        self._report.facts |= {
            "blocks": decoder.pattern,
            "quantization": self._checkpoint.quantization,
        }

    def _inventory(self) -> None:
        for error in faults(self._checkpoint):
            self._fault(error)
            if len(self._report.faults) == MOST_FAULTS:
                self._report.notes.append(f"after {MOST_FAULTS} faults no others were looked for")
                break
        checkpoint, sizes = self._checkpoint, Counter[str]()
        for name in checkpoint.names():
            try:
                sizes[str(checkpoint.dtype(name))] += checkpoint.n_bytes(name)
            except CheckpointError:  # one of the faults
                continue
        shards = sorted({checkpoint.shard(name) for name in checkpoint.names()})
        paths = [checkpoint.folder / shard for shard in shards]
        total = sum(path.stat().st_size for path in paths if path.exists())
        self._report.facts |= {
            "tensors": f"{len(checkpoint.names())}",
            "shards": f"{len(shards)}, {total:,} bytes",
            "dtypes": ", ".join(f"{n:,} bytes {dtype}" for dtype, n in sorted(sizes.items())),
        }
        if len(shards) in PUBLISHED_BYTES:
            n_bytes, whose = PUBLISHED_BYTES[len(shards)]
            same = "as" if n_bytes == total else f"{total - n_bytes:+,} bytes beside"
            self._report.notes.append(f"the shards are {same} {whose}")

    def _files(self) -> None:
        folder = self._checkpoint.folder
        for path in sorted(folder.iterdir()):
            if path.suffix in SMALL_FILES and path.is_file():
                self._report.files[path.name] = _sha256(path)
        told = dict(_told_hashes(folder))
        revisions = {path.read_text().split()[0] for path in _metadata(folder)}
        if revisions:
            self._report.facts["revision"] = ", ".join(sorted(revisions))
        for name, expected in told.items():
            if _hash_like(folder / name, expected) != expected:
                self._fault(CheckpointError(name, "is not what was published", "download it again"))
        if told:
            self._report.notes.append(f"{len(told)} files have the hashes that were published")
        else:
            self._report.notes.append(
                "no hashes lie beside the files: `hf download --local-dir` leaves them"
            )

    def _text(self) -> None:
        """Tokens of texts, and prompts by the template."""
        folder = self._checkpoint.folder
        ours, template = Tokenizer(folder), ChatTemplate(folder)
        theirs = self._beside(lambda model: model.tokenizer())
        if theirs is None:
            return
        for i, text in enumerate(TEXTS):
            expected = theirs(text, add_special_tokens=False).input_ids
            if ours.encode(text).tolist() != expected:
                self._differs("tokenizer.json", f"text {i + 1} has other tokens")
        for i, (messages, thinking, tools) in enumerate(
            itertools.product(CHATS, (False, True), ([], [TOOL]))
        ):
            expected = theirs.apply_chat_template(
                messages,
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
            )
            if template.render(messages, thinking=thinking, tools=tools) != expected:
                self._differs("chat_template.jinja", f"chat {i + 1} is another prompt")

    def _differs(self, thing: str, what: str) -> None:
        self._fault(CheckpointError(thing, f"{what} than transformers makes of it", "report this"))

    def _sound(self) -> None:
        samples = np.random.default_rng(0).standard_normal(N_SAMPLES).astype(np.float32) * 0.1
        theirs = self._beside(lambda model: model.mel(samples))
        if theirs is not None:
            ours = log_mel(samples, self._spec.audio.n_mels)
            self._compared("log-mel", float(np.abs(ours - theirs).max()), MEL_TOLERANCE)

    def _parts(self) -> dict[str, tuple[list[Packed], int]]:
        """Of the decoder: its tensors and its number, by the part's name."""
        parts: dict[str, tuple[list[Packed], int]] = {}
        for packed in packed_tensors(self._spec.decoder):
            layer = packed.name.split(".")[1] if packed.name.startswith("layers.") else packed.name
            name, number = ("head", -1) if layer in ("norm", "head") else (layer, -1)
            if layer.isdecimal():
                number = int(layer)
                name = f"block {number}, {LAYER_LETTERS[self._spec.decoder.pattern[number]]}"
            parts.setdefault(name, ([], number))[0].append(packed)
        return parts

    def _part(self, name: str, tensors: list[Packed], number: int) -> None:
        """Compare one part, on the rows that the parts before it made."""
        spec, ids = self._spec.decoder, self._ids()
        chosen, each, their_each = self._chosen(), None, None
        with tempfile.TemporaryDirectory(dir=self._state.parent, prefix=".check.") as scratch:
            path = Path(scratch) / "part.safetensors"
            write_tensors(self._checkpoint, tensors, path, lambda *_: None)
            file = SafetensorsFile(path)
            stored = {n: file.tensor(n) for n in file.names()}
            ops = CpuOps(spec, KernelWeights(stored), DecoderState.empty(spec), exact=True)
            if name == "embeddings":
                ours = DecoderWeights(stored).rows("embeddings", ids)
                theirs = self._beside(lambda model: model.embeddings(ids))
            elif name == "head":
                ours = head(ops, self._rows())
                theirs = self._beside(lambda model: model.head(self._rows()))
            else:  # what it adds: the residual stream may be much larger
                rows = self._rows()
                ours = mixed(ops, spec, number, rows)
                theirs, their_each = self._beside(lambda m: m.mixed(number, rows, chosen)) or (
                    None,
                    None,
                )
                if their_each is not None:
                    weights = np.ones(chosen.shape, np.float32)
                    each = ops.experts(rows[: len(chosen)], chosen, weights, number)
            if name != "head":
                after = ours if name == "embeddings" else self._rows() + ours
                with self._rows_path.open("wb") as out:
                    np.save(out, after)
        if theirs is not None:
            errors = np.sort(np.abs(ours - theirs).max(axis=1)) / np.abs(theirs).max()
            # at a near tie a row may take another expert by rounding alone
            routed = number >= 0 and spec.pattern[number] == "E"
            self._compared(name, float(errors[-2] if routed else errors[-1]))
        if each is not None and their_each is not None:
            error = float(np.abs(each - their_each).max() / np.abs(their_each).max())
            self._compared(f"block {number}, each of its experts", error)

    def _ids(self) -> NDArray[np.int32]:
        vocabulary, n = self._spec.decoder.vocab_size, max(N_ROWS, len(self._chosen()))
        return np.random.default_rng(0).integers(0, vocabulary, n, np.int32)

    def _chosen(self) -> NDArray[np.int32]:
        """[m, k] experts, each at least once, so that none is left to chance."""
        n, k = self._spec.decoder.n_experts, self._spec.decoder.n_experts_per_token
        return np.resize(np.arange(n, dtype=np.int32), (-(-n // k), k))

    def _rows(self) -> Float32:
        rows: Float32 = np.load(self._rows_path)
        return rows

    def _towers(self) -> None:
        """Both encoders, each as a whole: their graphs are what a bundle holds of them."""
        rng, spec = np.random.default_rng(1), self._spec
        side, (rows, columns) = spec.vision.patch_size, GRID
        patches = rng.standard_normal((rows * columns, 3 * side**2), np.float32)
        shape = (spec.vision.tubelet_frames, 3, rows * side, columns * side)
        frames = rng.standard_normal(shape, np.float32)
        mel = rng.standard_normal((N_MEL_FRAMES, spec.audio.n_mels), np.float32)
        cut = frames.reshape(1, shape[0], 3, rows, side, columns, side)
        cut = cut.transpose(0, 3, 5, 1, 2, 4, 6).reshape(1, rows * columns, -1)
        with tempfile.TemporaryDirectory(dir=self._state.parent, prefix=".check.") as scratch:
            write_encoders(self._checkpoint, Path(scratch))
            encoders = Encoders(Path(scratch), spec, frugal=True)
            image = encoders.encode_image(patches, GRID)
            tubelets = encoders.encode_tubelets(cut, GRID)
            sound = encoders.encode_audio(mel)
            del encoders
        seen = self._beside(lambda model: model.vision(patches, frames, GRID)) or (None, None)
        heard = self._beside(lambda model: model.audio(mel))
        pairs = zip((image, tubelets, sound), (*seen, heard), strict=True)
        for name, (ours, theirs) in zip(("pictures", "tubelets", "sound"), pairs, strict=True):
            if theirs is not None:
                self._compared(name, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))

    def _beside(self, compute: Callable[[Any], Any]) -> Any:
        """What transformers makes of it; None where it cannot, or is not there."""
        if self._theirs is None:
            return None
        try:
            return compute(self._theirs)
        except self._theirs.ERRORS as error:
            text = _without(self._checkpoint.folder, " ".join(str(error).split()))
            self._report.notes.append(f"transformers could not compute a part ({text})")
            return None

    def _compared(self, part: str, error: float, tolerance: float = TOLERANCE) -> None:
        self._report.compared.append(Compared(part, error))
        if not error <= tolerance:
            problem = f"differs from transformers by {error:.1e}; {tolerance:.0e} may be"
            self._fault(CheckpointError(part, problem, "report this, with the report"))

    def _others(self) -> None:
        """Hash what nothing reads, too."""
        for name in self._checkpoint.names():
            if name not in self._report.tensors and unread(name) is not None:
                self._checkpoint.whole(name, self._checkpoint.shape(name))


def _keys_of(folder: Path) -> list[dict[str, Any]]:
    """Keys of a config.json that cannot be served."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return _as_dicts(judge_config(published_names(config)))
    except (OSError, ValueError, AttributeError, TypeError, CheckpointError):
        return []  # the fault that was found says what is wrong


def _as_dicts(keys: Iterable[Judged]) -> list[dict[str, Any]]:
    """Sections are there key by key, and long tables are files of their own."""
    return [asdict(judged) for judged in keys if not isinstance(judged.value, dict)]


def _differences(report: Report, reference: Report) -> Iterator[Found]:
    """What is not as another report of the same checkpoint says."""
    for kind, here, there in (
        ("file", report.files, reference.files),
        ("tensor", report.tensors, reference.tensors),
    ):
        owner = {digest: name for name, digest in there.items()}
        for name in sorted({*here, *there}):
            if here.get(name) == there.get(name):
                continue
            problem = f"is another {kind} than in the report that this is held against"
            if name not in here or name not in there:
                problem = f"is {'only' if name in here else 'not'} here, unlike in that report"
            elif here[name] in owner and kind == "tensor":
                problem = f"holds what is {owner[here[name]]} in that report"
            yield Found(name, problem)
    here_keys, there_keys = ({k["name"]: k["value"] for k in r.keys} for r in (report, reference))
    for name in sorted({*here_keys, *there_keys}):
        if here_keys.get(name) != there_keys.get(name):
            problem = f"is {here_keys.get(name)!r}, and {there_keys.get(name)!r} in that report"
            yield Found(name, problem)


def _metadata(folder: Path) -> list[Path]:
    """What a download keeps of each file: its revision, its hash and when it was."""
    return sorted(p for p in (folder / DOWNLOADED).glob("*.metadata") if p.read_text().strip())


def _told_hashes(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and hash of each file, as a download of the Hugging Face hub left them."""
    for path in _metadata(folder):
        lines = path.read_text().split()
        name = path.name.removesuffix(".metadata")
        if len(lines) >= 2 and (folder / name).exists():
            yield name, lines[1]
    for path in sorted(folder.iterdir()):  # its cache: a link to a file with the hash for a name
        if path.is_symlink() and path.resolve().parent.name == "blobs":
            yield path.name, path.resolve().name


def _hash_like(path: Path, expected: str) -> str:
    """sha256 of a large file, git's hash of a small one: as long as the expected one."""
    if len(expected) == 64:
        return _sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def _stamps(folder: Path) -> list[Any]:
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return [(name, about.st_size, about.st_mtime_ns, about.st_ino) for name, about in stats]


def _found(error: CheckpointError, folder: Path) -> Found:
    """Without the names of folders."""
    return Found(
        _without(folder, error.thing), _without(folder, f"{error.problem}; {error.remedy}")
    )


def _without(folder: Path, text: str) -> str:
    for path in {str(folder.resolve()), str(folder.absolute()), str(folder)} - {"."}:
        text = text.replace(f"{path}{os.sep}", "").replace(path, "the folder")
    return text


def _put(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.new")
    partial.write_bytes(content)
    os.replace(partial, path)
