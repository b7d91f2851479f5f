"""A report as the templates of this folder tell it: what the page of one table and that of all share. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune.render import words
from lit_prune.render.escape import html_text
from lit_prune.settings import plain_of

if TYPE_CHECKING:
    from jinja2 import Environment

    from lit_prune.report import Report

FOLDER = Path(__file__).parent


def environment(*folders: Path) -> Environment:
    """The templates of `folders` and of this one; a name they are not given is an error.

    Every string they are given is escaped, but markup that is marked as such.
    """
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, FOLDER]), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=html_text,
    )  # fmt: skip


def told(report: Report) -> dict[str, Any]:
    """Everything of a report but its figures, as text: `told` of the templates."""
    import yaml

    main = words.main_table(report)
    return {
        "table": report.table, "profile": report.profile, "headline": words.headline(report), "main": main,
        "kinds": words.kinds(report), "spread": [words.has_spread(column) for _, column in main.items()],
        "claims": words.claims_table(report).to_dict("records"), "marks": words.VERDICTS,
        "agreement": words.agreement(report), "warnings": words.warnings(report), "absent": words.absent(report),
        "failed": words.failed(report), "notes": words.notes(report), "ranks": words.rank_table(report),
        "flips": words.flips(report), "command": words.command(report), "provenance": words.provenance(report),
        # Through JSON, which turns tuples into the lists that YAML has.
        "recipe": yaml.safe_dump(json.loads(json.dumps(plain_of(report.cell))), sort_keys=False),
    }  # fmt: skip
