"""Benchmarks: every trainer minimises the same loss on the same batches, tables name what was measured, and one command
records it. Times are not asserted."""

import json
import statistics
import subprocess

import pytest

import benchmarks.__main__ as command
from benchmarks import jobs, limits, peers, shapes, startup, step, tables
from benchmarks.logging_cost import ways
from lit_prune.config.profiles import load_profile
from lit_prune.pruning.shapes import config_of_student, teacher_config
from lit_prune.store import Store

SIZES = {"vocab_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2}
TINY = shapes.Shape(
    teacher={**SIZES, "hidden_size": 32, "intermediate_size": 48},
    student={**SIZES, "hidden_size": 16, "intermediate_size": 24},
    seq_len=16, batch=2,
)  # fmt: skip
NEEDS = {"hf": "accelerate", "trl": "trl", "modelopt": "modelopt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tiny models and random tokens for four steps."""
    made = tmp_path_factory.mktemp("step")
    step.prepare(TINY, 4, made)
    return made


def losses(trainer, folder, precision="32-true"):
    job = jobs.Job(trainer, str(folder), False, precision, 1, TINY.seq_len, TINY.batch, 4)
    return peers.measure(job)


@pytest.mark.parametrize("trainer", [name for name in peers.TRAINERS if name != "ours"])
def test_every_trainer_has_our_losses_at_every_step(trainer, folder):
    if trainer in NEEDS:
        pytest.importorskip(NEEDS[trainer])
    ours, theirs = losses("ours", folder), losses(trainer, folder)
    assert len(ours.losses) == len(theirs.losses) == 4
    assert theirs.losses[0] == pytest.approx(ours.losses[0], rel=1e-5)
    assert theirs.losses == pytest.approx(ours.losses, rel=1e-4)
    assert len(set(ours.losses)) == 4
    assert len(theirs.seconds) == len(theirs.cpu_seconds) == 3


def test_a_run_reports_the_memory_it_held(folder):
    run = losses("loop", folder, "bf16-mixed")
    assert run.peak >= run.before > 100
    assert run.losses[0] == pytest.approx(losses("loop", folder).losses[0], rel=0.02)


def run_of(seconds, loss=1.0, cpu=2.0, peak=100.0):
    return jobs.Run([seconds] * 3, [cpu * seconds] * 3, 7.0, [loss, loss / 2], 50.0, peak, {})


def test_rows_compare_within_rounds_and_mark_what_is_noisy():
    runs = {
        "ours": [run_of(1.0), run_of(2.0), run_of(4.0)],
        "hf": [run_of(2.0, 1.01), run_of(4.0), run_of(8.0)],
        "trl": [run_of(3.0), run_of(3.0), run_of(3.0)],
        "modelopt": [run_of(3.0, cpu=1.5)] * 3,
    }
    ours, hf, trl, modelopt = step.rows(runs, threads=2)
    assert (ours.ratio, hf.ratio, hf.ratio_iqr) == (1, 2, (2, 2))
    assert trl.ratio == statistics.median([3, 1.5, 0.75])
    assert [row.noisy for row in (ours, hf, trl, modelopt)] == [True, True, False, True]
    assert hf.loss_difference == pytest.approx(0.01)
    assert trl.loss_difference == 0


def test_the_best_peer_of_each_kind_is_named(capsys):
    runs = {
        "ours": [run_of(1.0, peak=50.0)],
        "hf": [run_of(3.0)],
        "trl": [run_of(2.0)],
        "hf with our switches": [run_of(1.5)],
        "loop": [run_of(0.1)],
    }
    found = step.rows(runs, threads=2)
    step.print_rows("a step", found)
    step.print_summary(found, work=1e9, limit=4e9)
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == len(runs)
    assert all(part in printed for part in ("1 GFLOP/s", "25%", "trl: 2.00", "0.50", "hf with our switches: 1.50"))


def test_every_peer_runs_as_it_is_and_with_our_switches():
    names = [way.name for way in step.ways(["hf", "ours"])]
    assert names == ["ours", "hf", "hf with our switches"]
    assert step.arguments_of([]).only == ["ours", "hf", "trl", "modelopt"]
    with pytest.raises(SystemExit):
        step.arguments_of(["--steps", "1"])


def test_operations_of_a_step_by_hand():
    """Two layers of 32: Q and O 16 each, K and V 8 each, three matrices of 48, causal scores and values 16 x 16."""
    layer = 32 * (2 * 16 + 2 * 8 + 3 * 48) + 16 * 16
    teacher = 2 * 32 * (2 * layer + 32 * 64)
    layer = 16 * (2 * 16 + 2 * 8 + 3 * 24) + 16 * 16
    assert shapes.flops(TINY) == teacher + 3 * 2 * 32 * (2 * layer + 16 * 64)


def test_limits_are_rates_and_restore_the_precision():
    import torch

    before = torch.backends.mkldnn.matmul.fp32_precision
    best, median = limits.matmul_rates((64, 64, 64), torch.float32, "bf16", 2)
    assert best >= median > 0
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert limits.matmul_error("ieee") < 1e-5


def test_logging_compares_both_ways_at_each_number_of_keys(tmp_path):
    result = ways([1, 3], 4, tmp_path)
    assert list(result)[:2] == ["bare loop", "Lightning"]
    assert list(result)[2:] == ["self.log, keys: 1", "History, keys: 1", "self.log, keys: 3", "History, keys: 3"]


@pytest.mark.slow
def test_logging_runs_every_way(tmp_path):
    for way in ways([2], 10, tmp_path).values():
        way()
    assert (tmp_path / "metrics.csv").read_text().startswith("step,loss")


def test_tables_finishes_cells_and_takes_the_cpu_time_of_a_process(tmp_path):
    assert tables.finish(Store(tmp_path), 1) == len(list((tmp_path / "cell").glob("*/result.json"))) == 9
    assert tables.cpu_seconds(["-c", "sum(range(10**6))"]) > 0
    with pytest.raises(subprocess.CalledProcessError):
        tables.cpu_seconds(["-c", "raise SystemExit(1)"])


def test_startup_waits_for_commands_that_succeed():
    (wait,) = startup.measure({"nothing": ["-c", ""]}, 1)
    assert wait.what == "nothing"
    with pytest.raises(subprocess.CalledProcessError):
        startup.measure({"nothing": ["-c", "raise SystemExit(1)"]}, 1)


def test_bad_requests_of_the_command_are_one_line(capsys):
    assert command.main(["stairs"]) == 2
    assert command.main(["limits", "startup", "--repeats", "2"]) == 2
    logged = capsys.readouterr().err.strip().splitlines()
    assert len(logged) == 2
    assert all(name in logged[0] for name in ("limits", "step"))


def test_a_record_holds_what_was_printed_and_found(tmp_path, capsys):
    words = ["--steps", "10", "--keys", "1", "--repeats", "1"]
    command.run("logging", words, record=True, results=tmp_path)
    written = (tmp_path / "logging.md").read_text()
    assert written.startswith("# logging\n\n`python -m benchmarks logging --steps 10 --keys 1 --repeats 1`, 2")
    assert capsys.readouterr().out.strip() in written
    assert "| self.log, keys: 1 |" in written
    found = json.loads((tmp_path / "logging.json").read_text())
    assert [timing["what"] for timing in found["timings"]][:2] == ["bare loop", "Lightning"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logging.json", "logging.md"]


def test_the_shape_smollm2_is_of_the_teacher_and_the_student_of_its_profile():
    cell, shape = load_profile("smollm2").cell, shapes.SHAPES["smollm2"]
    teacher, student = teacher_config(cell), config_of_student(cell)
    for sizes, config in ((shape.teacher, teacher), (shape.student, student)):
        assert {name: getattr(config, name) for name in sizes} == sizes
        assert config.tie_word_embeddings is shape.tied
