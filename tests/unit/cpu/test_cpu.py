"""CPU optimisations: they compute what PyTorch computes, and their effect is recorded."""

import copy
import json
import platform
import subprocess
import sys

import pytest
import torch
from families import CASES, generates_with_cache_as_without, logits, model_of, reloaded, token_ids
from measured import evidence_of
from refusals import refuses
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_prune import cpu
from lit_prune.cli.table import main
from lit_prune.config import Execution
from lit_prune.cpu import attention, matmul, threads
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.store import Node

OTHERS = sorted(set(attention.KERNELS) - {"sdpa"})


def plain_blocks(config):
    """Layers whose attention is plain causal: softcapping is beyond sdpa, so transformers takes another kernel, and a
    window shorter than the 17 tokens hides some."""
    if getattr(config, "attn_logit_softcapping", None):
        return 0
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return sum(not (kind == "sliding_attention" and window is not None and window < 17) for kind in types)


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    matmul.use(False)
    attention.use({})


class Counted:
    """A kernel that counts its calls."""

    def __init__(self, name):
        self.kernel, self.calls = attention.KERNELS[name], 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.kernel(*inputs)


def heads(*, batch=3, heads=6, groups=2, seq=17, width=8, dtype=torch.float32):
    """Queries, keys and values [batch, heads or groups, seq, width], laid out as a model hands them over."""
    draw = torch.Generator().manual_seed(0)
    sizes = (heads, groups, groups)
    drawn = (torch.randn(batch, seq, n, width, generator=draw).to(dtype).transpose(1, 2) for n in sizes)
    return [x.requires_grad_() for x in drawn]


