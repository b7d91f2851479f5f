"""The real command, end to end, on the teacher that ships: computed, interrupted, resumed, refused, recorded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from paths import ROOT

from lit_prune.cli.table import main
from lit_prune.experiments.loss_ablation import TABLE

SMALL = {
    "calibration.num_sequences": 8, "calibration.seq_len": 64, "distill.seq_len": 64, "distill.batch_size": 2,
    "distill.max_steps": 8, "corpus.max_tokens": 200_000,
    "distill.optimizer.warmup_steps": 2, "evaluation.num_sequences": 4, "evaluation.seq_len": 64,
}  # fmt: skip
SETTINGS = [word for path, value in SMALL.items() for word in ("--set", f"{path}={value}")]
COMMAND = [sys.executable, "-m", "lit_prune.experiments.loss_ablation", *SETTINGS]


def command(*words, store, **how):
    return subprocess.run([*COMMAND, *words, "--store", str(store)], capture_output=True, text=True, timeout=600, **how)


def results(store):
    (path,) = Path(store).glob("reports/loss_ablation/*/results.csv")
    return pd.read_csv(path).drop(columns=["commit", "wall_seconds", "peak_memory"])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A store in which the small table was computed by the real command, and what that said."""
    store = tmp_path_factory.mktemp("store")
    return store, command("--seeds", "2", "--wandb", "disabled", store=store)


@pytest.mark.slow
def test_the_table_comes_with_every_row_and_a_verdict_for_every_claim(done):
    store, said = done
    assert said.returncode == 0, said.stderr
    for row in (*TABLE.rows, *TABLE.reference_rows):
        assert row in said.stdout
    assert sum(said.stdout.count(verdict) for verdict in ("holds", "fails", "undecided")) >= len(TABLE.claims)
    frame = results(store)
    assert (frame["state"] == "done").all()
    assert len(frame) == 7 * 2 + 2
    loss = frame.groupby("row")["lm_loss"].mean()
    assert loss["teacher"] < loss["L_logits(KLD)"] < loss["pruned, not retrained"]


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_imports_no_torch(done):
    store, first = done
    before = {path: path.stat().st_mtime_ns for path in store.glob("cell/*/*")}
    script = (
        "import sys; from lit_prune.cli.table import main; from lit_prune.experiments.loss_ablation import TABLE;"
        f"code = main(TABLE, {[*SETTINGS, '--seeds', '2', '--store', str(store)]!r});"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules; sys.exit(code)"
    )
    again = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in store.glob("cell/*/*")} == before


