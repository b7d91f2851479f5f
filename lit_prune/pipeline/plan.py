"""Plan a request on a named GPU: parameters, memory by part, FLOPs, hours and dollars. Nothing is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from lit_prune.config import EVIDENCE, Cell, ConfigError, Distill, Execution, Finetuning, Lora, Pretraining
from lit_prune.config.gpus import GPUS, Gpu
from lit_prune.distill.budget import tokens_of_step
from lit_prune.distill.memory import peak, training_memory
from lit_prune.distill.micro_batches import SHARE_OF_GPU, fewest
from lit_prune.models.flops import forward_flops
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.costs import awaited_stages
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.schedule import untrained_teachers, waves
from lit_prune.pipeline.stages import finetune, pretrain
from lit_prune.pipeline.work import WORK, flops_of_token, method_flops
from lit_prune.pruning.shapes import config_of_student, imitated_config, pruned_config, teacher_config
from lit_prune.store import Store

USABLE = 0.94
"""Share of a GPU's memory for models; the rest is for CUDA, NCCL and fragmentation."""
_HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Training:
    """A training of a plan: its models, and the cells that repeat it."""

    what: str
    cells: int
    distill: Distill
    student: Any
    """Hugging Face config of the trained model."""
    teacher: Any
    """That of the imitated model; None if neither the objective nor a validation reads it."""
    evaluation: Any
    flops: float
    """Of all cells."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """One line of a plan."""

    what: str
    cells: int
    """0 for work that cells share."""
    student: int
    """Parameters of the trained model; 0 for work without a training."""
    teacher: int
    """Parameters of the imitated model; 0 without one."""
    tokens: int
    flops: float
    hours: float
    memory: dict[str, float]
    """Part -> bytes on each device; empty without a training."""
    micro_batches: int
    problem: str | None
    """Why it does not fit, with the flag that would make it fit; None if it fits."""

    @property
    def peak(self) -> float:
        """Bytes on each device at the peak of the training."""
        return peak(self.memory)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The missing work of a request on some GPUs."""

    gpu: str
    devices: int
    utilization: float
    """Share of the peak speed that a training reaches."""
    lines: list[Planned]

    @property
    def gpu_hours(self) -> float:
        """Hours on a device, summed over the devices."""
        return sum(line.hours * (self.devices if line.memory else 1) for line in self.lines)


def plan(entries: Iterable[Entry], store: Store, execution: Execution, gpu: str, utilization: float) -> Plan:
    """Return what missing cells, their teachers and their students take on the devices of `execution`.

    Raises:
        ConfigError: if the devices cannot share a step equally.
    """
    wanted = [entry for wave in waves(store, entries) for entry in wave]
    shared = [_pruning(wanted, store, GPUS[gpu], utilization)] if wanted else []
    trainings = [*_teachers(wanted, store), *_rows(wanted)]
    lines = [*shared, *(_planned(one, execution, gpu, utilization) for one in trainings)]
    return Plan(gpu, execution.devices, utilization, lines)


def _pruning(wanted: list[Entry], store: Store, gpu: Gpu, utilization: float) -> Planned:
    """Return the calibrations and prunings, each of which runs once and on one device."""
    flops = 0.0
    for stage, cell in awaited_stages(store, (entry.cell for entry in wanted)):
        if stage in EVIDENCE:  # two FLOPs per parameter and token, three times that with a backward pass
            passes = {"gradients": 3, "removals": pruned_config(cell).num_hidden_layers}.get(stage, 1)
            flops += 2 * passes * WORK[stage](cell)
        elif stage == "student":
            flops += method_flops(cell)
    hours = flops / (gpu.peak("32-true") * utilization) / _HOUR
    return Planned("calibrating and pruning", 0, 0, 0, 0, flops, hours, {}, 0, None)


def _teachers(wanted: list[Entry], store: Store) -> Iterator[Training]:
    for cell, recipe in untrained_teachers(store, (entry.cell for entry in wanted)):
        what, stage, objective = _training_of(recipe)
        yield Training(what, 1, objective, teacher_config(cell), None, cell.evaluation, WORK[stage](cell))


def _training_of(recipe: Pretraining | Finetuning) -> tuple[str, str, Distill]:
    if isinstance(recipe, Pretraining):
        return "teacher: pretraining", "teacher", pretrain.objective(recipe)
    return "teacher: fine-tuning", "correction", finetune.objective(recipe)


def _rows(wanted: list[Entry]) -> Iterator[Training]:
    rows: dict[str, list[Cell]] = {}
    for entry in wanted:
        if entry.cell.distill.max_steps:
            rows.setdefault(entry.row, []).append(entry.cell)
    for row, cells in rows.items():
        cell, student = cells[0], config_of_student(cells[0])
        tokens = len(cells) * cell.distill.max_steps * tokens_of_step(cell.distill)
        teacher = imitated_config(cell) if cell.distill.needs_teacher or cell.evaluation.num_validations else None
        flops = tokens * flops_of_token(cell, student)
        yield Training(row, len(cells), cell.distill, student, teacher, cell.evaluation, flops)


