"""Which retraining heals a pruned model best, at equal tokens and at equal FLOPs? Reassessing, LLM-Pruner, Minitron."""

import dataclasses
import importlib.util
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Cell, Profile
from lit_prune.config.table import WHOLE, Changes, Claim, Table

CE: Changes = {"distill.ce_weight": 1.0, "distill.kd_weight": 0.0}
LORA: Changes = {**CE, "distill.lora.rank": 8, "distill.lora.alpha": 16.0}
DEPTH: Changes = {"prune.method": "shortgpt", "prune.num_hidden_layers": 0.75}
TAIL: Changes = {"prune.method": "reassessing", "prune.num_hidden_layers": 0.75}
NONE, ADAPTERS, QUANTISED, LAST, ALONE, TAUGHT = "nothing", "LoRA", "QLoRA", "last layers", "CE", "KD"
FAST, SLOW = 3.0, 0.3
"""Learning rates of adapters and of weights, as multiples of the profile's."""


def pruners_of(cell: Cell) -> dict[str, Changes]:
    """Return the pruners by name, of equally many parameters: as many as the depth pruner leaves."""
    from lit_prune.config.overrides import override
    from lit_prune.models.shape import num_parameters, parameter_counter, shape_of
    from lit_prune.pruning.shapes import config_of_student, teacher_config

    config = teacher_config(cell)
    whole, count = shape_of(config), parameter_counter(config)
    kept = num_parameters(config_of_student(override(cell, DEPTH)))
    widths = {"prune.hidden_size": "auto", "prune.intermediate_size": "auto", "prune.num_parameters": kept}
    num_layers, neurons = whole.num_hidden_layers, whole.intermediate_size
    neuron = (count(whole) - count(dataclasses.replace(whole, intermediate_size=neurons - 1))) // num_layers
    pruned = num_layers - num_layers // 8 - num_layers // 16  # LLM-Pruner spares the others
    left = neurons - round((count(whole) - kept) / (neuron * pruned))
    middle = {"prune.method": "llm_pruner", "prune.intermediate_size": left, "prune.num_key_value_heads": None}
    return {"width": widths, "depth": DEPTH, "tail": TAIL, "neurons": middle}


def healers_of(cell: Cell, pruner: Changes) -> dict[str, Changes]:
    """Return the ways of retraining by name, each with its learning rate; QLoRA only if bitsandbytes is installed."""
    from lit_prune.config.overrides import override
    from lit_prune.pruning.shapes import config_of_student

    optimizer, num_layers = cell.distill.optimizer, config_of_student(override(cell, pruner)).num_hidden_layers
    fast, slow = (
        {f"distill.optimizer.{name}": times * getattr(optimizer, name) for name in ("lr", "min_lr")}
        for times in (FAST, SLOW)
    )
    healers: dict[str, Changes] = {
        NONE: {"distill.max_steps": 0},
        ADAPTERS: {**LORA, **fast},
        QUANTISED: {**LORA, **fast, "distill.lora.quantize": "nf4"},
        LAST: {**CE, **slow, "distill.train_last_layers": max(1, round(num_layers / 8))},
        ALONE: {**CE, **slow},
        TAUGHT: slow,
    }
    if importlib.util.find_spec("bitsandbytes") is None:
        del healers[QUANTISED]
    return healers


def steps_of_equal_flops(cell: Cell, changes: Changes) -> int:
    """Return the steps of a row that take as many FLOPs as the distillation of all weights of the same student."""
    from lit_prune.config.overrides import override
    from lit_prune.pipeline.work import flops_of_token

    pruned = {path: value for path, value in changes.items() if path.startswith("prune.")}
    budget, step = (flops_of_token(override(cell, part)) for part in (pruned, changes))
    return round(cell.distill.max_steps * budget / step)


