"""Calibration reads whole sequences, each once, the same for the same seed, and splits them over ranks."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from refusals import refuses

from lit_prune.data.calibration import CalibrationData
from lit_prune.data.tokens import IGNORED

SEQ_LEN = 8


def drawn(data: CalibrationData) -> list[int]:
    """Indices of the blocks read, in order."""
    batches = list(data.predict_dataloader())
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert torch.equal(ids, torch.cat([batch["labels"] for batch in batches]))
    assert torch.equal(ids, ids[:, :1] + torch.arange(SEQ_LEN))
    return (ids[:, 0] // SEQ_LEN).tolist()


@pytest.fixture
def folder(numbered: Callable):
    """50 whole blocks and a half for calibration, 20 for validation."""
    return numbered(calibration=50 * SEQ_LEN + SEQ_LEN // 2, validation=20 * SEQ_LEN)


@pytest.mark.parametrize("samples", [1, 17, 50])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_block_is_read_once(folder, samples: int, workers: int) -> None:
    data = CalibrationData(folder, num_sequences=samples, seq_len=SEQ_LEN, seed=0, batch_size=4, num_workers=workers)
    read = drawn(data)
    assert len(read) == len(set(read)) == samples
    assert read == drawn(data)
    assert set(read) <= set(range(50))


def test_filling_is_never_read(folder) -> None:
    data = CalibrationData(folder, num_sequences=50, seq_len=SEQ_LEN, seed=0)
    assert len(data.sequences) == 51
    assert all((batch["labels"] != IGNORED).all() for batch in data.predict_dataloader())


def test_the_seed_draws(folder) -> None:
    def draw(seed: int) -> list[int]:
        return drawn(CalibrationData(folder, num_sequences=20, seq_len=SEQ_LEN, seed=seed))

    assert draw(0) == draw(0)
    assert set(draw(0)) != set(draw(1))
    assert draw(0) != sorted(draw(0))


@pytest.mark.parametrize("samples", [51, 1000])
def test_more_than_there_is_cannot_be_asked_for(folder, samples: int) -> None:
    with refuses("calibration", samples, SEQ_LEN, 50):
        CalibrationData(folder, num_sequences=samples, seq_len=SEQ_LEN, seed=0)


def test_another_split_can_be_read(folder) -> None:
    data = CalibrationData(folder, num_sequences=20, seq_len=SEQ_LEN, seed=0, split="validation")
    assert sorted(drawn(data)) == list(range(20))
    with refuses("validation", 21, 20):
        CalibrationData(folder, num_sequences=21, seq_len=SEQ_LEN, seed=0, split="validation")


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_blocks(folder, world: int) -> None:
    shares = []
    for rank in range(world):
        data = CalibrationData(folder, num_sequences=21, seq_len=SEQ_LEN, seed=3)
        data.trainer = SimpleNamespace(world_size=world, global_rank=rank)
        shares.append(drawn(data))
    together = [index for share in shares for index in share]
    assert sorted(together) == sorted(drawn(CalibrationData(folder, num_sequences=21, seq_len=SEQ_LEN, seed=3)))
    assert len(set(together)) == 21
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
