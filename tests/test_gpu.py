"""What an accelerator must not change.

Skipped where there is none; TEST_DEVICE=cpu runs the same lines on a CPU, to see that they run: its
models are traced as for a GPU, and the traced graphs run as they are, without a compiler.
"""
import math
import os

import pytest
import torch

import train
from conftest import ARMS, build, config_of
from lib.distributed import autocast
from lib.tokenizer import Tokenizer
from model import CODES

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
ABSENT = DEVICE.type == "cuda" and not torch.cuda.is_available()
pytestmark = pytest.mark.skipif(ABSENT, reason="needs a GPU")
WIDTH, T = (96, 32) if DEVICE.type == "cpu" else (384, 256)  # a CPU is slow at float16
# Arms that differ in scale and learning rate alone are one graph.
DIFFERENT = [arm for arm in ARMS
             if arm not in ("bpe_tied_usual", "bpe_untied_usual", "bpe_untied_fast",
                            "bpe_untied_unit", "bpe_untied_lr")]
SHAPE = "--n_layer=1", "--n_head=3", f"--n_embd={WIDTH}", f"--block_size={T}"


@pytest.fixture(scope="module")
def words(docs):
    """A tokenizer that takes no training: the single bytes and the first 2,000 words of the
    docstrings."""
    spaced = " ".join(docs).split(" ")
    found = dict.fromkeys(f" {word}".encode() for word in spaced)
    kept = [raw for raw in found if 1 < len(raw) < 40][:2000]
    return Tokenizer("words", [*(bytes([b]) for b in range(256)), *kept])


@pytest.fixture(scope="module")
def rows(words, docs):
    """Natural ids, (32, T + 1)."""
    return torch.tensor(words.encode("\n".join(docs))[:32 * (T + 1)]).view(32, T + 1)


@pytest.fixture(scope="module")
def batch(rows):
    """Inputs and targets, (4, T) each, on the device."""
    ids = rows[:4].to(DEVICE)
    return ids[:, :-1], ids[:, 1:]


def compiled(model):
    """The model as one graph; an error where that would take several. (Trigrams and phases are
    compiled to the bags of the whole vocabulary: their eager form asks which ids are distinct.)"""
    backend = "aot_eager" if DEVICE.type == "cpu" else "inductor"
    return torch.compile(model, fullgraph=True, backend=backend)


def results(model, batch, forward, dtype="float32"):
    """Loss and gradients of one step through `forward`, in float64 on the CPU. The loss is scaled
    up on its way back, as it is in training where float16 would lose small gradients."""
    model.zero_grad()
    with autocast(model.device, dtype):
        loss = forward(*batch)
    scale = 2.0**12
    (scale * loss).backward()
    found = [loss.detach(), *(p.grad / scale for p in model.parameters())]
    return [t.double().cpu() for t in found]


def distance(found, wanted):
    """The largest relative distance, |a - b| / |b|, of two lists of tensors; NaN, if there is
    one."""
    distances = [(a - b).norm() / b.norm() for a, b in zip(found, wanted, strict=True)]
    return torch.stack(distances).max().item()


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 without TF32: what differs is then the order of sums."""
    torch._dynamo.reset()
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("arm", DIFFERENT)
def test_an_arm_is_the_same_everywhere(arm, words, batch):
    """CPU, GPU and compiled agree on loss and gradients, to 1e-4 in float32; in float16, and
    compiled in bfloat16, to 3e-2."""
    model = build(arm, words, *SHAPE)
    wanted = results(model, [t.cpu() for t in batch], model)
    model.to(DEVICE)
    assert distance(results(model, batch, model), wanted) < 1e-4
    assert distance(results(model, batch, compiled(model)), wanted) < 1e-4
    assert distance(results(model, batch, model, "float16"), wanted) < 3e-2
    assert distance(results(model, batch, compiled(model), "bfloat16"), wanted) < 3e-2


WITH_TWO_FORMS = [arm for arm in DIFFERENT
                  if hasattr(CODES[config_of(f"configs/{arm}.py").code], "set_form")]


@pytest.mark.parametrize("arm", WITH_TWO_FORMS)
def test_table_and_on_the_fly_are_the_same(arm, words, batch):
    one, other = (build(arm, words, *SHAPE, f"--code_form={form}").to(DEVICE)
                  for form in ("on_the_fly", "table"))
    assert distance(results(one, batch, one), results(other, batch, other)) < 1e-4


class Rows:
    """What train_step asks of data: a block is one of the rows."""
    def __init__(self, rows):
        self.rows = rows.numpy()

    def blocks(self, split):
        return len(self.rows)

    def read(self, split, blocks):
        return self.rows[blocks]


def stepper(arm, words, rows, dtype, compile):
    """(step, scaler): train.py's own step of two micro-batches, number -> loss."""
    config = config_of(f"configs/{arm}.py", *SHAPE, "--batch_size=4", f"--dtype={dtype}",
                       "--gradient_accumulation_steps=2", "--warmup_steps=2")
    model = build(arm, words, *SHAPE).to(DEVICE)
    optimizer = train.make_optimizer(model, config)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == "float16")
    forward = compiled(model) if compile else model
    data = Rows(rows)

    def step(number):
        return train.train_step(number, forward, model, optimizer, scaler, data, config)[0]
    return step, scaler


@pytest.mark.parametrize("arm", DIFFERENT)
def test_a_compiled_step_neither_waits_nor_compiles_again(arm, words, rows):
    """From the third of train.py's own steps on there is no recompilation and the CPU never waits
    for the GPU."""
    step, _ = stepper(arm, words, rows, "bfloat16", compile=True)
    step(0)
    step(1)
    try:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        with torch.compiler.set_stance("fail_on_recompile"):
            for number in (2, 3, 4):
                step(number)
    finally:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("arm", ["bpe_untied", "kron"])
def test_float16_learns_as_float32_does(arm, words, rows):
    """Eight steps with a scaled loss: float16 ends within 0.05 nats of float32, and the scale has
    come down by two steps at most, each of which was skipped."""
    final = {}
    for dtype in ("float32", "float16"):
        step, scaler = stepper(arm, words, rows, dtype, compile=False)
        losses = [step(number).item() for number in range(8)]
        assert losses[-1] < losses[0] - 0.1
        final[dtype] = losses[-1]
    assert math.isclose(final["float16"], final["float32"], abs_tol=0.05)
    assert 2**14 <= scaler.get_scale() <= 2**16
