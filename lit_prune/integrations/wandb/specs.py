"""Build the dashboards of a table in Weights & Biases, a workspace and a report, without key or network.

Runs are selected by address and grouped by fields of the cell, which do not depend on the table that computed them.
Names of panels and run sets depend only on their content, so that saving again changes nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2.internal import ReportViewspec
from wandb_workspaces.workspaces.internal import View

from lit_prune.config.overrides import described
from lit_prune.config.table import Table
from lit_prune.pipeline.expand import Entry
from lit_prune.store.address import digest

BY_STEP, BY_TOKENS = "trainer/global_step", "tokens"
_MEANS: dict[str, Any] = {"groupby": wr.Config("row"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
_TITLE = 128
"""Most characters of a title in W&B."""
_SCALAR = (str, int, float, bool, type(None))


@dataclasses.dataclass(frozen=True)
class Board:
    """Content and place of the dashboards of a table at a profile."""

    table: Table
    profile: str
    cells: tuple[Entry, ...]
    """The cells of the table's rows, without references."""
    project: str
    entity: str
    """Owner of the project; empty if unknown."""
    changes: tuple[str, ...] = ()
    """Arguments of the command that change settings or rows of the table at the profile."""

    @functools.cached_property
    def axes(self) -> tuple[str, ...]:
        """A minimal list of cell fields that distinguish the rows; `row` if their values are not scalars."""
        points = [_leaves(entry.cell) for entry in self.cells]
        swept = dict.fromkeys(path for e in self.cells for path in e.changes if path not in self.table.seed_fields)
        scalar = [path for path in swept if all(isinstance(point.get(path), _SCALAR) for point in points)]
        rows = [{"row": entry.row, **point} for entry, point in zip(self.cells, points, strict=True)]
        # Drops redundant fields, first the name of the row, then the fields swept last.
        needed = [path for path in scalar if len({point.get(path) for point in rows}) > 1] + ["row"]
        for path in reversed(needed):
            fewer = [other for other in needed if other != path]
            if fewer and _distinguish_rows(rows, fewer):
                needed = fewer
        return tuple(needed)

    @property
    def terms(self) -> list[str]:
        """Terms that the cells log during retraining, the loss first; empty if no cell is retrained."""
        recipes = [entry.cell.distill for entry in self.cells if entry.cell.distill.max_steps]
        used = {
            "loss": bool(recipes), "ce_loss": any(r.ce_weight for r in recipes),
            "kd_loss": any(r.kd_weight for r in recipes),
            "hidden_loss": any(r.alpha for r in recipes), "grad_norm": bool(recipes), "lr": bool(recipes),
        }  # fmt: skip
        return [name for name, is_used in used.items() if is_used]

    @property
    def validation(self) -> list[str]:
        """Validation losses during retraining; empty if the cells have no validations."""
        checked = any(entry.cell.evaluation.num_validations and entry.cell.distill.max_steps for entry in self.cells)
        return ["validation/lm_loss", "validation/kd_loss"] if checked else []

    @property
    def baseline(self) -> str | None:
        """Address of the baseline's first seed."""
        return next((entry.key for entry in self.cells if entry.row == self.table.baseline), None)

    @property
    def num_rows(self) -> int:
        """Number of rows, each a line or a bar."""
        return len({entry.row for entry in self.cells})


def workspace_of(board: Board) -> ws.Workspace:
    """Return the saved view of a table: its runs by row with the baseline pinned, and all panels."""
    axes = [_config(path) for path in board.axes]
    metrics = [f"summary:{metric}" for metric in board.table.metrics]
    workspace = ws.Workspace(
        entity=board.entity, project=board.project, name=_title(board), sections=_sections(board),
        settings=ws.WorkspaceSettings(
            x_axis=BY_STEP, smoothing_type="none", max_runs=max(10, board.num_rows), tooltip_number_of_runs="all_runs"
        ),
        runset_settings=ws.RunsetSettings(
            filters=_filters(board), groupby=[expr.Config(path) for path in axes],
            order=[expr.Ordering(expr.Summary(board.table.metrics[0]), ascending=True)],
            pinned_columns=["run:displayName", *metrics, *(f"config:{_stored(path)}" for path in axes)],
            baseline_run=board.baseline,
        ),
    )  # fmt: skip
    workspace._internal_runset_id = _name(board, "workspace")
    return workspace


def report_of(board: Board, answer: str, *, project: bool = False) -> wr.Report:
    """Return the W&B report of a table: the paper's table, ours and the verdicts as Markdown, then the panels.

    Its run set names the project only if `project` is set, as looking it up needs a key.
    """
    runs = wr.Runset(
        name=board.table.name, filters=_filters(board), groupby=[f"config.{_config(path)}" for path in board.axes],
        order=[wr.OrderBy(wr.SummaryMetric(board.table.metrics[0]), ascending=True)],
        **({"entity": board.entity, "project": board.project} if project else {}),
    )  # fmt: skip
    runs._id = _name(board, "report")
    sections = [(name, _placed(_named(board, f"report {name}", panels))) for name, panels in _panels(board)]
    grids = [(wr.H2(text=name), wr.PanelGrid(runsets=[runs], panels=panels)) for name, panels in sections]
    return wr.Report(
        project=board.project, entity=board.entity, title=_title(board), description=board.table.question,
        blocks=[wr.MarkdownBlock(text=answer), *itertools.chain.from_iterable(grids)], width="fluid",
    )  # fmt: skip


