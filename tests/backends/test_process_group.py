"""Ranks share images without loss, and exchange objects."""

import threading
from multiprocessing.connection import Listener
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinedet.backends.process_group import ALONE, Star, by_first
from refinedet.backends.reference import SpecBackend
from refinedet.data.samples import reading_order
from refinedet.data.sharding import of_rank, share
from refinedet.errors import LostRankError, WriteError

KEY = b"secret"


def ranks_of(size):
    return [SimpleNamespace(rank=rank, size=size) for rank in range(size)]


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_partition_a_list_and_their_sizes_differ_by_at_most_one(count, size):
    shares = [range(count)[share(count, group.rank, group.size)] for group in ranks_of(size)]
    assert [position for part in shares for position in part] == list(range(count))
    lengths = [len(part) for part in shares]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 15), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_batches_of_all_ranks_are_those_of_one(images, size, each, first_step):
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


def test_gather_gives_every_rank_the_values_of_all():
    def gather(star):
        return star.gather({"rank": star.rank}), star.gather(star.rank * np.ones(3))

    for objects, arrays in together(3, gather):
        assert objects == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert [array.tolist() for array in arrays] == [[0] * 3, [1] * 3, [2] * 3]


def test_rank_0_acts_and_all_return_its_result():
    acted = []
    assert together(3, lambda star: by_first(star, lambda: acted.append(star.rank) or 7)) == [7] * 3
    assert acted == [0]


def test_an_error_of_rank_0_is_raised_on_every_rank():
    def full():
        raise WriteError("there is no space")

    outcomes = together(3, lambda star: by_first(star, full))
    assert [(type(e), str(e)) for e in outcomes] == [(WriteError, "there is no space")] * 3


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_has_ended_is_named(gone):
    outcomes = together(3, lambda star: None if star.rank == gone else star.gather(1))
    lost = [error for error in outcomes if isinstance(error, LostRankError)]
    assert len(lost) == 2
    if gone:
        assert str(outcomes[0]) == "rank 1 has ended; its own log says why"


def test_a_process_on_its_own_gathers_its_own_value():
    assert SpecBackend().group is ALONE
    assert ALONE.gather("x") == ["x"]
    assert by_first(ALONE, lambda: 3) == 3
