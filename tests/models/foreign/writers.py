"""Writers of the containers, and the detectors of Caffe and of the port under their own names.

They are written from the formats' documents, apart from the readers under test. The names are
spelled out, layer by layer, as the authors' scripts make them. What ``write_zip`` writes was
loaded by PyTorch 2.13, and what that wrote, in both forms, was read by ``read_weights``.
"""

import io
import json
import struct
import zipfile

import numpy as np

from refinedet.spec.config import replace
from refinedet.spec.layers import (
    add,
    add_bias,
    anchor_rows,
    conv2d,
    l2_normalise,
    max_pool2x2,
    relu,
    upsample2x2,
)
from refinedet.spec.network import parameter_table
from refinedet.spec.presets import preset

SMALL = ["model.network.width=0.015625", "model.image_size=[64, 64]"]
CONFIG = replace(
    preset("refinedet_vgg16_320"), image_size=(64, 64), num_classes=4, network={"width": 1 / 64}
)


def random_parameters(config=CONFIG, seed=0):
    """All parameters, biases and scales too, drawn."""
    rng = np.random.default_rng(seed)
    made = {}
    for p in parameter_table(config):
        bound = 1.5 / np.sqrt(max(1, np.prod(p.shape[1:])))
        made[p.name] = rng.uniform(-bound, bound, p.shape).astype(np.float32)
    return made


# ---- names ------------------------------------------------------------------------------

VGG = [f"{b}_{n}" for b, count in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, count + 1)]
INDEX = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def layer_names():
    """Our layer, Caffe's, the port's."""
    rows = [(f"backbone.conv{v}", f"conv{v}", f"vgg.{i}") for v, i in zip(VGG, INDEX, strict=True)]
    rows += [
        ("backbone.fc6", "fc6", "vgg.31"),
        ("backbone.fc7", "fc7", "vgg.33"),
        ("backbone.conv6_1", "conv6_1", "extras.0"),
        ("backbone.conv6_2", "conv6_2", "extras.1"),
        ("tcb.0.lateral1", "TL3_1", "tcb0.0"),
        ("tcb.0.lateral2", "TL3_2", "tcb0.2"),
        ("tcb.1.lateral1", "TL4_1", "tcb0.3"),
        ("tcb.1.lateral2", "TL4_2", "tcb0.5"),
        ("tcb.2.lateral1", "TL5_1", "tcb0.6"),
        ("tcb.2.lateral2", "TL5_2", "tcb0.8"),
        ("tcb.3.lateral1", "TL6_1", "tcb0.9"),
        ("tcb.3.lateral2", "TL6_2", "tcb0.11"),
        ("tcb.0.output", "P3", "tcb2.1"),
        ("tcb.1.output", "P4", "tcb2.4"),
        ("tcb.2.output", "P5", "tcb2.7"),
        ("tcb.3.output", "P6", "tcb2.10"),
        ("tcb.0.upsample", "P4-up", "tcb1.0"),
        ("tcb.1.upsample", "P5-up", "tcb1.1"),
        ("tcb.2.upsample", "P6-up", "tcb1.2"),
    ]
    for level, blob in enumerate(("conv4_3_norm", "conv5_3_norm", "fc7", "conv6_2")):
        rows += [
            (f"arm.{level}.offsets", f"{blob}_mbox_loc", f"arm_loc.{level}"),
            (f"arm.{level}.logits", f"{blob}_mbox_conf", f"arm_conf.{level}"),
            (f"odm.{level}.offsets", f"P{level + 3}_mbox_loc", f"odm_loc.{level}"),
            (f"odm.{level}.logits", f"P{level + 3}_mbox_conf", f"odm_conf.{level}"),
        ]
    return rows


def caffe_layers(parameters):
    """Layers with their blobs, in the net's order: ``[(name, [array, ...])]``."""
    layers = [
        (caffe, [parameters[f"{ours}.weight"], parameters[f"{ours}.bias"]])
        for ours, caffe, _ in layer_names()
    ]
    scales = [(f"{n}_norm", [parameters[f"backbone.{n}.l2_scale"]]) for n in ("conv4_3", "conv5_3")]
    return [("data", []), *layers, *scales, ("relu1_1", [])]


