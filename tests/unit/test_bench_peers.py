"""The comparison with other engines: its arithmetic, and that its model is the one it names."""

from __future__ import annotations

import math

import pytest
from make_tiny_checkpoint import decoder_tensors
from peers.report import Measured, paired, rows, table
from peers.shape import SCALED_DOWN, bytes_of_a_token
from published_config import LLM_CONFIG

OURS, PEER = "ours", "peer"
MEASURED = Measured(
    decode={OURS: [0.1, 0.4, 0.1], PEER: [0.2, 0.9, 0.3]},
    busy={OURS: [0.2, 0.8, 0.2]},
    prefill={OURS: [1.0, 4.0, 1.0], PEER: [0.5, 2.0, 0.5]},
    read_gb_s=[10.0, 5.0, 10.0],
    n_decode=10,
    n_prefill=100,
)
BYTES = {OURS: 20_000_000, PEER: 40_000_000}


def test_a_round_that_a_neighbour_slowed_does_not_move_a_ratio():
    assert paired([1, 10, 1], [2, 20, 2]) == 2


def test_rows_are_medians_of_rounds_and_ratios_are_of_the_same_round():
    ours, peer = rows(MEASURED, BYTES, {OURS: 0.99}, OURS)
    assert (ours.decode_tokens_s, ours.decode_ratio, ours.prefill_ratio) == (100, 1, 1)
    assert ours.of_the_limit == 0.2  # 100 tokens/s of 20 MB, at 10 GB/s
    assert (ours.busy_tokens_s, ours.busy_loss) == (50, 0.5)
    assert (peer.decode_ratio, peer.prefill_ratio) == (2.25, 0.5)
    assert (peer.busy_tokens_s, peer.busy_loss, peer.cosine) == (None, None, None)


def test_the_table_shows_every_figure_or_a_dash():
    lines = table(rows(MEASURED, BYTES, {OURS: 0.99}, OURS)).splitlines()
    assert lines[2] == "| ours | 20.0 | 100.0 | 20 % | 1.00x | 50.0 | 50 % | 100.0 | 1.00x | 0.99 |"
    assert lines[3] == "| peer | 40.0 | 33.3 | 13 % | 2.25x | - | - | 200.0 | 0.50x | - |"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.1.mixer.experts.up_proj", 6),
        ("blk.1.ffn_up_exps.weight", 6),
        ("blk.1.ffn_up_shexp.weight", 32),
        ("model.layers.1.mixer.shared_experts.up_proj.weight", 32),
        ("output.weight", 32),
    ],
)
def test_a_token_meets_its_share_of_the_experts_and_all_else(name, expected):
    assert bytes_of_a_token({name: 32}) == expected


@pytest.mark.parametrize("name", ["model.embeddings.weight", "token_embd.weight"])
def test_a_token_meets_one_row_of_the_table(name):
    assert bytes_of_a_token({name: 32768 * 2048}) == 2048


def test_the_model_has_the_parameters_that_it_is_named_for():
    tensors = decoder_tensors({**LLM_CONFIG, **SCALED_DOWN})
    sizes = {name: math.prod(shape) for name, shape in tensors}
    assert round(sum(sizes.values()) / 1e6, 1) == 387.7
    assert round(bytes_of_a_token(sizes) / 1e6, 1) == 149.7
