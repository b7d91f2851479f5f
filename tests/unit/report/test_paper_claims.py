"""The list of the papers' claims covers every claim of a table, and names only existing tables."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from tables import TABLES

from lit_prune.config.profiles import load_profile
from lit_prune.report.claims_summary import PAPERS, paper_of
from lit_prune.report.paper_claims import NO_TABLE, read, shown


def test_every_line_is_of_a_paper_and_names_tables_or_says_why_there_is_none():
    found = read()
    assert set(found["paper"]) == set(PAPERS)
    assert {name for names in found["tables"] for name in names} == {*TABLES, "cost"}
    assert all(line.tables or line.why for line in found.itertuples())
    assert (found[["place", "claim"]].map(len) > 0).all(axis=None)
    assert not found.duplicated(["paper", "claim"]).any()


@pytest.mark.parametrize("name", TABLES)
def test_every_claim_of_a_table_stands_in_the_ledger_at_its_place(name, tmp_path):
    table = importlib.import_module(f"lit_prune.experiments.{name}").TABLE.at(load_profile("quick"), Path(tmp_path))
    lines = read()[[name in tables for tables in read()["tables"]]]
    places = set(zip(lines["paper"], lines["place"].str.removeprefix("best "), strict=True))
    claimed = {
        (paper_of(table, c.source), c.family.removeprefix(f"{paper_of(table, c.source)}, "))
        for c in (*table.claims, *table.accuracy_claims)
    }
    assert claimed <= places


def test_a_reader_sees_which_claims_have_no_table():
    found, lines = shown(), read()
    without = [not tables for tables in lines["tables"]]
    assert 0 < sum(without) < len(lines)
    assert found["here"].str.startswith(NO_TABLE).to_list() == without