def _interrupt(process, store, number, after):
    """Signal a run once `after` cells are done and the next one has a checkpoint."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(store.glob("cell/*/result.json"))) >= after and list(store.glob("cell/*/last.ckpt")):
            process.send_signal(number)
            break
        time.sleep(0.02)
    return process.wait(timeout=60)


@pytest.mark.slow
def test_killed_three_ways_and_resumed_the_table_is_the_uninterrupted_one(done, tmp_path):
    finished, _ = done
    words = [
        *COMMAND,
        "--seeds",
        "2",
        "--wandb",
        "disabled",
        "--store",
        str(tmp_path),
        "--checkpoint-seconds",
        "0",
    ]
    for number, code, after in ((signal.SIGKILL, -9, 0), (signal.SIGTERM, 143, 4), (signal.SIGINT, 130, 8)):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert _interrupt(process, tmp_path, number, after) == code, process.stderr.read()
    assert not list(tmp_path.glob("reports/**/report.html"))
    assert subprocess.run(words, capture_output=True, timeout=600).returncode == 0
    pd.testing.assert_frame_equal(results(tmp_path), results(finished), check_exact=True)
    for weights in finished.glob("cell/*/model/model.safetensors"):
        assert (tmp_path / weights.relative_to(finished)).read_bytes() == weights.read_bytes()
    columns = ["step", "loss", "grad_norm", "lr"]
    for history in finished.glob("cell/*/metrics.csv"):
        resumed = pd.read_csv(tmp_path / history.relative_to(finished))
        pd.testing.assert_frame_equal(resumed[columns], pd.read_csv(history)[columns], check_exact=True)


@pytest.mark.slow
def test_two_processes_share_a_store_and_nothing_is_computed_twice_or_lost(done, tmp_path):
    finished, _ = done
    words = [*COMMAND, "--seeds", "2", "--wandb", "disabled", "--store", str(tmp_path)]
    both = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert "failed" not in errors
    assert subprocess.run(words, capture_output=True, timeout=600).returncode == 0
    pd.testing.assert_frame_equal(results(tmp_path), results(finished), check_exact=True)


@pytest.mark.slow
def test_a_cell_that_diverges_is_named_and_the_others_go_on(tmp_path, capfd):
    words = [
        "--filter",
        "logit_loss=kld",
        "--add-row",
        "distill.optimizer.lr=1e30",
        "--seeds",
        "1",
        "--wandb",
        "disabled",
    ]
    assert main(TABLE, [*SETTINGS, *words, "--store", str(tmp_path)]) == 1
    frame = results(tmp_path).set_index("row")
    failed = frame[frame["state"] == "failed"]
    assert list(failed.index) == ["L_logits(KLD), distill.optimizer.lr=1e+30"]
    assert "Diverged" in failed["error"].iloc[0]
    assert "Diverged" in capfd.readouterr().out
    assert set(frame["state"]) == {"done", "failed"}


@pytest.mark.slow
def test_every_saved_student_is_loaded_by_stock_transformers(done):
    from transformers import AutoModelForCausalLM

    store, _ = done
    for folder in [*store.glob("student/*/model"), *store.glob("cell/*/model")][:4]:
        model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(notes[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
        assert not hasattr(model, "projection")


@pytest.mark.slow
def test_status_and_diff_answer_from_the_store(done, capsys):
    store, _ = done
    assert main(TABLE, ["status", *SETTINGS, "--seeds", "3", "--store", str(store)]) == 0
    assert "23 cells: 16 done, 7 missing" in capsys.readouterr().out
    first, second = sorted(path.parent.name for path in store.glob("cell/*/result.json"))[:2]
    assert main(TABLE, ["diff", first, second[:8], "--store", str(store)]) == 0
    assert "result.lm_loss" in capsys.readouterr().out


BAD = {
    "unknown profile": (["--profile", "quik"], "unknown profile 'quik'; perhaps you meant 'quick'"),
    "unknown field": (["--set", "distill.step=3"],
    "unknown field 'distill.step'; perhaps you meant 'distill.max_steps'"),
    "wrong type": (["--set", "distill.max_steps=many"], "distill.max_steps: must be a valid integer, got 'many'"),
    "no value": (["--set", "distill.max_steps"], "--set: must be field=value"),
    "a space for the equals sign": (["--set", "distill.max_steps", "50"], "--set distill.max_steps=50"),
    "swept field": (["--set", "distill.logit_loss=mse"], "--set distill.logit_loss: loss_ablation sweeps it"),
    "swept seed": (["--set", "seed=3"], "--set seed: loss_ablation sweeps it"),
    "unknown loss": (["--add-row", "logit_loss=kdl"], "unknown logit loss 'kdl'; perhaps you meant 'kld'"),
    "unknown criterion": (["--set", "prune.width_criterion=activaton"], "unknown criterion 'activaton'; perhaps"),
    "unknown hidden loss": (["--set", "distill.hidden_loss=l1"], "unknown hidden loss 'l1'; there are: cosine, mse"),
    "only without a value": (["--filter", "kld"], "--filter: must be field=value, got 'kld'"),
    "no such row": (["--filter", "logit_loss=jsd"], "must be one of mse, reverse_kld, cosine, kld, got jsd"),
    "no seeds": (["--seeds", "0"], "--seeds: "),
    "missing model": (["--set", "teacher.model=./nowhere"], "teacher.model: './nowhere' is not a teacher by name"),
    "missing text": (["--set", "corpus.path=./nowhere.txt"], "corpus.path: './nowhere.txt' is not"),
    "hidden too large": (["--set", "prune.hidden_size=4000"], "prune.hidden_size: 4000 asked for"),
    "hidden forbidden": (["--set", "prune.hidden_size=101"], "the nearest allowed are 100 and 104"),
    "heads forbidden": (["--set", "prune.num_attention_heads=5"], "prune.num_attention_heads: 5 is not"),
    "calibration too large": (["--set", "calibration.num_sequences=10000000"],
    "calibration: 10000000 sequences of 64 tokens"),
    "evaluation too large": (["--set", "evaluation.num_sequences=10000000"],
    "validation: 10000000 sequences of 64 tokens"),
    "nothing to minimise": (["--add-row", "kd_weight=0"],
    "there is nothing to minimise"),
    "alpha without states": (["--set", "distill.alpha=dynamic"], "distill.alpha: "),
    "no such block": (["--set", "distill.match_layer_output=[99:0]"], "distill.match_layer_output: teacher block"),
    "empty batch": (["--set", "distill.batch_size=0"], "distill.batch_size: must be >= 1, got 0"),
    "no temperature": (["--set", "distill.temperature=0"], "distill.temperature: must be > 0, got 0"),
    "two teachers": (["--set", "teacher.pretraining.num_hidden_layers=2"], "teacher: give either model or pretraining"),
    "other vocabulary": (["--set", "prune.init_from={foreign}"], "its vocabulary has 256 entries, the teacher's 2048"),
    "model without tokenizer": (["--set", "teacher.model={foreign}"], "has no tokenizer"),
    "diff of one": (["diff", "abc"], "diff takes two addresses"),
    "diff of nothing": (["diff", "abc", "abd"], "is the address of no node"),
    "unwritable store": (["--store", "{file}"], "--store: {file} cannot be written"),
    "record of a part": (["report", "--record"], "--record: "),
    "run to record a part": (["--record"], "--record: "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_one_line_and_exit_2_before_any_compute(case, tmp_path, tiny_llama, capsys):
    tiny_llama.save_pretrained(tmp_path / "foreign")
    (tmp_path / "file").write_text("in the way")
    places = {"foreign": tmp_path / "foreign", "file": tmp_path / "file"}
    words, expected = BAD[case]
    words = [word.format(**places) for word in words]
    store = [] if "--store" in words else ["--store", str(tmp_path / "store")]
    capsys.readouterr()
    assert main(TABLE, [*SETTINGS, *words, *store]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected.format(**places) in errors[0]
    assert not list((tmp_path / "store").glob("[ics][mte]*/*"))  # importance, student, cell


def test_text_that_is_none_is_refused(tmp_path, capsys):
    for name, content in (("empty.txt", b""), ("latin.txt", "caf\xe9 ".encode("latin-1") * 500)):
        (tmp_path / name).write_bytes(content)
        store = tmp_path / name.partition(".")[0]
        assert main(TABLE, [*SETTINGS, "--set", f"corpus.path={tmp_path / name}", "--store", str(store)]) == 2
        assert capsys.readouterr().err.count("error: corpus.path: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["stories260K-hf", "TinyStories-656K"])
def test_any_llama_and_any_text_by_configuration_alone(model, shared, tmp_path):
    words = ["--set", f"teacher.model={shared / 'models' / model}", "--seeds", "1", "--wandb", "disabled"]
    words += ["--set", f"corpus.path={shared / 'data/tinystories/tinystories_1000.json'}"]
    said = command(*words, "--set", "distill.max_steps=30", store=tmp_path)
    assert said.returncode == 0, said.stderr
    loss = results(tmp_path).groupby("row")["lm_loss"].mean()
    assert loss["teacher"] < loss["L_logits(KLD)"] < loss["pruned, not retrained"]


@pytest.mark.slow
def test_a_teacher_trained_on_the_spot_is_found_again(tmp_path, texts):
    (tmp_path / "text.txt").write_text("\n".join(texts * 3))
    text = f"corpus.path={tmp_path / 'text.txt'}"
    recipe = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "intermediate_size": 24, "vocab_size": 300,
              "max_steps": 3, "seq_len": 32, "batch_size": 2}  # fmt: skip
    words = [word for name, value in recipe.items() for word in ("--set", f"teacher.pretraining.{name}={value}")]
    words += [
        "--set",
        "teacher.model=null",
        "--set",
        text,
        "--set",
        f"teacher.pretraining.{text}",
        "--seeds",
        "1",
    ]
    words += [
        "--set",
        "prune.num_attention_heads=null",
        "--set",
        "calibration.num_sequences=2",
        "--set",
        "evaluation.num_sequences=2",
    ]
    first = command(*words, "--wandb", "disabled", store=tmp_path / "store")
    assert first.returncode == 0, first.stderr
    (teacher,) = (tmp_path / "store/teacher").iterdir()
    assert json.loads((teacher / "result.json").read_text())["tokens"] == 3 * 2 * 32
    stamp = (teacher / "result.json").stat().st_mtime_ns
    more = command(*words, "--wandb", "disabled", "--add-row", "logit_loss=mse_logits", store=tmp_path / "store")
    assert more.returncode == 0, more.stderr
    assert (teacher / "result.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_wandb_mirrors_each_cell_and_its_loss_loses_nothing(tmp_path):
    words = ["--filter", "logit_loss=kld", "--seeds", "1", "--wandb", "offline"]
    said = command(*words, store=tmp_path / "good")
    assert said.returncode == 0, said.stderr
    runs = sorted((tmp_path / "good/wandb/wandb").glob("offline-run-*"))
    cells = {path.parent.name for path in (tmp_path / "good").glob("cell/*/result.json")}
    assert {run.name.rpartition("-")[2] for run in runs} == cells
    told = subprocess.run(
        [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(runs[0])],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    summary = json.loads(told.stdout)
    assert "lm_loss" in told.stdout
    assert summary["config"]["row"] in set(results(tmp_path / "good")["row"])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "wandb").write_text("in the way")
    lost = command(*words, store=broken)
    assert lost.returncode == 0, lost.stderr
    assert lost.stderr.count("W&B is lost") == 1
    pd.testing.assert_frame_equal(results(broken), results(tmp_path / "good"), check_exact=True)


def test_the_environment_is_honoured(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {
        "LIT_PRUNE_STORE": str(tmp_path / "elsewhere"),
        "PYTHONPATH": str(ROOT),
    }
    said = subprocess.run([*COMMAND[:3], "--help"], capture_output=True, text=True, env=environment, timeout=60)
    assert said.returncode == 0
    assert "elsewhere" in said.stdout
