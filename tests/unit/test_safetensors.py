"""Files of tensors: what a writer lays out is what a reader finds, on whole cache lines."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.engines.safetensors import (
    DATA_ALIGNMENT_BYTES,
    DTYPES,
    SafetensorsFile,
    SafetensorsWriter,
    data_offsets,
    write_safetensors,
)

LAYOUTS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.tuples(
        st.sampled_from(list(DTYPES.values())),
        st.lists(st.sampled_from((0, 1, 3, 16, 64)), max_size=3).map(tuple),
    ),
    max_size=8,
)


@given(LAYOUTS)
def test_no_holes_and_whole_lines_in_front(layout):
    offsets = data_offsets(layout)
    at = 0
    for first, end in sorted(offsets.values()):
        assert first == at
        at = end
    for name, (first, end) in offsets.items():
        if (end - first) % DATA_ALIGNMENT_BYTES == 0:
            assert first % DATA_ALIGNMENT_BYTES == 0, name


def test_written_in_the_layouts_order_and_read_by_name(tmp_path: Path):
    rng = np.random.default_rng(5)
    tensors = {
        "scale": np.float32(0.5).reshape(()),
        "codes": rng.integers(0, 255, (48, 64), np.uint8),
        "odd": rng.standard_normal((3, 5)).astype(ml_dtypes.bfloat16),
        "rows": rng.standard_normal((16, 16), np.float32),
    }
    path = tmp_path / "some.safetensors"
    write_safetensors(path, tensors)
    file = SafetensorsFile(path)
    assert file.names() == list(tensors)
    for name, values in tensors.items():
        np.testing.assert_array_equal(file.tensor(name), values)
    for name in ("codes", "rows"):
        assert file.offset(name) % DATA_ALIGNMENT_BYTES == 0
        assert file.tensor(name).ctypes.data % DATA_ALIGNMENT_BYTES == 0


def test_another_tensor_than_the_layouts_next_is_refused(tmp_path: Path):
    layout = {name: (np.dtype(np.float32), (16,)) for name in ("first", "second")}
    with (
        pytest.raises(ValueError, match="expected first"),
        SafetensorsWriter(tmp_path / "some.safetensors", layout) as writer,
    ):
        writer.write("second", [np.zeros(16, np.float32)])
