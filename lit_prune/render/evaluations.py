"""Render evaluation results in the layout of the papers' Tables 2 to 4, in a terminal and as files. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lit_prune.config import ConfigError
from lit_prune.escape import printable, terminal_text
from lit_prune.evaluate.benchmark_tasks import KNOWN, PAPER
from lit_prune.render import wording
from lit_prune.render.files import latex_table, markdown_list, markdown_table, write_texts
from lit_prune.render.numbers import NONE, amount, number, p_value
from lit_prune.report.evaluations import SIZES, compare_models, published
from lit_prune.store import Node

if TYPE_CHECKING:
    from rich.console import Console

_SIZES = {"parameters": "parameters", "parameters_without_embeddings": "without embeddings"}
# Metrics from 0 to 1, which the papers print in per cent.
_SHARES = ("acc", "exact_match", "pass", "rouge", "f1", "em")


@dataclass(frozen=True)
class BenchmarkTable:
    """Scores of models, and their table."""

    scores: pd.DataFrame
    """The frame of `compare_models`."""
    layout: pd.DataFrame
    """Text: a line per benchmark below the sizes; columns for each model, its difference, and the papers' models."""
    source: str
    """Source of the papers' columns; empty without them."""


def benchmark_table(nodes: Mapping[str, Sequence[Node]], beside: str | None = "minitron_8b") -> BenchmarkTable:
    """Return the results of models by label in the layout of Minitron's Tables 2 to 4, compared with the first one.

    `beside` names a table of the papers, see `published`, whose columns are added for the benchmarks it has.

    Raises:
        ConfigError: if the papers have no such table.
    """
    scores, table = compare_models(nodes), None if beside is None else published(beside)
    known = [_is_shown(task, metric) for task, metric in zip(scores["task"], scores["metric"], strict=True)]
    shown = scores[pd.Series(known, index=scores.index, dtype=bool)]
    questions = shown.drop_duplicates(["question", "metric"])
    has_paper = table is not None and any(task in table["scores"] for task in questions["task"])
    models = list(nodes)
    lines = [_size_line(scores, models, size, table if has_paper else None) for size in SIZES]
    for line in questions.to_dict("records"):
        same = shown[(shown["question"] == line["question"]) & (shown["metric"] == line["metric"])]
        by_model = {row["model"]: row for row in same.to_dict("records")}
        lines.append(_score_line(line, by_model, models, table if has_paper else None))
    source = table["source"] if table is not None and has_paper else ""
    layout = pd.DataFrame(lines).reindex(columns=_columns(models, table if has_paper else None))
    return BenchmarkTable(scores, layout.fillna("").astype(str), source)


def check_labels(models: Sequence[str], beside: str | None) -> None:
    """Check that models with these labels fit in one table.

    Raises:
        ConfigError: if two columns would have the same name, or the papers have no such table.
    """
    table = None if beside is None else published(beside)
    columns = list(map(printable, _columns(models, table)))
    if twice := [name for place, name in enumerate(columns) if name in columns[:place]]:
        raise ConfigError(f"--model: {twice[0]!r} is the name of another column of the table; rename it: label=MODEL")


def _columns(models: Sequence[str], table: Mapping[str, Any] | None) -> list[str]:
    compared = [column for name in models[1:] for column in (name, _minus(name, models[0]))]
    return ["benchmark", "n", *models[:1], *compared, *([] if table is None else _paper_columns(table))]


def _minus(name: str, first: str) -> str:
    return f"{name} − {first}"


def _is_shown(task: str, metric: str) -> bool:
    """Return whether a metric is shown: for a benchmark of the papers only the one they report."""
    known = KNOWN.get(task)
    return known is None or known.metric is None or known.metric == metric


def _size_line(
    scores: pd.DataFrame, models: Sequence[str], size: str, table: Mapping[str, Any] | None
) -> dict[str, str]:
    first = scores.drop_duplicates("model").set_index("model")[size].reindex(models)
    line = {"benchmark": _SIZES[size], "n": ""} | {name: amount(first[name]) for name in models}
    return line | ({} if table is None else dict(zip(_paper_columns(table), map(str, table[size]), strict=True)))


