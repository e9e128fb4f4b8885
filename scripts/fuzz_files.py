"""Make wrong bundles and checkpoints out of good ones, and see that each ends in one clear error.

First what is wrong by construction: of each kind of tensor another dtype or shape, of each kind of
file one that is missing, a pipe or a link, of headers what no writer writes, all with the
right hashes. Every one must be refused. Then files with random changes, as many as one likes: each
is refused or runs. None ends in a traceback, hangs, or takes gigabytes: a process of its own opens
them, which is watched. The last line printed is JSON; ends with 1 if anything failed.

Usage:
    python scripts/fuzz_files.py --n 2000 --seed 1
    python scripts/fuzz_files.py --n 0              # only what is wrong by construction
    python scripts/fuzz_files.py --only FOLDER      # one again
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz_media import Worker, main
from make_tiny_checkpoint import make_checkpoint
from tqdm import tqdm

from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.survey import require_sound
from build_engine.verify import check_prompts
from edge.engines.bundle import DECODER_WEIGHTS, ENCODERS, MANIFEST, SELF_CHECK, Bundle, prompts
from edge.engines.cpu import CpuEngine
from edge.engines.layout import quantized_layouts
from edge.engines.safetensors import DTYPES, SafetensorsFile, write_safetensors
from edge.engines.self_check import warm_up
from edge.errors import BundleError, CheckpointError, EdgeError
from edge.model.grammars import vocabulary

KEPT = Path(".cache/fuzz/files")
Change = Callable[[Path], None]
OTHER_DTYPE = {"F32": "I32", "BF16": "F16", "U8": "I8", "F8_E4M3": "U8"}


@dataclass(frozen=True)
class Fault:
    """One way to make a good folder wrong."""

    name: str
    change: Change
    """Of a copy of it."""


def opened(path: Path) -> dict[str, object]:
    """Whether a bundle, a checkpoint or a file of tensors is refused or can be used.

    Raises:
        Exception: anything that is no clear error.
    """
    try:
        if path.suffix == ".safetensors":
            file = SafetensorsFile(path)
            for name in file.names():
                file.tensor(name)
        elif (path / "config.json").is_symlink() or (path / "config.json").exists():
            checkpoint = Checkpoint(path)
            require_sound(checkpoint)
            check_prompts(path)
        else:
            bundle = Bundle(path)
            _, tokenizer = prompts(bundle)
            n_vocab = bundle.manifest.spec.decoder.vocab_size
            vocabulary(tokenizer, n_vocab, (tokenizer.special.turn_end,))
            warm_up(CpuEngine(bundle, 1), bundle)
    except EdgeError as error:
        if "\n" in str(error) or not error.remedy:
            raise AssertionError(f"no clear error: {error}") from error
        end = {"end": "refused", "error": str(error), "code": error.exit_code}
        kinds = CheckpointError, BundleError
        return {**end, "kind": "" if isinstance(error, kinds) else type(error).__name__}
    return {"end": "opened"}


def rehash(folder: Path) -> None:
    """Let the manifest say what its files are now."""
    import hashlib

    path = folder / MANIFEST
    manifest = json.loads(path.read_bytes())
    for name, entry in manifest["files"].items():
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            entry["n_bytes"] = len(content)
            entry["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest))


# -- tensors ---------------------------------------------------------------------------------------


def _tensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    file = SafetensorsFile(path)
    return {name: np.array(file.tensor(name)) for name in file.names()}


def _kind(name: str) -> str:
    return re.sub(r"\d+", "N", name)


def _another(values: np.ndarray[Any, Any], how: str) -> np.ndarray[Any, Any] | None:
    """The same tensor in another form; None where there is no other."""
    name = next(name for name, dtype in DTYPES.items() if dtype == values.dtype)
    if how == "dtype":
        return np.asarray(values.view(DTYPES[OTHER_DTYPE[name]]))
    if how == "narrow" and values.ndim and values.itemsize > 1:
        return np.asarray(values.astype(np.float16 if name == "F32" else np.uint8))
    if how == "wide":
        return values.astype(np.float64)
    if how == "lifted":
        return np.asarray(values[None])
    if how == "flat" and values.ndim > 1:
        return values.reshape(-1)
    if how == "turned" and values.ndim > 1 and values.shape[0] != values.shape[-1]:
        return np.ascontiguousarray(np.moveaxis(values, 0, -1))
    if how == "short" and values.ndim and len(values) > 1:
        return values[:-1]
    if how == "long" and values.ndim:
        return np.asarray(np.concatenate([values, values[-1:]]))
    if how == "empty" and values.ndim:
        return values[:0]
    return None


FORMS = ("dtype", "narrow", "wide", "lifted", "flat", "turned", "short", "long", "empty")


def tensor_faults(bundle: Path) -> Iterator[Fault]:
    """Each kind of tensor of decoder.safetensors, in another form, under another name, or away."""
    tensors = _tensors(bundle / DECODER_WEIGHTS)
    seen: set[str] = set()
    for name, values in tensors.items():
        if _kind(name) in seen:
            continue
        seen.add(_kind(name))
        for how in FORMS:
            other = _another(values, how)
            if other is not None:
                yield Fault(f"{name} {how}", _with_tensor(name, other))
        yield Fault(f"{name} missing", _with_tensor(name, None))
        yield Fault(f"{name} renamed", _with_tensor(name, None, f"{name}\nrenamed"))


def _with_tensor(name: str, values: np.ndarray[Any, Any] | None, extra: str = "") -> Change:
    def change(folder: Path) -> None:
        path = folder / DECODER_WEIGHTS
        tensors = _tensors(path)
        if extra:
            tensors[extra] = tensors[name]
        tensors.pop(name)
        if values is not None:
            tensors[name] = values
        _write_tensors(path, tensors)
        rehash(folder)

    return change


def _write_tensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    path.unlink()  # the copy may be mapped
    write_safetensors(path, tensors)


def quantize_in_form(folder: Path) -> None:
    """Give a bundle tensors in all formats, for what looks at their form only."""
    path = folder / DECODER_WEIGHTS
    tensors = _tensors(path)
    forms = ("nvfp4", "fp8", "int4")
    matrices = [n for n, values in tensors.items() if values.ndim == 2 and n.endswith("_proj")]
    for i, name in enumerate([*matrices, "head"]):
        n, k = tensors[name].shape
        form = forms[i % 3] if k % 128 == 0 and n % 2 == 0 else forms[i % 2]
        parts = quantized_layouts((n, k))[form]  # type: ignore[index]
        del tensors[name]
        for end, (dtype, shape) in parts.items():
            tensors[name + end] = np.zeros(shape, dtype)
    _write_tensors(path, tensors)
    rehash(folder)


# -- headers ---------------------------------------------------------------------------------------


def headers() -> Iterator[tuple[str, bytes]]:
    """Files of tensors whose header no writer writes: two tensors, of 16 and 24 bytes."""
    good = {
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [6], "data_offsets": [16, 40]},
    }

    def file(header: object, data: bytes = bytes(40), length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return (len(text) if length is None else length).to_bytes(8, "little") + text + data

    def entry(**changes: object) -> bytes:
        return file({**good, "b": {**good["b"], **changes}})

    text = json.dumps(good).encode()
    yield "empty file", b""
    yield "seven bytes", bytes(7)
    yield "length of 2^64 - 1", file(good, length=(1 << 64) - 1)
    yield "length of 2^63", file(good, length=1 << 63)
    yield "length beyond the file", file(good, length=10_000)
    yield "length of 0", file(good, length=0)
    yield "length that cuts the header", file(good, length=len(text) - 1)
    yield "no JSON", file(b"not JSON")
    yield "no UTF-8", file(text.replace(b'"a"', b'"\xff"'))
    yield "half a surrogate", file(text.replace(b'"a"', b'"\\ud800"'))
    yield "a list", file([good])
    yield "a number", file(b"17")
    yield "null", file(b"null")
    yield "100,000 levels", file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield "a tensor is null", file({**good, "b": None})
    yield "a tensor is a list", file({**good, "b": [1]})
    for key in ("dtype", "shape", "data_offsets"):
        rest = {k: v for k, v in good["b"].items() if k != key}
        yield f"without {key}", file({**good, "b": rest})
    for dtype in ("F33", "f32", "", None, 32, ["F32"]):
        yield f"dtype {dtype!r}", entry(dtype=dtype)
    for shape in (
        [-6],
        [6.0],
        ["6"],
        [True, 6],
        None,
        6,
        "6",
        {"0": 6},
        [[6]],
        [1 << 64],
        [1 << 63],
    ):
        yield f"shape {shape!r}", entry(shape=shape)
    yield "shape of too many values", entry(shape=[1 << 40, 1 << 40])
    yield "shape that overflows to 6", entry(shape=[3, (1 << 63) + 2])
    yield "shape that overflows beside 0", entry(shape=[0, 1 << 62, 4], data_offsets=[16, 16])
    yield "shape of 100 dimensions", entry(shape=[6, *[1] * 99])
    yield "shape smaller than its bytes", entry(shape=[5])
    yield "shape larger than its bytes", entry(shape=[7])
    for offsets in ([16], [16, 40, 40], [16.0, 40], ["16", "40"], None, 16, [True, 40], {"0": 16}):
        yield f"data_offsets {offsets!r}", entry(data_offsets=offsets)
    yield "negative offsets", entry(data_offsets=[-40, -16])
    yield "reversed offsets", entry(data_offsets=[40, 16])
    yield "offsets of 2^64", entry(data_offsets=[1 << 64, (1 << 64) + 24])
    yield "overlap", entry(data_offsets=[8, 32])
    yield "the same bytes twice", file({**good, "b": {**good["a"]}}, bytes(16))
    yield "hole", file({**good, "b": {**good["b"], "data_offsets": [20, 44]}}, bytes(44))
    yield "hole in front", file({"b": good["b"]})
    yield "beyond the file", entry(data_offsets=[16, 400], shape=[96])
    yield "a byte short", file(good, bytes(39))
    yield "a byte more", file(good, bytes(41))
    yield "a name twice", file(text.replace(b'"b"', b'"a"'))
    yield "a key twice", file(text.replace(b'"shape": [6]', b'"shape": [6], "shape": [6]'))
    yield "NaN", file(text.replace(b"[6]", b"[NaN]"))
    yield "1e400", file(text.replace(b"[6]", b"[1e400]"))
    yield "a number of 10,000 digits", file(text.replace(b"[6]", b"[" + b"9" * 10_000 + b"]"))
    yield "metadata is a number", file({"__metadata__": 1, **good})
    yield "metadata has a number", file({"__metadata__": {"a": 1}, **good})
    yield "metadata is a tensor", file({"__metadata__": good["a"], "b": good["b"]})
    yield (
        "half a byte",
        file({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, bytes(1)),
    )
    yield "spaces in front", file(b"  " + text)
    yield "text behind", file(text + b"x")
    yield "a name that writes to terminals", file({"\x1b[31m\n": good["a"], "b": {}})


# -- the other files -------------------------------------------------------------------------------


def self_check_faults(bundle: Path) -> Iterator[Fault]:
    """Each array of selfcheck.npz in another form; what zip and numpy files may hide."""
    with np.load(bundle / SELF_CHECK) as stored:
        arrays = dict(stored)
    needed = [
        name for name in arrays if name.split(".")[1] not in ("restored", "greedy", "shortfall")
    ]
    for name, values in arrays.items():
        others = {
            "dtype": values.view(np.uint32),
            "wide": values.astype(np.float64),
            "lifted": values[None],
            "flat": values.reshape(-1, 1),
            "short": values[..., :-1] if values.ndim > 1 else values[:0],
            "swapped": values.astype(values.dtype.newbyteorder()),
            "object": values.astype(object),
        }
        for how, other in others.items():
            yield Fault(f"{name} {how}", _with_arrays({**arrays, name: other}))
        if name in needed:
            rest = {other: v for other, v in arrays.items() if other != name}
            yield Fault(f"{name} missing", _with_arrays(rest))
    yield Fault("self-check: one more", _with_arrays({**arrays, "input.more": np.zeros(3)}))
    yield Fault("self-check: compressed", _with_arrays(arrays, compressed=True))
    bomb = {**arrays, "input.ids": np.zeros(300_000_000, np.uint8)}
    yield Fault("self-check: bomb", _with_arrays(bomb, compressed=True))
    for ids in ([-1], [1 << 30]):
        wrong = np.full_like(arrays["input.ids"], ids[0])
        yield Fault(f"self-check: ids {ids}", _with_arrays({**arrays, "input.ids": wrong}))
    columns = np.asfortranarray(arrays["input.image"])
    yield Fault("self-check: by column", _with_arrays({**arrays, "input.image": columns}))
    many = np.zeros((5000, arrays["input.mel"].shape[1]), np.float32)
    yield Fault("self-check: an hour", _with_arrays({**arrays, "input.mel": many}))

    def lying(folder: Path) -> None:
        path = folder / SELF_CHECK
        content = path.read_bytes()
        path.write_bytes(content.replace(b"'shape': (24,)", b"'shape': (9**9,)", 1))
        rehash(folder)

    yield Fault("self-check: no shape", lying)


def _with_arrays(arrays: dict[str, Any], *, compressed: bool = False) -> Change:
    def change(folder: Path) -> None:
        (np.savez_compressed if compressed else np.savez)(folder / SELF_CHECK, **arrays)
        rehash(folder)

    return change


def graph_faults(bundle: Path) -> Iterator[Fault]:
    """Graphs that take weights from elsewhere, and weights and bindings of another form."""
    for file in ENCODERS:
        places = {
            "above": "../secret",
            "absolute": "/etc/passwd",
            "manifest": MANIFEST,
            "another's": f"{next(name for name in ENCODERS if name != file)}.data",
            "absent": "nowhere",
            "inside": f"./{file}.data",
        }
        for how, place in places.items():
            yield Fault(f"{file}: weights {how}", _external(file, "location", place))
        for key, value in (
            *(("offset", "99999999999"), ("offset", "-64"), ("offset", "x")),
            *(("length", "99999999999"), ("length", "-1")),
        ):
            yield Fault(f"{file}: {key} {value}", _external(file, key, value))
        model = onnx.load(bundle / file, load_external_data=False)
        seen: set[str] = set()
        for i, tensor in enumerate(model.graph.initializer):
            kind = f"{_kind(tensor.name)}{len(tensor.dims)}"
            if tensor.external_data and kind not in seen:
                seen.add(kind)
                yield Fault(f"{file}: {tensor.name} dims", _initializer(file, i, "dims"))
                yield Fault(f"{file}: {tensor.name} dtype", _initializer(file, i, "dtype"))
        for i, place in enumerate(model.graph.input):
            yield Fault(f"{file}: {place.name} wider", _binding(file, i))


def _edit_graph(file: str, edit: Callable[[onnx.ModelProto], None]) -> Change:
    def change(folder: Path) -> None:
        model = onnx.load(folder / file, load_external_data=False)
        edit(model)
        (folder / file).write_bytes(model.SerializeToString())
        rehash(folder)

    return change


def _external(file: str, key: str, value: str) -> Change:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value

    return _edit_graph(file, edit)


def _initializer(file: str, index: int, how: str) -> Change:
    def edit(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[index]
        if how == "dtype":
            tensor.data_type = onnx.TensorProto.INT32
        else:
            tensor.dims[0] += 1  # ONNX Runtime compares it with the bytes

    return _edit_graph(file, edit)


def _binding(file: str, index: int) -> Change:
    def edit(model: onnx.ModelProto) -> None:
        shape = model.graph.input[index].type.tensor_type.shape
        shape.dim[len(shape.dim) - 1].dim_value += 1

    return _edit_graph(file, edit)


def manifest_faults(bundle: Path) -> Iterator[Fault]:
    """What a manifest says that its files are not, or that makes no sense."""
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    alone = ("max_tokens", "trained_tokens", "stop_ids", "top_k", "max_patches", "state_size")
    for part, fields in manifest["spec"].items():
        for key, value in fields.items():
            wrong: list[object] = ["x", None, [], {}]
            if isinstance(value, int) and not isinstance(value, bool):
                wrong += [-1, 1 << 40, 1.5] + ([0] if key != "top_k" else [])
            for other in wrong:
                name = f"manifest: spec.{part}.{key} {other!r}"
                yield Fault(name, _with_manifest(("spec", part, key), other))
            matters = isinstance(value, int) and not isinstance(value, bool) and key not in alone
            if part == "decoder" and matters and "experts_per" not in key and "groups" not in key:
                name = f"manifest: spec.{part}.{key} doubled"
                yield Fault(name, _with_manifest(("spec", part, key), 2 * value))
    yield Fault("manifest: pattern", _with_manifest(("spec", "decoder", "pattern"), "M-"))
    yield Fault("manifest: no layer", _with_manifest(("spec", "decoder", "pattern"), ""))
    swapped = manifest["spec"]["decoder"]["pattern"][::-1] + "M"
    yield Fault("manifest: other layers", _with_manifest(("spec", "decoder", "pattern"), swapped))
    for name in manifest["files"]:
        yield Fault(f"manifest: without {name}", _with_manifest(("files", name), ...))
    for name in (
        "../x",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "x.bin",
        "tokenizer_config.json",
        "a\0b",
    ):
        entry = {"n_bytes": 0, "sha256": "0" * 64}
        yield Fault(f"manifest: lists {name!r}", _with_manifest(("files", name), entry))
    yield Fault("manifest: no files", _with_manifest(("files",), {}))
    yield Fault("manifest: unknown key", _with_manifest(("more",), 1))

    def written(content: bytes) -> Change:
        return lambda folder: (folder / MANIFEST).write_bytes(content) and None  # type: ignore[return-value]

    yield Fault("manifest: 100,000 levels", written(b'{"format":2,"name":' + b"[" * 100_000))
    yield Fault("manifest: 32 MB", written(b" " * (1 << 25)))
    yield Fault("manifest: no UTF-8", written(b'{"format":2,"name":"\xff"}'))
    yield Fault("manifest: empty", written(b""))


def _with_manifest(keys: tuple[str, ...], value: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / MANIFEST
        manifest = at = json.loads(path.read_bytes())
        for key in keys[:-1]:
            at = at[key]
        if value is ...:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value
        path.write_text(json.dumps(manifest))

    return change


def file_faults(bundle: Path) -> Iterator[Fault]:
    """Each file of a bundle as something else, or another's."""
    names = [MANIFEST, *json.loads((bundle / MANIFEST).read_bytes())["files"]]
    for name in names:
        yield Fault(f"{name}: missing", lambda folder, name=name: (folder / name).unlink())  # type: ignore[misc]
        yield Fault(
            f"{name}: a link", _replaced(name, lambda path: path.symlink_to(bundle / path.name))
        )
        yield Fault(f"{name}: a pipe", _replaced(name, os.mkfifo))
        yield Fault(f"{name}: a folder", _replaced(name, Path.mkdir))
        yield Fault(f"{name}: a device", _replaced(name, lambda path: path.symlink_to("/dev/zero")))
        yield Fault(f"{name}: a byte more", _appended(name))
        yield Fault(f"{name}: empty", _replaced(name, Path.touch, hashed=name != MANIFEST))
        yield Fault(
            f"{name}: zeros", _replaced(name, lambda path: path.write_bytes(bytes(4096)), True)
        )


