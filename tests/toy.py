"""Toy runs in this process or in a fork of it: real text and the real train.py, without the seconds
that a new process takes to load torch."""
import itertools
import os
import shutil
import socket
import sys
import time

import pytest
import torch
import torch._dynamo  # noqa: F401 - the first optimizer would import it, in every fork anew

import train
from lib.distributed import stop_signals
from lib.errors import run

TOY = ["configs/tiny.py", "configs/kron.py", "--dataset=small", "--name=x", "--n_layer=1",
       "--n_head=2", "--n_embd=36", "--block_size=16", "--batch_size=4", "--max_steps=6",
       "--warmup_steps=2", "--eval_interval=3", "--eval_tokens=64", "--log_interval=1",
       "--device=cpu", "--dtype=float32"]


@pytest.fixture
def folder(small_data, tmp_path, monkeypatch):
    """A folder with prepared text; training there draws no pictures and leaves Ctrl-C alone."""
    shutil.copytree(small_data / "data", tmp_path / "data")
    monkeypatch.setattr(train, "stop_signals", list)
    monkeypatch.setattr(train, "loss_picture", lambda *_: None)
    return tmp_path


def same_state(a, b):
    """Whether two checkpoints hold the same, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def train_in(folder, call, monkeypatch):
    """train_in(*options, after=None): train a toy run there, stopped as by a signal in its step
    number `after`; returns out/x."""
    def train_in(*options, after=None):
        steps = itertools.count(1)
        with monkeypatch.context() as patch:
            if after:
                patch.setattr(train, "any_rank", lambda received: next(steps) == after)
            status = call(train.main, *TOY, *options, cwd=folder)
        assert status == (143 if after else 0)
        return folder / "out" / "x"
    return train_in


class Fork:
    """A fork of this process that runs train.py with `options` in `cwd`; `prepare()` is called in
    it first. What it prints goes to files in that folder."""

    def __init__(self, *options, cwd, env=(), prepare=None):
        self.files = [cwd / f"{name}-{time.monotonic_ns()}" for name in ("stdout", "stderr")]
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                sys.stdout, sys.stderr = (open(path, "w", 1) for path in self.files)
                os.chdir(cwd)
                os.environ.update(env)
                train.stop_signals, train.loss_picture = stop_signals, lambda *_: None
                sys.argv = ["train.py", *TOY, *options]
                if prepare:
                    prepare()
                run(train.main)
            except SystemExit as end:
                status = end.code or 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def wait(self):
        """Its exit status, negative if a signal ended it; its files are read and deleted."""
        _, status = os.waitpid(self.pid, 0)
        self.out, self.err = (path.read_text() for path in self.files)
        for path in self.files:
            path.unlink()
        return os.waitstatus_to_exitcode(status)

    def wait_for(self, text, seconds=60):
        """Wait until it has printed `text`."""
        end = time.monotonic() + seconds
        while not self.files[0].exists() or text not in self.files[0].read_text():
            assert time.monotonic() < end, self.files[1].read_text(errors="replace")
            time.sleep(0.01)


def before_steps(action):
    """For a Fork's `prepare`: action(step) is called before each step."""
    real = train.train_step

    def prepare():
        def train_step(step, *rest):
            action(step)
            return real(step, *rest)
        train.train_step = train_step
    return prepare


def ranks(cwds, *options, **kwargs):
    """One rank in each of `cwds`, as on as many machines: their Forks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(len(cwds)), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0",
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Fork(*options, cwd=cwd, env=world | {"RANK": str(rank)}, **kwargs)
            for rank, cwd in enumerate(cwds)]
