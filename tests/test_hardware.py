"""Hardware as it is described to the functions that choose; float16; too little memory."""
import math
import re
import shutil

import pytest
import torch

from conftest import config_of, error_line, series
from lib import errors
from lib.config import check
from lib.errors import InputError
from lib.hardware import GPUS, Hardware, parse_gpus, peak_flops
from lib.run_folder import load_checkpoint, save_checkpoint
from toy import Fork, before_steps, folder, same_state, train_in  # noqa: F401


def gpus(name, count):
    """A machine with `count` GPUs of a name in GPUS."""
    return Hardware(count, GPUS[name].capability)


def chosen(found, *options, world=1):
    """(device, dtype, compile) that a command line gets on a described machine."""
    config = config_of("configs/kron.py", *options)
    check(config, world, found)
    return config.device, config.dtype, config.compile


@pytest.mark.parametrize("found, options, wanted", [
    *((gpus(name, 1), "", ("cuda", "float16", "True")) for name in ("GTX 1650", "T4", "V100")),
    *((gpus(name, 1), "", ("cuda", "bfloat16", "True")) for name in ("RTX 3060", "A100", "H100")),
    (gpus("P100", 1), "", ("cuda", "float16", "False")),
    (gpus("T4", 1), "--dtype=bfloat16 --compile=False", ("cuda", "bfloat16", "False")),
    (gpus("A100", 8), "--device=cpu", ("cpu", "float32", "False")),
    (Hardware(1, (8, 6), compiler=False), "", ("cuda", "bfloat16", "False")),  # as on Windows
    (Hardware(), "", ("cpu", "float32", "False")),
    (Hardware(cpu_bfloat16=True), "", ("cpu", "bfloat16", "False")),
    (Hardware(mps=True), "", ("cpu", "float32", "False")),
    (Hardware(mps=True), "--device=mps", ("mps", "float32", "False"))])
def test_each_machine_gets_what_it_is_good_at(found, options, wanted):
    """bfloat16 from Ampere on; float16 on Turing, Volta and Pascal, which emulate bfloat16; no
    compiler on Pascal, for which Triton has nothing; a Mac's GPU on request."""
    assert chosen(found, *options.split()) == wanted


@pytest.mark.parametrize("found, options, world, says", [
    (Hardware(), "--device=cuda", 1, "1 ranks on this machine, but 0 GPUs"),
    (Hardware(), "--device=mps", 1, "no Apple GPU that torch can use is here"),
    (Hardware(), "--dtype=float8", 1, "known are bfloat16, float16, float32, auto"),
    (Hardware(mps=True), "--device=mps --dtype=bfloat16", 1, "--dtype=float32"),
    (Hardware(mps=True), "--device=mps --compile=True", 1, "--compile=False"),
    (Hardware(mps=True), "--device=mps", 2, "only one process"),
    (gpus("P100", 1), "--compile=True", 1, "--compile=False"),
    (gpus("A100", 2), "--batch_size=3 --gradient_accumulation_steps=1", 2, "each needs as many"),
    (gpus("T4", 2), "", 4, "4 ranks on this machine, but 2 GPUs")])
def test_what_the_hardware_has_not_is_one_line(monkeypatch, found, options, world, says):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    with pytest.raises(InputError, match=re.escape(says)) as refused:
        chosen(found, *options.split(), world=world)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text, meant", [
    ("8", (8, "H100")), ("1x4090", (1, "RTX 4090")), ("t4", (1, "T4")), ("8xH100", (8, "H100")),
    ("2xRTX 3090", (2, "RTX 3090")), ("rtx3090", (1, "RTX 3090")), ("1650", (1, "GTX 1650"))])
def test_gpus_are_named_as_people_name_them(text, meant):
    assert parse_gpus(text) == meant


# ---- float16 -----------------------------------------------------------------------------------

def test_float16_trains_and_resumes_bit_for_bit(folder, train_in):
    """With a gradient scaler, whose state is in the checkpoint and changes: losses, weights and
    scale after a stop at step 4 are those of the run that was not stopped."""
    whole = folder / "whole"
    shutil.move(train_in("--dtype=float16"), whole)
    train_in("--dtype=float16", after=4)
    out = train_in("--dtype=float16")
    assert same_state(load_checkpoint(out), load_checkpoint(whole))
    assert series(out, "loss") == series(whole, "loss")
    assert series(out, "loss")[6] < series(out, "loss")[1]
    assert load_checkpoint(out)["scaler"]["_growth_tracker"] == 6


def test_an_overflow_skips_the_step_and_the_run_goes_on(train_in):
    """From a scale at which float16 gradients overflow, steps leave the weights as they are and
    halve the scale, until they fit; the log says that those gradients were not finite."""
    options = "--dtype=float16", "--max_steps=12", "--eval_interval=100"
    out = train_in(*options, after=1)
    before = load_checkpoint(out)
    before["scaler"]["scale"] = 2.0**24
    save_checkpoint(out / "ckpt.pt", before)
    train_in(*options)
    norms = [series(out, "grad_norm")[step] for step in range(2, 13)]
    skipped = norms.count(None)
    assert norms[0] is None and norms[-1] is not None
    after = load_checkpoint(out)
    assert after["scaler"]["scale"] == 2.0**24 / 2**skipped
    steps = {int(state["step"]) for state in after["optimizer"]["state"].values()}
    assert steps == {12 - skipped}


def test_gradients_that_no_scale_makes_finite_stop_the_run(folder, train_in):
    """A scale below 1 does not help either: it is not the scale."""
    options = "--dtype=float16", "--learning_rate=1e30", "--min_lr=1", "--grad_clip=0"
    out = train_in(*options, after=1)
    checkpoint = load_checkpoint(out)
    checkpoint["scaler"]["scale"] = 0.5
    save_checkpoint(out / "ckpt.pt", checkpoint)
    run = Fork(*options, cwd=folder)
    assert run.wait() == 2 and "the gradient norm is not finite" in error_line(run.err)


@pytest.mark.parametrize("name, flops", [
    ("NVIDIA GeForce RTX 3060", 25.5e12), ("Tesla T4", 65e12), ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA GeForce RTX 3060 Ti", math.inf), ("NVIDIA GeForce RTX 4090 Laptop GPU", math.inf),
    ("NVIDIA T400 4GB", math.inf)])
def test_a_gpu_is_known_by_its_whole_name(monkeypatch, name, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == flops


# ---- out of memory -----------------------------------------------------------------------------

@pytest.mark.parametrize("error", [
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 8 bytes.", "MPS backend out of memory (MPS allocated: 17.50 GB)",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"])
def test_a_run_that_is_out_of_memory_goes_on_with_smaller_batches(folder, capsys, train_in, error):
    """torch's own error after step 3 is one line; with the options that it names the run goes on
    from its checkpoint."""
    def full(step):
        if step == 3:
            raise RuntimeError(error)
    run = Fork(cwd=folder, prepare=before_steps(full))
    assert run.wait() == 2
    assert "out of memory with 4 sequences at once; half the --batch" in error_line(run.err)
    train_in("--batch_size=2", "--gradient_accumulation_steps=2")
    assert "step 1/6" not in capsys.readouterr().out


@pytest.mark.parametrize("error, said", [(MemoryError, "error: x\n"), (OSError, "error: x\n"),
                                         (InputError, "")])
def test_every_rank_says_what_is_its_own(capsys, monkeypatch, error, said):
    """Memory and disk are a rank's own; what is asked wrongly, one rank of a machine says."""
    def main():
        raise error("x")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        errors.run(main)
    assert capsys.readouterr().err == said
