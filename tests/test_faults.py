"""Never lose a run, never lie about one: faults injected for real into the real scripts.

The quick forms run with the suite. `python -m pytest -m soak -s tests/test_faults.py` runs the long
ones and prints what they counted.
"""
import collections
import errno
import json
import os
import pickle
import platform
import random
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare
import train
from conftest import ROOT, SHORT, command, error_line, records, series
from lib import provenance
from lib.run_folder import RunFolder, fingerprint, load_checkpoint, load_model, save_checkpoint
from lib.errors import InputError
from lib.config import check, compose
from lib.data import Data
from lib.hardware import Hardware
from lib.results import read_run
from lib.results import unfinished
from toy import (TOY, Fork, folder, ranks, stopping_after, train_in,  # noqa: F401
                 with_steps_of)

# Checkpoints are frequent, so that a kill often meets one being written.
FAST = ["configs/tiny.py", "configs/kron.py", *SHORT, "--dataset=small", "--max_steps=40",
        "--eval_interval=4", "--eval_tokens=1024", "--dropout=0.1"]


def start(cwd, *args, ranks=0, options=("--standalone",), **kwargs):
    """train.py in the background, its output in a pipe; the options are torchrun's."""
    argv = command("train.py", *args, ranks=ranks, options=options)
    return subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **kwargs)


def wait_for(process, text):
    """Read a process's output up to the first line that holds `text`."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended without '{text}': {process.stderr.read()[-3000:]}")


def same_series(a, b):
    """Both runs logged every step once, with the same losses, gradient norms and validation losses,
    bit for bit."""
    for key in ("loss", "grad_norm", "val_loss"):
        assert series(a, key) == series(b, key)
    steps, others = ([(r["step"], "loss" in r) for r in records(run)[1:]] for run in (a, b))
    assert len(steps) == len(set(steps)) and steps == others


def trained(folder, name, *options, status=0, **kwargs):
    """out/NAME of a FAST run, made in a fork of this process."""
    run = Fork(*FAST, f"--name={name}", *options, cwd=folder, **kwargs)
    assert run.wait() == status, run.err
    return folder / "out" / name


@pytest.fixture(scope="module")
def reference(small_data):
    """The run that nobody disturbed."""
    return trained(small_data, "reference")


def killed(folder, whole, name, kills, seed, *options):
    """Train with `kills` SIGKILLs at random moments, looking at the checkpoint after each; then to
    the end. Returns at which steps."""
    rng, at = random.Random(seed), []
    out = folder / "out" / name
    while len(at) < kills:
        run = Fork(*FAST, f"--name={name}", *options, cwd=folder)
        run.wait_for("tokens per step")
        time.sleep(rng.uniform(0, 0.6))
        os.kill(run.pid, signal.SIGKILL)
        alive = run.wait() == -signal.SIGKILL
        saved = (out / "ckpt.pt").exists()
        at.append(load_checkpoint(out)["step"] if saved else 0)  # readable, whenever the kill came
        if not alive or at[-1] == 40:  # it got through: start over for the kills that are left
            same_series(out, whole)
            shutil.rmtree(out)
    trained(folder, name, *options)
    return at


def test_killed_and_resumed_is_the_run_that_was_not(small_data, reference):
    """The same losses, bit for bit, and in the end the same weights; with dropout, which must
    repeat itself."""
    killed(small_data, reference, "killed", 3, 1)
    same_series(small_data / "out" / "killed", reference)
    one, other = (load_checkpoint(small_data / "out" / name)["model"]
                  for name in ("reference", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_25_kills(small_data, reference, dtype):
    options = [f"--dtype={dtype}"]
    whole = trained(small_data, f"soak-{dtype}-whole", *options)
    at = killed(small_data, whole, f"soak-{dtype}", 25, 2, *options)
    same_series(small_data / "out" / f"soak-{dtype}", whole)
    print(f"\n{dtype}, dropout 0.1: 25 SIGKILLs, last checkpoints at steps {at}; 0 mismatches, "
          "0 unreadable checkpoints")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(small_data, reference, number):
    name = f"signal{int(number)}"
    run = Fork(*FAST, f"--name={name}", cwd=small_data)
    run.wait_for("step 1/40")
    os.kill(run.pid, number)
    assert run.wait() == 128 + number and not run.err
    assert "the same command again continues" in run.out
    assert 1 <= load_checkpoint(small_data / "out" / name)["step"] < 40
    same_series(trained(small_data, name), reference)


def test_two_signals_at_once_are_one_and_a_second_ctrl_c_is_not(folder):
    """A service manager's signal comes to torchrun and, passed on, to its workers twice: the step
    is finished and saved. A Ctrl-C a second or more after the first exits at once."""
    for pause in (0.05, 1.1):
        run = Fork(f"--name=x{pause}", cwd=folder, prepare=with_steps_of(1.5))
        run.wait_for("validation loss")
        os.kill(run.pid, signal.SIGINT)
        time.sleep(pause)
        os.kill(run.pid, signal.SIGINT)
        assert run.wait() == 130 and not run.err
        saved = load_checkpoint(folder / "out" / f"x{pause}")["step"]
        assert saved == (1 if pause < 1 else 0)
        assert ("the same command again continues" in run.out) == (pause < 1)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(small_data, reference):
    """The limit on file size stands for the disk: the log fits, a checkpoint does not."""
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    out = small_data / "out" / "full"
    shutil.copytree(reference, out)
    run = Fork(*FAST, "--name=full", "--overwrite", cwd=small_data)
    run.wait_for("step 5/40")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    before = load_checkpoint(out)["step"]
    run = Fork(*FAST, "--name=full", cwd=small_data, prepare=small_disk)
    assert run.wait() == 2 and "ckpt" in error_line(run.err)
    assert load_checkpoint(out)["step"] == before and not list(out.glob("*.tmp"))
    same_series(trained(small_data, "full"), reference)


def test_the_best_checkpoint_stays_beside_the_latest(small_data):
    """With a weight decay that ruins the model late - it grows with the rate and from step 26 on
    turns weights over - best.pt is the step of the lowest validation loss."""
    out = trained(small_data, "best", "--learning_rate=0.02", "--min_lr=0.02", "--warmup_steps=39",
                  "--weight_decay=150")
    vals = series(out, "val_loss")
    best = min(vals, key=vals.get)
    assert 0 < best < 40
    assert load_checkpoint(out / "best.pt")["step"] == best
    assert load_checkpoint(out)["step"] == 40


def test_another_config_under_the_same_name_is_refused(small_data, reference, refuse, call, capsys):
    argv = [*FAST, "--name=reference"]
    line = refuse(train.main, *argv, "--weight_decay=0.2", cwd=small_data)
    assert "made with weight_decay=0.1, now weight_decay=0.2" in line
    assert call(train.main, *argv, cwd=small_data) == 0
    assert "is finished" in capsys.readouterr().out


def test_overwrite_starts_over(small_data, reference):
    shutil.copytree(reference, small_data / "out" / "again")
    run = Fork(*FAST, "--name=again", "--overwrite", "--max_steps=4", cwd=small_data)
    assert run.wait() == 0
    assert re.search(r"step 1/4 \| loss \d.* \d+ ms \| [\d,]+ tokens/s \| 0:0\d:\d\d left \| "
                     r"first step [\d.]+ s after the start", run.out)
    assert max(series(small_data / "out" / "again", "val_loss")) == 4


def test_two_processes_on_one_run(folder):
    """The second refuses and names the first, which may be an orphan; the lock is the kernel's and
    goes with its process, so a kill leaves none behind."""
    first = Fork(cwd=folder, prepare=with_steps_of(0.2))
    first.wait_for("step 1/6")
    for option in ("--verify", "--overwrite", "--seed=2"):  # before its checkpoint is read
        second = Fork(option, cwd=folder)
        assert second.wait() == 2 and not second.out
        assert f"out/x is in use by process {first.pid}" in error_line(second.err)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert Fork(cwd=folder).wait() == 0


def test_a_non_finite_gradient_stops_the_run(small_data):
    run = Fork(*FAST, "--name=nan", "--learning_rate=1e30", "--min_lr=1", "--grad_clip=0",
               "--log_interval=4", cwd=small_data)
    assert run.wait() == 2
    line = error_line(run.err)
    assert "step 2: the gradient norm is not finite (sequences 8 to 15" in line
    assert "lower learning_rate" in line
    checkpoint = load_checkpoint(small_data / "out" / "nan")
    assert checkpoint["step"] == 0
    assert all(torch.isfinite(p).all() for p in checkpoint["model"].values())


def test_torchrun_restarts_a_killed_worker(small_data):
    """--max_restarts: one of two workers dies by SIGKILL; one restart goes on from the last
    checkpoint and ends as if nothing had been."""
    argv = [*FAST, "--max_steps=12"]
    whole = ranks([small_data] * 2, *argv, "--name=two")
    assert [run.wait() for run in whole] == [0, 0]
    process = start(small_data, *argv, "--name=restarted", ranks=2,
                    options=["--standalone", "--max_restarts=1"])
    wait_for(process, "step 6/12")
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"],
                              capture_output=True, text=True)
    workers = children.stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    same_series(small_data / "out" / "restarted", small_data / "out" / "two")


# Eight steps of four micro-batches, which any number of ranks up to four can share.
EIGHT = [*FAST, "--max_steps=8", "--dropout=0", "--batch_size=2",
         "--gradient_accumulation_steps=4"]


def two_agents(folders, name, ranks, *options):
    """Two torchrun agents on loopback, one in each of two folders, `ranks` workers each, as on two
    machines: [(exit status, standard output, standard error)] once they have ended."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    launch = ["--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
              "--rdzv_id=test"]
    agents = [start(folder, *EIGHT, f"--name={name}", *options, ranks=ranks, options=launch)
              for folder in folders]
    said = [agent.communicate(timeout=200) for agent in agents]
    return [(agent.returncode, *texts) for agent, texts in zip(agents, said)]


