"""Benchmarks from published files: the documents, and lm-eval's prompts of them."""

import bz2
from itertools import chain

import pytest
import task_files
from refusals import refuses

from lit_prune.evaluate import local_tasks
from lit_prune.evaluate.benchmark_tasks import questions
from lit_prune.evaluate.harness import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return task_files.write(tmp_path_factory.mktemp("tasks"))


def task_of(name, folder, **how):
    """The lm-eval task of a name over the files of a folder."""
    (question,) = questions([name], local=folder, **how)
    (task,) = load(question)["tasks"].values()
    return task


def shown(task):
    """What a model is given of each document: context, continuations, and which of them is right."""
    docs = list(task.eval_docs)
    return [(task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)) for doc in docs]


def test_piqa_is_put_as_lm_eval_puts_it(folder):
    assert shown(task_of("piqa", folder)) == [
        (f"Question: {line['goal']}\nAnswer:", [line["sol1"], line["sol2"]], label)
        for line, label in zip(task_files.PIQA, task_files.LABELS, strict=True)
    ]


def test_a_letter_is_the_place_of_the_answer_also_where_the_choices_of_arc_are_numbered(folder):
    task = task_of("arc_easy", folder)
    assert [target for _, _, target in shown(task)] == [0, 1, 3]
    assert shown(task)[1][:2] == ("Question: What can fly?\nAnswer:", ["a stone", "a bird", "a tree", "a fish"])


def test_hellaswag_is_put_as_lm_eval_puts_what_the_hub_has(folder):
    from datasets import Dataset
    from lm_eval.tasks.hellaswag.utils import process_docs

    parts = [
        ("A man is on a boat.", "he"),
        ("How to sleep. Go to bed early.", ""),
        ('"Stir!" is said.', "the old cook at Joe's"),
    ]
    hub = [
        {"activity_label": context.partition(": ")[0], "ctx_a": a, "ctx_b": b, "endings": endings, "label": str(label)}
        for (context, *endings, label), (a, b) in zip(task_files.CONTEXTS, parts, strict=True)
    ]
    theirs = process_docs(Dataset.from_list(hub))
    ours = shown(task_of("hellaswag", folder))
    assert ours == [(doc["query"], doc["choices"], doc["gold"]) for doc in theirs]
    assert ours[0][0] == "Sailing: A man is on a boat. He"


def test_blimp_is_every_file_of_the_archive_whatever_its_columns(folder):
    (question,) = questions(["blimp"], local=folder)
    loaded = load(question)
    assert set(loaded["tasks"]) == {f"blimp_{name}" for name in task_files.PAIRS}
    for name, pairs in task_files.PAIRS.items():
        assert shown(loaded["tasks"][f"blimp_{name}"]) == [("", list(pair), 0) for pair in pairs]


def test_one_part_of_blimp_can_be_asked_alone(folder):
    assert len(shown(task_of("blimp_intransitive", folder))) == 2
    assert local_tasks.subtasks_of("blimp", folder) == ["blimp_anaphor_number_agreement", "blimp_intransitive"]


def test_xlsum_takes_every_fifth_article(folder):
    task = task_of("xlsum_english", folder)
    assert [doc["id"] for doc in task.eval_docs] == ["a0", "a5", "a10"]
    doc = task.eval_docs[1]
    assert task.doc_to_text(doc) == "Article: In town 5 it rained.\n\nSummary:"
    assert task.doc_to_target(doc) == "Rain in 5."


@pytest.mark.parametrize("name", ["piqa", "hellaswag", "arc_challenge"])
def test_examples_are_never_the_document_that_is_asked(name, folder):
    task = task_of(name, folder, shots=2)
    task.set_fewshot_seed(1234)
    for doc in task.eval_docs:
        *examples, prompt = task.fewshot_context(doc, num_fewshot=2).split("\n\n")
        assert len(examples) == 2
        assert prompt == task.doc_to_text(doc)
        assert not any(example.startswith(prompt) for example in examples)


def test_a_file_that_is_missing_is_named(tmp_path):
    with refuses("--task-data-dir", "BLiMP.zip", "blimp"):
        questions(["blimp"], local=tmp_path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("piqa", {"piqa/valid-labels.lst": b"0\n1\n"}),
        ("piqa", {"piqa/valid.jsonl": b'{"goal": "x"}\n'}),
        ("hellaswag", {"hellaswag_val_full.txt.bz2": bz2.compress(b"one\ntwo")}),
        ("hellaswag", {"hellaswag_val_full.txt.bz2": b"no archive"}),
        ("blimp", {"BLiMP.zip": b"no archive"}),
        ("arc_easy", {"arc/arc_easy/dev.jsonl": b"{no json\n"}),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_told_of(name, damage, tmp_path):
    folder = task_files.write(tmp_path / "tasks")
    for path, content in damage.items():
        (folder / path).write_bytes(content)
    with refuses("--task-data-dir"):
        load(*questions([name], local=folder))


def test_other_files_are_another_question(folder, tmp_path):
    other = task_files.write(tmp_path / "tasks")
    assert questions(["piqa"], local=other)[0].about == questions(["piqa"], local=folder)[0].about
    with (other / "piqa/valid-labels.lst").open("a") as file:
        file.write("\n")
    assert questions(["piqa"], local=other)[0].about != questions(["piqa"], local=folder)[0].about


def test_the_real_files_are_read_whole(shared):
    folder = shared / "data/tasks"
    sizes = {}
    for name in ("piqa", "arc_easy", "arc_challenge", "hellaswag", "blimp"):
        for task, splits in local_tasks.read(name, folder).items():
            sizes[task] = len(list(splits.values())[-1])
    blimp = {name: size for name, size in sizes.items() if name.startswith("blimp_")}
    assert len(blimp) == 67
    assert set(blimp.values()) == {1000}
    others = {name: size for name, size in sizes.items() if name not in blimp}
    assert others == {"piqa": 1838, "arc_easy": 567, "arc_challenge": 295, "hellaswag": 10042}
    arc = chain.from_iterable(local_tasks.read("arc_easy", folder)["arc_easy"].values())
    assert all(doc["answerKey"] in doc["choices"]["label"] for doc in arc)


def test_lm_eval_has_every_part_of_the_real_blimp(shared):
    from lit_prune.evaluate.definitions import harness_folder

    names = {f"blimp_{path.stem}" for path in (harness_folder() / "blimp").glob("[a-z]*.yaml")}
    assert set(local_tasks.subtasks_of("blimp", shared / "data/tasks")) == names
