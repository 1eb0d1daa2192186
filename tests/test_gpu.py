"""What an accelerator must not change.

Skipped where there is none; TEST_DEVICE=cpu runs the same lines on a CPU, to see that they run.
"""
import os

import pytest
import torch

import train
from conftest import ARMS, build
from lib.tokenizer import Tokenizer

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
pytestmark = pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")
SHAPE = "--n_layer=2", "--n_head=6", "--n_embd=384", "--block_size=256"


@pytest.fixture(scope="module")
def words(docs):
    """A tokenizer that takes no training: the single bytes and the words of the docstrings."""
    found = dict.fromkeys(word.encode() for text in docs for word in f" {text}".replace(" ", "\0 ").split("\0")
                          if 1 < len(word.encode()) < 40)
    return Tokenizer("words", [*(bytes([b]) for b in range(256)), *found])


@pytest.fixture(scope="module")
def batch(words, docs):
    """Natural ids: inputs and targets, (4, 256) each, on the device."""
    ids = torch.tensor(words.encode("\n".join(docs))[:4 * 257]).view(4, 257).to(DEVICE)
    return ids[:, :-1], ids[:, 1:]


def results(model, batch, forward, dtype=torch.float32):
    """Loss and gradients of one step through `forward`, in float64 on the CPU."""
    model.zero_grad()
    with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
        loss = forward(*batch)
    loss.backward()
    return [t.detach().double().cpu() for t in (loss, *(p.grad for p in model.parameters()))]


def distance(found, wanted):
    """The largest relative distance, |a - b| / |b|, of two lists of tensors."""
    # NaN, if there is one.
    return torch.stack([(a - b).norm() / b.norm() for a, b in zip(found, wanted, strict=True)]).max().item()


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 without TF32: what differs is then the order of sums."""
    torch._dynamo.reset()
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_the_same_everywhere(arm, words, batch):
    """CPU, GPU and compiled agree on loss and gradients, to 1e-4 in float32; compiled in bfloat16 to 3e-2."""
    model = build(arm, words, *SHAPE)
    wanted = results(model, [t.cpu() for t in batch], model)
    model.to(DEVICE)
    compiled = torch.compile(model, fullgraph=True)
    assert distance(results(model, batch, model), wanted) < 1e-4
    assert distance(results(model, batch, compiled), wanted) < 1e-4
    assert distance(results(model, batch, compiled, torch.bfloat16), wanted) < 3e-2


@pytest.mark.parametrize("arm", ["binary", "affine", "kron", "random"])
def test_table_and_on_the_fly_are_the_same(arm, words, batch):
    one, other = (build(arm, words, *SHAPE, f"--code_form={form}").to(DEVICE) for form in ("on_the_fly", "table"))
    assert distance(results(one, batch, one), results(other, batch, other)) < 1e-4


@pytest.mark.parametrize("arm", ["kron", "bpe_untied"])
def test_a_compiled_step_neither_waits_nor_compiles_again(arm, words, batch):
    """From the third step on there is no recompilation and the CPU never waits for the GPU."""
    config, _, _ = train.compose([f"configs/{arm}.py", *SHAPE])
    model = build(arm, words, *SHAPE).to(DEVICE)
    optimizer, forward = train.make_optimizer(model, config), torch.compile(model, fullgraph=True)

    def step():
        forward(*batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    step()
    step()
    try:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(3):
                step()
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
