"""Never lose a run, never lie about one: faults injected for real into the real scripts."""
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import model
import train
from codes import LearnedEmbedding
from conftest import command, error_line, records, series
from lib import provenance
from lib.data import Data
from lib.errors import InputError
from lib.results import read_run, unfinished
from lib.run_folder import load_checkpoint, load_model, save_checkpoint
from toy import TOY, Fork, before_steps, folder, ranks, same_state, train_in  # noqa: F401

# Checkpoints are frequent, so that a kill often meets one being written.
FAST = ["--max_steps=40", "--eval_interval=4", "--dropout=0.1"]


def logged(run):
    """All lines of a run's log but its header, without what hangs on time and names."""
    keys = "step", "loss", "grad_norm", "val_loss", "resumed_with"
    return [[r.get(key) for key in keys] for r in records(run)[1:]]


def is_the_run(out, whole):
    """Whether a run ended as the undisturbed one but for its name: log, checkpoints and scores, bit
    for bit."""
    for name in ("ckpt.pt", "best.pt"):
        a, b = (load_checkpoint(run / name) | {"config": None} for run in (out, whole))
        if not same_state(a, b):
            return False
    a, b = (dict(np.load(run / "eval.npz")) for run in (out, whole))
    return logged(out) == logged(whole) and all(np.array_equal(a[name], b[name]) for name in b)


def trained(folder, name, *options):
    """out/NAME of a run in a fork of this process."""
    run = Fork(*options, f"--name={name}", cwd=folder)
    assert run.wait() == 0, run.err
    return folder / "out" / name


@pytest.fixture(scope="module")
def reference(small_data):
    """The FAST run that nobody disturbed."""
    return trained(small_data, "reference", *FAST)


@pytest.fixture(scope="module")
def whole(small_data):
    """The toy run that nobody disturbed."""
    return trained(small_data, "whole")


@pytest.fixture
def stopped(train_in):
    """out/x, stopped after step 4 of 6."""
    return train_in(after=4)


# ---- kills, signals, full disks ----------------------------------------------------------------

def killing_at(number):
    """For a Fork's `prepare`: SIGKILL before its file operation `number`. Between two of them
    nothing changes on the disk but the last line of the log."""
    def prepare():
        count = iter(range(1, 10_000))

        def counted(real):
            def operation(*args, **kwargs):
                if next(count) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)
            return operation
        for name in ("replace", "rename", "unlink", "fsync"):
            setattr(os, name, counted(getattr(os, name)))
    return prepare


@pytest.mark.parametrize("numbers", [
    (3, 11, 6, 8, 13), pytest.param(range(1, 26), marks=pytest.mark.soak)])
def test_killed_and_resumed_is_the_run_that_was_not(small_data, reference, numbers):
    """SIGKILL again and again, the checkpoint read after each: in the end the same losses, weights,
    scores and files, with dropout, which must repeat itself."""
    name = f"killed{len(numbers)}"
    out = small_data / "out" / name
    for number in numbers:
        run = Fork(*FAST, f"--name={name}", cwd=small_data, prepare=killing_at(number))
        assert run.wait() in (-signal.SIGKILL, 0)
        assert not (out / "ckpt.pt").exists() or 0 <= load_checkpoint(out)["step"] <= 40
    assert is_the_run(trained(small_data, name, *FAST), reference)
    assert {path.name for path in out.iterdir()} == {path.name for path in reference.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(small_data, reference, number):
    name = f"signal{int(number)}"
    run = Fork(*FAST, f"--name={name}", cwd=small_data,
               prepare=before_steps(lambda _: time.sleep(0.05)))
    run.wait_for("step 1/40")
    os.kill(run.pid, number)
    assert run.wait() == 128 + number and not run.err
    assert "the same command again continues" in run.out
    assert 1 <= load_checkpoint(small_data / "out" / name)["step"] < 40
    assert logged(trained(small_data, name, *FAST)) == logged(reference)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(stopped, whole, folder, train_in):
    """The limit on file size stands for the disk: the log fits, a checkpoint does not."""
    small = 500_000, 500_000
    run = Fork(cwd=folder, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, small))
    assert run.wait() == 2 and "the checkpoint before it is kept" in error_line(run.err)
    assert load_checkpoint(stopped)["step"] == 4 and not list(stopped.glob("*.tmp"))
    assert is_the_run(train_in(), whole)


