"""The checks of arguments: what they accept, and the error line of what they refuse."""

import numpy as np
import pytest

from refinedet.spec.errors import (
    SpecError,
    check_boxes,
    check_float,
    check_labels,
    check_shape,
)

from .strategies import refused


def test_a_contract_error_is_a_value_error():
    assert issubclass(SpecError, ValueError)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_check_float_takes_finite_floats_of_one_dtype(dtype):
    check_float(a=np.zeros((2, 3), dtype), b=np.ones(0, dtype))
    check_float()


@pytest.mark.parametrize(
    ("bad", "actual"),
    [
        ([1.0], "list"),
        (1.0, "float"),
        (np.zeros(1, np.int64), "int64"),
        (np.zeros(1, np.float16), "float16"),
        (np.zeros(1, bool), "bool"),
    ],
)
def test_check_float_names_another_type(bad, actual):
    with refused(f"b: expected a float32 or float64 array, got {actual}"):
        check_float(a=np.zeros(1), b=bad)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_float_names_the_first_number_that_is_not_finite(bad):
    array = np.zeros((2, 3))
    array[1, 1:] = bad
    with refused("x: not finite at (1, 1)"):
        check_float(x=array)


def test_check_float_refuses_a_mixture_of_dtypes():
    with refused("a, b: expected one dtype, got ['float32', 'float64']"):
        check_float(a=np.zeros(1, np.float64), b=np.zeros(1, np.float32))


def test_check_shape():
    check_shape(np.zeros((2, 0, 4)), "x", 2, None, 4)
    check_shape(np.zeros(()), "x")


@pytest.mark.parametrize(
    ("shape", "actual"),
    [((2, 3), "(2, 3)"), ((4,), "(4,)"), ((2, 1, 4), "(2, 1, 4)"), ((2, 4, 1), "(2, 4, 1)")],
)
def test_check_shape_reports_the_expected_and_the_actual_shape(shape, actual):
    with refused(f"x: expected shape (any, 4), got {actual}"):
        check_shape(np.zeros(shape), "x", None, 4)


@pytest.mark.parametrize(("bad", "actual"), [([1, 2], "list"), (None, "NoneType"), (3, "int")])
def test_check_shape_refuses_what_is_no_array(bad, actual):
    with refused(f"x: expected an array, got {actual}"):
        check_shape(bad, "x", None)


def test_check_boxes_takes_no_boxes_and_boxes_without_area():
    check_boxes(a=np.zeros((0, 4), np.float32), b=np.float32([[0.5, 0.5, 0.5, 0.5]]))


@pytest.mark.parametrize("row", [[1, 0, 0.5, 1], [0, 1, 1, 0.5]])
def test_check_boxes_names_argument_and_row_of_crossed_corners(row):
    good = np.float64([[0, 0, 1, 1]])
    with refused(f"b: row 1 has crossed corners {[float(v) for v in row]}"):
        check_boxes(a=good, b=np.float64([[0, 0, 1, 1], row, row]))


def test_check_boxes_needs_rows_of_four_floats():
    with refused("a: expected shape (any, 4), got (4,)"):
        check_boxes(a=np.zeros(4))
    with refused("a: expected shape (any, 4), got (2, 5)"):
        check_boxes(a=np.zeros((2, 5)))
    with refused("a: expected a float32 or float64 array, got int64"):
        check_boxes(a=np.zeros((1, 4), np.int64))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_check_labels_takes_integers_in_range(dtype):
    check_labels(np.array([[0, 1], [2, 0]], dtype), "y", 3)
    check_labels(np.array([1, 2], dtype), "y", 3, lowest=1)
    check_labels(np.zeros(0, dtype), "y", 3, lowest=1)


def test_check_labels_names_the_first_out_of_range():
    with refused("y: 3 at (1, 0) is outside 0..2"):
        check_labels(np.array([[0, 2], [3, -1]]), "y", 3)
    with refused("y: -1 at (0,) is outside 0..2"):
        check_labels(np.array([-1]), "y", 3)
    with refused("y: 9 at (1,) is outside 0..2"):
        check_labels(np.array([0, 9]), "y", 3)
    with refused("y: 0 at (2,) is outside 1..2"):
        check_labels(np.array([1, 2, 0]), "y", 3, lowest=1)


@pytest.mark.parametrize(
    ("bad", "actual"), [(np.zeros(1), "float64"), ([1], "list"), (np.zeros(1, bool), "bool")]
)
def test_check_labels_needs_integers(bad, actual):
    with refused(f"y: expected an integer array, got {actual}"):
        check_labels(bad, "y", 3)
