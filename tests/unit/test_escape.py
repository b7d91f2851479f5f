"""Names with markup, line breaks or escape sequences, through every writer of reports."""

from __future__ import annotations

import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from refusals import refuses
from rich.console import Console
from scored import FIRST, SECOND
from scored import answer as scored

from lit_prune.cli.evaluate import main
from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Cell, Corpus, Profile, Teacher
from lit_prune.config.overrides import override
from lit_prune.config.table import Claim, Table
from lit_prune.escape import latex_text, markdown_code, markdown_text, printable, terminal_text
from lit_prune.integrations.wandb.specs import Board, page_of, page_text, report_of
from lit_prune.pipeline.expand import entries
from lit_prune.render import files, terminal
from lit_prune.render.evaluations import all_scores, benchmark_table, check_labels, print_table, write_table
from lit_prune.render.exports import write
from lit_prune.report import Report, assemble
from lit_prune.report.evaluations import read
from lit_prune.report.load import Answer
from lit_prune.store import Store

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</pre><script>alert(1)</script>",
    "&lt;b&gt; & co",
    r"\input{x} $\alpha$ 50% #1 ~^",
    "[red]a[/red] [/x]",
    "[click](javascript:alert(1)) ![p](http://example.org/p.png)",
    "a|b `code` *bold* _under_ ~~gone~~",
    "```",
    "# heading",
    "- item",
    "1. one",
    "[2in] bracket",
    'id="final" #010203 font-family: x;',
)
# Not seen as it is: a line break, a terminal escape sequence, a byte of a name that is no UTF-8, reversed text.
UNSEEN = "two\nlines \x1b[31mred\x07 \udce9 \u202egnp"
SEEN = r"two lines \x1b[31mred\x07 \udce9 \u202egnp"


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: set[str] = set()
        self.text, self.targets = "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.targets += [value for name, value in attrs if name in ("href", "src", "onerror")]

    def handle_data(self, data: str) -> None:
        self.text += data


def from_markdown(text: str) -> Page:
    """Markdown as a reader that trusts it shows it: HTML passes through, links and tables are made."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_same_characters_in_a_paragraph_a_list_and_a_cell(text: str) -> None:
    escaped = markdown_text(text)
    page = from_markdown(f"{escaped}\n\n- {escaped}\n\n| a |\n|---|\n| {escaped} |\n")
    assert page.elements == {"p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.text.count(text) == 3


def test_plain_names_and_numbers_stay_as_they_are_in_markdown() -> None:
    for text in ("L_logits(KLD) < L_CLM", "-0.055 [-0.119, +0.008]", "3.11 ± 0.01", "a & b", "difference [95 %]", "—"):
        assert markdown_text(text) == text


@pytest.mark.parametrize("text", ["python -m x", "echo ```` && </pre>", "a\n```\n<img src=x>"])
def test_a_block_of_code_ends_where_it_should(text: str) -> None:
    page = from_markdown(markdown_code(text) + "\n\nafter\n")
    assert page.elements == {"pre", "code", "p"}
    assert page.text == f"{text}\n\nafter\n"


def test_latex_has_no_command_and_no_argument_left() -> None:
    assert latex_text(r"\input{x} 50% #1_a ~^ $&") == (
        r"\textbackslash{}input\{x\} 50\% \#1\_a \textasciitilde{}\textasciicircum{} \$\&"
    )
    assert latex_text("[2in]") == "{[}2in]"
    assert latex_text("*") == "{*}"
    assert latex_text("3 ± 1 < 4") == r"3 $\pm$ 1 $<$ 4"


def test_what_cannot_be_seen_is_spelled_out() -> None:
    assert printable(UNSEEN) == SEEN
    assert terminal_text(UNSEEN).plain == SEEN
    assert markdown_text(UNSEEN).replace("\\\\", "\\") == SEEN
    assert printable("3.11 ± 0.01 95\u00a0% 漢 é") == "3.11 ± 0.01 95\u00a0% 漢 é"


NAMES = {"kld": "[2in]<img src=x>|[/x]", "mse": r"\input{x}</td>", "cosine": 'id="final" #010203 font: 3.14159px'}
NAMED = " ".join((*HOSTILE, UNSEEN.replace(" \udce9", "")))
"""What a user names in a cell; a name that is no UTF-8 is refused there."""
TABLE = Table(
    name="toy", question="Which?", source="nowhere", baseline=NAMES["kld"],
    rows={name: {"distill.logit_loss": loss} for loss, name in NAMES.items()}, reference_rows={},
    metrics=("lm_loss",), caveats=(NAMED,),
    claims=(Claim(NAMES["kld"], NAMES["mse"], "nowhere"),),
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report in which everything that a user names is hostile: rows, teacher, settings, an error."""
    cell = Cell(corpus=Corpus(NAMED, fingerprint="0" * 64), teacher=Teacher(NAMED, fingerprint="1" * 64))
    requested, store = entries(TABLE, Profile(cell, 2)), Store(tmp_path_factory.mktemp("store"))
    *done, last = requested
    for entry in done:
        with store.claim(entry.cell, "cell") as node:
            pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}).to_csv(node.folder / "metrics.csv", index=False)
            node.finish({"lm_loss": 2.0 + entry.seed / 10}, seconds=1.0, commit="<b>")
    with store.claim(last.cell, "cell") as node:
        node.fail(NAMED)
    return assemble(TABLE, NAMED, {"corpus.path": NAMED}, requested, store, flags=("--add-row", NAMED))