def prepare_own(folder, call, fraction):
    """Make data/own in a folder, other for another share of validation."""
    folder.mkdir(exist_ok=True)
    text = "\n\n".join(f"{i} {'so it is ' * 40}" for i in range(200))
    (folder / "a.txt").write_text(text)
    assert call(prepare.main, "text", "a.txt", "--name=own", "--tokenizer=bpe:300",
                f"--val_fraction={fraction}", cwd=folder) == 0


def close_series(a, b):
    """Equal batches, and losses equal to 1e-5, at every step."""
    assert series(a, "batch_crc") == series(b, "batch_crc") and series(a, "loss")
    for key in ("loss", "val_loss"):
        assert series(a, key) == pytest.approx(series(b, key), abs=1e-5)


def test_two_machines_train_as_one_process(small_data):
    one = trained(small_data, "one", *EIGHT)
    two = ranks([small_data] * 2, *EIGHT, "--name=apart")
    assert [run.wait() for run in two] == [0, 0]
    close_series(small_data / "out" / "apart", one)


@pytest.mark.soak
def test_two_machines_of_two_ranks_train_as_four_ranks(small_data):
    four = ranks([small_data] * 4, *EIGHT, "--name=four", envs=[{}] * 4)
    assert [run.wait() for run in four] == [0] * 4
    for status, _, err in two_agents([small_data] * 2, "agents2", 2):
        assert status == 0, err[-3000:]
    a, b = (small_data / "out" / name for name in ("agents2", "four"))
    close_series(a, b)
    pairs = zip(series(a, "loss").values(), series(b, "loss").values())
    difference = max(abs(x - y) for x, y in pairs)
    print("\ntwo agents of two ranks against four ranks: largest difference in loss "
          f"{difference:.1e} nats over 8 steps")


