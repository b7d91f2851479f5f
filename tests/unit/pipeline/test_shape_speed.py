"""The search: filter candidates by their speed, which is measured once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from refusals import refuses

from lit_prune.config import SearchSpace
from lit_prune.evaluate.throughput import Speedup, Throughput
from lit_prune.models.shape import ModelShape, shape_of
from lit_prune.pipeline import shape_search
from lit_prune.pipeline.shape_search import Search, candidates


def searched(config, space, batch, block, speeds):
    search = Search(config, space, batch, block, speeds)
    search.measure()
    return search.found()


@pytest.fixture
def measured(monkeypatch):
    """What was measured; a block of the student less counts as three times the speed more."""
    calls = []

    def fake(student, teacher, batch, block, repeats):
        calls.append((shape_of(student.config), shape_of(teacher.config), batch, block, repeats))
        times = 1 + 3 * (3 - student.config.num_hidden_layers)
        return Speedup(Throughput(10.0 * times, 0.0), Throughput(10.0, 0.0))

    monkeypatch.setattr(shape_search, "speedup", fake)
    return calls


def test_candidates_as_fast_as_asked_stay_and_are_measured_once(tiny_llama, measured, tmp_path):
    space = SearchSpace(num_hidden_layers=(1, 2, 3), hidden_size=(16,), speedup=4.0)
    for _ in range(2):
        fast = searched(tiny_llama.config, space, 2, 8, tmp_path)
        assert [candidate.shape.num_hidden_layers for candidate in fast] == [2, 1]
    whole = ModelShape(3, 32, 48, 4, 2)
    assert [call[:4] for call in measured] == [(ModelShape(layers, 16, 48, 4, 2), whole, 2, 8) for layers in (3, 2, 1)]
    slower = searched(tiny_llama.config, replace(space, speedup=1.0), 2, 8, tmp_path)
    assert len(slower) == len(measured) == 3


def test_another_batch_is_measured_anew(tiny_llama, measured, tmp_path):
    space = SearchSpace(num_hidden_layers=(2, 3), speedup=1.0)
    for batch in (2, 4):
        searched(tiny_llama.config, space, batch, 8, tmp_path)
    assert [call[2] for call in measured] == [2, 2, 4, 4]


def test_without_a_speed_nothing_is_measured(tiny_llama, measured, tmp_path):
    space = SearchSpace(num_hidden_layers=(2, 3))
    found = searched(tiny_llama.config, space, 2, 8, tmp_path)
    assert (found, measured, list(tmp_path.iterdir())) == (candidates(tiny_llama.config, space), [], [])


def test_a_speed_nobody_has_names_the_fastest(tiny_llama, measured, tmp_path):
    with refuses("search_space.speedup", "4.00", "2 layers, 4 heads, 48 neurons, 32 hidden", 5):
        searched(tiny_llama.config, SearchSpace(num_hidden_layers=(2, 3), speedup=5.0), 2, 8, tmp_path)


def test_before_a_run_all_candidates_are_listed_and_nothing_is_measured_or_written(tiny_llama, measured, tmp_path):
    space = SearchSpace(num_hidden_layers=(1, 2, 3), hidden_size=(16,), speedup=4.0)
    search = Search(tiny_llama.config, space, 2, 8, tmp_path)
    assert search.found() == search.inside
    assert (search.measured, measured, list(tmp_path.iterdir())) == (False, [], [])
    search.measure()
    assert search.measured
    assert [candidate.shape.num_hidden_layers for candidate in search.found()] == [2, 1]