def _planned(one: Training, execution: Execution, gpu: str, utilization: float) -> Planned:
    distill, devices = one.distill, execution.devices
    if distill.batch_size % devices:
        raise ConfigError(f"--devices: must divide {distill.batch_size}, the sequences of a step, got {devices}")
    parts = micro_batches_of(one, execution, GPUS[gpu])
    memory = memory_of(one, parts, execution)
    tokens = one.cells * distill.max_steps * tokens_of_step(distill)
    again = tokens * forward_flops(one.student, distill.seq_len) if execution.activation_checkpointing else 0.0
    flops, speed = one.flops + again, devices * GPUS[gpu].peak(distill.precision) * utilization
    return Planned(
        one.what, one.cells, num_parameters(one.student), 0 if one.teacher is None else num_parameters(one.teacher),
        tokens, flops, flops / speed / _HOUR, memory, parts,
        _problem(one, memory, execution, gpu),
    )  # fmt: skip


def micro_batches_of(one: Training, execution: Execution, gpu: Gpu) -> int:
    """Return the micro-batches of a device: those requested, else as a run on this GPU chooses them."""
    config = one.student if one.teacher is None else one.teacher
    room, checkpointing = SHARE_OF_GPU * gpu.num_bytes, execution.activation_checkpointing
    return execution.grad_accum_steps or fewest(one.distill, config, room, execution.devices, checkpointing)


def memory_of(one: Training, parts: int, execution: Execution) -> dict[str, float]:
    """Return part -> bytes on each device."""
    return training_memory(
        one.distill, one.student, one.teacher, one.evaluation, devices=execution.devices,
        micro_batch=one.distill.batch_size // (execution.devices * parts),
        checkpointing=execution.activation_checkpointing, sharded=execution.strategy == "fsdp",
    )  # fmt: skip


def fits(memory: dict[str, float], gpu: Gpu) -> bool:
    """Return whether a training has room on a GPU."""
    return peak(memory) <= USABLE * gpu.num_bytes


def _problem(one: Training, memory: dict[str, float], execution: Execution, gpu: str) -> str | None:
    """Return why a training does not fit, and the first change that would make it fit."""
    if fits(memory, GPUS[gpu]):
        return None
    room = USABLE * GPUS[gpu].num_bytes / 1e9
    mend = next((flag for flag, found in _remedies(one, execution, gpu) if found), None)
    how = f"it fits with {mend}" if mend else "no flag makes it fit"
    return f"{one.what!r} needs {peak(memory) / 1e9:.0f} GB on each device, {gpu} has {room:.0f}; {how}"


def _remedies(one: Training, execution: Execution, gpu: str) -> Iterator[tuple[str, bool]]:
    """Yield flags, those that change the result least first, and whether each makes the training fit."""
    most = one.distill.batch_size // execution.devices
    yield f"--grad-accum-steps {most}", fits(memory_of(one, most, execution), GPUS[gpu])
    again = dataclasses.replace(execution, activation_checkpointing=True)
    yield "--activation-checkpointing", fits(memory_of(one, micro_batches_of(one, again, GPUS[gpu]), again), GPUS[gpu])
    if execution.devices > 1:
        yield from _sharded(one, execution, gpu)
    small = dataclasses.replace(one, evaluation=dataclasses.replace(one.evaluation, precision="bf16-mixed"))
    yield "--set evaluation.precision=bf16-mixed", fits(memory_of(small, most, execution), GPUS[gpu])
    parts = micro_batches_of(small, again, GPUS[gpu])
    both = "--activation-checkpointing --set evaluation.precision=bf16-mixed"
    yield both, fits(memory_of(small, parts, again), GPUS[gpu])
    for name, other in sorted(GPUS.items(), key=lambda item: item[1].num_bytes):
        if other.num_bytes > GPUS[gpu].num_bytes:
            yield f"--plan {name}", fits(memory_of(one, micro_batches_of(one, execution, other), execution), other)
    if execution.devices == 1:
        for devices in (2, 4, 8):
            yield from _sharded(one, dataclasses.replace(execution, devices=devices), gpu, f"--devices {devices} ")
    if one.distill.lora is None and one.distill.teacher_optimizer is None and one.teacher is not None:
        adapted = dataclasses.replace(one, distill=dataclasses.replace(one.distill, lora=Lora()))
        parts = micro_batches_of(adapted, execution, GPUS[gpu])
        yield f"--set distill.lora.rank={Lora().rank}", fits(memory_of(adapted, parts, execution), GPUS[gpu])


def _sharded(one: Training, execution: Execution, gpu: str, devices: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the flags that shard a training over the devices of `execution`, and whether each makes it fit."""
    lora, parts = one.distill.lora, execution.devices * (execution.grad_accum_steps or 1)
    if (
        execution.strategy == "fsdp"
        or one.distill.batch_size % parts
        or (lora is not None and lora.quantize is not None)
    ):
        return
    for flag in ("", " --activation-checkpointing"):
        checkpointing = execution.activation_checkpointing or bool(flag)
        how = dataclasses.replace(execution, strategy="fsdp", activation_checkpointing=checkpointing)
        parts = micro_batches_of(one, how, GPUS[gpu])
        yield f"{devices}--strategy fsdp{flag}", fits(memory_of(one, parts, how), GPUS[gpu])
