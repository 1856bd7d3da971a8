"""Layers: by hand, against loops, and their gradients against central differences."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.layers import (
    GRADIENTS,
    Tape,
    add,
    add_bias,
    anchor_rows,
    batch_normalise,
    conv2d,
    l2_normalise,
    max_pool2x2,
    max_pool2x2_gradient,
    max_pool3x3,
    max_pool3x3_gradient,
    relu,
    relu_gradient,
    upsample2x2,
)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def slow_conv(x, w, stride, padding, dilation):
    n, c, h, width = x.shape
    d, _, k, _ = w.shape
    reach = dilation * (k - 1)
    out_h = (h + 2 * padding - reach - 1) // stride + 1
    out_w = (width + 2 * padding - reach - 1) // stride + 1
    out = np.zeros((n, d, out_h, out_w))
    for b, o, r, s in np.ndindex(out.shape):
        for i, p, q in np.ndindex(c, k, k):
            y = r * stride + p * dilation - padding
            z = s * stride + q * dilation - padding
            if 0 <= y < h and 0 <= z < width:
                out[b, o, r, s] += x[b, i, y, z] * w[o, i, p, q]
    return out


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (3, 1, 1, 1),
        (1, 1, 0, 1),
        (3, 2, 1, 1),
        (3, 1, 3, 3),
        (3, 1, 0, 1),
        (3, 2, 2, 2),
        (3, 3, 1, 1),
        (2, 2, 0, 1),
    ],
)
@pytest.mark.parametrize("size", [(7, 10), (8, 5)])
def test_convolution_against_loops(kernel, stride, padding, dilation, size):
    x, w = numbers(0, 2, 3, *size), numbers(1, 4, 3, kernel, kernel)
    actual = conv2d(x, w, stride, padding, dilation)
    assert_allclose(actual, slow_conv(x, w, stride, padding, dilation), atol=1e-12)
    actual = conv2d(x.astype(np.float32), w.astype(np.float32), stride, padding, dilation)
    assert actual.dtype == np.float32
    assert_allclose(actual, slow_conv(x, w, stride, padding, dilation), atol=1e-4)


def test_convolution_by_hand_and_its_defaults():
    # Cross-correlation: the kernel is not turned round. 1*1 + 2*10 + 3*100 + 4*1000.
    x, w = np.float64([[[[1, 2], [3, 4]]]]), np.float64([[[[1, 10], [100, 1000]]]])
    assert conv2d(x, w).tolist() == [[[[4321]]]]


@given(rows=st.integers(0, 4), columns=st.integers(0, 6))
def test_convolution_moves_with_its_input(rows, columns):
    x, w = np.zeros((1, 2, 12, 16)), numbers(1, 3, 2, 3, 3)
    x[:, :, 3:6, 4:8] = numbers(2, 1, 2, 3, 4)
    there = conv2d(np.roll(x, (rows, columns), (2, 3)), w, padding=1)
    assert_allclose(there, np.roll(conv2d(x, w, padding=1), (rows, columns), (2, 3)), atol=1e-14)


def test_upsampling_against_loops():
    x, w = numbers(0, 2, 3, 2, 5), numbers(1, 3, 4, 2, 2)
    expected = np.zeros((2, 4, 4, 10))
    for n, c, d, h, v, i, j in np.ndindex(2, 3, 4, 2, 5, 2, 2):
        expected[n, d, 2 * h + i, 2 * v + j] += x[n, c, h, v] * w[c, d, i, j]
    assert_allclose(upsample2x2(x, w), expected, atol=1e-13)


def test_max_pooling_by_hand():
    x = np.float32([[[[1, 2, -1, -2], [4, 3, -4, -3], [0, 9, 5, 5], [0, 0, 5, 5]]]])
    assert max_pool2x2(x).tolist() == [[[[4, -1], [9, 5]]]]
    x = numbers(0, 2, 3, 4, 6)
    for n, c, i, j in np.ndindex(2, 3, 2, 3):
        patch = x[n, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert max_pool2x2(x)[n, c, i, j] == patch.max()
    assert max_pool2x2(x).shape == (2, 3, 2, 3)


def test_a_border_behind_the_last():
    # Windows of three at 0 and 2, the last column and row of the second one zero.
    x, w = np.arange(1.0, 17).reshape(1, 1, 4, 4), np.ones((1, 1, 3, 3))
    actual = conv2d(x, w, stride=2, far=1)
    assert actual.tolist() == [[[[54, 45], [72, 54]]]]
    assert_array_equal(actual, conv2d(np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1))), w, stride=2))


def test_max_pooling_of_threes_by_hand():
    x = np.float32([[[[-1, -2, -3, -4], [-5, -6, -7, -8]]]])
    assert max_pool3x3(x, before=0).tolist() == [[[[-1, -3]]]]  # columns 0 to 2, 2 to 3
    assert max_pool3x3(x, before=1).tolist() == [[[[-1, -2]]]]  # columns 0 to 1, 1 to 3
    assert max_pool3x3(x, before=0).dtype == np.float32
    x = numbers(0, 2, 3, 6, 8)
    for before in (0, 1):
        actual = max_pool3x3(x, before)
        assert actual.shape == (2, 3, 3, 4)
        for n, c, i, j in np.ndindex(actual.shape):
            rows = slice(max(0, 2 * i - before), 2 * i - before + 3)
            columns = slice(max(0, 2 * j - before), 2 * j - before + 3)
            assert actual[n, c, i, j] == x[n, c, rows, columns].max()


def test_overlapping_windows_add_their_gradients_and_ties_go_to_the_first():
    x = np.float64([[[[0, 0, 9, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]]])
    actual = max_pool3x3_gradient(np.float64([[[[1, 2], [4, 8]]]]), x, before=0)[0]
    # The two upper windows both see the 9; the lower left one four ones, the lower right none.
    assert actual.tolist() == [[[[0, 0, 3, 0], [0, 0, 0, 0], [4, 0, 8, 0], [0, 0, 0, 0]]]]


def test_relu_by_hand():
    x = np.float32([[-1, 0, 2]])
    assert relu(x).tolist() == [[0, 0, 2]]
    assert relu(x).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_l2_normalisation_by_hand(dtype):
    # Channels 3 and 4 have the norm 5; scales 10 and 20.
    x = np.array([[[[3, 0]], [[4, 0]]]], dtype)
    actual = l2_normalise(x, np.array([10, 20], dtype), 1e-10)
    assert actual.dtype == dtype
    assert_allclose(actual, [[[[6, 0]], [[16, 0]]]], rtol=1e-6)


def test_the_epsilon_of_the_l2_normalisation_is_under_the_root():
    # sqrt(3^2 + 7) = 4, where 3 + 7 is 10.
    actual = l2_normalise(np.full((1, 1, 1, 1), 3.0), np.ones(1), 7.0)
    assert actual.item() == 0.75
    # The authors' 1e-10: a channel of 1e-5 alone is divided by sqrt(2e-10).
    actual = l2_normalise(np.full((1, 1, 1, 1), 1e-5), np.ones(1), 1e-10)
    assert_allclose(actual.item(), math.sqrt(0.5), rtol=1e-12)


def test_l2_normalisation_is_pixel_by_pixel():
    actual = l2_normalise(numbers(0, 2, 5, 3, 4), np.ones(5), 1e-30)
    assert_allclose(np.square(actual).sum(axis=1), 1, rtol=1e-12)


def test_batch_normalisation_by_hand():
    # (x - 1) / sqrt(3 + 1) * 10 + 0.5; the second channel (x - 2) / 1 * 1 + 0.
    x = np.float64([[[[1, 5]], [[2, 0]]]])
    actual = batch_normalise(
        x,
        gamma=np.float64([10, 1]),
        beta=np.float64([0.5, 0]),
        mean=np.float64([1, 2]),
        variance=np.float64([3, 0]),
        eps=1.0,
    )
    assert actual.tolist() == [[[[0.5, 20.5]], [[0, -2]]]]


def test_weights_hold_rows_before_columns():
    # (outputs, inputs, rows, columns), and (inputs, outputs, rows, columns) for upsampling: a
    # kernel that only looks right, or down, moves the image left, or up.
    x = np.zeros((1, 1, 4, 6))
    x[0, 0, 1, 2] = 1
    right, down = np.zeros((1, 1, 3, 3)), np.zeros((1, 1, 3, 3))
    right[0, 0, 1, 2] = down[0, 0, 2, 1] = 1
    assert np.argwhere(conv2d(x, right, padding=1)).tolist() == [[0, 0, 1, 1]]
    assert np.argwhere(conv2d(x, down, padding=1)).tolist() == [[0, 0, 0, 2]]
    corner = np.zeros((1, 1, 2, 2))
    corner[0, 0, 0, 1] = 1
    assert_array_equal(np.argwhere(upsample2x2(x, corner)), [[0, 0, 2, 5]])


def normalised(x, gamma, beta):
    """Batch normalisation with the batch's own statistics, as training has it."""
    return batch_normalise(x, gamma, beta, x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3)), eps=0.1)


