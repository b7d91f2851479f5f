"""Cells in W&B: a resumed run is one history, whatever was lost, and every cell has its run."""

import json
import os

import loopback_wandb
import pandas as pd
import pytest
import wandb
from offline_runs import history, inspect, parts, run

from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Execution
from lit_prune.config.overrides import override
from lit_prune.integrations.wandb import tracker
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.schedule import waves
from lit_prune.store import Store


@pytest.fixture
def entry(tiny_cell, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "store/wandb/data"))
    return Entry("kld", 0, override(tiny_cell, {"evaluation.num_validations": 2}), {"seed": 0})


@pytest.mark.slow
@pytest.mark.parametrize("before", ["offline", "disabled"])
def test_a_run_that_is_resumed_tells_each_step_once_and_whole(entry, tmp_path, before):
    """Also what happened while W&B was off."""
    store = tmp_path / "store"
    run(store, [entry], before, stop_at=2)  # after the step's loss was logged, and before its check
    run(store, [entry])
    assert len(parts(store)) == (2 if before == "offline" else 1)
    logged = pd.DataFrame(history(store)).set_index("_step")
    assert list(logged.index) == [0, 1, 2, 3, 4]
    assert list(logged["trainer/global_step"]) == list(logged.index)
    assert list(logged["tokens"]) == [step * 2 * 32 for step in logged.index]
    folder = Store(store).node(entry.cell, "cell").folder
    for name, prefix in (("metrics.csv", ""), ("checks.csv", "validation/")):
        kept = pd.read_csv(folder / name, index_col="step").drop(columns="tokens_per_second", errors="ignore")
        pd.testing.assert_frame_equal(
            logged.loc[kept.index, [prefix + column for column in kept]].set_axis(kept.columns, axis=1), kept,
            check_names=False, check_dtype=False,
        )  # fmt: skip


@pytest.mark.slow
def test_every_cell_has_its_run_with_what_it_is_for_and_all_of_its_fields(entry, tmp_path):
    """Also one that is not retrained, whose row has a name longer than a tag may be."""
    store = tmp_path / "store"
    untrained = override(entry.cell, {"distill.max_steps": 0, "evaluation.num_validations": 0})
    chained = override(entry.cell, {"parent": {"prune.hidden_size": 0.75}, "prune.hidden_size": 0.5})
    requested = [
        Entry("a row with a name " * 5, 0, untrained, {}),
        Entry("teacher", 0, override(untrained, {"seed": 1}), {}, reference=True),
        Entry("chained", 0, chained, {}),
    ]
    run(store, requested)
    cells = [e for wave in waves(Store(tmp_path / "elsewhere"), requested) for e in wave]
    runs = {part.name.rpartition("-")[2]: part for part in parts(store)}
    assert set(runs) == {cell.key for cell in cells}
    records = {
        key: next(r["run"] for r in map(json.loads, inspect(part).splitlines()) if r["type"] == "run")
        for key, part in runs.items()
    }
    assert [records[e.key]["job_type"] for e in requested] == ["cell", "reference", "cell"]
    (source,) = set(records) - {e.key for e in requested}
    assert records[source]["job_type"] == "parent"
    assert {record["run_group"] for record in records.values()} == {"toy"}
    summary = json.loads(inspect(runs[requested[2].key], "--summary"))
    result = Store(store).node(chained, "cell").result
    assert summary["summary"]["lm_loss"] == pytest.approx(result["lm_loss"], rel=1e-12)
    config = summary["config"]
    assert (config["row"], config["seed"]) == ("chained", 0)
    assert config["cell"]["parent"]["prune"]["hidden_size"] == 0.75
    assert config["cell"]["parent"]["parent"] is None


class EndingBar(ProgressBar):
    """Ends a server at the second step of a run."""

    def __init__(self, server):
        super().__init__(0, quiet=True)
        self.server = server

    def at(self, done, what):
        super().at(done, what)
        if done == 2:
            self.server.__exit__()


@pytest.mark.slow
def test_a_server_that_goes_away_costs_the_run_a_set_time_and_nothing_else(entry, tmp_path, monkeypatch, capfd):
    server = loopback_wandb.Server("lit-prune").__enter__()
    named = {"BASE_URL": server.url, "API_KEY": "local-" + "0" * 40, "ERROR_REPORTING": "false"}
    for name, value in named.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setattr(tracker, "_PATIENCE", 1)
    wandb.teardown()  # it has read the environment once, for another test
    store = Store(tmp_path / "store")
    mirror = WandbTracker("toy", "online", store.mirror)
    execution = Execution(accelerator="cpu", checkpoint_seconds=0.0, log_every=1)
    assert Runner(store, execution, EndingBar(server), mirror).run([entry]) == 0
    mirror.close()
    assert "W&B is lost, the run goes on without it" in capfd.readouterr().err
    assert store.node(entry.cell, "cell").result is not None
    assert entry.key in server.runs
    wandb.teardown()


@pytest.mark.parametrize(("name", "value"), [("API_KEY", "abc"), ("BASE_URL", "nowhere")])
def test_a_key_or_a_server_that_cannot_be_is_one_line_and_the_runs_are_made_offline(
    tmp_path, monkeypatch, capfd, name, value
):
    for known in [known for known in os.environ if known.startswith("WANDB_")]:
        monkeypatch.delenv(known)
    monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()  # it has read the environment once, for another test
    assert WandbTracker("toy", "auto", tmp_path).mode == "offline"
    (line,) = capfd.readouterr().err.splitlines()
    assert "W&B" in line
    wandb.teardown()


def test_runs_go_where_the_environment_wants_them(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_DIR", raising=False)
    assert Store(tmp_path).mirror == tmp_path / "wandb"
    monkeypatch.setenv("WANDB_DIR", "~/runs")
    assert Store(tmp_path).mirror.is_absolute()
    assert Store(tmp_path).mirror.name == "runs"


@pytest.mark.slow
def test_results_are_the_same_with_and_without_a_mirror(entry, tmp_path):
    nodes = []
    for mode in ("offline", "disabled"):
        run(tmp_path / mode, [entry], mode)
        nodes.append(Store(tmp_path / mode).node(entry.cell, "cell"))
    assert nodes[0].result == nodes[1].result is not None
    first, second = folders = [node.folder for node in nodes]
    assert first.name == second.name
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    assert (first / "checks.csv").read_text() == (second / "checks.csv").read_text()
    ours, theirs = (pd.read_csv(folder / "metrics.csv").drop(columns="tokens_per_second") for folder in folders)
    pd.testing.assert_frame_equal(ours, theirs)
