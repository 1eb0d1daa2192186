"""What a run stands on: ranks, their device, and what results are quoted with."""
import ast
import hashlib
import os
import platform
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone

import torch
import torch.distributed as dist

from lib.config import ROOT

# dense bfloat16 operations per second, vendor's figures
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


@dataclass
class Place:
    """Where this process stands: its rank, how many there are, its device."""
    rank: int
    world: int
    device: torch.device

    def say(self, text):
        """Print a line, once for all ranks."""
        if self.rank == 0:
            print(text, flush=True)

    def sum(self, tensor):
        """Sum of a small CPU tensor over all ranks."""
        if dist.is_initialized():
            tensor = tensor.to(self.device)
            dist.all_reduce(tensor)
        return tensor.cpu()

    def peak_flops(self):
        """Peak of the ranks' devices together in operations per second; None if it is unknown."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((self.world * peak for gpu, peak in PEAK_FLOPS.items() if gpu in name), None)


def world_size():
    """How many ranks torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def this_place(device):
    """The `Place` that torchrun's environment gives, on "cuda" or "cpu"."""
    rank, local_rank = (int(os.environ.get(key, 0)) for key in ("RANK", "LOCAL_RANK"))
    device = torch.device("cuda", local_rank) if device == "cuda" else torch.device(device)
    return Place(rank, world_size(), device)


def is_restart():
    """Whether torchrun started this process after an earlier attempt had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def join_ranks(place):
    """Make the process group of several ranks.

    To be called after the first optimizer is made: that imports torch.distributed.nn, whose
    default arguments would keep the group alive to the end of the process.
    """
    if place.world == 1:
        return
    backend = "gloo"
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
        backend = "nccl"
    # torchrun's store outlives a restart: without a prefix a rank may read the address that a
    # killed one left there, and wait for it. Several machines count their restarts apart: see
    # runs/README.md.
    store, _, _ = next(dist.rendezvous("env://"))
    one_machine = place.world == int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else "0"
    store = dist.PrefixStore(attempt, store)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world)


def leave_ranks():
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def autocast(device, dtype):
    """The context in which a model runs: bfloat16 products, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


class StopRequest:
    """SIGTERM and Ctrl-C ask for the step to be finished and saved; a second one exits at once.

    `received` is the list of signals so far.
    """

    def __init__(self):
        self.received = []
        signal.signal(signal.SIGTERM, self.receive)
        signal.signal(signal.SIGINT, self.receive)

    def receive(self, number, _):
        self.received.append(number)
        if len(self.received) > 1:
            os._exit(128 + number)

    def exit_status(self):
        """128 + the signal; another rank may have heard it first."""
        return 128 + (self.received[0] if self.received else signal.SIGTERM)


def cpu_name():
    """The processor's model, as /proc/cpuinfo gives it where there is one."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def git(*args):
    """What `git ARGS` prints in the project's folder. OSError or CalledProcessError if it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *args], check=True, capture_output=True,
                          text=True)
    return done.stdout.strip()


DECISIVE = ("codes.py", "rivals.py", "model.py", "train.py", "lib/config.py", "lib/data.py")


def code_hash():
    """A hash of the code that decides a run's numbers, 12 hex digits: of its statements, so that
    comments, docstrings, layout and what only `python codes.py` runs do not count."""
    digest = hashlib.sha256()
    for name in DECISIVE:
        tree = ast.parse((ROOT / name).read_bytes())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [statement for statement in body if not is_aside(statement)]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:12]


def is_aside(statement):
    """Whether a statement is a docstring or the `if __name__ == "__main__"` of a script."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)


def describe_machine(device, world):
    """Hardware, versions, commit, code, command, date: what results are quoted with."""
    if device.type == "cuda":
        hardware = f"{world} x {torch.cuda.get_device_name(device)}"
    else:
        hardware = f"{cpu_name()}, {world} x {torch.get_num_threads()} threads"
    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        if git("status", "--porcelain", "-uno"):
            commit += "+changes"
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "hardware": hardware, "python": platform.python_version(), "torch": torch.__version__,
        "commit": commit, "code_hash": code_hash(),
        "command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
