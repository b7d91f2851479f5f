"""Stores of a table whose cells are done, or some of them; nothing is computed."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path

import pandas as pd
from rich.console import Console

from lit_prune.config import Cell, Corpus, Distill, Profile, Teacher
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.pipeline.expand import Entry, entries
from lit_prune.render import terminal
from lit_prune.report import report
from lit_prune.store import Store

CELL = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64), distill=Distill(steps=40))
MSE, RKLD, COSINE, KLD_CE = (f"L_CLM + L_logits({name})" for name in ("MSE", "RKLD", "Cosine", "KLD"))
KLD, RKLD_ALONE = "L_logits(KLD)", "L_logits(RKLD)"
LOSSES = {
    MSE: [3.10, 3.21, 3.33],
    RKLD: [2.80, 2.90, 2.99],
    COSINE: [3.00, 3.20, 3.10],
    KLD_CE: [2.95, 3.05, 3.13],
    KLD: [2.90, 3.00, 3.10],
    RKLD_ALONE: [2.95, 3.05, 3.15],
    "pruned, not retrained": [9.0],
    "teacher": [2.5],
}


def asked(num_seeds: int = 3) -> list[Entry]:
    return entries(TABLE, Profile(CELL, num_seeds))


def finish(store: Store, entry: Entry, loss: float) -> None:
    with store.claim(entry.cell, "cell") as node:
        # References too, so that it is not the lack of a file that keeps them out of the histories.
        clm = {"clm": [4.0, 3.0 + entry.seed]} if entry.cell.distill.w_clm else {}
        terms = {"logits": [1.0, 0.5], "loss": [5.0, 4.0], "grad_norm": [2.0, 1.0]}
        rest = {"lr": [1e-3, 1e-5], "tokens_per_second": [9.0, 9.0]}
        history = pd.DataFrame({"step": [20, 40], **clm, **terms, **rest})
        history.to_csv(node.folder / "metrics.csv", index=False)
        node.finish({"lm_loss": loss, "perplexity": math.exp(loss)}, seconds=1.5, commit="abc")


def filled(root: Path, num_seeds: int = 3) -> Store:
    store = Store(root)
    for entry in asked(num_seeds):
        finish(store, entry, LOSSES[entry.row][entry.seed])
    return store


def answer(store: Store, num_seeds: int = 3, **changes: object) -> report.Report:
    table = dataclasses.replace(TABLE, **changes)
    return report.assemble(table, "tiny", {}, asked(num_seeds), store)


def broken(store: Store, row: str, seed: int) -> Path:
    """The emptied folder of one cell."""
    entry = next(e for e in asked() if (e.row, e.seed) == (row, seed))
    folder = store.node(entry.cell, "cell").folder
    for name in ("result.json", "metrics.csv"):
        (folder / name).unlink()
    return folder


def shown(found: report.Report, width: int) -> str:
    stream = io.StringIO()
    terminal.print_report(found, Console(file=stream, width=width))
    return stream.getvalue()


def partly(complete: Store, root: Path) -> report.Report:
    """The report of a table in every state: one failed cell, one unfinished, one missing."""
    store = Store(shutil.copytree(complete.root, root))
    (broken(store, MSE, 1) / "error.json").write_text(json.dumps({"error": "Diverged: <nan> at [step]\nand then some"}))
    (broken(store, COSINE, 2) / "last.ckpt").touch()
    broken(store, RKLD_ALONE, 0)
    return answer(store)
