"""Weights of an ONNX file without the onnx package, held against the package itself."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from common.errors import WireError
from common.weights import find_weights, read_weights

shapes = st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple)
tensors = st.dictionaries(
    st.text(min_size=1, max_size=12),
    shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=st.floats(-9, 9, width=32))),
    max_size=4,
)


def model_of(initializers: list[onnx.TensorProto]) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out], initializers)
    data: bytes = helper.make_model(graph).SerializeToString()
    return data


@given(tensors)
def test_every_float_tensor_is_read_as_the_onnx_package_reads_it(values: dict[str, np.ndarray]) -> None:
    data = model_of([numpy_helper.from_array(array, name) for name, array in values.items()])
    found = read_weights(data)
    assert found.keys() == values.keys()
    for name, array in values.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@given(tensors)
def test_every_float_tensor_is_found_where_it_lies(values: dict[str, np.ndarray]) -> None:
    data = model_of([numpy_helper.from_array(array, name) for name, array in values.items()])
    for name, tensor in find_weights(data).items():
        assert data[tensor.offset : tensor.end] == values[name].tobytes()
        np.testing.assert_array_equal(tensor.read(data), values[name].ravel())


def test_what_is_not_float32_is_left_out() -> None:
    whole = numpy_helper.from_array(np.arange(3), "whole")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0])  # float_data, not raw bytes
    assert read_weights(model_of([whole, typed, numpy_helper.from_array(np.ones(2, np.float32), "f")])).keys() == {"f"}


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused_or_hold_nothing(data: bytes) -> None:
    try:
        assert isinstance(read_weights(data), dict)
    except WireError as error:
        assert str(error)


def test_a_tensor_that_lies_about_its_shape_is_refused() -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "short")
    tensor.dims[0] = 5
    with pytest.raises(WireError, match="short"):
        read_weights(model_of([tensor]))
