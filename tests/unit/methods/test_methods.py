"""Contracts of every registered pruning method, each against an independent computation, and one from user code."""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_context import IDS, LAYERS, context_of, made, small_llama
from refusals import refuses
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import lit_prune as lp
from lit_prune.cli.compress import distill_flags
from lit_prune.cli.main import main, parse
from lit_prune.config import Cell, ConfigError, Execution, Prune, Teacher
from lit_prune.config.overrides import build, fields_of, override, parse_setting, plain_of
from lit_prune.methods import method, methods
from lit_prune.models.linears import linears_of
from lit_prune.models.shape import ModelShape
from lit_prune.pipeline.validate import check_names, check_zeros
from lit_prune.pruning.bases.score_and_cut import ScoreAndCut
from lit_prune.pruning.context import PruneContext, Pruned
from lit_prune.pruning.masks import apply_masks, both, check_zero, save_masks
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.surgery import cut
from lit_prune.store.address import key

# Contracts


@pytest.mark.parametrize("name", list(methods))
def test_zeros_of_a_sparse_model_stay_zero_or_the_method_is_refused(name: str, tmp_path: Path) -> None:
    """The pipeline would set zeros that a method had filled, but the model would no longer be the one it made."""
    chosen, model, draw = made(name), small_llama(), torch.Generator().manual_seed(0)
    masks = {path: torch.rand(module.weight.shape, generator=draw) < 0.7 for path, module in linears_of(model)}
    apply_masks(model, masks)
    model.save_pretrained(tmp_path)
    save_masks(masks, tmp_path)
    cell = dataclasses.replace(Cell(), teacher=Teacher(model=str(tmp_path)), prune=chosen)
    if not chosen.keeps_zeros:
        with refuses("prune.method", name):
            check_zeros(cell)
        return
    check_zeros(cell)
    found = chosen.prune(model, context_of(tmp_path))
    kept = masks if found.plan is None else cut(masks, found.plan, model.config)
    check_zero(found.model, both(kept, found.masks or {}), name)


def test_corrections_refuse_sparse_models_and_searches_take_them() -> None:
    assert not any(made(name).keeps_zeros for name in ("fasp", "laco", "loraprune", "slicegpt"))
    assert all(made(name).keeps_zeros for name in ("bonsai", "puzzle", "cfsp", "bypass_bp"))
    assert made("fasp", correction=False).keeps_zeros


@pytest.mark.parametrize("name", list(methods))
def test_check_refuses_what_cannot_be_pruned(name: str, model: Any, ctx: PruneContext) -> None:
    wrong = dict.fromkeys(("num_hidden_layers", "intermediate_size", "num_parameters", "slice_fraction", "rank"), 1000)
    wrong |= {"sparsity": 1.0}
    size = next(path for path in wrong if getattr(methods[name](), path, None) is not None)
    chosen = made(name, **{size: wrong[size]})
    for compute in (chosen.check, chosen.config_of, lambda config: chosen.prune(model, ctx)):
        with pytest.raises(ConfigError):
            compute(model.config)


@pytest.mark.parametrize("name", list(methods))
def test_settings_are_identity_and_survive_plain_data(name: str) -> None:
    cell = override(Cell(), {"prune.method": name})
    assert type(cell.prune) is methods[name]
    assert cell.prune.method == name
    assert build(Cell, plain_of(cell)) == cell
    assert (key(cell) == key(Cell())) == (name == "minitron")


@pytest.mark.parametrize("name", list(methods))
def test_retraining_is_valid_and_can_be_given_as_flags(name: str) -> None:
    changes = methods[name].retraining
    check_names(override(Cell(), changes))
    words = iter(distill_flags(changes))
    given = {word: value for word in words for value in [next(words)]}
    assert len([word for word in distill_flags(changes) if word.startswith("--")]) == len(changes)
    assert set(given) <= {"--max-steps", "--batch-size", "--lr", "--logit-loss", "--set"}


# The section


def test_a_method_begins_with_its_defaults_whatever_the_order() -> None:
    before = override(Cell(), {"prune.num_hidden_layers": 3, "prune.init": "random"})
    changes = {"prune.num_hidden_layers": 0.5, "prune.method": "shortgpt"}
    for given in (changes, dict(reversed(changes.items()))):
        assert override(before, given).prune == methods["shortgpt"](num_hidden_layers=0.5)
    assert override(before, {"prune.method": "minitron"}) == before
    parent = override(Cell(), {"parent.prune.num_hidden_layers": 5, "parent.prune.method": "reassessing"})
    assert lp.config.overrides.parent_of(parent).prune == methods["reassessing"](num_hidden_layers=5)


