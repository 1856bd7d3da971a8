"""The detector as MindSpore cells, with the parameters of ``refinedet.spec.network``.

Every parameter has its canonical name, which the optimizer's parameter groups, the checkpoints
and the specification share. Importing this module imports MindSpore.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from refinedet.adapters.mindspore.boxes import (
    cascaded_decode,
    centre_anchors,
    centres_to_corners,
    decode,
)
from refinedet.adapters.mindspore.layers import (
    BottleneckLayer,
    ConvLayer,
    InFloat32,
    L2Normalise,
    layer,
    pool,
)
from refinedet.spec import architecture
from refinedet.spec.architecture import Conv, Pool
from refinedet.spec.config import Config, NetworkConfig, feature_sizes
from refinedet.spec.network import Heads, Parameters, check_parameters
from refinedet.spec.types import Array


class Backbone(nn.Cell):
    """The trunk; returns the feature maps for the ARM, and those for the transfer blocks."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        net = config.network
        self.relu = nn.ReLU()
        stages = []
        for stage in architecture.trunk(config):
            cells: list[nn.Cell] = []
            for step in stage:
                cells += [pool(step)] if isinstance(step, Pool) else [layer(step, net), self.relu]
            stages.append(nn.SequentialCell(cells[:-1]))  # a stage ends before the ReLU
        self.stages = nn.CellList(stages)
        sources = architecture.sources(config)
        before_relu = architecture.sources_before_relu(config)
        self.before_relu = [s.name in before_relu for s in sources]
        self.normalised_for_arm = net.l2_in_arm
        normalised = architecture.normalised_sources(config)
        self.norms = nn.CellList(
            [
                L2Normalise(s.name, s.outputs, net) if s.name in normalised else nn.Identity()
                for s in sources
            ]
        )

    def construct(self, x: ms.Tensor) -> tuple[list[ms.Tensor], list[ms.Tensor]]:
        for_arm, for_tcb = [], []
        for i in range(len(self.stages)):
            plain = self.stages[i](x)
            x = self.relu(plain)
            source = plain if self.before_relu[i] else x
            normalised = self.norms[i](source)
            for_tcb.append(normalised)
            for_arm.append(normalised if self.normalised_for_arm else source)
        return for_arm, for_tcb


class TransferBlock(nn.Cell):
    """A transfer connection block; all but the coarsest add the upsampled next coarser block."""

    def __init__(self, level: int, config: Config) -> None:
        super().__init__()
        net = config.network
        relu = nn.ReLU()
        lateral1, lateral2, *outputs = (
            ConvLayer(conv, net) for conv in architecture.tcb_convs(level, config)
        )
        self.lateral = nn.SequentialCell([lateral1, relu, lateral2])
        self.coarsest = level == architecture.LEVELS - 1
        zoo = net.tcb == "relu_sum_conv_conv" and not self.coarsest
        layers: list[nn.Cell] = [] if zoo else [relu]
        for output in outputs:
            layers += [output, relu]
        self.output = nn.SequentialCell(layers)
        if not self.coarsest:
            self.upsample = ConvLayer(architecture.upsampling(level, config), net)
            self.activation = relu if zoo else nn.Identity()

    def construct(self, source: ms.Tensor, coarser: ms.Tensor) -> ms.Tensor:
        x = self.lateral(source)
        if not self.coarsest:
            x = x + self.activation(self.upsample(coarser))
        return self.output(x)


