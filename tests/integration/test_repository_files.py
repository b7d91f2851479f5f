"""Repository files that name the same thing agree: version, checks, test target, issue forms."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from paths import ROOT

import lit_prune


def test_every_file_names_the_same_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert lit_prune.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


def test_continuous_integration_runs_the_test_target():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert "make test" in [step.get("run") for job in jobs for step in job["steps"]]


def test_hooks_run_the_tools_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    tools = {line.strip().removeprefix("$(BIN)/").split()[0] for line in check.splitlines()}
    hooked = {hook["entry"].removeprefix(".venv/bin/").split()[0] for hook in hooks}
    assert hooked <= tools
    assert "ruff" in hooked


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_an_issue_form_has_the_fields_that_a_form_needs(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert set(form) == {"blank_issues_enabled"}
        return
    assert {"name", "description", "body"} <= set(form)
    assert all(part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown")
