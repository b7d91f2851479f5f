"""Grids and tables: their algebra, and what is refused when they are made."""

from __future__ import annotations

import pytest
from toy import LOSSES, table

from lit_prune.config.table import Claim, Grid, axis, seeds

# Algebra


def test_an_axis_has_a_point_for_each_value_in_order():
    assert list(axis("a", 3, 1, 2)) == [{"a": 3}, {"a": 1}, {"a": 2}]
    assert list(seeds(3)) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    assert list(seeds(2, ("a", "b"))) == [{"a": 0, "b": 0}, {"a": 1, "b": 1}]


def test_a_product_combines_every_point_with_every_other_left_slowest():
    assert list(axis("a", 1, 2) * axis("b", 3, 4)) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]


def test_a_sum_chains():
    assert list(axis("a", 1) + axis("b", 2)) == [{"a": 1}, {"b": 2}]


def test_products_bind_closer_and_distribute_over_sums():
    a, b, c = axis("a", 1, 2), axis("b", 3), axis("c", 4, 5)
    assert list((a + b) * c) == list(a * c + b * c)
    assert list(a + b * c) == [{"a": 1}, {"a": 2}, {"b": 3, "c": 4}, {"b": 3, "c": 5}]


def test_the_product_with_no_values_is_empty_and_with_one_point_is_itself():
    a = axis("a", 1, 2)
    assert list(a * axis("b")) == []
    assert a * Grid(({},)) == a


def test_the_axes_are_the_swept_fields_in_order_of_appearance():
    assert (axis("b", 1) * axis("a", 1, 2) + axis("c", 1) * axis("b", 2)).axes() == ("b", "a", "c")


# Tables


@pytest.mark.parametrize(
    "wrong",
    [
        {"baseline": "klld"},
        {"paper": {"kld": {"lm_loss": 2.0}, "klld": {"lm_loss": 3.0}}},
        {"claims": (Claim("kld", "klld", "Table 0"),)},
        {"claims": (Claim("klld", "kld", "Table 0"),)},
    ],
)
def test_a_row_that_no_point_is_labelled_is_refused_at_construction(wrong):
    with pytest.raises(ValueError, match=r"toy: no point of the grid is labelled \['klld'\]"):
        table(**wrong)


def test_two_different_points_with_one_label_are_refused_at_construction():
    with pytest.raises(ValueError, match="different points of the grid are labelled 'kld'"):
        table(grid=axis("distill.ce_weight", 0.0, 1.0) * axis("distill.logit_loss", *LOSSES))


def test_a_claim_reads_as_the_order_it_states():
    claims = (
        Claim("kld", "mse", ""),
        Claim("mse", "kld", "", metric="speedup"),
        Claim("kld", "mse", "", tolerance=0.1),
    )
    judged = table(claims=claims, metrics=("lm_loss", "speedup"), higher_is_better=("speedup",))
    assert list(map(judged.stated, claims)) == ["kld < mse", "mse > kld (speedup)", "kld = mse within 0.1"]
    assert judged.relation(claims[1]) == "mse > kld"


def test_a_claim_is_judged_by_the_metric_it_names_or_the_first():
    claims = (Claim("kld", "mse", ""), Claim("mse", "kld", "", metric="kd_loss"))
    judged = table(claims=claims, metrics=("lm_loss", "kd_loss"))
    assert [judged.metric_of(claim) for claim in claims] == ["lm_loss", "kd_loss"]


def test_a_claim_about_what_is_not_measured_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"toy: no metric is named \['kd_los'\]"):
        table(claims=(Claim("kld", "mse", "", metric="kd_los"),), metrics=("lm_loss", "kd_loss"))
    with pytest.raises(ValueError, match=r"toy: no metric is named \['speed'\]"):
        table(metrics=("lm_loss", "speedup"), higher_is_better=("speed",))


def test_a_reference_that_has_the_name_of_a_row_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"toy: \['mse'\] are rows and references"):
        table(reference_rows={"mse": {"distill.max_steps": 0}})


def test_points_that_differ_in_what_a_seed_sets_share_a_label():
    draws = axis("distill.logit_loss", *LOSSES) * axis("calibration.seed", 5, 6)
    assert table(grid=draws, seed_fields=("seed", "calibration.seed")).seed_fields == ("seed", "calibration.seed")
    with pytest.raises(ValueError, match="different points of the grid are labelled 'kld'"):
        table(grid=draws)