def _score_line(
    line: Mapping[str, Any], by_model: Mapping[str, Any], models: Sequence[str], table: Mapping[str, Any] | None
) -> dict[str, str]:
    metric, task = line["metric"], line["task"]
    texts = {"benchmark": _named(line), "n": f"{int(line['n'])}"}
    for name in models:
        texts[name] = _score(by_model.get(name), metric)
        if name != models[0]:
            texts[_minus(name, models[0])] = _difference(by_model.get(name), metric)
    if table is not None:
        theirs = table["scores"].get(task, [None] * len(table["models"]))
        texts |= {
            name: NONE if value is None else f"{value} ({KNOWN[task].shots})"
            for name, value in zip(_paper_columns(table), theirs, strict=True)
        }
    return texts


def _paper_columns(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} (paper)" for name in table["models"]]


def _score(line: Mapping[str, Any] | None, metric: str) -> str:
    if line is None:
        return NONE
    scale, digits = _scale(metric)
    stderr = "" if math.isnan(line["stderr"]) else f" ± {number(scale * line['stderr'], digits)}"
    return number(scale * line["value"], digits) + stderr


def _difference(line: Mapping[str, Any] | None, metric: str) -> str:
    if line is None or math.isnan(line["difference"]):
        return NONE
    scale, digits = _scale(metric)
    middle, low, high = (scale * line[name] for name in ("difference", "low", "high"))
    if math.isnan(low):
        return number(middle, digits, "+")
    return f"{number(middle, digits, '+')} [{number(low, digits)}, {number(high, digits)}], p {p_value(line['p'])}"


def _scale(metric: str) -> tuple[int, int]:
    return (100, 1) if metric.startswith(_SHARES) else (1, 3)


def all_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return every score of a store, from `read`, as text: a line per question and metric, a column per model."""
    shown = scores.assign(
        benchmark=[_named(line) for line in scores.to_dict("records")],
        score=[_score(line, line["metric"]) for line in scores.to_dict("records")],
        model=_distinct_names(scores),
    )
    index = ["question", "benchmark", "n"]
    table = shown.pivot_table(index=index, columns="model", values="score", aggfunc="last", sort=False)
    table = table.reindex(columns=sorted(table)).fillna(NONE).rename_axis(columns=None)
    # Concatenated, since a model may have the name of another column.
    about = table.index.to_frame(index=False).drop(columns="question")
    return pd.concat([about, table.reset_index(drop=True)], axis="columns").astype(str)


def _named(line: Mapping[str, Any]) -> str:
    shots = "" if pd.isna(line["shots"]) else f" ({int(line['shots'])})"
    sizes = {name: int(line[name]) for name in ("window", "stride") if not pd.isna(line[name])}
    if sizes.get("stride") == sizes.get("window"):
        sizes.pop("stride", None)
    rolling = ["rolling"] if line["windows"] == "rolling" else []
    lower = ["bfloat16"] if line["dtype"] == "bfloat16" else []
    how = "".join(f", {part}" for part in [*rolling, *(f"{name} {size}" for name, size in sizes.items()), *lower])
    return f"{line['title']}{shots} {line['metric'].partition(',')[0]}{how}"


def _distinct_names(scores: pd.DataFrame) -> pd.Series:
    """Return the names of models, with the fingerprint if different models share a name."""
    shared = scores.groupby("model")["fingerprint"].transform("nunique") > 1
    return scores["model"].where(~shared, scores["model"] + " " + scores["fingerprint"].str[:6])


def notes(table: BenchmarkTable) -> list[str]:
    """Return sentences that explain the numbers."""
    sentences = ["Scores in per cent ± standard error over the documents; perplexity and bits per byte as they are."]
    if table.scores["difference"].notna().any():
        sentences.append(
            "A difference is that over the same documents, with the 95 % interval and p of a paired bootstrap: it is "
            "about these weights, not about other seeds."
        )
    sentences += [
        f"{model}: prompts longer than it reads lost their beginning ({titles})." for model, titles in _cut(table)
    ]
    unread = table.scores[table.scores["unread"].astype(float) > 0].drop_duplicates(["model", "title"])
    for line in unread.to_dict("records"):
        sentences.append(
            f"{line['model']}: its tokenizer loses {line['unread']:.1%} of {line['title']}, and bits per byte are too "
            "few for that."
        )
    if (table.scores["metric"] == "perplexity").any():
        sentences.append("Perplexity is by token: it compares models of one tokenizer. Bits per byte compare all.")
    sentences += [*_windows(table), *_other_shots(table)]
    limited = table.scores[table.scores["limit"].notna()]
    if not limited.empty:
        sentences.append("Where there was a --limit, only the first documents of each task count.")
    if table.source:
        sentences.append(
            f"The papers' columns are those of {table.source}; in brackets, examples before each document."
        )
    return sentences


def _windows(table: BenchmarkTable) -> Iterator[str]:
    """Yield sentences about the windows of texts."""
    texts = table.scores[table.scores["windows"].notna()].drop_duplicates(["title", "window", "stride", "windows"])
    for line in texts.to_dict("records"):
        window, stride = int(line["window"]), int(line["stride"])
        if line["windows"] == "rolling":
            yield (
                f"{line['title']}: lm-eval's rolling windows of {window:,} tokens, which score every token from the "
                "first, and lm-eval's counts of bytes and words."
            )
        else:
            apart = "" if stride == window else f", {stride:,} apart"
            yield (
                f"{line['title']}: windows of {window:,} tokens{apart}, each token scored once. Where documents are "
                "longer than a window, lm-eval gives the last one more context and finds fewer bits per byte: "
                "--windows rolling measures as it does."
            )


def _other_shots(table: BenchmarkTable) -> Iterator[str]:
    """Yield sentences about benchmarks with another number of examples than in the papers' columns."""
    if not table.source:
        return
    for line in table.scores.drop_duplicates(["task", "shots"]).to_dict("records"):
        known = KNOWN.get(line["task"])
        if known in PAPER and line["shots"] != known.shots:
            yield (
                f"{known.title}: measured with {int(line['shots'])} examples before each document, by the papers with "
                f"{known.shots}. The numbers are not comparable; --num-fewshot {known.shots} does as the papers did."
            )


