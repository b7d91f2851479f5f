"""What status, report and --dry-run of a table import, read and validate: nothing slow, and each cell once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

from lit_prune.cli.table import main
from lit_prune.config import overrides
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.models import checkpoint, shape
from lit_prune.pipeline import costs, outcomes, validate
from lit_prune.pipeline.request import TableRequest, requested_entries
from lit_prune.store import Store, address, integrity
from lit_prune.store.environment import environment

LIBRARIES = ("torch", "transformers", "lightning", "datasets", "wandb", "torchmetrics", "matplotlib", "scipy.stats")
SCRIPT = """
import json, sys
from lit_prune.cli.main import main
assert main(sys.argv[1:]) == 0
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported(*words: str) -> set[str]:
    """Which of LIBRARIES a command imports."""
    command = [sys.executable, "-c", SCRIPT, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return set(LIBRARIES) & set(json.loads(done.stderr.splitlines()[-1]))


def filled(store: Store, seeds: int) -> int:
    """Finish the cells of the table at the profile quick; return how many there are."""
    _, entries = requested_entries(TABLE, TableRequest(seeds=seeds), store)
    for entry in entries:
        with store.claim(entry.cell, "cell") as node:
            if node.result is None:
                result = {"lm_loss": 3 + entry.seed / 100, "perplexity": 20.0, "train_flops": 1e9}
                node.finish(result, seconds=1.0 + entry.seed)
    return len(entries)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    found = Store(tmp_path_factory.mktemp("full"))
    filled(found, 4)
    return found


def words(store: Store, *more: str) -> list[str]:
    return ["--store", str(store.root), *more]


# Imports


DRAWING = {"matplotlib", "scipy.stats"}
"""What a report computes and draws with."""


@pytest.mark.parametrize(("command", "needed"), [("status", set()), ("--dry-run", set()), ("report", DRAWING)])
def test_a_finished_table_is_shown_without_the_libraries_that_compute(store, command, needed):
    assert imported("table", "loss_ablation", *words(store, "--seeds", "4"), command) == needed


def test_a_missing_cell_is_validated_by_transformers_alone(tmp_path):
    empty = Store(tmp_path)
    assert imported("table", "loss_ablation", *words(empty), "status") == set()
    found = imported("table", "loss_ablation", *words(empty, "--seeds", "1"), "--dry-run")
    assert {"torch", "transformers"} <= found
    assert not found & {"lightning", "datasets", "wandb", "torchmetrics", "matplotlib"}


# Counts


def counting(monkeypatch, module, name: str) -> list:
    """Count the calls of a function, which does what it did."""
    calls, original = [], getattr(module, name)

    def counted(*given, **named):
        calls.append(given)
        return original(*given, **named)

    monkeypatch.setattr(module, name, counted)
    return calls


def counts(monkeypatch, store: Store, seeds: int, *more: str) -> dict[str, int]:
    """How often a command validates a section, hashes an address, and reads a JSON file of a node."""
    with monkeypatch.context() as patch:
        places = {"validated": (overrides, "build"), "hashed": (address, "digest"), "read": (integrity, "read_json")}
        calls = {what: counting(patch, *place) for what, place in places.items()}
        assert main(TABLE, words(store, "--seeds", str(seeds), *more)) == 0
        return {what: len(found) for what, found in calls.items()}


def test_each_seed_of_a_row_costs_two_addresses_two_files_and_no_validation(store, monkeypatch):
    two, four = (counts(monkeypatch, store, seeds, "status") for seeds in (2, 4))
    more = len(requested_entries(TABLE, TableRequest(seeds=4), store)[1]) - len(
        requested_entries(TABLE, TableRequest(seeds=2), store)[1]
    )
    assert four["validated"] == two["validated"]
    assert four["hashed"] - two["hashed"] == 2 * more  # before and after its inputs are resolved
    assert four["read"] - two["read"] == 2 * more  # result.json and env.json


def test_other_cells_of_a_store_are_not_read(store, tmp_path, monkeypatch):
    before = counts(monkeypatch, store, 2, "status")
    grown = Store(tmp_path)
    filled(grown, 2)
    filled(grown, 12)
    assert counts(monkeypatch, grown, 2, "status") == before


def test_a_dry_run_checks_each_row_once_and_builds_each_shape_once(tmp_path, monkeypatch):
    def checked(seeds: int) -> tuple[int, ...]:
        with monkeypatch.context() as patch:
            patch.setattr(shape, "_SHAPES", {})
            of_cells, of_rows = counting(patch, validate, "check"), counting(patch, outcomes, "check")
            models, stored = counting(patch, shape, "meta_model"), counting(patch, checkpoint, "meta_model")
            assert main(TABLE, ["--store", str(tmp_path), "--seeds", str(seeds), "--dry-run"]) == 0
            return len(of_cells), len(of_rows), len(models), len(stored)

    assert checked(1) == checked(3)


def test_times_come_from_the_newest_results(tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr(costs, "_SAMPLE", 3)
    for number in range(5):
        node = store.at("cell", f"{number:012d}")
        node.folder.mkdir(parents=True)
        node.finish({"train_flops": 1.0}, **environment(), seconds=float(number + 1))
        os.utime(node.folder, (1e9 + number, 1e9 + number))
    reads = counting(monkeypatch, integrity, "read_json")
    assert sorted(costs.runs_of(store)) == [(1.0, 3.0), (1.0, 4.0), (1.0, 5.0)]
    assert len(reads) == 2 * 3
