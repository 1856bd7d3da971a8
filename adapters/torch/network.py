"""The detector in PyTorch, with the parameters of ``refinedet.spec.network``.

It is a function of tensors that keep their canonical names; the layers are those of
``refinedet.spec.architecture``. Importing this imports PyTorch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from refinedet.adapters.torch.boxes import (
    cascaded_decode,
    centre_anchors,
    centres_to_corners,
    decode,
)
from refinedet.adapters.torch.tensors import to_numpy, to_tensor
from refinedet.spec import architecture
from refinedet.spec.architecture import Bottleneck, Conv, Head, Pool
from refinedet.spec.config import Config
from refinedet.spec.network import Heads, Parameters, check_parameters
from refinedet.spec.types import Array

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""The fields of ``refinedet.spec.network.Heads``, in their order."""


class Detector:
    """The whole network on one device, for training or for inference.

    In training, batch normalisation goes by the batch, and the running statistics follow it.
    With ``half`` activations are float16, and normalisation is float32 between them; the
    parameters and the four outputs are float32.

    Attributes:
        tensors: all parameters by canonical name.
        anchors: (A, 4), centre form.
    """

    def __init__(
        self,
        config: Config,
        parameters: Parameters,
        device: str,
        *,
        training: bool = False,
        half: bool = False,
    ) -> None:
        check_parameters(parameters, config)
        self.config = config
        self.training = training
        self._dtype = torch.float16 if half else torch.float32
        self.tensors = {name: to_tensor(array, device) for name, array in parameters.items()}
        self.anchors = centre_anchors(config, device)
        levels = range(architecture.LEVELS)
        self._trunk = architecture.trunk(config)
        self._normalised = architecture.normalised_sources(config)
        self._before_relu = architecture.sources_before_relu(config)
        self._tcb = [architecture.tcb_convs(level, config) for level in levels]
        self._upsampling = [architecture.upsampling(level, config) for level in levels]
        self._arm, self._odm = (
            [architecture.head(module, level, config) for level in levels]
            for module in ("arm", "odm")
        )

    def __call__(self, images: Tensor) -> Outputs:
        """The four outputs for images (N, 3, H, W) float32; N from 1."""
        for_arm, for_tcb = self._sources(images.to(self._dtype))
        blocks = self._blocks(for_tcb)
        return *self._module(self._arm, for_arm), *self._module(self._odm, blocks)

    def _conv(self, conv: Conv, x: Tensor) -> Tensor:
        """A convolution and its batch normalisation or bias, without activation."""
        weight, bias = (
            None if tensor is None else tensor.to(self._dtype)
            for tensor in (self.tensors.get(f"{conv.name}.{part}") for part in ("weight", "bias"))
        )
        if conv.transposed:
            x = F.conv_transpose2d(x, weight, bias, conv.stride)
        else:
            padding, groups = conv.padding, conv.inputs if conv.depthwise else 1
            if conv.far:
                x, padding = F.pad(x, (padding, padding + conv.far) * 2), 0
            x = F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, groups)
        return self._batch_norm(conv, x.float()).to(self._dtype) if conv.batch_norm else x

    def _batch_norm(self, conv: Conv, x: Tensor) -> Tensor:
        parts = "moving_mean", "moving_variance", "gamma", "beta"
        mean, variance, gamma, beta = (self.tensors[f"{conv.name}.{part}"] for part in parts)
        # One value per channel has no unbiased variance; the specification takes 0.
        alone = self.training and x.numel() == conv.outputs
        seen = torch.cat((x, x)) if alone else x
        last = 1 - conv.momentum, self.config.network.batch_norm_eps
        y = F.batch_norm(seen, mean, variance, gamma, beta, self.training, *last)
        return y[:1] if alone else y

    def _bottleneck(self, block: Bottleneck, x: Tensor) -> Tensor:
        """Without the ReLU behind the sum."""
        first, middle, last = block.convs
        y = F.relu_(self._conv(middle, F.relu_(self._conv(first, x))))
        return self._conv(last, y) + (self._conv(block.projection, x) if block.projection else x)

    def _sources(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What the ARM reads and what the transfer blocks read, finest first."""
        net = self.config.network
        for_arm, for_tcb = [], []
        for stage in self._trunk:
            for step in stage:
                if isinstance(step, Pool):
                    x = max_pool(step, x)
                    continue
                plain = self._conv(step, x) if isinstance(step, Conv) else self._bottleneck(step, x)
                name = step.name
                before_relu = name in self._before_relu
                x = F.relu(plain) if before_relu else F.relu_(plain)
                source = plain if before_relu else x
            normalised = source
            if name in self._normalised:
                scale = self.tensors[f"{name}.l2_scale"]
                whole = l2_normalise(source.float(), scale, net.l2_eps, net.l2_floor)
                normalised = whole.to(self._dtype)
            for_tcb.append(normalised)
            for_arm.append(normalised if net.l2_in_arm else source)
        return for_arm, for_tcb

    def _blocks(self, sources: list[Tensor]) -> list[Tensor]:
        """The transfer connection blocks, finest first; each adds the next coarser one."""
        blocks: list[Tensor] = []
        for level in reversed(range(architecture.LEVELS)):
            lateral1, lateral2, *outputs = self._tcb[level]
            x = self._conv(lateral2, F.relu_(self._conv(lateral1, sources[level])))
            if not blocks:
                x = F.relu_(x)
            else:
                coarser = self._conv(self._upsampling[level], blocks[0])
                zoo = self.config.network.tcb == "relu_sum_conv_conv"
                x = x + F.relu_(coarser) if zoo else F.relu_(x + coarser)
            for conv in outputs:
                x = F.relu_(self._conv(conv, x))
            blocks.insert(0, x)
        return blocks

    def _module(self, heads: list[Head], features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Offsets and logits of the ARM or the ODM, (N, A, ...)."""
        offsets, logits = [], []
        for head, x in zip(heads, features, strict=True):
            if head.shared:
                x = F.relu_(self._bottleneck(head.shared, x))
            offsets.append(self._rows(head.offsets, x))
            logits.append(self._rows(head.logits, x))
        return torch.cat(offsets, 1).float(), torch.cat(logits, 1).float()

    def _rows(self, convs: list[Conv], x: Tensor) -> Tensor:
        """One output of a level, a row an anchor: cell by cell, then anchors of a cell."""
        *before, last = convs
        for conv in before:
            x = F.relu6(self._conv(conv, x))
        y = self._conv(last, x).permute(0, 2, 3, 1)
        return y.reshape(len(y), -1, last.outputs // len(self.config.anchors.aspect_ratios))


def max_pool(step: Pool, x: Tensor) -> Tensor:
    """``spec.layers.max_pool2x2`` or ``max_pool3x3``; PyTorch, too, takes the first of equals."""
    if step.kernel == 2:
        return F.max_pool2d(x, 2)
    return F.max_pool2d(F.pad(x, (step.before, 1 - step.before) * 2, value=-torch.inf), 3, 2)


def l2_normalise(x: Tensor, scale: Tensor, eps: float, floor: bool) -> Tensor:
    """``spec.layers.l2_normalise``. ``clamp`` would let a gradient through at the floor."""
    squares = x.square().sum(1, keepdim=True)
    squares = torch.where(squares > eps, squares, eps) if floor else squares + eps
    return x / squares.sqrt() * scale[:, None, None]


def scored_boxes(outputs: Outputs, anchors: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """``spec.detection.scored_boxes``, anchors (A, 4) in centre form."""
    arm_offsets, arm_logits, odm_offsets, odm_logits = outputs
    variances = config.anchors.variances
    if config.anchors.refined:
        boxes = cascaded_decode(arm_offsets, odm_offsets, anchors, variances)
    else:
        boxes = decode(odm_offsets, anchors, variances)
    seen = arm_logits.softmax(-1)[..., 1:] >= config.loss.objectness
    softmax = config.loss.classes == "softmax"
    scores = odm_logits.softmax(-1) if softmax else odm_logits.sigmoid()
    return centres_to_corners(boxes), scores * seen


class TorchNetwork:
    """``Network`` on one device."""

    def __init__(self, config: Config, parameters: Parameters, device: str) -> None:
        self.config = config
        self.detector = Detector(config, parameters, device)
        self.device = device

    @torch.inference_mode()
    def heads(self, images: Array) -> Heads:
        """The raw outputs."""
        return Heads(*(to_numpy(head) for head in self.detector(to_tensor(images, self.device))))

    @torch.inference_mode()
    def scored_boxes(self, images: Array) -> tuple[Array, Array]:
        """Decoded boxes and scores of every anchor."""
        outputs = self.detector(to_tensor(images, self.device))
        boxes, scores = scored_boxes(outputs, self.detector.anchors, self.config)
        return to_numpy(boxes), to_numpy(scores)
