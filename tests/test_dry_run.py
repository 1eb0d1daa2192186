"""--dry_run: what a run would take, without running it."""
import re

import pytest
import torch

import train
from conftest import config_of, tree
from lib.data import Data
from lib.distributed import autocast
from lib.hardware import estimate_memory
from lib.run_folder import build_model
from model import GPT


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_estimated_activations_are_what_a_step_keeps(dtype):
    """Within 15 %: what autograd keeps of 1,024 tokens, half-precision copies of weights included,
    at a shape where attention and loss, which a CPU makes in another way, weigh little."""
    config = config_of("--head=table", "--vocab_size=256", "--n_layer=6", "--n_embd=384",
                       "--n_head=6", "--block_size=64", f"--dtype={dtype}")
    model, ids, kept = GPT(config), torch.randint(256, (16, 64)), {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with autocast(model.device, dtype):
            loss = model(ids, ids)
    for p in model.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    optimizer = 12 * model.num_params()["total"] + 4 * 256 * 384
    assert loss.isfinite() and len(kept) > 60
    assert sum(kept.values()) == pytest.approx(estimate_memory(model, config, 16) - optimizer,
                                               rel=0.15)


@pytest.fixture
def dry(call, capsys):
    """dry(*argv, cwd=...): what a dry run prints; nothing is written."""
    def dry(*argv, cwd):
        before = tree(cwd)
        capsys.readouterr()
        assert call(train.main, *argv, cwd=cwd) == 0 and tree(cwd) == before
        return capsys.readouterr().out
    return dry


@pytest.mark.parametrize("size, arm, inputs, body, head", [
    ("gpt2_124m", "kron", 4096 * 768, 12 * (12 * 768 + 2) * 768 + 1025 * 768, 50_304 * 768),
    *(("binary_32l", arm, inputs, 32 * (12 * 1024 + 2) * 1024 + 1024, 2**26)
      for arm, inputs in (("binary", 0), ("affine", 0), ("bpe_untied", 2**26)))])
def test_counts_are_the_closed_form(dry, tmp_path, size, arm, inputs, body, head):
    """At the papers' sizes; binary codes have 2^26 = 67,108,864 trained parameters fewer."""
    out = dry(f"configs/{size}.py", f"configs/{arm}.py", "--dry_run=8", cwd=tmp_path)
    assert f"parameters: {inputs + body + head:,} = {inputs:,} input + {body:,} body" in out
    assert f" {head:,} head; {head - inputs:,} fewer than" in out
    assert size != "gpt2_124m" or "512 x 1024 = 2,499,805,184 tokens" in out


@pytest.mark.parametrize("arm", ["bpe_tied", "kron_code_head", "lowrank", "affine", "bytes2word"])
def test_every_arm_has_a_dry_run(dry, small_data, arm):
    """Its parameters, though it allocates nothing, are those of the model on the prepared data."""
    argv = "configs/tiny.py", f"configs/{arm}.py", "--dataset=small"
    out = dry(*argv, "--dry_run", cwd=small_data)
    counts = build_model(vars(config_of(*argv)), Data("small", 32).tokenizer).num_params()
    assert f"parameters: {counts['total']:,} = {counts['input']:,} input" in out
    assert f" {counts['body']:,} body + {counts['head']:,} head" in out


def test_memory_by_hand_and_what_fits(dry, tmp_path):
    """The 124M model with 32 sequences at once takes 30 GB: 12 bytes for each of 127.5M weights and
    copies, 12 layers of 38 d bytes a token, 10 bytes a logit. What it advises fits."""
    said = dry("configs/kron.py", "--batch_size=32", "--dry_run=1x4090", cwd=tmp_path)
    memory = float(re.search(r"32 sequences at once, .*: ([\d.]+) of 22.2 GB: does not", said)[1])
    by_hand = 12 * 127.5e6 + 2 * 124.4e6 + 4 * 38.6e6
    by_hand += 32 * 1024 * (12 * 38 * 768 + 10 * 50_304)
    assert memory == pytest.approx(by_hand / 1e9, rel=0.01)
    advice = "at most --batch_size=16 --gradient_accumulation_steps=64"
    assert f"does not fit ({advice})" in said
    said = dry("configs/kron.py", *advice.split()[2:], "--dry_run=1x4090", cwd=tmp_path)
    assert f": fits ({advice})" in said


@pytest.mark.parametrize("gpus, peak, low, high, source", [
    ("8xA100", 8 * 312e12, 0.25, 0.30, "nanoGPT"), ("T4", 65e12, 0.14, 0.30, "an assumption"),
    ("3060", 25.5e12, 0.20, 0.45, "an assumption, nobody's report")])
def test_hours_are_a_range_with_its_source(dry, tmp_path, gpus, peak, low, high, source):
    """6 FLOPs per weight and token, with attention, at the shares of the peak that were reported or
    assumed."""
    said = dry("configs/kron.py", f"--dry_run={gpus}", "--device=cpu", cwd=tmp_path)
    found = [float(hours) for hours in re.search(r", (\S+) to (\S+) hours", said).groups()]
    hours = 2.5e9 * (6 * (85.0e6 + 38.6e6) + 12 * 12 * 768 * 1024) / peak / 3600
    assert found == pytest.approx([hours / high, hours / low], rel=0.01, abs=0.01)
    assert f"at {100 * low:.0f} to {100 * high:.0f} % of the peak" in said and source in said


@pytest.mark.parametrize("text", ["x", "0x4090", "1x5000", "-1", "4090x2", "1.5"])
def test_a_dry_run_is_of_gpus(tmp_path, refuse, text):
    line = refuse(train.main, "configs/kron.py", f"--dry_run={text}", cwd=tmp_path)
    assert "known: GTX 1650, T4, P100" in line
