"""What a machine can do: asked of torch here, or looked up for a GPU that somebody else has."""
import importlib.util
import shutil
from dataclasses import dataclass

import torch

from lib.errors import InputError


@dataclass
class GPU:
    """Vendor's figures: memory in GB, dense half-precision operations per second (bfloat16, or
    float16 where there is no bfloat16), CUDA capability."""
    memory: float
    flops: float
    capability: tuple


# The names are what torch.cuda.get_device_name contains.
GPUS = {
    "GTX 1650": GPU(4, 6e12, (7, 5)),
    "RTX 2080": GPU(8, 40e12, (7, 5)),
    "T4": GPU(15, 65e12, (7, 5)),
    "P100": GPU(16, 19e12, (6, 0)),
    "V100": GPU(16, 125e12, (7, 0)),
    "RTX 3060": GPU(12, 51e12, (8, 6)),
    "RTX 3090": GPU(24, 71e12, (8, 6)),
    "RTX 4090": GPU(24, 165e12, (8, 9)),
    "A100": GPU(80, 312e12, (8, 0)),
    "L40S": GPU(48, 362e12, (8, 9)),
    "H100": GPU(80, 989e12, (9, 0)),
    "H200": GPU(141, 989e12, (9, 0)),
}


@dataclass
class Hardware:
    """What choices depend on: `gpus` CUDA devices of `capability`, Apple's GPU, whether the CPU
    multiplies bfloat16, and whether there is a compiler that torch.compile can use on a GPU."""
    gpus: int = 0
    capability: tuple = (0, 0)
    mps: bool = False
    cpu_bfloat16: bool = False
    compiler: bool = True


def this_hardware():
    """The `Hardware` of this machine."""
    found = Hardware(mps=torch.backends.mps.is_available())
    found.cpu_bfloat16 = (torch.cpu._is_avx512_bf16_supported()
                          or torch.cpu._is_amx_tile_supported())
    if torch.cuda.is_available():
        found.gpus, found.capability = torch.cuda.device_count(), torch.cuda.get_device_capability()
        found.compiler = (importlib.util.find_spec("triton") is not None
                          and bool(shutil.which("cc") or shutil.which("gcc")))
    return found


def described(name, count):
    """The `Hardware` of a machine with `count` GPUs called `name` in GPUS."""
    return Hardware(gpus=count, capability=GPUS[name].capability)


def find_gpu(text):
    """"4090", "t4", "RTX 3090" or "rtx3090" -> its name in GPUS; None if there is no such GPU."""
    text = text.lower().replace(" ", "")
    for name in GPUS:
        if text in (name.lower().replace(" ", ""), name.lower().split()[-1]):
            return name
    return None


def parse_gpus(text):
    """"8", "1x4090" or "T4" -> (how many, the GPU's name; an H100 where none is named).

    InputError if it is none of these.
    """
    if find_gpu(text):
        return 1, find_gpu(text)
    count, _, name = text.lower().partition("x")
    if not count.isdigit() or int(count) < 1 or not find_gpu(name or "H100"):
        known = ", ".join(name.split()[-1] for name in GPUS)
        raise InputError(f"--dry_run={text}: a number of GPUs, a GPU, or both, as in --dry_run=8 "
                         f"or --dry_run=1x4090 (known: {known})")
    return int(count), find_gpu(name or "H100")
