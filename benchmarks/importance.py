"""Cost of importance estimation relative to its forward passes.

    python -m benchmarks.importance [--shape smollm2] [--threads 1] [--repeats 7] [--json FILE]

Uses a model of the shipped teacher's shape, or of SmolLM2-135M's, with random weights, as only cost is measured; see
benchmarks/measuring.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import measuring
from benchmarks.shapes import SHAPES
from lit_prune.config import Pretraining
from lit_prune.importance.collect import READERS, Calibrator
from lit_prune.importance.layer_ablation import Removals, next_token_losses, sequences_at_once
from lit_prune.models.model_family import layers_of

FORWARD: dict[str, tuple[str, ...]] = {
    "plain forward": (),
    "nine aggregations": ("importance",),
    "influence of all spans": ("distances",),
    "both": ("importance", "distances"),
    "all that a forward pass shows": tuple(READERS),
}
"""Name -> statistics collected during the pass."""


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importance", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shape",
        choices=["shipped", "smollm2"],
        default="shipped",
        help="model: of the shipped teacher, or SmolLM2-135M",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (7)")
    parser.add_argument("--sequences", type=int, default=64, help="calibration sequences (64)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens in a sequence (256)")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a batch (16)")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 16], help="depths to leave layers out at (6 16)")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    environment = measuring.environment("transformers")
    data = f"{args.sequences} sequences of {args.tokens} tokens, {args.batch} at once; {args.repeats} rounds"
    print(f"{measuring.environment_line(environment)}; {data}\n")
    found: dict[str, Any] = {"environment": environment, "data": data}
    found["forward"] = timings = measuring.compare(forward_passes(args), args.repeats)
    measuring.print_timings("one pass over the calibration set", timings)
    if sys.platform == "linux":
        found["memory"] = peaks = [measuring.peak_memory(what, pass_of, what, args) for what in FORWARD]
        measuring.print_peaks("peak memory of one pass", peaks)
    for depth in args.layers:
        ways, evaluations = removals(depth, args)
        timings = measuring.compare(ways, args.repeats)
        found[f"removals, {depth} layers"] = {"timings": timings, "evaluations": evaluations}
        title = f"loss without each of {depth} layers"
        measuring.print_timings(title, timings, evaluations_of_a_layer=evaluations)
    if args.json:
        measuring.write(args.json, found)


def teacher(args: argparse.Namespace, layers: int | None = None) -> Any:
    """Return a random model of the requested shape, or of another depth."""
    sizes = SHAPES["smollm2"].teacher if args.shape == "smollm2" else _shipped()
    depth = {} if layers is None else {"num_hidden_layers": layers}
    config = LlamaConfig(**sizes | depth, max_position_embeddings=2048, tie_word_embeddings=args.shape == "smollm2")
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def _shipped() -> dict[str, int]:
    """Return the sizes of the shipped teacher, which are those of the default pretraining."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    return {name: getattr(Pretraining(), name) for name in (*names, "num_hidden_layers")}


def batches(args: argparse.Namespace) -> list[Tensor]:
    """Return batches of random tokens, int64 [batch, tokens]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, _shipped()["vocab_size"], (args.sequences, args.tokens), generator=generator)
    return list(ids.split(args.batch))


def forward_passes(args: argparse.Namespace) -> dict[str, measuring.Way]:
    """Return passes over the calibration set that collect different statistics."""
    model, data = teacher(args), batches(args)
    return {what: lambda names=names: forward(model, data, names) for what, names in FORWARD.items()}  # type: ignore[misc]


@torch.inference_mode()
def forward(model: Any, data: list[Tensor], names: tuple[str, ...]) -> None:
    """Run one pass without the head; without names it has no hooks."""
    reader = Calibrator(model, names, lambda seen: None)
    for ids in data:
        reader.read({"input_ids": ids})
    reader.found()


def removals(depth: int, args: argparse.Namespace) -> tuple[dict[str, measuring.Way], dict[str, int]]:
    """Return two ways to compute the loss without each layer, naive and with cached prefix states.

    Also return the number of layer evaluations of each for one batch.
    """
    model, data = teacher(args, depth), batches(args)
    ways: dict[str, measuring.Way] = {
        "naive": lambda: naive(model, data),
        "prefix reuse": lambda: prefix_reuse(model, data),
    }
    evaluations = {}
    for what, way in (("naive", naive), ("prefix reuse", prefix_reuse)):
        counted: list[int] = []
        hooks = [b.self_attn.register_forward_hook(lambda *_, c=counted: c.append(1)) for b in model.model.layers]
        way(model, [data[0][:1]])
        for hook in hooks:
            hook.remove()
        evaluations[what] = len(counted)
    return ways, evaluations


@torch.inference_mode()
def naive(model: Any, data: list[Tensor]) -> None:
    """Run the model without each layer in turn, in the same portions as `prefix_reuse`."""
    layers = layers_of(model)
    try:
        for i in range(len(layers)):
            model.model.layers = nn.ModuleList(layers[:i] + layers[i + 1 :])
            for batch in data:
                for ids in batch.split(sequences_at_once(batch, model.config.vocab_size)):
                    next_token_losses(model(input_ids=ids, use_cache=False).logits, ids).double().sum()
    finally:
        model.model.layers = nn.ModuleList(layers)


@torch.inference_mode()
def prefix_reuse(model: Any, data: list[Tensor]) -> None:
    """Run lit_prune's layer ablation, which also computes the loss of the whole model."""
    reader = Removals(model, 1, lambda seen: None)
    for ids in data:
        reader.read({"input_ids": ids, "labels": ids})
    reader.found()


def pass_of(what: str, args: argparse.Namespace) -> measuring.Way:
    """Return a forward pass of `FORWARD`, after a small one that triggers lazy loading."""
    model, data = teacher(args), batches(args)
    forward(model, [data[0][:1, :8]], ())
    return lambda: forward(model, data, FORWARD[what])


if __name__ == "__main__":
    main()