def _replaced(name: str, make: Callable[[Path], object], hashed: bool = False) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)
        if hashed and name != MANIFEST:
            rehash(folder)

    return change


def _appended(name: str) -> Change:
    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(b"x")

    return change


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def text_faults(bundle: Path) -> Iterator[Fault]:
    """Tokenizers and templates that are none."""
    tokenizer = json.loads((bundle / "tokenizer.json").read_bytes())

    def with_tokenizer(**changes: object) -> Change:
        return _written("tokenizer.json", json.dumps({**tokenizer, **changes}).encode())

    model = tokenizer["model"]
    yield Fault("tokenizer: a list", _written("tokenizer.json", b"[]"))
    yield Fault("tokenizer: deep", _written("tokenizer.json", b"[" * 200_000))
    yield Fault("tokenizer: no UTF-8", _written("tokenizer.json", b"\xff\xfe{}"))
    yield Fault("tokenizer: no model", with_tokenizer(model={}))
    yield Fault("tokenizer: no tokens", with_tokenizer(added_tokens=[]))
    yield Fault("tokenizer: no vocabulary", with_tokenizer(model={**model, "vocab": {}}))
    merges = {**model, "merges": ["a b c", "x"]}
    yield Fault("tokenizer: wrong merges", with_tokenizer(model=merges))
    unknown = {**model, "merges": [["no such", "token"]]}
    yield Fault("tokenizer: unknown merges", with_tokenizer(model=unknown))
    vocab = {**model["vocab"], "another": 1 << 20}
    yield Fault("tokenizer: beyond the model", with_tokenizer(model={**model, "vocab": vocab}))
    replace = {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    yield Fault("tokenizer: pattern", with_tokenizer(normalizer=replace))
    swallow = {"type": "Replace", "pattern": {"Regex": "(?s).*"}, "content": ""}
    yield Fault("tokenizer: swallows", with_tokenizer(normalizer=swallow))
    chars = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    yield Fault("tokenizer: charsmap", with_tokenizer(normalizer=chars))
    long = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    yield Fault("tokenizer: charsmap of 4 GB", with_tokenizer(normalizer=long))
    for template in (
        *(
            "{%",
            "{{ 1/0 }}",
            "{{ x.y.z }}",
            "{{ messages[0].role }}",
            "{{ raise_exception('no') }}",
        ),
        *("", "{% for i in range(10**9) %}{% endfor %}", LOOPS, "{% include '/etc/passwd' %}"),
        *("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ 'a' * (10**12) }}"),
        "{% if a %}" * 500 + "{% endif %}" * 500,
        "{% for a in b %}" * 50 + "{% endfor %}" * 50,
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
        "{{ " + "-" * 20_000 + "1 }}",
        "{{ [" * 1 + "[" * 200 + "]" * 200 + "] }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "\ufeff\x00",
    ):
        name = f"template {template[:40]!r} ({len(template)})"
        yield Fault(name, _written("chat_template.jinja", template.encode()))
    yield Fault("template: no UTF-8", _written("chat_template.jinja", b"\xff\xfe"))
    yield Fault("template: 32 MB", _written("chat_template.jinja", b"a" * (1 << 25)))


def _written(name: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)
        rehash(folder)

    return change


def faults(bundle: Path, quantized: Path) -> list[Fault]:
    """All that is wrong by construction, of a bundle and of one with quantized tensors."""
    kinds = [_kind(fault.name) for fault in tensor_faults(bundle)]
    others = [fault for fault in tensor_faults(quantized) if _kind(fault.name) not in kinds]
    return [
        *tensor_faults(bundle),
        *(Fault(f"quantized {f.name}", _on(quantized, f.change)) for f in others),
        *(Fault(f"header: {name}", _header(content)) for name, content in headers()),
        *self_check_faults(bundle),
        *graph_faults(bundle),
        *manifest_faults(bundle),
        *file_faults(bundle),
        *text_faults(bundle),
    ]


def a_few(wrong: list[Fault]) -> list[Fault]:
    """Of each kind of tensor and of file, in turn another one of its faults."""
    groups: dict[str, list[Fault]] = {}
    for fault in wrong:
        groups.setdefault(
            " ".join(fault.name.split()[: 1 + fault.name.startswith("q")]), []
        ).append(fault)
    chosen = []
    for i, group in enumerate(groups.values()):
        step = max(1, len(group) // (4 if group[0].name.split()[0].endswith(":") else 1))
        chosen += group[i % step :: step]
    return chosen


def _on(original: Path, change: Change) -> Change:
    """The change, of a copy of another bundle."""

    def changed(folder: Path) -> None:
        shutil.rmtree(folder)
        shutil.copytree(original, folder)
        change(folder)

    return changed


def _header(content: bytes) -> Change:
    return _written(DECODER_WEIGHTS, content)


# -- random changes --------------------------------------------------------------------------------

LEAVES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 255, 65536, 1 << 31, 1 << 63, 10**400, 0.5, -0.0, 1e308),
    *("", "x", "\ud800", "\x1b[2J\n", "<|im_end|>", "a" * 10_000, "../x", "NaN"),
    *([], {}, [[]], [0] * 100, {"a": 1}, ["x", None]),
)


