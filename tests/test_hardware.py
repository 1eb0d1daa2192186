"""The hardware that users have: described to the functions that choose, not owned."""
import re
import shutil

import pytest
import torch

import train
from conftest import config_of, error_line, records, series
from lib import distributed, hardware
from lib.run_folder import load_checkpoint, save_checkpoint
from lib.errors import InputError
from lib.config import check
from lib.hardware import Hardware, described, parse_gpus
from toy import TOY, folder, same_state, train_in  # noqa: F401


# ---- what is chosen ----------------------------------------------------------------------------

def chosen(found, *options, world=1):
    """(device, dtype, compile) that a command line gets on a described machine."""
    config = config_of("configs/kron.py", *options)
    check(config, world, found)
    return config.device, config.dtype, config.compile


@pytest.mark.parametrize("gpu, dtype, compiled", [
    ("GTX 1650", "float16", "True"), ("RTX 2080", "float16", "True"), ("T4", "float16", "True"),
    ("V100", "float16", "True"), ("P100", "float16", "False"), ("RTX 3060", "bfloat16", "True"),
    ("RTX 3090", "bfloat16", "True"), ("RTX 4090", "bfloat16", "True"),
    ("A100", "bfloat16", "True"), ("L40S", "bfloat16", "True"), ("H100", "bfloat16", "True"),
    ("H200", "bfloat16", "True")])
def test_each_gpu_gets_the_number_format_that_it_multiplies(gpu, dtype, compiled):
    """bfloat16 from Ampere on; float16 on Turing, Volta and Pascal, which emulate bfloat16; no
    compiler on Pascal, for which Triton has nothing."""
    assert chosen(described(gpu, 1)) == ("cuda", dtype, compiled)
    assert chosen(described(gpu, 1), "--dtype=bfloat16", "--compile=False")[1:] == ("bfloat16",
                                                                                    "False")


def test_machines_without_a_gpu_for_cuda():
    """A CPU with and without bfloat16 units; a Mac, whose GPU is used on request."""
    assert chosen(Hardware()) == ("cpu", "float32", "False")
    assert chosen(Hardware(cpu_bfloat16=True)) == ("cpu", "bfloat16", "False")
    mac = Hardware(mps=True)
    assert chosen(mac) == ("cpu", "float32", "False")
    assert chosen(mac, "--device=mps") == ("mps", "float32", "False")
    assert chosen(described("A100", 8), "--device=cpu", world=8) == ("cpu", "float32", "False")
    no_compiler = Hardware(gpus=1, capability=(8, 6), compiler=False)  # as on Windows
    assert chosen(no_compiler) == ("cuda", "bfloat16", "False")


@pytest.mark.parametrize("found, options, world, says", [
    (Hardware(), "--device=cuda", 1, "no CUDA device is here"),
    (Hardware(), "--device=mps", 1, "no Apple GPU that torch can use is here"),
    (Hardware(), "--device=tpu", 1, "cuda, cpu, mps and auto are known"),
    (Hardware(), "--dtype=float8", 1, "bfloat16, float16, float32 and auto are known"),
    (Hardware(), "--compile=0", 1, "True, False and auto are known"),
    (Hardware(mps=True), "--device=mps --dtype=bfloat16", 1, "on MPS only float32"),
    (Hardware(mps=True), "--device=mps --compile=True", 1, "compile=True: not on MPS"),
    (Hardware(mps=True), "--device=mps", 2, "MPS has no collectives"),
    (described("P100", 1), "--compile=True", 1, "--compile=False"),
    (Hardware(1, (8, 6), compiler=False), "--compile=True", 1, "--compile=False"),
    (described("T4", 2), "", 4, "4 ranks on this machine, but it has 2 GPUs: "
                                "torchrun --nproc_per_node=2")])
def test_what_the_hardware_has_not_is_one_line(monkeypatch, found, options, world, says):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    with pytest.raises(InputError, match=re.escape(says)) as refused:
        chosen(found, *options.split(), world=world)
    assert "\n" not in str(refused.value)


# ---- a GPU that somebody else has --------------------------------------------------------------

@pytest.mark.parametrize("text, meant", [
    ("8", (8, "H100")), ("1x4090", (1, "RTX 4090")), ("T4", (1, "T4")), ("t4", (1, "T4")),
    ("8xH100", (8, "H100")), ("2xRTX 3090", (2, "RTX 3090")), ("rtx3090", (1, "RTX 3090")),
    ("1650", (1, "GTX 1650")), ("4xh200", (4, "H200"))])
def test_gpus_are_named_as_people_name_them(text, meant):
    assert parse_gpus(text) == meant


