"""The `build-engine` command: what it prints, what it hands on, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

import edge
from build_engine import cli, plans
from build_engine.boards import BOARDS
from build_engine.compile import Built
from build_engine.recipe import known_recipes
from edge.engines.bundle import Bundle, Plans
from edge.errors import BundleError, ConfigurationError


@pytest.fixture
def seconds(monkeypatch):
    """A clock of which two readings are 12.3456 s apart."""
    readings = iter([100.0, 112.3456] * 4)
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(readings))


FILES = {"a": SimpleNamespace(n_bytes=1_200_000), "b": SimpleNamespace(n_bytes=34_000)}
MADE = SimpleNamespace(name="tiny", target="cpu", files=FILES)
"""A manifest, as far as it is told."""


@pytest.mark.usefixtures("seconds")
def test_a_bundle_that_was_built_is_told(monkeypatch, capsys):
    asked = []

    def build(checkpoint, out, target, progress, key):
        assert key is None
        progress("verify", 0, 1)
        progress("verify", 1, 1)
        asked.append((str(checkpoint), str(out), target))
        return MADE

    monkeypatch.setattr(cli, "build_bundle", build)
    words = ["bundle", "here", "there", "--target", "cpu"]
    assert cli.main(words) == 0
    assert capsys.readouterr() == ("there: tiny for cpu, 1.2 MB, verified, 12.3 s\n", "")
    assert cli.main([*words, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"bundle": "there", "n_bytes": 1_234_000, "seconds": 12.346}
    assert asked == [("here", "there", "cpu")] * 2


@pytest.mark.usefixtures("seconds")
def test_a_quantization_is_told(checkpoint, tmp_path, monkeypatch, capsys):
    jobs = []

    def quantize(job, progress):
        jobs.append(job)
        progress(1, 2)
        progress(2, 2)
        job.out.mkdir(exist_ok=True)
        (job.out / "a").write_bytes(b"x" * 1_500_000)
        (job.out / "b").write_bytes(b"x" * 60_000)
        return {"bf16": 1, "w4a16": 116}

    monkeypatch.setattr(cli, "quantize", quantize)
    monkeypatch.setattr(cli, "samples_of_checkpoint", lambda checkpoint, paths: [*paths, "end"])
    out = tmp_path / "out"
    words = ["quantize", str(checkpoint("base")), str(out), "--recipe", "w4a16"]
    assert cli.main([*words, "--samples", "a.mp4", "b.txt"]) == 0
    told = f"{out}: 1 linears bf16, 116 linears w4a16; 1.6 MB, 12.3 s\n"
    assert capsys.readouterr() == (told, "")
    assert cli.main([*words, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "linears": {"bf16": 1, "w4a16": 116}, "n_bytes": 1_560_000, "seconds": 12.346
    }  # fmt: skip
    assert jobs[0].samples == [Path("a.mp4"), Path("b.txt"), "end"]
    assert jobs[1].samples == ["end"]
    assert {job.checkpoint.folder for job in jobs} == {checkpoint("base")}
    assert {job.recipe.description for job in jobs} == {cli.load_recipe("w4a16").description}


def test_progress_is_shown_to_a_person_only(monkeypatch, capsys):
    """A bar for each stage, to its end."""
    for quiet in (False, True):
        show = cli._progress(quiet)
        for stage, done, total in (("decoder", 0, 4), ("decoder", 3, 4), ("vision", 0, 1)):
            show(stage, done, total)
        show("decoder", 4, 4)
        show("vision", 1, 1)
        said = capsys.readouterr().err
        assert ("decoder : 100%" in said, "vision  : 100%" in said) == (not quiet, not quiet)
        assert ("4/4" in said) is not quiet


@pytest.mark.parametrize(("tty", "json_", "quiet"), [(1, 0, 0), (1, 1, 1), (0, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("command", ["bundle", "compile", "quantize"])
def test_progress_is_quiet_for_machines(
    checkpoint, tmp_path, monkeypatch, capsys, command, tty, json_, quiet
):
    found = []
    monkeypatch.setattr(cli.sys.stderr, "isatty", lambda: bool(tty), raising=False)
    monkeypatch.setattr(cli, "_progress", lambda quiet: found.append(quiet))
    monkeypatch.setattr(cli, "build_bundle", lambda *_: MADE)
    monkeypatch.setattr(cli, "compile_bundle", lambda *_: [])
    monkeypatch.setattr(cli, "quantize", lambda job, progress: job.out.mkdir() or {})
    bars = []

    class Bar:
        n = 0

        def __init__(self, **options):
            bars.append(options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(cli, "tqdm", Bar)
    words = {
        "bundle": ["a", "b", "--target", "cpu"],
        "compile": ["a", "--target", "this-gpu"],
        "quantize": [str(checkpoint("base")), str(tmp_path / "out"), "--recipe", "bf16"],
    }
    assert cli.main([command, *words[command], *(["--json"] if json_ else [])]) == 0
    if command == "quantize":
        (options,) = bars
        assert options == {
            "desc": "quantize", "unit": "B", "unit_scale": True, "disable": bool(quiet)
        }  # fmt: skip
    else:
        assert found == [bool(quiet)]


BUILT = [Built("decode", ("decode",), 1.0, 10, 20)]


def test_compile_hands_on_what_is_wanted(monkeypatch, capsys):
    asked = []

    def compiled(path, target, options, report):
        asked.append((str(path), target, options))
        return BUILT

    monkeypatch.setattr(cli, "compile_bundle", compiled)
    monkeypatch.setattr(cli, "check_bundle", compiled)
    assert cli.main(["compile", "here", "--target", "orin"]) == 0
    assert capsys.readouterr().out == plans.table(BUILT) + "\n"
    words = ["compile", "here", "--target", "this-gpu", "--context", "99", "--kernels", "folder"]
    assert cli.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(plans.as_dict(BUILT)))
    assert cli.main(["compile", "here", "--target", "thor", "--check"]) == 0
    assert asked == [
        ("here", "orin", plans.Options(8192, None)),
        ("here", "this-gpu", plans.Options(99, Path("folder"))),
        ("here", plans.TARGETS["thor"], plans.Options(8192, None)),
    ]


def test_a_check_takes_no_kernels(monkeypatch, capsys):
    monkeypatch.setattr(cli, "check_bundle", lambda *_: BUILT)
    words = ["compile", "here", "--target", "orin", "--check", "--kernels", "folder"]
    assert cli.main(words) == 78
    said = "--kernels: cannot be checked without their GPU; check the operators: leave it out"
    assert capsys.readouterr().err == f"build-engine: {said}\n"
    assert cli.main(["compile", "here", "--target", "this-gpu", "--check"]) == 78
    said = "--check --target this-gpu: has nothing to stand for it; check for thor or orin"
    assert capsys.readouterr().err == f"build-engine: {said}\n"


def test_plan_prints_before_it_refuses(checkpoint, monkeypatch, capsys):
    asked = []

    def make_plan(*arguments):
        asked.append(arguments)
        return SimpleNamespace(
            table=lambda: "the table", as_dict=lambda: {"a": 1}, require_fit=require_fit
        )

    def require_fit():
        raise ConfigurationError("it", "does not fit", "take less")

    monkeypatch.setattr(cli, "make_plan", make_plan)
    folder = checkpoint("base")
    words = ["plan", str(folder), "--board", "thor-64", "--recipe", "bf16"]
    assert cli.main(words) == 78
    assert capsys.readouterr() == ("the table\n", "build-engine: it: does not fit; take less\n")
    assert cli.main([*words, "--context", "77", "--fps", "0.5", "--json"]) == 78
    assert capsys.readouterr().out == '{"a": 1}\n'
    spec = cli.read_spec(folder)
    assert asked == [
        (spec, "thor-64", "bf16", 8192, 2.0, folder), (spec, "thor-64", "bf16", 77, 0.5, folder)
    ]  # fmt: skip


class Found:
    """What a self-check found."""

    def __init__(self, gpu=None, problem=None):
        self.gpu, self.problem = gpu, problem

    def as_dict(self):
        return {"passed": self.problem is None}

    def table(self):
        return "the table"

    def require(self, path):
        if self.problem:
            raise BundleError(path, self.problem, "build it again")


def test_verify_tells_reports_and_marks(bundle, tmp_path, monkeypatch, capsys):
    folder, report = tmp_path / "b", tmp_path / "report.json"
    shutil.copytree(bundle("single"), folder)
    manifest = Bundle(folder).manifest
    compiled = msgspec.structs.replace(manifest, plans=Plans("10.13", "8.7", 512, {}))
    cli.save_manifest(compiled, folder)
    found, asked = Found(), []
    monkeypatch.setattr(cli, "verify", lambda *arguments: asked.append(arguments) or found)
    assert cli.main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out == f"the table\n{folder}: every byte as built\n"
    words = ["verify", str(folder), "--engine", "cpu", "--report", str(report), "--json"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == '{"passed": true}\n' == report.read_text()
    assert asked == [(folder, None), (folder, "cpu")]
    assert Bundle(folder, check_hashes=False).manifest == compiled

    found.gpu, found.problem = "Orin", "differs"
    assert cli.main(words) == 78
    told, said = capsys.readouterr()
    assert told == '{"passed": false}\n' == report.read_text()
    assert said == f"build-engine: {folder}: differs; build it again\n"
    assert Bundle(folder, check_hashes=False).manifest == compiled  # not marked

    found.problem = None
    assert cli.main(["verify", str(folder)]) == 0
    told = f"the table\n{folder}: every byte as built, verified on this Orin\n"
    assert capsys.readouterr().out == told
    assert Bundle(folder, check_hashes=False).manifest.plans.verified == "Orin"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigurationError("a", "b", "c"), 78, "a: b; c"),
        (BundleError("a", "b", "c"), 78, "a: b; c"),
        (OSError(28, "No space left on device", "x.bin"), 74, "x.bin: No space left on device"),
        (OSError(28, "No space left on device"), 74, "while writing: No space left on device"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(monkeypatch, capsys, error, code, line):
    def fails(path):
        raise error from ValueError("deep inside")

    monkeypatch.setattr(cli, "describe", fails)
    assert cli.main(["inspect", "here"]) == code
    assert capsys.readouterr() == ("", f"build-engine: {line}\n")


def test_a_cause_is_told_to_those_who_ask_if_there_is_one(monkeypatch, capsys):
    causes = [ValueError("deep inside"), None]

    def fails(*_):
        raise BundleError("a", "b", "c") from causes.pop(0)

    monkeypatch.setattr(cli, "compile_bundle", fails)
    words = ["compile", "here", "--target", "orin", "-v"]
    assert [cli.main(words), capsys.readouterr().err] == [
        78,
        "deep inside\nbuild-engine: a: b; c\n",
    ]
    assert [cli.main(words), capsys.readouterr().err] == [78, "build-engine: a: b; c\n"]


def test_without_a_command_the_help_is_shown_and_the_exit_code_says_so(capsys):
    assert cli.main([]) == 2
    told, said = capsys.readouterr()
    assert told == ""
    assert said == cli.parser().format_help()
    assert said.startswith("usage: build-engine ")
    for command in ("bundle", "quantize", "compile", "inspect", "evaluate", "plan", "verify"):
        assert f"\n    {command}" in said
    assert "\ncommands:\n" in said
    assert " COMMAND ..." in said


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"build-engine {edge.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["bundle", "a", "b"],
        ["bundle", "a", "b", "--target", "orin"],
        ["quantize", "a", "b"],
        ["quantize", "a", "b", "--recipe", "bf16", "--samples"],
        ["compile", "a"],
        ["compile", "a", "--target", "cpu"],
        ["compile", "a", "--target", "orin", "--context", "many"],
        ["evaluate", "a", "--samples", "x"],
        ["evaluate", "a", "--against", "b"],
        ["plan", "a", "--recipe", "bf16"],
        ["plan", "a", "--board", "thor-64"],
        ["plan", "a", "--board", "thor", "--recipe", "bf16"],
        ["plan", "a", "--board", "thor-64", "--recipe", "bf16", "--fps", "fast"],
        ["verify", "a", "--engine", "simulated-once"],
        ["unknown"],
    ],
)
def test_what_is_missing_or_no_choice_is_a_usage_error(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def help_of(*words):
    """In one line."""
    top = cli.parser()
    command = top._subparsers._group_actions[0].choices[words[0]] if words else top
    return " ".join(command.format_help().split())


def test_the_help_names_all_choices_and_defaults():
    for command in ("quantize", "plan"):
        assert f"{', '.join(known_recipes())}, or a TOML file" in help_of(command)
    assert "{" + ",".join(BOARDS) + "}" in help_of("plan")
    assert "{thor,orin,this-gpu}" in help_of("compile")
    assert "(default: 8192)" in help_of("compile")
    assert "(default: 8192)" in help_of("plan")
    assert "(default: 2)" in help_of("plan")
    assert "FILE [FILE ...]" in help_of("quantize")
    assert "FILE [FILE ...]" in help_of("evaluate")
    assert "--kernels FOLDER" in help_of("compile")
    assert "--report FILE" in help_of("verify")
