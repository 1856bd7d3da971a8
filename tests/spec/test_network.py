"""The network: published figures, layers against loops, and a second opinion on the whole."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refinedet.spec.config import preset, replace
from refinedet.spec.network import (
    Parameter,
    batch_normalise,
    check_parameters,
    conv2d,
    forward,
    initial_parameters,
    l2_normalise,
    max_pool2x2,
    parameter_count,
    parameter_table,
    relu,
    source_channels,
    upsample2x2,
)

from .strategies import refused, tiny

VGG = preset("refinedet_vgg16_320")
NAMES = ("arm_offsets", "arm_logits", "odm_offsets", "odm_logits")


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# The table of parameters


@pytest.mark.parametrize(("classes", "count"), [(81, 36_100_484), (21, 34_440_884)])
def test_published_parameter_counts(classes, count):
    """Counted from the authors' released VGG16 models; they do not depend on the input's size."""
    for name in ("refinedet_vgg16_320", "refinedet_vgg16_512"):
        assert parameter_count(replace(preset(name), num_classes=classes)) == count


def listed(config, wide, inside, heads):
    """The layers from the published tables, in order: name, weight's shape.

    VGG16: arXiv:1409.1556, table 1, D. fc6, fc7, conv6_1, conv6_2, 2x2 upsampling, one 3x3
    convolution a head: the authors' release.
    """
    inputs = 3
    for block, (outputs, count) in enumerate(
        zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True), start=1
    ):
        for layer in range(1, count + 1):
            yield f"backbone.conv{block}_{layer}", (wide(outputs), inputs, 3, 3)
            inputs = wide(outputs)
    yield "backbone.fc6", (wide(1024), wide(512), 3, 3)
    yield "backbone.fc7", (wide(1024), wide(1024), 1, 1)
    yield "backbone.conv6_1", (wide(256), wide(1024), 1, 1)
    yield "backbone.conv6_2", (wide(512), wide(256), 3, 3)
    yield "backbone.conv4_3.l2_scale", (wide(512),)
    yield "backbone.conv5_3.l2_scale", (wide(512),)
    sources = [wide(512), wide(512), wide(1024), wide(512)]
    for level, source in enumerate(sources):
        yield f"tcb.{level}.lateral1", (inside, source, 3, 3)
        yield f"tcb.{level}.lateral2", (inside, inside, 3, 3)
        yield f"tcb.{level}.output", (inside, inside, 3, 3)
        if level < 3:
            yield f"tcb.{level}.upsample", (inside, inside, 2, 2)
    for module, channels in (("arm", sources), ("odm", [inside] * 4)):
        for level in range(4):
            yield f"{module}.{level}.offsets", (heads * 4, channels[level], 3, 3)
            classes = 2 if module == "arm" else config.num_classes
            yield f"{module}.{level}.logits", (heads * classes, channels[level], 3, 3)


def rows(config, layers):
    """Every parameter of the listed layers: name, shape, group, initialiser."""
    for name, shape in layers:
        plain = name.endswith((".offsets", ".logits", ".upsample"))
        if name.endswith(".l2_scale"):
            yield name, shape, "decay", {"conv4_3": 10.0, "conv5_3": 8.0}[name.split(".")[1]]
            continue
        yield f"{name}.weight", shape, "decay", "xavier"
        one = (shape[0],)
        if config.network.batch_norm and not plain:
            yield f"{name}.gamma", one, "no_decay", 1.0
            yield f"{name}.beta", one, "no_decay", 0.0
            yield f"{name}.moving_mean", one, "statistic", 0.0
            yield f"{name}.moving_variance", one, "statistic", 1.0
        else:
            yield f"{name}.bias", one, "bias", 0.0


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_table_lists_the_published_layers_in_order(batch_norm):
    config = replace(VGG, network={"batch_norm": batch_norm})
    table = parameter_table(config)
    assert all(isinstance(row, Parameter) for row in table)
    assert [tuple(row) for row in table] == list(rows(config, listed(config, int, 256, 3)))


def test_width_narrows_every_layer_but_the_heads():
    config = replace(VGG, network={"width": 0.25}, num_classes=5, anchors={"aspect_ratios": (1.0,)})
    want = rows(config, listed(config, lambda c: c // 4, 64, 1))
    assert [tuple(row) for row in parameter_table(config)] == list(want)
    assert source_channels(config) == [128, 128, 256, 128]
    config = replace(VGG, network={"tcb_channels": 128})
    want = rows(config, listed(config, int, 128, 3))
    assert [tuple(row) for row in parameter_table(config)] == list(want)


def test_running_statistics_are_not_counted():
    config = tiny(network={"width": 1 / 64, "batch_norm": True})
    trained = [p for p in parameter_table(config) if p.group != "statistic"]
    assert parameter_count(config) == sum(math.prod(p.shape) for p in trained)
    assert len(trained) < len(parameter_table(config))


def test_the_l2_scales_are_those_of_the_config():
    config = tiny(network={"width": 1 / 64, "batch_norm": False, "l2_scales": (3.0, 5.0)})
    parameters = initial_parameters(config, 0)
    assert set(parameters["backbone.conv4_3.l2_scale"].tolist()) == {3.0}
    assert set(parameters["backbone.conv5_3.l2_scale"].tolist()) == {5.0}


# Initial parameters


@pytest.mark.parametrize("batch_norm", [False, True])
def test_initial_parameters(batch_norm):
    config = tiny(network={"width": 0.25, "batch_norm": batch_norm})
    parameters = initial_parameters(config, 0)
    table = parameter_table(config)
    assert list(parameters) == [p.name for p in table]
    for p in table:
        values = parameters[p.name]
        assert values.dtype == np.float32
        assert values.shape == p.shape
        if p.initialiser == "xavier":
            # Uniform from -b to b; each output adds up inputs * kernel numbers, and an
            # upsampled pixel one number an input.
            count = p.shape[0] if "upsample" in p.name else math.prod(p.shape[1:])
            bound = math.sqrt(3 / count)
            assert abs(values).max() <= bound
            assert abs(values).max() > 0.9 * bound
            assert abs(values.mean()) < 0.2 * bound
            assert abs((values < 0).mean() - 0.5) < 0.2
        else:
            assert (values == p.initialiser).all()
    check_parameters(parameters, config)


def test_the_seed_decides():
    config = tiny()
    a, b, c = (initial_parameters(config, seed) for seed in (1, 1, 2))
    assert all((a[name] == b[name]).all() for name in a)
    assert all((a[name] != c[name]).any() for name in a if name.endswith(".weight"))


# Checks of parameters


def test_parameters_are_those_of_the_table():
    config = tiny()
    good = initial_parameters(config, 0)
    check_parameters(good, config)
    first = "backbone.conv1_1.weight"
    without = {k: v for k, v in good.items() if k != first}
    with refused(f"parameters: {first} is missing"):
        check_parameters(without, config)
    with refused("parameters: zebra is unknown"):
        check_parameters({**good, "zebra": np.zeros(1, np.float32)}, config)
    with refused(f"parameters: {first} has shape (3, 3, 3), wants (1, 3, 3, 3)"):
        check_parameters({**good, first: good[first][0]}, config)
    with refused(f"{first}: not finite at (0, 0, 0, 0)"):
        check_parameters({**good, first: good[first] * np.nan}, config)
    with refused(f"parameters: {first} is missing; zebra is unknown"):
        check_parameters({**without, "zebra": np.zeros(1, np.float32)}, config)


@pytest.mark.parametrize(("extra", "more"), [(5, ""), (6, ", and 1 more"), (9, ", and 4 more")])
def test_five_faults_are_shown_in_order(extra, more):
    config = tiny()
    unknown = {f"x{i}": np.zeros(1, np.float32) for i in reversed(range(extra))}
    shown = "; ".join(f"x{i} is unknown" for i in range(5))
    with refused(f"parameters: {shown}{more}"):
        check_parameters({**initial_parameters(config, 0), **unknown}, config)


# Layers against loops


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
    got = conv2d(x, w, stride, padding, dilation)
    assert_allclose(got, slow_conv(x, w, stride, padding, dilation), atol=1e-12)
    got = conv2d(x.astype(np.float32), w.astype(np.float32), stride, padding, dilation)
    assert got.dtype == np.float32
    assert_allclose(got, slow_conv(x, w, stride, padding, dilation), atol=1e-4)


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
    x, w, b = numbers(0, 2, 3, 2, 5), numbers(1, 3, 4, 2, 2), numbers(2, 4)
    want = np.zeros((2, 4, 4, 10)) + b[:, None, None]
    for n, c, d, h, v, i, j in np.ndindex(2, 3, 4, 2, 5, 2, 2):
        want[n, d, 2 * h + i, 2 * v + j] += x[n, c, h, v] * w[c, d, i, j]
    assert_allclose(upsample2x2(x, w, b), want, atol=1e-13)


def test_max_pooling_by_hand():
    x = np.float32([[[[1, 2, -1, -2], [4, 3, -4, -3], [0, 9, 5, 5], [0, 0, 5, 5]]]])
    assert max_pool2x2(x).tolist() == [[[[4, -1], [9, 5]]]]
    x = numbers(0, 2, 3, 4, 6)
    for n, c, i, j in np.ndindex(2, 3, 2, 3):
        patch = x[n, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert max_pool2x2(x)[n, c, i, j] == patch.max()
    assert max_pool2x2(x).shape == (2, 3, 2, 3)


def test_relu_by_hand():
    x = np.float32([[-1, 0, 2]])
    assert relu(x).tolist() == [[0, 0, 2]]
    assert relu(x).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_l2_normalisation_by_hand(dtype):
    # Channels 3 and 4 have the norm 5; scales 10 and 20.
    x = np.array([[[[3, 0]], [[4, 0]]]], dtype)
    got = l2_normalise(x, np.array([10, 20], dtype), 1e-10)
    assert got.dtype == dtype
    assert_allclose(got, [[[[6, 0]], [[16, 0]]]], rtol=1e-6)


def test_the_epsilon_of_the_l2_normalisation_is_under_the_root():
    # sqrt(3^2 + 7) = 4, where 3 + 7 is 10.
    got = l2_normalise(np.full((1, 1, 1, 1), 3.0), np.ones(1), 7.0)
    assert got.item() == 0.75
    # The authors' 1e-10: a channel of 1e-5 alone is divided by sqrt(2e-10).
    got = l2_normalise(np.full((1, 1, 1, 1), 1e-5), np.ones(1), 1e-10)
    assert_allclose(got.item(), math.sqrt(0.5), rtol=1e-12)


def test_l2_normalisation_is_pixel_by_pixel():
    got = l2_normalise(numbers(0, 2, 5, 3, 4), np.ones(5), 1e-30)
    assert_allclose(np.square(got).sum(axis=1), 1, rtol=1e-12)


def test_batch_normalisation_by_hand():
    # (x - 1) / sqrt(3 + 1) * 10 + 0.5; the second channel (x - 2) / 1 * 1 + 0.
    x = np.float64([[[[1, 5]], [[2, 0]]]])
    got = batch_normalise(
        x,
        gamma=np.float64([10, 1]),
        beta=np.float64([0.5, 0]),
        mean=np.float64([1, 2]),
        variance=np.float64([3, 0]),
        eps=1.0,
    )
    assert got.tolist() == [[[[0.5, 20.5]], [[0, -2]]]]


def test_layers_keep_float32():
    x, one = np.ones((1, 1, 2, 2), np.float32), np.ones(1, np.float32)
    assert upsample2x2(x, np.ones((1, 1, 2, 2), np.float32), one).dtype == np.float32
    assert max_pool2x2(x).dtype == np.float32
    assert batch_normalise(x, one, one, one, one, 1e-5).dtype == np.float32


# The whole


def other_opinion(parameters, pictures, config, training=False):
    """The network once more, written down layer by layer from the publications alone.

    arXiv:1711.06897, figures 1 and 2; the authors' release for what they leave open.
    """
    net, seen = config.network, {}

    def conv(name, x, kernel=3, stride=1, dilation=1):
        pad = dilation * (kernel // 2)
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        reach = dilation * (kernel - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride, ::dilation, ::dilation]
        y = np.tensordot(windows, parameters[f"{name}.weight"], ((1, 4, 5), (1, 2, 3)))
        if f"{name}.bias" in parameters:  # y is (N, rows, columns, outputs)
            return np.moveaxis(y + parameters[f"{name}.bias"], 3, 1)
        mean, variance = parameters[f"{name}.moving_mean"], parameters[f"{name}.moving_variance"]
        if training:
            flat = y.reshape(-1, y.shape[3])
            m = net.batch_norm_momentum
            fresh = flat.var(axis=0, ddof=1) if len(flat) > 1 else flat.var(axis=0)
            seen[f"{name}.moving_mean"] = m * mean + (1 - m) * flat.mean(axis=0)
            seen[f"{name}.moving_variance"] = m * variance + (1 - m) * fresh
            mean, variance = flat.mean(axis=0), flat.var(axis=0)
        y = (y - mean) / np.sqrt(variance + net.batch_norm_eps)
        return np.moveaxis(y * parameters[f"{name}.gamma"] + parameters[f"{name}.beta"], 3, 1)

    def positive(x):
        return x * (x > 0)

    def pool(x):
        return np.maximum(
            np.maximum(x[:, :, ::2, ::2], x[:, :, 1::2, ::2]),
            np.maximum(x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]),
        )

    def unit(name, x):
        scale = parameters[f"{name}.l2_scale"][:, None, None]
        return scale * x / np.sqrt((x * x).sum(axis=1)[:, None] + net.l2_eps)

    x, sources = pictures, []
    for block, layers in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
        for layer in range(1, layers + 1):
            x = positive(conv(f"backbone.conv{block}_{layer}", x))
        if block > 3:
            sources.append(unit(f"backbone.conv{block}_3", x))
        x = pool(x)
    x = positive(conv("backbone.fc6", x, dilation=3))
    x = positive(conv("backbone.fc7", x, kernel=1))
    sources.append(x)
    x = positive(conv("backbone.conv6_1", x, kernel=1))
    x = positive(conv("backbone.conv6_2", x, stride=2))
    sources.append(x)

    refined = [None] * 4
    for level in (3, 2, 1, 0):
        x = positive(conv(f"tcb.{level}.lateral1", sources[level]))
        x = conv(f"tcb.{level}.lateral2", x)
        if level < 3:
            deeper = refined[level + 1]
            w = parameters[f"tcb.{level}.upsample.weight"]
            up = np.zeros((*x.shape[:2], 2 * deeper.shape[2], 2 * deeper.shape[3]))
            for i in (0, 1):
                for j in (0, 1):
                    up[:, :, i::2, j::2] = np.einsum("ncrs,cd->ndrs", deeper, w[:, :, i, j])
            x = x + up + parameters[f"tcb.{level}.upsample.bias"][:, None, None]
        x = positive(x)  # after the sum
        refined[level] = positive(conv(f"tcb.{level}.output", x))

    def heads(module, kind, features, numbers_an_anchor):
        out = []
        for level, x in enumerate(features):
            y = conv(f"{module}.{level}.{kind}", x)
            n, c, r, s = y.shape
            y = y.reshape(n, c // numbers_an_anchor, numbers_an_anchor, r, s)
            out.append(y.transpose(0, 3, 4, 1, 2).reshape(n, -1, numbers_an_anchor))
        return np.concatenate(out, axis=1)

    outputs = (
        heads("arm", "offsets", sources, 4),
        heads("arm", "logits", sources, 2),
        heads("odm", "offsets", refined, 4),
        heads("odm", "logits", refined, config.num_classes),
    )
    return outputs, seen


def lively(config, seed):
    """Parameters in float64 of which none is at rest: biases, scales and statistics, too."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for name, value in initial_parameters(config, seed).items():
        noise = rng.uniform(0.5, 1.5, value.shape)
        if name.endswith((".bias", ".beta", ".moving_mean")):
            parameters[name] = noise - 0.8
        else:
            parameters[name] = value * noise
    return parameters


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 128), (128, 64)])
def test_the_whole_against_a_second_opinion(batch_norm, training, size):
    config = tiny(
        image_size=size,
        num_classes=5,
        network={
            "width": 1 / 16,
            "batch_norm": batch_norm,
            "batch_norm_eps": 0.01,
            "batch_norm_momentum": 0.8,
            "l2_eps": 0.1,
        },
        anchors={"aspect_ratios": (1.0, 2.0, 0.5)},
    )
    parameters, pictures = lively(config, 3), numbers(4, 2, 3, *size)
    got, statistics = forward(parameters, pictures, config, training=training)
    want, seen = other_opinion(parameters, pictures, config, training)
    assert got._fields == NAMES
    for name, mine, theirs in zip(NAMES, got, want, strict=True):
        assert mine.std() > 0.01, name  # it is alive
        assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11, err_msg=name)
    assert set(statistics) == set(seen)
    assert bool(statistics) == (batch_norm and training)
    for name in seen:
        assert_allclose(statistics[name], seen[name], rtol=1e-9, err_msg=name)