IMAGE = (2, 3, 4, 6)
CASES = {
    "convolution": (conv2d, [IMAGE, (5, 3, 3, 3)], {"padding": 1}),
    "strided": (conv2d, [(2, 3, 5, 8), (5, 3, 3, 3)], {"padding": 1, "stride": 2}),
    "strided, far": (conv2d, [(2, 3, 6, 8), (5, 3, 7, 7)], {"padding": 2, "stride": 2, "far": 1}),
    "dilated": (conv2d, [IMAGE, (5, 3, 3, 3)], {"padding": 3, "dilation": 3}),
    "one by one": (conv2d, [IMAGE, (5, 3, 1, 1)], {}),
    "bias": (add_bias, [IMAGE, (3,)], {}),
    "upsampling": (upsample2x2, [IMAGE, (3, 5, 2, 2)], {}),
    "pooling": (max_pool2x2, [IMAGE], {}),
    "pooling, before": (max_pool3x3, [IMAGE], {"before": 1}),
    "pooling, behind": (max_pool3x3, [IMAGE], {"before": 0}),
    "L2": (l2_normalise, [IMAGE, (3,)], {"eps": 0.5}),
    "batch": (normalised, [IMAGE, (3,), (3,)], {}),
    "relu": (relu, [IMAGE], {}),
    "sum": (add, [IMAGE, IMAGE], {}),
    "rows": (anchor_rows, [(2, 6, 4, 3), (2, 6, 2, 1)], {"per_anchor": 2}),
    "rows of one image": (anchor_rows, [(1, 6, 4, 3), (1, 6, 2, 1)], {"per_anchor": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_against_central_differences(name):
    layer, shapes, options = CASES[name]
    arrays = [numbers(i, *shape) for i, shape in enumerate(shapes)]
    out = layer(*arrays, **options)
    d = numbers(9, *out.shape)
    if layer is normalised:
        x = arrays[0]
        moments = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        actual = GRADIENTS[batch_normalise](d, *arrays, *moments, eps=0.1)
    else:
        actual = GRADIENTS[layer](d, *arrays, **options)
    assert [g.shape for g in actual] == [a.shape for a in arrays]
    for k, gradient in enumerate(actual):
        direction = numbers(20 + k, *gradient.shape)
        sides = []
        for step in (1e-6, -1e-6):
            moved = [a + step * direction if i == k else a for i, a in enumerate(arrays)]
            sides.append((layer(*moved, **options) * d).sum())
        slope = (sides[0] - sides[1]) / 2e-6
        assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-7)


def test_gradients_at_the_kinks():
    """Of equal values in a patch the first gets all; at 0 a ReLU passes nothing back."""
    ties = np.float64([[[[5, 5, 1, 2], [5, 5, 3, 3]]]])
    actual = max_pool2x2_gradient(np.float64([[[[7, 8]]]]), ties)[0]
    assert actual.tolist() == [[[[7, 0, 0, 0], [0, 0, 8, 0]]]]
    assert relu_gradient(np.float64([1, 1, 1]), np.float64([-1, 0, 2]))[0].tolist() == [0, 0, 1]


def test_a_tape_adds_up_what_several_readers_say():
    x, unused, tape = np.float64([1, -2]), np.float64([4]), Tape()
    y = tape(relu, x)
    z = tape(add, tape(add, x, y), x)
    assert z.tolist() == [3, -4]
    actual = tape.backward(
        [(z, np.float64([1, 10])), (y, np.float64([100, 100]))], {"x": x, "u": unused}
    )
    assert actual["x"].tolist() == [103, 20]
    assert actual["u"].tolist() == [0]


def test_layers_and_gradients_keep_float32():
    x = np.ones(IMAGE, np.float32)
    for layer, shapes, options in CASES.values():
        if layer is normalised:
            continue
        arrays = [np.ones(shape, np.float32) for shape in shapes]
        out = layer(*arrays, **options)
        assert out.dtype == np.float32
        assert {g.dtype for g in GRADIENTS[layer](out, *arrays, **options)} == {x.dtype}
    c = np.ones(3, np.float32)
    out = batch_normalise(x, c, c, c, c, 1e-5)
    actual = GRADIENTS[batch_normalise](out, x, c, c, c, c, 1e-5)
    assert {g.dtype for g in (out, *actual)} == {x.dtype}


def test_an_array_that_no_output_depends_on_does_not_stop_the_backward_pass():
    tape, x = Tape(), np.float64([1, -2])
    y = tape(relu, x)
    tape(relu, y)  # nobody asks for this
    gradients = tape.backward([(y, np.ones(2))], {"x": x})
    assert gradients["x"].tolist() == [1, 0]
