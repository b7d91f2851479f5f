"""Budgets in tokens or FLOPs: the address of the steps they buy, and the spending of a cell."""

import dataclasses
import json

import pytest
from transformers import AutoConfig

from lit_prune.cli.table import main
from lit_prune.config import Cell, ConfigError, Corpus, Distill, Profile, Teacher
from lit_prune.config.overrides import override
from lit_prune.config.profiles import load_profile
from lit_prune.data.calibration import CalibrationData
from lit_prune.distill.budget import with_steps
from lit_prune.evaluate.perplexity import language_model_loss
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.models.flops import forward_flops, training_flops
from lit_prune.models.loading import SHIPPED, load_model
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.resolve import Resolver
from lit_prune.report.results_frame import tidy
from lit_prune.store import Store
from lit_prune.store.address import key

STEP = Distill(batch_size=4, seq_len=16)
"""64 tokens a step, 640 FLOPs at 10 a token."""


def steps(**budget):
    found = with_steps(dataclasses.replace(STEP, **budget), lambda: 10.0)
    assert (found.max_tokens, found.max_flops) == (None, None)
    return found.max_steps


def refused(do, *given, **named):
    with pytest.raises(ConfigError) as caught:
        do(*given, **named)
    assert "\n" not in str(caught.value)
    return caught.value


# Steps


@pytest.mark.parametrize(
    ("tokens", "expected"), [(64, 1), (95, 1), (96, 2), (127, 2), (640, 10), (10**15, 15_625 * 10**9)]
)
def test_a_budget_of_tokens_is_the_nearest_whole_number_of_steps(tokens, expected):
    assert steps(max_tokens=tokens) == expected
    assert steps(max_flops=10.0 * tokens) == expected


def test_without_a_budget_nothing_changes_and_no_cost_is_asked():
    assert with_steps(STEP, lambda: 1 / 0) is STEP
    assert with_steps(dataclasses.replace(STEP, max_tokens=128), lambda: 1 / 0).max_steps == 2


@pytest.mark.parametrize(
    "budget", [{"max_tokens": 63}, {"max_tokens": 0}, {"max_tokens": -640}, {"max_flops": 639.0}, {"max_flops": 0.0}]
)
def test_less_than_a_step_is_refused(budget):
    (name,) = budget
    error = refused(steps, **budget)
    assert error.field == f"distill.{name}"
    assert f"{budget[name]:.6g}" in error.problem


def test_two_budgets_are_refused(tmp_path):
    for name in ("max_tokens", "max_flops"):
        assert name in str(refused(steps, max_tokens=640, max_flops=640.0))
    settings = {"distill.max_steps": 5, "distill.max_tokens": 640}
    assert all(name in str(refused(entries, TABLE, Profile(Cell()), settings=settings)) for name in settings)
    profile = tmp_path / "both.yaml"
    profile.write_text("distill: {tokens: 640, flops: 1e9}\n")
    error = str(refused(load_profile, str(profile)))
    assert all(name in error for name in ("distill.max_tokens", "distill.max_flops"))


def test_what_is_set_later_decides():
    by_tokens = override(Cell(), {"distill.max_steps": 7, "distill.max_tokens": 640})
    assert by_tokens.distill == Distill(max_tokens=640)
    by_flops = override(by_tokens, {"distill.max_flops": 1e12})
    assert by_flops.distill == Distill(max_flops=1e12)
    assert override(by_flops, {"distill.max_steps": 0}).distill == Distill(max_steps=0)
    assert override(by_flops, {"distill.max_tokens": None, "distill.batch_size": 2}).distill == Distill(
        max_flops=1e12, batch_size=2
    )


def test_a_budget_leaves_what_is_not_retrained_as_it_is():
    found = entries(TABLE, Profile(Cell(), seeds=1), settings={"distill.max_tokens": 640})
    of_rows, of_references = (
        {e.cell.distill.max_steps for e in found if e.reference is kind} for kind in (False, True)
    )
    assert of_references == {0}
    assert 0 not in of_rows


