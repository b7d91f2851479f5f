"""However it is interrupted, a run reads the sequences of an uninterrupted run, in order and once per pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from counted import count_up
from refusals import refuses

from lit_prune.data.retraining import RetrainingData, SeededOrder
from lit_prune.distill.callbacks import Checkpoint

NUM_SEQUENCES, SEQ_LEN, BATCH, STEPS = 10, 4, 4, 12
"""A pass over the data ends in the middle of step 2, at the end of step 4, in the middle of step 7, ..."""


class Interrupted(RuntimeError):
    """Raised in the middle of a run."""


class Recorder(L.LightningModule):
    """Notes the blocks of every step, and stops before the micro-batch numbered `stop` of its run."""

    def __init__(self, stop: int | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop, self.micro_batches = stop, 0
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.micro_batches == self.stop:
            raise Interrupted
        self.micro_batches += 1
        blocks = (batch["input_ids"][:, 0] // SEQ_LEN).tolist()
        self.seen.setdefault(self.trainer.global_step, []).extend(blocks)
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@dataclass
class Run:
    """A run that is continued from its checkpoint at every call; `seen` is what counts: the blocks of each step."""

    tokens: Path
    folder: Path
    accumulate: int = 1
    seed: int = 0
    seen: dict[int, list[int]] = field(default_factory=dict)

    def go_on(self, workers: int = 0, stop: int | None = None) -> int:
        """Train to the end, or before the micro-batch `stop` of this attempt; returns the step it began with."""
        data = RetrainingData(
            self.tokens, seq_len=SEQ_LEN, batch_size=BATCH, max_steps=STEPS, seed=self.seed,
            grad_accum_steps=self.accumulate, num_workers=workers,
        )  # fmt: skip
        self.folder.mkdir(exist_ok=True)
        unfinished, module = self.folder / "last.ckpt", Recorder(stop)
        # What was seen of an unfinished step went into no weight; the step is done again.
        self._train(module, data, unfinished if unfinished.exists() else None)
        first = min(module.seen)
        self.seen = {step: blocks for step, blocks in self.seen.items() if step < first} | module.seen
        return first

    def _train(self, module: Recorder, data: RetrainingData, checkpoint: Path | None) -> None:
        trainer = L.Trainer(
            max_steps=STEPS, accelerator="cpu", accumulate_grad_batches=self.accumulate, logger=False,
            callbacks=[Checkpoint(self.folder, seconds=0)], enable_checkpointing=False,
            use_distributed_sampler=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        except Interrupted:
            assert module.micro_batches == module.stop
        else:
            assert trainer.global_step == STEPS


@pytest.fixture
def make_run(numbered: Callable, tmp_path: Path) -> Callable[..., Run]:
    """A maker of runs over the same tokens."""
    tokens = numbered(train=NUM_SEQUENCES * SEQ_LEN)
    return lambda name, **how: Run(tokens, tmp_path / name, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run; neither workers nor micro-batches change its steps."""
    folder = tmp_path_factory.mktemp("whole")
    run = Run(count_up(folder / "tokens", train=NUM_SEQUENCES * SEQ_LEN), folder / "run")
    run.go_on()
    assert len(in_order(run)) == STEPS * BATCH
    return run


def in_order(run: Run) -> list[int]:
    """The blocks of a whole run."""
    assert sorted(run.seen) == list(range(STEPS))
    assert all(len(blocks) == BATCH for blocks in run.seen.values())
    return [block for step in range(STEPS) for block in run.seen[step]]


STOPS = {"inside a pass": (3, 4), "between passes": (5, 5), "inside and between": (6, 4), "at once": (1, 1)}
"""Steps before the first and the second interruption."""


