"""Tables: their rows and claims, and validation at construction."""

from __future__ import annotations

import pytest
from toy import table

from lit_prune.config.table import ORDER, UNPRUNED, Claim, Table


def test_the_swept_fields_are_those_of_all_rows_in_order_of_appearance():
    rows = {"kld": {"b": 1, "a": 1}, "mse": {"c": 1, "b": 2}}
    assert table(rows=rows).swept == ("b", "a", "c")


def test_the_teacher_is_the_reference_row_of_a_table_that_names_none():
    fields = {"question": "?", "source": "nowhere", "baseline": "kld"}
    assert Table("toy", rows={"kld": {}}, **fields).reference_rows == {"teacher": UNPRUNED}


@pytest.mark.parametrize(
    "wrong",
    [
        {"baseline": "klld"},
        {"paper": {"kld": {"lm_loss": 2.0}, "klld": {"lm_loss": 3.0}}},
        {"claims": (Claim("kld", "klld", "Table 0"),)},
        {"claims": (Claim("klld", "kld", "Table 0"),)},
    ],
)
def test_a_row_that_is_not_there_is_refused_at_construction(wrong):
    with pytest.raises(ValueError, match=r"^toy: .*\['klld'\]"):
        table(**wrong)


def test_a_claim_reads_as_the_order_it_states():
    claims = (
        Claim("kld", "mse", ""),
        Claim("mse", "kld", "", metric="speedup"),
        Claim("kld", "mse", "", tolerance=0.1),
        Claim("kld", "mse", "", tolerance=0.1, or_better=True),
        Claim("kld", "mse", "", metric="speedup", tolerance=0.1, or_better=True),
        Claim("kld", "mse", "", before="lm_loss_before"),
        Claim("75 %", "0 %", "", metric=ORDER),
    )
    metrics = ("lm_loss", "speedup", "lm_loss_before")
    claimed = table(claims=claims, metrics=metrics, higher_is_better=("speedup",))
    assert list(map(claimed.stated, claims)) == [
        "kld < mse",
        "mse > kld (speedup)",
        "kld = mse within 0.1",
        "kld < mse + 0.1",
        "kld > mse - 0.1 (speedup)",
        "kld < mse, and kld > mse before",
        "75 % > 0 % of the steps (order_agreement)",
    ]
    assert claimed.relation(claims[1]) == "mse > kld"


def test_a_claim_is_judged_by_the_metric_it_names_or_the_first():
    claims = (Claim("kld", "mse", ""), Claim("mse", "kld", "", metric="kd_loss"))
    claimed = table(claims=claims, metrics=("lm_loss", "kd_loss"))
    assert [claimed.metric_of(claim) for claim in claims] == ["lm_loss", "kd_loss"]


def test_a_claim_about_what_is_not_measured_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"^toy: metrics .*\['kd_los'\]"):
        table(claims=(Claim("kld", "mse", "", metric="kd_los"),), metrics=("lm_loss", "kd_loss"))
    with pytest.raises(ValueError, match=r"^toy: metrics .*\['kd_loss_befor'\]"):
        table(claims=(Claim("kld", "mse", "", before="kd_loss_befor"),), metrics=("lm_loss", "kd_loss_before"))
    with pytest.raises(ValueError, match=r"^toy: metrics .*\['speed'\]"):
        table(metrics=("lm_loss", "speedup"), higher_is_better=("speed",))


def test_a_reference_that_has_the_name_of_a_row_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"^toy: .*\['mse'\]"):
        table(reference_rows={"mse": {"distill.max_steps": 0}})
