"""Compared rows of oneshot_ablation have equal steps and, with a shared schedule, equal learning rates."""

from __future__ import annotations

import pytest

from lit_prune.config import ConfigError
from lit_prune.config.overrides import override, parents_of
from lit_prune.config.profiles import load_profile
from lit_prune.distill.optim import learning_rate
from lit_prune.experiments.oneshot_ablation import (
    AXES_IN_TURNS,
    AXES_MATCHED,
    AXES_ONCE,
    DEPTH_IN_TURNS,
    DEPTH_MATCHED,
    DEPTH_ONCE,
    TABLE,
)
from lit_prune.pipeline.expand import entries
from lit_prune.pipeline.validate import check


@pytest.fixture(scope="module", params=["quick", "laptop"])
def chains(request, tmp_path_factory):
    """The cells of each row, first to last."""
    profile = load_profile(request.param)
    found = entries(TABLE.at(profile, tmp_path_factory.mktemp("store")), profile, num_seeds=1)
    return {entry.row: [entry.cell, *parents_of(entry.cell)][::-1] for entry in found}


def rates(chain):
    recipes = [cell.distill for cell in chain]
    return [learning_rate(d.optimizer, step, d.max_steps) for d in recipes for step in range(d.max_steps)]


@pytest.mark.parametrize(
    ("once", "turns", "matched"),
    [(DEPTH_ONCE, DEPTH_IN_TURNS, DEPTH_MATCHED), (AXES_ONCE, AXES_IN_TURNS, AXES_MATCHED)],
)
def test_steps_are_as_many_and_one_schedule_is_that_of_pruning_at_once(once, turns, matched, chains):
    at_once = rates(chains[once])
    assert len(chains[once]) == 1 < len(chains[turns]) == len(chains[matched])
    assert len(rates(chains[turns])) == len(at_once)
    assert rates(chains[matched]) == at_once != rates(chains[turns])
    assert [cell.prune for cell in chains[matched]] == [cell.prune for cell in chains[turns]]
    check(chains[matched][-1])


def test_a_schedule_that_ends_before_its_run_is_refused(chains):
    cell = override(chains[AXES_MATCHED][-1], {"distill.optimizer.schedule_steps": 20})
    with pytest.raises(ConfigError) as caught:
        check(cell)
    assert caught.value.field == "parent.distill.optimizer.schedule_steps"
