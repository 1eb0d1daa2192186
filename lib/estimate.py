"""--dry_run: what a run would take, without running it."""
from dataclasses import fields

import torch

from lib.common import InputError
from lib.machine import PEAK_FLOPS
from model import GPT, GPTConfig


def estimate_memory(model, config, micro):
    """Bytes at the peak of a step in eager mode, at the start of the backward pass:
    {"weights and optimizer", "activations", "loss"}.

    AdamW in float32 keeps 12 bytes per weight besides the gradient; bfloat16 autocast adds copies
    of what it multiplies. A block keeps, per token, 38 d bytes in bfloat16 (68 d in float32): two
    norms' inputs and outputs, q, k, v, the attention twice, 4 d twice of the MLP; in bfloat16 on a CPU also the attention's
    probabilities. The loss keeps float32 log-probabilities; on a GPU the logits stand beside them in both formats.
    """
    c, counts, tokens = model.config, model.num_params(), micro * config.block_size
    half = config.dtype == "bfloat16"
    head = c.padded_size * c.n_embd
    copies = 2 * (counts["body"] + head) if half else 0
    weights = 12 * counts["total"] + copies + 4 * head + model.table_bytes()
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


def dry_run(config, arm, data, gpus):
    """Print what a run would take on `gpus` ranks. `data` is None if it is not prepared yet."""
    vocab_size = config.vocab_size or GPTConfig.vocab_size  # GPT-2's where nothing else is said
    if data:
        vocab_size = data.tokenizer.vocab_size
    model = model_on_meta(config, vocab_size)
    counts, padded = model.num_params(), model.config.padded_size
    sequences = config.batch_size * config.gradient_accumulation_steps
    per_step = sequences * config.block_size
    tokens = config.max_steps * per_step
    flops = model.flops_per_token() * tokens
    hours = flops / (0.45 * PEAK_FLOPS["H100"] * gpus) / 3600
    micro = min(config.batch_size, sequences // gpus)
    memory = estimate_memory(model, config, micro)
    parts = " + ".join(f"{size / 1e9:.2f} {what}" for what, size in memory.items())
    if data:
        epochs = config.max_steps * sequences / data.blocks("train")
        epochs = f"{epochs:.2f} epochs of {config.dataset}"
    else:
        epochs = f"{config.dataset} is not prepared yet"
    saved = padded * config.n_embd - counts["input"]
    against = f"{saved:,} fewer than with a learned input table"
    if config.code == "learned":
        against = "the input is a learned table"
    print(f"""\
{arm}, seed {config.seed}, vocabulary {vocab_size:,} ({padded:,} with padding)
parameters: {counts['total']:,} = {counts['input']:,} input + {counts['body']:,} body + \
{counts['head']:,} head; {against}
steps: {config.max_steps:,} of {per_step:,} tokens ({sequences} x {config.block_size}) = \
{tokens:,} tokens, {epochs}
compute: {model.flops_per_token():.3g} FLOPs per token, {flops:.3g} in all: \
{hours:,.1f} hours on {gpus} H100 at 45 % MFU
memory per GPU, micro-batch {micro}, eager {config.dtype}: {sum(memory.values()) / 1e9:.2f} GB = \
{parts}; compiled it is less""")
