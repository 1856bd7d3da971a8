"""The detector as an ONNX model, built from the canonical parameters, and written as a file.

The graph is built directly, not converted from a framework: every node is a standard operator of
opset 13, the parameters keep the names of ``refinedet.spec.network``, and only the batch size is
dynamic. The layers are those of ``refinedet.spec.architecture``, in the order of
``refinedet.spec.network``; the last stage is ``refinedet.spec.detection.scored_boxes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from refinedet.errors import BackendError
from refinedet.models.embedded_settings import KEY
from refinedet.settings import Settings, to_yaml
from refinedet.spec import architecture
from refinedet.spec.anchors import anchors as all_anchors
from refinedet.spec.architecture import LEVELS, Bottleneck, Conv, Pool
from refinedet.spec.boxes import corners_to_centres
from refinedet.spec.config import Config, feature_sizes
from refinedet.spec.network import Heads, Parameters, check_parameters
from refinedet.spec.types import Array
from refinedet.support.files import write_atomically
from refinedet.version import __version__

OPSET = 13
"""The oldest opset whose Softmax normalises one axis; TensorRT 8 and MindSpore Lite 2 read it."""
IR_VERSION = 7
"""Version of the file format that ONNX 1.8 used with this opset; old runtimes refuse newer ones."""
HEADS: tuple[str, ...] = Heads._fields
SCORED_BOXES = ("boxes", "scores")
MEANINGS = {
    "images": "N images, normalised; channel, row, column",
    "arm_offsets": "x, y, w, h from the anchors",
    "arm_logits": "background, object",
    "odm_offsets": "x, y, w, h from the refined anchors, or from the anchors",
    "odm_logits": "background, classes",
    "boxes": "x_min, y_min, x_max, y_max as fractions of the image, not clipped",
    "scores": "background, classes; 0 where the ARM sees background",
}


def detector(config: Config, parameters: Parameters, outputs: Sequence[str]) -> ModelProto:
    """The model for any number of images.

    Args:
        parameters: by canonical name, float32; see ``spec.network.parameter_table``.
        outputs: names from ``HEADS`` and ``SCORED_BOXES``.
    Returns:
        A model from ``images`` (N, 3, H, W) to these outputs, all float32:
        ``arm_offsets`` (N, A, 4), ``arm_logits`` (N, A, 2), ``odm_offsets`` (N, A, 4),
        ``odm_logits`` (N, A, K); ``boxes`` (N, A, 4), ``scores`` (N, A, K).
    Raises:
        SpecError: parameters that are not those of the table.
    """
    check_parameters(parameters, config)
    graph = _Graph(config, parameters)
    heads = graph.heads("images")
    tensors = dict(zip(HEADS, heads, strict=True))
    if set(outputs) & set(SCORED_BOXES):
        tensors |= zip(SCORED_BOXES, graph.scored_boxes(*heads), strict=True)
    rows, classes = len(all_anchors(config)), config.num_classes
    widths = {"arm_logits": 2, "odm_logits": classes, "scores": classes}
    for name in outputs:
        graph.nodes.append(helper.make_node("Identity", [tensors[name]], [name], name))
    made = helper.make_graph(
        graph.nodes,
        "refinedet",
        [_value("images", "N", 3, *config.image_size)],
        [_value(name, "N", rows, widths.get(name, 4)) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
    )
    return helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="refinedet",
        producer_version=__version__,
    )


def export(
    config: Config, parameters: Parameters, path: Path, settings: Settings, heads: bool
) -> None:
    """Write the detector and its settings; with ``heads``, the outputs are the raw outputs."""
    if path.suffix in (".mindir", ".air"):  # it would be read as one
        raise BackendError("this backend writes ONNX; give the file the suffix .onnx", path=path)
    model = detector(config, parameters, HEADS if heads else SCORED_BOXES)
    model.metadata_props.add(key=KEY, value=to_yaml(settings))
    write_atomically(path, model.SerializeToString())


def _value(name: str, *shape: int | str) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape, MEANINGS[name])


class _Graph:
    """Collects the nodes and constants of a graph; tensors are referred to by name."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        self.config = config
        self.parameters = parameters
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node; return the name of its output, which is also the node's."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def halves(self, x: str) -> tuple[str, str]:
        """Split the columns of (N, A, columns) into two halves."""
        name = f"Split_{len(self.nodes)}"
        low, high = f"{name}_low", f"{name}_high"
        self.nodes.append(helper.make_node("Split", [x], [low, high], name, axis=2))
        return low, high

    def constant(self, name: str, value: Array | float) -> str:
        """Add a constant, an array or a number as float32; return its name."""
        stored = value if isinstance(value, np.ndarray) else np.array(value, np.float32)
        self.constants[name] = stored
        return name

    def parameter(self, name: str) -> str:
        """Add a parameter of the network as a constant; return its name."""
        return self.constant(name, self.parameters[name])

    def relu(self, x: str) -> str:
        """ReLU."""
        return self.add("Relu", x)

    def conv(self, conv: Conv, x: str) -> str:
        """A convolution with its bias or batch normalisation."""
        inputs = [x, self.parameter(f"{conv.name}.weight")]
        if conv.bias and not conv.batch_norm:
            inputs.append(self.parameter(f"{conv.name}.bias"))
        before, behind = conv.padding, conv.padding + conv.far
        shape = {
            "kernel_shape": [conv.kernel] * 2,
            "strides": [conv.stride] * 2,
            "pads": [before, before, behind, behind],
            "dilations": [conv.dilation] * 2,
            "group": conv.inputs if conv.depthwise else 1,
        }
        x = self.add("ConvTranspose" if conv.transposed else "Conv", *inputs, **shape)
        if not conv.batch_norm:
            return x
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        normal = [self.parameter(f"{conv.name}.{part}") for part in parts]
        eps = self.config.network.batch_norm_eps
        return self.add("BatchNormalization", x, *normal, epsilon=eps)

    def bottleneck(self, block: Bottleneck, x: str) -> str:
        """A bottleneck, without the ReLU after the sum."""
        first, middle, last = block.convs
        y = self.conv(last, self.relu(self.conv(middle, self.relu(self.conv(first, x)))))
        return self.add("Add", y, self.conv(block.projection, x) if block.projection else x)

    def pool(self, step: Pool, x: str) -> str:
        """Max pooling; padding is ignored."""
        before, behind = (step.before, 1 - step.before) if step.kernel == 3 else (0, 0)
        pads = [before, before, behind, behind]
        return self.add("MaxPool", x, kernel_shape=[step.kernel] * 2, strides=[2, 2], pads=pads)

    def l2_normalise(self, name: str, x: str) -> str:
        """``spec.layers.l2_normalise`` with the scale of this source."""
        net = self.config.network
        channels = self.constant("channels", np.array([1], np.int64))
        squares = self.add("ReduceSum", self.add("Mul", x, x), channels, keepdims=1)
        eps = self.constant("l2_eps", net.l2_eps)
        norm = self.add("Sqrt", self.add("Max" if net.l2_floor else "Add", squares, eps))
        # The scale keeps its canonical shape (C,), so it is reshaped to (C, 1, 1) here.
        axes = self.constant("row_and_column", np.array([1, 2], np.int64))
        scale = self.add("Unsqueeze", self.parameter(f"{name}.l2_scale"), axes)
        return self.add("Mul", self.add("Div", x, norm), scale)

    def trunk(self, x: str) -> Iterator[tuple[str, str]]:
        """For each source, finest first, the inputs of the ARM and of the transfer block."""
        net = self.config.network
        normalised = architecture.normalised_sources(self.config)
        before_relu = architecture.sources_before_relu(self.config)
        sources = architecture.sources(self.config)
        for stage, source in zip(architecture.trunk(self.config), sources, strict=True):
            for step in stage:
                if isinstance(step, Pool):
                    x = self.pool(step, x)
                else:
                    plain = (
                        self.conv(step, x) if isinstance(step, Conv) else self.bottleneck(step, x)
                    )
                    x = self.relu(plain)
            seen = plain if source.name in before_relu else x
            scaled = self.l2_normalise(source.name, seen) if source.name in normalised else seen
            yield scaled if net.l2_in_arm else seen, scaled

    def blocks(self, sources: list[str]) -> list[str]:
        """The transfer connection blocks, finest first."""
        blocks: list[str] = []
        for level in reversed(range(LEVELS)):
            lateral1, lateral2, *outputs = architecture.tcb_convs(level, self.config)
            x = self.conv(lateral2, self.relu(self.conv(lateral1, sources[level])))
            if not blocks:
                x = self.relu(x)
            else:
                upsampled = self.conv(architecture.upsampling(level, self.config), blocks[0])
                if self.config.network.tcb == "sum_relu_conv":
                    x = self.relu(self.add("Add", x, upsampled))
                else:
                    x = self.add("Add", x, self.relu(upsampled))
            for conv in outputs:
                x = self.relu(self.conv(conv, x))
            blocks.insert(0, x)
        return blocks

    def module(self, module: str, features: list[str]) -> tuple[str, str]:
        """Offsets and logits of one module, one row per anchor."""
        offsets: list[str] = []
        logits: list[str] = []
        for level, x in enumerate(features):
            layers = architecture.head(module, level, self.config)
            if layers.shared:
                x = self.relu(self.bottleneck(layers.shared, x))
            for convs, rows in ((layers.offsets, offsets), (layers.logits, logits)):
                rows.append(self.rows(level, convs, x))
        return self.add("Concat", *offsets, axis=1), self.add("Concat", *logits, axis=1)

    def rows(self, level: int, convs: list[Conv], x: str) -> str:
        """One output of one level; rows are ordered by cell, then by anchor within the cell."""
        *before, last = convs
        for conv in before:
            bounds = self.constant("zero", 0), self.constant("six", 6)
            x = self.add("Clip", self.conv(conv, x), *bounds)
        x = self.add("Transpose", self.conv(last, x), perm=[0, 2, 3, 1])
        cell = len(self.config.anchors.aspect_ratios)
        rows, columns = feature_sizes(self.config)[level]
        width = last.outputs // cell
        shape = np.array([0, rows * columns * cell, width], np.int64)  # 0: the input's size
        return self.add("Reshape", x, self.constant(f"rows_{level}_{width}", shape))

    def heads(self, images: str) -> tuple[str, str, str, str]:
        """``spec.network.forward``: the four outputs, in the order of ``HEADS``."""
        for_arm, for_tcb = zip(*self.trunk(images), strict=True)
        arm = self.module("arm", list(for_arm))
        return (*arm, *self.module("odm", self.blocks(list(for_tcb))))

    def scored_boxes(
        self, arm_offsets: str, arm_logits: str, odm_offsets: str, odm_logits: str
    ) -> tuple[str, str]:
        """``spec.detection.scored_boxes``: boxes and scores."""
        config = self.config
        centres = corners_to_centres(all_anchors(config))
        boxes = (
            self.constant("anchor_centres", np.ascontiguousarray(centres[None, :, :2])),
            self.constant("anchor_sides", np.ascontiguousarray(centres[None, :, 2:])),
        )
        if config.anchors.refined:
            boxes = self.decode(arm_offsets, *boxes)
        centre, side = self.decode(odm_offsets, *boxes)
        half = self.add("Mul", side, self.constant("half", 0.5))
        corners = self.add("Sub", centre, half), self.add("Add", centre, half)

        arm = self.add("Softmax", arm_logits, axis=-1)
        _, objectness = self.halves(arm)
        least = self.constant("objectness", config.loss.objectness)
        seen = self.add("GreaterOrEqual", objectness, least)
        if config.loss.classes == "softmax":
            scores = self.add("Softmax", odm_logits, axis=-1)
        else:
            scores = self.add("Sigmoid", odm_logits)
        scores = self.add("Where", seen, scores, self.constant("zero", 0))
        return self.add("Concat", *corners, axis=2), scores

    def decode(self, offsets: str, centre: str, side: str) -> tuple[str, str]:
        """``spec.coding.decode`` in centre form: centres and sides, each (N, A, 2)."""
        variances = self.config.anchors.variances
        shift, ratio = self.halves(offsets)
        shift = self.add("Mul", shift, self.constant("centre_variance", variances[0]))
        ratio = self.add("Mul", ratio, self.constant("size_variance", variances[1]))
        moved = self.add("Add", centre, self.add("Mul", shift, side))
        return moved, self.add("Mul", side, self.add("Exp", ratio))
