"""Train one run, in one process or in many.

    python train.py configs/tiny.py configs/kron.py          # a small CPU run, out/tiny-kron-s1337
    python train.py configs/tiny.py configs/kron.py --seed=2 --max_steps=500
    python train.py configs/tiny.py configs/kron.py --overwrite     # anew; the old one is NAME.old
    python train.py configs/kron.py --dry_run=1x4090         # what it takes there; or =8, =T4
    torchrun --standalone --nproc_per_node=8 train.py configs/kron.py    # GPT-2 124M on eight GPUs

Config files are plain assignments of literals; they compose left to right, then --key=value. Data
comes from prepare.py. Everything a run leaves is in out/NAME: ckpt.pt, best.pt, log.jsonl,
loss.png, eval.npz. The same command again continues a run that was stopped.
"""
import math
import re
import signal
import sys
import time
import zlib
from dataclasses import asdict
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from lib.config import check, compose, explain
from lib.data import Data, sequence_blocks, to_device
from lib.distributed import (any_rank, autocast, print0, rank, refuse_differences, start_ranks,
                             stop_signals, sum_ranks, world_size)
from lib.errors import InputError, run, write_atomic
from lib.evaluate import InputWatch, evaluate
from lib.generation import refuse_context
from lib.hardware import GPUS, Hardware, dry_run, peak_flops
from lib.plots import loss_picture
from lib.provenance import describe_machine
from lib.run_folder import RunFolder, build_model
from lib.tokenizer import text_bytes


