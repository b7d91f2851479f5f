"""Memory of a training on one device by part, from Hugging Face configs alone.

All ranks hold the same: a copy of all parts with DDP; with FSDP their share of weights, gradients and optimizer state,
which are exact, and what they gather. The rest is an estimate.
"""

from __future__ import annotations

from typing import Any

from lit_prune.config import Distill, Evaluation
from lit_prune.data.calibration import BATCH_SIZE
from lit_prune.distill.hidden_states import pairs_of
from lit_prune.distill.micro_batches import activation_bytes
from lit_prune.distill.trainable import targets_of, trained_part
from lit_prune.losses.chunked import tokens_at_once
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.models.shape import meta_model, num_parameters

_FLOAT, _HALF = 4, 2
_NF4 = 0.5 + 4 / 64
"""Bytes of a weight in nf4: 4 bits, and a float32 scale for every 64."""
_COPIES = 6
"""Matrices as large as the logits of a chunk that a loss holds at once: of both models, with probabilities."""
PERSISTENT = ("teacher weights", "student weights", "gradients", "optimizer")
"""Parts that exist for the whole training; the others exist in turn."""


def peak(parts: dict[str, float]) -> float:
    """Return the bytes at the peak: what persists, with the larger of a step and a validation, or the evaluation."""
    persistent = sum(parts[name] for name in (*PERSISTENT, "gathered") if name in parts)
    training = persistent + max(parts["activations"] + parts["logits"], parts["validation"])
    return max(training, parts.get("evaluation", 0.0))


def training_memory(
    distill: Distill, student: Any, teacher: Any, evaluation: Evaluation, *, micro_batch: int, devices: int = 1,
    checkpointing: bool = False, on_gpu: bool = True, sharded: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Return part -> bytes on each device, for micro-batches of `micro_batch` sequences.

    `teacher` is the config of the imitated model, None if neither the objective nor a validation reads it. A ratio of
    terms keeps one more gradient with several devices or micro-batches. If `sharded`, the devices divide what persists;
    "gathered" are weights and gradients that are whole for a moment, and "evaluation" is the whole student afterwards.
    """
    trained, weights = num_trained(distill, student, teacher), _bytes_of_weights(distill, student)
    steps_are_cut = devices > 1 or micro_batch < distill.batch_size
    ratios = sum(isinstance(weight, str) for weight in (distill.alpha, distill.ce_weight)) if steps_are_cut else 0
    whole = 0 if teacher is None else num_parameters(teacher)
    trained_teacher = whole if distill.teacher_optimizer is not None else 0
    tokens, vocab = micro_batch * distill.seq_len, student.vocab_size
    mixed = distill.precision == "bf16-mixed"
    cast = _HALF * (num_parameters(student) + trained_teacher) if mixed and not sharded else 0
    shards = devices if sharded else 1
    activations = tokens * activation_bytes(student, distill.precision, checkpointing)
    activations += tokens * activation_bytes(teacher, distill.precision, checkpointing) if trained_teacher else 0
    moments = _moments(distill.optimizer) * trained + _moments(distill.teacher_optimizer) * trained_teacher
    parts = {
        "teacher weights": _FLOAT * whole / (shards if distill.needs_teacher else 1),
        "student weights": weights / shards,
        "gradients": _FLOAT * ((1 + ratios) * trained + trained_teacher) / shards,
        "optimizer": moments / shards,
        "activations": activations + cast,
        "logits": _FLOAT * vocab * (_COPIES * min(tokens, tokens_at_once(vocab, on_gpu)) + student.hidden_size),
        "validation": _validation(evaluation, vocab, 2 if evaluation.num_validations else 1),
    }
    if not sharded:
        return parts
    imitated = _gathered(teacher, mixed, bool(trained_teacher)) if distill.needs_teacher else 0
    return parts | {
        "gathered": _gathered(student, mixed, distill.lora is None) + imitated,
        "evaluation": _FLOAT * num_parameters(student) + _validation(evaluation, vocab, 1),
    }


def _gathered(config: Any, mixed: bool, trained: bool) -> int:
    """Return the bytes of a sharded model that a device gathers: all weights outside layers, and two layers.

    One layer runs while the next is gathered. If they are trained, their gradients are whole before they are divided.
    """
    model, prefix = meta_model(config), f"{anatomy_of(config).layers}."
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(prefix))
    layer = max(sum(p.numel() for p in layer.parameters()) for layer in layers_of(model))
    return _FLOAT * outside * (1 + trained) + (_HALF if mixed else _FLOAT) * layer * (2 + trained)


def num_trained(distill: Distill, student: Any, teacher: Any = None) -> int:
    """Return the number of parameters that a recipe trains, with those of the projection of hidden states."""
    model = meta_model(student)
    if distill.lora is not None:
        names = targets_of(model, distill.lora)
        shapes = [layer.get_parameter(f"{name}.weight").shape for layer in layers_of(model) for name in names]
        count = distill.lora.rank * sum(map(sum, shapes))
    else:
        with trained_part(model, distill):
            count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if teacher is None or not distill.alpha or student.hidden_size == teacher.hidden_size:
        return count
    pairs = len(pairs_of(distill, teacher.num_hidden_layers, student.num_hidden_layers))
    maps = pairs if distill.projection == "per_pair" else min(pairs, 1)
    return count + maps * (student.hidden_size + 1) * teacher.hidden_size


def _bytes_of_weights(distill: Distill, config: Any) -> float:
    """Return the bytes of a student's weights, those of adapters included."""
    if distill.lora is None:
        return _FLOAT * num_parameters(config)
    anatomy, quantized = anatomy_of(config), 0
    if distill.lora.quantize is not None:
        quantized = sum(p.numel() for n, p in meta_model(config).named_parameters() if anatomy.is_linear(n))
    others = num_parameters(config) - quantized + num_trained(distill, config)
    return _FLOAT * others + _NF4 * quantized


def _moments(optimizer: Any) -> int:
    """Return the bytes of optimizer state per trained parameter."""
    if optimizer is None:
        return 0
    return _FLOAT * (2 if optimizer.algorithm == "adamw" else bool(optimizer.beta1))


def _validation(evaluation: Evaluation, vocab: int, models: int) -> float:
    """Return the bytes of the logits of a validation batch."""
    size = _HALF if evaluation.precision == "bf16-mixed" else _FLOAT
    return models * size * min(BATCH_SIZE, evaluation.num_sequences) * evaluation.seq_len * vocab