@pytest.mark.soak
def test_two_machines_with_other_data_under_the_same_name_refuse(tmp_path, call):
    """Two agents of two ranks that share nothing: each ends with the one line that names both
    machines, and nothing was trained."""
    folders = [tmp_path / name for name in "ab"]
    for folder, fraction in zip(folders, ("0.1", "0.2")):
        prepare_own(folder, call, fraction)
    for status, out, err in two_agents(folders, "y", 2, "--dataset=own"):
        line, = (line for line in err.splitlines() if line.startswith("error: "))
        assert re.search(r"different ground: data is .* on rank 0 \(.* and .* on rank 2 \(", line)
        assert status == 1 and not out
    assert not any((folder / "out").exists() for folder in folders)
    line = re.sub("([0-9a-f]{8})[0-9a-f]{56}", r"\1...", line)
    print(f"\ntwo agents of two ranks with other data under the same name: both said {line}")


# ---- going on ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def half(small_data, tmp_path_factory):
    """A folder with out/x, a toy run that was stopped after step 4 of 6."""
    return toy_folder(small_data, tmp_path_factory.mktemp("half"), stopping_after(4), 143)


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """out/x of a toy run that nobody disturbed."""
    return toy_folder(small_data, tmp_path_factory.mktemp("whole"), None, 0) / "out" / "x"


def toy_folder(small_data, folder, prepare, status, *options):
    """A folder with prepared text in which a toy run was made."""
    shutil.copytree(small_data / "data", folder / "data")
    run = Fork(*options, cwd=folder, prepare=prepare)
    assert run.wait() == status, run.err
    return folder


@pytest.fixture
def stopped(half, folder):
    """out/x, stopped after step 4 of 6, in a folder of its own."""
    shutil.copytree(half / "out", folder / "out")
    return folder / "out" / "x"


def is_the_run(out, whole):
    """A run that ended as the undisturbed one: log, weights, optimizer and scores, bit for bit."""
    same_series(out, whole)
    one, other = (load_checkpoint(run) for run in (out, whole))
    assert fingerprint(one) == fingerprint(other)
    best = fingerprint(load_checkpoint(out / "best.pt"))
    assert best == fingerprint(load_checkpoint(whole / "best.pt"))
    scores, others = (np.load(run / "eval.npz") for run in (out, whole))
    assert all(np.array_equal(scores[name], others[name]) for name in others.files)


def changes(out):
    """What a run's log says of how it went on: one dict for each time."""
    return [r["went_on_with"] for r in records(out) if "went_on_with" in r]


def test_a_stopped_run_goes_on_as_if_nothing_had_been(stopped, whole, train_in):
    """And says nothing of changes, since there are none."""
    train_in()
    is_the_run(stopped, whole)
    assert changes(stopped) == []


def test_keys_that_touch_no_number_are_free(stopped, whole, train_in):
    """log_interval, eval_interval and wandb_log."""
    checkpoint = load_checkpoint(stopped)
    config = checkpoint["config"] | {"wandb_log": True}
    save_checkpoint(stopped / "ckpt.pt", checkpoint | {"config": config})
    train_in("--log_interval=2", "--eval_interval=2")
    assert series(stopped, "loss")[6] == series(whole, "loss")[6]
    assert series(stopped, "val_loss")[6] == series(whole, "val_loss")[6]


@pytest.mark.parametrize("options, before", [
    (["--dtype=bfloat16"], {"dtype": ["float32", "bfloat16"]}),
    (["--batch_size=2", "--gradient_accumulation_steps=2"],
     {"batch_size": [4, 2], "gradient_accumulation_steps": [1, 2]})])
def test_keys_that_change_the_bits_are_changed_on_request(stopped, whole, refuse, train_in, folder,
                                                          options, before):
    """dtype, device, compile, and how a step is cut into micro-batches: from a config file they
    are refused, with both ways to go on; given on the command line they are logged."""
    config = folder / "mine.py"
    config.write_text("".join(f"{key} = {now!r}\n" for key, (_, now) in before.items()))
    toy = [option for option in TOY if option.split("=")[0][2:] not in before]
    (key, (was, now)), *_ = before.items()
    line = refuse(train.main, *toy, "mine.py", "--name=x", cwd=folder)
    assert f"made with {key}={was}, now {key}={now}: --{key}={was} goes on with it bit for bit, " \
           f"--{key}={now} goes on otherwise" in line
    train_in(*options)
    assert changes(stopped) == [before]
    assert series(stopped, "batch_crc") == series(whole, "batch_crc")
    assert series(stopped, "loss")[6] == pytest.approx(series(whole, "loss")[6], abs=0.02)
    assert series(stopped, "loss")[6] != series(whole, "loss")[6] or "batch_size" in before
    assert read_run(stopped)["went_on"] == sorted(before)


def test_auto_that_resolves_otherwise_names_the_way_on(stopped, refuse, folder, monkeypatch):
    """A run in float32 on a machine whose `auto` would be bfloat16."""
    monkeypatch.setattr("lib.config.this_hardware", lambda: Hardware(cpu_bfloat16=True))
    line = refuse(train.main, *TOY[:-1], cwd=folder)
    assert TOY[-1] == "--dtype=float32"
    assert "--dtype=float32 goes on with it bit for bit" in line


def test_a_run_of_a_gpu_goes_on_on_a_cpu(stopped, whole, refuse, folder, train_in, monkeypatch):
    """One made in bfloat16 with a compiler: each refusal names the option to go on with."""
    monkeypatch.setattr("lib.config.this_hardware", Hardware)
    checkpoint = load_checkpoint(stopped)
    gpu = {"device": "cuda", "dtype": "bfloat16", "compile": "True"}
    save_checkpoint(stopped / "ckpt.pt", checkpoint | {"config": checkpoint["config"] | gpu})
    assert TOY[-2:] == ["--device=cpu", "--dtype=float32"]
    options = []
    for key, here, option in (("dtype", "float32", "--dtype=bfloat16"),
                              ("device", "cpu", "--device=cpu"),
                              ("compile", "False", "--compile=False")):
        line = refuse(train.main, *TOY[:-2], *options, cwd=folder)
        assert f"made with {key}={gpu[key]}, now {key}={here}: " in line and option in line
        options.append(option)
    train_in(*options)
    assert changes(stopped) == [{"device": ["cuda", "cpu"], "compile": ["True", "False"]}]
    assert series(stopped, "batch_crc") == series(whole, "batch_crc")


