"""The workers of one job: processes that train or evaluate together, each on its device.

Every worker runs the same program on its share of the pictures. What must happen once, as
writing to the run's folder, is done by the first worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Group(Protocol):
    """A worker's view of its job."""

    rank: int
    """This worker's number, from 0."""
    size: int
    """How many workers there are."""

    def gather(self, value: bytes) -> list[bytes]:
        """What every worker gave, by rank. All must call it; it waits for the last one."""


class Alone:
    """The job of one worker."""

    rank = 0
    size = 1

    def gather(self, value: bytes) -> list[bytes]:
        """See ``Group``."""
        return [value]


ALONE = Alone()


def group_of(backend: object) -> Group:
    """The backend's attribute ``group``; a backend without one knows no other worker."""
    group: Group = getattr(backend, "group", ALONE)
    return group


def by_first(group: Group, action: Callable[[], T]) -> T:
    """Do something on every worker, but on the first one before all others.

    For what leaves something behind that the others then find, as a copy of a data set. If it
    fails, that worker ends with its error, and the launcher ends the others, who wait here.
    """
    if group.rank == 0:
        done = action()
        group.gather(b"")
        return done
    group.gather(b"")
    return action()


def share(count: int, group: Group) -> tuple[int, int]:
    """The first of ``count`` places that are this worker's, and the first that are not its own.

    Shares are neighbours, in the order of the ranks, and differ by one at most.
    """
    return count * group.rank // group.size, count * (group.rank + 1) // group.size
