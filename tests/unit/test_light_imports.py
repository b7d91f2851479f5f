"""Commands that only describe, request or read import nothing slow: no torch, and the quickest no pandas."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from paths import ROOT

NO_TORCH = ("torch", "lightning", "transformers", "lm_eval")
NO_PANDAS = (*NO_TORCH, "pandas", "scipy", "matplotlib", "jinja2")
HELP = "from lit_prune.cli.evaluate import main\ntry: main(['--help'])\nexcept SystemExit: pass"
METHODS = "from lit_prune.cli.main import main\ntry: main(['prune', '--help'])\nexcept SystemExit: pass"
READ = (
    "from lit_prune.report.load import gather; from lit_prune.store import Store\n"
    "assert gather(Store('nowhere'), tables=['loss_ablation'])"
)
STATEMENTS = {
    NO_PANDAS: [
        *(
            f"import lit_prune.{name}"
            for name in (
                "config", "config.table", "config.profiles", "registry", "store", "experiments.loss_ablation",
                "pipeline.expand", "pipeline.request", "render.files", "render.terminal", "cli.process", "cli.table",
            )
        ),
        HELP,
    ],
    NO_TORCH: [
        *(
            f"import lit_prune.{name}"
            for name in (
                "report", "render.catalog", "render.evaluations", "evaluate.runner", "api.compress", "api.measure",
                "api.tables", "cli.compress", "cli.report", "cli.figures", "cli.dashboard", "integrations.wandb.server",
            )
        ),
        "import lit_prune as lp; lp.prune, lp.distill, lp.run_table, lp.evaluate, dir(lp)",
        READ, METHODS,
    ],
}  # fmt: skip
SCRIPT = """
import json, sys
forbidden, statements = json.loads(sys.argv[1])
imported = {}
class Refuse:
    def find_spec(name, *_):
        if name.partition(".")[0] in forbidden:
            imported[statement].append(name)
            raise ImportError(name)
sys.meta_path.insert(0, Refuse)
for statement in statements:
    imported[statement] = []
    try:
        exec(statement, {})
    except ImportError:
        assert imported[statement]
print(json.dumps(imported))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """What each statement would import of what it must not; one process for all with the same bounds."""
    found = {}
    for request in STATEMENTS.items():
        command = [sys.executable, "-c", SCRIPT, json.dumps(request)]
        output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        found |= json.loads(output.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("statement", [statement for group in STATEMENTS.values() for statement in group])
def test_nothing_slow_is_imported(statement, imported):
    assert imported[statement] == []


def test_what_is_slow_would_be_seen():
    command = [sys.executable, "-c", SCRIPT, json.dumps((NO_TORCH, ["import lit_prune.losses.logit"]))]
    output = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(json.loads(output.stdout).values())
