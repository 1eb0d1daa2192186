"""Never lose a run, never lie about one: faults injected for real into the real scripts.

The quick forms run with the suite. `python -m pytest -m soak -s tests/test_faults.py` runs the long ones
and prints what they counted.
"""
import fcntl
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import compare
import model
import train
from lib.common import InputError
from conftest import SHORT, command, error_line, records, script, series
from model import load_checkpoint, load_model

# Checkpoints are frequent, so that a kill often meets one being written.
FAST = ["configs/tiny.py", "configs/kron.py", *SHORT, "--dataset=small", "--max_steps=40",
        "--eval_interval=4", "--eval_tokens=1024", "--dropout=0.1"]


def start(cwd, *args, ranks=0, options=(), env=None, **kwargs):
    """A script in the background, its output in a pipe."""
    argv = command("train.py", *args, ranks=ranks)
    if options:  # of torchrun
        at = argv.index("--")
        argv[at:at] = options
    return subprocess.Popen(argv, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **kwargs)


def wait_for(process, text):
    """Read a process's output up to the first line that holds `text`."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended without '{text}': {process.stderr.read()[-3000:]}")


def same_series(a, b):
    """Both runs logged every step once, with the same losses, gradient norms and validation losses, bit for bit."""
    for key in ("loss", "grad_norm", "val_loss"):
        assert series(a, key) == series(b, key)
    steps = [(r["step"], "loss" in r) for r in records(a)[1:]]
    assert len(steps) == len(set(steps)) and steps == [(r["step"], "loss" in r) for r in records(b)[1:]]


@pytest.fixture(scope="module")
def reference(small_data):
    """The run that nobody disturbed."""
    script("train.py", *FAST, "--run=reference", cwd=small_data)
    return small_data / "out" / "reference"


def killed(folder, name, kills, seed, *options):
    """Train with `kills` SIGKILLs at random moments, looking at the checkpoint after each; then to the end.
    Returns at which steps."""
    rng, at = random.Random(seed), []
    while len(at) < kills:
        process = start(folder, *FAST, f"--run={name}", *options)
        wait_for(process, "tokens per step")
        time.sleep(rng.uniform(0, 0.6))
        alive = process.poll() is None
        process.kill()
        process.communicate()
        ckpt = folder / "out" / name / "ckpt.pt"
        at.append(load_checkpoint(ckpt)["step"] if ckpt.exists() else 0)  # readable, whenever the kill came
        if not alive or at[-1] == 40:  # it got through: start over for the kills that are left
            same_series(folder / "out" / name, folder / "out" / "reference" if not options else folder / "out" / f"{name}-whole")
            shutil.rmtree(folder / "out" / name)
    script("train.py", *FAST, f"--run={name}", *options, cwd=folder)
    return at


def test_killed_and_resumed_is_the_run_that_was_not(small_data, reference):
    """The same losses, bit for bit, and in the end the same weights; with dropout, which must repeat itself."""
    killed(small_data, "killed", 3, seed=1)
    same_series(small_data / "out" / "killed", reference)
    one, other = (load_checkpoint(run)["model"] for run in (reference, small_data / "out" / "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_25_kills(small_data, reference, dtype):
    options = [f"--dtype={dtype}"]
    script("train.py", *FAST, f"--run=soak-{dtype}-whole", *options, cwd=small_data)
    at = killed(small_data, f"soak-{dtype}", 25, 2, *options)
    same_series(small_data / "out" / f"soak-{dtype}", small_data / "out" / f"soak-{dtype}-whole")
    print(f"\n{dtype}, dropout 0.1: 25 SIGKILLs, last checkpoints at steps {at}; 0 mismatches, 0 unreadable checkpoints")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(small_data, reference, number):
    name = f"signal{int(number)}"
    process = start(small_data, *FAST, f"--run={name}")
    wait_for(process, "step 1/40")
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number and "the same command again continues" in out and not err
    assert 1 <= load_checkpoint(small_data / "out" / name)["step"] < 40
    script("train.py", *FAST, f"--run={name}", cwd=small_data)
    same_series(small_data / "out" / name, reference)


def test_a_second_ctrl_c_exits_at_once(small_data):
    process = start(small_data, *FAST, "--run=impatient", "--batch_size=512", "--eval_interval=40",
                    "--eval_tokens=64")  # steps of a second
    wait_for(process, "step 1/40")
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 130 and "stopped at step" not in out


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(small_data, reference):
    """The limit on file size stands for the disk: the log fits, a checkpoint does not."""
    def run(name, limit):
        def small_disk():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        process = start(small_data, *FAST, f"--run={name}", preexec_fn=small_disk)
        _, err = process.communicate()
        assert process.returncode == 2 and "ckpt" in error_line(err)

    out = small_data / "out" / "full"
    shutil.copytree(reference, out)
    process = start(small_data, *FAST, "--run=full", "--overwrite")
    wait_for(process, "step 5/40")
    process.kill()
    process.communicate()
    before = load_checkpoint(out)["step"]
    run("full", 500_000)
    assert load_checkpoint(out)["step"] == before and not list(out.glob("*.tmp"))
    script("train.py", *FAST, "--run=full", cwd=small_data)
    same_series(out, reference)


def test_the_best_checkpoint_stays_beside_the_latest(small_data):
    """With a learning rate that ruins the model late, best.pt is the step of the lowest validation loss."""
    script("train.py", *FAST, "--run=best", "--learning_rate=1", "--min_lr=1", "--warmup_steps=39", cwd=small_data)
    vals = series(small_data / "out" / "best", "val_loss")
    best = min(vals, key=vals.get)
    assert 0 < best < 40
    assert (load_checkpoint(small_data / "out" / "best" / "best.pt")["step"] == best
            and load_checkpoint(small_data / "out" / "best")["step"] == 40)


def test_another_config_under_the_same_name_is_refused(small_data, reference, refuse, call, capsys):
    argv = [*FAST, "--run=reference"]
    assert "made with weight_decay=0.1, now weight_decay=0.2" in refuse(train.main, *argv, "--weight_decay=0.2", cwd=small_data)
    assert "has no checkpoint" in refuse(train.main, *FAST, "--run=none", "--resume", cwd=small_data)
    assert call(train.main, *argv, "--resume", cwd=small_data) == 0 and "is finished" in capsys.readouterr().out


def test_overwrite_starts_over(small_data, reference):
    shutil.copytree(reference, small_data / "out" / "again")
    said = script("train.py", *FAST, "--run=again", "--overwrite", "--max_steps=4", cwd=small_data).stdout
    assert re.search(r"step 1/4 \| loss \d.* \d+ ms \| [\d,]+ tokens/s \| 0:00:\d\d left \| "
                     r"first step [\d.]+ s after the start", said)
    assert max(series(small_data / "out" / "again", "val_loss")) == 4


def test_two_processes_on_one_run(small_data, reference, refuse):
    """The second refuses; the lock is the kernel's and goes with its process, so a kill leaves none behind."""
    with open(reference / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "being trained by another process" in refuse(train.main, *FAST, "--run=reference", cwd=small_data)


def test_a_non_finite_gradient_stops_the_run(small_data):
    done = script("train.py", *FAST, "--run=nan", "--learning_rate=1e30", "--min_lr=1", "--grad_clip=0", "--log_interval=4",
                  cwd=small_data, status=2)
    line = error_line(done.stderr)
    assert "step 2: the gradient norm is not finite (sequences 8 to 15" in line and "lower learning_rate" in line
    checkpoint = load_checkpoint(small_data / "out" / "nan")
    assert checkpoint["step"] == 0 and all(torch.isfinite(p).all() for p in checkpoint["model"].values())


def test_torchrun_restarts_a_killed_worker(small_data):
    """--max_restarts: one of two workers dies by SIGKILL; one restart goes on from the last checkpoint
    and ends as if nothing had been."""
    argv = [*FAST, "--max_steps=12"]
    script("train.py", *argv, "--run=two", cwd=small_data, ranks=2)
    process = start(small_data, *argv, "--run=restarted", ranks=2, options=["--max_restarts=1"])
    wait_for(process, "step 6/12")
    workers = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True, text=True).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    same_series(small_data / "out" / "restarted", small_data / "out" / "two")