@pytest.mark.parametrize(
    ("workers", "stops", "accumulate"),
    [
        *(((0, 0, 0), stops, 2) for stops in STOPS.values()),
        ((0, 0, 0), STOPS["inside a pass"], 1),
        ((2, 2, 2), (6, 4), 1),
        ((0, 2, 0), (3, 4), 2),
    ],
    ids=str,
)
def test_resumed_twice_is_uninterrupted(
    make_run: Callable[..., Run], whole: Run, workers: tuple[int, int, int], accumulate: int, stops: tuple[int, int]
) -> None:
    parts = make_run("parts", accumulate=accumulate)
    half_a_step = accumulate // 2
    begun = [parts.go_on(n, stop * accumulate + half_a_step) for n, stop in zip(workers, stops, strict=False)]
    begun.append(parts.go_on(workers[2]))
    assert begun == [0, stops[0], sum(stops)]
    assert parts.seen == whole.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_every_block_is_seen_once_a_pass(make_run: Callable[..., Run], workers: int) -> None:
    run = make_run("run")
    run.go_on(workers)
    order = in_order(run)
    passes = [order[start : start + NUM_SEQUENCES] for start in range(0, len(order), NUM_SEQUENCES)]
    assert all(sorted(one) == list(range(NUM_SEQUENCES)) for one in passes[:-1])
    assert len(set(passes[-1])) == len(passes[-1]) == STEPS * BATCH % NUM_SEQUENCES
    assert len(set(map(tuple, passes[:-1]))) == len(passes) - 1


def test_micro_batches_and_workers_do_not_change_a_step(make_run: Callable[..., Run]) -> None:
    runs = [
        make_run(f"{accumulate}-{workers}", accumulate=accumulate) for accumulate in (1, 2, 4) for workers in (0, 2)
    ]
    for run in runs:
        run.go_on(int(run.folder.name[-1]))
    assert all(run.seen == runs[0].seen for run in runs)


def test_another_seed_is_another_order(make_run: Callable[..., Run]) -> None:
    runs = [make_run(f"{i}", seed=seed) for i, seed in enumerate((0, 0, 1))]
    for run in runs:
        run.go_on()
    assert runs[0].seen == runs[1].seen != runs[2].seen


def test_the_loader_leaves_the_random_state_alone(make_run: Callable[..., Run]) -> None:
    """Else the dropout of a resumed run, whose loader is made once more, would be another."""
    data = RetrainingData(
        make_run("run").tokens, seq_len=SEQ_LEN, batch_size=BATCH, max_steps=STEPS, seed=0, num_workers=2
    )
    before = torch.get_rng_state()
    assert len(list(data.train_dataloader())) == STEPS
    assert torch.equal(torch.get_rng_state(), before)


def sequence(world: int, start: int = 0, total: int = 48, seed: int = 0) -> list[list[int]]:
    """The share of every rank."""
    return [list(SeededOrder(NUM_SEQUENCES, total, seed, start, rank, world)) for rank in range(world)]


@pytest.mark.parametrize("start", [0, 8, 20, 44])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_every_step(world: int, start: int) -> None:
    """Dealt out in turn, so that a run goes on with the same steps on any number of ranks."""
    shares = sequence(world, start)
    assert all(len(share) == (48 - start) // world for share in shares)
    dealt = [block for turn in zip(*shares, strict=True) for block in turn]
    assert dealt == sequence(1)[0][start:]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_are_disjoint_and_together_the_whole(world: int) -> None:
    shares = sequence(world, total=NUM_SEQUENCES // world * world)
    together = [block for share in shares for block in share]
    assert len(together) == len(set(together)) == NUM_SEQUENCES // world * world


@pytest.mark.parametrize(("start", "world"), [(0, 1), (20, 1), (20, 2)])
def test_the_length_is_that_of_the_whole_run(start: int, world: int) -> None:
    """Lightning counts batches from step 0, and would stop a resumed run early by what is left alone."""
    assert len(SeededOrder(NUM_SEQUENCES, 48, 0, start, 0, world)) == 48 // world


def test_seeds_and_passes_have_orders_of_their_own() -> None:
    orders = [sequence(1, seed=seed, total=2 * NUM_SEQUENCES)[0] for seed in range(3)]
    passes = [tuple(order[part]) for order in orders for part in (slice(NUM_SEQUENCES), slice(NUM_SEQUENCES, None))]
    assert len(set(passes)) == 6


@pytest.mark.parametrize("accumulate", [3, 8])
def test_a_batch_that_cannot_be_cut_evenly_is_refused(make_run: Callable[..., Run], accumulate: int) -> None:
    how: dict[str, Any] = {
        "seq_len": SEQ_LEN,
        "batch_size": BATCH,
        "max_steps": STEPS,
        "seed": 0,
        "grad_accum_steps": accumulate,
    }
    data = RetrainingData(make_run("run").tokens, **how)
    with refuses("distill.batch_size", "got 4"):
        data.train_dataloader()
