"""Recorded results: the current code yields the same addresses and files."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
from paths import ROOT

from lit_prune.config.overrides import flatten, override, plain_of
from lit_prune.config.profiles import load_profile
from lit_prune.config.renames import current_frame
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.pipeline.expand import entries
from lit_prune.render import files
from lit_prune.render.wording import later_rows
from lit_prune.report import assemble
from lit_prune.report.record import read
from lit_prune.store import Store
from lit_prune.store.address import key


def test_records_hold_no_code_and_their_addresses_are_still_those_of_their_question(tmp_path):
    assert not list((ROOT / "experiments").rglob("*.py"))
    for record in (ROOT / "experiments").glob("*/*/results.csv"):
        table = importlib.import_module(f"lit_prune.experiments.{record.parents[1].name}").TABLE
        profile = load_profile(record.parent.name, table.name)
        profile = replace(profile, cell=as_computed(profile.cell, read(record.parent, table).cell))
        found = entries(table.at(profile, tmp_path), profile)
        recorded = current_frame(pd.read_csv(record))
        assert (recorded["state"] == "done").all()
        assert (record.parents[1] / "NOTES.md").is_file()
        known = cells_of(recorded, found)
        assert list(recorded["row"]) == [entry.row for entry in known], record
        assert addresses(recorded, known) == list(recorded["key"]), record
        later = {entry.row for entry in found} - set(recorded["row"])
        assert later == set(later_rows(read(record.parent, table))), record


def as_computed(cell, recorded):
    """The base cell of a profile in the precisions that "auto" stood for on the machine of a record."""
    known = dict(flatten(plain_of(recorded)))
    auto = [path for path, value in flatten(plain_of(cell)) if path.endswith(".precision") and value == "auto"]
    return override(cell, {path: known[path] for path in auto})


def cells_of(recorded, found):
    """The entries that a record has; rows that the table has got since are none of them."""
    cells = set(zip(recorded["row"], recorded["seed"], strict=True))
    return [entry for entry in found if (entry.row, entry.seed) in cells]


def addresses(recorded, found):
    """The keys of a table's cells, with the fingerprints of its record; nothing where their number differs."""
    if len(recorded) != len(found):
        return []
    none = pd.Series([None] * len(recorded))
    others = (recorded.get(name, none) for name in ("second_corpus", "parent_corpus"))
    origins = zip(found, recorded["corpus"], recorded["teacher"], *others, strict=True)
    return [key(pinned(entry.cell, *origin)) for entry, *origin in origins]


def pinned(cell, corpus, teacher, second, parent_corpus):
    """The cell with the fingerprints of its record."""
    if isinstance(parent_corpus, str):
        cell = override(cell, {"parent.corpus.fingerprint": parent_corpus})
    if isinstance(second, str):
        text = replace(cell.evaluation.second_corpus, fingerprint=second)
        cell = replace(cell, evaluation=replace(cell.evaluation, second_corpus=text))
    if cell.teacher.pretraining is None:
        pinned_teacher = replace(cell.teacher, fingerprint=teacher)
    else:
        recipe = cell.teacher.pretraining
        recipe = replace(recipe, corpus=replace(recipe.corpus, fingerprint=teacher))
        pinned_teacher = replace(cell.teacher, pretraining=recipe)
    return replace(cell, corpus=replace(cell.corpus, fingerprint=corpus), teacher=pinned_teacher)


def test_the_record_of_the_repository_is_what_its_cells_give(tmp_path: Path) -> None:
    record = ROOT / "experiments/loss_ablation/quick"
    recorded, store = current_frame(pd.read_csv(record / "results.csv")), Store(tmp_path)
    found = []
    known = cells_of(recorded, entries(TABLE, load_profile("quick")))
    for entry, line in zip(known, recorded.to_dict("records"), strict=True):
        corpus = replace(entry.cell.corpus, fingerprint=line["corpus"])
        teacher = replace(entry.cell.teacher, fingerprint=line["teacher"])
        found.append(replace(entry, cell=replace(entry.cell, corpus=corpus, teacher=teacher)))
        folder = store.node(found[-1].cell, "cell").folder
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({n: line[n] for n in (*TABLE.metrics, "train_flops")}))
        env = {"commit": line["commit"], "seconds": line["wall_seconds"], "peak_memory": line["peak_memory"]}
        (folder / "env.json").write_text(json.dumps(env))
    written = tmp_path / "loss_ablation" / "quick"
    files.write_record(assemble(TABLE, "quick", {}, found, store), written)
    markdown = written / "report.md"
    assert (written / "results.csv").read_text() == recorded.to_csv(index=False)
    assert recorded.shape == pd.read_csv(record / "results.csv").shape
    # The rest of the page names versions and machine, which the table of cells does not hold.
    before, after = (path.read_text().partition("- versions:")[0] for path in (record / "report.md", markdown))
    assert after == before
