"""Log-mel against transformers' feature extractor, in float64 and in its own float32."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from parity import media

from edge.features.mel import log_mel

N_MELS = 128


def sounds():
    rng = np.random.default_rng(0)
    k = np.arange(16_000)
    yield "conversation", media().samples
    yield "noise", 0.1 * rng.standard_normal(48_000).astype(np.float32)
    yield "published golden", ((k * 7919 % 2001 - 1000) / 4000).astype(np.float32)
    yield "short", 0.1 * rng.standard_normal(1600).astype(np.float32)
    yield "loud, clipped", np.clip(rng.standard_normal(20_000), -1, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "samples"), list(sounds()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_log_mel_equals_transformers(reference, name, samples, capsys):
    got = log_mel(samples, N_MELS)
    exact = np.abs(got - reference.mel(samples))
    rounded = np.abs(got - reference.mel(samples, exact=False))
    with capsys.disabled():
        above = (rounded > 1e-4).mean()
        print(
            f"\n{name}: float64 {exact.max():.1e}; float32 {rounded.max():.1e}, {above:.2%} > 1e-4"
        )
    assert exact.max() <= 1e-5
    # The oracle's float32 transform rounds: a few cells, far below their neighbours, exceed 1e-4.
    assert np.quantile(rounded, 0.99) <= 1e-4
    assert rounded.max() <= 1e-3


def test_transformers_own_pipeline_has_a_sound_token_more_for_one_length_in_eight(reference):
    """A deviation that is wanted, and no more than this: vLLM counts as we do.

    transformers counts the frame that centred windows have beyond the last whole hop, which is all
    padding. Where the whole ones fill the last token, that frame is a token of its own.
    """
    from transformers.models.nemotron_h_omni.processing_nemotron_h_omni import (
        NemotronH_Omni_Reasoning_V3Processor,
    )

    published = SimpleNamespace(audio_hop_length=160, audio_subsampling_factor=8)
    for n_samples in [*range(1600, 40_000, 77), 32_000, 479_999, 480_000]:
        n_frames = n_samples // 160
        theirs = NemotronH_Omni_Reasoning_V3Processor._estimate_audio_num_embeddings(
            published, n_samples
        )
        assert theirs - -(-n_frames // 8) == (n_frames % 8 == 0)
    for n_frames in (15, 16, 17):
        mel = np.random.default_rng(n_frames).standard_normal((n_frames, N_MELS), np.float32)
        whole = reference.all_audio_features(mel)
        kept = reference.audio_features(mel)
        assert len(whole) - len(kept) == (n_frames % 8 == 0)
        np.testing.assert_array_equal(whole[: len(kept)], kept)
