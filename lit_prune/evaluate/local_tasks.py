"""Read tasks from local files: convert the form their authors publish to the one lm-eval reads from the hub.

Writes nothing: documents are read when a task runs. The prompts are lm-eval's own. Imports neither torch nor lm-eval.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import re
import string
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError, expand

Documents = list[dict[str, Any]]
Splits = dict[str, Documents]

_LINES_OF_HELLASWAG = 6


@dataclass(frozen=True)
class Local:
    """A task that can be read from a folder."""

    files: tuple[str, ...]
    """The files, relative to the folder."""
    read: Callable[..., Splits]
    """Files -> documents by split, in the form of the data set on the hub."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields that override lm-eval's definition if the files lack a split."""

    @property
    def names(self) -> str:
        """The files, for messages."""
        return ", ".join(self.files)


def read(task: str, folder: Path) -> dict[str, Splits]:
    """Return the documents of a task by subtask and split; a task without subtasks is its own only subtask.

    Raises:
        ConfigError: if a file is missing or has another format.
    """
    name = "blimp" if task.startswith("blimp_") else task
    paths = files_of(name, folder)
    try:
        if name == "blimp":
            wanted = [task] if task != "blimp" else subtasks_of(task, folder)
            return {subtask: _pairs(paths[0], subtask) for subtask in wanted}
        return {task: LOCAL[name].read(*paths)}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"--task-data-dir: {name} cannot be read from {folder} ({_first_line(error)})") from error


def files_of(task: str, folder: Path) -> list[Path]:
    """Return the files of a task in a folder.

    Raises:
        ConfigError: if the task is not read from files, or one of them is missing.
    """
    if task not in LOCAL:
        raise ConfigError(f"--task-data-dir: {task} is not read from files; there are: {', '.join(LOCAL)}")
    paths = [expand(folder) / name for name in LOCAL[task].files]
    missing = [name for path, name in zip(paths, LOCAL[task].files, strict=True) if not path.is_file()]
    if missing:
        raise ConfigError(f"--task-data-dir: {folder} has no {', '.join(missing)}, which {task} is read from")
    return paths


def digest_of_files(task: str, folder: Path) -> str:
    """Return the sha256 of the files of a task.

    Raises:
        ConfigError: if one is missing.
    """
    digest = hashlib.sha256()
    for path in files_of(task, folder):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def subtasks_of(task: str, folder: Path) -> list[str]:
    """Return the subtasks of BLiMP in the folder's archive; none for other tasks or without an archive."""
    path = expand(folder) / LOCAL["blimp"].files[0]
    if task != "blimp" or not path.is_file():
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(f"blimp_{Path(name).stem}" for name in archive.namelist() if _is_subtask(name))
    except zipfile.BadZipFile as error:
        raise ConfigError(f"--task-data-dir: {path} is no zip archive ({error})") from None


def _is_subtask(name: str) -> bool:
    return name.endswith(".jsonl") and "__MACOSX" not in name


def _pairs(path: Path, subtask: str) -> Splits:
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if _is_subtask(n) and f"blimp_{Path(n).stem}" == subtask)
        lines = archive.read(name).decode().splitlines()
    return {"train": [{key: pair[key] for key in ("sentence_good", "sentence_bad")} for pair in map(json.loads, lines)]}


def _piqa(documents: Path, labels: Path) -> Splits:
    right = labels.read_text().split()
    return {
        "validation": [
            {key: line[key] for key in ("goal", "sol1", "sol2")} | {"label": int(label)}
            for line, label in zip(_lines(documents), right, strict=True)
        ]
    }


def _arc(train: Path, dev: Path) -> Splits:
    return {"train": list(map(_arc_document, _lines(train))), "validation": list(map(_arc_document, _lines(dev)))}


def _arc_document(line: dict[str, Any]) -> dict[str, Any]:
    """Return a row as on the hub, its answer key a label of its choices: a letter can stand for a number."""
    choices = {name: [choice[name] for choice in line["question"]["choices"]] for name in ("text", "label")}
    labels, answer = choices["label"], line["answerKey"]
    right = answer if answer in labels else labels[string.ascii_uppercase.index(answer)]
    return {"id": line["id"], "question": line["question"]["stem"], "choices": choices, "answerKey": right}


def _hellaswag(path: Path) -> Splits:
    lines = bz2.decompress(path.read_bytes()).decode().splitlines()
    if len(lines) % _LINES_OF_HELLASWAG:
        raise ValueError(f"{len(lines)} lines, not a multiple of {_LINES_OF_HELLASWAG}")
    groups = zip(*(iter(lines),) * _LINES_OF_HELLASWAG, strict=True)
    return {"validation": [_hellaswag_document(*group) for group in groups]}


def _hellaswag_document(context: str, label: str, *endings: str) -> dict[str, Any]:
    """Return a document as on the hub, whose `ctx_b` is the unfinished last sentence of a context of ActivityNet."""
    activity, _, text = context.partition(": ")
    begun = re.search(r"(?:(?<=[.!?]) |^)(?P<words>[^.!?]*[^.!?\" ])\s*$", text)
    whole, begins = (text[: begun.start()], begun["words"]) if begun else (text, "")
    return {"activity_label": activity, "ctx_a": whole, "ctx_b": begins, "endings": list(endings), "label": label}


def _xlsum(path: Path) -> Splits:
    return {"test": [{key: line[key] for key in ("id", "title", "text", "summary")} for line in _lines(path)]}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _arc_files(name: str) -> Iterable[str]:
    return (f"arc/{name}/{split}.jsonl" for split in ("train", "dev"))


# Without a training split, examples are other documents of the validation split.
_OF_ITSELF = {"training_split": "validation"}
# Neither release has the labels of the test split.
_ON_DEV = {"test_split": None}

LOCAL = {
    "piqa": Local(("piqa/valid.jsonl", "piqa/valid-labels.lst"), _piqa, _OF_ITSELF),
    "blimp": Local(("BLiMP.zip",), _pairs),
    "arc_easy": Local(tuple(_arc_files("arc_easy")), _arc, _ON_DEV),
    "arc_challenge": Local(tuple(_arc_files("arc_challenge")), _arc, _ON_DEV),
    "hellaswag": Local(("hellaswag_val_full.txt.bz2",), _hellaswag, _OF_ITSELF),
    "xlsum_english": Local(("xlsum/english_test.jsonl",), _xlsum),
}
"""lm-eval's task name -> files and reader."""
