"""Which pruning method leaves the best model of a size, before and after the same retraining?"""

import dataclasses
from pathlib import Path
from typing import Any

from lit_prune.cli.table import main
from lit_prune.config import Profile, resolve_precision
from lit_prune.config.table import Changes, Claim, Table

HALF, QUARTER = 0.5, 0.25
"""Shares of the layers' parameters that are removed."""
WITHIN = 0.05
"""Largest difference from this share at which a row is shown; few layers cannot be dropped in such steps."""
OWN = "{}, own recovery"
LLM_PRUNER = {
    "LLM-Pruner, element1": "taylor", "LLM-Pruner, element2": "taylor_fisher", "LLM-Pruner, vector": "taylor_vector",
    "LLM-Pruner, L2": "magnitude", "LLM-Pruner, random": "random",
}  # fmt: skip
"""Row -> score of a unit; the last two are the paper's baselines."""
DEPTH = {"ShortGPT": "shortgpt", "Deeper Layers": "deeper_layers", "Reassessing": "reassessing", "LaCo": "laco"}
NEURONS = {"FASP": "fasp", "CFSP": "cfsp"}
LEARNED = {"Bypass-BP": "bypass_bp", "BiP": "bip", "MLPruning": "mlpruning"}
"""Methods that train masks; like LoRAPrune, Sheared LLaMA and Bonsai, they only have rows without half of the layers'
parameters."""
SPARSE: dict[str, Changes] = {
    "magnitude": {"prune.method": "magnitude"},
    "Wanda": {"prune.method": "wanda"},
    "AlphaPruning": {"prune.method": "alpha_pruning", "prune.sparsity": 0.5},
    "SMP": {"prune.method": "smp"},
}
RETRAINED_BY_PAPER = {
    "Deeper Layers": "deeper_layers", "Reassessing": "reassessing", "LLM-Pruner, element1": "llm_pruner",
    "CFSP": "cfsp", "Bonsai": "bonsai", "Puzzle": "puzzle", "Sheared LLaMA": "sheared_llama", "SliceGPT": "slicegpt",
    "PLRD": "plrd", "Wanda": "wanda",
}  # fmt: skip
"""Row -> method whose paper retrains with another objective, or other weights, than the profile."""
_OF_SCALE = ("distill.max_steps", "distill.batch_size", "distill.optimizer")
"""Fields of a published retraining that belong to its scale."""


def _named(method: str, **settings: Any) -> Changes:
    return {"prune.method": method} | {f"prune.{name}": value for name, value in settings.items()}


def _made(method: str, **settings: Any) -> Any:
    """Return a method with these settings."""
    from lit_prune.config.prune import method_class

    return method_class(method)(**settings)


