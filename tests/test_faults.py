"""Never lose a run, never lie about one: faults injected for real into the real scripts."""
import errno
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
from conftest import command, error_line, records, series
from lib import provenance
from lib.data import Data
from lib.errors import InputError
from lib.results import read_run, unfinished
from lib.run_folder import load_checkpoint, load_model, save_checkpoint
from toy import (TOY, Fork, folder, ranks, same_state, stopping_after, train_in,  # noqa: F401
                 with_steps_of)

# Checkpoints are frequent, so that a kill often meets one being written.
FAST = [*TOY, "--max_steps=40", "--eval_interval=4", "--dropout=0.1"]


def same_series(a, b):
    """Whether both runs logged every step once, with the same losses, gradient norms and validation
    losses, bit for bit."""
    steps, others = ([(r["step"], "loss" in r) for r in records(run)[1:]] for run in (a, b))
    return steps == others and len(steps) == len(set(steps)) and all(
        series(a, key) == series(b, key) for key in ("loss", "grad_norm", "val_loss"))


def is_the_run(out, whole):
    """Whether a run ended as the undisturbed one: log, checkpoints and scores, bit for bit."""
    scores, others = (dict(np.load(run / "eval.npz")) for run in (out, whole))
    return (same_series(out, whole)
            and all(same_state(load_checkpoint(out / name), load_checkpoint(whole / name))
                    for name in ("ckpt.pt", "best.pt"))
            and all(np.array_equal(scores[name], others[name]) for name in others))


def trained(folder, name, *options, **kwargs):
    """out/NAME of a FAST run, made in a fork of this process."""
    run = Fork(*FAST, f"--name={name}", *options, cwd=folder, **kwargs)
    assert run.wait() == 0, run.err
    return folder / "out" / name


@pytest.fixture(scope="module")
def reference(small_data):
    """The run that nobody disturbed."""
    return trained(small_data, "reference")