def test_every_file_of_a_report_shows_hostile_names_as_text(found: Report, tmp_path: Path) -> None:
    paths = {path.suffix: path.read_text() for path in files.write_files(found, tmp_path)}
    markdown, page = from_markdown(paths[".md"]), Page(paths[".html"])
    assert not {"img", "script", "b", "s", "em", "a"} & (markdown.elements - {"em"})
    assert not {"img", "script", "b"} & page.elements
    assert not any(target.startswith(("http", "javascript", "x")) for target in (*markdown.targets, *page.targets))
    for text in (markdown.text, page.text):
        for name in (*NAMES.values(), *HOSTILE, SEEN.replace(r" \udce9", "")):
            assert squeezed(name) in squeezed(text)
    tex = paths[".tex"]
    assert r"\input" not in tex
    assert r"{[}2in]$<$img src=x$>$|[/x]" in tex
    # Every dollar, brace and percent sign is escaped or one of a pair.
    bare = re.sub(r"\\.", "", tex.partition("\n")[2])
    assert bare.count("$") % 2 == 0
    assert bare.count("{") == bare.count("}")
    assert "%" not in bare


def test_a_figure_keeps_the_characters_of_a_row(found: Report, tmp_path: Path) -> None:
    (page,) = (path.read_text() for path in files.write_files(found, tmp_path) if path.suffix == ".html")
    figure = page[page.index("<svg") : page.index("</svg>")]
    # A long label is folded into several text elements.
    assert NAMES["cosine"] in html.unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)", figure)))


@pytest.mark.parametrize("width", [60, 200])
def test_a_terminal_shows_hostile_names_as_text(found: Report, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    terminal.print_report(found, console)
    terminal.print_status(found.tidy, console)
    shown = stream.getvalue()
    assert "\x1b[31mred" not in shown
    for name in ("[red]a[/red]", "[/x]", "<img"):
        assert name in shown


def test_progress_shows_hostile_names_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(2) as bar:
        bar.say("reading [/x] [red]a\nb")
    assert "[0/2] reading [/x] [red]a b" in capsys.readouterr().err


def test_a_wandb_report_shows_hostile_names_as_text(found: Report) -> None:
    board = Board(found.table, "tiny", (), "lit-prune", "")
    sent = page_of(page_text(report_of(board, files.markdown(found))))
    (text,) = (block.text for block in sent.blocks if hasattr(block, "text") and "## Results" in block.text)
    assert not {"img", "script", "b", "a"} & from_markdown(text).elements


def test_the_page_of_all_tables_shows_hostile_names_as_text(found: Report, tmp_path: Path) -> None:
    scored(Store(tmp_path), HOSTILE[0], FIRST)
    page, *_ = write([Answer(found, "store", "<script>x</script>")], Store(tmp_path), tmp_path / "out")
    elements = Page(page.read_text())
    assert not {"img", "script", "b"} & elements.elements
    assert HOSTILE[0] in elements.text


def test_models_of_hostile_labels_are_compared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    labels = (r"\input{x} [/x]", "<img src=x>|[red]" + UNSEEN.replace("\udce9", ""))
    nodes = {labels[0]: [scored(store, "a", FIRST)], labels[1]: [scored(store, "b", SECOND, cut=0.5)]}
    table = benchmark_table(nodes)
    stream = io.StringIO()
    print_table(table, Console(file=stream, width=300))
    assert "[/x]" in stream.getvalue()
    assert "[red]" in stream.getvalue()
    csv, markdown, tex = (path.read_text() for path in write_table(table, tmp_path / "out"))
    assert labels[0] in csv
    assert not {"img"} & from_markdown(markdown).elements
    assert labels[0] in from_markdown(markdown).text
    assert r"\input" not in tex


@pytest.mark.parametrize("labels", [["n"], ["a", "benchmark"], ["a", "b", "b − a"]])
def test_a_label_that_is_another_column_is_refused(labels: list[str]) -> None:
    with refuses("--model"):
        check_labels(labels, None)


def test_a_stored_model_may_have_the_name_of_a_column(tmp_path: Path) -> None:
    scored(Store(tmp_path), "n", FIRST)
    table = all_scores(read(Store(tmp_path)))
    assert list(table) == ["benchmark", "n", "n"]
    assert table.iloc[0].tolist()[1:] == ["8", "62.5 ± 10.0"]


def test_a_name_that_is_no_text_is_refused() -> None:
    with refuses("teacher.model", "UTF-8"):
        override(Cell(), {"teacher.model": "caf\udce9"})
    assert main(["--model", "caf\udce9", "--corpus", "python"]) == 2