def disturb(value: Any, chance: random.Random) -> Any:
    """A JSON value with one of its parts replaced, removed, doubled or buried."""
    at = value
    parents: list[tuple[Any, Any]] = []
    while isinstance(at, (dict, list)) and at and (not parents or chance.random() < 0.85):
        keys = list(at) if isinstance(at, dict) else range(len(at))
        parents.append((at, chance.choice(keys)))
        at = at[parents[-1][1]]
    if not parents:
        return chance.choice(LEAVES)
    owner, key = parents[-1]
    how = chance.randrange(8)
    if how == 0:
        del owner[key]
    elif how == 1:
        deep: Any = owner[key]
        for _ in range(chance.choice((1, 60, 700))):
            deep = [deep]
        owner[key] = deep
    elif how == 2 and isinstance(owner, dict):
        owner[chance.choice(("", "x", "\n", "type", str(key) + "s"))] = owner[key]
    elif how == 3 and isinstance(at, (int, float)) and not isinstance(at, bool):
        owner[key] = chance.choice((at + 1, at - 1, 2 * at, -at, at + 0.5))
    else:
        owner[key] = chance.choice(LEAVES)
    return value


def _flip(content: bytes, chance: random.Random) -> bytes:
    flipped = bytearray(content)
    head = min(len(content), chance.choice((64, 4096, 1 << 20)))
    for _ in range(chance.choice((1, 1, 4, 64))):
        flipped[chance.randrange(head)] = chance.choice((0, 255, 127, chance.randrange(256)))
    if chance.random() < 0.2:
        del flipped[chance.randrange(len(flipped)) :]
    return bytes(flipped)


