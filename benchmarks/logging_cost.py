"""Overhead per step of Lightning and of logging, over a bare loop.

    python -m benchmarks logging [--steps 400] [--keys 1 5 20] [--repeats 5] [--json FILE]

The model is one matrix, so that a step is nearly all overhead. `self.log` is Lightning's logging, `History` is
lit_prune's: sums of tensors, read once every ten steps. Lightning's rows include the set-up of a fit, about ten
milliseconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import measuring
from lit_prune.distill.callbacks import History
from lit_prune.models.silence import quiet

WIDTH, EVERY = 8, 10


class Regression(L.LightningModule):
    """One matrix, and a number of terms logged by Lightning or by History."""

    def __init__(self, keys: int, by_lightning: bool) -> None:
        super().__init__()
        self.matrix, self.keys, self.by_lightning = nn.Linear(WIDTH, WIDTH), keys, by_lightning
        self.terms: dict[str, Tensor] = {}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean square, under `keys` names."""
        loss = self.matrix(batch["input_ids"]).square().mean()
        self.terms = {"loss": loss, "grad_norm": loss.detach()} | {f"term{i}": loss.detach() for i in range(self.keys)}
        if self.by_lightning:
            for i in range(self.keys):
                self.log(f"term{i}", self.terms[f"term{i}"])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks logging", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="steps of a run (400)")
    parser.add_argument("--keys", type=int, nargs="+", default=[1, 5, 20], help="numbers logged (1 5 20)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    args = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(1)
    environment = measuring.environment("lightning")
    print(f"{measuring.environment_line(environment)}\n")
    with tempfile.TemporaryDirectory() as folder:
        timings = measuring.compare(ways(args.keys, args.steps, Path(folder)), args.repeats)
    bare, empty = timings[0].seconds, timings[1].seconds
    overhead = {t.what: f"{1e6 * (t.seconds - bare) / args.steps:.0f}" for t in timings}
    each = dict.fromkeys(overhead, "")
    for t in timings[2:]:
        keys = int(t.what.partition(": ")[2])
        each[t.what] = f"{1e6 * (t.seconds - empty) / args.steps / keys:.0f}"
    title = f"{args.steps} steps of a model of one matrix"
    measuring.print_timings(title, timings, us_a_step_over_the_loop=overhead, us_a_key_and_step=each)
    if args.json:
        found = {"timings": timings, "us_a_step_over_the_loop": overhead, "us_a_key_and_step": each}
        measuring.write(args.json, {"environment": environment, **found})


def ways(keys: list[int], steps: int, folder: Path) -> dict[str, measuring.Way]:
    """Return a bare loop, Lightning without logging, and both ways to log at each number of keys."""
    data = [{"input_ids": torch.ones(WIDTH)} for _ in range(steps)]
    loader = DataLoader(data, batch_size=1)  # type: ignore[arg-type]
    found: dict[str, measuring.Way] = {
        "bare loop": lambda: bare(loader),
        "Lightning": lambda: fit(loader, Regression(0, False), []),
    }

    def add(count: int) -> None:
        found[f"self.log, keys: {count}"] = lambda: fit(loader, Regression(count, True), [])
        history: Callable[[], Any] = lambda: History(folder / "metrics.csv", EVERY)  # noqa: E731
        found[f"History, keys: {count}"] = lambda: fit(loader, Regression(count, False), [history()])

    for count in keys:
        add(count)
    return found


def bare(loader: Any) -> None:
    """Train without a trainer."""
    module = Regression(0, False)
    sgd = torch.optim.SGD(module.parameters(), lr=0.01)
    for i, batch in enumerate(loader):
        sgd.zero_grad()
        module.training_step(batch, i).backward()
        sgd.step()


def fit(loader: Any, module: Regression, callbacks: list[L.Callback]) -> None:
    """Train with Lightning and all optional parts off, as in lit_prune."""
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, callbacks=callbacks, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=EVERY,
    )  # fmt: skip
    trainer.fit(module, loader)


if __name__ == "__main__":
    main()
