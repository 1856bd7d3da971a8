"""What several workers compute together: sums inside the graph, and what they tell each other.

A job's workers hold the same parameters and see different pictures. A loss divides by a
number of positives, and batch normalisation by a number of pixels: both are those of all
workers, so that any number of them trains as one with the whole batch would.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import communication, nn, ops

BLOCK = 4 << 20
"""Numbers that are gathered at a time."""


def joined() -> bool:
    """Whether this process belongs to a job of several workers."""
    return bool(communication.GlobalComm.INITED)


def workers() -> int:
    """How many workers there are."""
    return communication.get_group_size() if joined() else 1


class Workers:
    """``refinedet.group.Group`` through MindSpore's communication: HCCL, NCCL, or its CPU's."""

    def __init__(self) -> None:
        if not joined():
            communication.init()
        self.rank = communication.get_rank()
        self.size = communication.get_group_size()

    def gather(self, value: bytes) -> list[bytes]:
        """See ``refinedet.group.Group``."""
        lengths = self._gather(np.array([len(value)], np.int32))[:, 0]
        words = np.zeros(-(-int(lengths.max()) // 4), np.int32)
        words.view(np.uint8)[: len(value)] = np.frombuffer(value, np.uint8)
        blocks = [self._gather(words[i : i + BLOCK]) for i in range(0, len(words), BLOCK)]
        rows = np.hstack(blocks) if blocks else np.zeros((self.size, 0), np.int32)
        return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]

    def _gather(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) int32 of every worker, as (workers, n)."""
        gathered = ops.AllGather()(ms.Tensor(numbers))
        return np.ascontiguousarray(gathered.asnumpy().reshape(self.size, -1))


class SumOverWorkers(nn.Cell):
    """The sum of a tensor over all workers, on each of them.

    It has its own way back: a change here changes every worker's loss, so gradients are
    summed too. That of MindSpore's AllReduce gives other numbers on the CPU (2.8.0).
    """

    def __init__(self) -> None:
        super().__init__()
        self.sum = ops.AllReduce()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.sum(x)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor]:
        return (self.sum(dout),)


def over_workers() -> nn.Cell:
    """Sums over all workers; with one worker, nothing."""
    return SumOverWorkers() if workers() > 1 else nn.Identity()


class GlobalBatchNorm(nn.Cell):
    """Batch normalisation by the statistics of all workers' pictures: ``spec.layers``."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.gamma = ms.Parameter(np.ones(channels, np.float32))
        self.beta = ms.Parameter(np.zeros(channels, np.float32))
        self.moving_mean = ms.Parameter(np.zeros(channels, np.float32), requires_grad=False)
        self.moving_variance = ms.Parameter(np.ones(channels, np.float32), requires_grad=False)
        self.eps, self.kept, self.fresh = eps, momentum, 1 - momentum
        self.total, self.workers = over_workers(), workers()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        mean, variance = self.moving_mean, self.moving_variance
        if self.training:
            count = x.shape[0] * x.shape[2] * x.shape[3] * self.workers
            mean = self.total(x.sum((0, 2, 3))) / count
            centred = x - mean.reshape((1, -1, 1, 1))
            variance = self.total((centred * centred).sum((0, 2, 3))) / count
            seen = ops.stop_gradient(mean), ops.stop_gradient(variance) * (count / (count - 1))
            ops.assign(self.moving_mean, self.moving_mean * self.kept + seen[0] * self.fresh)
            ops.assign(
                self.moving_variance, self.moving_variance * self.kept + seen[1] * self.fresh
            )
        scale = self.gamma / ops.sqrt(variance + self.eps)
        shift = self.beta - mean * scale
        return x * scale.reshape((1, -1, 1, 1)) + shift.reshape((1, -1, 1, 1))


def batch_norm(channels: int, eps: float, momentum: float) -> nn.Cell:
    """MindSpore's own with one worker; ``momentum`` is the weight of the old average."""
    if workers() > 1:
        return GlobalBatchNorm(channels, eps, momentum)
    return nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
