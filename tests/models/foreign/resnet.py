"""ResNet101 as Caffe, torchvision and the model zoo name it, apart from the code under test.

The names are those that the authors' ``model_libs.py``, torchvision's ``resnet.py`` and the
zoo's ``resnet101_for_refinedet.py`` give; each network is run by its own names.
"""

import numpy as np

from refinedet.spec.config import replace
from refinedet.spec.layers import (
    add_bias,
    anchor_rows,
    batch_normalise,
    conv2d,
    max_pool3x3,
    relu,
    upsample2x2,
)
from refinedet.spec.network import parameter_table
from refinedet.spec.presets import preset

from .zoo import upper_forward, upper_state

PAPER = replace(
    preset("refinedet_resnet101_320"), image_size=(64, 64), num_classes=4, network={"width": 1 / 64}
)
ZOO = replace(
    preset("modelzoo_resnet101_320"), image_size=(64, 64), num_classes=4, network={"width": 1 / 32}
)
CAFFE = """
    2a 2b 2c 3a 3b1 3b2 3b3
    4a 4b1 4b2 4b3 4b4 4b5 4b6 4b7 4b8 4b9 4b10 4b11
    4b12 4b13 4b14 4b15 4b16 4b17 4b18 4b19 4b20 4b21 4b22 5a 5b 5c
"""
CAFFE_BLOCKS = CAFFE.split()
COUNTS = {2: 3, 3: 4, 4: 23, 5: 3}
PLACES = [(stage, n) for stage, count in COUNTS.items() for n in range(1, count + 1)]
OURS = [f"backbone.res{stage}_{n}" for stage, n in PLACES]
LAYERS = [f"layer{stage - 1}.{n - 1}" for stage, n in PLACES]
ARM = ("res3b3_relu", "res4b22_relu", "res5c_relu", "res6_relu")
ODM = ("P3", "P4", "P5", "P6")


def drawn(config, seed=0):
    """All parameters; none is at rest, variances are above 0, and 33 sums stay small."""
    rng = np.random.default_rng(seed)
    made = {}
    for p in parameter_table(config):
        part = p.name.rpartition(".")[2]
        bound = 1.5 / np.sqrt(max(1, np.prod(p.shape[1:])))
        low, high = {"moving_variance": (0.5, 1.5), "gamma": (0.5, 1.2)}.get(part, (-bound, bound))
        if p.name.endswith("conv3.gamma"):
            low, high = 0.1, 0.3
        made[p.name] = rng.uniform(low, high, p.shape).astype(np.float32)
    return made


# ---- Caffe ------------------------------------------------------------------------------