def with_steps(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with its rows at a profile."""
    cell, rows = profile.cell, dict[str, Changes]()
    for pruner, pruned in pruners_of(cell).items():
        rows |= {f"{pruner}, {healer}": pruned | how for healer, how in healers_of(cell, pruned).items()}
    for row, changes in [*rows.items()]:
        if not row.endswith((NONE, TAUGHT)):
            rows[f"{row}, equal FLOPs"] = {**changes, "distill.max_steps": steps_of_equal_flops(cell, changes)}
    claims = tuple(claim for claim in table.claims if set(claim.rows) <= set(rows))
    missing = () if len(claims) == len(table.claims) else (WITHOUT_QLORA,)
    return dataclasses.replace(table, rows=rows, claims=claims, caveats=(*table.caveats, *missing))


WITHOUT_QLORA = (
    "The rows of QLoRA are left out, because bitsandbytes is not installed (pip install 'lit-prune[qlora]')."
)

TABLE = Table(
    name="healing_ablation",
    question="What heals a pruned model best, at equal tokens and at equal FLOPs: adapters, the last layers or all "
    "weights, with cross-entropy or distillation?",
    source="Reassessing Layer Pruning in LLMs (arXiv 2411.15558), LLM-Pruner (2305.11627) and The Unreasonable "
    "Ineffectiveness of the Deeper Layers (2403.17887), abstracts; Minitron (2407.14679v2), Table 11; LLM Pruning and "
    "Distillation in Practice (2408.11796v4), Figure 6",
    rows={},
    baseline="width, KD",
    paper={"neurons, LoRA": {"perplexity": 17.58}, "neurons, nothing": {"perplexity": 19.09}},
    metrics=("lm_loss", "perplexity", "train_flops"),
    claims=(
        Claim("tail, last layers", "tail, LoRA", "Reassessing, abstract; accuracy 0.581, 0.527 of Llama-3.1-8B-It"),
        Claim("tail, last layers", "tail, QLoRA", "Reassessing, abstract; accuracy 0.581, 0.517 of Llama-3.1-8B-It"),
        Claim(
            "tail, last layers, equal FLOPs", "tail, LoRA, equal FLOPs", "Reassessing, abstract, compute by our count"
        ),
        Claim("depth, QLoRA", "depth, nothing", "Deeper Layers, abstract"),
        Claim("neurons, LoRA", "neurons, nothing", "LLM-Pruner, abstract; perplexity 17.58, 19.09 of LLaMA-7B"),
        Claim("width, KD", "width, CE", "In Practice, Figure 6"),
        Claim("width, KD", "width, CE, equal FLOPs", "Minitron, Table 11, compute by our count of FLOPs"),
    ),
    base_overrides=WHOLE,
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=with_steps,
    profile_fields=("distill.max_steps", "distill.optimizer.lr", "distill.optimizer.min_lr"),
    caveats=(
        "Depth drops a quarter of the layers, rounded, by Block Influence (ShortGPT), and tail the last ones "
        "(Reassessing). Width prunes channels and neurons by activations (Minitron), and neurons those of the middle "
        "layers by gradients (LLM-Pruner, element1), both to as many parameters, as nearly as their sizes allow. "
        "LLM-Pruner also prunes heads; here all are kept.",
        "LoRA has rank 8 in all linears of the layers, as in LLM-Pruner; in Deeper Layers it is in the MLPs alone. "
        "QLoRA is the same on weights in NF4 with double quantisation; its student is evaluated with the dequantised "
        "weights that it was trained with. CE and KD train all weights. All but KD minimise cross-entropy.",
        "Last layers is an eighth of the student's layers, at least one, with the final norm and the output head: in "
        "Reassessing 3 of the 24 that are left.",
        f"Adapters have {FAST:g} times the profile's learning rate, the others {SLOW:g} times, because the profile's "
        "is for students of half the teacher's size: of 1, 3 and 10 for LoRA, and of 0.1, 0.3 and 1 for CE and the "
        "last layers, these were best for depth at quick with one seed.",
        "A row with equal FLOPs has as many steps as the FLOPs of KD of the same student allow, the teacher's forward "
        "pass included. Weights that are not trained have no gradient, and there is no backward pass below the lowest "
        "trained weight. Quantising and dequantising are not counted.",
        "The papers compare accuracy on tasks, in Reassessing and LLM-Pruner after tuning on instructions; here the "
        "claims are about LM loss on text like that of the calibration.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
