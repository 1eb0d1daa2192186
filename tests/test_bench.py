"""bench.py: every measurement runs, alternates, and says what the targets need to be read off."""
import json

import pytest
import torch.nn as nn

import bench
import train
from conftest import script
from model import CODES

SMALL = ["--dataset=small", "--rounds=2"]
TINY = ["--n_layer=1", "--n_embd=48", "--n_head=2", "--block_size=32", "--batch_size=2",
        "--dtype=float32", "--device=cpu", "--compile=False"]


def first_cells(text):
    """The first cell of every row of the tables in a text."""
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]


def test_candidates_alternate():
    """A B A B ...: every round measures each candidate once, after the uncounted rounds."""
    order = []

    def measure(name, i):
        order.append(f"{name}{i}")
        return 1.0, 1.0
    measures = {name: lambda i, name=name: measure(name, i) for name in "ab"}
    times = bench.alternately(measures, rounds=2, warmup=1)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert times == {"a": [(1.0, 1.0)] * 2, "b": [(1.0, 1.0)] * 2}


def test_byte_buffer_against_the_table(tmp_path):
    """V = 131,072, P = 32: at most 4.5 MB of bytes for 2.15 GB of table."""
    script("bench.py", "memory", "--out=m", cwd=tmp_path)
    result = json.loads((tmp_path / "m.json").read_text())["result"]
    assert result["buffer_bytes"] <= 4.5e6 and result["table_bytes"] == 2**31


def test_every_code_is_measured_beside_a_table(small_data, call, capsys):
    """Each code of model.CODES that has a config, and lift, once; a learned table is
    nn.Embedding."""
    assert call(bench.main, "codes", *SMALL, cwd=small_data) == 0
    rows = first_cells(capsys.readouterr().out)[1:]
    assert rows[0] == "nn.Embedding" and "binary_linear" in rows and len(set(rows)) == len(rows)
    codes = {config.code for arm, config in bench.input_configs().items() if arm in rows}
    assert codes == {code for code, kind in CODES.items() if not issubclass(kind, nn.Embedding)}


def test_a_step_is_train_pys_own(small_data, call, capsys, monkeypatch):
    """What is timed is train.train_step with its reading of batches: as many calls as rounds, one
    step after the other, of each candidate, which may have keys of its own."""
    seen = []

    def watched(step, forward, model, optimizer, scaler, data, config, place):
        crc = train.train_step(step, forward, model, optimizer, scaler, data, config, place)[2]
        seen.append((config.code_form, step, crc))
    monkeypatch.setattr(bench, "train_step", watched)
    argv = ["configs/tiny.py", "configs/kron.py,code_form=table", "configs/kron.py", *SMALL, *TINY,
            "--gradient_accumulation_steps=3", "--out=results/step"]
    assert call(bench.main, "step", *argv, cwd=small_data) == 0
    assert [(form, step) for form, step, _ in seen] == [
        (form, step) for step in range(4) for form in ("table", "on_the_fly")]
    crcs = [crc for _, _, crc in seen]
    assert crcs[::2] == crcs[1::2] and len(set(crcs)) == 4  # equal batches, another each step
    out = capsys.readouterr().out
    assert "2 x 3 x 32 tokens of small" in out
    assert first_cells(out)[1:] == ["kron,code_form=table", "kron"]
    saved = json.loads((small_data / "results" / "step.json").read_text())["result"]
    rate, ms = (saved["kron"][key][0] for key in ("tokens_per_s", "wall_ms"))
    assert rate == pytest.approx(2 * 3 * 32 / ms * 1e3)


def test_generation_and_preparation_are_measured(small_data, call, capsys):
    assert call(bench.main, "prepare", *SMALL, cwd=small_data) == 0
    assert "prepare.py" in first_cells(capsys.readouterr().out)
    argv = ["configs/tiny.py", "configs/kron.py", "--tokens=40", *SMALL, *TINY]
    assert call(bench.main, "sample", *argv, cwd=small_data) == 0
    assert "same text: True" in capsys.readouterr().out


