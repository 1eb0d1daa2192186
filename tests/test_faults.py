"""Never lose a run, never lie about one: faults injected for real into the real scripts.

The quick forms run with the suite. `python -m pytest -m soak -s tests/test_faults.py` runs the long
ones and prints what they counted.
"""
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
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import model
import train
from codes import LearnedEmbedding
from conftest import ROOT, command, error_line, records, series
from lib import provenance
from lib.run_folder import load_checkpoint, load_model, save_checkpoint
from lib.errors import InputError
from lib.config import check, compose
from lib.data import Data
from lib.hardware import Hardware
from lib.results import read_run
from lib.results import unfinished
from toy import (TOY, Fork, folder, ranks, same_state, stopping_after, train_in,  # noqa: F401
                 with_steps_of)

# Checkpoints are frequent, so that a kill often meets one being written.
FAST = [*TOY, "--max_steps=40", "--eval_interval=4", "--dropout=0.1"]


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(small_data, reference, number):
    name = f"signal{int(number)}"
    run = Fork(*FAST, f"--name={name}", cwd=small_data, prepare=with_steps_of(0.05))
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
    run = Fork(*FAST, "--name=full", "--overwrite", cwd=small_data, prepare=with_steps_of(0.05))
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


def test_overwrite_keeps_the_old_run_beside_the_new(stopped, folder, train_in):
    """As x.old, in the place of an older one, whole: it goes on under its new name. A worker that
    torchrun starts again goes on with the new run."""
    old = load_checkpoint(stopped)
    (folder / "out" / "x.old").mkdir()
    (folder / "out" / "x.old" / "older").touch()
    train_in("--overwrite", "--seed=3", after=2)
    assert same_state(load_checkpoint(folder / "out" / "x.old"), old)
    assert not (folder / "out" / "x.old" / "older").exists()
    assert load_checkpoint(stopped)["config"]["seed"] == 3
    again = Fork("--overwrite", "--seed=3", cwd=folder, env={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert again.wait() == 0 and "step 1/6" not in again.out and "step 3/6" in again.out


def test_the_first_line_counts_no_time_left(whole, folder):
    """What compiles and is validated first does not repeat: the time left is of later steps."""
    run = Fork(cwd=folder)
    assert run.wait() == 0
    lines = [line for line in run.out.splitlines() if " | loss " in line]
    assert [" left" in line for line in lines] == [False] + [True] * 5
    assert re.search(r"step 2/6 \| loss \d.* \d+ ms \| [\d,]+ tokens/s \| 0:00:\d\d left$",
                     lines[1])


class OddEmbedding(LearnedEmbedding):
    """What forks write first: a weight that is not used, and a table that is not trained."""

    def __init__(self, num_embeddings, embedding_dim, std=None):
        super().__init__(num_embeddings, embedding_dim, std)
        self.unused = torch.nn.Parameter(torch.zeros(3))
        table = torch.ones(num_embeddings, embedding_dim)
        self.frozen = torch.nn.Embedding.from_pretrained(table)

    def forward(self, ids):
        return super().forward(ids) + self.frozen(ids)


def test_parameters_that_no_gradient_reaches(folder, train_in, monkeypatch):
    """They train, stop, go on and run on two ranks; what is frozen does not count as trained."""
    monkeypatch.setitem(model.CODES, "odd", OddEmbedding)
    (folder / "odd.py").write_text('code = "odd"\nlift = "none"\nhead = "table"\n')
    argv = "odd.py", "--pos_dim=16"
    line = Fork(*argv, cwd=folder)
    assert line.wait() == 2 and "code 'odd' does not read it; it is of kron, " in line.err
    toy = [option for option in TOY if "kron" not in option]
    monkeypatch.setattr("toy.TOY", [*toy, "odd.py"])
    out = train_in()
    assert records(out)[0]["params"]["input"] == 512 * 36 + 3
    shutil.move(out, folder / "whole")
    train_in(after=4)
    train_in()
    same_series(out, folder / "whole")
    two = ranks([folder] * 2, "--name=two")
    assert [run.wait() for run in two] == [0, 0], two[0].err
    assert series(folder / "out" / "two", "loss") == pytest.approx(series(out, "loss"), abs=1e-5)


def test_two_processes_on_one_run(folder):
    """The second refuses and names the first, which may be an orphan; the lock is the kernel's and
    goes with its process, so a kill leaves none behind."""
    first = Fork(cwd=folder, prepare=with_steps_of(0.2))
    first.wait_for("step 1/6")
    for option in ("--overwrite", "--seed=2"):  # before its checkpoint is read
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
    assert "step 2: the gradient norm is not finite (sequences 4 to 7" in line
    assert "lower learning_rate" in line
    checkpoint = load_checkpoint(small_data / "out" / "nan")
    assert checkpoint["step"] == 0
    assert "diverged" in unfinished(read_run(small_data / "out" / "nan"))
    assert all(torch.isfinite(p).all() for p in checkpoint["model"].values())


def test_torchrun_restarts_a_killed_worker(small_data):
    """--max_restarts: one of two workers dies by SIGKILL; one restart goes on from the last
    checkpoint and ends as if nothing had been."""
    argv = [*FAST, "--max_steps=300", "--eval_interval=50"]
    whole = ranks([small_data] * 2, *argv, "--name=two")
    assert [run.wait() for run in whole] == [0, 0]
    process = start(small_data, *argv, "--name=restarted", ranks=2,
                    options=["--standalone", "--max_restarts=1"])
    wait_for(process, "step 60/300")
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"],
                              capture_output=True, text=True)
    workers = children.stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    same_series(small_data / "out" / "restarted", small_data / "out" / "two")


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
    assert same_state(one, other)
    assert same_state(*(load_checkpoint(run / "best.pt") for run in (out, whole)))
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


@pytest.mark.parametrize("option", ["--learning_rate=1e-4", "--batch_size=2", "--max_steps=5",
                                    "--pos_dim=8"])
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


DAMAGED = {
    "no step": (lambda c: without(c, "step"), "lacks step"),
    "config is a list": (lambda c: c | {"config": []}, "lacks a config"),
    "unknown key": (lambda c: c | {"config": c["config"] | {"n_layerz": 3}},
                    "unknown key 'n_layerz', did you mean"),
    "shape": (lambda c: c | {"model": c["model"] | {"lm_head.weight": torch.zeros(3, 36)}},
              "does not hold together.*lm_head.weight"),
    "no weight": (lambda c: without(c, "model", "lm_head.weight"), "lm_head.weight"),
    "no moment": (lambda c: without(c, "optimizer", "state", 0, "exp_avg"), "'exp_avg'"),
    "groups": (lambda c: c | {"optimizer": c["optimizer"] | {"param_groups": []}},
               "other groups of parameters"),
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


def test_a_file_system_without_locks_links_and_folder_fsync(folder, whole, call, capsys,
                                                            monkeypatch):
    """As network drives and FUSE may be: the run is the same, with one warning."""
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


def test_a_data_folder_that_is_renamed_under_a_run(folder, whole):
    data = folder / "data"
    run = Fork(cwd=folder, prepare=during_step(2, lambda: os.rename(data, folder / "moved")))
    assert run.wait() == 0, run.err
    is_the_run(folder / "out" / "x", whole)


# ---- several ranks -----------------------------------------------------------------------------

@pytest.fixture
def two_folders(half, tmp_path):
    """Two machines that share nothing, each with out/x at step 4."""
    for name in ("a", "b"):
        for part in ("data", "out"):
            shutil.copytree(half / part, tmp_path / name / part)
    return tmp_path / "a", tmp_path / "b"


def other_options():
    sys.argv.append("--learning_rate=0.5")


def other_code():
    provenance.code_hash = lambda: "another"


def other_data():
    real = train.open_data

    def open_data(config):
        data = real(config)
        data.sha256, data.verify = data.sha256 | {"val": "another"}, lambda: None
        return data
    train.open_data = open_data


def other_step():
    path = Path("out/x/ckpt.pt")
    save_checkpoint(path, load_checkpoint(path) | {"step": 3})


@pytest.mark.parametrize("change, says", [
    (other_options, "learning_rate is 0.004 on rank 0 .* and 0.5 on rank 1"),
    (other_code, "code_hash is .* on rank 0 .* and another on rank 1"),
    (other_data, "data is .* and .*another'} on rank 1"),
    (other_step, "step is 4 on rank 0 .* 3 ")])
def test_ranks_refuse_to_start_on_different_ground(two_folders, change, says):
    """Two machines with other options, another checkout, other data of the same name, a later
    checkpoint: each ends with the line that names both, and the runs stay as they were."""
    fresh = [] if change is other_step else ["--name=y"]

    def prepare():
        if os.environ["RANK"] == "1":
            change()
    runs = ranks(two_folders, *fresh, prepare=prepare)
    assert [run.wait() for run in runs] == [2, 2], [run.err for run in runs]
    for line in (error_line(run.err) for run in runs):
        assert re.search(says, line) and line.count(platform.node()) == 2
    assert not any((there / "out" / "y").exists() for there in two_folders)
    assert load_checkpoint(two_folders[0] / "out" / "x")["step"] == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_refuses_alone_ends_the_others_in_a_line(two_folders, rank):
    """Here its machine's checkpoint is damaged, the other's is whole and stays so."""
    (two_folders[rank] / "out" / "x" / "ckpt.pt").write_bytes(b"hello")
    other = two_folders[1 - rank] / "out" / "x"
    before = load_checkpoint(other)
    two = ranks(two_folders)
    assert [run.wait() for run in two] == [2, 2]
    assert "not a checkpoint of this project" in error_line(two[rank].err)
    assert "another rank ended before the first step" in error_line(two[1 - rank].err)
    assert same_state(load_checkpoint(other), before)


def test_all_ranks_stop_at_the_step_in_which_one_hears_a_signal(folder):
    """Not at the next line of the log, which here would be the last step."""
    two = ranks([folder, folder], "--log_interval=1000", "--max_steps=1000", "--eval_interval=1000",
                prepare=with_steps_of(0.05))
    two[0].wait_for("step 1/1000")
    os.kill(two[1].pid, signal.SIGTERM)
    assert [run.wait() for run in two] == [143, 143]
    step = load_checkpoint(folder / "out" / "x")["step"]
    assert 1 <= step < 100 and f"stopped at step {step}," in two[0].out


# ---- what is printed ---------------------------------------------------------------------------

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
    for option in ("--overwrite", "--extend", "--dry_run", "--max_steps=4768"):
        assert re.search(rf"^  {option} .*\w", said, re.M), option


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


@pytest.mark.parametrize("kind, says", [("zip", "unsafe"), ("pickle", "not a checkpoint")])
def test_a_checkpoint_that_would_run_code_does_not(tmp_path, kind, says):
    state = {"model": Bomb(tmp_path / "ran"), "config": {}}
    if kind == "zip":
        torch.save(state, tmp_path / "ckpt.pt")
    else:
        (tmp_path / "ckpt.pt").write_bytes(pickle.dumps(state))
    with pytest.raises(InputError, match=says):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint(stopped, refuse, folder):
    """Nothing, text, half a checkpoint, another project's: one line, and no traceback."""
    path, raw = stopped / "ckpt.pt", (stopped / "ckpt.pt").read_bytes()
    for content in (b"hello", b"", raw[:len(raw) // 2]):
        path.write_bytes(content)
        assert "not a checkpoint" in refuse(train.main, *TOY, cwd=folder)
    for other in ({"model": {"w": torch.zeros(5000)}, "iter_num": 5}, [1, 2]):
        torch.save(other, path)
        assert "ckpt.pt" in refuse(train.main, *TOY, cwd=folder)
    for change in ({"tokenizer": {"tokenizer": {}}}, {"model": {}}, {"config": 3}):
        torch.save(load_checkpoint(stopped / "best.pt") | change, path)
        with pytest.raises(InputError, match="out/x: the checkpoint does not hold together"):
            load_model(stopped)


def test_damaged_files_are_refused_or_harmless(stopped, folder, monkeypatch):
    """What still loads is what was saved; of the data every byte counts."""
    monkeypatch.chdir(folder)
    whole = load_checkpoint(stopped)

    def load():
        assert same_state(load_checkpoint(stopped), whole)
    path = stopped / "ckpt.pt"
    refused, _ = outcomes(damaged(path.read_bytes(), 60, 1), path, load)
    assert refused >= 40
    for name in ("meta.json", "train.bin", "val.bin"):
        path = folder / "data" / "small" / name
        good = path.read_bytes()
        found = outcomes(damaged(good, 20, 2), path, lambda: Data("small", 16).verify())
        assert found == (20, 0), name
        path.write_bytes(good)
    raw, path = (ROOT / "configs" / "tiny.py").read_bytes(), folder / "c.py"
    refused, _ = outcomes(damaged(raw, 40, 3), path, lambda: check(compose([str(path)])[0], 1))
    assert refused >= 5
    raw, path = (stopped / "log.jsonl").read_bytes(), stopped / "log.jsonl"
    outcomes(damaged(raw, 40, 4), path, lambda: read_run(stopped))


@pytest.mark.parametrize("text", [
    "import os", "n_layer = __import__('os').getpid()", "n_layer = 2\nx.y = 3", "n_layer = (",
    "n_layer = 2 ** 2", "\0", "n_layer = " + "(" * 5000])
def test_config_files_are_read_never_run(tmp_path, refuse, text):
    (tmp_path / "c.py").write_text(text)
    assert "c.py" in refuse(train.main, "c.py", cwd=tmp_path)