@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"prune.method": "shortgtp"}, "prune.method", ("shortgpt", "minitron")),
        ({"prune.method": "shortgpt", "prune.hidden_size": 16}, "prune.hidden_size", ("shortgpt", "num_hidden_layers")),
        ({"prune.method": "shortgpt", "prune.num_hidden_layers": "half"}, "prune.num_hidden_layers", ("half",)),
        ({"prune.method": 3}, "prune.method", ("'3'", "minitron")),
    ],
)
def test_what_a_method_lacks_is_refused(changes: dict[str, Any], field: str, values: tuple[str, ...]) -> None:
    with refuses(field, *values):
        override(Cell(), changes)


def test_fields_of_each_method_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "prune"]) == 0
    shown = capsys.readouterr().out
    assert all(path in shown for path in fields_of(Cell) if path.startswith("prune."))
    assert "prune.deeper_layers" in shown
    assert main(["fields", "prune.deeper_layers"]) == 0
    shown = capsys.readouterr().out
    assert "prune.selection" in shown
    assert "prune.hidden_size" not in shown


# Each method


def states(model: Any) -> torch.Tensor:
    """Inputs of all layers and the output of the last one, before the final norm: [layers + 1, batch, seq, hidden]."""
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in model.model.layers]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0])))
    with torch.no_grad():
        model(IDS)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).double()


def layers_of(found: Pruned) -> list[int]:
    assert found.plan is not None
    return [block.index for block in found.plan.layers]


def test_shortgpt_drops_the_layers_of_least_influence(model: Any, ctx: PruneContext) -> None:
    x = states(model)
    influence = (1 - torch.cosine_similarity(x[:-1], x[1:], dim=-1)).mean((1, 2))
    gone = influence.argsort()[:3].tolist()
    found = methods["shortgpt"](num_hidden_layers=LAYERS - 3).prune(model, ctx)
    assert layers_of(found) == [i for i in range(LAYERS) if i not in gone]


@pytest.mark.parametrize("drop", [1, 2, 3])
def test_deeper_layers_drops_the_span_that_turns_the_last_token_least(model: Any, ctx: PruneContext, drop: int) -> None:
    x = states(model)[:, :, -1]
    cosines = torch.cosine_similarity(x[:-drop], x[drop:], dim=-1)
    start = int((cosines.arccos() / math.pi).mean(1).argmin())
    found = methods["deeper_layers"](num_hidden_layers=LAYERS - drop).prune(model, ctx)
    assert layers_of(found) == [i for i in range(LAYERS) if not start <= i < start + drop]
    simple = methods["deeper_layers"](num_hidden_layers=LAYERS - drop, selection="simple")
    assert layers_of(simple.prune(model, ctx)) == [*range(LAYERS - drop - 1), LAYERS - 1]
    assert simple.statistics(model.config) == frozenset()


def test_reassessing_drops_the_last_quarter(model: Any, ctx: PruneContext) -> None:
    assert layers_of(methods["reassessing"]().prune(model, ctx)) == [0, 1, 2, 3, 4, 5]


def test_llm_pruner_keeps_first_and_last_layers_whole_and_the_best_units_of_the_others(
    model: Any, ctx: PruneContext
) -> None:
    twin = LlamaForCausalLM(model.config).double()
    twin.load_state_dict(model.state_dict())
    twin(IDS, labels=IDS).loss.backward()
    found = methods["llm_pruner"](spare_first=2, spare_last=1, num_key_value_heads=1).prune(model, ctx)
    assert found.plan is not None
    for i, (block, layer) in enumerate(zip(found.plan.layers, twin.model.layers, strict=True)):
        if i < 2 or i == LAYERS - 1:
            assert (len(block.neurons), len(block.heads)) == (40, 4)
            continue
        change = {name: (p * p.grad).abs() for name, p in layer.named_parameters()}
        neurons = change["mlp.gate_proj.weight"].sum(1) + change["mlp.up_proj.weight"].sum(1)
        neurons = neurons + change["mlp.down_proj.weight"].sum(0)
        assert block.neurons == tuple(sorted(neurons.argsort(descending=True)[:30].tolist()))
        heads = change["self_attn.q_proj.weight"].sum(1) + change["self_attn.o_proj.weight"].sum(0)
        group = int(heads.view(2, -1).sum(1).argmax())
        assert block.heads == (2 * group, 2 * group + 1)
    with pytest.raises(ConfigError):
        methods["llm_pruner"](spare_first=5, spare_last=3).check(model.config)


