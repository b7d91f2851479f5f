"""The benchmark of importance estimation runs and counts correctly; times are not asserted."""

import json

import pytest

from benchmarks.importance import FORWARD, main


@pytest.mark.slow
def test_it_prints_tables_and_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    # The pass without statistics and the one with all of them: the memory of each takes a process of its own.
    for what in list(FORWARD)[1:-1]:
        monkeypatch.delitem(FORWARD, what)
    small = ["--sequences", "3", "--tokens", "8", "--batch", "2", "--repeats", "2", "--layers", "2", "4"]
    main([*small, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [timing["what"] for timing in found["forward"]] == list(FORWARD)
    assert found["forward"][0]["ratio"] == 1
    # Four layers: 4 passes of 3, against one of 4 and then 3 + 2 + 1 + 0 behind the layers left out.
    assert found["removals, 4 layers"]["evaluations"] == {"naive": 12, "prefix reuse": 10}
    assert found["removals, 2 layers"]["evaluations"] == {"naive": 2, "prefix reuse": 3}
    printed = capsys.readouterr().out
    assert printed.count("| plain forward |") == len(found.get("memory", [])[:1]) + 1
    assert all(peak["peak"] >= peak["before"] > 100 for peak in found.get("memory", []))