def test_a_table_that_sweeps_the_length_takes_no_other():
    swept = dataclasses.replace(
        TABLE, rows={f"{flops:.0e}": {"distill.max_flops": flops} for flops in (1e12, 2e12)},
        baseline="1e+12", paper={}, claims=(),
    )  # fmt: skip
    error = refused(entries, swept, Profile(Cell()), settings={"distill.max_steps": 5})
    assert "distill.max_steps" in str(error)


# Cells of the teacher that ships


@pytest.fixture(scope="module")
def cell(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(texts * 3))
    return Resolver().pin(Cell(corpus=Corpus(path=str(path)), distill=STEP))


def student_and_teacher(hidden):
    teacher = AutoConfig.from_pretrained(SHIPPED / Teacher().model)
    student = AutoConfig.from_pretrained(SHIPPED / Teacher().model)
    student.hidden_size, student.intermediate_size, student.num_attention_heads, student.head_dim = hidden, 352, 4, 32
    return student, teacher


@pytest.mark.parametrize("objective", [{}, {"kd_weight": 0.0, "ce_weight": 1.0}, {"kd_weight": 0.0, "alpha": 1.0}])
def test_flops_are_those_of_the_student_and_of_the_teacher_where_the_objective_needs_it(cell, objective):
    student, teacher = student_and_teacher(144)
    step = 64 * training_flops(student, 16, None if "ce_weight" in objective else teacher)
    if "alpha" in objective:  # a trained projection of one state, but no gradients through the head
        objective, head = {**objective, "match_embedding": True}, student.vocab_size * 144
        step += 64 * 2 * (3 * 144 * teacher.hidden_size - 2 * head)
    requested = override(cell, {f"distill.{name}": value for name, value in objective.items()})
    found = Resolver().pin(override(requested, {"distill.max_flops": 10.4 * step}))
    assert found == override(requested, {"distill.max_steps": 10})
    assert Resolver().pin(override(requested, {"distill.max_flops": 10.6 * step})).distill.max_steps == 11


@pytest.mark.parametrize("part", [{"train_last_layers": 1}, {"lora.rank": 4}])
def test_a_budget_of_flops_buys_more_steps_if_less_is_trained(cell, part):
    student, teacher = student_and_teacher(144)
    budget = {"distill.max_flops": 100 * 64 * training_flops(student, 16, teacher)}
    least = 64 * (forward_flops(student, 16) + forward_flops(teacher, 16))
    found = Resolver().pin(override(cell, {**budget, **{f"distill.{name}": value for name, value in part.items()}}))
    assert 100 < found.distill.max_steps < budget["distill.max_flops"] / least


@pytest.mark.parametrize("shape", [{}, {"prune.init": "random"}, {"prune.width_allocation": "global"}])
def test_every_way_to_a_shape_has_its_cost(cell, shape):
    student, teacher = student_and_teacher(144)
    requested = override(cell, {**shape, "distill.max_flops": 3 * 64 * training_flops(student, 16, teacher)})
    assert Resolver().pin(requested).distill.max_steps == 3


