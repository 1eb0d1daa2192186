"""--dry_run: what a run would take, without running it."""
import json
import os
import re
import subprocess
import sys

import pytest

import train
from conftest import ROOT, config_of, tree
from lib.run_folder import build_model
from lib.data import Data

MEASURE = """
import json, re, sys
import torch
from lib.config import Config
from lib.hardware import estimate_memory
from lib.distributed import autocast
from model import GPT, GPTConfig
from train import make_optimizer

def field(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

def steps(vocab_size, **shape):
    config = Config(dtype=sys.argv[1], device="cpu", head="table", **shape)
    names = ("block_size", "n_layer", "n_head", "n_embd", "head")
    model = GPT(GPTConfig(vocab_size, **{name: getattr(config, name) for name in names}))
    optimizer = make_optimizer(model, config)
    ids = torch.randint(vocab_size, (config.batch_size, config.block_size))
    for _ in range(2):
        with autocast(model.device, config.dtype):
            loss = model(ids, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return sum(estimate_memory(model, config, config.batch_size).values())

steps(256, n_layer=1, n_embd=64, n_head=1, block_size=64, batch_size=1)  # loads the libraries
base = field("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
estimate = steps(4096, n_layer=6, n_embd=384, n_head=6, block_size=512, batch_size=2)
print(json.dumps([estimate, field("VmHWM") - base]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"),
                    reason="the kernel's count of peak memory is Linux's")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_estimated_memory_is_within_15_percent_of_measured(dtype):
    """Two steps of 14M parameters on 1,024 tokens; the allocator is told to give memory back, so
    that resident means in use."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144",
                        "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MEASURE, dtype], env=env, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    estimate, measured = (size / 1e6 for size in json.loads(done.stdout))
    said = f"estimated {estimate:.0f} MB, measured {measured:.0f} MB"
    assert abs(estimate / measured - 1) < 0.15, said


def dry(call, capsys, cwd, *argv):
    before = tree(cwd)
    capsys.readouterr()
    assert call(train.main, *argv, cwd=cwd) == 0 and tree(cwd) == before
    return capsys.readouterr().out


def test_124m_counts_are_the_closed_form(call, capsys, tmp_path):
    d, V, T = 768, 50_304, 1024
    body = 12 * (12 * d * d + 2 * d) + T * d + d
    out = dry(call, capsys, tmp_path, "configs/gpt2_124m.py", "configs/kron.py", "--dry_run=8")
    total = f"{4096 * d + body + V * d:,}"
    assert f"{total} = {4096 * d:,} input + {body:,} body + {V * d:,} head" in out
    assert "512 x 1024" in out and "2,499,805,184 tokens" in out


def test_binary_saves_the_papers_67_108_864_parameters(call, capsys, tmp_path):
    total = {}
    for arm in ("binary", "affine", "bpe_untied"):
        out = dry(call, capsys, tmp_path, "configs/binary_32l.py", f"configs/{arm}.py",
                  "--dry_run=8")
        total[arm] = int(re.search(r"parameters: ([\d,]+)", out)[1].replace(",", ""))
        assert ("67,108,864 fewer" in out) == (arm != "bpe_untied")
    for arm in ("binary", "affine"):
        assert total["bpe_untied"] - total[arm] == 67_108_864


def test_a_dry_run_reads_prepared_data(call, capsys, small_data):
    out = dry(call, capsys, small_data, "configs/tiny.py", "configs/random.py", "--dataset=small",
              "--dry_run")
    assert "epochs of small" in out


@pytest.mark.parametrize("arm", ["bpe_tied", "kron_code_head", "lowrank", "affine", "bytes2word"])
def test_every_arm_has_a_dry_run(call, capsys, small_data, arm):
    """The parameters of a dry run, which allocates nothing, are those of the model."""
    out = dry(call, capsys, small_data, "configs/tiny.py", f"configs/{arm}.py", "--dataset=small",
              "--dry_run")
    tok = Data("small", 32).tokenizer
    model = build_model(vars(config_of("configs/tiny.py", f"configs/{arm}.py")), tok)
    counts = model.num_params()
    assert f"parameters: {counts['total']:,} = {counts['input']:,} input" in out
    assert f" {counts['body']:,} body + {counts['head']:,} head" in out


def test_what_cannot_be_known_is_said(refuse, small_data):
    line = refuse(train.main, "configs/tiny.py", "--dataset=small", "--vocab_size=600",
                  cwd=small_data)
    assert "vocabulary of 512" in line
    assert "--dry_run=8" in refuse(train.main, "configs/tiny.py", "--dry_run=x", cwd=small_data)
