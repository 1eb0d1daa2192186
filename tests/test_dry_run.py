"""--dry_run: what a run would take, without running it."""
import os
import re
import subprocess
import sys

import pytest

import train
from conftest import ROOT, config_of, tree
from lib.data import Data
from lib.run_folder import build_model

MEASURE = """
import re
import torch
from lib.config import compose
from lib.distributed import autocast
from lib.hardware import estimate_memory
from model import GPT
from train import make_optimizer

def field(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def steps(dtype, *shape):
    config = compose(["--head=table", "--device=cpu", f"--dtype={dtype}", *shape])[0]
    model = GPT(config)
    optimizer = make_optimizer(model, config)
    ids = torch.randint(config.vocab_size, (config.batch_size, config.block_size))
    for _ in range(2):
        with autocast(model.device, config.dtype):
            loss = model(ids, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return sum(estimate_memory(model, config, config.batch_size).values())

for dtype in ("float32", "bfloat16"):
    steps(dtype, "--n_layer=1", "--n_embd=60", "--block_size=64", "--vocab_size=256")  # libraries
    base = field("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    estimate = steps(dtype, "--n_layer=6", "--n_embd=384", "--n_head=6", "--block_size=512",
                     "--batch_size=2", "--vocab_size=4096")
    print(estimate, field("VmHWM") - base)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"),
                    reason="the kernel's count of peak memory is Linux's")
def test_estimated_memory_is_within_15_percent_of_measured():
    """Two steps of 14M parameters on 1,024 tokens, in float32 and bfloat16; the allocator is told
    to give memory back, so that resident means in use."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144",
                        "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MEASURE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        estimate, measured = map(int, line.split())
        assert estimate == pytest.approx(measured, rel=0.15)


@pytest.fixture
def dry(call, capsys):
    """dry(*argv, cwd=...): what a dry run prints; nothing is written."""
    def dry(*argv, cwd):
        before = tree(cwd)
        capsys.readouterr()
        assert call(train.main, *argv, cwd=cwd) == 0 and tree(cwd) == before
        return capsys.readouterr().out
    return dry


def test_124m_counts_are_the_closed_form(dry, tmp_path):
    d, V, T = 768, 50_304, 1024
    body = 12 * (12 * d * d + 2 * d) + T * d + d
    out = dry("configs/gpt2_124m.py", "configs/kron.py", "--dry_run=8", cwd=tmp_path)
    total = f"{4096 * d + body + V * d:,}"
    assert f"{total} = {4096 * d:,} input + {body:,} body + {V * d:,} head" in out
    assert "512 x 1024" in out and "2,499,805,184 tokens" in out


def test_binary_saves_the_papers_67_108_864_parameters(dry, tmp_path):
    total = {}
    for arm in ("binary", "affine", "bpe_untied"):
        out = dry("configs/binary_32l.py", f"configs/{arm}.py", "--dry_run=8", cwd=tmp_path)
        total[arm] = int(re.search(r"parameters: ([\d,]+)", out)[1].replace(",", ""))
        assert ("67,108,864 fewer" in out) == (arm != "bpe_untied")
    assert total["bpe_untied"] - total["binary"] == total["bpe_untied"] - total["affine"]
    assert total["bpe_untied"] - total["binary"] == 67_108_864


@pytest.mark.parametrize("arm", ["bpe_tied", "kron_code_head", "lowrank", "affine", "bytes2word"])
def test_every_arm_has_a_dry_run(dry, small_data, arm):
    """The parameters of a dry run, which allocates nothing, are those of the model; it reads the
    prepared data."""
    argv = "configs/tiny.py", f"configs/{arm}.py", "--dataset=small"
    out = dry(*argv, "--dry_run", cwd=small_data)
    counts = build_model(vars(config_of(*argv)), Data("small", 32).tokenizer).num_params()
    assert f"parameters: {counts['total']:,} = {counts['input']:,} input" in out
    assert f" {counts['body']:,} body + {counts['head']:,} head" in out
    assert "epochs of small" in out


def test_memory_by_hand_and_what_fits(dry, tmp_path):
    """The 124M model with 32 sequences at once takes 30 GB: 12 bytes for each of 127.5M weights and
    copies, 12 layers of 38 d bytes a token, 10 bytes a logit. The micro-batch that is named fits,
    with the same tokens per step."""
    said = dry("configs/kron.py", "--batch_size=32", "--dry_run=1x4090", cwd=tmp_path)
    memory = float(re.search(r"micro-batch 32, eager bfloat16: ([\d.]+) GB", said)[1])
    by_hand = 12 * 127.5e6 + 2 * 124.4e6 + 4 * 38.6e6
    by_hand += 32 * 1024 * (12 * 38 * 768 + 10 * 50_304)
    assert memory == pytest.approx(by_hand / 1e9, rel=0.01)
    smaller = "--batch_size=16", "--gradient_accumulation_steps=64"
    assert f"does not fit; the largest micro-batch that does is 16: {' '.join(smaller)}" in said
    assert ": fits" in dry("configs/kron.py", *smaller, "--dry_run=1x4090", cwd=tmp_path)
    said = dry("configs/kron.py", "--n_layer=48", "--n_embd=1536", "--dry_run=1650", cwd=tmp_path)
    assert "does not fit; no micro-batch does" in said


@pytest.mark.parametrize("gpus, peak, low, high, source", [
    ("8xA100", 8 * 312e12, 0.25, 0.30, "nanoGPT"), ("T4", 65e12, 0.14, 0.30, "an assumption"),
    ("3060", 25.5e12, 0.20, 0.45, "an assumption, nobody's report")])
def test_hours_are_a_range_with_its_source(dry, tmp_path, gpus, peak, low, high, source):
    """6 FLOPs per weight and token, with attention, at the shares of the peak that were reported or
    assumed; four arms with three seeds take twelve times as long."""
    said = dry("configs/kron.py", f"--dry_run={gpus}", cwd=tmp_path)
    found = re.search(r"all: (\S+) to (\S+) hours .* seeds (\S+) to (\S+) hours", said).groups()
    found = [float(hours.replace(",", "")) for hours in found]
    hours = 2.5e9 * (6 * (85.0e6 + 38.6e6) + 12 * 12 * 768 * 1024) / peak / 3600
    by_hand = [hours / high, hours / low, 12 * hours / high, 12 * hours / low]
    assert found == pytest.approx(by_hand, rel=0.01, abs=0.06)
    assert f"that is {100 * low:.0f} to {100 * high:.0f} % of its peak" in said and source in said


@pytest.mark.parametrize("options, says", [
    *((f"--dry_run={text}", "known: GTX 1650, RTX 2080, T4") for text in (
        "x", "0x4090", "1x5000", "-1", "4090x2", "1.5")),
    ("--dry_run --device=cpu", "not of device='cpu'")])
def test_a_dry_run_is_of_gpus(tmp_path, refuse, options, says):
    assert says in refuse(train.main, "configs/kron.py", *options.split(), cwd=tmp_path)