def at_once(config: Any, share: float) -> dict[str, Changes]:
    """Return the rows of the methods that do not train: their sizes without a share of the layers' parameters."""
    from lit_prune.pruning.budgets import LayerBudget

    budget, layers = LayerBudget(config, share), config.num_hidden_layers
    shape = budget.shape(
        lambda part: _made("minitron", hidden_size=part, intermediate_size=part, num_attention_heads=part)
    )
    neurons, groups = budget.units(layers // 8, layers // 16)  # LLM-Pruner spares these
    rows = {
        "Minitron": _named(
            "minitron", hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
            num_attention_heads=shape.num_attention_heads, num_hidden_layers=None,
        )
    }  # fmt: skip
    if abs(budget.num_hidden_layers / layers - (1 - share)) <= WITHIN:
        rows |= {row: _named(method, num_hidden_layers=budget.num_hidden_layers) for row, method in DEPTH.items()}
    rows |= {
        row: _named("llm_pruner", criterion=criterion, intermediate_size=neurons, num_key_value_heads=groups)
        for row, criterion in LLM_PRUNER.items()
    }
    rows |= {row: _named(method, intermediate_size=budget.neurons) for row, method in NEURONS.items()}
    return rows | {
        "Puzzle": _named("puzzle", num_parameters=budget.num_parameters),
        "SliceGPT": _named("slicegpt", slice_fraction=1 - budget.sliced_width() / config.hidden_size),
        "PLRD": _named("plrd", rank=budget.rank()),
    }


def learned(config: Any, share: float, training: Changes) -> dict[str, Changes]:
    """Return the rows of the methods that train or try many masks, without a share of the layers' parameters."""
    from lit_prune.pruning.budgets import LayerBudget

    budget, pruner = LayerBudget(config, share), _made("loraprune")
    shape = budget.shape(
        lambda part: _made(
            "sheared_llama", hidden_size=part, intermediate_size=part, num_key_value_heads=part
        ).recipe(config)
    )  # fmt: skip
    neurons, groups = budget.units(int(pruner.spare_first * config.num_hidden_layers), pruner.spare_last)
    num_masks = min(_made("bonsai").num_masks, training["prune.max_steps"])
    trained = {
        "Sheared LLaMA": _named(
            "sheared_llama", hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
            num_key_value_heads=shape.num_key_value_heads,
        ),
        "LoRAPrune": _named("loraprune", intermediate_size=neurons, num_key_value_heads=groups),
        **{row: _named(method, num_parameters=budget.num_parameters) for row, method in LEARNED.items()},
    }  # fmt: skip
    return {
        "Bonsai": _named("bonsai", num_parameters=budget.num_parameters, num_masks=num_masks),
        **{row: changes | training for row, changes in trained.items()},
    }


def own_recovery(changes: Changes, method: str) -> Changes:
    """Return the changes of a row with the objective and the trained weights of its paper."""
    from lit_prune.config.prune import method_class

    published = method_class(method).retraining
    return changes | {path: value for path, value in published.items() if not path.startswith(_OF_SCALE)}


def of_every_method(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with the sizes, steps and requests of a profile."""
    from lit_prune.pruning.shapes import teacher_config

    config, distill = teacher_config(profile.cell), profile.cell.distill
    training = {"prune.max_steps": max(1, distill.max_steps), "prune.batch_size": distill.batch_size}
    half = at_once(config, HALF) | learned(config, HALF, training)
    quarter = {f"{row}, 25 %": changes for row, changes in at_once(config, QUARTER).items()}
    sparse = SPARSE | {"SMP": SPARSE["SMP"] | training}
    sparse = {row: changes | {"evaluation.throughput": None} for row, changes in sparse.items()}
    recovered = {row: own_recovery((half | sparse)[row], method) for row, method in RETRAINED_BY_PAPER.items()}
    own = {OWN.format(row): changes for row, changes in recovered.items() if row not in SPARSE}
    own_sparse = {OWN.format(row): changes for row, changes in recovered.items() if row in SPARSE}
    sections = {
        "50 % of the layers' parameters removed": half,
        "50 % removed, with the retraining of the method's paper": own,
        "25 % of the layers' parameters removed": quarter,
        "50 % of the weights zero: sparsity is not compression": sparse | own_sparse,
    }
    base = {
        **table.base_overrides, "evaluation.second_corpus": profile.second_corpus,
        "evaluation.throughput.prompt_len": max(1, distill.seq_len // 2),
        "evaluation.throughput.precision": (
            "bf16-true" if resolve_precision(distill.precision) == "bf16-mixed" else "32-true"
        ),
    }  # fmt: skip
    rows = {row: changes for section in sections.values() for row, changes in section.items()}
    return dataclasses.replace(
        table, rows=rows, base_overrides=base, sections={row: title for title, of in sections.items() for row in of},
        caveats=(_left_out(config), *table.caveats) if f"{next(iter(DEPTH))}, 25 %" not in rows else table.caveats,
    )  # fmt: skip


def _left_out(config: Any) -> str:
    return (
        f"A quarter of {config.num_hidden_layers} layers is no whole number of them, and the nearest is more than "
        f"{WITHIN:.0%} of the layers' parameters away: methods that drop layers have no row of 25 %."
    )


ELEMENT, VECTOR, NORM, CHANCE = (f"LLM-Pruner, {name}, 25 %" for name in ("element1", "vector", "L2", "random"))
ZERO_SHOT = "lm_loss_before"
FROM_LITERATURE = ("LLM-Pruner, element1", "SliceGPT", "LaCo", "ShortGPT", "Sheared LLaMA")
CLAIMS = (
    *(Claim("Minitron", row, "Minitron, abstract: outperforms compression techniques") for row in FROM_LITERATURE),
    Claim("ShortGPT", "LaCo", "ShortGPT, Table 2: 86.31 and 80.39 % of the accuracy at 27 %", metric=ZERO_SHOT),
    Claim("LaCo", "LLM-Pruner, element1", "ShortGPT, Table 2: 80.39 and 72.79 % at 27 %", metric=ZERO_SHOT),
    Claim("LLM-Pruner, element1", "SliceGPT", "ShortGPT, Table 2: 72.79 and 68.73 % at 27 %", metric=ZERO_SHOT),
    Claim(ELEMENT, VECTOR, "LLM-Pruner, Table 1: perplexity 19.09 and 22.28 at 20 %", metric=ZERO_SHOT),
    Claim(VECTOR, CHANCE, "LLM-Pruner, Table 1: perplexity 22.28 and 27.51 at 20 %", metric=ZERO_SHOT),
    Claim(VECTOR, NORM, "LLM-Pruner, Table 1: perplexity 22.28 and 582 at 20 %", metric=ZERO_SHOT),
    Claim("Bonsai", "LLM-Pruner, element1", "Bonsai, abstract: outperforms gradient-based pruning"),
    Claim("LoRAPrune", "LLM-Pruner, element1", "LoRAPrune, abstract: perplexity 4.81 lower at 50 %"),
    Claim("Reassessing", "ShortGPT", "Reassessing, abstract: accuracy 0.527 and 0.408 at 25 %, alike retrained"),
    Claim("Wanda", "magnitude", "Wanda, abstract", metric=ZERO_SHOT),
)

TABLE = Table(
    name="method_ablation",
    question="Which pruning method leaves the best model of a size, before and after the same retraining?",
    source="Minitron (2407.14679), abstract; ShortGPT (2403.03853), Table 2; LLM-Pruner (2305.11627), Table 1; and the "
    "papers of the other methods",
    rows={},
    baseline="Minitron",
    claims=CLAIMS,
    metrics=(
        "lm_loss", ZERO_SHOT, "second_lm_loss", "parameters_without_embeddings", "parameters", "speedup",
        "memory_share", "prune_tokens", "prune_forward_flops", "prune_backward_flops", "prune_seconds", "prune_memory",
    ),
    higher_is_better=("speedup",),
    base_overrides={
        "evaluation.num_validations": 1, "evaluation.throughput.batch_size": 8,
        "evaluation.throughput.max_new_tokens": 16, "evaluation.throughput.num_repeats": 4,
    },
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=of_every_method,
    profile_fields=("distill.max_steps", "distill.batch_size"),
    different_texts=(("corpus", "evaluation.second_corpus"),),
    caveats=(
        "The layers of all rows of a section have nearly the same number of parameters: each method has the size "
        "nearest to the budget that its shapes allow. Minitron, Sheared LLaMA and SliceGPT also narrow the embedding "
        "and the head, which the budget leaves out.",
        "Every row but those of own recovery is distilled by the recipe of the profile. Own recovery has the objective "
        "and the trained weights of the paper, with the steps, batches and learning rates of the profile.",
        "Methods that train take as many steps of as many sequences as the retraining, and Bonsai as many masks in a "
        "round, at most 200: far fewer than in their papers. They read more text than the others before the "
        "retraining. To bound the cost they, and Bonsai, have no row of 25 %.",
        "FASP and CFSP prune neurons only, and take the whole budget from the MLPs. AlphaPruning is meant for higher "
        "sparsities.",
        "Sparsity is not compression: rows with zeros have the parameters, memory and speed of the teacher.",
        "The cost of pruning counts the statistics that a method reads, also if other rows read them too. FLOPs are "
        "those of the models that were run; decompositions of weights are not counted. Time and memory are of the "
        "machine of this record; the memory of a process includes its libraries.",
        "A seed draws other calibration sequences and another order of the data. The papers prune models of 7B "
        "parameters: compare the order of the rows, not their values.",
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
