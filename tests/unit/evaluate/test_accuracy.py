"""Accuracy as a metric of a cell: agreement with lm-eval, address, and refusals."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import task_files
from refusals import refuses

from lit_prune.config import Cell, TaskTest
from lit_prune.config.overrides import override
from lit_prune.evaluate.accuracy import accuracies, pin_tasks
from lit_prune.evaluate.benchmark_tasks import questions
from lit_prune.evaluate.harness import measure
from lit_prune.experiments.depth_ablation import TABLE
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.store.address import key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_files.write(tmp_path_factory.mktemp("tasks"))


def test_it_is_that_of_each_task_and_their_mean(tiny_llama: Any, tiny_tokenizer: Any, folder: Path) -> None:
    shares: list[float] = []
    found = accuracies(tiny_llama, tiny_tokenizer, TaskTest(data_dir=str(folder), num_documents=None), shares.append)
    expected = {}
    for name, metric in (("hellaswag", "acc_norm"), ("piqa", "acc"), ("blimp", "acc")):
        (question,) = questions([name], local=folder, shots=0)
        expected[f"accuracy_{name}"] = measure(tiny_llama, tiny_tokenizer, question).metrics[metric].value
    assert found == {"accuracy": pytest.approx(sum(expected.values()) / 3), **expected}
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_documents_are_shared_out_over_subtasks(tiny_llama: Any, tiny_tokenizer: Any, folder: Path) -> None:
    """Two of BLiMP's subtasks of two pairs each: one pair of each."""
    tasks = TaskTest(names=("blimp",), data_dir=str(folder), num_documents=2)
    (question,) = questions(["blimp"], local=folder, shots=0, limit=1)
    expected = measure(tiny_llama, tiny_tokenizer, question)
    assert len(expected.documents) == 2
    found = accuracies(tiny_llama, tiny_tokenizer, tasks, lambda share: None)
    assert found["accuracy_blimp"] == expected.metrics["acc"].value


def test_a_cell_that_asks_for_it_has_it_in_its_result(shared_cell: Cell, tiny_runner: Any, folder: Path) -> None:
    tasks = {"evaluation.tasks.names": ["piqa", "blimp"], "evaluation.tasks.data_dir": str(folder)}
    cell = Resolver().pin(override(shared_cell, tasks))
    assert tiny_runner.run([Entry("row", 0, cell, {}), Entry("plain", 0, Resolver().pin(shared_cell), {})]) == 0
    found, plain = (tiny_runner.store.node(one, "cell").result for one in (cell, Resolver().pin(shared_cell)))
    assert found.keys() - plain.keys() == {"accuracy", "accuracy_piqa", "accuracy_blimp"}
    assert found["lm_loss"] == plain["lm_loss"]


def test_the_files_stand_for_their_folder_in_the_address(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    here, there = (pin_tasks(TaskTest(data_dir=str(place))) for place in (folder, other))
    assert here != there
    assert here.fingerprint == there.fingerprint
    with (other / "piqa/valid-labels.lst").open("a") as labels:
        labels.write("\n")
    changed = pin_tasks(dataclasses.replace(there, fingerprint=None))

    def address(tasks: TaskTest) -> str:
        return key(dataclasses.replace(Cell(), evaluation=dataclasses.replace(Cell().evaluation, tasks=tasks)))

    assert address(here) == address(there) != address(changed)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data_dir": "nowhere"}, "evaluation.tasks.data_dir"),
        ({"names": ("winogrande",)}, "evaluation.tasks.names"),
        ({"names": ("xlsum_english",)}, "evaluation.tasks.names"),
        ({"names": ()}, "evaluation.tasks.names"),
    ],
)
def test_tasks_that_cannot_be_read_are_refused(changes: dict[str, Any], field: str, folder: Path) -> None:
    with refuses(field):
        pin_tasks(TaskTest(**{"data_dir": str(folder), **changes}))


def test_a_table_has_the_columns_and_the_claims_where_cells_measure_them() -> None:
    assert TABLE.measuring(Cell()) is TABLE
    cell = override(Cell(), {"evaluation.tasks.names": ["piqa"], "evaluation.throughput.batch_size": 2})
    table = TABLE.measuring(cell)
    assert table.metrics == (*TABLE.metrics, "speedup", "memory_share", "accuracy", "accuracy_piqa")
    assert table.higher_is_better == ("speedup", "accuracy", "accuracy_piqa")
    assert table.claims == (*TABLE.claims, *TABLE.accuracy_claims)
    assert table.measuring(cell) == table