# What bench.py stands on of nanoGPT's interface, and no more: options as --key=value through
# configurator.py of the working folder, each of the type of the value that it replaces; uint16
# bins and meta.pkl below data/; its own model.py; and the lines that it prints.
STAND_IN = '''
import pickle
import numpy as np
import model
out_dir = dataset = dtype = device = ""
batch_size = gradient_accumulation_steps = block_size = n_layer = n_head = n_embd = 0
max_iters = warmup_iters = lr_decay_iters = log_interval = eval_interval = eval_iters = 0
dropout = learning_rate = min_lr = weight_decay = beta1 = beta2 = grad_clip = 0.0
bias = True
compile = True
exec(open("configurator.py").read())
ids = {split: np.memmap(f"data/{dataset}/{split}.bin", np.uint16) for split in ("train", "val")}
with open(f"data/{dataset}/meta.pkl", "rb") as file:
    assert pickle.load(file)["vocab_size"] == 512 > max(ids["train"].max(), ids["val"].max())
assert (batch_size, block_size, n_layer, n_embd, bias, compile) == (2, 32, 1, 48, False, False)
assert (grad_clip, device, dtype, dropout) == (1.0, "cpu", "float32", 0.0)
print("step 0: train loss 6.2400, val loss 6.2400")
for i in range(max_iters + 1):
    print(f"iter {i}: loss 6.2400, time {500 if i < 3 else 20 + i:.2f}ms, mfu -100.00%")
'''
CONFIGURATOR = '''
import ast, sys
for arg in sys.argv[1:]:
    key, value = arg.removeprefix("--").split("=")
    old = globals()[key]
    globals()[key] = value if isinstance(old, str) else ast.literal_eval(value)
    assert type(globals()[key]) is type(old), arg
'''


@pytest.fixture
def clone(tmp_path):
    files = {"train": STAND_IN, "model": "", "configurator": CONFIGURATOR}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_a_clone_of_nanogpt_is_timed_by_its_own_log(small_data, call, capsys, clone):
    """Its train.py, on our bins with our shapes, once a round; its first steps do not count."""
    argv = ["configs/tiny.py", "configs/bpe_tied.py", *SMALL, *TINY, f"--nanogpt={clone}"]
    before = sorted(clone.rglob("*.py"))
    assert call(bench.main, "step", *argv, "--out=results/nano", cwd=small_data) == 0
    assert first_cells(capsys.readouterr().out)[1:] == ["bpe_tied", "nanoGPT"]
    saved = json.loads((small_data / "results" / "nano.json").read_text())["result"]
    assert saved["nanoGPT"]["wall_ms"] == pytest.approx([27.5, 27.5])  # of 23, 24, ... 32
    assert saved["bpe_tied"]["ratio"][0] == pytest.approx(saved["bpe_tied"]["wall_ms"][0] / 27.5)
    assert sorted(clone.rglob("*.py")) == before


def test_without_a_clone_nanogpt_is_left_out(small_data, call, capsys, tmp_path):
    argv = ["configs/tiny.py", "configs/bpe_tied.py", *SMALL, *TINY, f"--nanogpt={tmp_path}"]
    assert call(bench.main, "step", *argv, cwd=small_data) == 0
    out = capsys.readouterr().out
    assert f"(nanoGPT is not in the table: {tmp_path} is no clone of it)" in out
    assert first_cells(out)[1:] == ["bpe_tied"]


def test_bad_input_is_one_line(refuse, small_data, clone):
    (clone / "train.py").write_text("raise SystemExit('out of luck')\n")
    nano = ["step", "configs/tiny.py", *SMALL, *TINY, f"--nanogpt={clone}"]
    for argv, named in [([], "required: codes|step|sample|memory|prepare ("),
                        (["nothing"], "invalid choice"),
                        (["codes", "--zzz=1"], "unknown option --zzz=1"),
                        (["step", "--n_lay=1"], "did you mean 'n_layer'"),
                        (["codes", "--dataset=none"], "no prepared data"),
                        (["sample", "out/none"], "no checkpoint"),
                        (["step", "--rounds=0"], "--rounds"), (nano, "out of luck"),
                        ([*nano, "--positions=rotary"], "learned positions only")]:
        assert named in refuse(bench.main, *argv, cwd=small_data)
