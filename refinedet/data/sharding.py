"""How the ranks of one job share the images: every image is read by exactly one rank."""

from __future__ import annotations

from refinedet.data.samples import Slice


def share(count: int, rank: int, size: int) -> slice:
    """The share of a rank of ``count`` consecutive items.

    The shares of all ranks are disjoint, cover everything, and their sizes differ by at most one.

    Args:
        rank: from 0 to ``size`` - 1.
        size: number of ranks, from 1.
    """
    return slice(count * rank // size, count * (rank + 1) // size)


def of_rank(part: Slice, batch_size: int, rank: int, size: int) -> Slice:
    """The part of a slice that one rank reads: its share of every batch."""
    mine = share(batch_size, rank, size)
    slot = part.positions % batch_size
    kept = (mine.start <= slot) & (slot < mine.stop)
    return Slice(part.indices[kept], part.positions[kept])
