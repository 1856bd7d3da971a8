"""The ranks that run one command together.

The ``group`` of a backend is that of its process: ``ALONE``, unless a launcher started several.
Tensors are summed by the framework's own collectives. This module exchanges Python objects, such
as detections and results, through rank 0 over TCP. It waits without a limit, because to copy a
data set takes longer than the time limit of a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Protocol, TypeVar

from refinedet.errors import LostRankError

T = TypeVar("T")
SEE_OTHER_LOG = "its own log says why"
"""Ends the error line of a rank that stops because another one has ended."""
KEY_BYTES = 16
"""Length of the secret with which the ranks of one job authenticate each other."""


class Group(Protocol):
    """The ranks of one command."""

    rank: int
    """Of this process, from 0. Only rank 0 writes files and prints."""
    size: int
    """Number of ranks."""

    def gather(self, value: object) -> list[Any]:
        """The values of all ranks, in their order, on every rank; waits for all of them.

        Raises:
            LostRankError: one has ended.
        """


class Alone:
    """The group of a process that was not launched with others."""

    rank, size = 0, 1

    def gather(self, value: T) -> list[T]:
        """See ``Group``."""
        return [value]


ALONE = Alone()


def by_first(group: Group, action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0 alone; every rank returns its result or raises its exception.

    So a full disk on rank 0 ends every rank with the same line, and no rank waits for it.
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
def _connection_to(rank: int) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise LostRankError(f"rank {rank} has ended; {SEE_OTHER_LOG}") from error


class Star:
    """A ``Group`` whose members are connected to rank 0, by TCP."""

    def __init__(self, rank: int, peers: Sequence[Connection]) -> None:
        """A member.

        Args:
            peers: on rank 0 the connections to ranks 1, 2, ...; on another that to rank 0.
        """
        self.rank = rank
        self._peers = peers
        self.size = len(peers) + 1

    @classmethod
    def first(cls, size: int, listener: Listener) -> Star:
        """Rank 0: wait until all others have connected to the listener."""
        peers: dict[int, Connection] = {}
        while len(peers) < size - 1:
            try:
                peer = listener.accept()
                peers[peer.recv()] = peer
            except (AuthenticationError, EOFError, OSError):  # no rank, perhaps a port scan
                continue
        listener.close()
        return cls(0, [peers[rank] for rank in range(1, size)])

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

    def gather(self, value: object) -> list[Any]:
        """See ``Group``."""
        if self.rank:
            with _connection_to(0):
                self._peers[0].send(value)
                values: list[Any] = self._peers[0].recv()
            return values
        values = [value]
        for rank, peer in enumerate(self._peers, start=1):
            with _connection_to(rank):
                values.append(peer.recv())
        for rank, peer in enumerate(self._peers, start=1):
            with _connection_to(rank):
                peer.send(values)
        return values
