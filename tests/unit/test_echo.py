"""The robot's voice in its microphone: how soon it is cancelled, and when a person is heard."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.clock import NS_PER_MS, NS_PER_S
from edge.senses.echo import KEEP, N_PARTS, N_WARM_BLOCKS, Echo, _Filter
from edge.senses.sound import BLOCK_NS, BLOCK_SAMPLES, NS_PER_SAMPLE
from edge.types import AudioChunk, Float32

N_BLOCKS = 140
"""4.5 s."""


def noise(n_blocks: int, seed: int, level: float) -> Float32:
    """[n_blocks, 512]."""
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal((n_blocks, BLOCK_SAMPLES))).astype(np.float32)


def heard_of(voice: Float32) -> Float32:
    """What a room makes of a voice: it comes 25 ms later and dies away in a tenth of a second."""
    rng = np.random.default_rng(1)
    response = rng.standard_normal(3000) * np.exp(-np.arange(3000) / 500)
    response[:400] = 0
    response *= 0.5 / np.linalg.norm(response)
    n = 1 << 17
    spectrum = np.fft.rfft(voice.ravel(), n) * np.fft.rfft(response, n)
    return np.fft.irfft(spectrum)[: voice.size].reshape(voice.shape).astype(np.float32)


VOICE = noise(N_BLOCKS, 0, 0.1)
ECHO = heard_of(VOICE)
HUM = noise(N_BLOCKS, 2, 1e-4)
PERSON = noise(N_BLOCKS, 3, 0.16)
"""10 dB above the echo."""


def from_block(n: int, sound: Float32) -> Float32:
    """Silence before."""
    return np.concatenate([np.zeros_like(sound[:n]), sound[n:]])


def block(sound: Float32, n: int, late_ms: int = 0) -> AudioChunk:
    return AudioChunk(sound[n], NS_PER_S + n * BLOCK_NS + late_ms * NS_PER_MS, "")


def cleaned(heard: Float32, voice: Float32 = VOICE) -> tuple[Float32, NDArray[np.bool_]]:
    """What is left of each block, and whether it is masked."""
    echo, found = Echo(), []
    for n in range(len(heard)):
        if n < len(voice):
            echo.play(block(voice, n))
        found.append(echo.clean(block(heard, n)))
    return np.array([left.samples for left, _ in found]), np.array([masked for _, masked in found])


def cancelled_db(left: Float32, first: int, last: int, echo: Float32 = ECHO) -> float:
    """How much quieter the echo has become."""
    before, after = (np.square(sound[first:last]).mean() for sound in (echo, left))
    return float(10 * np.log10(before / after))


@pytest.fixture(scope="module")
def alone() -> tuple[Float32, NDArray[np.bool_]]:
    """The robot speaks, and nobody else."""
    return cleaned(ECHO + HUM)


def test_the_echo_is_learned_within_seconds_and_masked_until_then_and_ever(alone):
    left, masked = alone
    spans = [(0, 10), (10, 20), (20, 40), (40, 60), (60, 90), (90, 140)]
    found = [cancelled_db(left, *span) for span in spans]
    np.testing.assert_allclose(found, [1.9, 5.3, 9.8, 17.0, 25.8, 37.7], atol=0.3)
    assert masked.all()


def test_a_person_is_heard_once_enough_was_learned():
    """60 blocks of the robot's voice, and then at once."""
    _, masked = cleaned((ECHO + HUM + from_block(50, PERSON))[:70])
    assert np.flatnonzero(~masked).tolist() == list(range(N_WARM_BLOCKS, 70))


@pytest.mark.parametrize(("level", "n_heard"), [(0.05, 0), (0.1, 9), (0.3, 20)])
def test_a_person_is_heard_who_is_clearly_louder_than_what_may_be_left(level, n_heard):
    person = from_block(70, PERSON * np.float32(level / 0.16))
    _, masked = cleaned((ECHO + HUM + person)[:90])
    assert masked[:70].all()
    assert (~masked[70:]).sum() == pytest.approx(n_heard, abs=2)


def test_a_loudspeaker_that_the_microphone_does_not_hear_masks_nobody():
    _, masked = cleaned((HUM + from_block(20, PERSON))[:40])
    assert not masked[20:].any()