def with_gradients(compute, inputs):
    out = compute(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


def trained(case):
    """Logits and the gradient of every parameter."""
    model = copy.deepcopy(model_of(case))
    out = model(input_ids=token_ids(), labels=token_ids(), use_cache=False)
    out.loss.backward()
    return {"logits": out.logits.detach()} | {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_of_every_family_are_those_of_sdpa(case):
    whole, kernel = trained(case), Counted("blocked")
    attention.use({torch.float32: kernel})
    # Of some biases the gradient is 0 but for rounding.
    most = max(float(gradient.abs().max()) for name, gradient in whole.items() if name != "logits")
    for name, found in trained(case).items():
        assert torch.allclose(found, whole[name], rtol=1e-5, atol=1e-5 * most), name
    assert kernel.calls == plain_blocks(model_of(case).config)


@pytest.mark.parametrize("sizes", [{}, {"groups": 6}, {"groups": 1}, {"seq": 300, "heads": 8, "groups": 4}])
@pytest.mark.parametrize("name", OTHERS)
def test_a_kernel_agrees_with_float64(name, sizes):
    inputs = heads(**sizes)
    exact = with_gradients(lambda *x: attention.native(*x, 0.3), [x.detach().double().requires_grad_() for x in inputs])
    for ours, theirs in zip(with_gradients(lambda *x: attention.KERNELS[name](*x, 0.3), inputs), exact, strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", OTHERS)
def test_in_bfloat16_a_kernel_errs_no_more_than_pytorchs_own(name):
    inputs = heads(seq=64, dtype=torch.bfloat16)
    exact = with_gradients(lambda *x: attention.native(*x, 0.3), [x.detach().double().requires_grad_() for x in inputs])

    def errors(kernel):
        found = with_gradients(lambda *x: kernel(*x, 0.3).to(torch.bfloat16), inputs)
        return [float((ours - theirs).norm()) for ours, theirs in zip(found, exact, strict=True)]

    for ours, theirs in zip(errors(attention.KERNELS[name]), errors(attention.native), strict=True):
        assert ours <= 1.1 * theirs


@pytest.mark.parametrize("name", OTHERS)
def test_under_autocast_it_gives_bfloat16_and_errs_no_more(name):
    exact, kernel = trained("llama"), Counted(name)

    def error():
        with torch.autocast("cpu", torch.bfloat16):
            found = trained("llama")
        assert found["logits"].dtype == torch.bfloat16
        return sum(float((found[name] - exact[name]).norm()) ** 2 for name in exact) ** 0.5

    before = error()
    attention.use({torch.bfloat16: kernel})
    assert 0 < error() < 1.1 * before
    assert kernel.calls == 3


def test_without_gradients_and_with_them_afterwards():
    attention.use({torch.float32: attention.blocked})
    with torch.inference_mode():
        first = model_of("llama")(input_ids=token_ids(), use_cache=False).logits
    assert torch.equal(first, trained("llama")["logits"])


def test_one_thread_and_two_give_the_same_bits():
    inputs = heads(heads=8, groups=4, seq=256, width=32)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(with_gradients(lambda *x: attention.blocked(*x, 0.2), inputs))
    torch.set_num_threads(1)
    assert all(map(torch.equal, *found))


UNUSUAL = {
    "a mask": {"attention_mask": torch.ones(3, 1, 17, 17, dtype=torch.bool).tril()},
    "dropout": {"dropout": 0.5},
    "not causal": {"is_causal": False},
    "a window": {"sliding_window": 5},
    "scores that are wanted": {"output_attentions": True},
    "a bias of positions": {"position_bias": torch.ones(1, 6, 17, 17)},
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_whatever_is_not_plain_causal_attention_stays_with_sdpa(what):
    kernel = Counted("blocked")
    attention.use({torch.float32: kernel})
    found = []
    for attend in (attention.attend, sdpa_attention_forward):
        torch.manual_seed(0)
        options = {"attention_mask": None} | UNUSUAL[what]
        found.append(attend(torch.nn.Module(), *heads(groups=6), options.pop("attention_mask"), **options)[0])
    assert torch.equal(*found)
    assert kernel.calls == 0


@pytest.mark.parametrize("sizes", [{"seq": attention.MAX_TOKENS + 1, "heads": 2, "groups": 2, "batch": 1}, {"seq": 1}])
def test_long_sequences_and_single_tokens_stay_with_sdpa(sizes):
    kernel, inputs = Counted("blocked"), heads(**{"groups": 6} | sizes)
    attention.use({torch.float32: kernel})
    ours, _ = attention.attend(torch.nn.Module(), *inputs, None)
    assert torch.equal(ours, sdpa_attention_forward(torch.nn.Module(), *inputs, None)[0])
    assert kernel.calls == 0


def test_generation_and_padding_are_as_without():
    filled = torch.ones_like(token_ids()).index_fill_(1, torch.arange(4), 0)
    inputs = {"input_ids": token_ids(), "attention_mask": filled}
    with torch.no_grad():
        whole = model_of("llama")(**inputs).logits
        attention.use({torch.float32: attention.blocked})
        assert torch.equal(model_of("llama")(**inputs).logits, whole)
    assert generates_with_cache_as_without(model_of("llama"))


def test_a_saved_model_says_nothing_of_the_kernel(tmp_path):
    model = model_of("llama")
    whole = logits(model)
    attention.use({torch.float32: attention.blocked})
    again, config = reloaded(model, tmp_path)
    assert model.config._attn_implementation == again.config._attn_implementation == "sdpa"
    assert "blocked" not in json.dumps(config)
    attention.use({})
    assert torch.equal(logits(again), whole)


def test_onednn_is_taken_only_where_it_is_exact():
    status, operands = matmul.switch(True), matmul._operands()
    assert status.startswith("on: " if matmul.using() else "off: ")
    if matmul.using():
        assert all(matmul._error(a, b) <= matmul.EXACT for a, b in operands)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(matmul._error(a, b) > 100 * matmul.EXACT for a, b in operands)
    assert matmul.switch(False) == "off"
    assert not matmul.using()


def test_attention_does_without_onednn_forward_and_backward():
    plain = with_gradients(lambda *x: attention.native(*x, 0.3), heads())
    matmul.use(True)
    apart = with_gradients(lambda *x: attention.native(*x, 0.3), heads())
    assert all(map(torch.equal, plain, apart))
    assert matmul.using()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
def test_kept_pages_are_not_asked_for_again():
    script = (
        "import resource, sys\n"
        "from lit_prune.cpu import allocator\n"
        "assert sys.argv[1] == 'plain' or allocator.switch(True) == 'on'\n"
        "def step(): [b'x' * 2**24 for _ in range(3)], b'x' * 2**20\n"
        "step(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5): step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = [
        int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True).stdout)
        for how in ("plain", "kept")
    ]
    assert faults[1] < faults[0] / 10


def test_as_many_threads_as_cores_are_idle():
    assert [threads.idle(4, busy) for busy in (0.0, 0.4, 1.0, 2.6, 9.0)] == [4, 4, 3, 1, 1]
    assert [threads.idle(2, busy) for busy in (0.3, 0.6)] == [2, 1]
    try:
        assert threads.switch(True, 2) == torch.get_num_threads() == 2
        assert threads.switch(True, None) == 2  # OMP_NUM_THREADS is set, and a user's word
    finally:
        torch.set_num_threads(1)
    with refuses("--threads", ">= 1", "got 0"):
        cpu.choose(Execution(threads=0))


def test_what_is_ranked_is_measured_plainly(tmp_path):
    model, ids = copy.deepcopy(model_of("llama")), token_ids()
    whole = evidence_of(model, ids, tmp_path / "plain").statistics
    kernel = Counted("blocked")
    matmul.use(True)
    attention.use({torch.float32: kernel})
    found = evidence_of(model, ids, tmp_path / "forced").statistics
    torch.testing.assert_close(found, whole, rtol=0, atol=0, equal_nan=True)
    assert kernel.calls == 0
    assert matmul.using()
    logits(model)
    assert kernel.calls == 3


SMALL = {
    "calibration.num_sequences": 4, "calibration.seq_len": 32, "distill.seq_len": 32, "distill.batch_size": 2,
    "distill.max_steps": 4,
    "distill.optimizer.warmup_steps": 1, "evaluation.num_sequences": 2, "evaluation.seq_len": 32,
}  # fmt: skip


@pytest.mark.slow
def test_a_cell_is_the_same_to_rounding_and_says_how_it_was_computed(texts, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in texts))
    settings = [word for path, value in SMALL.items() for word in ("--set", f"{path}={value}")]

    def computed(store, how):
        words = ["--set", f"corpus.path={text}", "--filter", "logit_loss=kld", "--seeds", "1", "--wandb", "disabled"]
        assert main(TABLE, [*settings, *words, "--cpu", how, "--store", str(tmp_path / store)]) == 0
        return {folder.name: Node(folder) for folder in (tmp_path / store / "cell").iterdir()}

    plain = computed("plain", "plain")
    cpu.choose(Execution(cpu="auto"))
    cpu.prepare(attention.AttentionShape(batch=2, heads=6, groups=2, seq_len=32, head_dim=32))  # of the cells
    matmul.use(True)  # stays on, since the same wishes are granted once
    attention.use({torch.float32: attention.blocked})
    auto = computed("auto", "auto")
    assert plain.keys() == auto.keys()
    for address, node in plain.items():
        assert auto[address].result["lm_loss"] == pytest.approx(node.result["lm_loss"], rel=1e-5)
        assert auto[address].result["lm_loss"] != node.result["lm_loss"]
        assert node.env["cpu"]["matmul"] == "off"
    recorded = auto[address].env["cpu"]
    assert recorded.keys() == {"matmul", "allocator", "attention", "threads"}
    assert recorded["attention"].keys() == {"float32", "bfloat16"}
    assert recorded["threads"] == 1
