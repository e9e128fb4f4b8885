"""One file, every setting checked, everything wrong told at once."""

from __future__ import annotations

import re

import msgspec
import pytest

from edge.config import Config, for_model, load_config, without_restart
from edge.errors import ConfigurationError


def written(tmp_path, text: str):
    path = tmp_path / "edge.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path, changes=None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_config(path, changes or {})
    message = str(caught.value)
    assert message.count("; ") == 1
    assert "\n" not in message
    return message


def test_no_file_is_the_defaults():
    config = load_config(None)
    assert config == Config()
    assert (config.perception.fps, config.context.max_tokens) == (2.0, 0)
    assert (config.answer.max_tokens, config.socket.path) == (256, "/run/edge/edge.sock")


def test_a_file_changes_what_it_names_and_the_command_line_wins(tmp_path):
    path = written(tmp_path, '[perception]\nfps = 1\n[context]\nsystem = "Sei kurz ✓"\n')
    config = load_config(path, {"perception": {"fps": 4.0}, "answer": {"thinking": True}})
    assert config.perception.fps == 4.0
    assert config.context.system == "Sei kurz ✓"
    assert config.answer.thinking


def test_a_token_budget_too_small_for_the_frame_rate_is_refused():
    message = refusal(None, {"perception": {"fps": 4.0, "evs_tokens_per_s": 15}})
    assert "perception.evs_tokens_per_s is 15: too few for perception.fps = 4" in message
    assert "at least 16" in message
    load_config(None, {"perception": {"fps": 4.0, "evs_tokens_per_s": 16}})


def test_an_integer_is_a_number(tmp_path):
    assert load_config(written(tmp_path, "[perception]\nfps = 3\n")).perception.fps == 3.0


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        load_config(None).answer.thinking = True  # type: ignore[misc]


def test_everything_wrong_is_listed_at_once(tmp_path):
    path = written(
        tmp_path,
        'loose = 1\n[perception]\nfsp = 2\naudio_window_s = 0.05\n[contxt]\nsystem = "x"\n'
        '[answer]\nthinking = 1\ntop_p = 0.0\n[socket]\npath = ""\n',
    )
    message = refusal(path, {"answer": {"temperature": 3.5}})
    for part in (
        "unknown section 'loose'",
        "unknown key 'fsp' in [perception] (did you mean fps?)",
        "perception.audio_window_s is 0.05: expected float >= 0.1",
        "unknown section 'contxt' (did you mean context?)",
        "answer.thinking is 1: expected bool, got int",
        "answer.top_p is 0.0: expected float > 0.0",
        "answer.temperature is 3.5 (command line): expected float <= 2.0",
        "socket.path is '': expected str of length >= 1",
        "correct these 8 settings",
    ):
        assert part in message
    assert message.startswith(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("perception = 3", "expected a section [perception]"),
        ("[perception]\nfps = nan", "perception.fps is nan"),
        ("[perception]\nfps = inf", "perception.fps is inf"),
        ("[perception]\nfps = 0", "perception.fps is 0"),
        ('[perception]\nlisten = "words"', "listen is 'words': expected utterances or windows"),
        ("[answer]\nmax_tokens = 1.5", "expected int, got float"),
        ('[answer]\nmax_tokens = "a; b"', "is 'a, b'"),
        ('["a\\n; b"]\nx = 1', r"unknown section 'a\n, b'"),
        ("[context]\nmax_tokens = 100\nkeep_tokens = 2048", "context.keep_tokens is 2048"),
        ("[context]\nkeep_tokens = 8192", "too many for context.max_tokens = 8192"),
        ("[context]\nmax_tokens = 400\nnotes_tokens = 300", "context.notes_tokens is 300"),
        ("[context]\nmax_tokens = -1", "expected int >= 0"),
        ("[context]\nmax_tokens = 2048\nkeep_tokens = 2048", "too many for context.max_tokens"),
        ("[answer]\nmax_tokens = 9000", "answer.max_tokens is 9000"),
        ("[answer]\nmax_tokens =", "is not TOML"),
        ('[answer]\nmax_tokens = "a;\n', "is not TOML"),
    ],
)
def test_each_mistake_is_named(tmp_path, text, said):
    assert said in refusal(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    assert "cannot be read (No such file" in refusal(tmp_path / "none.toml")
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
    path = tmp_path / "latin1.toml"
    path.write_bytes(b'[context]\nsystem = "\xe4"\n')
    assert "is not UTF-8 at byte 20" in refusal(path)


def test_a_wrong_configuration_ends_with_exit_code_78():
    assert ConfigurationError.exit_code == 78


def test_every_section_is_frozen_and_has_defaults():
    for field in msgspec.structs.fields(Config):
        if field.name in ("camera", "microphone"):
            assert field.default == ()
            continue
        assert field.type.__struct_config__.frozen
        assert field.default == field.type()


def bound(config, trained_tokens=512, max_tokens=262_144):
    context = for_model(config, trained_tokens, max_tokens).context
    return context.max_tokens, context.keep_tokens


@pytest.mark.parametrize(
    ("trained", "holds", "expected"),
    [
        (131_072, 262_144, (8192, 2048)),  # the published model
        (512, 262_144, (512, 128)),  # the small trained one
        (100, 262_144, (256, 64)),  # the default answer fits
        (131_072, 8192, (4096, 1024)),  # plans of 8192 tokens: question and answer fit as well
        (512, 640, (320, 80)),
    ],
)
def test_the_bound_is_what_the_model_is_made_for(trained, holds, expected):
    assert bound(Config(), trained, holds) == expected


def test_a_bound_that_is_set_stays_and_what_is_left_open_follows_it():
    def of(**context):
        return bound(load_config(None, {"context": context}))

    assert of(max_tokens=4096) == (4096, 1024)  # above 512: who says so knows
    assert of(max_tokens=4096, keep_tokens=100) == (4096, 100)
    assert of(keep_tokens=300) == (512, 300)
    assert of(max_tokens=0, keep_tokens=0) == (512, 128)
    once = for_model(Config(), 512, 262_144)
    assert for_model(once, 131_072, 262_144) == once


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": {"keep_tokens": 512}}, "context.keep_tokens is 512: too many for"),
        ({"context": {"notes_tokens": 384}}, "context.notes_tokens is 384: too many for"),
        ({"answer": {"max_tokens": 513}}, "context.max_tokens = 512; correct it, or set"),
        ({"context": {"max_tokens": 9744}}, "with answers of 256 that exceeds the model's 10000"),
    ],
)
def test_what_contradicts_the_models_bound_is_refused(changes, said):
    config = load_config(None, changes)
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        for_model(config, 512, 10_000)