@pytest.mark.parametrize("option", [
    "--learning_rate=1e-4", "--batch_size=2", "--max_steps=5", "--weight_decay=0.2", "--pos_dim=8",
    "--eval_tokens=128", "--warmup_steps=3", "--dropout=0.1"])
def test_anything_else_is_another_run(stopped, refuse, folder, option):
    for more in ([], ["--extend"]):
        line = refuse(train.main, *TOY, option, *more, cwd=folder)
        key = option.split("=")[0][2:]
        assert f"out/x was made with {key}=" in line and f", now {key}=" in line
        assert "give another --name, or start over with --overwrite" in line


@pytest.mark.parametrize("after", [4, None])
def test_a_longer_run_is_another_schedule(folder, refuse, train_in, after):
    """A larger max_steps is refused with the way to do it; --extend goes on with the weights and
    the learning rate of the new cosine, and the log says so; also for a run that was finished."""
    out = train_in(after=after)
    at = after or 6
    line = refuse(train.main, *TOY, "--max_steps=8", cwd=folder)
    assert "another schedule: --extend goes on with these weights and the new cosine" in line
    scored = (out / "eval.npz").exists()
    train_in("--max_steps=8", "--extend")
    assert scored == (after is None) and (out / "eval.npz").exists()
    assert changes(out) == [{"max_steps": [6, 8]}]
    header, rates = records(out)[0], series(out, "lr")
    assert header["config"]["max_steps"] == 8 and header["extended"] == [[6, 8]]
    for step in range(1, 9):
        config = compose([*TOY, f"--max_steps={6 if step <= at else 8}"])[0]
        assert rates[step] == train.learning_rate(step - 1, config)
    assert unfinished(read_run(out)) == ""
    train_in("--max_steps=8")
    assert len(changes(out)) == 1


def test_an_extension_that_came_to_nothing_leaves_no_trace(stopped, whole, folder, train_in):
    """Killed before its first checkpoint, it is begun anew, or not at all."""
    for _ in range(2):
        run = Fork("--max_steps=8", "--extend", cwd=folder, prepare=killed_while_saving)
        assert run.wait() == -signal.SIGKILL
        assert records(stopped)[0]["extended"] == [[6, 8]]
        assert changes(stopped) == [{"max_steps": [6, 8]}]
    train_in()
    assert changes(stopped) == [] and "extended" not in records(stopped)[0]
    assert records(stopped)[0]["config"]["max_steps"] == 6
    is_the_run(stopped, whole)


def killed_while_saving():
    """For a Fork's `prepare`: SIGKILL where the first checkpoint would be written."""
    RunFolder.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def test_other_hardware_ranks_and_code_are_logged_once(stopped, train_in):
    """Against what the run last went on with, not what it began with."""
    header, *lines = records(stopped)
    header |= {"hardware": "another", "world_size": 8, "code_hash": "before"}
    text = "".join(json.dumps(record) + "\n" for record in [header, *lines])
    (stopped / "log.jsonl").write_text(text)
    train_in(after=1)
    train_in()
    went, = changes(stopped)
    assert went.keys() == {"hardware", "world_size", "code_hash"}
    assert went["world_size"] == [8, 1] and went["hardware"][0] == "another"
    assert read_run(stopped)["went_on"] == ["code_hash", "hardware", "world_size"]


# ---- a folder that was damaged by hand ---------------------------------------------------------

def without(checkpoint, *keys):
    """A checkpoint's copy without checkpoint[key][key]..."""
    first, *rest = keys
    value = [] if rest else None
    kept = {key: value for key, value in checkpoint.items() if key != first}
    return kept | {first: without(checkpoint[first], *rest)} if rest else kept


def change_optimizer(checkpoint, number, **values):
    state = checkpoint["optimizer"]["state"]
    state = state | {number: state[number] | values}
    return checkpoint | {"optimizer": checkpoint["optimizer"] | {"state": state}}


def fewer_groups(checkpoint):
    groups = checkpoint["optimizer"]["param_groups"][1:]
    return checkpoint | {"optimizer": checkpoint["optimizer"] | {"param_groups": groups}}


def reshaped(checkpoint):
    weights = checkpoint["model"] | {"lm_head.weight": torch.zeros(3, 36)}
    return checkpoint | {"model": weights}


def configured(checkpoint, **values):
    return checkpoint | {"config": checkpoint["config"] | values}


