"""lm-eval on a model in memory: its numbers equal a forward pass by hand, and the model is unchanged."""

import math

import pandas as pd
import pytest
import task_files
import torch
from ranks import on_ranks
from refusals import refuses

from lit_prune.evaluate import harness
from lit_prune.evaluate.benchmark_tasks import PAPER, questions
from lit_prune.evaluate.harness import Score, load, measure, measure_by_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return task_files.write(tmp_path_factory.mktemp("tasks"))


def put(name, folder, **how):
    (question,) = questions([name], local=folder, **how)
    return question


@torch.no_grad()
def log_prob(model, tokenizer, context, continuation):
    """Sum of the log-probabilities of a continuation, nats."""
    before = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
    ids = before + tokenizer(context + continuation)["input_ids"][len(tokenizer(context)["input_ids"]) :]
    logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logs[i - 1, ids[i]].item() for i in range(len(before), len(ids)))


def test_accuracy_is_that_of_log_probabilities_summed_by_hand(tiny_llama, tiny_tokenizer, folder):
    answer = measure(tiny_llama, tiny_tokenizer, put("piqa", folder))
    right = {"acc": [], "acc_norm": []}
    for line, label in zip(task_files.PIQA, task_files.LABELS, strict=True):
        context, solutions = f"Question: {line['goal']}\nAnswer:", (line["sol1"], line["sol2"])
        sums = [log_prob(tiny_llama, tiny_tokenizer, context, f" {solution}") for solution in solutions]
        by_length = [value / len(solution) for value, solution in zip(sums, solutions, strict=True)]
        right["acc"].append(float(sums.index(max(sums)) == label))
        right["acc_norm"].append(float(by_length.index(max(by_length)) == label))
    for metric, values in right.items():
        found = answer.documents[answer.documents["metric"] == metric]
        assert found["value"].tolist() == values
        mean = sum(values) / 3
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2 / 3)
        assert answer.metrics[metric] == Score(pytest.approx(mean), pytest.approx(spread), 3)


