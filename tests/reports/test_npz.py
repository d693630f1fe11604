"""Reading npz files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from reports.npz import read_npz


def saved(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_arrays_are_those_of_numpy():
    arrays = {
        "names": np.array(["a.jpg", "ö.jpg"]),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "none": np.zeros((0, 4), np.uint16),
        "scalar": np.array(3.5),
        "fields": np.zeros(2, [("ö" * 3, "i4")]),  # a header of another version
    }
    content = saved(**arrays)
    result = read_npz(content)
    assert result.keys() == arrays.keys()
    for name, values in arrays.items():
        assert result[name].dtype == values.dtype
        np.testing.assert_array_equal(result[name], values)
    assert list(read_npz(content, ("scalar",))) == ["scalar"]


def test_python_objects_and_short_arrays_are_refused():
    with pytest.raises(ValueError, match="objects"):
        read_npz(saved(values=np.array([{}], object)))
    buffer = io.BytesIO()
    np.save(buffer, np.arange(100))
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("values.npy", buffer.getvalue()[:200])
    with pytest.raises(TypeError):
        read_npz(output.getvalue())