DAMAGED = {
    "no model": (lambda c: without(c, "model"), "lacks model"),
    "no optimizer": (lambda c: without(c, "optimizer"), "lacks optimizer"),
    "no step": (lambda c: without(c, "step"), "lacks step"),
    "no best": (lambda c: without(c, "best"), "lacks best"),
    "no tokenizer": (lambda c: without(c, "tokenizer"), "lacks tokenizer"),
    "no config": (lambda c: without(c, "config"), "lacks config"),
    "config is a list": (lambda c: c | {"config": []}, "lacks a config"),
    "unknown key": (lambda c: configured(c, n_layerz=3), "unknown key 'n_layerz', did you mean"),
    "wrong type": (lambda c: configured(c, max_steps="6"), "max_steps='6' is not an int"),
    "none": (lambda c: configured(c, batch_size=None), "batch_size=None is not an int"),
    "shape": (reshaped, "does not hold together.*lm_head.weight"),
    "no weight": (lambda c: without(c, "model", "lm_head.weight"), "lm_head.weight"),
    "no entry": (lambda c: without(c, "optimizer", "state", 3), "does not hold together"),
    "no moment": (lambda c: without(c, "optimizer", "state", 0, "exp_avg"), "'exp_avg'"),
    "moment": (lambda c: change_optimizer(c, 1, exp_avg_sq=torch.zeros(2)), "exp_avg_sq is .2,."),
    "no state": (lambda c: without(c, "optimizer", "state"), "'state'"),
    "groups": (fewer_groups, "other groups of parameters"),
    "best": (lambda c: c | {"best": ["low"]}, "does not hold together"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_checkpoint_that_lacks_something_is_one_line(stopped, refuse, folder, damage):
    """Each with a hash that is right: what is missing or does not fit is named, before anything is
    written, and nothing trains on without it."""
    change, says = DAMAGED[damage]
    save_checkpoint(stopped / "ckpt.pt", change(load_checkpoint(stopped)))
    line = refuse(train.main, *TOY, cwd=folder)
    assert re.search(says, line) and "out/x/ckpt.pt" in line


def test_a_float16_run_without_its_scale_is_refused(folder, train_in, refuse):
    out = train_in("--dtype=float16", after=2)
    save_checkpoint(out / "ckpt.pt", load_checkpoint(out) | {"scaler": {}})
    assert "does not hold together" in refuse(train.main, *TOY, "--dtype=float16", cwd=folder)
    train_in("--dtype=float32")


def test_a_lost_checkpoint_is_no_fresh_start(stopped, whole, refuse, folder, train_in):
    """ckpt.pt gone, log and best.pt there: refused, with the way on, which works."""
    (stopped / "ckpt.pt").unlink()
    line = refuse(train.main, *TOY, cwd=folder)
    assert "log of a run up to step 4 but no ckpt.pt; copy out/x/best.pt to ckpt.pt" in line
    shutil.copy(stopped / "best.pt", folder / "best")
    (stopped / "best.pt").unlink()
    assert "start over with --overwrite" in refuse(train.main, *TOY, cwd=folder)
    shutil.copy(folder / "best", stopped / "ckpt.pt")
    train_in()
    is_the_run(stopped, whole)


def test_a_log_without_its_header_is_healed(stopped, whole, train_in):
    """Its first line gone, and half a line at its end: the finished run can be compared."""
    lines = (stopped / "log.jsonl").read_bytes().splitlines(keepends=True)
    (stopped / "log.jsonl").write_bytes(b"".join(lines[1:]) + b'{"step": 5, "lo')
    train_in()
    is_the_run(stopped, whole)
    run = read_run(stopped)
    assert run["header"]["config"]["max_steps"] == 6 and unfinished(run) == ""


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path):
    """A disk that fails while it is read, here the memory of this process, whose first page is
    not there."""
    (tmp_path / "ckpt.pt").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match="ckpt.pt cannot be read: Input/output error"):
        load_checkpoint(tmp_path)


# ---- kills at each file operation --------------------------------------------------------------

def killing_at(number):
    """For a Fork's `prepare`: SIGKILL before its file operation `number`, a rename, link, unlink or
    fsync."""
    def prepare():
        count = iter(range(1, 10_000))

        def counted(real):
            def operation(*args, **kwargs):
                if next(count) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)
            return operation
        for name in ("replace", "rename", "link", "unlink", "remove", "fsync"):
            setattr(os, name, counted(getattr(os, name)))
    return prepare


@pytest.mark.soak
def test_a_kill_at_every_file_operation(folder, whole):
    """Of a whole run: SIGKILL before each rename, link, unlink and fsync, then the same command.
    Losses, weights, best.pt and scores are those of the undisturbed run; nothing is left over."""
    number, status, out = 0, -signal.SIGKILL, folder / "out" / "x"
    files = {path.name for path in whole.iterdir()}
    while status == -signal.SIGKILL:
        number += 1
        status = Fork(cwd=folder, prepare=killing_at(number)).wait()
        assert status in (0, -signal.SIGKILL)
        run = Fork(cwd=folder)
        assert run.wait() == 0, (number, run.err)
        is_the_run(out, whole)
        assert {path.name for path in out.iterdir()} == files, number
        shutil.rmtree(out)
    print(f"\nSIGKILL before each of {number - 1} file operations of a run: 0 mismatches")
    assert number > 20


@pytest.mark.soak
def test_a_kill_at_every_file_operation_of_a_run_that_overwrites(small_data, folder, whole,
                                                                  tmp_path_factory):
    """Until the new run has its first checkpoint, the old one can be gone on with as if nothing had
    been; from then on the new one is. Here the old one, of another seed, was stopped at step 4."""
    made = [toy_folder(small_data, tmp_path_factory.mktemp("old"), prepare, status, "--seed=2")
            / "out" / "x" for prepare, status in ((stopping_after(4), 143), (None, 0))]
    old, old_whole = made
    number, status, out = 0, -signal.SIGKILL, folder / "out" / "x"
    kept = collections.Counter()
    while status == -signal.SIGKILL:
        number += 1
        shutil.copytree(old, out)
        status = Fork("--overwrite", cwd=folder, prepare=killing_at(number)).wait()
        first = Fork("--seed=2", cwd=folder)
        if first.wait() == 0:
            kept["old"] += 1
            is_the_run(out, old_whole)
        else:
            assert "made with seed=1337, now seed=2" in first.err
            kept["new"] += 1
            assert Fork(cwd=folder).wait() == 0
            is_the_run(out, whole)
        left = {path.name for path in out.iterdir()}
        assert left == {path.name for path in whole.iterdir()}, number
        shutil.rmtree(out)
    print(f"\nSIGKILL before each of {number - 1} file operations of a run that overwrites: "
          f"{kept['old']} times the old run went on, {kept['new']} times the new; 0 mismatches")
    assert kept["old"] > 5 and kept["new"] > 15


def test_overwrite_keeps_the_old_run_until_the_new_one_has_a_checkpoint(stopped, whole, folder,
                                                                        train_in):
    """A kill before that leaves the old run as it was; its scores and best.pt go with it later."""
    before = {name: (stopped / name).read_bytes() for name in ("ckpt.pt", "best.pt", "log.jsonl")}

    run = Fork("--overwrite", "--seed=3", cwd=folder, prepare=killed_while_saving)
    assert run.wait() == -signal.SIGKILL
    assert before == {name: (stopped / name).read_bytes() for name in before}
    assert "validation loss" in run.out and (stopped / "log.new").exists()
    train_in()
    is_the_run(stopped, whole)
    train_in("--overwrite", "--seed=3", after=1)
    assert not (stopped / "eval.npz").exists() and not (stopped / "log.new").exists()
    assert records(stopped)[0]["config"]["seed"] == 3
    assert load_checkpoint(stopped / "best.pt")["config"]["seed"] == 3