@pytest.mark.parametrize("task", ["piqa", "blimp"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_documents(tiny_llama, tiny_tokenizer, folder, task, world):
    """PIQA has three documents, so one of two ranks has more; BLiMP's parts have two, fewer than three ranks."""
    question = put(task, folder)
    alone = measure(tiny_llama, tiny_tokenizer, question)
    found = on_ranks(world, lambda: measure(tiny_llama, tiny_tokenizer, question))
    pd.testing.assert_frame_equal(found.documents, alone.documents)
    assert found.subtasks == alone.subtasks
    assert found.metrics == alone.metrics
    assert (found.shots, found.version, found.cut) == (alone.shots, alone.version, alone.cut)


def test_acc_norm_is_by_characters_and_not_by_bytes(folder):
    task = load(put("piqa", folder))["tasks"]["piqa"]
    document = {"goal": "?", "sol1": "éééé", "sol2": "abcde", "label": 1}
    # Per character -2.5 and -2.2 nats, per byte -1.25 and -2.2.
    assert task.process_results(document, [(-10.0, False), (-11.0, False)])["acc_norm"] == 1.0


def test_a_group_is_the_mean_of_its_parts_and_keeps_every_document(tiny_llama, tiny_tokenizer, folder):
    answer = measure(tiny_llama, tiny_tokenizer, put("blimp", folder))
    for name, pairs in task_files.PAIRS.items():
        sums = [[log_prob(tiny_llama, tiny_tokenizer, "", f" {text}") for text in pair] for pair in pairs]
        mean = sum(good > bad for good, bad in sums) / 2
        assert answer.subtasks[f"blimp_{name}"]["acc"].value == mean
    parts = [scores["acc"].value for scores in answer.subtasks.values()]
    assert answer.metrics["acc"].value == pytest.approx(sum(parts) / 2)
    assert answer.metrics["acc"].n == len(answer.documents) == 4
    assert answer.documents["value"].mean() == pytest.approx(answer.metrics["acc"].value)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_its_tokenizer_are_left_as_they_were(training, tiny_llama, tiny_tokenizer, folder):
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    pad, side = tiny_tokenizer.pad_token, tiny_tokenizer.padding_side
    torch.manual_seed(5)
    state = torch.get_rng_state()
    measure(tiny_llama.train(training), tiny_tokenizer, put("piqa", folder, limit=1))
    assert tiny_llama.training is training
    assert all(torch.equal(before[name], value) for name, value in tiny_llama.state_dict().items())
    assert (tiny_tokenizer.pad_token, tiny_tokenizer.padding_side) == (pad, side)
    assert torch.equal(torch.get_rng_state(), state)


def test_asked_again_with_examples_it_is_shown_the_same_ones(tiny_llama, tiny_tokenizer, folder):
    question = put("arc_challenge", folder, shots=1)
    loaded = load(question)
    first, prompts = measure(tiny_llama, tiny_tokenizer, question, loaded=loaded), prompts_of(loaded)
    again = measure(tiny_llama, tiny_tokenizer, question, loaded=loaded)
    assert prompts_of(loaded) == prompts
    assert all(prompt.count("Question:") == 2 for prompt in prompts)
    assert first.shots == 1
    assert again.documents.equals(first.documents)


def prompts_of(loaded):
    return [instance.args[0] for task in loaded["tasks"].values() for instance in task.instances]


def test_a_limit_takes_the_first_documents(tiny_llama, tiny_tokenizer, folder):
    whole = measure(tiny_llama, tiny_tokenizer, put("piqa", folder))
    part = measure(tiny_llama, tiny_tokenizer, put("piqa", folder, limit=2))
    assert part.metrics["acc"].n == 2
    assert part.documents.equals(whole.documents[whole.documents["document"] < 2].reset_index(drop=True))


def test_what_does_not_fit_the_positions_is_cut_and_counted(tiny_llama, tiny_tokenizer, tmp_path):
    folder = task_files.write(tmp_path / "tasks")
    path = folder / "piqa/valid.jsonl"
    path.write_text(path.read_text().replace("Rub it with a cloth.", "Rub it. " * 200))
    answer = measure(tiny_llama, tiny_tokenizer, put("piqa", folder))
    assert answer.cut == pytest.approx(1 / 6)
    assert answer.metrics["acc"].n == 3


def test_summaries_are_written_and_scored(tiny_llama, tiny_tokenizer, folder):
    question = put("xlsum_english", folder)
    loaded = load(question)
    loaded["tasks"]["xlsum_english"].config.generation_kwargs["max_gen_toks"] = 8
    answer = measure(tiny_llama, tiny_tokenizer, question, loaded=loaded)
    assert set(answer.metrics) == {"rouge1", "rouge2", "rougeL"}
    assert answer.metrics["rougeL"].n == 3


def test_rouge_of_the_summary_itself_is_one():
    from lit_prune.evaluate.lm_eval_tasks.xlsum import rouge

    assert rouge({"summary": "Rain falls in town."}, [" Rain falls in town."])["rougeL"] == 1
    # Three of four words on either side, in order: precision and recall are 3/4.
    assert rouge({"summary": "Rain falls in town."}, ["Rain falls in Rome"])["rougeL"] == pytest.approx(0.75)
    assert rouge({"summary": "Rain falls in town."}, ["no"])["rougeL"] == 0


def test_a_notebook_needs_one_call(tiny_llama, tiny_tokenizer, folder):
    answer = measure_by_name(tiny_llama, tiny_tokenizer, "arc_easy", local=str(folder), shots=1, limit=2)
    assert (answer.shots, answer.metrics["acc"].n) == (1, 2)
    assert answer.documents.equals(
        measure(tiny_llama, tiny_tokenizer, put("arc_easy", folder, shots=1, limit=2)).documents
    )


def test_more_examples_than_there_are_cannot_be_shown(folder):
    (question,) = questions(["piqa"], local=folder, shots=1000)
    with refuses("--num-fewshot", "piqa", "got 1000"):
        load(question)


def test_a_notebook_gets_the_papers_shots_and_runs_no_programs_unasked(monkeypatch):
    monkeypatch.setattr(harness, "measure", lambda model, tokenizer, question: question)
    assert measure_by_name(None, None, "hellaswag").shots == 10
    assert measure_by_name(None, None, "hellaswag", shots=2).shots == 2
    with refuses("", "unsafe=True"):
        measure_by_name(None, None, "humaneval")
    assert measure_by_name(None, None, "humaneval", unsafe=True).benchmark.unsafe


def test_progress_ends_with_all(tiny_llama, tiny_tokenizer, folder):
    reported = []
    measure(tiny_llama, tiny_tokenizer, put("piqa", folder), batch_size=2, on_progress=reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == 1


def test_the_papers_benchmarks_have_the_papers_shots():
    shots = {benchmark.task: benchmark.shots for benchmark in PAPER}
    assert shots == {
        "winogrande": 5, "arc_challenge": 25, "mmlu": 5, "hellaswag": 10, "gsm8k": 5, "truthfulqa_mc2": 0,
        "xlsum_english": 0, "mbpp": 0, "humaneval": 0,
    }  # fmt: skip
    written = [benchmark for benchmark in PAPER if benchmark.unsafe]
    assert [benchmark.task for benchmark in written] == ["mbpp", "humaneval"]
    for benchmark in written:
        assert benchmark.options["repeats"] == 20
        sampling = benchmark.options["generation_kwargs"]
        assert (sampling["temperature"], sampling["top_p"], sampling["do_sample"]) == (0.2, 0.95, True)


@pytest.mark.parametrize("benchmark", [b for b in PAPER if b.folder], ids=lambda benchmark: benchmark.task)
def test_lm_eval_defines_the_papers_benchmarks_where_they_are_looked_for(benchmark):
    from lit_prune.evaluate.definitions import data_sets

    assert data_sets(benchmark.task, benchmark.folder) == [benchmark.data]