def caffe_layers(p, factor=1.0, classifier=False):
    """``[(name, blobs, kind)]``; only what is in ``p``, and a classifier's last layer."""
    layers = [("data", [], "Data")]

    def normal(ours, conv, bn, scale):
        if f"{ours}.weight" not in p:
            return
        mean, variance, gamma, beta = (
            p[f"{ours}.{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        f = np.float32(factor)
        layers.append((conv, [p[f"{ours}.weight"]], "Convolution"))
        layers.append((bn, [mean * f, variance * f, np.array([f])], "BatchNorm"))
        layers.append((scale, [gamma, beta], "Scale"))

    def block(ours, name):
        for part, branch in (
            ("projection", "branch1"),
            ("conv1", "branch2a"),
            ("conv2", "branch2b"),
            ("conv3", "branch2c"),
        ):
            names = (f"{kind}{name}_{branch}" for kind in ("res", "bn", "scale"))
            normal(f"{ours}.{part}", *names)

    normal("backbone.conv1", "conv1", "bn_conv1", "scale_conv1")
    for ours, name in zip(OURS, CAFFE_BLOCKS, strict=True):
        block(ours, name)
    if classifier:
        return [*layers, ("fc1000", [np.zeros((10, 32), "<f4"), np.zeros(10, "<f4")], "x")]
    block("backbone.res6_1", "6")
    for level, k in enumerate("3456"):
        for part, name in (("lateral1", f"TL{k}_1"), ("lateral2", f"TL{k}_2"), ("output", f"P{k}")):
            normal(f"tcb.{level}.{part}", name, f"{name}_bn", f"{name}_scale")
    for level, name in enumerate(("P4-up", "P5-up", "P6-up")):
        normal(f"tcb.{level}.upsample", name, f"{name}_bn", f"{name}_scale")
    for module, names in (("arm", ARM), ("odm", ODM)):
        for level, name in enumerate(names):
            block(f"{module}.{level}.shared", f"{name}_inter")
            for ours, theirs in (("offsets", "loc"), ("logits", "conf")):
                head = [p[f"{module}.{level}.{ours}.{part}"] for part in ("weight", "bias")]
                layers.append((f"res{name}_inter_mbox_{theirs}", head, "Convolution"))
    return layers


def caffe_forward(layers, images, trunk=None):
    """The authors' network; or theirs above a ``trunk`` that strides in its 3x3, as res6 then."""
    net = {name: blobs for name, blobs, *_ in layers}
    own = trunk is None

    def normal(x, bn, scale):
        mean, variance, factor = net[bn]
        by = 0 if factor[0] == 0 else 1 / factor[0]
        return batch_normalise(x, *net[scale], mean * by, variance * by, eps=1e-5)

    def conv(name, x, bn=None, scale=None, **shape):
        x = conv2d(x, net[name][0], **shape)
        return normal(x, bn or f"{name}_bn", scale or f"{name}_scale")

    def block(name, x, stride=1):
        def branch(which, x, **shape):
            full, bn, scale = (f"{kind}{name}_{which}" for kind in ("res", "bn", "scale"))
            return conv(full, x, bn, scale, **shape)

        first, second = (stride, 1) if own else (1, stride)
        y = relu(branch("branch2a", x, stride=first))
        y = branch("branch2c", relu(branch("branch2b", y, stride=second, padding=1)))
        return relu(y + (branch("branch1", x, stride=stride) if f"res{name}_branch1" in net else x))

    if own:
        x = relu(conv("conv1", images, "bn_conv1", "scale_conv1", stride=2, padding=3))
        x, seen = max_pool3x3(x, before=0), {}
        for name in CAFFE_BLOCKS:
            x = seen[name] = block(name, x, 2 if name in ("3a", "4a", "5a") else 1)
        trunk = [seen["3b3"], seen["4b22"], seen["5c"]]
    sources = [*trunk, block("6", trunk[2], 2)]
    p, blocks = None, []
    for k in (6, 5, 4, 3):
        x = conv(f"TL{k}_2", relu(conv(f"TL{k}_1", sources[k - 3], padding=1)), padding=1)
        if p is not None:
            name = f"P{k + 1}-up"
            x = x + normal(upsample2x2(p, net[name][0]), f"{name}_bn", f"{name}_scale")
        p = relu(conv(f"P{k}", relu(x), padding=1))
        blocks.insert(0, p)
    outputs = []
    for names, maps in ((ARM, sources), (ODM, blocks)):
        inter = [block(f"{name}_inter", x) for name, x in zip(names, maps, strict=True)]
        for part in ("loc", "conf"):
            rows = []
            for name, x in zip(names, inter, strict=True):
                weight, bias = net[f"res{name}_inter_mbox_{part}"]
                rows.append(add_bias(conv2d(x, weight, padding=1), bias))
            per_anchor = 4 if part == "loc" else rows[0].shape[1] // 3
            outputs.append(anchor_rows(*rows, per_anchor=per_anchor))
    return outputs


# ---- torchvision ------------------------------------------------------------------------

TORCH = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
TORCH |= {"moving_variance": "running_var"}


def torchvision_state(p, classes=10):
    """``resnet101``'s state dict, its classifier too."""
    state = {}

    def normal(ours, conv, bn):
        if f"{ours}.weight" not in p:
            return
        state[f"{conv}.weight"] = p[f"{ours}.weight"]
        state.update({f"{bn}.{theirs}": p[f"{ours}.{part}"] for part, theirs in TORCH.items()})
        state[f"{bn}.num_batches_tracked"] = np.array(7, "<i8")

    normal("backbone.conv1", "conv1", "bn1")
    for ours, name in zip(OURS, LAYERS, strict=True):
        for n in (1, 2, 3):
            normal(f"{ours}.conv{n}", f"{name}.conv{n}", f"{name}.bn{n}")
        normal(f"{ours}.projection", f"{name}.downsample.0", f"{name}.downsample.1")
    features = p["backbone.res5_3.conv3.gamma"].shape[0]
    state["fc.weight"] = np.zeros((classes, features), "<f4")
    state["fc.bias"] = np.zeros(classes, "<f4")
    return state


def torchvision_trunk(state, images):
    """Outputs of layer2, layer3 and layer4."""

    def conv(name, bn, x, **shape):
        parts = ("weight", "bias", "running_mean", "running_var")
        x = conv2d(x, state[f"{name}.weight"], **shape)
        return batch_normalise(x, *(state[f"{bn}.{part}"] for part in parts), eps=1e-5)

    x = relu(conv("conv1", "bn1", images, stride=2, padding=3))
    x, seen = max_pool3x3(x, before=1), {}
    for name in LAYERS:
        stride = 2 if name in ("layer2.0", "layer3.0", "layer4.0") else 1
        y = relu(conv(f"{name}.conv1", f"{name}.bn1", x))
        y = relu(conv(f"{name}.conv2", f"{name}.bn2", y, stride=stride, padding=1))
        y = conv(f"{name}.conv3", f"{name}.bn3", y)
        if name.endswith(".0"):
            x = conv(f"{name}.downsample.0", f"{name}.downsample.1", x, stride=stride)
        x = seen[name] = relu(x + y)
    return [seen["layer2.3"], seen["layer3.22"], seen["layer4.2"]]


# ---- the model zoo ----------------------------------------------------------------------

NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def zoo_state(p):
    """The zoo's 672 tensors of our parameters, offsets in its order."""
    state = {}

    def normal(ours, conv, bn):
        state[f"{conv}.weight"] = p[f"{ours}.weight"]
        state.update({f"{bn}.{part}": p[f"{ours}.{part}"] for part in NORM})

    base = "network.backbone.base"
    normal("backbone.conv1", f"{base}.conv1", f"{base}.bn1")
    blocks = [(ours, f"{base}.{name}") for ours, name in zip(OURS, LAYERS, strict=True)]
    for ours, name in [*blocks, ("backbone.res6_1", "network.backbone.extra")]:
        for n in (1, 2, 3):
            normal(f"{ours}.conv{n}", f"{name}.conv{n}", f"{name}.bn{n}")
        if ours.endswith("_1"):
            down = f"{name}.down_sample_layer"
            normal(f"{ours}.projection", f"{down}.0", f"{down}.1")
    return {**state, **upper_state(p, ("res3_4", "res4_23"))}


def zoo_forward(state, images):
    """The zoo's forward pass; offsets as y, x, h, w."""

    def conv(name, bn, x, stride=1):
        weight = state[f"network.backbone.{name}.weight"]
        k = weight.shape[2]  # MindSpore's "same": of even sizes, k - 2 zeros, the odd one behind
        shape = {"padding": (k - 2) // 2, "far": 1} if stride == 2 and k > 1 else {}
        x = conv2d(x, weight, stride=stride, **(shape or {"padding": k // 2}))
        return batch_normalise(x, *(state[f"network.backbone.{bn}.{n}"] for n in NORM), eps=1e-3)

    x = relu(conv("base.conv1", "base.bn1", images, 2))
    x, seen = max_pool3x3(x, before=0), {}
    for name in [*(f"base.{layer}" for layer in LAYERS), "extra"]:
        first = name == "extra" or name.endswith(".0")
        stride = 2 if first and name != "base.layer1.0" else 1
        y = relu(conv(f"{name}.conv1", f"{name}.bn1", x))
        y = relu(conv(f"{name}.conv2", f"{name}.bn2", y, stride))
        y = conv(f"{name}.conv3", f"{name}.bn3", y)
        if first:
            down = f"{name}.down_sample_layer"
            x = conv(f"{down}.0", f"{down}.1", x, stride)
        x = seen[name] = relu(x + y)
    stages = ("base.layer2.3", "base.layer3.22", "base.layer4.2", "extra")
    return upper_forward(state, [seen[name] for name in stages])
