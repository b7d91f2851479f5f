"""Profiles: a cell with its changes, the numbers of seeds, and the search space."""

from __future__ import annotations

import pytest
from refusals import refuses

from lit_prune.config import Cell, ConfigError, Profile, SearchSpace
from lit_prune.config.overrides import build, override
from lit_prune.config.profiles import load_profile, profiles_folder


def written(folder, text):
    path = folder / "profile.yaml"
    path.write_text(text)
    return str(path)


def test_a_profile_is_the_default_cell_with_its_changes(tmp_path):
    text = "seeds: 5\ndistill:\n  mlp_input: [29:13]\n  optim: {lr: 1e-4}\nstudent: {hidden: null}\n"
    changes = {"distill.match_mlp_input": ["29:13"], "distill.optimizer.lr": 1e-4, "prune.hidden_size": None}
    assert load_profile(written(tmp_path, text)) == Profile(override(Cell(), changes), 5)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("distill: {stpes: 3}", "perhaps you meant 'distill.max_steps'"),
        ("distil: {steps: 3}", "perhaps you meant 'distill.max_steps'"),
        ("distill: {steps: many}", "distill.max_steps: must be a valid integer, got 'many'"),
        ("seeds: many", "seeds: must be a valid integer, got 'many'"),
        ("distill:", "distill: must be an object, got None"),
        ("", "a mapping of sections"),
        ("- 1", "a mapping of sections"),
        ("1: {2: 3}", "1.2: unknown field"),
        ("distill: {", "cannot be read as YAML"),
        ("distill:\n  steps: 2\n  steps: 3\n", "keys must be unique, got 'steps' again in line 3"),
        ("distill: {steps: 2}\nseeds: 2\ndistill: {lr: 1}\n", "keys must be unique, got 'distill' again in line 3"),
        ("distill: {steps: 2, steps: 3}", "keys must be unique, got 'steps' again in line 1"),
        ("distill: {steps: 2}\ndistill.steps: 3\n", "distill.max_steps: must be set once, got 2 and 3"),
    ],
)
def test_a_bad_profile_is_refused_in_one_line(tmp_path, text, part):
    with pytest.raises(ConfigError) as caught:
        load_profile(written(tmp_path, text))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(profiles_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_profiles_load_by_name(path):
    assert load_profile(path.stem).seeds >= 1


TABLES = """
distill: {max_steps: 20, batch_size: 2}
seeds: 3
tables:
  depth_ablation: {seeds: 5, calibration: {num_sequences: 32}, distill.max_steps: 40}
  search_ablation: {search_space: {num_hidden_layers: [2, 1]}}
"""


def test_a_profile_may_have_other_values_for_a_table(tmp_path):
    path = written(tmp_path, TABLES)
    base = {"distill.max_steps": 20, "distill.batch_size": 2}
    assert load_profile(path) == load_profile(path, "loss_ablation") == Profile(override(Cell(), base), 3)
    changed = base | {"calibration.num_sequences": 32, "distill.max_steps": 40}
    assert load_profile(path, "depth_ablation") == Profile(override(Cell(), changed), 5)
    assert load_profile(path, "search_ablation").search_space == SearchSpace(num_hidden_layers=(2, 1))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("tables: {depth_ablation: {distill: {max_stepz: 1}}}", "distill.max_steps"),
        ("tables: {depth_ablation: {seeds: 0}}", "tables.depth_ablation.seeds"),
        ("tables: {depth_ablation: 3}", "tables"),
        ("tables: 3", "tables"),
        ("tables: {depht_ablation: {seeds: 2}}", "depth_ablation"),
    ],
)
def test_the_values_for_all_tables_are_checked_whichever_runs(tmp_path, text, field):
    with pytest.raises(ConfigError, match=field):
        load_profile(written(tmp_path, text), "loss_ablation", ["depth_ablation", "loss_ablation"])


def test_an_unknown_profile_is_refused():
    with refuses("profile", "'no-such-profile'", "quick"):
        load_profile("no-such-profile")


# The space of a search


def test_a_profile_may_hold_a_space():
    plain = {
        "cell": {},
        "search_space": {
            "num_hidden_layers": [6, 0.5, None],
            "expansion": [2.5, 3],
            "hidden_size": [1.0],
            "min_params": 0.4,
            "max_params": 9_000,
        },
    }
    space = SearchSpace(
        num_hidden_layers=(6, 0.5, None), expansion=(2.5, 3.0), hidden_size=(1.0,), min_params=0.4, max_params=9_000
    )
    assert build(Profile, plain) == Profile(Cell(), search_space=space)
    assert Profile(Cell()).search_space is None


def test_a_profiles_space_is_read_beside_its_cell(tmp_path):
    text = "seeds: 2\nsearch: {layers: [6, 0.5], heads: [4], most: 1_000}\nstudent: {hidden: null}\n"
    space = SearchSpace(num_hidden_layers=(6, 0.5), num_attention_heads=(4,), max_params=1000)
    expected = Profile(override(Cell(), {"prune.hidden_size": None}), seeds=2, search_space=space)
    assert load_profile(written(tmp_path, text)) == expected
    assert load_profile(written(tmp_path, "seeds: 2")).search_space is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "search: {layer: [6]}",
            "search_space.layer: unknown field; perhaps you meant 'search_space.num_hidden_layers'",
        ),
        (
            "search: {layers: [six]}",
            "search_space.num_hidden_layers.0: must be a valid integer or a valid number, got 'six'",
        ),
        (
            "search: {layers: [auto]}",
            "search_space.num_hidden_layers.0: must be a valid integer or a valid number, got 'auto'",
        ),
        ("search: {layers: 6}", "search_space.num_hidden_layers: must be a valid"),
        ("search: {most: many}", "search_space.max_params: must be a valid integer or a valid number, got 'many'"),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(tmp_path, text, part):
    with pytest.raises(ConfigError) as caught:
        load_profile(written(tmp_path, text))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