def test_float32_comes_out_of_float32():
    config = tiny(network={"width": 1 / 16, "batch_norm": True})
    parameters = {k: v.astype(np.float32) for k, v in lively(config, 0).items()}
    pictures = numbers(1, 2, 3, 64, 128).astype(np.float32)
    for training in (False, True):
        got, statistics = forward(parameters, pictures, config, training=training)
        fine = {k: v.astype(np.float64) for k, v in parameters.items()}
        want, _ = forward(fine, pictures.astype(np.float64), config, training=training)
        assert {a.dtype for a in [*got, *statistics.values()]} == {np.dtype(np.float32)}
        for mine, theirs in zip(got, want, strict=True):
            assert_allclose(mine, theirs, atol=1e-3)


@pytest.mark.parametrize(("name", "count"), [("320", 6375), ("512", 16320)])
def test_published_shapes(name, count):
    # 40, 20, 10, 5 or 64, 32, 16, 8 cells a side, three anchors a cell: arXiv:1711.06897.
    config = replace(preset(f"refinedet_vgg16_{name}"), network={"width": 1 / 64})
    side = int(name)
    pictures = np.zeros((1, 3, side, side), np.float32)
    got, statistics = forward(initial_parameters(config, 0), pictures, config)
    assert [a.shape for a in got] == [(1, count, n) for n in (4, 2, 4, 81)]
    assert statistics == {}