def _cut(table: BenchmarkTable) -> Iterator[tuple[str, str]]:
    """Yield each model with the tasks whose prompts were truncated, and their share."""
    cut = table.scores[table.scores["cut"].astype(float) > 0].drop_duplicates(["model", "title"])
    for model, lines in cut.groupby("model", sort=False):
        yield (
            str(model),
            ", ".join(f"{title} {share:.0%}" for title, share in zip(lines["title"], lines["cut"], strict=True)),
        )


def print_table(table: BenchmarkTable, console: Console) -> None:
    """Print the table, in parts if the console is narrower, and the notes on its numbers."""
    from rich import box
    from rich.table import Table

    frame = table.layout.map(printable).rename(columns=_folded)
    for part in wording.parts(frame, console.width, gap=2):
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name in part:
            left = name == "benchmark" or wording.has_spread(part[name])
            shown.add_column(
                terminal_text(name, keep="\n"), justify="left" if left else "right", no_wrap=name != "benchmark"
            )
        for line in part.to_numpy().tolist():
            shown.add_row(*map(terminal_text, line))
        console.print(shown)
        console.print()
    for note in notes(table):
        console.print(terminal_text(f"· {note}", "dim"))


def _folded(column: str) -> str:
    """Return a column's name on two lines."""
    return printable(column).replace(" − ", "\n− ").replace(" (paper)", "\n(paper)")


def write_table(table: BenchmarkTable, folder: Path) -> list[Path]:
    """Write benchmarks.csv (a line per score), benchmarks.md and benchmarks.tex (the table).

    Raises:
        ConfigError: if the folder cannot be written.
    """
    texts = {
        "benchmarks.csv": table.scores.to_csv(index=False),
        "benchmarks.md": f"{markdown_table(table.layout, table.layout)}\n\n{markdown_list(notes(table))}\n",
        "benchmarks.tex": _latex(table),
    }
    paths = {folder / name: text for name, text in texts.items()}
    write_texts(folder, paths)
    return list(paths)


def _latex(table: BenchmarkTable) -> str:
    """Return a booktabs table."""
    columns = ("l" if name == "benchmark" else "r" for name in table.layout)
    return "% \\usepackage{booktabs}\n" + latex_table(table.layout, columns, "tab:benchmarks")