def two_agents(folder, name, ranks):
    """Two torchrun agents on loopback, `ranks` workers each, as on two machines."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    argv = command("train.py", *FAST, f"--run={name}", "--max_steps=8", "--dropout=0", "--batch_size=2",
                   "--gradient_accumulation_steps=4", ranks=ranks)
    at = argv.index("--standalone")
    argv[at:at + 1] = ["--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    agents = [subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
              for _ in range(2)]
    for agent in agents:
        _, err = agent.communicate(timeout=200)
        assert agent.returncode == 0, err[-3000:]
    return folder / "out" / name


def close_series(a, b):
    """Equal batches, and losses equal to 1e-5, at every step."""
    assert series(a, "batch_crc") == series(b, "batch_crc") and series(a, "loss")
    for key in ("loss", "val_loss"):
        assert series(a, key) == pytest.approx(series(b, key), abs=1e-5)


def test_two_machines_train_as_one_process(small_data):
    script("train.py", *FAST, "--run=one", "--max_steps=8", "--dropout=0", "--batch_size=2", "--gradient_accumulation_steps=4",
           cwd=small_data)
    close_series(two_agents(small_data, "agents", 1), small_data / "out" / "one")


@pytest.mark.soak
def test_two_machines_of_two_ranks_train_as_four_ranks(small_data):
    script("train.py", *FAST, "--run=four", "--max_steps=8", "--dropout=0", "--batch_size=2", "--gradient_accumulation_steps=4",
           cwd=small_data, ranks=4)
    a, b = two_agents(small_data, "agents2", 2), small_data / "out" / "four"
    close_series(a, b)
    difference = max(abs(x - y) for x, y in zip(series(a, "loss").values(), series(b, "loss").values()))
    print(f"\ntwo agents of two ranks against four ranks: largest difference in loss {difference:.1e} nats over 8 steps")


# ---- hostile and broken files ------------------------------------------------------------------------------

def damaged(raw, count, seed):
    """`count` variants of some bytes: cut at a random length, or with one to eight random bytes changed."""
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
    """How many variants of the file at `path` were refused in one line, and how many loaded; anything else fails the test."""
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


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))], ids=["zip", "pickle"])
def test_a_checkpoint_that_would_run_code_does_not(tmp_path, save):
    save({"model": Bomb(tmp_path / "ran"), "config": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="unsafe"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def fuzz(small_data, reference, tmp_path, monkeypatch, count):
    """Damage every kind of file `count` times; what still loads must be what was saved."""
    whole = load_checkpoint(reference)
    said = {}

    def load_damaged_checkpoint():
        again = load_model(str(tmp_path))[2]
        assert model.fingerprint(again) == model.fingerprint(whole)
    said["ckpt.pt"] = outcomes(damaged((reference / "ckpt.pt").read_bytes(), count, 1),
                               tmp_path / "ckpt.pt", load_damaged_checkpoint)

    shutil.copytree(small_data / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for name in ("meta.json", "train.bin", "val.bin"):
        path = tmp_path / "data" / "small" / name
        good = path.read_bytes()
        said[name] = outcomes(damaged(good, count, 2), path, lambda: train.Data("small", 64))
        path.write_bytes(good)

    def load_config():
        train.check(train.compose([str(tmp_path / "c.py")])[0], 1)
    said["config"] = outcomes(damaged((train.HERE / "configs" / "tiny.py").read_bytes(), count, 3),
                              tmp_path / "c.py", load_config)
    said["log.jsonl"] = outcomes(damaged((reference / "log.jsonl").read_bytes(), count, 4),
                                 tmp_path / "log.jsonl", lambda: compare.read_run(tmp_path))
    return said


def test_damaged_files_are_refused_or_harmless(small_data, reference, tmp_path, monkeypatch):
    said = fuzz(small_data, reference, tmp_path, monkeypatch, 60)
    for name in ("meta.json", "train.bin", "val.bin"):
        assert said[name] == (60, 0), name  # a hash stands behind every byte of these
    assert said["ckpt.pt"][0] >= 20 and said["config"][0] >= 10


@pytest.mark.soak
def test_damaged_files_400_times(small_data, reference, tmp_path, monkeypatch):
    said = fuzz(small_data, reference, tmp_path, monkeypatch, 400)
    print("\ndamaged files, (refused in one line, loaded and equal to the whole one or a config with other values): "
          + ", ".join(f"{k} {v}" for k, v in said.items()))


@pytest.mark.parametrize("text", ["import os", "n_layer = __import__('os').getpid()", "n_layer = 2\nx.y = 3", "n_layer = (",
                                  "n_layer = 2 ** 2", "\0", "n_layer = " + "(" * 5000])
def test_config_files_are_read_never_run(tmp_path, refuse, text):
    (tmp_path / "c.py").write_text(text)
    assert "c.py" in refuse(train.main, "c.py", cwd=tmp_path)


@pytest.mark.soak
def test_host_memory_does_not_grow_with_steps(small_data):
    """Resident memory after 4,000 steps is that after 500."""
    process = start(small_data, *FAST, "--run=memory", "--max_steps=4000", "--eval_interval=500",
                    "--log_interval=100", "--batch_size=2")
    resident = {}
    for line in process.stdout:
        if "validation loss" in line and (step := int(line.split()[1].split("/")[0])) % 500 == 0 and step:
            status = Path(f"/proc/{process.pid}/status")
            if status.exists() and "VmRSS" in (text := status.read_text()):
                resident[step] = int(text.split("VmRSS:")[1].split()[0]) / 1024
    process.communicate()
    print("\nresident memory (MB) at steps: " + ", ".join(f"{k}: {v:.0f}" for k, v in resident.items()))
    assert max(resident.values()) < 1.05 * resident[500]