@pytest.mark.parametrize("text", ["x", "0x4090", "1x5000", "-1", "h", "4090x2", "1.5", "False"])
def test_an_unknown_gpu_is_one_line_that_names_those_that_are_known(tmp_path, refuse, text):
    line = refuse(train.main, "configs/kron.py", f"--dry_run={text}", cwd=tmp_path)
    assert f"--dry_run={text}" in line and "known: 1650, 2080, T4" in line


def dry_run(call, capsys, cwd, *options):
    capsys.readouterr()
    assert call(train.main, "configs/kron.py", *options, cwd=cwd) == 0
    return capsys.readouterr().out


def test_a_dry_run_is_of_that_gpu_whatever_is_here(tmp_path, call, capsys, monkeypatch):
    """The 124M model with 32 sequences at once takes 30 GB on a GPU by hand: 12 bytes for each of
    127.5M weights and copies, 12 layers of 38 d bytes a token, 10 bytes a logit. The same is said
    where a T4 is the machine's own."""
    said = dry_run(call, capsys, tmp_path, "--batch_size=32", "--dry_run=1x4090")
    memory = float(re.search(r"micro-batch 32, eager bfloat16: ([\d.]+) GB", said)[1])
    tokens = 32 * 1024
    by_hand = 12 * 127.5e6 + 2 * 124.4e6 + 4 * 38.6e6
    by_hand += tokens * (12 * 38 * 768 + 10 * 50_304)
    assert memory == pytest.approx(by_hand / 1e9, rel=0.01) and memory > 29
    assert "does not fit; the largest micro-batch that does is 16" in said
    monkeypatch.setattr(hardware, "this_hardware", lambda: described("T4", 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dry_run(call, capsys, tmp_path, "--batch_size=32", "--dry_run=1x4090") == said


def test_what_a_dry_run_advises_fits_and_more_does_not(tmp_path, call, capsys):
    """The micro-batch and accumulation that it names keep the tokens per step and fit; twice as
    much does not. A model that no micro-batch makes fit is said to be too large."""
    for name in ("GTX 1650", "RTX 3090"):
        said = dry_run(call, capsys, tmp_path, f"--dry_run={name}")
        advised = re.search(r"--batch_size=(\d+) --gradient_accumulation_steps=(\d+)", said)
        batch, steps = map(int, advised.groups())
        assert batch * steps == 512
        fits = []
        for micro in (batch, 2 * batch):
            again = dry_run(call, capsys, tmp_path, f"--batch_size={micro}",
                            f"--gradient_accumulation_steps={512 // micro}", f"--dry_run={name}")
            fits.append("GB: fits" in again)
        assert fits == [True, False]
    said = dry_run(call, capsys, tmp_path, "--n_layer=48", "--n_embd=1536", "--dry_run=1650")
    assert "does not fit; nothing does with 48 layers of d 1536" in said


def test_a_dry_run_counts_hours_at_that_gpus_peak(tmp_path, call, capsys):
    """6 FLOPs per weight and token, with attention; at 45 % of the vendor's figure; and four arms
    with three seeds take twelve times as long."""
    flops = 2.5e9 * (6 * (85.0e6 + 38.6e6) + 12 * 12 * 768 * 1024)
    for gpus, peak in (("1xH100", 989e12), ("8xH100", 8 * 989e12), ("T4", 65e12)):
        said = dry_run(call, capsys, tmp_path, f"--dry_run={gpus}")
        found = re.search(r"in all: ([\d.]+) hours .* seeds ([\d.]+) hours", said).groups()
        one, twelve = map(float, found)
        by_hand = flops / 0.45 / peak / 3600
        assert one == pytest.approx(by_hand, rel=0.01, abs=0.06)
        assert twelve == pytest.approx(12 * by_hand, rel=0.01, abs=0.06)


def test_a_dry_run_is_of_gpus(tmp_path, refuse):
    line = refuse(train.main, "configs/kron.py", "--device=cpu", "--dry_run", cwd=tmp_path)
    assert "not of device='cpu'" in line


# ---- float16 -----------------------------------------------------------------------------------

def test_float16_trains_and_resumes_bit_for_bit(folder, train_in):
    """With a gradient scaler, whose state is in the checkpoint and changes: losses, weights and
    scale after a stop at step 4 are those of the run that was not stopped."""
    ends = []
    for stops in ([None], [4, None]):
        for after in stops:
            out = train_in("--dtype=float16", after=after)
        checkpoint = load_checkpoint(out)
        ends.append((series(out, "loss"), series(out, "val_loss"), checkpoint))
        shutil.move(out, folder / f"{len(stops)}")
    assert ends[0][:2] == ends[1][:2] and same_state(ends[0][2], ends[1][2])
    assert sorted(ends[0][0]) == [1, 2, 3, 4, 5, 6]
    assert ends[0][0][6] < ends[0][0][1]
    assert checkpoint["scaler"]["scale"] == 65536 and checkpoint["scaler"]["_growth_tracker"] == 6


def test_an_overflow_skips_the_step_and_the_run_goes_on(folder, train_in):
    """From a scale at which float16 gradients overflow, steps leave the weights as they are and
    halve the scale, until they fit; the log says that those gradients were not finite."""
    out = train_in("--dtype=float16", "--max_steps=12", "--eval_interval=100", after=1)
    before = load_checkpoint(out)
    scale = 2.0**24
    save_checkpoint(out / "ckpt.pt", before | {"scaler": before["scaler"] | {"scale": scale}})
    train_in("--dtype=float16", "--max_steps=12", "--eval_interval=100")
    norms = [r["grad_norm"] for r in records(out) if r.get("step", 0) > 1 and "grad_norm" in r]
    skipped = sum(norm is None for norm in norms)
    assert norms[0] is None and norms[-1] is not None and len(norms) == 11
    after = load_checkpoint(out)
    assert after["scaler"]["scale"] == scale / 2**skipped
    steps = {int(state["step"]) for state in after["optimizer"]["state"].values()}
    assert steps == {12 - skipped}
    assert series(out, "loss")[12] < series(out, "loss")[1]


def test_gradients_that_no_scale_makes_finite_stop_the_run(folder, call, capsys, train_in):
    """A scale below 1 does not help either: it is not the scale."""
    options = "--dtype=float16", "--learning_rate=1e30", "--min_lr=1", "--grad_clip=0"
    out = train_in(*options, after=1)
    checkpoint = load_checkpoint(out)
    assert checkpoint["step"] == 1
    save_checkpoint(out / "ckpt.pt",
                    checkpoint | {"scaler": checkpoint["scaler"] | {"scale": 0.5}})
    assert call(train.main, *TOY, *options, cwd=folder) == 2
    assert "the gradient norm is not finite" in error_line(capsys.readouterr().err)


# ---- what fails on a machine -------------------------------------------------------------------

def test_out_of_memory_names_a_command_that_goes_on(folder, call, capsys, monkeypatch):
    """torch's own error in step 3: one line; with the options that it names, the run goes on from
    its checkpoint, with the same tokens per step, and logs it."""
    real = train.train_step

    def full(step, *rest):
        if step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(step, *rest)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", full)
        assert call(train.main, *TOY, cwd=folder) == 2
    line = error_line(capsys.readouterr().err)
    assert "out of memory with 4 sequences at once" in line
    advised = re.findall(r"--\w+=\d+", line)
    assert advised == ["--batch_size=2", "--gradient_accumulation_steps=2"]
    assert call(train.main, *TOY, *advised, cwd=folder) == 0
    changes, = (r["went_on_with"] for r in records(folder / "out" / "x") if "went_on_with" in r)
    assert changes == {"batch_size": [4, 2], "gradient_accumulation_steps": [1, 2]}
    crcs = series(folder / "out" / "x", "batch_crc")
    shutil.move(folder / "out" / "x", folder / "advised")
    assert call(train.main, *TOY, cwd=folder) == 0
    assert crcs == series(folder / "out" / "x", "batch_crc")


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 8 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.50 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")])
@pytest.mark.parametrize("batch, steps, world, says", [
    (16, 32, 8, "with 16 sequences at once; --batch_size=8 --gradient_accumulation_steps=64"),
    (5, 1, 1, "--batch_size=1 --gradient_accumulation_steps=5"),
    (1, 8, 1, "a smaller model or --block_size is needed")])
def test_every_way_to_be_out_of_memory(monkeypatch, error, batch, steps, world, says):
    """The advice divides evenly over the ranks, whatever the micro-batch was; another error stays
    what it is."""
    config = config_of(f"--batch_size={batch}", f"--gradient_accumulation_steps={steps}")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert re.search(f"out of memory .*{says}", str(distributed.in_one_line(error, config)))
    bug = RuntimeError("a bug")
    assert distributed.in_one_line(bug, config) is bug


def test_a_missing_compiler_is_one_line(folder, call, capsys, monkeypatch):
    """torch.compile's real error, where its C++ compiler is not to be found."""
    import torch._inductor.config
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "cache"))
    torch._dynamo.reset()
    assert call(train.main, *TOY, "--compile=True", cwd=folder) == 2
    line = error_line(capsys.readouterr().err)
    assert "torch.compile does not work here" in line and "--compile=False" in line
    assert call(train.main, *TOY, "--compile=False", cwd=folder) == 0


def test_a_run_says_that_its_steps_are_long(folder, call, capsys, monkeypatch):
    """In the line of its second step, once; here no step is short enough."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "0")
    assert call(train.main, *TOY, "--max_steps=4", cwd=folder) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "graceful stop" in line]
    assert len(said) == 1 and said[0].startswith("step 2/4 ")
    assert re.search(r"start with TORCH_ELASTIC_SHUTDOWN_TIMEOUT=\d+$", said[0])


