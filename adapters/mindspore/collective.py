"""What several ranks compute together: sums inside the graph, and the group of the ranks.

The ranks of a job hold the same parameters and take different images. A loss divides by a number
of positives, and batch normalisation by a number of pixels. Both are counted over all ranks, so
that several ranks train as one rank with the whole batch.
"""

from __future__ import annotations

import os
import secrets
from multiprocessing.connection import Listener

import mindspore as ms
import numpy as np
from mindspore import communication, nn, ops

from refinedet.backends.process_group import KEY_BYTES, Group, Star
from refinedet.errors import BackendError


def joined() -> bool:
    """Whether this process belongs to a job of several ranks."""
    return bool(communication.GlobalComm.INITED)


def rank_count() -> int:
    """Number of ranks."""
    return communication.get_group_size() if joined() else 1


def join(library: str) -> Group:
    """Join the other ranks of this job, on the device that is set.

    Args:
        library: ``hccl``, ``nccl`` or ``mccl``.
    Raises:
        BackendError: they cannot be reached.
    """
    try:
        communication.init(library)
        return _star(communication.get_rank(), communication.get_group_size())
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendError(f"the ranks cannot connect: {reason}") from error


def _star(rank: int, size: int) -> Star:
    """Connect to rank 0, whose port and secret are sent by MindSpore's AllGather."""
    host = os.environ["MS_SCHED_HOST"]  # of the first machine, where rank 0 is
    listener, address = None, np.zeros(1 + KEY_BYTES, np.int32)
    if rank == 0:
        key = secrets.token_bytes(KEY_BYTES)
        listener = Listener((host, 0), backlog=size, authkey=key)
        address = np.array([listener.address[1], *key], np.int32)
    address = ops.AllGather()(ms.Tensor(address)).asnumpy()[: len(address)]
    if listener is not None:
        return Star.first(size, listener)
    return Star.other(rank, size, (host, int(address[0])), bytes(address[1:].tolist()))


class SumOverRanks(nn.Cell):
    """The sum of a tensor over all ranks, on each of them.

    It has its own backward pass: a change here changes every rank's loss, so gradients are
    summed too. That of MindSpore's AllReduce gives other numbers on the CPU (2.8.0).
    """

    def __init__(self) -> None:
        super().__init__()
        self.sum = ops.AllReduce()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.sum(x)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, gradient: ms.Tensor) -> tuple[ms.Tensor]:
        return (self.sum(gradient),)


def sum_over_ranks() -> nn.Cell:
    """Sums a tensor over all ranks; with one rank it is the identity."""
    return SumOverRanks() if rank_count() > 1 else nn.Identity()


class GlobalBatchNorm(nn.Cell):
    """Batch normalisation with the statistics over all ranks: ``spec.layers``."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.gamma = ms.Parameter(np.ones(channels, np.float32))
        self.beta = ms.Parameter(np.zeros(channels, np.float32))
        self.moving_mean = ms.Parameter(np.zeros(channels, np.float32), requires_grad=False)
        self.moving_variance = ms.Parameter(np.ones(channels, np.float32), requires_grad=False)
        self.eps, self.kept, self.fresh = eps, momentum, 1 - momentum
        self.total, self.ranks = sum_over_ranks(), rank_count()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        mean, variance = self.moving_mean, self.moving_variance
        if self.training:
            count = x.shape[0] * x.shape[2] * x.shape[3] * self.ranks
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
    """MindSpore's own with one rank; ``momentum`` is the weight of the old average."""
    if rank_count() > 1:
        return GlobalBatchNorm(channels, eps, momentum)
    return nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
