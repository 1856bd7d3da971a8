"""The processes that work on one command together: each knows its rank and how many there are.

A backend that can be started several times at once has an attribute ``group``. What is
computed together goes through the backend's own collectives; what is said here are Python
objects: detections, outcomes, "go on". They go to rank 0 and back over TCP, and may wait for
as long as it takes: to copy a data set takes longer than a collective has patience.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Protocol, TypeVar

from refinedet.errors import LostRankError

T = TypeVar("T")
LOST = "its own log says why"
"""Ends the line of a worker that another has left alone."""
KEY_BYTES = 16
"""Length of the secret by which the workers of one job know each other."""


class Group(Protocol):
    """The processes of one command."""

    rank: int
    """Of this process, from 0. Rank 0 alone writes files and speaks on the terminal."""
    size: int
    """How many there are."""

    def gather(self, thing: object) -> list[Any]:
        """What every rank gives, by rank, for every rank; waits for all of them.

        Raises:
            LostRankError: one has ended.
        """


class Alone:
    """The group of a process that was not launched with others."""

    rank, size = 0, 1

    def gather(self, thing: T) -> list[T]:
        """See ``Group``."""
        return [thing]


ALONE = Alone()


def group_of(backend: object) -> Group:
    """The group in which a backend computes."""
    group: Group = getattr(backend, "group", ALONE)
    return group


def by_first(group: Group, action: Callable[[], T]) -> T:
    """Let rank 0 act while the others wait; its result or its exception is that of all.

    So a disk that is full for rank 0 ends every rank with the same line, and none waits on.
    """
    if group.size == 1:
        return action()
    outcome: tuple[T | None, Exception | None] = None, None
    if group.rank == 0:
        try:
            outcome = action(), None
        except Exception as error:
            outcome = None, error
    result, failure = group.gather(outcome)[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


@contextmanager
def _heard(rank: int) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise LostRankError(f"worker {rank} has ended; {LOST}") from error


class Star:
    """A ``Group`` whose members are connected to rank 0, by TCP."""

    def __init__(self, rank: int, peers: Sequence[Connection]) -> None:
        """A member.

        Args:
            peers: of rank 0 the connections to ranks 1, 2, ...; of another that to rank 0.
        """
        self.rank = rank
        self._peers = peers
        self.size = len(peers) + 1

    @classmethod
    def first(cls, size: int, listener: Listener) -> Star:
        """Rank 0: wait until all others have connected to the listener."""
        found: dict[int, Connection] = {}
        while len(found) < size - 1:
            try:
                peer = listener.accept()
                found[peer.recv()] = peer
            except (AuthenticationError, EOFError, OSError):  # somebody else, or a scan of ports
                continue
        listener.close()
        return cls(0, [found[rank] for rank in range(1, size)])

    @classmethod
    def other(cls, rank: int, size: int, address: tuple[str, int], key: bytes) -> Star:
        """Another rank: connect to rank 0."""
        peer = Client(address, authkey=key)
        peer.send(rank)
        star = cls(rank, [peer])
        star.size = size
        return star

    def close(self) -> None:
        """Leave the group."""
        for peer in self._peers:
            peer.close()

    def gather(self, thing: object) -> list[Any]:
        """See ``Group``."""
        if self.rank:
            with _heard(0):
                self._peers[0].send(thing)
                things: list[Any] = self._peers[0].recv()
            return things
        things = [thing]
        for rank, peer in enumerate(self._peers, start=1):
            with _heard(rank):
                things.append(peer.recv())
        for rank, peer in enumerate(self._peers, start=1):
            with _heard(rank):
                peer.send(things)
        return things