@pytest.mark.parametrize(("layers", "first", "last"), [(5, 0, 0), (16, 2, 1), (32, 4, 2)])
def test_llm_pruner_spares_the_published_share_of_the_layers(layers: int, first: int, last: int) -> None:
    plan = PrunePlan.everything(ModelShape(layers, 8, 8, 2, 2))
    half = dataclasses.replace(plan, layers=tuple(dataclasses.replace(one, heads=(0,)) for one in plan.layers))
    heads = [len(layer.heads) for layer in methods["llm_pruner"]().adjust(half).layers]
    assert heads == [2] * first + [1] * (layers - first - last) + [2] * last


def test_rows_of_two_methods_that_prune_alike_are_recognised(model: Any) -> None:
    tail = Prune(num_hidden_layers=6, layer_selection="last", hidden_size=None, intermediate_size=None)
    tail = dataclasses.replace(tail, num_attention_heads=None)
    ours, theirs = methods["reassessing"](), methods["minitron"](**{
        field.name: getattr(tail, field.name) for field in dataclasses.fields(tail)
    })  # fmt: skip
    assert ours.effective(model.config) == theirs.effective(model.config)
    assert ours.effective(model.config) != methods["shortgpt"]().effective(model.config)


# From user code


@pytest.fixture
def own_method(monkeypatch: pytest.MonkeyPatch) -> str:
    """A method that keeps the first layers."""
    monkeypatch.setattr(methods, "_parts", dict(methods._parts))

    @method("own")
    @dataclasses.dataclass(frozen=True)
    class Own(ScoreAndCut):
        share: float = 0.5

        def recipe(self, config: Any) -> Prune:
            return self.keep(num_hidden_layers=self.share, layer_selection="last")

    return "own"


def test_a_method_of_user_code_prunes_through_the_pipeline(own_method: str, tiny_cell: Any, tmp_path: Path) -> None:
    assert own_method in lp.registry.names()["methods"]
    assert lp.registry.methods is methods
    found = lp.prune(
        tmp_path / "tiny", method=own_method, out=tmp_path / "small", corpus=str(tmp_path / "text.txt"), seq_len=32,
        store=tmp_path / "store", execution=Execution(accelerator="cpu"),
        settings={
            "prune.share": 0.34, "calibration.num_sequences": 4, "evaluation.num_sequences": 4,
            "corpus.holdout_fraction": 0.2,
        },
    )  # fmt: skip
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").config.num_hidden_layers == 1
    assert found.student["parameters"] < found.teacher["parameters"]


def test_the_command_prunes_by_a_method(tiny_cell: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("calibration.num_sequences=4", "evaluation.num_sequences=4", "corpus.holdout_fraction=0.2")
    words = ["prune", str(tmp_path / "tiny"), "--method", "deeper_layers", "--num-hidden-layers", "2"]
    words += ["--corpus", str(tmp_path / "text.txt"), "--seq-len", "32", "--store", str(tmp_path / "store")]
    words += [word for setting in few for word in ("--set", setting)]
    assert main([*words, "--out", str(tmp_path / "small")]) == 0
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("retrain as published")]
    verb, flags = parse(shlex.split(printed.partition("lit-prune ")[2]))
    assert verb.name == "distill"
    assert (flags.student, flags.teacher) == (str(tmp_path / "small"), str(tmp_path / "tiny"))
    assert (flags.corpus, flags.seq_len, flags.store) == (str(tmp_path / "text.txt"), 32, str(tmp_path / "store"))
    assert "distill.lora.rank=2" in flags.set
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").config.num_hidden_layers == 2
    assert main([*words, "--out", str(tmp_path / "other"), "--hidden-size", "16"]) == 2
    assert "prune.hidden_size" in capsys.readouterr().err
    assert parse_setting("prune.method=shortgpt") == ("prune.method", "shortgpt")
