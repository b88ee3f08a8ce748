"""Weights of an ONNX file without the onnx package, held against the package itself."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from common.errors import WireError
from common.weights import are_alike, find_tensors, find_weights, read_weights

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


def test_numbers_of_int8_models_are_found_and_are_no_float_weights() -> None:
    values = {
        "codes": np.array([-128, 0, 127], np.int8),
        "zero": np.array(128, np.uint8),
        "bias": np.array([-(2**31), 5], np.int32),
        "scale": np.array([0.5], np.float32),
    }
    data = model_of([numpy_helper.from_array(array, name) for name, array in values.items()])
    found = find_tensors(data)
    assert {name: tensor.read(data).tolist() for name, tensor in found.items()} == {
        name: array.ravel().tolist() for name, array in values.items()
    }
    assert find_weights(data).keys() == {"scale"}


def test_values_that_are_no_row_of_bytes_are_left_out() -> None:
    long = numpy_helper.from_array(np.arange(3), "int64")
    typed = helper.make_tensor("float_data", TensorProto.FLOAT, [2], [1.0, 2.0])  # packed: a row, as in raw bytes
    varied = helper.make_tensor("int32_data", TensorProto.INT8, [2], [1, -2])
    data = model_of([long, typed, varied])
    assert find_tensors(data).keys() == {"float_data"}
    np.testing.assert_array_equal(read_weights(data)["float_data"], [1.0, 2.0])


def test_files_are_alike_when_only_their_weights_differ() -> None:
    one, other = (numpy_helper.from_array(np.full(2, value, np.float32), "w") for value in (1, 2))
    renamed = numpy_helper.from_array(np.ones(2, np.float32), "v")
    assert are_alike(model_of([one]), model_of([other]))
    assert not are_alike(model_of([one]), model_of([renamed]))
    assert not are_alike(model_of([one]), model_of([one, renamed]))


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