def port_state(parameters):
    """The port's state dict."""
    state = {}
    for ours, _, port in layer_names():
        state[f"{port}.weight"] = parameters[f"{ours}.weight"]
        state[f"{port}.bias"] = parameters[f"{ours}.bias"]
    for name in ("conv4_3", "conv5_3"):
        state[f"{name}_L2Norm.weight"] = parameters[f"backbone.{name}.l2_scale"]
    return state


def reduced_state(parameters):
    """``vgg16_reducedfc.pth``: the port's trunk alone, without its prefix."""
    state = port_state(parameters)
    return {n.removeprefix("vgg."): v for n, v in state.items() if n.startswith("vgg.")}


# ---- networks, as their authors run them --------------------------------------------------


def port_forward(state, images):
    """The port's forward pass, by its own indices; classes are taken from the heads."""

    def conv(name, x, **shape):
        return add_bias(conv2d(x, state[f"{name}.weight"], **shape), state[f"{name}.bias"])

    x, sources = images, []
    for index in range(30):
        if index in INDEX:
            x = relu(conv(f"vgg.{index}", x, padding=1))
        elif index in (4, 9, 16, 23):
            x = max_pool2x2(x)
        if index in (22, 29):
            name = "conv4_3_L2Norm" if index == 22 else "conv5_3_L2Norm"
            sources.append(l2_normalise(x, state[f"{name}.weight"], eps=1e-10))
    x = max_pool2x2(x)
    x = relu(conv("vgg.31", x, padding=3, dilation=3))
    x = relu(conv("vgg.33", x))
    sources.append(x)
    x = relu(conv("extras.0", x))
    x = relu(conv("extras.1", x, padding=1, stride=2))
    sources.append(x)
    blocks, p = [], None
    for k, s in enumerate(reversed(sources)):
        level = 3 - k
        s = conv(f"tcb0.{3 * level + 2}", relu(conv(f"tcb0.{3 * level}", s, padding=1)), padding=1)
        if p is not None:
            up = upsample2x2(p, state[f"tcb1.{level}.weight"])
            s = add(s, add_bias(up, state[f"tcb1.{level}.bias"]))
        p = relu(conv(f"tcb2.{3 * level + 1}", relu(s), padding=1))
        blocks.insert(0, p)
    outputs = []
    for module, maps in (("arm", sources), ("odm", blocks)):
        for part in ("loc", "conf"):
            rows = [conv(f"{module}_{part}.{i}", m, padding=1) for i, m in enumerate(maps)]
            per_anchor = 4 if part == "loc" else rows[0].shape[1] // 3
            outputs.append(anchor_rows(*rows, per_anchor=per_anchor))
    return outputs


