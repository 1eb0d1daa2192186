"""What a machine can do, asked of torch here or looked up for a GPU that somebody else has, and
what a run takes there: --dry_run."""
import importlib.util
import shutil
from dataclasses import dataclass, fields

import torch

from lib import tokenizer
from lib.errors import InputError
from model import GPT, GPTConfig, make_embedding


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


def peak_flops(device, count):
    """Peak of `count` such devices together in operations per second; None if it is unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((gpu.flops * count for part, gpu in GPUS.items() if part in name), None)


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


# ---- what a run takes ----------------------------------------------------------------------------

def table_bytes(model):
    """Bytes of the table form's V x D codes in float32; 0 on the fly."""
    width = getattr(model.transformer.wte, "code_width", 0)
    on_the_fly = model.config.code_form == "on_the_fly"
    return 0 if on_the_fly else 4 * model.config.padded_size * width


def estimate_memory(model, config, micro):
    """Bytes at the peak of a step in eager mode, at the start of the backward pass:
    {"weights and optimizer", "activations", "loss"}.

    AdamW in float32 keeps 12 bytes per weight besides the gradient; half precision adds copies
    of what it multiplies. A block keeps, per token, 38 d bytes in bfloat16 (68 d in float32): two
    norms' inputs and outputs, q, k, v, the attention twice, 4 d twice of the MLP; in bfloat16 on a
    CPU also the attention's probabilities. The loss keeps float32 log-probabilities; on a GPU the
    logits stand beside them in both formats.
    """
    c, counts, tokens = model.config, model.num_params(), micro * config.block_size
    half = config.dtype != "float32"
    head = c.padded_size * c.n_embd
    copies = 2 * (counts["body"] + head) if half else 0
    weights = 12 * counts["total"] + copies + 4 * head + table_bytes(model)
    per_token = (38 if half else 68) * c.n_embd
    per_logit = 10 if half else 8
    if config.device == "cpu":
        per_token += 2 * c.n_head * c.block_size if half else 0
        per_logit = 4
    return {"weights and optimizer": weights,
            "activations": c.n_layer * per_token * tokens,
            "loss": tokens * c.padded_size * per_logit}


def model_on_meta(config, vocab_size):
    """The model of a run with nothing allocated. InputError if there can be none."""
    shape = {f.name: getattr(config, f.name) for f in fields(GPTConfig)}
    shape |= {"vocab_size": vocab_size, "code_form": "on_the_fly"}
    try:
        with torch.device("meta"):
            model = GPT(GPTConfig(**shape), [])
    except ValueError as error:
        raise InputError(str(error)) from None
    model.config.code_form = config.code_form
    return model


def largest_micro_batch(model, config, gpu, sequences):
    """The most sequences at once, of those that divide a rank's share, that fit; 0 if none does.

    A twentieth of the memory is left to fragments, and 0.6 GB to CUDA itself.
    """
    room = 0.95 * gpu.memory * 1e9 - 0.6e9
    fitting = [n for n in range(1, sequences + 1) if sequences % n == 0
               and sum(estimate_memory(model, config, n).values()) <= room]
    return max(fitting, default=0)


def in_use(model, data):
    """Trained input parameters in rows that some token uses, as text; needs the tokenizer."""
    if not data:
        return ""
    module = make_embedding(model.config, tokenizer.token_bytes(data.tokenizer))
    return f", {module.params_in_use(data.tokenizer.vocab_size):,} of the input's in use"


def dry_run(config, arm, data, count, name):
    """Print what a run would take on `count` GPUs called `name` in GPUS. `data` is None if it is
    not prepared yet. InputError if the config asks for another device."""
    if config.device != "cuda":
        raise InputError(f"--dry_run is of CUDA GPUs, not of device='{config.device}'")
    vocab_size = config.vocab_size or GPTConfig.vocab_size  # GPT-2's where nothing else is said
    if data:
        vocab_size = data.tokenizer.vocab_size
    model, gpu = model_on_meta(config, vocab_size), GPUS[name]
    counts, padded = model.num_params(), model.config.padded_size
    sequences = config.batch_size * config.gradient_accumulation_steps
    per_step = sequences * config.block_size
    tokens = config.max_steps * per_step
    flops = model.flops_per_token() * tokens
    hours = flops / (0.45 * gpu.flops * count) / 3600
    mine = sequences // count
    micro = min(config.batch_size, mine)
    memory = estimate_memory(model, config, micro)
    parts = " + ".join(f"{size / 1e9:.2f} {what}" for what, size in memory.items())
    most = largest_micro_batch(model, config, gpu, mine)
    fits = f"does not fit; nothing does with {config.n_layer} layers of d {config.n_embd}"
    if most:
        verb = "fits" if most >= micro else "does not fit"
        fits = (f"{verb}; the largest micro-batch that does is {most}: --batch_size={most} "
                f"--gradient_accumulation_steps={sequences // most}")
    epochs = f"{config.dataset} is not prepared yet"
    if data:
        epochs = config.max_steps * sequences / data.blocks("train")
        epochs = f"{epochs:.2f} epochs of {config.dataset}"
    saved = padded * config.n_embd - counts["input"]
    against = f"{saved:,} fewer than with a learned input table"
    if isinstance(model.transformer.wte, torch.nn.Embedding):
        against = "the input is a learned table"
    print(f"""\
{arm}, seed {config.seed}, vocabulary {vocab_size:,} ({padded:,} with padding)
parameters: {counts['total']:,} = {counts['input']:,} input + {counts['body']:,} body + \
{counts['head']:,} head; {against}{in_use(model, data)}
steps: {config.max_steps:,} of {per_step:,} tokens ({sequences} x {config.block_size}) = \
{tokens:,} tokens, {epochs}
compute: {model.flops_per_token():.3g} FLOPs per token, {flops:.3g} in all: \
{hours:,.1f} hours on {count} {name} at 45 % of its peak; four arms with three seeds \
{12 * hours:,.1f} hours
memory per GPU, micro-batch {micro}, eager {config.dtype}: {sum(memory.values()) / 1e9:.2f} GB = \
{parts}; compiled it is less
{name}, {gpu.memory} GB: {fits}""")
