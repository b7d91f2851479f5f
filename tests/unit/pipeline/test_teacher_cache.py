"""The cache of teacher outputs: its cells, its contents, and when it is kept, grown or removed."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from process import python
from refusals import refuses
from teacher_caches import STATES, Stop, StoppingBar, caches, origins, pair, run, runner_of

from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Optimizer
from lit_prune.config.overrides import override
from lit_prune.data.retraining import RetrainingData
from lit_prune.distill import cache as cache_files
from lit_prune.models.loading import load_model
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Store
from lit_prune.store.address import CACHE, identity


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"distill.logit_loss": "mse"}, True),
        ({"distill.max_steps": 2}, True),
        ({"prune.hidden_size": 0.75}, True),
        ({"distill.batch_size": 4}, False),
        ({"distill.seq_len": 16}, False),
        ({"distill.precision": "bf16-mixed"}, False),
        ({"corpus.holdout_fraction": 0.3}, False),
        ({"seed": 5}, False),
        ({"distill.kd_weight": 0.0, "distill.ce_weight": 1.0}, False),
        ({"distill.teacher_optimizer": Optimizer(warmup_steps=0)}, False),
        ({"distill.max_steps": 0}, False),
    ],
    ids=str,
)
def test_only_cells_that_read_the_same_data_for_the_same_teacher_share_a_cache(base, changes, shared, tmp_path):
    """Cells that share a cache are computed one after the other."""
    first, other, last = [
        Entry(name, 0, override(base, {"distill.ce_weight": w} | more), {})
        for name, w, more in (("first", 1.0, {}), ("other", 2.0, changes), ("last", 3.0, {}))
    ]
    runner = runner_of(tmp_path)
    order = runner.teacher_outputs.expect([first, other, last], runner.ctx)
    assert [entry.row for entry in order] == (["first", "other", "last"] if shared else ["first", "last", "other"])


def test_the_cache_holds_the_fewest_bytes_that_serve_all(base, tmp_path):
    run(tmp_path / "one", pair(base, {"distill.top_k": 7}, {"distill.top_k": 7, "seed": 0, "distill.ce_weight": 1.0}),
        keep_teacher_cache=True)  # fmt: skip
    (top_k,) = caches(tmp_path / "one")
    run(tmp_path / "two", pair(base, {"distill.top_k": 7}, {"distill.top_k": 9}), keep_teacher_cache=True)
    (last,) = caches(tmp_path / "two")
    tokens = 6 * 2 * 32
    assert (top_k["top_k"], top_k["bytes"]) == (7, tokens * 7 * (4 + 4))
    assert (last["top_k"], last["bytes"]) == (None, tokens * 32 * 4)


def test_the_probability_that_is_left_out_is_in_the_result(base, tmp_path):
    run(tmp_path, pair(base, {"distill.top_k": 7})[:1], keep_teacher_cache=True)
    (tokens,) = (path.parent for path in tmp_path.glob("tokens/*/tokens.json"))
    data = RetrainingData(tokens, seq_len=32, batch_size=2, max_steps=6, seed=0)
    ids = torch.cat([batch["input_ids"] for batch in data.train_dataloader()])
    with torch.no_grad():
        logits = load_model(base.teacher.model)(ids).logits[:, :-1]
    missing = 1 - logits.softmax(-1).topk(7).values.sum(-1)
    (cache,) = caches(tmp_path)
    assert cache["missing_mass"] == pytest.approx(missing.mean().item(), rel=1e-4)


def test_a_kept_cache_serves_later_runs_and_grows_where_they_need_more(base, tmp_path, passes):
    first, second = pair(base)
    run(tmp_path, [first], keep_teacher_cache=True)
    assert passes() == 6
    run(tmp_path, [second])
    assert passes() == 0
    assert origins([second], tmp_path) == [CACHE]
    longer = pair(base, {"distill.max_steps": 8}, {"distill.max_steps": 5, **STATES})
    run(tmp_path, longer)
    assert passes() == 8
    (cache,) = caches(tmp_path)
    assert (cache["sequences"], len(cache["states"]), cache["keep"]) == (16, 2, True)


def test_one_missing_cell_takes_a_cache_that_is_there_and_writes_none(base, tmp_path, passes):
    cells = pair(base)
    with pytest.raises(Stop):
        runner_of(tmp_path, StoppingBar(step=7)).run(cells)
    assert origins(cells[:1], tmp_path) == [CACHE]
    passes()
    run(tmp_path, cells)
    assert passes() == 0
    run(tmp_path, pair(base, {"distill.ce_weight": 1.0})[:1])
    assert passes() == 6
    assert not list(tmp_path.glob(f"{CACHE}/*"))


def test_a_damaged_cache_is_written_again(base, tmp_path, passes):
    run(tmp_path, pair(base), keep_teacher_cache=True)
    (path,) = tmp_path.glob(f"{CACHE}/*/last")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    passes()
    run(tmp_path, pair(base, {"distill.ce_weight": 1.0}, {"distill.ce_weight": 2.0}), keep_teacher_cache=True)
    assert passes() == 6
    (path,) = tmp_path.glob(f"{CACHE}/*/last")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("full", ["the estimate", "the disk"])
def test_without_room_the_teacher_is_run_unless_a_cache_was_requested(base, tmp_path, monkeypatch, full, passes):
    if full == "the estimate":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(cache_files, "shutil", SimpleNamespace(disk_usage=lambda path: usage._replace(free=0)))
    else:
        monkeypatch.setattr(cache_files, "preallocate", _no_space)
    run(tmp_path / "automatic", pair(base))
    assert passes() == 1 + 2 * 6  # one to learn the size
    assert origins(pair(base), tmp_path / "automatic") == ["model"] * 2
    assert not list(tmp_path.glob(f"automatic/{CACHE}/*"))
    with refuses("--keep-teacher-cache"):
        run(tmp_path / "requested", pair(base), keep_teacher_cache=True)


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_an_automatic_cache_takes_half_of_the_free_space_at_most(base, tmp_path, monkeypatch):
    needed = 6 * 2 * 32 * 32 * 4
    usage = shutil.disk_usage(tmp_path)
    for free, origin in ((2 * needed - 2, "model"), (2 * needed, CACHE)):
        here = SimpleNamespace(disk_usage=lambda path, free=free: usage._replace(free=free))
        monkeypatch.setattr(cache_files, "shutil", here)
        run(tmp_path / origin, pair(base))
        assert origins(pair(base), tmp_path / origin) == [origin] * 2


def test_the_cache_stays_while_another_process_is_at_one_of_its_cells(base, tmp_path):
    """It is removed when that cell is done too."""
    first, second = pair(base)
    hold = (
        "import sys, json; from lit_prune.store import Store; from lit_prune.store.address import CACHE\n"
        "with Store(sys.argv[1]).hold('cell', json.loads(sys.argv[2])) as node:\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    node.finish({'lm_loss': 7.0, 'there': [str(p) for p in Store(sys.argv[1]).root.glob(CACHE + '/*')]})\n"
    )

    class Answering(ProgressBar):
        def say(self, what: str) -> None:
            if "waiting" in what:
                holder.stdin.write("finish\n")
                holder.stdin.close()

    with python(hold, tmp_path, json.dumps(identity(first.cell, "cell"))) as holder:
        assert holder.stdout.readline() == "held\n", holder.stderr.read()
        assert runner_of(tmp_path, Answering(0, quiet=True)).run([first, second]) == 0
    result = Store(tmp_path).node(first.cell, "cell").result
    assert result["lm_loss"] == 7.0
    assert len(result["there"]) == 1
    assert not list(tmp_path.glob(f"{CACHE}/*"))