# ---- protobuf ---------------------------------------------------------------------------


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, value):
    """A varint of an int, else length and bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + bytes(value)


def blob(array, old=False, unpacked=False):
    """BlobProto; ``old`` has num, channels, height, width."""
    if old:
        shape = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(field(i, n) for i, n in enumerate(shape, 1))
    else:
        head = field(7, field(1, b"".join(map(varint, array.shape))))
    double = array.dtype == np.float64
    numbers = array.astype("<f8" if double else "<f4")
    if unpacked:
        tag = varint((8 if double else 5) << 3 | (1 if double else 5))
        return head + b"".join(tag + n.tobytes() for n in numbers.ravel())
    return head + field(8 if double else 5, numbers.tobytes())


def caffemodel(layers, old=False, blob=blob):
    """NetParameter, of V1 layers if ``old``; ``layers`` as ``(name, blobs)`` or with the kind."""
    out = field(1, b"refinedet")
    for name, blobs, *kind in layers:
        if old:  # bottom, top, name, type, blobs
            body = field(2, b"x") + field(3, b"y") + field(4, name.encode()) + field(5, 4)
            body += b"".join(field(6, blob(b, old=True)) for b in blobs)
            out += field(2, body)
        else:  # name, type, bottom, blobs, propagate_down
            body = field(1, name.encode()) + field(2, (kind or ["Convolution"])[0].encode())
            body += field(3, b"x")
            body += b"".join(field(7, blob(b)) for b in blobs) + field(11, 1)
            out += field(100, body)
    return out


# ---- PyTorch ----------------------------------------------------------------------------

STORAGES = {
    "<f4": "FloatStorage",
    "<f8": "DoubleStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
}


class Pickle:
    """Opcodes of protocol 2, as Python's own pickler chooses them for a state dict."""

    def __init__(self):
        self.out = bytearray(b"\x80\x02")

    def text(self, value):
        data = value.encode()
        self.out += b"X" + struct.pack("<I", len(data)) + data

    def number(self, value):
        if value < 256:
            self.out += b"K" + bytes([value])
        elif value < 65536:
            self.out += b"M" + struct.pack("<H", value)
        else:
            self.out += b"J" + struct.pack("<i", value)

    def name(self, module, name):
        self.out += b"c" + f"{module}\n{name}\n".encode()

    def numbers(self, values):
        if len(values) > 3:
            self.out += b"("
        for value in values:
            self.number(value)
        self.out += (b")", b"\x85", b"\x86", b"\x87", b"t")[min(len(values), 4)]

    def ordered(self):
        self.name("collections", "OrderedDict")
        self.out += b")R"

    def tensor(self, key, array, strides=None, legacy=False, version="_rebuild_tensor_v2"):
        self.name("torch._utils", version)
        self.out += b"(("
        self.text("storage")
        self.name("torch", STORAGES[array.dtype.str])
        self.text(key)
        self.text("cpu")
        self.number(array.size)
        self.out += (b"N" if legacy else b"") + b"tQ"
        self.number(0)
        self.numbers(array.shape)
        self.numbers(strides or [s // array.itemsize for s in array.strides])
        if version == "_rebuild_tensor_v2":
            self.out += b"\x89"
            self.ordered()
        self.out += b"tR"

    def state(self, state, **options):
        self.ordered()
        self.out += b"q\x00("
        for key, (name, array) in enumerate(state.items()):
            self.text(name)
            self.tensor(str(key), array, **options)
        self.out += b"u}"
        self.text("_metadata")
        self.ordered()
        self.out += b"sb"
        return self

    def done(self):
        return bytes(self.out) + b"."


def write_zip(path, state, pickled=None, compression=zipfile.ZIP_STORED, folder="archive"):
    pickled = pickled or Pickle().state(state).done()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", pickled)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, array in enumerate(state.values()):
            archive.writestr(f"{folder}/data/{key}", array.tobytes())
        archive.writestr(f"{folder}/version", "3\n")


def write_legacy(path, state):
    """As PyTorch before 1.6; keys sorted as texts."""
    keys = sorted(str(i) for i in range(len(state)))
    out = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # the magic number
    out += b"\x80\x02M\xe9\x03."  # protocol 1001
    sizes = Pickle()
    sizes.out += b"}("
    sizes.text("protocol_version")
    sizes.number(1001)
    sizes.text("little_endian")
    sizes.out += b"\x88u"
    out += sizes.done() + Pickle().state(state, legacy=True).done()
    listed = Pickle()
    listed.out += b"]("
    for key in keys:
        listed.text(key)
    listed.out += b"e"
    out += listed.done()
    arrays = list(state.values())
    for key in keys:
        array = arrays[int(key)]
        out += struct.pack("<q", array.size) + array.tobytes()
    path.write_bytes(out)


def write_safetensors(path, state):
    """By hand: a header and the numbers."""
    header, content = {}, io.BytesIO()
    for name, array in state.items():
        start = content.tell()
        content.write(array.tobytes())
        header[name] = {
            "dtype": "F32",
            "shape": array.shape,
            "data_offsets": [start, content.tell()],
        }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content.getvalue())