def test_a_model_of_its_own_is_charged_as_it_is(cell, tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    step = 64 * training_flops(tiny_llama.config, 16, student_and_teacher(144)[1])
    requested = override(cell, {"prune.init_from": str(tmp_path), "distill.max_flops": 2 * step})
    assert Resolver().pin(requested).distill.max_steps == 2


def test_a_cell_asked_by_its_budget_has_the_address_of_the_equal_steps(cell):
    by_steps = key(override(cell, {"distill.max_steps": 9}))
    assert key(cell) != by_steps
    assert key(Resolver().pin(override(cell, {"distill.max_tokens": 9 * 64}))) == by_steps
    unresolved = override(cell, {"distill.max_tokens": 9 * 64})
    assert key(unresolved) != by_steps


# The command


SMALL = {
    "calibration.num_sequences": 4, "calibration.seq_len": 32, "distill.seq_len": 32, "distill.batch_size": 2,
    "distill.optimizer.warmup_steps": 1, "evaluation.num_sequences": 4, "evaluation.seq_len": 32,
    "evaluation.num_validations": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def command(cell, tmp_path_factory):
    """Words of a command for one cell of four steps, but for how long it is retrained; and its store."""
    store = tmp_path_factory.mktemp("store")
    settings = SMALL | {"corpus.path": cell.corpus.path}
    words = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
    words += ["--filter", "logit_loss=kld", "--filter", "ce_weight=0.0", "--seeds", "1", "--wandb", "disabled"]
    return [*words, "--store", str(store)], store


def test_a_dry_run_shows_the_steps_that_a_budget_buys(command, capsys):
    words, _ = command
    assert main(TABLE, [*words, "--set", "distill.max_tokens=260", "--dry-run"]) == 0
    total = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("total"))
    assert total[2] == "4"
    assert main(TABLE, [*words, "--set", "distill.max_flops=1e11", "--dry-run"]) == 0
    assert main(TABLE, [*words, "--set", "distill.max_flops=1e3"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ("distill.max_flops", "1000"))


def test_budgets_that_come_to_the_same_steps_are_the_same_cell(command, capsys):
    words, _ = command
    assert (
        main(TABLE, [*words, "--set", "distill.max_steps=4", "--add-row", "distill.max_tokens=260", "--dry-run"]) == 2
    )
    assert "max_tokens" in capsys.readouterr().err


@pytest.fixture(scope="module")
def result(command):
    words, store = command
    assert main(TABLE, [*words, "--set", "distill.max_tokens=260"]) == 0
    (found,) = [p for p in store.glob("cell/*/result.json") if (p.parent / "model").exists()]
    return found


def test_a_cell_tells_the_tokens_and_flops_it_has_taken(command, result):
    record = json.loads(result.read_text())
    assert record["tokens"] == 4 * 2 * 32
    student, teacher = (AutoConfig.from_pretrained(p) for p in (result.parent / "model", SHIPPED / Teacher().model))
    assert record["train_flops"] == 4 * 2 * 32 * training_flops(student, 32, teacher)
    others = [json.loads(p.read_text()) for p in command[1].glob("cell/*/result.json") if p != result]
    assert [(r["tokens"], r["train_flops"]) for r in others] == [(0, 0.0)] * len(TABLE.reference_rows)


def test_steps_find_what_a_budget_computed(command, result, capsys):
    words, store = command
    before = {path: path.stat().st_mtime_ns for path in store.glob("cell/*/*")}
    assert main(TABLE, [*words, "--set", "distill.max_steps=4"]) == 0
    assert {path: path.stat().st_mtime_ns for path in store.glob("cell/*/*")} == before


def test_the_last_check_is_the_final_evaluation_to_the_last_bit(cell, result):
    (tokens,) = (result.parents[2] / "tokens").iterdir()
    data = CalibrationData(tokens, num_sequences=4, seq_len=32, seed=0, split="validation")
    record = json.loads(result.read_text())
    model = load_model(str(result.parent / "model"))
    assert (record["lm_loss"], record["num_tokens"]) == language_model_loss(model, data.predict_dataloader())


def test_results_from_before_costs_were_kept_are_read_without(tmp_path):
    table = dataclasses.replace(TABLE, metrics=("lm_loss", "perplexity", "train_flops"), claims=())
    found, store = entries(table, Profile(Cell(), seeds=1)), Store(tmp_path)
    for number, entry in enumerate(found):
        with store.claim(entry.cell, "cell") as node:
            node.finish({"lm_loss": 1.0, "perplexity": 2.7} | ({"train_flops": 1e12} if number else {}))
    frame = tidy(table, found, store)
    assert (frame["state"] == "done").all()
    assert frame["train_flops"].isna().to_list() == [True] + [False] * (len(found) - 1)
    swept = dataclasses.replace(found[0], changes={"distill.max_tokens": 640})
    assert tidy(table, [swept], store)["distill.max_tokens"].to_list() == [640]
