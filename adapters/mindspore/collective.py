"""What several workers compute together: sums inside the graph, and what they tell each other.

A job's workers hold the same parameters and see different images. A loss divides by a
number of positives, and batch normalisation by a number of pixels: both are those of all
workers, so that any number of them trains as one with the whole batch would.
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
    """Whether this process belongs to a job of several workers."""
    return bool(communication.GlobalComm.INITED)


def workers() -> int:
    """How many workers there are."""
    return communication.get_group_size() if joined() else 1


def join(library: str) -> Group:
    """Join the other workers of this job, on the device that is set.

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
        raise BackendError(f"the workers do not find each other: {reason}") from error


def _star(rank: int, size: int) -> Star:
    """Connect to rank 0, whose port and secret go round by MindSpore's own means."""
    host = os.environ["MS_SCHED_HOST"]  # of the first machine, where rank 0 is
    listener, told = None, np.zeros(1 + KEY_BYTES, np.int32)
    if rank == 0:
        key = secrets.token_bytes(KEY_BYTES)
        listener = Listener((host, 0), backlog=size, authkey=key)
        told = np.array([listener.address[1], *key], np.int32)
    told = ops.AllGather()(ms.Tensor(told)).asnumpy()[: len(told)]
    if listener is not None:
        return Star.first(size, listener)
    return Star.other(rank, size, (host, int(told[0])), bytes(told[1:].tolist()))


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

    def bprop(self, x: ms.Tensor, out: ms.Tensor, gradient: ms.Tensor) -> tuple[ms.Tensor]:
        return (self.sum(gradient),)


def over_workers() -> nn.Cell:
    """Sums over all workers; with one worker, nothing."""
    return SumOverWorkers() if workers() > 1 else nn.Identity()


class GlobalBatchNorm(nn.Cell):
    """Batch normalisation by the statistics of all workers' images: ``spec.layers``."""

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
