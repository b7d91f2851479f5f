"""`import lit_prune as lp`, and the commands `prune` and `distill`, on a model that trains in a second."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refuses

import lit_prune as lp
from lit_prune.api.compress import _place
from lit_prune.cli.main import main
from lit_prune.config import ConfigError
from lit_prune.store import Store

FEW = ("calibration.num_sequences=4", "evaluation.num_sequences=4", "corpus.holdout_fraction=0.2")


@pytest.fixture
def words(tiny_cell: Any, tmp_path: Path) -> list[str]:
    """Flags for `tiny_llama` on its text; `tiny_cell` has written both."""
    settings = [word for setting in FEW for word in ("--set", setting)]
    return ["--corpus", str(tmp_path / "text.txt"), "--seq-len", "32", "--store", str(tmp_path / "lp"), *settings]


@pytest.fixture
def arguments(tiny_cell: Any, tmp_path: Path) -> dict[str, Any]:
    """The same for the functions."""
    settings = {"calibration.num_sequences": 4, "evaluation.num_sequences": 4, "corpus.holdout_fraction": 0.2}
    return {"corpus": str(tmp_path / "text.txt"), "seq_len": 32, "store": tmp_path / "lp", "settings": settings}


def test_subpackages_do_not_hide_the_functions_of_their_name() -> None:
    importlib.import_module("lit_prune.distill.train")
    importlib.import_module("lit_prune.evaluate.runner")
    assert lp.distill.__module__ == "lit_prune.api.compress"
    assert lp.evaluate.__module__ == "lit_prune.api.measure"


def test_prune_then_distill_by_the_commands(words: list[str], tmp_path: Path, capsys: Any) -> None:
    small, taught, whole = str(tmp_path / "small"), str(tmp_path / "taught"), str(tmp_path / "tiny")
    assert main(["prune", whole, "--out", small, "--hidden-size", "24", "--intermediate-size", "0.5", *words]) == 0
    assert f"written: {small}" in capsys.readouterr().out
    config = json.loads((tmp_path / "small/config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (24, 24, 3)
    assert {"plan.json", "tokenizer.json", "model.safetensors"} <= {
        path.name for path in (tmp_path / "small").iterdir()
    }
    card = (tmp_path / "small/README.md").read_text()
    assert re.search(r"\| hidden\w* \| 32 \| 24 \|", card)
    steps = ["--max-steps", "3", "--batch-size", "2", "--logit-loss", "reverse_kld", "--wandb", "disabled"]
    assert main(["distill", small, "--teacher", whole, "--out", taught, *steps, *words]) == 0
    assert "student before distillation" in (tmp_path / "taught/README.md").read_text()
    assert (tmp_path / "taught/model.safetensors").is_file()


def test_the_student_loads_in_stock_transformers_and_is_found_again(arguments: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = lp.prune(str(tmp_path / "tiny"), num_hidden_layers=2, out=tmp_path / "a", **arguments)
    assert AutoModelForCausalLM.from_pretrained(found.folder).num_parameters() == found.student["parameters"]
    assert found.student["parameters"] < found.teacher["parameters"]
    assert found.plan is not None
    started = found.env["started"]
    assert lp.prune(str(tmp_path / "tiny"), num_hidden_layers=2, **arguments).env["started"] == started
    for folder in (tmp_path / "lp/student").iterdir():  # as a table does with a student that fills the disk
        Store(tmp_path / "lp").remove(folder)
    again = lp.prune(str(tmp_path / "tiny"), num_hidden_layers=2, out=tmp_path / "b", **arguments)
    assert again.env["started"] == started
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_model_in_memory_is_saved_by_its_digest(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "lp")
    place = _place(tiny_llama, tiny_tokenizer, store, "model")
    assert _place(tiny_llama, tiny_tokenizer, store, "model") == place
    assert len(list((store.root / "models").iterdir())) == 1
    tiny_llama.lm_head.weight.data += 1
    assert _place(tiny_llama, tiny_tokenizer, store, "model") != place
    for model, tokenizer in ((tiny_llama, None), (3, tiny_tokenizer)):
        with pytest.raises(ConfigError):
            _place(model, tokenizer, store, "model")


def test_half_of_the_parameters_stay_if_no_size_is_given(arguments: Any, tmp_path: Path) -> None:
    arguments["settings"]["prune.width_criterion"] = "magnitude"
    found = lp.prune(str(tmp_path / "tiny"), **arguments)
    assert found.student["parameters"] / found.teacher["parameters"] == pytest.approx(0.5, abs=0.05)
    assert found.cell.prune == lp.prune(str(tmp_path / "tiny"), num_parameters=0.5, **arguments).cell.prune
    arguments["settings"]["prune.drop_layers"] = (0,)  # a size
    assert lp.prune(str(tmp_path / "tiny"), **arguments).cell.prune.num_parameters is None


@pytest.mark.parametrize(("name", "share"), [("num_parameters", 0), ("num_parameters", 0.0), ("hidden_size", 0)])
def test_a_size_of_zero_is_refused_and_does_not_stand_for_the_default(
    name: str, share: float, arguments: Any, tmp_path: Path
) -> None:
    with refuses(f"prune.{name}", share):
        lp.prune(str(tmp_path / "tiny"), **{name: share}, **arguments)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(arguments: Any, tmp_path: Path) -> None:
    with refuses("--out", tmp_path / "text.txt/small"):
        lp.prune(str(tmp_path / "tiny"), num_parameters=0.5, out=tmp_path / "text.txt/small", **arguments)
    assert not (tmp_path / "lp").exists()


def test_settings_without_effect_are_refused(arguments: Any, tmp_path: Path) -> None:
    model, settings = str(tmp_path / "tiny"), arguments.pop("settings")
    with refuses("prune.hidden_size", 0.5, "given"):
        lp.distill(model, teacher=model, settings=settings | {"prune.hidden_size": 0.5}, **arguments)
    with refuses("wandb", "'on'"):
        lp.distill(model, teacher=model, wandb="on", settings=settings, **arguments)  # type: ignore[arg-type]
    with refuses("distill.temperature", 2.0, "distill.max_steps"):
        lp.prune(model, settings=settings | {"distill.temperature": 2.0}, **arguments)


def test_distilling_needs_no_calibration_sequences(arguments: Any, tmp_path: Path) -> None:
    """1,000 sequences are more than the text has."""
    model, many = str(tmp_path / "tiny"), arguments.pop("settings") | {"calibration.num_sequences": 1000}
    with refuses("calibration.num_sequences", 1000):
        lp.prune(model, settings=many, **arguments)
    found = lp.distill(model, teacher=model, settings=many, max_steps=1, batch_size=2, **arguments)
    assert found.student["lm_loss"] > 0


def test_the_working_directory_can_be_the_folder(
    arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = here.stat().st_ino
    found = lp.prune(str(tmp_path / "tiny"), num_hidden_layers=2, out=".", **arguments)
    assert here.stat().st_ino == before
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in here.iterdir()}
    assert not [path for path in here.iterdir() if path.name.startswith(".")]
    assert found.folder.samefile(here)


@pytest.mark.parametrize("more", [["--num-parameters", "1.5"], ["--hidden-size", "32"], ["--hidden-size", "0.5"]])
def test_a_bad_request_is_one_line_and_writes_nothing(more: list[str], words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    if more == ["--hidden-size", "0.5"]:  # what is wrong is the folder
        out.mkdir()
        (out / "mine").write_text("kept")
    before = sorted(out.iterdir()) if out.is_dir() else None
    assert main(["prune", str(tmp_path / "tiny"), "--out", str(out), *more, *words]) == 2
    assert (sorted(out.iterdir()) if out.is_dir() else None) == before
    assert not list(tmp_path.glob("lp/cell/*/result.json"))


def test_a_text_is_measured(tiny_cell: Any, tmp_path: Path) -> None:
    found = lp.evaluate(tmp_path / "tiny", corpus=str(tmp_path / "text.txt"), limit=2, store=tmp_path / "lp")
    assert found["text.txt"]["perplexity"]["value"] > 1


def test_paths_and_numbers_of_numpy_are_accepted(arguments: Any, tmp_path: Path) -> None:
    arguments["settings"] |= {"prune.width_criterion": "magnitude", "calibration.num_sequences": np.int64(4)}
    found = lp.prune(tmp_path / "tiny", hidden_size=np.int64(24), **arguments)
    arguments |= {"corpus": Path(arguments["corpus"])}
    assert lp.prune(tmp_path / "tiny", hidden_size=np.float32(0.75), **arguments).student == found.student
    with refuses("settings", "object"):
        lp.prune(tmp_path / "tiny", hidden_size=object(), **arguments)  # type: ignore[arg-type]


def test_what_cannot_be_measured_is_refused(tiny_cell: Any, tiny_llama: Any, tmp_path: Path) -> None:
    how: dict[str, Any] = {"corpus": tmp_path / "text.txt", "store": tmp_path / "lp"}
    for field, value in (("dtype", "float16"), ("batch_size", 0)):
        with refuses(field, value):
            lp.evaluate(tmp_path / "tiny", **how, **{field: value})
    with refuses("model", "LlamaForCausalLM"):
        lp.evaluate(tiny_llama, **how)
    with refuses("--tasks", "'pica'"):  # not 'p'
        lp.evaluate(tmp_path / "tiny", tasks="pica", **how)
    with refuses("--corpus", "''"):
        lp.evaluate(tmp_path / "tiny", corpus="", store=tmp_path / "lp")
    assert not (tmp_path / "lp/benchmark").exists()


def test_an_empty_name_of_a_text_is_not_the_working_directory(arguments: Any, tmp_path: Path) -> None:
    with refuses("corpus.path", "''"):
        lp.prune(tmp_path / "tiny", **arguments | {"corpus": ""})


def test_a_recorded_report_is_loaded(tmp_path: Path) -> None:
    report = lp.load_report("loss_ablation", store=tmp_path)
    recorded = set(report.frame["row"])
    for claim, verdict in zip(report.report.table.claims, report.claims["verdict"], strict=True):
        assert (verdict == "not run") == (not {claim.better, claim.worse} <= recorded)
    assert (report.frame["state"] == "done").all()
    with pytest.raises(ConfigError):
        lp.load_report("loss_ablation", profile="h200", store=tmp_path, records=tmp_path)
