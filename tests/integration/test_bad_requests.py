"""Bad requests to the command of a table: one line, exit code 2, nothing computed."""

from __future__ import annotations

import os

import pytest
from paths import ROOT
from refusals import check_refusal
from small_table import SETTINGS, command

from lit_prune.cli.table import main
from lit_prune.experiments.loss_ablation import TABLE

BAD = {
    "unknown profile": (["--profile", "quik"], "profile", "'quik'", "'quick'"),
    "unknown field": (["--set", "distill.step=3"], "distill.step", "'distill.max_steps'"),
    "wrong type": (["--set", "distill.max_steps=many"], "distill.max_steps", "'many'"),
    "no value": (["--set", "distill.max_steps"], "--set", "'distill.max_steps'"),
    "a space for the equals sign": (["--set", "distill.max_steps", "50"], "--set", "distill.max_steps=50"),
    "swept field": (["--set", "distill.logit_loss=mse"], "", "--set distill.logit_loss", "loss_ablation"),
    "swept seed": (["--set", "seed=3"], "", "--set seed", "loss_ablation"),
    "unknown loss": (["--add-row", "logit_loss=kdl"], "distill.logit_loss", "'kdl'", "'kld'"),
    "unknown criterion": (
        ["--set", "prune.width_criterion=activaton"],
        "prune.width_criterion",
        "'activaton'",
        "'activation'",
    ),
    "unknown hidden loss": (["--set", "distill.hidden_loss=l1"], "distill.hidden_loss", "'l1'", "cosine, mse"),
    "only without a value": (["--filter", "kld"], "--filter", "'kld'"),
    "no such row": (["--filter", "logit_loss=jsd"], "", "mse, reverse_kld, cosine, kld", "jsd"),
    "no seeds": (["--seeds", "0"], "--seeds", "0"),
    "missing model": (["--set", "teacher.model=./nowhere"], "teacher.model", "'./nowhere'"),
    "missing text": (["--set", "corpus.path=./nowhere.txt"], "corpus.path", "'./nowhere.txt'"),
    "hidden too large": (["--set", "prune.hidden_size=4000"], "prune.hidden_size", "4000"),
    "hidden forbidden": (["--set", "prune.hidden_size=101"], "prune.hidden_size", "100 and 104"),
    "heads forbidden": (["--set", "prune.num_attention_heads=5"], "prune.num_attention_heads", "5"),
    "calibration too large": (["--set", "calibration.num_sequences=10000000"], "calibration.num_sequences", "10000000"),
    "evaluation too large": (["--set", "evaluation.num_sequences=10000000"], "evaluation.num_sequences", "10000000"),
    "nothing to minimise": (["--add-row", "kd_weight=0"], "distill", "kd_weight=0"),
    "alpha without states": (["--set", "distill.alpha=dynamic"], "distill.alpha"),
    "no such block": (["--set", "distill.match_layer_output=[99:0]"], "distill.match_layer_output", "99"),
    "empty batch": (["--set", "distill.batch_size=0"], "distill.batch_size", ">= 1", "0"),
    "no temperature": (["--set", "distill.temperature=0"], "distill.temperature", "> 0", "0"),
    "two teachers": (["--set", "teacher.pretraining.num_hidden_layers=2"], "teacher", "model", "pretraining"),
    "other vocabulary": (["--set", "prune.init_from={foreign}"], "prune.init_from", "256", "2048"),
    "model without tokenizer": (["--set", "teacher.model={foreign}"], "", "{foreign}", "tokenizer.json"),
    "diff of one": (["diff", "abc"], "", "diff"),
    "diff of nothing": (["diff", "abc", "abd"], "", "abc"),
    "unwritable store": (["--store", "{file}"], "--store", "{file}"),
    "record of a part": (["report", "--record"], "--record", "--set"),
    "run to record a part": (["--record"], "--record", "--set"),
}
"""Case -> flags, the field of the error, and what stands in it."""


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_one_line_and_exit_2_before_any_compute(case, tmp_path, tiny_llama, capsys):
    tiny_llama.save_pretrained(tmp_path / "foreign")
    (tmp_path / "file").write_text("in the way")
    places = {"foreign": tmp_path / "foreign", "file": tmp_path / "file"}
    words, field, *values = BAD[case]
    words = [word.format(**places) for word in words]
    store = [] if "--store" in words else ["--store", str(tmp_path / "store")]
    capsys.readouterr()
    assert main(TABLE, [*SETTINGS, *words, *store]) == 2
    check_refusal(capsys.readouterr().err, field, *(value.format(**places) for value in values))
    assert not list((tmp_path / "store").glob("[ics][mte]*/*"))  # importance, student, cell


def test_text_that_is_none_is_refused(tmp_path, capsys):
    for name, content in (("empty.txt", b""), ("latin.txt", "caf\xe9 ".encode("latin-1") * 500)):
        (tmp_path / name).write_bytes(content)
        store = tmp_path / name.partition(".")[0]
        assert main(TABLE, [*SETTINGS, "--set", f"corpus.path={tmp_path / name}", "--store", str(store)]) == 2
        check_refusal(capsys.readouterr().err, "corpus.path")


def test_the_environment_is_honoured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"LIT_PRUNE_STORE": str(tmp_path / "elsewhere"), "PYTHONPATH": str(ROOT)}
    said = command("--help", env=environment)
    assert said.returncode == 0
    assert "elsewhere" in said.stdout
