"""Ranks: who this process is among them, what they agree on, how they stop together."""
import os
import platform
import signal

import torch
import torch.distributed as dist

from lib.errors import InputError


def rank():
    """This process's number, as torchrun gives it; 0 without it."""
    return int(os.environ.get("RANK", 0))


def world_size():
    """How many ranks torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def start_ranks(name):
    """Make the process group, if there are several ranks; returns this rank's device."""
    device = torch.device(f"cuda:{dist.get_node_local_rank(0)}" if name == "cuda" else name)
    if world_size() == 1:
        return device
    # The first optimizer imports this. Imported now, its default arguments do not keep the group
    # alive to the end of the process.
    from torch.distributed import nn  # noqa: F401
    if name == "cuda":
        torch.cuda.set_device(device)
    # torchrun's store outlives a restart: without a prefix a rank may wait for the address that a
    # killed one left there. Several machines count their restarts apart: see runs/README.md.
    one_machine = world_size() == int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else "0"
    store, _, _ = next(dist.rendezvous("env://"))
    # what lies on CPUs goes by gloo: ranks agree on a stop without waiting for a GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if name == "cuda" else "gloo",
                            store=dist.PrefixStore(attempt, store), rank=rank(),
                            world_size=world_size())
    return device


def print0(text):
    """Print a line, once for all ranks."""
    if rank() == 0:
        print(text, flush=True)


def sum_ranks(tensor):
    """Sum of a CPU tensor over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag):
    """Whether it is true on any rank. All ranks ask, so that all decide alike."""
    return bool(sum_ranks(torch.tensor(float(bool(flag)))))


def refuse_differences(facts):
    """InputError, naming the machines, unless all ranks have the same `facts`, a dict, and none has
    ended for a reason of its own."""
    if not dist.is_initialized():
        return
    found, here = [None] * world_size(), f"rank {rank()} ({platform.node()})"
    try:
        dist.all_gather_object(found, (here, facts))
    except RuntimeError:
        raise InputError(f"{here}: another rank ended before the first step; it says why") from None
    first_rank, first = found[0]
    for other_rank, other in found:
        for key in first:
            if other[key] != first[key]:
                raise InputError(f"the ranks differ: {key} is {first[key]} on {first_rank} and "
                                 f"{other[key]} on {other_rank}; do they share data/ and out/?")


def autocast(device, dtype):
    """The context in which a model runs: half-precision products, or plain float32."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")


def stop_signals():
    """SIGTERM and Ctrl-C ask for the step to be finished and saved: a list of those received."""
    received = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    return received