def view_text(workspace: ws.Workspace) -> str:
    """Return a workspace as JSON, in the form sent to the server."""
    return workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"


def view_of(text: str) -> ws.Workspace:
    """Return the workspace of `view_text`."""
    return ws.Workspace._from_model(View.model_validate_json(text))


def page_text(report: wr.Report) -> str:
    """Return a report as JSON, in the form sent to the server."""
    return report._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"


def page_of(text: str) -> wr.Report:
    """Return the report of `page_text`."""
    model = ReportViewspec.model_validate_json(text)
    report = wr.Report._from_model(model)
    report.width = model.spec.width  # not restored by from_model
    return report


def _sections(board: Board) -> list[ws.Section]:
    layout = ws.SectionLayoutSettings(columns=3, rows=2)
    return [
        ws.Section(name=name, panels=_named(board, name, panels), is_open=True, pinned=True, layout_settings=layout)
        for name, panels in _panels(board)
    ]


def _panels(board: Board) -> list[tuple[str, list[Any]]]:
    """Return title and panels of each section that is not empty."""
    first = board.table.metrics[0]
    final = [_bars(board, metric) for metric in dict.fromkeys(("lm_loss", *board.table.metrics))]
    columns = [*map(wr.Config, map(_config, board.axes)), wr.SummaryMetric(first)]
    compared = [
        wr.ParallelCoordinatesPlot(
            title=f"the grid and {first}",
            columns=[wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in columns],
        ),
        wr.RunComparer(diff_only="split"),
    ]
    sections = [
        ("Final", final),
        ("Losses by step", [_line(board, name, BY_STEP) for name in [*board.validation, *board.terms]]),
        ("Losses by tokens", [_line(board, n, BY_TOKENS) for n in [*board.validation, *board.terms] if n != "lr"]),
        ("Cells", compared),
    ]
    return [(name, panels) for name, panels in sections if panels]


def _line(board: Board, metric: str, x: str) -> wr.LinePlot:
    """Return the mean and standard error over the seeds of each row."""
    return wr.LinePlot(
        title=metric, x=x, y=[metric], title_x="step" if x == BY_STEP else x, title_y=metric,
        smoothing_type="none", max_runs_to_show=board.num_rows, **_MEANS,
    )  # fmt: skip


def _bars(board: Board, metric: str) -> wr.BarPlot:
    return wr.BarPlot(
        title=f"final {metric}", metrics=[wr.SummaryMetric(metric)], max_runs_to_show=len(board.cells),
        max_bars_to_show=board.num_rows, **_MEANS,
    )  # fmt: skip


def _filters(board: Board) -> list[expr.FilterExpr]:
    """Return filters for the cells of the table at this profile; its W&B group also has other profiles, and lacks cells
    that another table computed."""
    return [expr.Metric("JobType") == "cell", expr.Metric("ID").isin([entry.key for entry in board.cells])]


def _title(board: Board) -> str:
    title = " ".join([f"{board.table.name}, {board.profile}", *board.changes])
    # W&B accepts no symbols such as = in a title.
    plain = "".join(" " if unicodedata.category(character)[0] in "SC" else character for character in title)
    return plain if len(plain) <= _TITLE else plain[: _TITLE - 3] + "..."


def _config(path: str) -> str:
    """Return the path of a cell's field in a run's config."""
    return path if path == "row" else f"cell.{path}"


def _stored(path: str) -> str:
    """Return a config path as W&B stores it, with `value` after the first name."""
    first, *rest = path.split(".")
    return ".".join([first, "value", *rest])


def _leaves(cell: Any) -> dict[str, Any]:
    """Return dotted path -> value, including sections."""
    leaves: dict[str, Any] = {}

    def visit(plain: dict[str, Any], prefix: str) -> None:
        for name, value in plain.items():
            leaves[prefix + name] = value
            if isinstance(value, dict):
                visit(value, f"{prefix}{name}.")

    visit(described(cell), "")
    return leaves


def _distinguish_rows(rows: Iterable[dict[str, Any]], paths: Sequence[str]) -> bool:
    """Return whether fields are constant within each row and different between rows."""
    found: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(path) for path in paths), set()).add(row["row"])
    names = [name for rows_of_point in found.values() for name in rows_of_point]
    return len(names) == len(set(names)) == len(found)


def _named(board: Board, section: str, panels: list[Any]) -> list[Any]:
    for place, panel in enumerate(panels):
        panel._id = _name(board, section, type(panel).__name__, str(place))
    return panels


def _placed(panels: list[Any]) -> list[Any]:
    """Place three panels per line of a report, whose width is 24."""
    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=8 * (place % 3), y=8 * (place // 3), w=8, h=8)
    return panels


def _name(board: Board, *parts: str) -> str:
    return digest([board.table.name, board.profile, *board.changes, *parts])
