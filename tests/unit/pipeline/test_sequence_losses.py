"""A finished cell stores the loss of each validation sequence, with a digest, for every loss in its result."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from lit_prune.config import Corpus
from lit_prune.config.overrides import override
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.store import Store
from lit_prune.store.store import SEQUENCES

LOSSES = {"lm_loss", "kd_loss", "lm_loss_before", "kd_loss_before"}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("validations", [0, 1])
def test_the_losses_of_the_sequences_give_the_losses_of_the_result(shared_cell, tiny_runner, steps, validations):
    second = Corpus(path=shared_cell.corpus.path, holdout_fraction=0.4)
    changes = {
        "prune.hidden_size": 0.5, "distill.max_steps": steps, "evaluation.num_validations": validations,
        "evaluation.second_corpus": second,
    }  # fmt: skip
    cell = Resolver().pin(override(shared_cell, changes))
    assert tiny_runner.run([Entry("row", 0, cell, {})]) == 0
    node = tiny_runner.store.node(cell, "cell")
    kept = pd.read_parquet(node.folder / SEQUENCES)
    assert set(kept["metric"]) == (LOSSES if validations else {"lm_loss"}) | {"second_lm_loss"}
    for metric, lines in kept.groupby("metric"):
        assert list(lines["sequence"]) == [0, 1, 2, 3]
        assert lines["loss"].sum() / lines["tokens"].sum() == pytest.approx(node.result[metric], rel=1e-12)
    assert kept.loc[kept["metric"] == "lm_loss", "tokens"].sum() == node.result["num_tokens"]
    changed = (kept.loc[kept["metric"] == name, "loss"].tolist() for name in ("lm_loss", "lm_loss_before"))
    assert len({*map(tuple, changed)}) == (1 if validations and not steps else 2)
    files = json.loads((node.folder / "result.json").read_text())["integrity"]["files"]
    assert files[SEQUENCES]["size"] == (node.folder / SEQUENCES).stat().st_size


def test_a_result_from_before_sequences_were_kept_is_still_done(finished_store, shared_cell, tmp_path):
    shutil.copytree(finished_store, tmp_path / "store")
    node = Store(tmp_path / "store").node(shared_cell, "cell")
    content = json.loads((node.folder / "result.json").read_text())
    del content["integrity"]
    (node.folder / "env.json").unlink()
    (node.folder / "result.json").write_text(json.dumps(content))
    (node.folder / SEQUENCES).unlink()
    assert node.verified == content