def test_leftovers_of_a_kill_do_not_stay_in_the_way(stopped, whole, train_in):
    """best.new, which a kill between link and rename leaves."""
    os.link(stopped / "ckpt.pt", stopped / "best.new")
    train_in()
    is_the_run(stopped, whole)
    assert not (stopped / "best.new").exists()


def test_a_file_system_without_locks_links_and_folder_fsync(folder, whole, call, capsys,
                                                            monkeypatch):
    """As network drives and FUSE may be: the run is the same, with one warning, and a note that
    best.pt is a copy."""
    def refused(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    def fsync(file, real=os.fsync):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            refused()
        real(file)
    monkeypatch.setattr("filelock.lock_descriptor", refused)
    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "fsync", fsync)
    assert call(train.main, *TOY, cwd=folder) == 0
    said = capsys.readouterr()
    assert re.fullmatch("warning: out/x/lock cannot be locked .*\n", said.err)
    assert said.out.count("best.pt is a copy") == 1
    is_the_run(folder / "out" / "x", whole)


# ---- the data of a live run --------------------------------------------------------------------

def during_step(number, action):
    """For a Fork's `prepare`: `action()` happens before step `number` + 1."""
    real = train.train_step

    def prepare():
        def train_step(step, *rest):
            if step == number:
                action()
            return real(step, *rest)
        train.train_step = train_step
    return prepare


def test_data_that_is_replaced_under_a_run(small_data, folder, whole):
    """`prepare.py --overwrite` makes other data of the same name while a run trains, which reads on
    what it hashed; the next start is refused."""
    shutil.copy(small_data / "docs.jsonl", folder)
    ids = (folder / "data" / "small" / "train.bin").read_bytes()

    def replace():
        argv = command("prepare.py", "text", "docs.jsonl", "--name=small", "--tokenizer=bpe:600",
                       "--val_fraction=0.1", "--overwrite")
        subprocess.run(argv, check=True, capture_output=True)
    run = Fork(cwd=folder, prepare=during_step(2, replace))
    assert run.wait() == 0, run.err
    assert (folder / "data" / "small" / "train.bin").read_bytes() != ids
    is_the_run(folder / "out" / "x", whole)
    again = Fork(cwd=folder)
    assert again.wait() == 2 and "out/x was made with" in again.err


def test_a_data_folder_that_is_renamed_under_a_run(folder, whole):
    data = folder / "data"
    run = Fork(cwd=folder, prepare=during_step(2, lambda: os.rename(data, folder / "moved")))
    assert run.wait() == 0, run.err
    is_the_run(folder / "out" / "x", whole)


def test_data_that_is_written_to_under_a_run_ends_it(folder):
    """In place, as `cp other.bin data/small/train.bin` does."""
    def write():
        with open(folder / "data" / "small" / "train.bin", "r+b") as file:
            file.write(b"\0\0")
    run = Fork(cwd=folder, prepare=during_step(2, write))
    assert run.wait() == 2
    assert "data/small was written to while it was read" in error_line(run.err)


