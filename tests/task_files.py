"""A folder of made-up benchmark files, in the form in which the authors of the real ones publish theirs."""

from __future__ import annotations

import bz2
import json
import zipfile
from pathlib import Path

PIQA = [
    {"goal": "Open a jar.", "sol1": "Turn the lid.", "sol2": "Turn the jar's picture to the wall."},
    {"goal": "Boil an egg.", "sol1": "Put it into a cold bed.", "sol2": "Put it into hot water."},
    {"goal": "Dry a cup.", "sol1": "Rub it with a cloth.", "sol2": "Rub it with soup."},
]
LABELS = (0, 1, 0)
ARC = [
    ("m1", "What is hot?", "ABCD", "the sun", "ice", "snow", "rain", "A"),
    ("n2", "What can fly?", "1234", "a stone", "a bird", "a tree", "a fish", "B"),
    ("n3", "What is wet?", "1234", "sand", "fire", "air", "the sea", "4"),
]
CONTEXTS = [
    ("Sailing: A man is on a boat. he", "pulls a rope.", "eats the sea.", "sings to the sail.", "is a fish.", 0),
    ("Health: How to sleep. Go to bed early.", "Stay up.", "Close your eyes.", "Run.", "Shout.", 1),
    ('Cooking: "Stir!" is said. the old cook at Joe\'s', "stirs.", "flies.", "sinks.", "rusts.", 0),
]
PAIRS = {
    "intransitive": [("The dogs bark.", "The dogs barks."), ("A cat sleeps.", "A cat sleep.")],
    "anaphor_number_agreement": [
        ("These cups are red.", "These cup are red."),
        ("This cup is red.", "This cups is red."),
    ],
}
ARTICLES = [
    {"id": f"a{i}", "url": "none", "title": f"Title {i}", "text": f"In town {i} it rained.", "summary": f"Rain in {i}."}
    for i in range(11)
]


def write(folder: Path) -> Path:
    """Write all files; returns the folder."""
    for name in ("piqa", "arc/arc_easy", "arc/arc_challenge", "xlsum"):
        (folder / name).mkdir(parents=True)
    _lines(folder / "piqa/valid.jsonl", PIQA)
    (folder / "piqa/valid-labels.lst").write_text("".join(f"{label}\n" for label in LABELS))
    for name in ("arc_easy", "arc_challenge"):
        for split in ("train", "dev"):
            _lines(folder / f"arc/{name}/{split}.jsonl", [_question(*line) for line in ARC])
    lines = [str(part) for context, *endings, label in CONTEXTS for part in (context, label, *endings)]
    (folder / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
    with zipfile.ZipFile(folder / "BLiMP.zip", "w") as archive:
        for name, pairs in PAIRS.items():
            text = "".join(json.dumps(_pair(name, *pair)) + "\n" for pair in pairs)
            archive.writestr(f"data/{name}.jsonl", text)
            archive.writestr(f"__MACOSX/data/._{name}.jsonl", "not a task")
    _lines(folder / "xlsum/english_test.jsonl", ARTICLES)
    return folder


def _question(name, stem, labels, *rest):
    choices = [{"text": text, "label": label} for text, label in zip(rest[:-1], labels, strict=True)]
    return {"id": name, "question": {"stem": stem, "choices": choices}, "answerKey": rest[-1]}


def _pair(name, good, bad):
    only_here = {"intransitive": {"one_prefix_prefix": "The dogs"}}.get(name, {})
    return {"sentence_good": good, "sentence_bad": bad, "UID": name, "pairID": "0"} | only_here


def _lines(path, documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