def test_a_reloaded_file_that_leaves_the_bound_open_changes_nothing():
    now = for_model(Config(), 512, 10_000)
    wanted = for_model(load_config(None, {"answer": {"max_tokens": 400}}), 512, 10_000)
    taken, waiting = without_restart(now, wanted, small)
    assert (taken.answer.max_tokens, taken.context, waiting) == (400, now.context, [])
    wanted = for_model(load_config(None, {"context": {"max_tokens": 600}}), 512, 10_000)
    assert without_restart(now, wanted, small) == (now, ["context"])


def test_cameras_share_what_is_kept_of_them(tmp_path):
    cameras = "".join(f'[[camera]]\nname = "eye{i}"\nsource = "/dev/video{i}"\n' for i in range(4))
    path = tmp_path / "edge.toml"
    path.write_text(f"[perception]\nevs_tokens_per_s = 32\n{cameras}")
    load_config(path)
    with pytest.raises(ConfigurationError, match=r"of 4 cameras \(at least 32"):
        load_config(path, {"perception": {"evs_tokens_per_s": 31}})


def small(config):
    return for_model(config, 512, 10_000)


def test_what_is_taken_up_fits_what_goes_on_and_else_waits_with_what_it_needs():
    """Each file is right as a whole; taken apart it would not be."""
    running = small(load_config(None, {"context": {"max_tokens": 9000}}))
    shorter = {"context": {"max_tokens": 4000}, "answer": {"max_tokens": 2000}}
    wanted = small(load_config(None, {**shorter, "socket": {"max_waiting": 3}}))
    taken, waiting = without_restart(running, wanted, small)
    assert (taken.answer, taken.context) == (running.answer, running.context)
    assert taken.socket.max_waiting == 3
    assert waiting == ["context", "answer"]
    small(taken)
    listening = {"perception": {"listen": "utterances"}, "turns": {"mode": "open"}}
    wanted = small(load_config(None, {**listening, "answer": {"max_tokens": 20}}))
    taken, waiting = without_restart(small(Config()), wanted, small)
    assert (taken.turns.mode, taken.answer.max_tokens) == ("typed", 20)
    assert waiting == ["perception", "turns"]


def test_several_cameras_and_microphones(tmp_path):
    text = """
    [[camera]]
    name = "front"
    source = "front.mp4"
    [[camera]]
    name = "arm"
    source = "arm.mp4"
    [[microphone]]
    name = "mast"
    source = "mast.wav"
    """
    config = load_config(written(tmp_path, text))
    assert [camera.name for camera in config.camera] == ["front", "arm"]
    assert config.microphone[0].source == "mast.wav"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[camera]]\nname = "front"', "camera[0].source is missing"),
        ('[[camera]]\nname = "Front!"\nsource = "a"', "camera[0].name is 'Front!'"),
        ('[[camera]]\nname = "a"\nsource = "a"\nfps = 3', "unknown key 'fps' in [camera[0]]"),
        ('[camera]\nname = "a"\nsource = "a"', "expected sections [[camera]]"),
        (
            '[[camera]]\nname = "a"\nsource = "a"\n[[microphone]]\nname = "a"\nsource = "b"',
            "the name 'a' of a camera or microphone is taken",
        ),
        ('[[camera]]\nname = "turn"\nsource = "a"', "the name 'turn'"),
        ('[turns]\nmode = "open"', "it needs perception.listen"),
        ('[turns]\nmode = "loud"', "expected open or push_to_talk or typed"),
        ("[answer]\ndeadline_s = 0", "answer.deadline_s is 0"),
    ],
)
def test_what_is_wrong_with_senses_and_turns_is_told(tmp_path, text, problem):
    assert problem in refusal(written(tmp_path, text))