def change_unseen(path):
    """Change a byte of a file without a trace: size, time and inode stay."""
    times = path.stat()
    with open(path, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_data_is_hashed_at_a_first_start_and_believed_later(folder, train_in, refuse):
    """A change that leaves size, time and inode as they were is believed by a run that goes on,
    found with --verify and at every run's first start; one that does not is found at once."""
    out = train_in(after=2)
    path = folder / "data" / "small" / "train.bin"
    change_unseen(path)
    train_in(after=1)
    assert load_checkpoint(out)["step"] == 3
    for options in (["--verify"], ["--name=other"], ["--overwrite"]):
        line = refuse(train.main, *TOY, *options, cwd=folder)
        assert "train.bin does not have the hash" in line
    change_unseen(path)
    path.write_bytes(path.read_bytes())
    train_in(after=1)
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    assert "train.bin does not have the hash" in refuse(train.main, *TOY, cwd=folder)


def test_data_is_hashed_once_for_each_machine(folder, call, monkeypatch):
    """By the first of its ranks."""
    hashed = []
    monkeypatch.setattr(Data, "check_contents", lambda data: hashed.append(data.folder))
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert call(train.main, *TOY, f"--name=x{rank}", cwd=folder) == 0
        assert len(hashed) == 1
    assert hashed and (folder / "data" / "small" / "verified.json").is_file()


# ---- several ranks -----------------------------------------------------------------------------

def refused_together(runs):
    """The lines with which ranks end that do not stand on the same ground."""
    assert [run.wait() for run in runs] == [2] * len(runs), [run.err for run in runs]
    lines = [error_line(run.err) for run in runs]
    assert all("the ranks stand on different ground" in line for line in lines)
    assert all(f"rank {rank} ({platform.node()})" in lines[0] for rank in (0, 1))
    return lines[0]


@pytest.fixture
def two_folders(half, tmp_path):
    """Two machines that share nothing, each with out/x at step 4."""
    for name in ("a", "b"):
        for part in ("data", "out"):
            shutil.copytree(half / part, tmp_path / name / part)
    return tmp_path / "a", tmp_path / "b"


def test_ranks_refuse_other_data_under_the_same_name(two_folders, call):
    for there, fraction in zip(two_folders, ("0.1", "0.2")):
        prepare_own(there, call, fraction)
    runs = ranks(two_folders, "--dataset=own", "--name=y")
    assert "data is {" in refused_together(runs)
    assert not any((there / "out" / "y").exists() for there in two_folders)


def test_ranks_refuse_checkpoints_of_different_steps(two_folders):
    """One machine has a later checkpoint than the other, or one has none at all."""
    out = two_folders[1] / "out" / "x"
    checkpoint = load_checkpoint(out)
    save_checkpoint(out / "ckpt.pt", checkpoint | {"step": 3})
    before = fingerprint(load_checkpoint(two_folders[0] / "out" / "x"))
    assert "step is 4 on rank 0" in refused_together(ranks(two_folders))
    shutil.rmtree(two_folders[1] / "out")
    assert "and 0 on rank 1" in refused_together(ranks(two_folders))
    assert fingerprint(load_checkpoint(two_folders[0] / "out" / "x")) == before
    assert not (two_folders[1] / "out").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_refuses_alone_ends_the_others_in_a_line(two_folders, rank):
    """Here its machine's checkpoint is damaged, the other's is whole and stays so."""
    (two_folders[rank] / "out" / "x" / "ckpt.pt").write_bytes(b"hello")
    other = two_folders[1 - rank] / "out" / "x"
    before = fingerprint(load_checkpoint(other))
    two = ranks(two_folders)
    assert [run.wait() for run in two] == [2, 2]
    assert "not a checkpoint of this project" in error_line(two[rank].err)
    assert "another rank ended before the first step" in error_line(two[1 - rank].err)
    assert fingerprint(load_checkpoint(other)) == before


def other_options():
    sys.argv.append("--learning_rate=0.5")


def other_code():
    provenance.code_hash = lambda: "another"


@pytest.mark.parametrize("change, says", [
    (other_options, "learning_rate is 0.001 on rank 0 .* and 0.5 on rank 1"),
    (other_code, "code_hash is .* on rank 0 .* and another on rank 1")])
def test_ranks_refuse_other_options_and_other_code(folder, change, says):
    """As where two machines were given different commands, or have different checkouts."""
    def prepare():
        if os.environ["RANK"] == "1":
            change()
    assert re.search(says, refused_together(ranks([folder, folder], prepare=prepare)))
    assert not (folder / "out").exists()


def test_all_ranks_stop_at_the_step_in_which_one_hears_a_signal(folder):
    """Not at the next line of the log, which here would be the last step."""
    two = ranks([folder, folder], "--log_interval=1000", "--max_steps=1000", "--eval_interval=1000",
                prepare=with_steps_of(0.05))
    two[0].wait_for("step 1/1000")
    os.kill(two[1].pid, signal.SIGTERM)
    assert [run.wait() for run in two] == [143, 143]
    step = load_checkpoint(folder / "out" / "x")["step"]
    assert 1 <= step < 100 and f"stopped at step {step}," in two[0].out


@pytest.mark.parametrize("shared_id", [False, True])
def test_overwriting_is_decided_once(folder, shared_id):
    """Of two machines with --overwrite, one was restarted by torchrun and the other was given its
    command anew: the run that they had begun is gone on with by both. A restart before that run had
    its first checkpoint does start over, and so does a new launch."""
    overwrite = ["--overwrite", "--max_steps=2", "--eval_interval=1"]
    old, new = "before", "before" if shared_id else "now"
    first = {"TORCHELASTIC_RUN_ID": old}
    assert all(run.wait() == 0 for run in ranks([folder] * 2, *overwrite, envs=[first] * 2))

    again = {"TORCHELASTIC_RUN_ID": new}
    restarted = again | {"TORCHELASTIC_RESTART_COUNT": "1"}
    for run in ranks([folder] * 2, *overwrite, "--seed=2", envs=[again] * 2,
                     prepare=killed_while_saving):
        run.wait()
    assert records(folder / "out" / "x")[0]["config"]["seed"] == 1337
    two = ranks([folder] * 2, *overwrite, "--seed=2", envs=[again, restarted])
    assert all(run.wait() == 0 for run in two) and "step 1/2" in two[0].out
    assert records(folder / "out" / "x")[0]["config"]["seed"] == 2
    two = ranks([folder] * 2, *overwrite, "--seed=2", envs=[again, restarted])
    assert all(run.wait() == 0 for run in two) and "is finished" in two[0].out
    two = ranks([folder] * 2, *overwrite, "--seed=2", envs=[again] * 2)
    assert all(run.wait() == 0 for run in two) and "step 1/2" in two[0].out


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_to_torchrun_and_its_workers(small_data, number):
    """As a service manager sends it, to the whole process group: saved, ten times of ten."""
    steps = []
    for i in range(10):
        name = f"group{int(number)}-{i}"
        process = start(small_data, *FAST, "--max_steps=4000", "--log_interval=1000",
                        f"--name={name}", ranks=2, start_new_session=True)
        wait_for(process, "step 1/4000")
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        steps.append(load_checkpoint(small_data / "out" / name)["step"])
    assert min(steps) >= 1
    print(f"\n{signal.Signals(number).name} to torchrun and two workers at once, ten times: saved "
          f"at steps {steps}")


# ---- what is printed ---------------------------------------------------------------------------

def test_a_loss_beyond_all_numbers_is_advice(folder, train_in, call, capsys, monkeypatch):
    """Past 709 nats the perplexity is no float: one line, and compare.py says that it diverged."""
    real = train.validate
    monkeypatch.setattr(train, "validate", lambda *args: (750.0, 1.0)
                        if train_in.steps else real(*args))
    train_in.steps = 0

    def train_step(*args, real=train.train_step):
        train_in.steps += 1
        return real(*args)
    monkeypatch.setattr(train, "train_step", train_step)
    assert call(train.main, *TOY, cwd=folder) == 2
    line = error_line(capsys.readouterr().err)
    assert "step 3: the validation loss is 750.0; lower learning_rate" in line
    assert "diverged" in unfinished(read_run(folder / "out" / "x"))


def test_an_output_that_lacks_letters(folder):
    """cp1252, as on Windows: --help and a run whose name it cannot say."""
    for options in (["--help"], ["--name=дом", "--max_steps=1"]):
        run = Fork(*options, cwd=folder, encoding="cp1252")
        assert run.wait() == 0, run.err
        assert run.out and not run.err
    assert "out/???: kron" in run.out


def test_help_names_every_option(tmp_path, call, capsys):
    assert call(train.main, "--help", cwd=tmp_path) == 0
    said = capsys.readouterr().out
    for option in ("--overwrite", "--extend", "--verify", "--dry_run", "--max_steps=4768"):
        assert re.search(rf"^  {option} .*\w", said, re.M), option


def test_nothing_needs_unix():
    """No fcntl, and no os.sched_getaffinity without another way, which Windows and macOS lack."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("lib/*.py"), *ROOT.glob("probes/*.py")]:
        for line in path.read_text().splitlines():
            assert not re.search(r"import (fcntl|resource|pwd)\b", line), path
            assert "sched_getaffinity" not in line or "hasattr" in line, path


# ---- hostile and broken files ------------------------------------------------------------------

def damaged(raw, count, seed):
    """`count` variants of some bytes: cut at a random length, or with one to eight random bytes
    changed."""
    rng = np.random.RandomState(seed)
    for i in range(count):
        if i % 3 == 0:
            yield raw[:rng.randint(len(raw))]
            continue
        broken = bytearray(raw)
        for at in rng.randint(0, len(raw), rng.randint(1, 9)):
            broken[at] ^= rng.randint(1, 256)
        yield bytes(broken)


def outcomes(variants, path, load):
    """How many variants of the file at `path` were refused in one line, and how many loaded;
    anything else fails the test."""
    refused = loaded = 0
    for raw in variants:
        path.write_bytes(raw)
        try:
            load()
            loaded += 1
        except InputError as error:
            assert str(error)
            refused += 1
    return refused, loaded


class Bomb:
    """A pickle that would create a file when it is loaded by a reader that runs code."""
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_a_checkpoint_that_would_run_code_does_not(tmp_path, kind):
    state = {"model": Bomb(tmp_path / "ran"), "config": {}}
    if kind == "zip":
        torch.save(state, tmp_path / "ckpt.pt")
    else:
        (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(state))
    with pytest.raises(InputError, match="unsafe"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint(small_data, reference, tmp_path, refuse):
    """Nothing, text, half a checkpoint, another project's, one that does not hold together: one
    line that names it, where it is loaded and where train.py would continue from it."""
    whole, raw = load_checkpoint(reference), (reference / "ckpt.pt").read_bytes()
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in (("text", b"hello"), ("empty", b""), ("half", raw[:len(raw) // 2])):
        (folder / name).write_bytes(content)
    torch.save({"model": {"w": torch.zeros(5000)}, "iter_num": 5}, folder / "other")
    torch.save([1, 2], folder / "list")
    whole_but = {"tokenizer": {"tokenizer": {}}, "weights": {"model": {}}, "config": {"config": 3},
                 "shape": {"config": whole["config"] | {"n_head": 7}}}
    for name, change in whole_but.items():
        save_checkpoint(folder / name, whole | change)
    (folder / "folder").mkdir()
    for path in [*folder.iterdir(), folder / "absent"]:
        with pytest.raises(InputError, match=path.name):
            load_model(path)

    shutil.copytree(small_data / "data", tmp_path / "data")
    out = tmp_path / "out" / "x"
    out.mkdir(parents=True)
    for name in ("text", "empty", "half", "other", "list"):
        shutil.copy(folder / name, out / "ckpt.pt")
        assert "not a checkpoint" in refuse(train.main, *FAST, "--name=x", cwd=tmp_path)


def fuzz(small_data, reference, tmp_path, monkeypatch, count):
    """Damage every kind of file `count` times; what still loads must be what was saved. {file:
    (refused, loaded)}."""
    whole = fingerprint(load_checkpoint(reference))
    said = {}

    def load_damaged_checkpoint():
        assert fingerprint(load_model(tmp_path)[2]) == whole
    raw = (reference / "ckpt.pt").read_bytes()
    said["ckpt.pt"] = outcomes(damaged(raw, count, 1), tmp_path / "ckpt.pt",
                               load_damaged_checkpoint)

    shutil.copytree(small_data / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for name in ("meta.json", "train.bin", "val.bin"):
        path = tmp_path / "data" / "small" / name
        good = path.read_bytes()
        said[name] = outcomes(damaged(good, count, 2), path, lambda: Data("small", 64).verify())
        path.write_bytes(good)

    def load_config():
        check(compose([str(tmp_path / "c.py")])[0], 1)
    raw = (ROOT / "configs" / "tiny.py").read_bytes()
    said["config"] = outcomes(damaged(raw, count, 3), tmp_path / "c.py", load_config)
    raw = (reference / "log.jsonl").read_bytes()
    said["log.jsonl"] = outcomes(damaged(raw, count, 4), tmp_path / "log.jsonl",
                                 lambda: read_run(tmp_path))
    return said


def test_damaged_files_are_refused_or_harmless(small_data, reference, tmp_path, monkeypatch):
    said = fuzz(small_data, reference, tmp_path, monkeypatch, 60)
    for name in ("meta.json", "train.bin", "val.bin"):
        assert said[name] == (60, 0), name  # a hash stands behind every byte of these
    assert said["ckpt.pt"][0] >= 20 and said["config"][0] >= 10


@pytest.mark.soak
def test_damaged_files_400_times(small_data, reference, tmp_path, monkeypatch):
    said = fuzz(small_data, reference, tmp_path, monkeypatch, 400)
    counted = ", ".join(f"{name} {pair}" for name, pair in said.items())
    print("\ndamaged files, (refused in one line, loaded and equal to the whole one or a config "
          f"with other values): {counted}")


@pytest.mark.parametrize("text", [
    "import os", "n_layer = __import__('os').getpid()", "n_layer = 2\nx.y = 3", "n_layer = (",
    "n_layer = 2 ** 2", "\0", "n_layer = " + "(" * 5000])
def test_config_files_are_read_never_run(tmp_path, refuse, text):
    (tmp_path / "c.py").write_text(text)
    assert "c.py" in refuse(train.main, "c.py", cwd=tmp_path)


@pytest.mark.soak
def test_host_memory_does_not_grow_with_steps(small_data):
    """Resident memory after 4,000 steps is that after 500."""
    process = start(small_data, *FAST, "--name=memory", "--max_steps=4000", "--eval_interval=500",
                    "--log_interval=100", "--batch_size=2")
    resident = {}  # MB at each 500 steps
    for line in process.stdout:
        found = re.match(r"step (\d+)/4000 \| validation loss", line)
        status = Path(f"/proc/{process.pid}/status")
        if not found or not status.exists():
            continue
        size = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        if size and int(found[1]):
            resident[int(found[1])] = int(size[1]) / 1024
    process.communicate()
    counted = ", ".join(f"{step}: {size:.0f}" for step, size in resident.items())
    print(f"\nresident memory (MB) at steps: {counted}")
    assert max(resident.values()) < 1.05 * resident[500]
