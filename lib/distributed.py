"""Ranks, their device, and how they stop together."""
import functools
import math
import os
import platform
import re
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lib.config import Config
from lib.errors import InputError
from lib.hardware import GPUS


@dataclass
class Place:
    """Where this process stands: its rank, how many there are, its device."""
    rank: int
    world: int
    device: torch.device
    control: object = None  # a process group on CPUs, of several ranks

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

    def agree(self, heard):
        """Whether any rank has heard a signal. Every rank asks at every step, so that all stop at
        the same one; on CPUs, so that nobody waits for a GPU."""
        if self.world == 1:
            return heard
        flag = torch.tensor(float(heard))
        dist.all_reduce(flag, group=self.control)
        return bool(flag)

    def refuse_differences(self, facts):
        """InputError, naming the machines, unless all ranks have the same `facts`, a dict, and none
        has ended for a reason of its own."""
        if self.world == 1:
            return
        all_facts = [None] * self.world
        here = f"rank {self.rank} ({platform.node()})"
        try:
            dist.all_gather_object(all_facts, [here, facts], group=self.control)
        except RuntimeError as error:
            raise InputError(f"{here}: another rank ended before the first step, and says why "
                             f"({str(error).splitlines()[0]})") from None
        (first_rank, first), *others = all_facts
        for rank, other in others:
            for key, value in first.items():
                if other[key] != value:
                    raise InputError(f"the ranks stand on different ground: {key} is {value} on "
                                     f"{first_rank} and {other[key]} on {rank}; do they share "
                                     "data/ and out/?")

    def peak_flops(self):
        """Peak of the ranks' devices together in operations per second; None if it is unknown."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        known = (gpu.flops * self.world for part, gpu in GPUS.items() if part in name)
        return next(known, None)


def world_size():
    """How many ranks torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_here():
    """Whether this is the first rank of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def this_place(device):
    """The `Place` that torchrun's environment gives, on "cuda", "mps" or "cpu"."""
    rank, local_rank = (int(os.environ.get(key, 0)) for key in ("RANK", "LOCAL_RANK"))
    device = torch.device("cuda", local_rank) if device == "cuda" else torch.device(device)
    return Place(rank, world_size(), device)


def is_restart():
    """Whether torchrun started this process after an earlier attempt had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def join_ranks(place):
    """Make the process group of several ranks."""
    if place.world == 1:
        return
    # The first optimizer imports this. Imported now, its default arguments do not keep the group
    # alive to the end of the process.
    import torch.distributed.nn  # noqa: F401
    backend = "gloo"
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
        backend = "nccl"
    # torchrun's store outlives a restart: without a prefix a rank may read the address that a
    # killed one left there, and wait for it. Several machines count their restarts apart: see
    # runs/README.md.
    one_machine = place.world == int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    store, _, _ = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else "0"
    store = dist.PrefixStore(attempt, store)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world)
    place.control = dist.new_group(backend="gloo")


def leave_ranks():
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def autocast(device, dtype):
    """The context in which a model runs: half-precision products, or plain float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))


def compiler_error():
    """The class of what torch.compile raises. Asked for where something failed, since its module
    takes longer to import than all the rest."""
    from torch._dynamo.exc import TorchDynamoException
    return TorchDynamoException


def failures_in_one_line(function):
    """A decorator for what runs the model and has a Config and a Place among its arguments: memory
    that is not enough and a compiler that does not work become an InputError that says how to go
    on."""
    @functools.wraps(function)
    def guarded(*args):
        try:
            return function(*args)
        except RuntimeError as error:
            config, = (a for a in args if isinstance(a, Config))
            place, = (a for a in args if isinstance(a, Place))
            # a CPU's allocator and MPS have no error of their own
            full = re.search("out of memory|can't allocate memory|ALLOC_FAILED", str(error))
            if isinstance(error, torch.OutOfMemoryError) or full:
                raise InputError(less_memory(config, place)) from None
            if isinstance(error, compiler_error()):
                reason = " ".join(str(error).split())[:300]
                raise InputError(f"torch.compile does not work here ({reason}); --compile=False "
                                 "does without it") from error
            raise
    return guarded


def less_memory(config, place):
    """What to say when memory is out: the options that take less of it for the same step."""
    sequences = config.batch_size * config.gradient_accumulation_steps
    mine = sequences // place.world
    micro = min(config.batch_size, mine)
    fewer = [n for n in range(1, micro // 2 + 1) if mine % n == 0]
    how = "a smaller model or --block_size is needed"
    if fewer:
        how = (f"--batch_size={fewer[-1]} --gradient_accumulation_steps={sequences // fewer[-1]} "
               "takes less, with the same tokens per step")
    return f"out of memory with {micro} sequences at once; {how}"


def slow_step(seconds):
    """What to say of steps so long that a graceful stop, which finishes one and saves, may take
    longer than torchrun waits before it kills; "" of others."""
    key = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    allowed = int(os.environ.get(key, 30))
    if "TORCHELASTIC_RUN_ID" not in os.environ or seconds < allowed / 2:
        return ""
    return (f" | torchrun gives a graceful stop {allowed} s, this step alone took {seconds:.0f} s: "
            f"start with {key}={3 * math.ceil(seconds)}")


def refuse_non_finite(norms, scaler, logged, config, advice, folder):
    """InputError if one of the gradient norms of the steps after step `logged` is not finite, and a
    record in the run's log, as of a loss that is not; with float16, where `scaler` skips such a
    step and halves its scale, only if that does not help."""
    if scaler.is_enabled() and scaler.get_scale() >= 1:
        return
    finite = torch.stack(norms).isfinite().tolist() if norms else []
    if False in finite:
        step = logged + finite.index(False)
        sequences = config.batch_size * config.gradient_accumulation_steps
        folder.log({"step": step + 1, "val_loss": None})  # compare.py says that it diverged
        raise InputError(f"step {step + 1}: the gradient norm is not finite (sequences "
                         f"{step * sequences} to {(step + 1) * sequences - 1} of the training "
                         f"order); {advice}")


class StopRequest:
    """SIGTERM and Ctrl-C ask for the step to be finished and saved. A second Ctrl-C exits at once,
    if it comes a second or more after the first: a service manager may send one signal to torchrun
    and to its workers, who hear it twice.

    `received` is the list of signals so far.
    """

    def __init__(self):
        self.received, self.first = [], 0.0
        signal.signal(signal.SIGTERM, self.receive)
        signal.signal(signal.SIGINT, self.receive)

    def receive(self, number, _):
        now = time.monotonic()
        if not self.received:
            self.first = now
        elif number == signal.SIGINT and now - self.first >= 1:
            os._exit(128 + number)
        self.received.append(number)

    def exit_status(self):
        """128 + the signal; another rank may have heard it first."""
        return 128 + (self.received[0] if self.received else signal.SIGTERM)