def learning_rate(step, config):
    """Of the step that follows `step` steps: linear warmup, then a cosine towards min_lr, which it
    would reach after max_steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + cosine * (config.learning_rate - config.min_lr)


def make_optimizer(model, config):
    """Fused AdamW, weight decay on matrices only, what is frozen left out. The input, and a head
    that is tied to it, learn embed_lr_mult times as fast; their decay is divided by that, so that a
    step shrinks them alike."""
    inputs = {id(p) for p in model.transformer.wte.parameters()}
    groups = []
    for of_input, matrix in ((True, True), (False, True), (False, False), (True, False)):
        params = [p for p in model.parameters() if p.requires_grad
                  and (id(p) in inputs, p.dim() >= 2) == (of_input, matrix)]
        mult = config.embed_lr_mult if of_input else 1.0
        decay = config.weight_decay / mult if matrix else 0.0
        if params:
            groups.append({"params": params, "lr_mult": mult, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2),
                             fused=True)


def train_step(step, forward, model, optimizer, scaler, data, config):
    """One step: its batch, forward and backward in micro-batches, clipping, AdamW. Returns (loss of
    this rank's share, gradient norm before clipping, checksum of its tokens); the first two stay on
    the device, so that nothing waits for it. bench.py times this very function."""
    lr = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
    if config.dropout:  # a function of (seed, step, rank): a resumed run drops the same units
        torch.manual_seed(hash((config.seed, step, rank())))

    mine = config.sequences // world_size()
    micro = min(config.batch_size, mine)
    first = step * config.sequences + rank() * mine
    loss, crc = torch.zeros((), device=model.device), 0
    for i in range(first, first + mine, micro):
        ids = data.read("train", sequence_blocks(data.blocks("train"), config.seed, i, micro))
        crc += sum(zlib.crc32(row) for row in ids)  # a sum: the same however rows go to ranks
        x, y = to_device(ids, model.device)
        with autocast(model.device, config.dtype):
            # scaled so that the ranks' gradients add up to that of the whole batch
            micro_loss = forward(x, y) * (micro / config.sequences)
        scaler.scale(micro_loss).backward()
        loss += micro_loss.detach()
    for p in model.parameters():
        if p.requires_grad and p.grad is None:  # no gradient reaches it: it has one of zero
            p.grad = torch.zeros_like(p)
        if p.requires_grad and world_size() > 1:
            dist.all_reduce(p.grad)
    scaler.unscale_(optimizer)  # float16 gradients are scaled; a step that overflows is skipped
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, crc


@torch.no_grad()
def validate(forward, data, blocks, config, device):
    """Mean loss in nats and bits per byte over validation blocks, summed over ranks in float64."""
    mine = blocks[rank()::world_size()]
    width = text_bytes(data.tokenizer)
    sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
    forward.eval()
    for i in range(0, len(mine), config.batch_size):
        rows = data.read("val", mine[i:i + config.batch_size])
        missing = config.batch_size - len(rows)  # padded: one shape, compiled once
        x, y = to_device(np.pad(rows, ((0, missing), (0, 0))), device)
        y = y.index_fill(0, torch.arange(len(rows), len(y), device=device), -100)  # not scored
        with autocast(device, config.dtype):
            mean = forward(x, y)
        tokens = len(rows) * config.block_size
        found = mean.item() * tokens, tokens, width[rows[:, 1:]].sum()
        sums += torch.tensor(found, dtype=torch.float64)
    forward.train()
    nats, tokens, size = sum_ranks(sums).tolist()
    return nats / tokens, nats / math.log(2) / size


class Progress:
    """The steps since the last line of the log: their time, and gradient norms on the device."""

    def __init__(self, folder, model, scaler, config, step):
        self.folder, self.scaler, self.config = folder, scaler, config
        self.flops = model.flops_per_token() / (peak_flops(model.device) * world_size())
        self.logged, self.logged_at = step, time.perf_counter()
        self.norms = []

    def diverged(self, step, what):
        """The InputError of a run that is of no use any more; the log says it too."""
        self.folder.log({"step": step, "val_loss": None})
        return InputError(f"step {step}: {what}; lower learning_rate or raise warmup_steps; "
                          f"{self.folder.path} keeps the last good state")

    def finite_norms(self):
        """The gradient norms since the last line. InputError if one is not finite; with float16,
        whose scaler skips such a step and halves its scale, only if that does not help."""
        norms = torch.stack(self.norms).tolist() if self.norms else []
        helps = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        for step, norm in enumerate(norms, self.logged + 1):
            if not math.isfinite(norm) and not helps:
                raise self.diverged(step, "the gradient norm is not finite")
        return norms

    def log_step(self, step, loss, crc):
        """Log and print the step that was just made, `loss` and `crc` being this rank's."""
        config, now = self.config, time.perf_counter()
        loss, crc = sum_ranks(torch.tensor([loss.item(), crc], dtype=torch.float64)).tolist()
        norms, lr = self.finite_norms(), learning_rate(step - 1, config)
        norm = norms[-1] if math.isfinite(norms[-1]) else None  # of a float16 step that was skipped
        seconds = (now - self.logged_at) / (step - self.logged)
        rate = config.sequences * config.block_size / seconds
        self.folder.log({"step": step, "loss": loss, "grad_norm": norm, "lr": lr,
                         "ms": seconds * 1e3, "tokens_per_s": rate, "batch_crc": int(crc)})
        line = (f"step {step}/{config.max_steps} | loss {loss:.4f} | lr {lr:.2e} | "
                f"{seconds * 1e3:.0f} ms | {rate:,.0f} tokens/s")
        if self.flops:
            line += f" | MFU {100 * rate * self.flops:.1f} %"
        if step > 1:  # the first one compiles
            line += f" | {timedelta(seconds=int(seconds * (config.max_steps - step)))} left"
        print0(line)
        self.logged_at, self.logged, self.norms = now, step, []


def describe_run(config, arm, data, model):
    """Print what the run is. Returns the first line of its log, but for the machine: a dict."""
    tokens = config.sequences * config.block_size
    epochs = config.max_steps * config.sequences / data.blocks("train")
    counts = model.num_params()
    counts["in_use"] = model.transformer.wte.params_in_use(data.tokenizer.vocab_size)
    print0(f"out/{config.name}: {arm}, {counts['total']:,} parameters ({counts['input']:,} input "
           f"of which {counts['in_use']:,} in use, {counts['body']:,} body, {counts['head']:,} "
           f"head), {tokens:,} tokens per step, {epochs:.2f} epochs, {config.dtype} on "
           f"{model.device}")
    if config.max_steps <= config.warmup_steps:
        print0(f"{config.max_steps} steps all lie inside the {config.warmup_steps} warm-up steps; "
               "--warmup_steps=N is shorter")
    return {"config": asdict(config), "arm": arm, "params": counts, "data": data.sha256,
            "world_size": world_size(), "tokens_per_step": tokens, "epochs": epochs}


def train(config, arm, overwrite):
    """The run. Returns None, or the exit status where a signal stopped it."""
    device = start_ranks(config.device)
    data = Data(config.dataset, config.block_size)
    if dist.get_node_local_rank(0) == 0:
        data.verify()
    torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    model = build_model(asdict(config), data.tokenizer).to(device)
    refuse_context(model)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
    folder = RunFolder(config, arm, data, overwrite)
    step = start_step = folder.restore(model, optimizer, scaler)
    if folder.fresh and config.head_bias == "unigram":
        model.start_at_unigram(data.train_counts)
    machine = describe_machine(device, world_size())
    refuse_differences({"step": step, "fresh": folder.fresh, "data": data.sha256,
                        "code_hash": machine["code_hash"]} | asdict(config))
    header = describe_run(config, arm, data, model) | machine
    folder.begin(header, step)
    if step == config.max_steps:
        print0(f"{folder.path} is finished at step {step}; --overwrite starts over")
    forward = torch.compile(model) if config.compile == "True" else model
    received, stopping = stop_signals(), False
    of_kept = " of the kept text" if data.kept < 0.999 else ""  # the tokenizer loses the rest
    # every validation reads the same blocks: about eval_tokens, evenly over the split
    count = max(1, min(config.eval_tokens // config.block_size, data.blocks("val")))
    blocks = [i * data.blocks("val") // count for i in range(count)]
    watch = InputWatch(model, data, blocks)
    progress = Progress(folder, model, scaler, config, step)
    due_steps = {*range(0, config.max_steps, config.eval_interval), config.max_steps}

    while True:
        due = step in due_steps and (folder.fresh or step > start_step)
        if due:
            val_loss, bits_per_byte = validate(forward, data, blocks, config, device)
            if not val_loss < 700:  # past that the perplexity is no float; NaN is not below either
                raise progress.diverged(step, f"the validation loss is {val_loss}")
            folder.log({"step": step, "val_loss": val_loss, "val_ppl": math.exp(val_loss),
                        "val_bpb": bits_per_byte, **watch.measure()})
            print0(f"step {step}/{config.max_steps} | validation loss {val_loss:.4f} nats, "
                   f"perplexity {math.exp(val_loss):.2f}, {bits_per_byte:.4f} bits/byte{of_kept}")
            folder.best = min(folder.best, [val_loss, step])
            if rank() == 0:
                loss_picture(folder.records, config.name, folder.path / "loss.png")
        if due or stopping:
            progress.finite_norms()
            folder.save(step, model, optimizer, scaler)
            progress.logged_at = time.perf_counter()
        if stopping or step == config.max_steps:
            break

        if step + 1 in due_steps:
            watch.remember()
        loss, norm, crc = train_step(step, forward, model, optimizer, scaler, data, config)
        progress.norms.append(norm)
        step += 1
        stopping = any_rank(received)
        if step % config.log_interval == 0 or step == 1 or step in due_steps:
            progress.log_step(step, loss, crc)

    scores = folder.path / "eval.npz"
    if step == config.max_steps and not scores.exists():
        print0(f"scoring all {data.tokens['val']:,} validation tokens, for eval.npz")
        arrays = evaluate(model, data, config, header["epochs"])
        if rank() == 0:
            write_atomic(scores, lambda file: np.savez_compressed(file, **arrays))
    if dist.is_initialized():
        dist.destroy_process_group()
    if step < config.max_steps:
        print0(f"stopped at step {step}, which is saved; the same command again continues")
        return 128 + (received or [signal.SIGTERM])[0]  # another rank may have received it


def main():
    config, arm, flags = compose(sys.argv[1:])
    if flags["help"]:
        print(__doc__, explain(config), sep="\n")
        return
    if flags["dry_run"]:
        count, name = flags["dry_run"]
        config.device = "cuda"  # whatever this machine has
        check(config, count, Hardware(count, GPUS[name].capability))
        return dry_run(config, arm, count, name)
    check(config, world_size())
    try:
        return train(config, arm, flags["overwrite"])
    except RuntimeError as error:  # a CPU's allocator and MPS have no error of their own
        if not re.search("out of memory|can't allocate memory|ALLOC_FAILED", str(error)):
            raise
        raise MemoryError(f"out of memory with {config.batch_size} sequences at once; half the "
                         "--batch_size with twice the --gradient_accumulation_steps goes on "
                         "from the last checkpoint") from None


if __name__ == "__main__":
    run(main)