BUNDLE_JSON, CHECKPOINT_JSON = (
    (MANIFEST, "tokenizer.json"),
    ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"),
)


def random_change(folder: Path, is_bundle: bool, chance: random.Random) -> str:
    """Change a folder; what was changed."""
    names = sorted(path.name for path in folder.iterdir())
    name = chance.choice(names)
    if chance.random() < 0.5:
        name = chance.choice([n for n in names if n.endswith(".json")])
    path = folder / name
    content = path.read_bytes()
    if name.endswith(".json") and chance.random() < 0.8:
        value = json.loads(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            value = disturb(value, chance)
        try:
            path.write_text(json.dumps(value))
        except (RecursionError, ValueError):
            path.write_bytes(b"[" * 5000)
    elif name.endswith(".safetensors") and chance.random() < 0.8:
        length = int.from_bytes(content[:8], "little")
        header = disturb(json.loads(content[8 : 8 + length]), chance)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    else:
        path.write_bytes(_flip(content, chance))
    if is_bundle and name != MANIFEST:
        rehash(folder)
    return name


# -- running ---------------------------------------------------------------------------------------


def originals(folder: Path) -> tuple[Path, Path, Path]:
    """A checkpoint, its bundle, and a bundle with quantized tensors."""
    checkpoint, bundle, quantized = (folder / n for n in ("checkpoint", "bundle", "quantized"))
    make_checkpoint(checkpoint, "wide")
    build_bundle(checkpoint, bundle, "cpu", lambda *_: None)
    shutil.copytree(bundle, quantized)
    quantize_in_form(quantized)
    Bundle(quantized)
    return checkpoint, bundle, quantized


def refused(found: dict[str, object]) -> bool:
    """Whether it was, by name, and so that a supervisor does not try again."""
    return found["end"] == "refused" and found["code"] in (65, 78) and not found["kind"]


def fuzz(n: int, seed: int, folder: Path) -> dict[str, object]:
    """Open what is wrong by construction, and `n` folders with random changes."""
    checkpoint, bundle, quantized = originals(folder)
    worker, ends, failures = Worker(opened), Counter[str](), list[str]()
    most_mb, slowest = 0, (0.0, "")

    def look(copy: Path, name: str) -> dict[str, object]:
        nonlocal most_mb, slowest
        found = worker.open(copy)
        most_mb = max(most_mb, round(int(str(found.get("n_bytes", 0))) / 1e6))
        slowest = max(slowest, (round(float(str(found.get("seconds", 0))), 2), name))
        return found

    for path in (checkpoint, bundle):
        if (found := worker.open(path))["end"] != "opened":
            failures.append(f"{path}: whole and {found}")
    wrong = faults(bundle, quantized)
    for fault in tqdm(wrong, disable=None):
        copy = folder / "copy"
        shutil.copytree(bundle, copy)
        fault.change(copy)
        if not refused(found := look(copy, fault.name)):
            failures.append(f"{fault.name}: {found}")
        shutil.rmtree(copy)
    for number in tqdm(range(n), disable=None):
        chance = random.Random(f"{seed} {number}")
        is_bundle = chance.random() < 0.6
        copy = folder / f"{seed}_{number}"
        shutil.copytree(bundle if is_bundle else checkpoint, copy)
        name = random_change(copy, is_bundle, chance)
        found = look(copy, f"{copy.name} {name}")
        ends[str(found["end"])] += 1
        if found["end"] in ("opened", "refused"):
            shutil.rmtree(copy)
        else:
            failures.append(f"{copy} ({name}): {found}")
    worker.close()
    return {
        "n_wrong": len(wrong),
        "n_wrong_refused": len(wrong) - sum("whole and" not in f for f in failures),
        "n": n,
        "seed": seed,
        **{f"n_{end}": ends[end] for end in ("opened", "refused", "unclear", "died", "hung")},
        "slowest": slowest,
        "max_mb": most_mb,
        "failures": failures,
    }


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", opened, fuzz, KEPT, 2000))
