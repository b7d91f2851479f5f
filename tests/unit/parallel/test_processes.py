"""Ranks start, agree, share, and end together, whichever of them fails."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
import torch
from ranks import on_ranks
from torch import distributed

from lit_prune.parallel.group import agree, interleaved, is_main, mean_over_ranks, rank, world_size
from lit_prune.parallel.processes import RankFailed


@pytest.fixture(autouse=True)
def _none_is_left():
    yield
    assert not distributed.is_initialized()
    assert multiprocessing.active_children() == []


def test_a_process_outside_a_group_is_the_only_rank():
    rows = torch.arange(3)
    assert (rank(), world_size(), is_main(), agree("a")) == (0, 1, True, "a")
    assert mean_over_ranks(rows) is rows
    assert interleaved(rows) is rows


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_and_put_their_shares_together(world):
    """With five rows and four ranks the shares have two rows and one."""

    def found():
        share = torch.arange(5.0)[rank() :: world_size()].double()
        return (
            rank(),
            world_size(),
            agree(f"of {rank()}"),
            mean_over_ranks(torch.tensor([rank(), 1.0])),
            interleaved(share),
        )

    place, size, agreed, mean, rows = on_ranks(world, found)
    assert (place, size, agreed) == (0, world, "of 0")
    assert mean.tolist() == [(world - 1) / 2, 1.0]
    assert rows.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert rows.dtype == torch.float64


def test_a_rank_may_have_no_row():
    assert on_ranks(4, lambda: interleaved(torch.arange(2)[rank() :: world_size()])).tolist() == [0, 1]


def fail(place: int, how) -> None:
    """Agree once, then fail on one rank; the others wait for it."""
    agree(None)
    if rank() == place:
        how()
    distributed.barrier()


def test_the_error_of_a_rank_is_the_error_of_all():
    def how():
        raise ValueError("no room")

    with pytest.raises(RankFailed, match=r"^rank 2 of 4: ValueError: no room$"):
        on_ranks(4, lambda: fail(2, how))


def test_a_killed_rank_ends_all():
    with pytest.raises(RankFailed, match=r"^rank 1 of 2 was killed by SIGKILL$"):
        on_ranks(2, lambda: fail(1, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_the_error_of_rank_0_stays_its_own():
    def how():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        on_ranks(2, lambda: fail(0, how))


def test_an_error_that_all_ranks_raise_is_that_of_rank_0():
    def call():
        agree(None)
        raise LookupError("everywhere")

    with pytest.raises(LookupError, match="everywhere"):
        on_ranks(2, call)


def test_a_rank_that_waits_ends_with_a_killed_rank_0(tmp_path):
    """Rank 1 is not in a collective, so no broken connection wakes it."""

    def call():
        (tmp_path / f"{rank()}").write_text(str(os.getpid()))
        distributed.barrier()
        time.sleep(60)

    main = multiprocessing.get_context("fork").Process(target=on_ranks, args=(2, call))
    main.start()
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"):
        time.sleep(0.02)
    main.kill()
    main.join()
    other, since = int((tmp_path / "1").read_text()), time.monotonic()
    while os.path.exists(f"/proc/{other}") and _state(other) != "Z":
        assert time.monotonic() - since < 20
        time.sleep(0.02)


def _state(process: int) -> str:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2]
    except OSError:
        return "Z"
