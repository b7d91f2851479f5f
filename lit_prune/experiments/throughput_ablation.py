"""How much faster are depth- and width-pruned students? LLM Pruning and Distillation in Practice, Figure 10."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile, resolve_precision
from lit_prune.config.table import Changes, Claim, Table

PROMPTS, ANSWERS = "batch 32, long prompts", "batch 32, long answers"


def at_equal_parameters(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with half of the layers, equal parameters by width, and the profile's request lengths."""
    from lit_prune.models.shape import parameter_counter, shape_of
    from lit_prune.pruning.shapes import teacher_config

    config = teacher_config(profile.cell)
    whole = shape_of(config)
    half = dataclasses.replace(whole, num_hidden_layers=max(1, whole.num_hidden_layers // 2))
    depth, width, teacher = (
        _shape(num_hidden_layers=half.num_hidden_layers),
        _shape(hidden_size="auto", intermediate_size="auto", num_parameters=parameter_counter(config)(half)),
        _shape(),
    )
    unit = max(2, profile.cell.distill.seq_len // 16)
    requests = [_request(32, 4 * unit, unit), _request(32, unit, 2 * unit), _request(1, unit, 2 * unit)]
    names = (PROMPTS, ANSWERS, "batch 1, long answers")
    rows = {
        f"{axis}, {name}": {**shape, **request, "distill.max_steps": 0}
        for name, request in zip(names, requests, strict=True)
        for axis, shape in (("depth", depth), ("width", width))
    }
    rows["teacher"] = {**teacher, **requests[0], "parent": None, "distill.max_steps": 0}
    precision = "bf16-true" if resolve_precision(profile.cell.distill.precision) == "bf16-mixed" else "32-true"
    base = {**table.base_overrides, "evaluation.throughput.precision": precision}
    return dataclasses.replace(table, rows=rows, base_overrides=base)


def _shape(**sizes: int | str) -> Changes:
    """Return the sizes of a student; those not given are the teacher's."""
    return {
        f"prune.{name}": sizes.get(name)
        for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_parameters")
    }


def _request(batch: int, prompt: int, new: int) -> Changes:
    return {
        f"evaluation.throughput.{name}": size
        for name, size in (("batch_size", batch), ("prompt_len", prompt), ("max_new_tokens", new))
    }


TABLE = Table(
    name="throughput_ablation",
    question="With as many parameters, how much faster than their teacher are students with fewer or narrower layers?",
    source="LLM Pruning and Distillation in Practice (2408.11796v4), Figure 10 and the section on runtime performance",
    rows={},
    baseline=f"depth, {PROMPTS}",
    paper={f"depth, {PROMPTS}": {"speedup": 2.7}, f"width, {PROMPTS}": {"speedup": 1.8}, "teacher": {"speedup": 1.0}},
    claims=(
        Claim(f"depth, {PROMPTS}", f"width, {PROMPTS}", "In Practice, Figure 10: 2.7 and 1.8 times the teacher"),
        Claim(f"depth, {ANSWERS}", f"width, {ANSWERS}", "In Practice, Figure 10: several lengths"),
        Claim(f"width, {PROMPTS}", "teacher", "In Practice, Figure 10: 1.8 times the teacher"),
        Claim(f"depth, {PROMPTS}", "teacher", "In Practice, Figure 10: 2.7 times the teacher"),
    ),
    reference_rows={},
    metrics=("speedup", "prefill_speedup", "decode_speedup", "memory_share", "parameters"),
    higher_is_better=("speedup", "prefill_speedup", "decode_speedup"),
    # Speed depends on sizes only: no calibration is needed to choose units, and no loss is measured.
    base_overrides={
        "prune.num_attention_heads": None, "prune.width_criterion": "magnitude",
        "prune.layer_selection": "last_but_final",
        "evaluation.num_sequences": 1, "evaluation.throughput.num_repeats": 6,
    },
    build_for_profile=at_equal_parameters,
    caveats=(
        "A speedup is the teacher's time over the student's, both measured in turns on the machine of this record: "
        "another machine has others. A seed is the same measurement once more; the row teacher is the teacher beside "
        "itself, and what it differs from 1 is noise.",
        "Parameters are as near to each other as the family's shapes allow.",
        "Long prompts are 4 parts prompt and 1 new, long answers 1 part prompt and 2 new; a part is a sixteenth of "
        "the profile's sequence, 16 tokens at quick. Decoding is greedy, through transformers, with keys and values "
        "kept; memory is weights, keys and values and activations at their highest.",
        "The paper measures with TensorRT-LLM in FP8 on one H100, students at batch 64 and their teacher at 32, which "
        "favours the students; its numbers are over requests of several lengths. Ours are at the same batch.",
        "Where the model is small, a step takes as long as it takes to start its operations, of which narrower layers "
        "have as many as wide ones: then width hardly helps decoding.",
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