def test_the_best_checkpoint_stays_beside_the_latest(small_data):
    """With a weight decay that ruins the model late - it grows with the rate and from step 26 on
    turns weights over - best.pt is the step of the lowest validation loss."""
    out = trained(small_data, "best", *FAST, "--learning_rate=0.02", "--min_lr=0.02",
                  "--warmup_steps=39", "--weight_decay=150")
    vals = series(out, "val_loss")
    best = min(vals, key=vals.get)
    assert 0 < best < 40 == load_checkpoint(out)["step"]
    assert load_checkpoint(out / "best.pt")["step"] == best


def test_a_non_finite_gradient_stops_the_run(folder):
    options = "--learning_rate=1e30", "--min_lr=1", "--grad_clip=0", "--log_interval=4"
    run = Fork(*options, cwd=folder)
    assert run.wait() == 2
    assert "step 2: the gradient norm is not finite; lower learning_rate" in error_line(run.err)
    assert load_checkpoint(folder / "out" / "x")["step"] == 0
    assert "diverged" in unfinished(read_run(folder / "out" / "x"))


def test_torchrun_restarts_a_killed_worker(small_data):
    """--max_restarts: one of two workers dies by SIGKILL; one restart goes on from the last
    checkpoint and ends as if nothing had been."""
    argv = [*TOY, "--max_steps=100", "--eval_interval=20"]
    two = ranks([small_data] * 2, *argv, "--name=two")
    assert [run.wait() for run in two] == [0, 0]
    torchrun = command("train.py", *argv, "--name=restarted", ranks=2,
                       options=["--standalone", "--max_restarts=1"])
    process = subprocess.Popen(torchrun, cwd=small_data, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert any("step 30/100" in line for line in process.stdout)  # reads up to there
    workers = subprocess.check_output(["pgrep", "-P", str(process.pid), "-f", "train.py"])
    os.kill(int(workers.split()[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert logged(small_data / "out" / "restarted") == logged(small_data / "out" / "two")


# ---- resuming ----------------------------------------------------------------------------------

def test_a_stopped_run_goes_on_as_if_nothing_had_been(stopped, whole, train_in):
    """Also where it is told the vocabulary's size, which is what the data has anyway."""
    (stopped / "log.jsonl").open("a").write('{"step": 5, "lo')  # a kill can leave half a line
    train_in("--vocab_size=512")
    assert is_the_run(stopped, whole)


@pytest.mark.parametrize("before, options", [
    ({"dtype": "bfloat16"}, []), ({"device": "cuda", "compile": "True"}, []),
    ({"batch_size": 4, "gradient_accumulation_steps": 1, "log_interval": 1},
     ["--batch_size=2", "--gradient_accumulation_steps=2", "--log_interval=2"])])
def test_keys_that_change_bits_or_nothing_may_change(stopped, whole, train_in, capsys, before,
                                                     options):
    """dtype, device, compile, how a step is cut into micro-batches, what is logged: said and
    logged, with the same batches."""
    checkpoint = load_checkpoint(stopped)
    save_checkpoint(stopped / "ckpt.pt", checkpoint | {"config": checkpoint["config"] | before})
    train_in(*options)
    now = load_checkpoint(stopped)["config"]
    changes = {key: [was, now[key]] for key, was in before.items()}
    assert series(stopped, "resumed_with") == {4: changes}
    said = capsys.readouterr().out
    assert all(f"{key}={now[key]} (before: {was})" in said for key, was in before.items())
    assert series(stopped, "batch_crc").items() <= series(whole, "batch_crc").items()
    assert series(stopped, "loss")[6] == pytest.approx(series(whole, "loss")[6], abs=0.02)
    run = read_run(stopped)
    assert run["resumed_with"] == sorted(before) and not unfinished(run)


@pytest.mark.parametrize("option", ["--learning_rate=2e-3", "--batch_size=2", "--max_steps=8",
                                    "--pos_dim=8", "--name=copy"])
def test_anything_else_is_another_run(stopped, refuse, folder, option):
    """A folder that was copied too."""
    shutil.copytree(stopped, folder / "out" / "copy")
    line = refuse(train.main, *TOY, option, cwd=folder)
    key = option.split("=")[0][2:]
    assert f" was made with {key}=" in line and f", now {key}=" in line
    assert "give another --name, or start over with --overwrite" in line


def test_other_hardware_ranks_and_code_are_logged_once(stopped, train_in):
    """Against what the run was last resumed with, not what it began with."""
    log = stopped / "log.jsonl"
    header, *lines = records(stopped)
    header |= {"hardware": "another", "world_size": 8, "code_hash": "before"}
    log.write_text("\n".join(map(json.dumps, [header, *lines])) + "\n")
    train_in(after=1)
    train_in()
    (step, went), = series(stopped, "resumed_with").items()
    assert step == 4 and went.keys() == {"hardware", "world_size", "code_hash"}
    assert went["world_size"] == [8, 1] and went["hardware"][0] == "another"


def test_overwrite_keeps_the_old_run_beside_the_new(stopped, folder, train_in):
    """As x.old, in the place of an older one. A worker that torchrun starts again goes on with the
    new run."""
    old = load_checkpoint(stopped)
    (folder / "out" / "x.old").mkdir()
    (folder / "out" / "x.old" / "older").touch()
    train_in("--overwrite", "--seed=3", after=2)
    assert same_state(load_checkpoint(folder / "out" / "x.old"), old)
    assert not (folder / "out" / "x.old" / "older").exists()
    assert load_checkpoint(stopped)["config"]["seed"] == 3
    again = Fork("--overwrite", "--seed=3", cwd=folder, env={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert again.wait() == 0 and "step 1/6" not in again.out and "step 3/6" in again.out


def test_a_finished_run_that_lost_its_checkpoint_is_no_fresh_start(refuse, folder, train_in):
    (train_in() / "ckpt.pt").unlink()
    assert "a finished run whose ckpt.pt is gone" in refuse(train.main, *TOY, cwd=folder)
    (folder / "out" / "y").touch()
    assert "out/y is a file" in refuse(train.main, *TOY, "--name=y", cwd=folder)


def test_two_processes_on_one_run(folder):
    """The second refuses; the lock is the kernel's and goes with its process, so that a kill leaves
    none behind."""
    first = Fork(cwd=folder, prepare=before_steps(lambda _: time.sleep(0.2)))
    first.wait_for("step 1/6")
    for option in ("--overwrite", "--seed=2"):  # before its checkpoint is read
        second = Fork(option, cwd=folder)
        assert second.wait() == 2 and not second.out
        assert "out/x is in use by another process" in error_line(second.err)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert Fork(cwd=folder).wait() == 0


def test_a_file_system_without_locks(train_in, whole, capsys, monkeypatch):
    """As network drives and FUSE may be: the run is the same, with one warning."""
    def refused(*_):
        raise OSError("Operation not permitted")
    monkeypatch.setattr("fcntl.flock", refused)
    assert is_the_run(train_in(), whole)
    assert re.fullmatch("warning: nothing keeps a second .*\n", capsys.readouterr().err)


# ---- several ranks -----------------------------------------------------------------------------

@pytest.fixture
def two_folders(stopped, folder):
    """Two machines that share nothing, each with out/x at step 4."""
    for name in ("a", "b"):
        for part in ("data", "out"):
            shutil.copytree(folder / part, folder / name / part)
    return folder / "a", folder / "b"


class OtherData(Data):
    def verify(self):
        self.sha256 = self.sha256 | {"val": "another"}


def other_step():
    path = Path("out/x/ckpt.pt")
    save_checkpoint(path, load_checkpoint(path) | {"step": 3})


@pytest.mark.parametrize("change, says", [
    (lambda: sys.argv.append("--min_lr=1e-4"), "min_lr is 0.0004 on rank 0 .* and 0.0001 on rank"),
    (lambda: setattr(provenance, "code_hash", lambda: "another"), "code_hash is .* another on "),
    (lambda: setattr(train, "Data", OtherData), "data is .* and .*another'} on rank 1"),
    (other_step, "step is 4 on rank 0 .* 3 ")])
def test_ranks_refuse_to_start_on_different_ground(two_folders, change, says):
    """Two machines with other options, another checkout, other data of the same name, a later
    checkpoint: each ends with the line that names both, and the runs stay as they were."""
    fresh = [] if change is other_step else ["--name=y"]
    runs = ranks(two_folders, *fresh, prepare=lambda: os.environ["RANK"] == "1" and change())
    assert [run.wait() for run in runs] == [2, 2], [run.err for run in runs]
    for line in (error_line(run.err) for run in runs):
        assert re.search(says, line) and line.count(platform.node()) == 2
    assert not any((there / "out" / "y").exists() for there in two_folders)
    assert load_checkpoint(two_folders[0] / "out" / "x")["step"] == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_refuses_alone_ends_the_others_in_a_line(two_folders, rank):
    """Here its machine's checkpoint is damaged, the other's is whole and stays so."""
    (two_folders[rank] / "out" / "x" / "ckpt.pt").write_bytes(b"hello")
    two = ranks(two_folders)
    assert [run.wait() for run in two] == [2, 2]
    assert "not a checkpoint of this project" in error_line(two[rank].err)
    assert "another rank ended before the first step" in error_line(two[1 - rank].err)
    assert load_checkpoint(two_folders[1 - rank] / "out" / "x")["step"] == 4


def test_all_ranks_stop_at_the_step_in_which_one_hears_a_signal(folder):
    """Not at the next line of the log, which here would be the last step."""
    two = ranks([folder, folder], "--log_interval=1000", "--max_steps=1000", "--eval_interval=1000",
                prepare=before_steps(lambda _: time.sleep(0.05)))
    two[0].wait_for("step 1/1000")
    os.kill(two[1].pid, signal.SIGTERM)
    assert [run.wait() for run in two] == [143, 143]
    step = load_checkpoint(folder / "out" / "x")["step"]
    assert 1 <= step < 100 and f"stopped at step {step}," in two[0].out


class OddEmbedding(LearnedEmbedding):
    """What forks write first: a weight that is not used, and a table that is not trained."""

    def __init__(self, num_embeddings, embedding_dim, std=None):
        super().__init__(num_embeddings, embedding_dim, std)
        self.unused = torch.nn.Parameter(torch.zeros(3))
        self.frozen = torch.nn.Embedding.from_pretrained(torch.ones_like(self.weight))

    def forward(self, ids):
        return super().forward(ids) + self.frozen(ids)


def test_parameters_that_no_gradient_reaches(folder, train_in, monkeypatch):
    """They train, stop, go on and run on two ranks; what is frozen does not count as trained."""
    monkeypatch.setitem(model.CODES, "odd", OddEmbedding)
    (folder / "odd.py").write_text('code = "odd"\nlift = "none"\nhead = "table"\n')
    out = train_in("odd.py")
    assert records(out)[0]["params"]["input"] == 512 * 36 + 3
    shutil.move(out, folder / "whole")
    train_in("odd.py", after=4)
    train_in("odd.py")
    assert logged(out) == logged(folder / "whole")
    two = ranks([folder] * 2, "odd.py", "--name=two")
    assert [run.wait() for run in two] == [0, 0], two[0].err
    assert series(folder / "out" / "two", "loss") == pytest.approx(series(out, "loss"), abs=1e-5)


# ---- hostile and broken files ------------------------------------------------------------------

class Bomb:
    """A pickle that would create a file when it is loaded by a reader that runs code."""
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_does_not(tmp_path):
    torch.save({"model": Bomb(tmp_path / "ran"), "config": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="not a checkpoint of this project .*Weights only load"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint(stopped, refuse, folder):
    """Another project's, one that lacks something or has what does not fit: one line that
    says what, before anything is written, and nothing trains on without it."""
    path, good = stopped / "ckpt.pt", load_checkpoint(stopped)
    torch.save({"model": {"w": torch.zeros(5000)}, "iter_num": 5}, path)
    assert "not a checkpoint" in refuse(train.main, *TOY, cwd=folder)
    wrong_shape = good["model"] | {"lm_head.weight": torch.zeros(3, 36)}
    for change in ({"model": wrong_shape}, {"optimizer": {}}):
        save_checkpoint(path, good | change)
        assert "does not hold together" in refuse(train.main, *TOY, cwd=folder)
    save_checkpoint(path, good | {"tokenizer": {"tokenizer": {}}})
    with pytest.raises(InputError, match="out/x: damaged, or of other code"):
        load_model(stopped)


@pytest.mark.parametrize("name", ["out/x/ckpt.pt", "data/small/meta.json", "data/small/train.bin",
                                  "data/small/val.bin"])
def test_damaged_files_are_refused_or_harmless(stopped, folder, monkeypatch, name):
    """Cut at a random length, or with one to eight random bytes changed. Of a checkpoint what still
    loads is what was saved; of the data every byte counts."""
    monkeypatch.chdir(folder)
    raw, good, rng = Path(name).read_bytes(), load_checkpoint(stopped), np.random.RandomState(1)
    for i in range(20):
        broken = bytearray(raw if i % 3 else raw[:rng.randint(len(raw))])
        for at in rng.randint(0, len(broken), rng.randint(1, 9)):
            broken[at] ^= rng.randint(1, 256)
        Path(name).write_bytes(broken)
        with suppress(InputError):
            assert same_state(load_checkpoint(stopped), good)
            Data("small", 16).verify()
            assert name == "out/x/ckpt.pt" and i % 3  # it was not refused


def test_a_data_folder_that_is_renamed_under_a_run(folder, whole):
    """The run goes on reading the files that it opened."""
    prepare = before_steps(lambda step: step == 2 and os.rename(folder / "data", folder / "moved"))
    run = Fork(cwd=folder, prepare=prepare)
    assert run.wait() == 0, run.err
    assert is_the_run(folder / "out" / "x", whole)