def test_rows_are_level_by_level_cell_by_cell_anchor_by_anchor():
    # All weights are 0, so that each head says its bias: its channel's number, and its level.
    config = tiny(anchors={"aspect_ratios": (1.0, 2.0, 0.5)})
    parameters = {k: v * 0 for k, v in initial_parameters(config, 0).items()}
    for module in ("arm", "odm"):
        for level in range(4):
            for kind in ("offsets", "logits"):
                bias = parameters[f"{module}.{level}.{kind}.bias"]
                bias += np.arange(len(bias)) + 100 * (level + 1)
    heads, _ = forward(parameters, numbers(0, 1, 3, 64, 128).astype(np.float32), config)
    cells = (8 * 16, 4 * 8, 2 * 4, 1 * 2)
    for name, size in zip(NAMES, (4, 2, 4, 4), strict=True):
        want = [
            [100 * (level + 1) + anchor * size + n for n in range(size)]
            for level in range(4)
            for _ in range(cells[level])
            for anchor in range(3)
        ]
        assert getattr(heads, name)[0].tolist() == want


@pytest.mark.parametrize(("y", "x"), [(12, 396), (44, 100)])
def test_a_pixel_changes_the_rows_of_the_cells_near_it(y, x):
    # conv4_3 sees 92 pixels, its head 16 more: cells whose centre is within 54 pixels.
    # conv5_3 sees 196, its head 32 more: 114 pixels.
    config = tiny(image_size=(64, 512), network={"width": 1 / 16, "batch_norm": False})
    parameters, pictures = lively(config, 0), numbers(1, 1, 3, 64, 512)
    before, _ = forward(parameters, pictures, config)
    pictures[0, :, y, x] += 100
    after, _ = forward(parameters, pictures, config)
    changed = (before.arm_offsets != after.arm_offsets)[0].any(axis=1)
    first = 0
    for stride, reach in ((8, 54), (16, 114)):
        rows, columns = 64 // stride, 512 // stride
        cells = changed[first : first + rows * columns].reshape(rows, columns)
        hit = np.flatnonzero(cells.any(axis=0)) * stride + stride / 2
        assert hit.size
        assert (abs(hit - x - 0.5) <= reach).all()
        assert cells[:, x // stride].any()
        first += rows * columns
    # The ODM hears of it from the coarsest level, all over.
    odm = (before.odm_offsets != after.odm_offsets)[0].any(axis=1)
    assert odm[: 8 * 64].reshape(8, 64).any(axis=0).sum() > 40


def test_pictures_of_a_batch_do_not_meet_outside_training():
    config = tiny(network={"width": 1 / 16, "batch_norm": True})
    parameters, pictures = lively(config, 0), numbers(1, 3, 3, 64, 128)
    whole, _ = forward(parameters, pictures, config)
    for n in range(3):
        alone, _ = forward(parameters, pictures[n : n + 1], config)
        for a, b in zip(alone, whole, strict=True):
            assert_allclose(a[0], b[n], atol=1e-12)


def test_running_statistics_by_hand():
    # The picture is 1 everywhere and conv1_1 the identity of its middle: its outputs are 0 at
    # no border, so mean 1 and variance 0. 0.9 * 0 + 0.1 * 1 = 0.1; 0.9 * 1 + 0.1 * 0 = 0.9.
    config = tiny(network={"width": 1 / 64, "batch_norm": True})
    parameters = initial_parameters(config, 0)
    parameters["backbone.conv1_1.weight"][...] = 0
    parameters["backbone.conv1_1.weight"][0, 0, 1, 1] = 1
    kept = {k: v.copy() for k, v in parameters.items()}
    pictures = np.ones((1, 3, 64, 128), np.float32)
    _, statistics = forward(parameters, pictures, config, training=True)
    assert_allclose(statistics["backbone.conv1_1.moving_mean"], 0.1, rtol=1e-6)
    assert_allclose(statistics["backbone.conv1_1.moving_variance"], 0.9, rtol=1e-6)
    # Half of the pixels 0, half 2: mean 1, variance 1 by M, M / (M - 1) by M - 1; M = 8192.
    pictures[:, :, :32], pictures[:, :, 32:] = 0, 2
    fine = {k: v.astype(np.float64) for k, v in parameters.items()}
    _, statistics = forward(fine, pictures.astype(np.float64), config, training=True)
    want = 0.9 + 0.1 * 8192 / 8191
    assert_allclose(statistics["backbone.conv1_1.moving_variance"], want, rtol=1e-12)
    assert all((parameters[k] == kept[k]).all() for k in kept)  # the arguments stay


def test_one_number_a_channel_has_no_variance():
    # conv6_2 of one picture of 64 x 64 is one pixel.
    config = tiny(image_size=(64, 64), network={"width": 1 / 64, "batch_norm": True})
    parameters = initial_parameters(config, 0)
    pictures = numbers(0, 1, 3, 64, 64).astype(np.float32)
    heads, statistics = forward(parameters, pictures, config, training=True)
    assert_allclose(statistics["backbone.conv6_2.moving_variance"], 0.9, rtol=1e-6)
    assert all(np.isfinite(head).all() for head in heads)


def test_what_the_network_refuses():
    config = tiny()
    parameters = initial_parameters(config, 0)
    pictures = np.zeros((1, 3, 64, 128), np.float32)
    with refused("pictures: wants shape (any, 3, 64, 128), got (1, 3, 128, 64)"):
        forward(parameters, pictures.transpose(0, 1, 3, 2), config)
    with refused("pictures: wants shape (any, 3, 64, 128), got (3, 64, 128)"):
        forward(parameters, pictures[0], config)
    with refused("pictures: want at least one"):
        forward(parameters, pictures[:0], config)
    with refused("pictures, weight: want one dtype, got ['float32', 'float64']"):
        forward(parameters, pictures.astype(np.float64), config)
    with refused("pictures: wants a float32 or float64 array, got uint8"):
        forward(parameters, pictures.astype(np.uint8), config)
    with refused("parameters: backbone.conv1_1.bias is missing"):
        forward(
            {k: v for k, v in parameters.items() if k != "backbone.conv1_1.bias"}, pictures, config
        )


def test_weights_hold_rows_before_columns():
    # (outputs, inputs, rows, columns), and (inputs, outputs, rows, columns) for upsampling: a
    # kernel that only looks right, or down, moves the picture left, or up.
    x = np.zeros((1, 1, 4, 6))
    x[0, 0, 1, 2] = 1
    right, down = np.zeros((1, 1, 3, 3)), np.zeros((1, 1, 3, 3))
    right[0, 0, 1, 2] = down[0, 0, 2, 1] = 1
    assert np.argwhere(conv2d(x, right, padding=1)).tolist() == [[0, 0, 1, 1]]
    assert np.argwhere(conv2d(x, down, padding=1)).tolist() == [[0, 0, 0, 2]]
    corner = np.zeros((1, 1, 2, 2))
    corner[0, 0, 0, 1] = 1
    assert_array_equal(np.argwhere(upsample2x2(x, corner, np.zeros(1))), [[0, 0, 2, 5]])
