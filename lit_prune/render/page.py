"""Set up the HTML templates: the parts shared by the page of one table and the page of all. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune.config.overrides import plain_of
from lit_prune.config.table import LEVEL, SMALLEST_EFFECT
from lit_prune.escape import html_text
from lit_prune.render import wording
from lit_prune.render.answer import answer_line
from lit_prune.render.details import by_seed, cost
from lit_prune.render.numbers import number
from lit_prune.render.typography import unbroken

if TYPE_CHECKING:
    from jinja2 import Environment

    from lit_prune.report import Report

FOLDER = Path(__file__).parent


def environment(*folders: Path) -> Environment:
    """Return the Jinja environment of `folders` and of this one; an undefined name is an error.

    Strings are escaped, except `Markup`. The filter `unbroken` is that of `typography`.
    """
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, FOLDER]), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=html_text,
    )  # fmt: skip
    found.globals |= {"level": LEVEL, "smallest": SMALLEST_EFFECT}
    found.filters["unbroken"] = unbroken
    return found


def context(report: Report) -> dict[str, Any]:
    """Return the texts of a report, without figures: the variable `context` of the templates."""
    import yaml

    from lit_prune.report.claims_summary import standardize  # pandas comes with it
    from lit_prune.report.command import command

    main, effects = wording.main_table(report), standardize(report.verdicts)
    main.insert(2, "95\u00a0%\u00a0t", wording.intervals(report))
    claims = wording.claims_table(report).assign(d=[number(effect, 1, "+") for effect in effects])
    return {
        "table": report.table, "profile": report.profile, "answer": answer_line(report),
        "headline": wording.headline(report), "order": wording.order(report), "main": main,
        "kinds": [" ".join(sorted(kind)) for kind in wording.kinds(report)],
        "spread": [wording.has_spread(column) for name, column in main.items()],
        "claims": claims.to_dict("records"), "marks": wording.VERDICTS,
        "agreement": wording.agreement(report), "warnings": wording.warnings(report), "absent": wording.absent(report),
        "failed": [f"{row}, seed {seed}: {error}" for row, seed, error in report.failures],
        "notes": wording.notes(report), "ranks": wording.rank_table(report), "flips": wording.flips(report),
        "seeds": by_seed(report), "cost": cost(report), "command": command(report),
        "provenance": wording.provenance(report),
        # JSON turns tuples into lists, which YAML has.
        "recipe": yaml.safe_dump(json.loads(json.dumps(plain_of(report.cell))), sort_keys=False),
    }  # fmt: skip
