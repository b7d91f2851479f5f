"""`python -m lit_prune.cli.evaluate`: a repeated request reads the store, and a bad request is one line."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import task_files
from refusals import check_refusal

from lit_prune.cli.evaluate import main
from lit_prune.cli.progress import ProgressBar
from lit_prune.parallel import processes
from lit_prune.parallel.processes import together


@pytest.fixture
def here(tmp_path, tiny_llama, tiny_tokenizer):
    """A folder with made-up task files, a text, and two models."""
    task_files.write(tmp_path / "tasks")
    (tmp_path / "text.txt").write_text("a duck in the pond.\n" * 20)
    for name, scale in (("first", 1.0), ("second", 0.5)):
        tiny_llama.lm_head.weight.data.mul_(scale)
        tiny_llama.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def command(here, *words):
    models = [str(here / name) for name in ("first", "second")]
    return ["--model", *models, "--store", str(here / "store"), "--task-data-dir", str(here / "tasks"), *words]


def test_models_are_asked_once_and_found_again_without_torch(here, capsys):
    words = command(here, "--tasks", "piqa,blimp", "--corpus", str(here / "text.txt"))
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "PIQA (0) acc_norm" in output
    assert "BLiMP (0) acc" in output
    assert "text.txt bits_per_byte" in output
    written = list((here / "store/benchmark").glob("*/result.json"))
    assert len(written) == 6
    times = {path: path.stat().st_mtime_ns for path in written}
    script = (
        "import sys; from lit_prune.cli.evaluate import main; code = main(sys.argv[1:]); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'lm_eval', 'transformers')))"
    )
    again = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "PIQA (0) acc_norm" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert {path.name for path in (here / "store/reports/benchmarks").iterdir()} == {
        "benchmarks.csv", "benchmarks.md", "benchmarks.tex",
    }  # fmt: skip


def test_two_devices_measure_what_one_measures(here, monkeypatch):
    """Forked processes have imported torch already."""
    worlds = []

    def forked(*arguments, world, gpu):
        worlds.append(world)
        assert arguments[-1][-1].cpu == "plain"  # or the ranks would compute by other kernels
        return together(*arguments, world=world, gpu=gpu, start_method="fork")

    monkeypatch.setattr(processes, "together", forked)
    texts = [{"text": f"{number} ducks in the pond, and then {number + 1}."} for number in range(7)]
    (here / "texts.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    found = []
    for devices in ("1", "2"):
        words = command(here, "--tasks", "piqa", "--corpus", str(here / "texts.jsonl"), "--window", "16")
        words[words.index("--store") + 1] = str(here / f"store of {devices}")
        assert main([*words, "--devices", devices, "--cpu", "plain"]) == 0
        nodes = {
            path.parent.name: path.parent for path in (here / f"store of {devices}/benchmark").glob("*/result.json")
        }
        found.append({name: pd.read_parquet(node / "documents.parquet") for name, node in nodes.items()})
        assert not list((here / f"store of {devices}").rglob("windows.*csv"))
        scores = pd.read_csv(here / f"store of {devices}/reports/benchmarks/benchmarks.csv")
        found[-1]["scores"] = scores[["model", "metric", "value", "n"]]
    assert worlds == [2, 2, 2, 2]
    assert len(found[0]) == 5
    assert found[0].keys() == found[1].keys()
    for name, table in found[0].items():
        pd.testing.assert_frame_equal(found[1][name], table, rtol=1e-5)


def test_more_devices_than_gpus_or_none_is_one_line(here, capsys):
    assert main(command(here, "--corpus", str(here / "text.txt"), "--devices", "0")) == 2
    check_refusal(capsys.readouterr().err, "--devices", 0)


def test_a_text_is_compared_in_bits_per_byte(here):
    assert main(command(here, "--corpus", str(here / "text.txt"), "--window", "16", "--stride", "8")) == 0
    scores = pd.read_csv(here / "store/reports/benchmarks/benchmarks.csv").set_index(["model", "metric"])
    assert {metric for _, metric in scores.index} == {"perplexity", "bits_per_byte"}
    first, second = (scores.loc[(name, "bits_per_byte")] for name in ("first", "second"))
    assert second["difference"] == pytest.approx(second["value"] - first["value"])
    (found,) = {pd.read_json(path, typ="series")["window"] for path in (here / "store/benchmark").glob("*/config.json")}
    assert found == 16


def test_rolling_windows_are_another_question_with_the_numbers_of_lm_eval(here, capsys):
    for words in ((), ("--windows", "rolling")):
        assert main(command(here, "--corpus", str(here / "text.txt"), *words)) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "--windows rolling" not in output.rpartition("benchmark n")[2]
    scores = pd.read_csv(here / "store/reports/benchmarks/benchmarks.csv")
    assert set(scores["metric"]) == {"perplexity", "bits_per_byte", "word_perplexity"}
    assert set(scores["windows"]) == {"rolling"}
    assert set(scores["window"]) == {128}
    assert len(list((here / "store/benchmark").iterdir())) == 4


def test_a_text_that_was_stopped_goes_on_where_it_was(here, capsys, monkeypatch):
    (here / "long.txt").write_text("a duck in the pond.\n" * 800)
    words = ["--model", str(here / "first"), "--store", str(here / "store")]
    words += ["--corpus", str(here / "long.txt"), "--window", "8"]
    at = ProgressBar.at

    def stop(bar, done, what):
        at(bar, done, what)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "at", stop)
        with pytest.raises(KeyboardInterrupt):
            main(words)
    (log,) = (here / "store/benchmark").glob("*/windows.csv")
    begun = len(log.read_text().splitlines())
    assert begun > 0
    assert main(words) == 0
    assert not log.exists()
    (result,) = (here / "store/benchmark").glob("*/result.json")
    assert json.loads(result.read_text())["numbers"]["num_tokens"] > 8 * begun


def test_a_window_below_the_positions_of_a_large_model_is_part_of_the_address(here):
    config = here / "second/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 131_072}))
    assert main(command(here, "--corpus", str(here / "text.txt"))) == 0
    found = [json.loads(path.read_text())["window"] for path in (here / "store/benchmark").glob("*/config.json")]
    assert sorted(found, key=str) == [2048, None]


def test_another_limit_shots_or_precision_is_another_question(here):
    for words in ((), ("--limit", "2"), ("--num-fewshot", "1"), ("--dtype", "bfloat16")):
        assert main(command(here, "--tasks", "piqa", *words)) == 0
    assert len(list((here / "store/benchmark").iterdir())) == 8


def test_an_answer_that_fails_is_told_of_and_the_others_go_on(here, capsys):
    # No summary of 128 tokens fits behind a prompt in 128 positions.
    assert main(command(here, "--tasks", "xlsum_english,piqa")) == 1
    output = capsys.readouterr()
    assert "first on XL-Sum English 20 % failed: " in output.err
    assert "PIQA (0) acc" in output.out
    errors = list((here / "store/benchmark").glob("*/error.json"))
    assert len(errors) == 2
    for path in errors:
        assert json.loads(path.read_text())["frame"] in output.err
        assert "Traceback" in (path.parent / "traceback.txt").read_text()


def test_a_table_that_cannot_be_written_is_one_line(here, capsys):
    (here / "store").mkdir()
    (here / "store/reports").write_text("a file, where a folder must be")
    assert main(command(here, "--corpus", str(here / "text.txt"))) == 2
    check_refusal(capsys.readouterr().err, "", here / "store/reports")


def test_where_every_answer_fails_there_is_no_table(here, capsys):
    assert main(command(here, "--tasks", "xlsum_english")) == 1
    output = capsys.readouterr()
    assert output.err.count("on XL-Sum English 20 % failed: ") == 2
    assert not output.out
    assert not (here / "store/reports").exists()


@pytest.mark.parametrize(
    ("words", "field", "values"),
    [
        (("--tasks", "pica"), "--tasks", ["'pica'"]),
        (("--tasks", "piqa", "--limit", "0"), "--limit", [1, 0]),
        (("--tasks", "piqa", "--num-fewshot", "-1"), "--num-fewshot", [0, -1]),
        (("--tasks", "humaneval"), "--tasks", ["humaneval", "--unsafe-code"]),
        (("--tasks", "gsm8k"), "--tasks", ["gsm8k", "openai/gsm8k"]),
        (("--tasks", "piqa", "--paper-table", "table 9"), "--paper-table", ["in_practice, minitron_4b"]),
        (("--corpus", "nowhere/text.txt"), "--corpus", ["'nowhere/text.txt'"]),
        (("--corpus", "python", "--window", "8", "--stride", "9"), "--stride", [8, 9]),
        (("--corpus", "readmes", "--window", "129"), "--window", [128, 129, "first"]),
        (("--corpus", "readmes", "--stride", "129"), "--stride", [128, 129, "first"]),
        (("--corpus", "readmes", "--stride", "8", "--windows", "rolling"), "--stride", ["--windows", "rolling"]),
        (("--corpus", ""), "--corpus", []),
        (("--tasks", ","), "", ["--tasks", "--corpus"]),
        (("--tasks", "piqa", "--batch-size", "0"), "--batch-size", [1, 0]),
        (("--corpus", "readmes", "--num-fewshot", "3"), "--num-fewshot", ["--tasks", 3]),
        (("--tasks", "piqa", "--window", "8"), "--window", ["--corpus", 8]),
        (("--tasks", "piqa", "--stride", "8"), "--stride", ["--corpus", 8]),
        (("--tasks", "piqa", "--windows", "rolling"), "--windows", ["--corpus", "rolling"]),
        (("--tasks", "piqa", "--text-column", "body"), "--text-column", ["--corpus", "body"]),
    ],
)
def test_a_bad_request_is_one_line_before_anything_is_computed(words, field, values, here, capsys):
    assert main(command(here, *words)) == 2
    printed = capsys.readouterr().err
    check_refusal(printed, field, *values)
    assert len(printed.splitlines()) == 1
    assert not (here / "store/benchmark").exists()


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("blank.txt", " \n", "--corpus"),
        ("other.jsonl", '{"body": "a duck"}', "--text-column"),
        ("broken.jsonl", "no json", "--corpus"),
    ],
)
def test_a_text_without_text_is_told_of_before_a_model_is_loaded(name, content, field, here, capsys):
    (here / name).write_text(content)
    for model in here.glob("*/model.safetensors"):
        model.write_text("never read")
    assert main(command(here, "--corpus", str(here / name))) == 2
    check_refusal(capsys.readouterr().err, field, name)


def test_a_text_under_another_name_is_the_same_question(here):
    text = here / "text.txt"
    assert main(["--model", str(here / "first"), "--corpus", str(text), "--store", str(here / "store")]) == 0
    assert main(command(here, "--corpus", str(text.rename(here / "renamed.txt")))) == 0
    assert len(list((here / "store/benchmark").iterdir())) == 2
    scores = pd.read_csv(here / "store/reports/benchmarks/benchmarks.csv").set_index(["model", "metric"])
    assert scores.loc[("second", "bits_per_byte"), "difference"] != 0
    assert scores["difference"].notna().sum() == 1


def test_a_tokenizer_that_cannot_be_loaded_is_told_of_once(here, capsys):
    (here / "broken").mkdir()
    (here / "broken/tokenizer.json").write_text("no json")
    assert main(command(here, "--tasks", "piqa,blimp", "--tokenizer", str(here / "broken"))) == 2
    check_refusal(capsys.readouterr().err, "--tokenizer", here / "broken", "tokenizer.json")


@pytest.mark.parametrize(("models", "values"), [([], []), (["nobody"], ["'nobody'"]), (["abc"], ["'abc'"])])
def test_a_model_that_there_is_not_is_told_of(models, values, here, capsys):
    words = ["--tasks", "piqa", "--task-data-dir", str(here / "tasks"), "--store", str(here)]
    assert main(["--model", *models, *words]) == 2
    check_refusal(capsys.readouterr().err, "--model", *values)


def test_two_models_of_one_name_are_told_apart_by_their_place(here, capsys):
    (here / "other").mkdir()
    (here / "first").rename(here / "other/second")
    words = ["--model", str(here / "other/second"), str(here / "second"), "--tasks", "piqa", "--limit", "1"]
    assert main([*words, "--task-data-dir", str(here / "tasks"), "--store", str(here / "store")]) == 0
    scores = pd.read_csv(here / "store/reports/benchmarks/benchmarks.csv")
    assert set(scores["model"]) == {str(here / "other/second"), str(here / "second")}


@pytest.mark.parametrize(
    ("models", "twice"), [(("a={}/first", "a={}/second"), "a"), (("{}/first", "{}/second", "{}/second"), "{}/second")]
)
def test_a_label_that_comes_twice_is_refused_by_its_name(models, twice, here, capsys):
    named = [model.format(here) for model in models]
    assert main(["--model", *named, "--corpus", str(here / "text.txt"), "--store", str(here / "store")]) == 2
    check_refusal(capsys.readouterr().err, "--model", f"got {twice.format(here)} twice")


def test_without_lm_eval_it_is_said_how_to_get_it(here):
    script = (
        "import sys; sys.modules['lm_eval'] = None; from lit_prune.cli.evaluate import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *command(here, "--tasks", "piqa")], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert result.stderr == "error: benchmarks need lm-eval: pip install 'lit-prune[eval]'\n"