def test_killed_and_resumed_is_the_run_that_was_not(small_data, reference):
    """SIGKILL at random moments, the checkpoint read after each: in the end the same losses and
    weights, with dropout, which must repeat itself."""
    rng, out = random.Random(1), small_data / "out" / "killed"
    for _ in range(3):
        run = Fork(*FAST, "--name=killed", cwd=small_data)
        run.wait_for("tokens per step")
        time.sleep(rng.uniform(0, 0.4))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert not (out / "ckpt.pt").exists() or 0 <= load_checkpoint(out)["step"] <= 40
    assert same_series(trained(small_data, "killed"), reference)
    one, other = (load_checkpoint(run)["model"] for run in (out, reference))
    assert same_state(one, other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(small_data, reference, number):
    name = f"signal{int(number)}"
    run = Fork(*FAST, f"--name={name}", cwd=small_data, prepare=with_steps_of(0.05))
    run.wait_for("step 1/40")
    os.kill(run.pid, number)
    assert run.wait() == 128 + number and not run.err
    assert "the same command again continues" in run.out
    assert 1 <= load_checkpoint(small_data / "out" / name)["step"] < 40
    assert same_series(trained(small_data, name), reference)


@pytest.mark.parametrize("signals, saved", [(2, 1), (3, 0)])
def test_a_third_ctrl_c_exits_at_once(folder, signals, saved):
    """The second may be torchrun's, which passes on what its workers heard already."""
    run = Fork(cwd=folder, prepare=with_steps_of(1.5))
    run.wait_for("validation loss")
    for _ in range(signals):
        time.sleep(0.1)
        os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 130 and not run.err
    assert load_checkpoint(folder / "out" / "x")["step"] == saved


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(small_data, reference):
    """The limit on file size stands for the disk: the log fits, a checkpoint does not."""
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    run = Fork(*FAST, "--name=full", cwd=small_data, prepare=stopping_after(5))
    assert run.wait() == 143
    run = Fork(*FAST, "--name=full", cwd=small_data, prepare=small_disk)
    assert run.wait() == 2 and "the checkpoint before it is kept" in error_line(run.err)
    out = small_data / "out" / "full"
    assert load_checkpoint(out)["step"] == 5 and not list(out.glob("*.tmp"))
    assert same_series(trained(small_data, "full"), reference)


def test_the_best_checkpoint_stays_beside_the_latest(small_data):
    """With a weight decay that ruins the model late - it grows with the rate and from step 26 on
    turns weights over - best.pt is the step of the lowest validation loss."""
    out = trained(small_data, "best", "--learning_rate=0.02", "--min_lr=0.02", "--warmup_steps=39",
                  "--weight_decay=150")
    vals = series(out, "val_loss")
    best = min(vals, key=vals.get)
    assert 0 < best < 40 == load_checkpoint(out)["step"]
    assert load_checkpoint(out / "best.pt")["step"] == best


def test_a_non_finite_gradient_stops_the_run(small_data):
    run = Fork(*FAST, "--name=nan", "--learning_rate=1e30", "--min_lr=1", "--grad_clip=0",
               "--log_interval=4", cwd=small_data)
    assert run.wait() == 2
    line = error_line(run.err)
    assert "step 2: the gradient norm is not finite; lower learning_rate" in line
    checkpoint = load_checkpoint(small_data / "out" / "nan")
    assert checkpoint["step"] == 0
    assert "diverged" in unfinished(read_run(small_data / "out" / "nan"))
    assert all(torch.isfinite(p).all() for p in checkpoint["model"].values())


def test_torchrun_restarts_a_killed_worker(small_data):
    """--max_restarts: one of two workers dies by SIGKILL; one restart goes on from the last
    checkpoint and ends as if nothing had been."""
    argv = [*FAST, "--max_steps=100", "--eval_interval=20"]
    whole = ranks([small_data] * 2, *argv, "--name=two")
    assert [run.wait() for run in whole] == [0, 0]
    torchrun = command("train.py", *argv, "--name=restarted", ranks=2,
                       options=["--standalone", "--max_restarts=1"])
    process = subprocess.Popen(torchrun, cwd=small_data, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert any("step 30/100" in line for line in process.stdout)  # reads up to there
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"],
                              capture_output=True, text=True)
    _, worker = children.stdout.split()
    os.kill(int(worker), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert same_series(small_data / "out" / "restarted", small_data / "out" / "two")


# ---- resuming ----------------------------------------------------------------------------------

def toy_folder(small_data, folder, prepare, status):
    """A folder with prepared text in which a toy run was made."""
    shutil.copytree(small_data / "data", folder / "data")
    run = Fork(cwd=folder, prepare=prepare)
    assert run.wait() == status, run.err
    return folder


@pytest.fixture(scope="module")
def half(small_data, tmp_path_factory):
    """A folder with out/x, a toy run that was stopped after step 4 of 6."""
    return toy_folder(small_data, tmp_path_factory.mktemp("half"), stopping_after(4), 143)


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """out/x of a toy run that nobody disturbed."""
    return toy_folder(small_data, tmp_path_factory.mktemp("whole"), None, 0) / "out" / "x"


@pytest.fixture
def stopped(half, folder):
    """out/x, stopped after step 4 of 6, in a folder of its own."""
    shutil.copytree(half / "out", folder / "out")
    return folder / "out" / "x"


def changes(out):
    """What a run's log says of how it was resumed: one dict for each time."""
    return [r["went_on_with"] for r in records(out) if "went_on_with" in r]


@pytest.mark.parametrize("option", ["--max_steps=6", "--vocab_size=512"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(stopped, whole, train_in, option):
    """And says nothing of changes: the vocabulary's size is what the data has anyway."""
    (stopped / "log.jsonl").open("a").write('{"step": 5, "lo')  # a kill can leave half a line
    train_in(option)
    assert same_series(stopped, whole) and changes(stopped) == []
    if option == "--max_steps=6":
        assert is_the_run(stopped, whole)


@pytest.mark.parametrize("before, options", [
    ({"dtype": "bfloat16"}, []), ({"device": "cuda", "compile": "True"}, []), ({}, [
        "--batch_size=2", "--gradient_accumulation_steps=2", "--log_interval=2"])])
def test_keys_that_change_bits_or_nothing_may_change(stopped, whole, train_in, capsys, before,
                                                     options):
    """dtype, device, compile, how a step is cut into micro-batches, what is logged: said and
    logged, with the same batches."""
    checkpoint = load_checkpoint(stopped)
    save_checkpoint(stopped / "ckpt.pt", checkpoint | {"config": checkpoint["config"] | before})
    train_in(*options)
    found, = changes(stopped)
    here = {"dtype": "float32", "device": "cpu", "compile": "False"}
    expected = {key: [was, here[key]] for key, was in before.items()}
    if options:
        expected = {"batch_size": [4, 2], "gradient_accumulation_steps": [1, 2],
                    "log_interval": [1, 2]}
    assert found == expected and read_run(stopped)["went_on"] == sorted(expected)
    said = capsys.readouterr().out
    assert all(f"{key}={now} (before: {was})" in said for key, (was, now) in expected.items())
    assert series(stopped, "batch_crc").items() <= series(whole, "batch_crc").items()
    assert series(stopped, "loss")[6] == pytest.approx(series(whole, "loss")[6], abs=0.02)
    assert unfinished(read_run(stopped)) == ""


@pytest.mark.parametrize("option", ["--learning_rate=1e-4", "--batch_size=2", "--max_steps=8",
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
    log.write_text(re.sub('"hardware": "[^"]*"', '"hardware": "another"', log.read_text())
                   .replace('"world_size": 1', '"world_size": 8')
                   .replace(f'"code_hash": "{provenance.code_hash()}"', '"code_hash": "before"'))
    train_in(after=1)
    train_in()
    went, = changes(stopped)
    assert went.keys() == {"hardware", "world_size", "code_hash"}
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


def test_a_lost_checkpoint(stopped, whole, refuse, folder, train_in):
    """Without ckpt.pt the run goes on from best.pt; without both it is no fresh start."""
    (stopped / "ckpt.pt").unlink()
    train_in()
    assert is_the_run(stopped, whole)
    for name in ("ckpt.pt", "best.pt"):
        (stopped / name).unlink()
    line = refuse(train.main, *TOY, cwd=folder)
    assert "out/x is a finished run whose checkpoints are gone" in line and "--overwrite" in line


def test_two_processes_on_one_run(folder):
    """The second refuses; the lock is the kernel's and goes with its process, so that a kill leaves
    none behind."""
    first = Fork(cwd=folder, prepare=with_steps_of(0.2))
    first.wait_for("step 1/6")
    for option in ("--overwrite", "--seed=2"):  # before its checkpoint is read
        second = Fork(option, cwd=folder)
        assert second.wait() == 2 and not second.out
        assert "out/x is in use by another process" in error_line(second.err)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert Fork(cwd=folder).wait() == 0


def test_a_file_system_without_locks_links_and_folder_fsync(folder, whole, call, capsys,
                                                            monkeypatch):
    """As network drives and FUSE may be: the run is the same, with one warning."""
    def refused(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    def fsync(file, real=os.fsync):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            refused()
        real(file)
    monkeypatch.setattr("fcntl.flock", refused)
    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "fsync", fsync)
    assert call(train.main, *TOY, cwd=folder) == 0
    assert re.fullmatch("warning: out/.x.lock cannot be locked .*\n", capsys.readouterr().err)
    assert is_the_run(folder / "out" / "x", whole)


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
    """Of a whole run, then the same command. Losses, weights, best.pt and scores are those of the
    undisturbed run; nothing is left over."""
    number, status, out = 0, -signal.SIGKILL, folder / "out" / "x"
    while status == -signal.SIGKILL:
        number += 1
        status = Fork(cwd=folder, prepare=killing_at(number)).wait()
        assert status in (0, -signal.SIGKILL)
        run = Fork(cwd=folder)
        assert run.wait() == 0, (number, run.err)
        assert is_the_run(out, whole), number
        assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
        shutil.rmtree(out)
    print(f"\nSIGKILL before each of {number - 1} file operations of a run: 0 mismatches")
    assert number > 15


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
    monkeypatch.setattr("toy.TOY", [*(option for option in TOY if "kron" not in option), "odd.py"])
    out = train_in()
    assert records(out)[0]["params"]["input"] == 512 * 36 + 3
    shutil.move(out, folder / "whole")
    train_in(after=4)
    train_in()
    assert same_series(out, folder / "whole")
    two = ranks([folder] * 2, "--name=two")
    assert [run.wait() for run in two] == [0, 0], two[0].err
    assert series(folder / "out" / "two", "loss") == pytest.approx(series(out, "loss"), abs=1e-5)


# ---- what is printed ---------------------------------------------------------------------------

def test_the_first_line_counts_no_time_left(folder):
    """What compiles and is validated first does not repeat: the time left is of later steps."""
    run = Fork(cwd=folder)
    assert run.wait() == 0
    lines = [line for line in run.out.splitlines() if " | loss " in line]
    assert [" left" in line for line in lines] == [False] + [True] * 5
    assert re.search(r"step 2/6 \| loss \d.* \d+ ms \| [\d,]+ tokens/s \| 0:00:\d\d left$",
                     lines[1])


def test_an_output_that_lacks_letters(folder):
    """cp1252, as on Windows: a run whose name it cannot say."""
    run = Fork("--name=дом", "--max_steps=1", cwd=folder, encoding="cp1252")
    assert run.wait() == 0 and not run.err and "out/???: kron" in run.out


# ---- hostile and broken files ------------------------------------------------------------------

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
    """Text, another project's, one that lacks something or has what does not fit: one line that
    says what, before anything is written, and nothing trains on without it."""
    path, good = stopped / "ckpt.pt", load_checkpoint(stopped)
    path.write_bytes(b"hello")
    assert "not a checkpoint" in refuse(train.main, *TOY, cwd=folder)
    torch.save({"model": {"w": torch.zeros(5000)}, "iter_num": 5}, path)
    assert "not a checkpoint" in refuse(train.main, *TOY, cwd=folder)
    wrong_shape = good["model"] | {"lm_head.weight": torch.zeros(3, 36)}
    for change, says in (({"config": good["config"] | {"n_layerz": 3}}, "n_layerz=3"),
                         ({"model": wrong_shape}, "does not hold together.*lm_head.weight"),
                         ({"optimizer": {}}, "does not hold together")):
        save_checkpoint(path, good | change)
        assert re.search(says, refuse(train.main, *TOY, cwd=folder))
    for change in ({"tokenizer": {"tokenizer": {}}}, {"model": {}}):
        save_checkpoint(path, good | change)
        with pytest.raises(InputError, match="out/x: the checkpoint does not hold together"):
            load_model(stopped)


def damaged(raw, count, seed):
    """`count` variants of some bytes: cut at a random length, or with one to eight random bytes
    changed."""
    rng = np.random.RandomState(seed)
    for i in range(count):
        broken = bytearray(raw)
        for at in rng.randint(0, len(raw), rng.randint(1, 9)):
            broken[at] ^= rng.randint(1, 256)
        yield bytes(broken) if i % 3 else raw[:rng.randint(len(raw))]


def test_damaged_files_are_refused_or_harmless(stopped, folder, monkeypatch):
    """Of a checkpoint what still loads is what was saved; of the data every byte counts."""
    monkeypatch.chdir(folder)
    path, whole, refused = stopped / "ckpt.pt", load_checkpoint(stopped), 0
    for raw in damaged(path.read_bytes(), 40, 1):
        path.write_bytes(raw)
        try:
            assert same_state(load_checkpoint(stopped), whole)
        except InputError:
            refused += 1
    assert refused >= 25
    for name in ("meta.json", "train.bin", "val.bin"):
        path = folder / "data" / "small" / name
        good = path.read_bytes()
        for raw in damaged(good, 12, 2):
            path.write_bytes(raw)
            with pytest.raises(InputError):
                Data("small", 16).verify()
        path.write_bytes(good)


def test_a_data_folder_that_is_renamed_under_a_run(folder, whole):
    """The run goes on reading the files that it opened."""
    real = train.train_step

    def prepare():
        def train_step(step, *rest):
            if step == 2:
                os.rename(folder / "data", folder / "moved")
            return real(step, *rest)
        train.train_step = train_step
    run = Fork(cwd=folder, prepare=prepare)
    assert run.wait() == 0, run.err
    assert is_the_run(folder / "out" / "x", whole)
