"""Every table by its command, at a scale of seconds: each row is computed, and the report is complete."""

import importlib
import os

import pandas as pd
import pytest
import yaml
from refusals import check_refusal
from tables import TABLES

from lit_prune.cli.table import main
from lit_prune.config.profiles import profiles_folder
from lit_prune.experiments.method_ablation import OWN, SPARSE

PYTHON = {"path": "python", "max_tokens": 200_000}
"""The beginning of the text of quick: all of it takes longer to tokenise than the rest of a tiny table."""
TINY = {
    "seeds": 1,
    "calibration_seeds": 1,
    "corpus": PYTHON,
    "calibration": {"num_sequences": 8, "seq_len": 32},
    "distill": {"seq_len": 32, "batch_size": 2, "max_steps": 6, "optimizer": {"lr": 1e-3, "warmup_steps": 2}},
    "evaluation": {"num_sequences": 4, "seq_len": 32},
    "deep_teacher": {
        "model": None,
        "pretraining": {
            "num_hidden_layers": 12, "hidden_size": 48, "num_attention_heads": 3, "head_dim": 16,
            "num_key_value_heads": 1, "intermediate_size": 64, "seq_len": 32,
            "batch_size": 2, "max_steps": 6, "corpus": PYTHON,
        },
    },
    "tables": {"ticket_ablation": {"distill": {"max_steps": 11}, "evaluation": {"num_sequences": 8}}},
}  # fmt: skip
FEWER = {"ticket_ablation": ["--set", "evaluation.basin.num_directions=2"]}
"""Words that make single tables tiny where a profile cannot."""


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """quick, made tiny."""
    plain = yaml.safe_load((profiles_folder() / "quick.yaml").read_text())
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**plain, **TINY}))
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """One store of all tables and test processes: what several tables have in common is computed once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tables"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TABLES) - {"loss_ablation"}))
def test_a_table_comes_whole_from_one_command(name, profile, store, capsys):
    table = importlib.import_module(f"lit_prune.experiments.{name}").TABLE
    words = ["--profile", str(profile), "--wandb", "disabled", "--store", str(store)]
    assert main(table, words + FEWER.get(name, [])) == 0
    said = capsys.readouterr().out
    (path,) = store.glob(f"reports/{name}/tiny-*/results.csv")
    frame = pd.read_csv(path)
    assert (frame["state"] == "done").all()
    zeros = frame["row"].str.removesuffix(OWN.format("")).isin(SPARSE)  # no smaller, and not timed
    measured = frame[list(table.metrics)].notna()
    assert measured[~zeros].all(axis=None)
    assert measured.drop(columns=["speedup", "memory_share"], errors="ignore").all(axis=None)
    assert set(table.paper) <= set(frame["row"])
    assert "teacher" in set(frame["row"])
    students = frame[~frame["reference"] & (frame["row"] != "teacher") & ~zeros]
    if "parameters" in frame:
        assert (students["parameters"] < frame.loc[frame["row"] == "teacher", "parameters"].item()).all()
    checked = any(path.endswith("num_validations") for path in table.base_overrides)
    assert any((store / f"cell/{key}/checks.csv").exists() for key in frame["key"]) == checked
    assert ("against that at the end" in said) == checked


@pytest.mark.parametrize(
    ("settings", "field", "values"),
    [
        ({"prune.init": "random", "prune.init_from": "python-3.1M"}, "prune.init", ["prune.init_from"]),
        ({"evaluation.second_corpus.path": "nowhere.txt"}, "evaluation.second_corpus.path", ["'nowhere.txt'"]),
        ({"prune.num_key_value_heads": "auto"}, "prune.num_key_value_heads", ["auto"]),
        ({"evaluation.num_validations": 1000}, "evaluation.num_validations", [50, 1000]),
    ],
)
def test_a_bad_request_is_one_line_and_nothing_is_written(settings, field, values, tmp_path, capsys):
    words = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
    table = importlib.import_module("lit_prune.experiments.residual_ablation").TABLE
    store = tmp_path / "store"
    assert main(table, ["--dry-run", "--store", str(store), "--wandb", "disabled", *words]) == 2
    check_refusal(capsys.readouterr().err, field, *values)
    assert not list(store.glob("cell/*"))