def test_without_the_robot_s_voice_sound_is_what_it_was():
    echo = Echo()
    for n in range(3):
        sound = block(PERSON, n)
        left, masked = echo.clean(sound)
        assert left is sound
        assert not masked
    echo.play(block(np.zeros_like(VOICE), 3))  # silence is no voice
    sound = block(PERSON, 3)
    assert echo.clean(sound)[0] is sound


def test_the_last_echo_dies_away_for_so_long_as_the_filter_reaches():
    voice = VOICE[:40]
    heard = heard_of(np.concatenate([voice, np.zeros_like(VOICE[:30])])) + HUM[:70]
    left, masked = cleaned(heard, voice)
    untouched = (left == heard).all(axis=1)
    n_last = 40 + N_PARTS
    assert not untouched[1:n_last].any()
    assert untouched[n_last:].all()
    assert masked[:n_last].all()
    assert not masked[n_last:].any()


def test_what_was_learned_is_kept_while_the_robot_is_silent(alone):
    voice = np.concatenate([VOICE[:60], np.zeros_like(VOICE[:20]), VOICE[60:70]])
    person = from_block(80, np.concatenate([PERSON[:20], PERSON])[: len(voice)])
    left, masked = cleaned(heard_of(voice) + HUM[:90] + person, voice)
    assert cancelled_db(left - person, 80, 90, heard_of(voice)) > 15
    assert not masked[80:].any()


@pytest.mark.parametrize(("n_samples", "n_times"), [(700, 1), (90 * BLOCK_SAMPLES, 2)])
def test_the_voice_may_come_in_any_pieces_and_two_at_once_add_up(alone, n_samples, n_times):
    echo, voice = Echo(), VOICE[:90].ravel() / np.float32(n_times)
    for _ in range(n_times):
        for first in range(0, len(voice), n_samples):
            at_ns = NS_PER_S + first * NS_PER_SAMPLE
            echo.play(AudioChunk(voice[first : first + n_samples], at_ns, ""))
    for n in range(90):
        left, _ = echo.clean(block(ECHO + HUM, n))
        np.testing.assert_array_equal(left.samples, alone[0][n])


@pytest.mark.parametrize("sense", ["microphone", "loudspeaker"])
@pytest.mark.parametrize(
    ("late_ms", "loses", "is_same"),
    [
        (50, False, True),
        (-50, False, True),
        (51, False, False),
        (-51, False, False),
        (20, True, False),
        (0, True, True),
    ],
)
def test_times_that_jitter_move_nothing_and_a_gap_does(alone, sense, late_ms, loses, is_same):
    """The same distance from what is played to what is heard is what the filter has learned."""
    echo = Echo()
    for n in range(64):
        late = late_ms if n >= 60 else 0
        echo.play(block(VOICE, n, late if sense == "loudspeaker" else 0))
        if n == 60 and loses:
            echo.lose_place()
        left, _ = echo.clean(block(ECHO + HUM, n, late if sense == "microphone" else 0))
    if sense == "loudspeaker" and loses:
        is_same = True  # only the microphone's place was lost
    assert (left.samples == alone[0][63]).all() == is_same


def test_the_first_block_lies_where_its_time_says():
    """A voice that ended before it is not in it, even within the jitter of the clock's zero."""
    echo = Echo()
    late_ns = round(160 * NS_PER_SAMPLE)
    echo.play(AudioChunk(VOICE[0, :160], 0, ""))
    heard = AudioChunk(HUM[0], late_ns, "")
    assert echo.clean(heard) == (heard, False)


def test_what_is_known_of_the_path_is_forgotten_at_the_pace_of_the_room():
    """Silence teaches nothing: what was uncertain fades by the share that the path changes."""
    path = _Filter()
    path.expect(2.0)
    for _ in range(100):
        path.step(HUM[0] * 0, HUM[0] * 0)
    *_, uncertain = path.step(HUM[0], VOICE[0])
    power = np.abs(np.fft.rfft(np.concatenate([HUM[0] * 0, VOICE[0]]))) ** 2
    np.testing.assert_allclose(uncertain, power * KEEP**200, rtol=1e-4)
