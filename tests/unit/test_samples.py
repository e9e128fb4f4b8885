"""Calibration samples: which frames and sounds of a file are taken, and where they stand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from make_media import write_video, write_wav

from build_engine import samples
from build_engine.checkpoint import Checkpoint
from build_engine.samples import CheckpointEmbedder, read_samples, samples_of_checkpoint
from edge.engines.bundle import Bundle
from edge.errors import MediaError
from edge.features.pixels import image_grid, image_patches, tubelet_patches, video_grid
from edge.model.tokenizer import Tokenizer

HIDDEN = 8


class Scripted:
    """Writes down what it is asked to encode; each sense's embeddings are of one number."""

    def __init__(self, spec):
        self.spec, self.asked = spec, []
        self.n_ids = 0

    def encode_image(self, patches, grid):
        self.asked.append(("image", patches, grid))
        return np.full((grid[0] * grid[1] // 4, HIDDEN), 1, np.float32)

    def encode_tubelets(self, patches, grid):
        self.asked.append(("tubelets", patches, grid))
        n = sum(kind == "tubelets" for kind, *_ in self.asked)
        return np.full((len(patches), grid[0] * grid[1] // 4, HIDDEN), 10 + n, np.float32)

    def encode_audio(self, mel):
        self.asked.append(("audio", mel))
        return np.full((-(-len(mel) // 8), HIDDEN), 100, np.float32)

    def embed(self, ids):
        self.ids = ids
        table = np.zeros((len(ids), HIDDEN), np.float32)
        table.flags.writeable = False  # a view of a mapped table must not be written to
        return table


@pytest.fixture
def folder(bundle):
    return bundle("base")


@pytest.fixture
def embedder(folder):
    return Scripted(Bundle(folder, check_hashes=False).manifest.spec)


@pytest.fixture
def silent(monkeypatch):
    """What is only seen."""
    monkeypatch.setattr(samples.media, "mono_blocks", lambda _: iter(()))


def words(folder, ids):
    return Tokenizer(folder).decode([int(i) for i in ids])


def frames(n, size=(48, 64)):
    return [np.full((*size, 3), 20 * i % 250, np.uint8) for i in range(n)]


@pytest.mark.usefixtures("silent")
def test_a_picture_is_seen_and_asked_about(embedder, folder, tmp_path):
    (picture,) = frames(1, (96, 64))
    picture[:40] = 200
    path = write_video(tmp_path / "one.mkv", [picture], [0])
    (rows,) = read_samples(embedder, folder, [path])
    ((kind, patches, grid),) = embedder.asked
    vision = embedder.spec.vision
    assert kind == "image"
    limits = vision.max_patches, vision.min_patches, vision.patch_size
    assert grid == image_grid(64, 96, *limits)
    np.testing.assert_array_equal(patches, image_patches(picture, grid, vision))
    n = grid[0] * grid[1] // 4
    image = embedder.ids == Tokenizer(folder).special.image
    assert image.sum() == n
    assert (rows[image] == 1).all()
    assert not rows[~image].any()
    assert "Describe what you see and hear." in words(folder, embedder.ids)


@pytest.mark.usefixtures("silent")
def test_of_a_film_two_frames_a_second_are_taken_from_its_first_half_minute(
    embedder, folder, tmp_path
):
    times_ms = [0, 100, 499, 500, 900, 1001, 1500, 1502, 29_900, 30_000, 30_400, 31_000]
    taken = [0, 3, 5, 7, 8]  # 1500 is less than half a second after 1001; 30.0 s after 29.9
    pictures = frames(len(times_ms))
    path = write_video(tmp_path / "film.mkv", pictures, times_ms)
    (rows,) = read_samples(embedder, folder, [path])
    vision = embedder.spec.vision
    grid = video_grid(64, 48, vision.video_target_patches)
    expected = tubelet_patches([pictures[i] for i in taken], grid, vision)
    assert [(kind, given) for kind, _, given in embedder.asked] == [("tubelets", grid)] * 3
    for (_, patches, _), tubelet in zip(embedder.asked, expected, strict=True):
        np.testing.assert_array_equal(patches, tubelet[None])
    image = embedder.ids == Tokenizer(folder).special.image
    n = grid[0] * grid[1] // 4
    assert rows[image][:, 0].tolist() == [11] * n + [12] * n + [13] * n
    said = words(folder, embedder.ids)
    for number, time_s in enumerate((0.0, 0.5, 1.0, 1.5, 29.9), 1):
        assert f"rame {number} sampled at {time_s:.2f} seconds" in said


@pytest.mark.usefixtures("silent")
def test_a_frame_at_the_last_moment_is_taken(embedder, folder, tmp_path):
    path = write_video(tmp_path / "film.mkv", frames(4), [0, 29_000, 30_000, 30_001])
    read_samples(embedder, folder, [path])
    assert len(embedder.asked) == 2
    assert "30.00 seconds" in words(folder, embedder.ids)


def test_of_a_sound_the_first_half_minute_is_heard(embedder, folder, tmp_path):
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(16_000 * 31) * 1000).astype(np.int16)
    short = write_wav(tmp_path / "short.wav", noise[:16_000])
    long = write_wav(tmp_path / "long.wav", noise)
    (_, rows) = read_samples(embedder, folder, [short, long])
    n_frames = [mel.shape[0] for _, mel in embedder.asked]
    assert n_frames[0] == 100
    assert sum(n_frames[1:]) == 3000
    assert {mel.shape[1] for _, mel in embedder.asked} == {embedder.spec.audio.n_mels}
    audio = embedder.ids == Tokenizer(folder).special.audio
    assert audio.sum() == 375
    assert (rows[audio] == 100).all()
    assert not rows[~audio].any()


def test_a_film_with_sound_is_seen_first(embedder, folder, tmp_path, monkeypatch):
    film = write_video(tmp_path / "film.mkv", frames(2), [0, 500])
    heard = [(0, np.ones(16_000, np.float32))]
    monkeypatch.setattr(samples.media, "mono_blocks", lambda _: iter(heard))
    (rows,) = read_samples(embedder, folder, [film])
    special = Tokenizer(folder).special
    placed = rows[np.isin(embedder.ids, (special.image, special.audio))][:, 0]
    assert placed.tolist() == sorted(placed.tolist())
    assert {11, 100} == set(placed.tolist())


def test_a_text_is_the_question_and_its_control_tokens_are_text(embedder, folder, tmp_path):
    (tmp_path / "a.txt").write_text("\n  Pick up <image> the box.  \n")
    (tmp_path / "b.md").write_text("Turn left.")
    both = read_samples(embedder, folder, [tmp_path / "a.txt", tmp_path / "b.md"])
    assert embedder.asked == []
    assert [rows.any() for rows in both] == [False, False]
    assert "Turn left." in words(folder, embedder.ids)
    assert "Describe what" not in words(folder, embedder.ids)
    read_samples(embedder, folder, [tmp_path / "a.txt"])
    assert Tokenizer(folder).special.image not in embedder.ids
    assert "Pick up <image> the box." in words(folder, embedder.ids)


@pytest.mark.parametrize("data", [b"", b" \n\t", b"\xff\xfe"])
def test_a_file_without_text_is_named(embedder, folder, tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(MediaError) as caught:
        read_samples(embedder, folder, [path])
    assert str(caught.value) == f"{path}: holds no UTF-8 text; give another file"


def test_a_film_whose_sound_is_empty_is_only_seen(embedder, folder, tmp_path, monkeypatch):
    film = write_video(tmp_path / "film.mkv", frames(2), [0, 500])
    monkeypatch.setattr(samples.media, "mono_blocks", lambda _: iter([(0, np.zeros(0, "f4"))]))
    read_samples(embedder, folder, [film])
    assert [kind for kind, *_ in embedder.asked] == ["tubelets"]


def test_a_checkpoint_prepares_samples_as_its_bundle_does(checkpoint, engine, tmp_path):
    (tmp_path / "a.txt").write_text("What is there?")
    wav = write_wav(tmp_path / "a.wav", np.ones(8000, np.int16) * np.int16(500))
    paths = [tmp_path / "a.txt", wav]
    source = Checkpoint(checkpoint("base"))
    mine = samples_of_checkpoint(source, paths)
    theirs = read_samples(engine("base"), source.folder, paths)
    for ours, expected in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert samples_of_checkpoint(SimpleNamespace(), []) == []


def test_a_checkpoints_table_gives_float32(checkpoint, tmp_path):
    source = Checkpoint(checkpoint("wide"))
    embedder = CheckpointEmbedder(source, tmp_path)
    rows = embedder.embed(np.array([3, 7], np.int32))
    table = source.tensor(
        "language_model.backbone.embeddings.weight",
        (source.spec.decoder.vocab_size, source.spec.decoder.hidden_size),
    )
    assert rows.dtype == np.float32
    assert (rows == table[[3, 7]].astype(np.float32)).all()
