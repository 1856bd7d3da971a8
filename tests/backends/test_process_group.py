"""Workers share images out without loss, and tell each other objects."""

import threading
from multiprocessing.connection import Listener
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinedet.backends.process_group import ALONE, Star, by_first, group_of
from refinedet.data.samples import reading_order
from refinedet.data.sharding import of_rank, share
from refinedet.errors import LostRankError, WriteError

KEY = b"secret"


def ranks_of(size):
    return [SimpleNamespace(rank=rank, size=size) for rank in range(size)]


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_all_places_once_and_alike(count, size):
    shares = [range(count)[share(count, group.rank, group.size)] for group in ranks_of(size)]
    assert [place for part in shares for place in part] == list(range(count))
    lengths = [len(part) for part in shares]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 15), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_batches_of_all_workers_are_those_of_one(images, size, each, first_step):
    """Step by step the same positions and images, so each image once an epoch."""
    batch = size * each
    first, last = first_step * batch, (first_step + 4) * batch
    whole = list(reading_order(images, 3, first, last))
    steps = {}
    for group in ranks_of(size):
        mine = [of_rank(part, batch, group.rank, group.size) for part in whole]
        positions = np.concatenate([part.positions for part in mine])
        indices = np.concatenate([part.indices for part in mine])
        assert len(positions) == 4 * each  # whole batches, in order
        assert (np.diff(positions) > 0).all()
        for step in range(4):
            taken = slice(step * each, (step + 1) * each)
            assert set(positions[taken] // batch) == {first_step + step}
            steps.setdefault(step, []).extend(zip(positions[taken], indices[taken], strict=True))
    read = [pair for step in range(4) for pair in sorted(steps[step])]
    order = [pair for part in whole for pair in zip(part.positions, part.indices, strict=True)]
    assert read == order


def together(size, action):
    """What an action gives, or raises, on every member of a group."""
    listener = Listener(("127.0.0.1", 0), authkey=KEY)
    address, outcomes = listener.address, [None] * size

    def member(rank):
        star = Star.other(rank, size, address, KEY) if rank else Star.first(size, listener)
        try:
            outcomes[rank] = action(star)
        except Exception as error:
            outcomes[rank] = error
        finally:
            star.close()

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return outcomes


def test_all_are_told_what_each_gave():
    def gather(star):
        return star.gather({"rank": star.rank}), star.gather(star.rank * np.ones(3))

    for words, arrays in together(3, gather):
        assert words == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert [array.tolist() for array in arrays] == [[0] * 3, [1] * 3, [2] * 3]


def test_the_first_acts_and_all_have_its_result():
    acted = []
    assert together(3, lambda star: by_first(star, lambda: acted.append(star.rank) or 7)) == [7] * 3
    assert acted == [0]


def test_the_first_fails_and_all_fail_alike():
    def full():
        raise WriteError("there is no space")

    outcomes = together(3, lambda star: by_first(star, full))
    assert [(type(e), str(e)) for e in outcomes] == [(WriteError, "there is no space")] * 3


@pytest.mark.parametrize("gone", [0, 1])
def test_a_member_that_is_gone_is_told(gone):
    outcomes = together(3, lambda star: None if star.rank == gone else star.gather(1))
    lost = [error for error in outcomes if isinstance(error, LostRankError)]
    assert len(lost) == 2
    if gone:
        assert str(outcomes[0]) == "worker 1 has ended; its own log says why"


def test_one_that_is_alone_needs_nobody():
    assert group_of(object()) is ALONE
    assert ALONE.gather("x") == ["x"]
    assert by_first(ALONE, lambda: 3) == 3