class Head(nn.Cell):
    """One output of one module: one convolution per level, reshaped to one row per anchor."""

    def __init__(self, levels: list[list[Conv]], config: Config) -> None:
        super().__init__()
        self.convs = nn.CellList([self.layers(convs, config.network) for convs in levels])
        cell = len(config.anchors.aspect_ratios)
        self.shapes = [
            (-1, rows * columns * cell, levels[0][-1].outputs // cell)
            for rows, columns in feature_sizes(config)
        ]

    @staticmethod
    def layers(convs: list[Conv], net: NetworkConfig) -> nn.Cell:
        """The convolutions of one level; each but the last is followed by a ReLU6."""
        *before, last = convs
        cells: list[nn.Cell] = []
        for conv in before:
            cells += [ConvLayer(conv, net), nn.ReLU6()]
        return nn.SequentialCell([*cells, ConvLayer(last, net)])

    def construct(self, features: list[ms.Tensor]) -> ms.Tensor:
        outputs = []
        for i in range(len(self.convs)):
            y = self.convs[i](features[i])
            outputs.append(y.transpose((0, 2, 3, 1)).reshape(self.shapes[i]))
        return ops.concat(outputs, 1).astype(ms.float32)


class Module(nn.Cell):
    """The ARM or the ODM: the features of all levels to offsets and logits."""

    def __init__(self, module: str, config: Config) -> None:
        super().__init__()
        heads = [architecture.head(module, i, config) for i in range(architecture.LEVELS)]
        self.shared = nn.CellList(
            [
                nn.SequentialCell([BottleneckLayer(head.shared, config.network), nn.ReLU()])
                if head.shared
                else nn.Identity()
                for head in heads
            ]
        )
        self.offsets = Head([head.offsets for head in heads], config)
        self.logits = Head([head.logits for head in heads], config)

    def construct(self, features: list[ms.Tensor]) -> tuple[ms.Tensor, ms.Tensor]:
        shared = [self.shared[i](features[i]) for i in range(len(self.shared))]
        return self.offsets(shared), self.logits(shared)


def halve(detector: nn.Cell) -> None:
    """Make all activations float16, normalisation float32; the parameters stay float32.

    Each convolution rounds its input, weights and bias, and the backward pass rounds as well.
    """
    for _, cell in list(detector.cells_and_names()):
        if isinstance(cell, ConvLayer):
            cell.conv.to_float(ms.float16)
            if not isinstance(cell.norm, nn.Identity):
                cell.norm = InFloat32(cell.norm)
        elif isinstance(cell, Backbone):
            cell.norms = nn.CellList(
                [InFloat32(n) if isinstance(n, L2Normalise) else n for n in cell.norms]
            )


class Detector(nn.Cell):
    """The whole network: images (N, 3, H, W) to the four outputs of ``spec.Heads``.

    The outputs are float32, also with ``half``.
    """

    def __init__(self, config: Config, half: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.blocks = nn.CellList([TransferBlock(i, config) for i in range(architecture.LEVELS)])
        self.arm = Module("arm", config)
        self.odm = Module("odm", config)
        if half:
            halve(self)
        for _, cell in self.cells_and_names():
            if isinstance(cell, ConvLayer | L2Normalise):
                for parameter in cell.get_parameters():
                    last = parameter.name.rsplit(".", 1)[-1]
                    parameter.name = f"{cell.canonical}.{last}"

    def construct(self, images: ms.Tensor) -> tuple[ms.Tensor, ...]:
        for_arm, for_tcb = self.backbone(images)
        block3 = self.blocks[3](for_tcb[3], for_tcb[3])
        block2 = self.blocks[2](for_tcb[2], block3)
        block1 = self.blocks[1](for_tcb[1], block2)
        block0 = self.blocks[0](for_tcb[0], block1)
        arm_offsets, arm_logits = self.arm(for_arm)
        odm_offsets, odm_logits = self.odm([block0, block1, block2, block3])
        return arm_offsets, arm_logits, odm_offsets, odm_logits


class Scoring(nn.Cell):
    """``spec.detection.scored_boxes``: from the four outputs to boxes and scores."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.anchors = centre_anchors(config)
        self.centre, self.size = config.anchors.variances
        self.objectness = config.loss.objectness
        self.refined = config.anchors.refined
        self.softmax = config.loss.classes == "softmax"

    def construct(
        self,
        arm_offsets: ms.Tensor,
        arm_logits: ms.Tensor,
        odm_offsets: ms.Tensor,
        odm_logits: ms.Tensor,
    ) -> tuple[ms.Tensor, ms.Tensor]:
        if self.refined:
            boxes = cascaded_decode(arm_offsets, odm_offsets, self.anchors, self.centre, self.size)
        else:
            boxes = decode(odm_offsets, self.anchors, self.centre, self.size)
        objectness = ops.softmax(arm_logits, -1)[:, :, 1:2]
        seen = (objectness >= self.objectness).astype(odm_logits.dtype)
        scores = ops.softmax(odm_logits, -1) if self.softmax else ops.sigmoid(odm_logits)
        return centres_to_corners(boxes), scores * seen


class ScoredBoxes(nn.Cell):
    """The detector followed by ``Scoring``: from images to boxes and scores."""

    def __init__(self, detector: Detector, config: Config) -> None:
        super().__init__(auto_prefix=False)
        self.detector = detector
        self.scoring = Scoring(config)

    def construct(self, images: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        return self.scoring(*self.detector(images))


def load_parameters(cell: nn.Cell, parameters: Parameters) -> None:
    """Set every parameter of the cell to the value of the same name; none may be missing."""
    for parameter in cell.get_parameters():
        parameter.set_data(ms.Tensor(parameters[parameter.name]))


def read_parameters(cell: nn.Cell) -> Parameters:
    """Copies of the cell's parameters by name."""
    return {p.name: p.asnumpy().copy() for p in cell.get_parameters()}


class MindSporeNetwork:
    """``Network`` in graph mode; one graph is compiled per batch size."""

    def __init__(self, config: Config, parameters: Parameters) -> None:
        check_parameters(parameters, config)
        self.config = config
        self.detector = Detector(config).set_train(False)
        load_parameters(self.detector, parameters)
        self.scored = ScoredBoxes(self.detector, config).set_train(False)

    def heads(self, images: Array) -> Heads:
        """The raw outputs."""
        return Heads(*(output.asnumpy() for output in self.detector(ms.Tensor(images))))

    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        boxes, scores = self.scored(ms.Tensor(images))
        return boxes.asnumpy(), scores.asnumpy()
