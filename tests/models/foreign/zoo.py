"""The model zoo's checkpoints: their container, names and network, apart from the code under test.

The names are those of section "Checkpoint names" of the facts, spelled out; the network is
run by the zoo's own names and with its own order of offsets.
"""

import numpy as np

from refinedet.spec.config import replace
from refinedet.spec.layers import (
    add_bias,
    anchor_rows,
    batch_normalise,
    conv2d,
    depthwise_conv2d,
    l2_normalise,
    max_pool2x2,
    relu,
    relu6,
    upsample2x2,
)
from refinedet.spec.presets import preset

from .writers import field

CONFIG = replace(
    preset("modelzoo_vgg16_320"), image_size=(64, 64), num_classes=4, network={"width": 1 / 64}
)
ORDER = (1, 0, 3, 2)
"""Where x, y, w, h are among y, x, h, w."""
OURS = """
    conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 conv4_3
    conv5_1 conv5_2 conv5_3 fc6 fc7 conv6_1 conv6_2
"""
THEIRS = """
    b1.0 b1.2 b2.0 b2.2 b3.0 b3.2 b3.4 b4.0 b4.2 b4.4
    b5.0 b5.2 b5.4 fc6 fc7 b6_1.0 b6_2.0
"""
TRUNK = dict(zip(OURS.split(), THEIRS.split(), strict=True))
TCB = {
    "tcb.0.lateral1": "tcb0.1",
    "tcb.0.lateral2": "tcb0.3",
    "tcb.1.lateral1": "tcb1.1",
    "tcb.1.lateral2": "tcb1.3",
    "tcb.2.lateral1": "tcb2.0",
    "tcb.2.lateral2": "tcb2.2",
    "tcb.3.lateral1": "tcb3.0",
    "tcb.0.upsample": "deconv0.0",
    "tcb.1.upsample": "deconv1.0",
    "tcb.2.upsample": "deconv2.0",
    "tcb.0.output": "p0.0",
    "tcb.0.output2": "p0.2",
    "tcb.1.output": "p1.0",
    "tcb.1.output2": "p1.2",
    "tcb.2.output": "p2.0",
    "tcb.2.output2": "p2.2",
    "tcb.3.lateral2": "p3.0",
    "tcb.3.output": "p3.2",
}
NORM = ("moving_mean", "moving_variance", "gamma", "beta")


def zoo_state(p):
    """The zoo's 149 tensors of our parameters, offsets in its order."""
    state = {f"network.backbone.{z}.weight": p[f"backbone.{o}.weight"] for o, z in TRUNK.items()}
    return {**state, **upper_state(p, ("conv4_3", "conv5_3"))}


def upper_state(p, normalised):
    """Those above the trunk, whose first two sources have these names."""
    state = {
        f"network.tcb.tcb{i}.0.weight": p[f"backbone.{name}.l2_scale"]
        for i, name in enumerate(normalised)
    }
    state |= {f"network.tcb.{z}.weight": p[f"{o}.weight"] for o, z in TCB.items()}
    for module in ("arm", "odm"):
        for ours, theirs in (("offsets", "loc"), ("logits", "cls")):
            for i in range(4):
                zoo = f"network.{module}.multi_box.multi_{theirs}_layers.{i}"
                own = f"{module}.{i}.{ours}"
                state[f"{zoo}.0.weight"] = p[f"{own}.depthwise.weight"]
                state |= {f"{zoo}.1.{part}": p[f"{own}.depthwise.{part}"] for part in NORM}
                for part in ("weight", "bias"):
                    value = p[f"{own}.{part}"]
                    if ours == "offsets":  # channel 4a + k
                        rows = [4 * a + k for a in range(len(value) // 4) for k in ORDER]
                        value = value[rows]
                    state[f"{zoo}.3.{part}"] = value
    return state


def training(state):
    """What the optimizer adds: 117 moments, and four others at most."""
    trained = [n for n in state if not n.endswith(("moving_mean", "moving_variance"))]
    return {
        **state,
        **{f"moments.{n}": np.ones_like(state[n]) for n in trained},
        "learning_rate": np.linspace(0.1, 0, 7, dtype="<f4"),
        "momentum": np.float32(0.9),
        "global_step": np.array([7], "<i4"),
    }


KINDS = {"<f4": "Float32", "<f2": "Float16", "<i4": "Int32", "<f8": "Float64"}


def proto(array, dims=None, kind=None):
    array = np.asarray(array)
    out = b"".join(field(1, n) for n in (array.shape if dims is None else dims))
    return out + field(2, (kind or KINDS[array.dtype.str]).encode()) + field(3, array.tobytes())


def value(tag, tensor):
    return field(1, field(1, tag.encode()) + field(2, tensor))


def ckpt(state, most=None):
    """A Checkpoint; tensors of more than ``most`` numbers in slices."""
    out = b""
    for tag, array in state.items():
        parts = [array] if most is None else np.array_split(array, -(-np.size(array) // most))
        out += b"".join(value(tag, proto(part, np.shape(array))) for part in parts)
    return out


def zoo_forward(state, images):
    """The zoo's forward pass; offsets as y, x, h, w."""

    def conv(name, x, **shape):
        return conv2d(x, state[f"network.backbone.{name}.weight"], **shape)

    x, sources = images, []
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(count):
            x = relu(conv(f"b{block}.{2 * i}", x, padding=1))
        if block > 3:
            sources.append(x)
        x = max_pool2x2(x)
    x = conv("fc7", relu(conv("fc6", x, padding=3, dilation=3)))
    sources.append(x)
    x = relu(conv("b6_1.0", relu(x)))
    sources.append(relu(conv("b6_2.0", x, padding=1, stride=2)))
    return upper_forward(state, sources)


def upper_forward(state, sources):
    """The zoo's pass from the trunk's four sources on."""

    def conv(name, x, **shape):
        return conv2d(x, state[f"network.{name}.weight"], **shape)

    p = relu(conv("tcb.tcb3.0", sources[3], padding=1))
    p = relu(conv("tcb.p3.2", relu(conv("tcb.p3.0", p, padding=1)), padding=1))
    blocks = [p]
    for i in (2, 1, 0):
        s, first = sources[i], 0
        if i < 2:
            scale = state[f"network.tcb.tcb{i}.0.weight"]
            s, first = l2_normalise(s, scale, eps=1e-10, floor=True), 1
        s = relu(conv(f"tcb.tcb{i}.{first}", s, padding=1))
        s = conv(f"tcb.tcb{i}.{first + 2}", s, padding=1)
        s = s + relu(upsample2x2(p, state[f"network.tcb.deconv{i}.0.weight"]))
        p = relu(conv(f"tcb.p{i}.2", relu(conv(f"tcb.p{i}.0", s, padding=1)), padding=1))
        blocks.insert(0, p)

    outputs = []
    for module, maps in (("arm", sources), ("odm", blocks)):
        for part in ("loc", "cls"):
            rows = []
            for i, x in enumerate(maps):
                head = f"{module}.multi_box.multi_{part}_layers.{i}"
                mean, variance, gamma, beta = (state[f"network.{head}.1.{n}"] for n in NORM)
                y = depthwise_conv2d(x, state[f"network.{head}.0.weight"], padding=1)
                y = relu6(batch_normalise(y, gamma, beta, mean, variance, eps=1e-3))
                rows.append(add_bias(conv(f"{head}.3", y), state[f"network.{head}.3.bias"]))
            per_anchor = 4 if part == "loc" else rows[0].shape[1] // 3
            outputs.append(anchor_rows(*rows, per_anchor=per_anchor))
    return outputs
