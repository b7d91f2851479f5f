"""Which intermediate states help a shallower student, and do they help a narrower one? Minitron, Tables 17 and 18, and
appendix A.4."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile
from lit_prune.config.table import SMALLEST_EFFECT, Changes, Claim, Table

THEIRS = (32, 16)
"""Number of layers of the paper's teacher and student."""

PAPER = {
    "L_logits": 2.155,
    "L_o(29:13)": 2.145,
    "L_o(15:15) + L_emb": 2.240,
    "L_o(23:15) + L_emb": 2.205,
    "L_o(29:15) + L_emb": 2.203,
    "L_o(30:15) + L_emb": 2.188,
    "L_o(31:15) + L_emb": 2.180,
    "L_o(28:12) + L_emb": 2.141,
    "L_o(29:13) + L_emb": 2.141,
    "L_o(29:14) + L_emb": 2.152,
    "L_o(30:14) + L_emb": 2.150,
    "L_o(29:13) + L_emb + L_i(29:13)": 2.141,
}
"""Row -> LM loss. Rows name the states that are matched besides the logits, with the paper's layer numbers."""

BEST = "L_o(29:13) + L_emb"
ATTENTION, TWO, SQUARES = f"{BEST} + L_att(29:13)", "L_o(28:12, 29:13) + L_emb", f"{BEST}, MSE"
IN_WORDS = (ATTENTION, TWO, SQUARES)
"""Rows that the paper compares without numbers."""

FIELDS = {"L_o": "distill.match_layer_output", "L_i": "distill.match_mlp_input", "L_att": "distill.match_attention"}
WIDTH: Changes = {"prune.num_hidden_layers": None, "prune.hidden_size": 0.75, "prune.intermediate_size": 0.6875}


def here(theirs: str, layers: int) -> str:
    """Return a pair of the paper's layers, teacher:student, in a teacher of `layers` and a student of half as many.

    One of the last four layers is named by its distance from the end; a lower one keeps its relative depth.
    """
    places = []
    for layer, of, ours in zip(map(int, theirs.split(":")), THEIRS, (layers, layers // 2), strict=True):
        behind = of - 1 - layer
        places.append(str((layer + 1) * ours // of - 1) if behind > 3 else f"last-{behind}" if behind else "last")
    return ":".join(places)


def states(row: str, layers: int) -> Changes:
    """Return the changes of a row to the objective, for a teacher of `layers`."""
    if row == "L_logits":
        return {"distill.alpha": 0.0}
    changes: Changes = {"distill.alpha": "dynamic", "distill.match_embedding": "L_emb" in row}
    for part in row.removesuffix(", MSE").split(" + "):
        name, _, pairs = part.rstrip(")").partition("(")
        if pairs:
            changes[FIELDS[name]] = [here(pair, layers) for pair in pairs.split(", ")]
    return changes | ({"distill.hidden_loss": "mse"} if row == SQUARES else {})


def of_depth(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with the paper's layers mapped to the profile's deep teacher, and a list of their names."""
    from lit_prune.pruning.shapes import deep_teacher

    teacher, layers = deep_teacher(profile, least=12)
    rows = {row: states(row, layers) for row in PAPER}
    rows |= {f"width: {row}": rows[row] | WIDTH for row in ("L_logits", BEST)}
    rows |= {row: states(row, layers) for row in IN_WORDS}
    pairs = dict.fromkeys(row.split("(")[1].split(")")[0] for row in PAPER if "(" in row)
    mapping = ", ".join(f"{pair} is {here(pair, layers)}" for pair in pairs)
    about = f"Rows name layers as in the paper, of {THEIRS[0]}:{THEIRS[1]}; of {layers}:{layers // 2} here, {mapping}."
    return dataclasses.replace(
        table,
        base_overrides={**table.base_overrides, "teacher": teacher},
        rows=rows,
        caveats=(about, *table.caveats),
    )


CLAIMS = (
    Claim("L_o(29:13)", "L_logits", "Table 17"),
    Claim(BEST, "L_o(29:13)", "Table 17"),
    Claim(BEST, "L_o(31:15) + L_emb", "Table 17: the last layers are specialised"),
    Claim(BEST, "L_o(30:14) + L_emb", "Table 17: the last layers are specialised"),
    Claim(BEST, "L_o(15:15) + L_emb", "Table 17"),
    Claim("L_logits", "L_o(15:15) + L_emb", "Table 17: the wrong layers do harm"),
    Claim(BEST, f"{BEST} + L_i(29:13)", "Table 17", tolerance=SMALLEST_EFFECT),
    Claim(BEST, ATTENTION, "appendix A.4: no improvement", tolerance=SMALLEST_EFFECT, or_better=True),
    Claim(BEST, TWO, "appendix A.4: no improvement, or worse", tolerance=SMALLEST_EFFECT, or_better=True),
    Claim(BEST, SQUARES, "appendix A.4: cosine is the best loss of states"),
    Claim(f"width: {BEST}", "width: L_logits", "Table 18, in accuracy", tolerance=SMALLEST_EFFECT),
)

TABLE = Table(
    name="hidden_ablation",
    question="Which intermediate states help a student of half the depth, and do they help one of less width?",
    source="Minitron (arXiv 2407.14679v2), Tables 17 and 18, appendix A.4",
    rows={},
    baseline="L_logits",
    paper={row: {"lm_loss": loss} for row, loss in PAPER.items()},
    claims=CLAIMS,
    metrics=("lm_loss", "parameters"),
    base_overrides={
        "prune.num_hidden_layers": 0.5, "prune.hidden_size": None, "prune.intermediate_size": None,
        "prune.num_attention_heads": None,
        "prune.layer_criterion": "perplexity",
    },
    build_for_profile=of_depth,
    caveats=(
        "Every row has L_logits, the others the states they name, with dynamic alpha. The rows of width keep all "
        "layers and prune hidden channels and neurons; the paper prints accuracies of them, not losses.",
        "Appendix A.4 has no numbers, and does not say which layers it compares for L_att, nor which several at once; "
        "here they are those of the best row, and the layer before it. States are compared by cosine, but in the row "
        "of MSE.",
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
