"""What an accelerator must not change.

Skipped where there is none; TEST_DEVICE=cpu runs the same lines on a CPU, to see that they run: its
models are traced as for a GPU, and the traced graphs run as they are, without a compiler.
"""
import os
from types import SimpleNamespace

import pytest
import torch

import train
from conftest import ARMS, build, config_of
from lib.distributed import autocast
from lib.tokenizer import Tokenizer

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
CPU = DEVICE.type == "cpu"
ABSENT = DEVICE.type == "cuda" and not torch.cuda.is_available()
pytestmark = pytest.mark.skipif(ABSENT, reason="needs a GPU")
WIDTH, T = (96, 32) if CPU else (384, 256)  # a CPU is slow at float16
SHAPE = "--n_layer=1", "--n_head=3", f"--n_embd={WIDTH}", f"--block_size={T}"
# Tables that differ in scale and learning rate alone are one graph.
DIFFERENT = [arm for arm in ARMS if not arm.startswith(("bpe_tied_", "bpe_untied_"))]


@pytest.fixture(scope="module")
def words(docs):
    """A tokenizer that takes no training: single bytes and 2,000 words of the docstrings."""
    found = dict.fromkeys(f" {word}".encode() for word in " ".join(docs).split(" "))
    kept = [raw for raw in found if 1 < len(raw) < 40][:2000]
    return Tokenizer("words", [*(bytes([b]) for b in range(256)), *kept])


@pytest.fixture(scope="module")
def rows(words, docs):
    """Natural ids, (32, T + 1)."""
    return torch.tensor(words.encode("\n".join(docs))[:32 * (T + 1)]).view(32, T + 1)


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 without TF32: what differs is then the order of sums."""
    torch._dynamo.reset()
    torch.set_float32_matmul_precision("highest")


def compiled(model):
    """The model as one graph; an error where that would take several."""
    return torch.compile(model, fullgraph=True, backend="aot_eager" if CPU else "inductor")


def results(model, rows, forward, dtype="float32"):
    """Loss and gradients of one step through `forward`, in float64 on the CPU. The loss is scaled
    up on its way back, as in training, where float16 would lose small gradients."""
    ids, scale = rows[:4].to(model.device), 2.0**12
    model.zero_grad()
    with autocast(model.device, dtype):
        loss = forward(ids[:, :-1], ids[:, 1:])
    (scale * loss).backward()
    found = [loss.detach(), *(p.grad / scale for p in model.parameters())]
    return [t.double().cpu() for t in found]


def distance(found, wanted):
    """The largest relative distance, |a - b| / |b|, of two lists of tensors; NaN if one is."""
    distances = [(a - b).norm() / b.norm() for a, b in zip(found, wanted, strict=True)]
    return torch.stack(distances).max().item()


@pytest.mark.parametrize("arm", DIFFERENT)
def test_an_arm_is_the_same_everywhere(arm, words, rows):
    """CPU, GPU, compiled and the table form, if there is one, agree on loss and gradients, to 1e-4
    in float32; in float16, and compiled in bfloat16, to 3e-2."""
    model = build(arm, words, *SHAPE)
    wanted = results(model, rows, model)
    model.to(DEVICE)
    assert distance(results(model, rows, model), wanted) < 1e-4
    assert distance(results(model, rows, compiled(model)), wanted) < 1e-4
    assert distance(results(model, rows, model, "float16"), wanted) < 3e-2
    assert distance(results(model, rows, compiled(model), "bfloat16"), wanted) < 3e-2
    if hasattr(model.transformer.wte, "set_form"):
        table = build(arm, words, *SHAPE, "--code_form=table").to(DEVICE)
        assert distance(results(table, rows, table), wanted) < 1e-4


def stepper(arm, words, rows, dtype, compile):
    """(step, scaler): train.py's own step of two micro-batches, number -> loss."""
    config = config_of(f"configs/{arm}.py", *SHAPE, "--batch_size=4", f"--dtype={dtype}",
                       "--gradient_accumulation_steps=2", "--warmup_steps=2")
    model = build(arm, words, *SHAPE).to(DEVICE)
    optimizer = train.make_optimizer(model, config)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == "float16")
    forward = compiled(model) if compile else model
    data = SimpleNamespace(blocks=lambda split: len(rows),
                           read=lambda split, blocks: rows.numpy()[blocks])
    args = forward, model, optimizer, scaler, data, config
    return lambda number: train.train_step(number, *args)[0], scaler


@pytest.mark.parametrize("arm", DIFFERENT)
def test_a_compiled_step_neither_waits_nor_compiles_again(arm, words, rows):
    """From the third of train.py's own steps on a recompilation is an error, and so is a wait of
    the CPU for the GPU."""
    step, _ = stepper(arm, words, rows, "bfloat16", compile=True)
    losses = [step(0), step(1)]
    watch = torch.cuda.set_sync_debug_mode if DEVICE.type == "cuda" else lambda mode: None
    try:
        watch("error")
        with torch.compiler.set_stance("fail_on_recompile"):
            losses += [step(number) for number in (2, 3, 4)]
    finally:
        watch("default")
    assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize("arm", ["bpe_untied", "kron"])
def test_float16_learns_as_float32_does(arm, words, rows):
    """Eight steps with a scaled loss: float16 ends within 0.05 nats of float32, and the scale has
    come down by two steps at most, each of which was skipped."""
    ends = []
    for dtype in ("float32", "float16"):
        step, scaler = stepper(arm, words, rows, dtype, compile=False)
        losses = [step(number).item() for number in range(8)]
        assert losses[-1] < losses[0] - 0.1
        ends.append(losses[-1])
    assert abs(ends[0] - ends[1]) < 0.05 and 2**14 <= scaler.get_scale() <= 2**16
