"""The whole of a ResNet detector of each family against a second opinion."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from refinedet.spec.network import Heads, forward, parameter_table

from .strategies import slopes, tiny

PAPER = {
    "backbone": "resnet",
    "batch_norm": True,
    "upsample_batch_norm": True,
    "l2_scales": None,
    "heads": "bottleneck",
}
ZOO = {
    "backbone": "resnet",
    "bottleneck_stride": "3x3",
    "same_padding": True,
    "extra_width": 32,
    "l2_floor": True,
    "l2_in_arm": False,
    "conv_bias": False,
    "tcb": "relu_sum_conv_conv",
    "heads": "separable",
    "head_momentum": 0.5,
}
TORCHVISION = PAPER | {"bottleneck_stride": "3x3", "pool_centred": True}
FAMILIES = {"paper": PAPER, "zoo": ZOO, "torchvision": TORCHVISION}


def small(family):
    shape = {"width": 1 / 32, "blocks": (1, 2, 1, 2), "tcb_channels": 64}
    sizes = {"batch_norm_eps": 0.01, "batch_norm_momentum": 0.8}
    return tiny(network=shape | sizes | FAMILIES[family])


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def window(x, kernel, stride, before, behind, value=0.0):
    sides = (before, behind)
    x = np.pad(x, ((0, 0), (0, 0), sides, sides), constant_values=value)
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))
    return windows[:, :, ::stride, ::stride]


def positive(x):
    return np.where(x > 0, x, 0)


class SecondOpinion:
    """The network once more, from the published descriptions of a family."""

    def __init__(self, parameters, family, training):
        self.p, self.family, self.training = parameters, family, training
        self.config = small(family)
        self.statistics = {}

    def outputs(self, images):
        sources = self.sources(images)
        refined = self.tcbs(self.normalised(sources))
        return [*self.module("arm", sources), *self.module("odm", refined)]

    def batch_norm(self, name, y, momentum=0.8):
        mean, variance = self.p[f"{name}.moving_mean"], self.p[f"{name}.moving_variance"]
        if self.training:
            flat = np.moveaxis(y, 1, 3).reshape(-1, y.shape[1])
            fresh = flat.var(axis=0, ddof=1) if len(flat) > 1 else flat.var(axis=0)
            running = momentum * mean + (1 - momentum) * flat.mean(axis=0)
            self.statistics[f"{name}.moving_mean"] = running
            self.statistics[f"{name}.moving_variance"] = (
                momentum * variance + (1 - momentum) * fresh
            )
            mean, variance = flat.mean(axis=0), flat.var(axis=0)
        columns = mean, np.sqrt(variance + 0.01), self.p[f"{name}.gamma"], self.p[f"{name}.beta"]
        mean, deviation, gamma, beta = (a[:, None, None] for a in columns)
        return (y - mean) / deviation * gamma + beta

    def conv(self, name, x, stride=1, same=False):
        w = self.p[f"{name}.weight"]
        k = w.shape[2]
        before, behind = (k - 2) // 2 if same else k // 2, k // 2
        if k == 1:
            before = behind = 0
        windows = window(x, k, stride, before, behind)
        y = np.moveaxis(np.tensordot(windows, w, ((1, 4, 5), (1, 2, 3))), 3, 1)
        if f"{name}.bias" in self.p:
            return y + self.p[f"{name}.bias"][:, None, None]
        return self.batch_norm(name, y) if f"{name}.gamma" in self.p else y

    def block(self, name, x, stride=1):
        # Caffe's strides are in the first convolution, the others' in the second.
        first, second = (stride, 1) if self.family == "paper" else (1, stride)
        same = self.family == "zoo" and second == 2
        y = positive(self.conv(f"{name}.conv1", x, first))
        y = positive(self.conv(f"{name}.conv2", y, second, same))
        y = self.conv(f"{name}.conv3", y)
        projected = f"{name}.projection.weight" in self.p
        return positive(y + (self.conv(f"{name}.projection", x, stride) if projected else x))

    def sources(self, images):
        x = positive(self.conv("backbone.conv1", images, 2, same=self.family == "zoo"))
        sides = (1, 0) if self.family == "torchvision" else (0, 1)
        x = window(x, 3, 2, *sides, value=-np.inf).max(axis=(4, 5))
        sources = []
        for stage, count in ((2, 1), (3, 2), (4, 1), (5, 2), (6, 1)):
            for n in range(1, count + 1):
                stride = 2 if stage > 2 and n == 1 else 1
                x = self.block(f"backbone.res{stage}_{n}", x, stride)
            if stage > 2:
                sources.append(x)
        return sources

    def normalised(self, sources):
        inputs = list(sources)
        if self.family == "zoo":
            for level, name in enumerate(("res3_2", "res4_1")):
                squares = np.maximum((sources[level] ** 2).sum(axis=1, keepdims=True), 1e-10)
                scale = self.p[f"backbone.{name}.l2_scale"][:, None, None]
                inputs[level] = sources[level] / np.sqrt(squares) * scale
        return inputs

    def upsampled(self, level, deeper):
        w = self.p[f"tcb.{level}.upsample.weight"]
        n, _, rows, columns = deeper.shape
        up = np.zeros((n, w.shape[1], 2 * rows, 2 * columns))
        for i, j in np.ndindex(2, 2):
            up[:, :, i::2, j::2] = np.einsum("ncrs,cd->ndrs", deeper, w[:, :, i, j])
        if self.family == "zoo":
            return positive(up)
        return self.batch_norm(f"tcb.{level}.upsample", up)

    def tcbs(self, inputs):
        refined = [None] * 4
        for level in (3, 2, 1, 0):
            x = positive(self.conv(f"tcb.{level}.lateral1", inputs[level]))
            x = self.conv(f"tcb.{level}.lateral2", x)
            if level < 3:
                x = x + self.upsampled(level, refined[level + 1])
            if self.family != "zoo" or level == 3:
                x = positive(x)
            x = positive(self.conv(f"tcb.{level}.output", x))
            if self.family == "zoo" and level < 3:
                x = positive(self.conv(f"tcb.{level}.output2", x))
            refined[level] = x
        return refined

    def output(self, name, x):
        if self.family == "zoo":
            w = self.p[f"{name}.depthwise.weight"]
            y = np.einsum("ncrsij,cij->ncrs", window(x, 3, 1, 1, 1), w[:, 0])
            y = self.batch_norm(f"{name}.depthwise", y, momentum=0.5)
            x = np.minimum(positive(y), 6)
        return self.conv(name, x)

    def module(self, module, features):
        rows = {"offsets": [], "logits": []}
        numbers_an_anchor = {"offsets": 4, "logits": 2 if module == "arm" else 4}
        for level, x in enumerate(features):
            if self.family != "zoo":
                x = self.block(f"{module}.{level}.shared", x)
            for kind, outputs in rows.items():
                y = np.moveaxis(self.output(f"{module}.{level}.{kind}", x), 1, 3)
                outputs.append(y.reshape(len(y), -1, numbers_an_anchor[kind]))
        assert self.config.num_classes == 4
        return [np.concatenate(outputs, axis=1) for outputs in rows.values()]


def lively(config, seed):
    """Parameters of which none is at rest."""
    parameters = {}
    for i, p in enumerate(parameter_table(config)):
        low, high = (0.5, 1.5) if "variance" in p.name or "gamma" in p.name else (-0.5, 0.5)
        parameters[p.name] = np.random.default_rng([seed, i]).uniform(low, high, p.shape)
    return parameters


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_against_a_second_opinion(family, training):
    config = small(family)
    parameters, images = lively(config, 0), numbers(1, 2, 3, *config.image_size)
    actual, statistics = forward(parameters, images, config, training=training)
    opinion = SecondOpinion(parameters, family, training)
    expected, running = opinion.outputs(images), opinion.statistics
    for name, mine, theirs in zip(Heads._fields, actual, expected, strict=True):
        assert mine.std() > 0.01, name
        assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11, err_msg=name)
    assert set(statistics) == set(running)
    assert bool(running) == training
    for name in running:
        assert_allclose(statistics[name], running[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("family", ["paper", "zoo"])
def test_the_backward_pass_is_the_slope_of_the_forward_pass(family):
    config = small(family)
    parameters, images = lively(config, 0), numbers(1, 2, 3, *config.image_size)
    for part, slope, expected in slopes(parameters, images, config):
        assert abs(slope - expected) < 1e-3 * (abs(expected) + 1), part
