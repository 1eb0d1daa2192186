"""What a machine can do, asked of torch here or looked up for a GPU that somebody else has, and
what a run takes there: --dry_run."""
import importlib.util
import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lib.data import Data
from lib.errors import InputError
from model import GPT, GPTConfig


@dataclass
class GPU:
    """A CUDA device: its memory in GB, its dense half-precision operations per second, its CUDA
    capability, the share of these operations that training reaches, (lowest, highest)."""
    memory: float
    flops: float
    capability: tuple
    reached: tuple = (0.20, 0.45)
    source: str = "an assumption, nobody's report"


# The names are what torch.cuda.get_device_name contains. Operations per second are the vendor's for
# dense products in bfloat16 (float16 before Ampere) with sums in float32; GeForce cards are
# advertised with twice that, for sums in float16. GTX 1650 and P100 have no tensor cores. Reported
# shares are of models as large as GPT-2 124M.
GPUS = {
    "GTX 1650": GPU(4, 6e12, (7, 5)),
    "T4": GPU(15, 65e12, (7, 5), (0.14, 0.30),
              "14 %: ModernBERT-base in float16, 32 x 128 tokens in 0.30 s; 30 %: an assumption"),
    "P100": GPU(16, 19e12, (6, 0)),
    "V100": GPU(16, 125e12, (7, 0)),
    "RTX 3060": GPU(12, 25.5e12, (8, 6)),
    "RTX 3090": GPU(24, 71e12, (8, 6)),
    "RTX 4090": GPU(24, 165e12, (8, 9), (0.45, 0.55),
                    "55 %: nanoGPT's issue 182; 45 %: an assumption"),
    "A100": GPU(80, 312e12, (8, 0), (0.25, 0.30),
                "nanoGPT: 12 x 1,024 tokens in 135 ms; 295B tokens on eight in 4 days"),
    "H100": GPU(80, 989e12, (9, 0), (0.33, 0.40),
                "nanoGPT's pull request 464; llm.c: 10B tokens on eight in 45 minutes"),
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
    bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    found = Hardware(mps=torch.backends.mps.is_available(), cpu_bfloat16=bfloat16)
    if torch.cuda.is_available():
        found.gpus, found.capability = torch.cuda.device_count(), torch.cuda.get_device_capability()
        compiler = any(map(shutil.which, ("cc", "gcc")))
        found.compiler = compiler and importlib.util.find_spec("triton") is not None
    return found


def peak_flops(device):
    """The peak of a device in operations per second, infinite where it is not in GPUS."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((gpu.flops for part, gpu in GPUS.items()
                 if re.search(rf"{part}(?!\w| Ti| SUPER| Laptop| Max)", name)), math.inf)


def parse_gpus(text):
    """"8", "1x4090", "T4" or "2xRTX 3090" -> (how many, the GPU's name; an H100 where none is
    named). InputError if it is none of these."""
    names = {name.lower().split()[-1]: name for name in GPUS}
    count, _, name = re.sub("[gr]tx *", "", text.lower()).rpartition("x")
    if not count:
        count, name = ("1", name) if name in names else (name, "h100")
    if name not in names or not re.fullmatch(r"[1-9]\d*", count):
        raise InputError(f"--dry_run={text}: a number of GPUs, a GPU, or both, as in --dry_run=8 "
                         f"or --dry_run=1x4090 (known: {', '.join(GPUS)})")
    return int(count), names[name]


def estimate_memory(model, config, micro):
    """Bytes on a GPU at the peak of a step of `micro` sequences at once in eager mode, the start of
    its backward pass. AdamW in float32 keeps 12 bytes per weight besides the gradient; half
    precision adds copies of what it multiplies. A block keeps 38 d bytes per token in bfloat16, 68
    d in float32; the loss keeps log-probabilities in float32 and logits in both formats."""
    c, counts, half = model.config, model.num_params(), config.dtype != "float32"
    head = c.padded_size * c.n_embd
    weights = 12 * counts["total"] + 4 * head
    weights += 2 * (counts["body"] + head) if half else 0
    if config.code_form == "table":
        weights += 4 * c.padded_size * getattr(model.transformer.wte, "code_width", 0)
    activations = (38 if half else 68) * c.n_embd * c.n_layer
    logits = (10 if half else 8) * c.padded_size
    return weights + micro * config.block_size * (activations + logits)


def dry_run(config, arm, count, name):
    """Print what a run would take on `count` GPUs called `name` in GPUS. Nothing is allocated, the
    data need not be prepared. InputError if there can be no such run."""
    vocab_size = config.vocab_size or GPTConfig.vocab_size  # GPT-2's where nothing else is said
    if Path("data", config.dataset).exists():
        vocab_size = Data(config.dataset, config.block_size).tokenizer.vocab_size
    try:
        with torch.device("meta"):
            model = GPT(replace(config, vocab_size=vocab_size, code_form="on_the_fly"), [])
    except ValueError as error:
        raise InputError(str(error)) from None
    counts, padded, gpu = model.num_params(), model.config.padded_size, GPUS[name]
    tokens = config.max_steps * config.sequences * config.block_size
    flops = model.flops_per_token() * tokens
    longest, least = (flops / (share * gpu.flops * count) / 3600 for share in gpu.reached)  # hours
    mine = config.sequences // count
    micro = min(config.batch_size, mine)
    memory = {n: estimate_memory(model, config, n) / 1e9 for n in range(1, mine + 1)
              if mine % n == 0 or n == micro}
    usable = 0.95 * gpu.memory - 0.6  # a twentieth goes to fragments, 0.6 GB to CUDA itself
    most = max((n for n in memory if memory[n] < usable), default=None)
    advice = "nothing does"
    if most:
        advice = (f"at most --batch_size={most} "
                  f"--gradient_accumulation_steps={config.sequences // most}")
    fits = "fits" if memory[micro] < usable else "does not fit"
    print(f"""\
{arm}, seed {config.seed}, vocabulary {vocab_size:,} ({padded:,} with padding)
parameters: {counts['total']:,} = {counts['input']:,} input + {counts['body']:,} body + \
{counts['head']:,} head; {padded * config.n_embd - counts['input']:,} fewer than with a learned \
input table
{config.max_steps:,} steps x {config.sequences} x {config.block_size} = {tokens:,} tokens
compute: {flops:.3g} FLOPs, {least:,.2f} to {longest:,.2f} hours on {count} {name} at \
{100 * gpu.reached[0]:.0f} to {100 * gpu.reached[1]:.0f} % of the peak, {gpu.flops:.3g} a second \
each ({gpu.source})
memory per GPU, {micro} sequences at once, {config.dtype}, eager (compiled it is less): \
{memory[micro]:.2f} of {usable:.1f} GB: {fits} ({advice})""")
