"""What a machine can do, asked of torch here or looked up for a GPU that somebody else has, and
what a run takes there: --dry_run."""
import importlib.util
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
    capability, and the share of these operations that training reaches: (lowest, highest)."""
    memory: float
    flops: float
    capability: tuple
    reached: tuple = (0.20, 0.45)
    source: str = "an assumption, nobody's report"


# The names are what torch.cuda.get_device_name contains. Operations per second are the vendor's for
# dense products in bfloat16 (float16 before Ampere) with sums in float32: GeForce cards are twice
# as fast with sums in float16, which is advertised. GTX 1650 and P100 have no tensor cores.
# Reported shares are of models of the size of GPT-2 124M, counted as in `GPT.flops_per_token`.
GPUS = {
    "GTX 1650": GPU(4, 6e12, (7, 5)),
    "RTX 2080": GPU(8, 40e12, (7, 5)),
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
    "L40S": GPU(48, 362e12, (8, 9)),
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
        found.compiler = (importlib.util.find_spec("triton") is not None
                          and bool(shutil.which("cc") or shutil.which("gcc")))
    return found


def peak_flops(device, count):
    """Peak of `count` such devices together in operations per second; None if it is unknown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((gpu.flops * count for part, gpu in GPUS.items() if part in name), None)


def parse_gpus(text):
    """"8", "1x4090", "T4" or "2xRTX 3090" -> (how many, the GPU's name; an H100 where none is
    named). InputError if it is none of these."""
    names = {name.lower().split()[-1]: name for name in GPUS}
    asked = re.sub("[gr]tx *", "", text.lower())
    if asked in names:
        return 1, names[asked]
    found = re.fullmatch(r"([1-9]\d*)(?:x(.+))?", asked)
    if not found or (found[2] or "h100") not in names:
        raise InputError(f"--dry_run={text}: a number of GPUs, a GPU, or both, as in --dry_run=8 "
                         f"or --dry_run=1x4090 (known: {', '.join(GPUS)})")
    return int(found[1]), names[found[2] or "h100"]


def estimate_memory(model, config, micro):
    """Bytes at the peak of a step in eager mode, at the start of the backward pass:
    {"weights and optimizer", "activations", "loss"}.

    AdamW in float32 keeps 12 bytes per weight besides the gradient; half precision adds copies of
    what it multiplies. A block keeps, per token, 38 d bytes in bfloat16 (68 d in float32), on a CPU
    the attention's probabilities too. The loss keeps float32 log-probabilities, on a GPU logits in
    both formats too.
    """
    c, counts, tokens = model.config, model.num_params(), micro * config.block_size
    half, cpu = config.dtype != "float32", config.device == "cpu"
    head = c.padded_size * c.n_embd
    weights = 12 * counts["total"] + 4 * head
    weights += 2 * (counts["body"] + head) if half else 0
    if config.code_form == "table":
        weights += 4 * c.padded_size * getattr(model.transformer.wte, "code_width", 0)
    per_token = (38 if half else 68) * c.n_embd
    per_token += 2 * c.n_head * c.block_size if half and cpu else 0
    per_logit = 4 if cpu else 10 if half else 8
    return {"weights and optimizer": weights,
            "activations": c.n_layer * per_token * tokens,
            "loss": tokens * c.padded_size * per_logit}


def dry_run(config, arm, count, name):
    """Print what a run would take on `count` GPUs called `name` in GPUS. Nothing is allocated, the
    data need not be prepared. InputError if there can be no such run."""
    if config.device != "cuda":
        raise InputError(f"--dry_run is of CUDA GPUs, not of device='{config.device}'")
    vocab_size = config.vocab_size or GPTConfig.vocab_size  # GPT-2's where nothing else is said
    epochs = f"{config.dataset} is not prepared yet"
    if Path("data", config.dataset).exists():
        data = Data(config.dataset, config.block_size)
        vocab_size = data.tokenizer.vocab_size
        passes = config.max_steps * config.sequences / data.blocks("train")
        epochs = f"{passes:.2f} epochs of {config.dataset}"
    try:
        with torch.device("meta"):
            model = GPT(replace(config, vocab_size=vocab_size, code_form="on_the_fly"), [])
    except ValueError as error:
        raise InputError(str(error)) from None
    counts, padded, gpu = model.num_params(), model.config.padded_size, GPUS[name]
    per_step, mine = config.sequences * config.block_size, config.sequences // count
    flops = model.flops_per_token() * config.max_steps * per_step
    most, least = (flops / (share * gpu.flops * count) / 3600 for share in gpu.reached)  # hours
    micro = min(config.batch_size, mine)
    memory = estimate_memory(model, config, micro)
    parts = " + ".join(f"{size / 1e9:.2f} {what}" for what, size in memory.items())
    room = 0.95 * gpu.memory * 1e9 - 0.6e9  # a twentieth goes to fragments, 0.6 GB to CUDA itself
    largest = max((n for n in range(1, mine + 1) if mine % n == 0
                   and sum(estimate_memory(model, config, n).values()) <= room), default=None)
    fits = "does not fit; no micro-batch does"
    if largest:
        fits = (f"{'fits' if micro <= largest else 'does not fit'}; the largest micro-batch that "
                f"does is {largest}: --batch_size={largest} "
                f"--gradient_accumulation_steps={config.sequences // largest}")
    print(f"""\
{arm}, seed {config.seed}, vocabulary {vocab_size:,} ({padded:,} with padding)
parameters: {counts['total']:,} = {counts['input']:,} input + {counts['body']:,} body + \
{counts['head']:,} head; {padded * config.n_embd - counts['input']:,} fewer than with a learned \
input table
steps: {config.max_steps:,} of {per_step:,} tokens ({config.sequences} x {config.block_size}) = \
{config.max_steps * per_step:,} tokens, {epochs}
compute: {model.flops_per_token():.3g} FLOPs per token, {flops:.3g} in all: {least:,.2f} to \
{most:,.2f} hours on {count} {name}; four arms with three seeds {12 * least:,.1f} to \
{12 * most:,.1f} hours
that is {100 * gpu.reached[0]:.0f} to {100 * gpu.reached[1]:.0f} % of its peak of \
{gpu.flops:.3g} a second ({gpu.source})
memory per GPU, micro-batch {micro}, eager {config.dtype}: {sum(memory.values()) / 1e9:.2f} GB = \
{parts}; compiled it is less
{name}, {gpu.memory} GB: {fits}""")
