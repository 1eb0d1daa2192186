"""Train one run, in one process or in many.

    python train.py configs/tiny.py configs/kron.py          # a small CPU run, out/tiny-kron-s1337
    python train.py configs/tiny.py configs/kron.py --seed=2 --max_steps=500
    python train.py configs/kron.py --dry_run=1x4090         # what it takes there; runs nothing
    torchrun --standalone --nproc_per_node=8 train.py configs/kron.py    # GPT-2 124M on eight GPUs

Config files are plain assignments of literals; they compose left to right, then --key=value. Data
comes from prepare.py. Everything a run leaves is in out/NAME: ckpt.pt, best.pt, log.jsonl,
loss.png, eval.npz. The same command again continues a run that was stopped.
"""
import math
import sys
import time
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from lib.run_folder import RunFolder, build_model
from lib.errors import InputError, clock, run
from lib.config import check, compose, explain
from lib.data import Data, sequence_blocks, text_bytes, to_device
from lib.estimate import dry_run
from lib.hardware import described
from lib.evaluate import InputWatch, evaluate, input_norm, save_evaluation
from lib.distributed import (StopRequest, autocast, failures_in_one_line, is_first_here, is_restart,
                             join_ranks, leave_ranks, refuse_non_finite, slow_step, this_place,
                             world_size)
from lib.provenance import describe_machine
from lib.plots import loss_picture
from lib.generation import one_line_sample
from lib.tokenizer import code_lines


def learning_rate(step, config):
    """Linear warmup, then a cosine from learning_rate down to min_lr at the last step (nanoGPT's
    rule)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + cosine * (config.learning_rate - config.min_lr)


def make_optimizer(model, config):
    """Fused AdamW. Weight decay on matrices only. The input, and a head that is tied to it, learn
    embed_lr_mult times as fast; their decay is divided by that, so that a step shrinks them alike.
    """
    inputs = {id(p) for p in model.transformer.wte.parameters()}
    mult, decay = config.embed_lr_mult, config.weight_decay
    groups = [{"params": [], "lr_mult": mult, "weight_decay": decay / mult},  # input, matrices
              {"params": [], "lr_mult": 1.0, "weight_decay": decay},          # the rest's matrices
              {"params": [], "lr_mult": 1.0, "weight_decay": 0.0},            # its vectors
              {"params": [], "lr_mult": mult, "weight_decay": 0.0}]           # input, vectors
    for p in model.parameters():
        of_input, matrix = id(p) in inputs, p.dim() >= 2
        number = (0 if matrix else 3) if of_input else (1 if matrix else 2)
        groups[number]["params"].append(p)
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2),
                             fused=True)


@failures_in_one_line
def train_step(step, forward, model, optimizer, scaler, data, config, place):
    """One step: its batch, forward and backward in micro-batches, clipping, AdamW.

    `scaler` scales the loss where gradients are float16, and skips a step in which they overflow.
    Returns (loss of this rank's share, gradient norm before clipping, checksum of its tokens); the
    first two stay on the device, so that nothing waits for it. bench.py times this very function.
    """
    lr = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
    if config.dropout:  # a function of (seed, step, rank): a resumed run drops the same units
        torch.manual_seed(hash((config.seed, step, place.rank)))

    sequences = config.batch_size * config.gradient_accumulation_steps  # in a step, over all ranks
    mine = sequences // place.world
    micro = min(config.batch_size, mine)
    first = step * sequences + place.rank * mine
    loss, crc = torch.zeros((), device=place.device), 0
    for i in range(first, first + mine, micro):
        blocks = sequence_blocks(data.blocks("train"), config.seed, i, micro)
        ids = data.read("train", blocks)
        crc += sum(zlib.crc32(row) for row in ids)  # a sum: the same however rows go to ranks
        x, y = to_device(ids, place.device)
        with autocast(place.device, config.dtype):
            # scaled so that the ranks' gradients add up to that of the whole batch
            micro_loss = forward(x, y) * (micro / sequences)
        scaler.scale(micro_loss).backward()
        loss += micro_loss.detach()
    if place.world > 1:
        for p in model.parameters():
            dist.all_reduce(p.grad)
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, crc


def validation_blocks(data, config):
    """The blocks that every validation reads: about eval_tokens, evenly over the split."""
    count = max(1, min(config.eval_tokens // config.block_size, data.blocks("val")))
    return [i * data.blocks("val") // count for i in range(count)]


@failures_in_one_line
@torch.no_grad()
def validate(forward, data, config, place):
    """Mean loss in nats and bits per byte over a fixed set of validation blocks, dealt to the ranks
    and summed in float64."""
    mine = validation_blocks(data, config)[place.rank::place.world]
    width = text_bytes(data.tokenizer)
    sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
    forward.eval()
    for i in range(0, len(mine), config.batch_size):
        rows = data.read("val", mine[i:i + config.batch_size])
        missing = config.batch_size - len(rows)  # padded: one shape, compiled once
        x, y = to_device(np.pad(rows, ((0, missing), (0, 0))), place.device)
        y = y.clone()  # inputs and targets share their memory
        y[len(rows):] = -100  # which the loss ignores
        with autocast(place.device, config.dtype):
            loss = forward(x, y)
        tokens = len(rows) * config.block_size
        nats, size = loss.item() * tokens, width[rows[:, 1:]].sum()
        sums += torch.tensor([nats, tokens, size], dtype=torch.float64)
    forward.train()
    nats, tokens, size = place.sum(sums).tolist()
    return nats / tokens, nats / math.log(2) / size


def main():
    began = time.perf_counter()
    config, arm, flags = compose(sys.argv[1:])
    if flags["help"]:
        print(__doc__ + explain(config))
        return
    gpus, gpu = flags["dry_run"] or (world_size(), None)
    check(config, gpus, described(gpu, gpus) if gpu else None)
    prepared = not flags["dry_run"] or (Path("data") / config.dataset).exists()
    data = Data(config.dataset, config.block_size) if prepared else None
    if data and config.vocab_size not in (0, data.tokenizer.vocab_size):
        raise InputError(f"{data.folder} has a vocabulary of {data.tokenizer.vocab_size:,}, "
                         f"vocab_size={config.vocab_size} wants another")
    if flags["dry_run"]:
        return dry_run(config, arm, data, gpus, gpu)

    place = this_place(config.device)
    model = build_model(asdict(config), data.tokenizer)
    join_ranks(place)
    flags["restarted"] = place.agree(is_restart())
    folder = RunFolder(config, arm, data, place, flags)
    torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    model.to(place.device)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(place.device.type, enabled=config.dtype == "float16")
    step = folder.restore(model, optimizer, scaler)
    if folder.fresh and config.head_bias == "unigram":
        model.start_at_unigram(data.train_counts)
    if is_first_here():  # later starts believe what the first one found in the data
        data.verify(again=folder.fresh or flags["verify"])
    machine = describe_machine(place.device, place.world)
    place.refuse_differences({"step": step, "fresh": folder.fresh, "data": data.sha256,
                              "code_hash": machine["code_hash"]} | asdict(config))
    forward = torch.compile(model) if config.compile == "True" else model

    sequences = config.batch_size * config.gradient_accumulation_steps
    tokens_per_step = sequences * config.block_size
    epochs = config.max_steps * sequences / data.blocks("train")
    counts, peak = model.num_params(), place.peak_flops()
    counts["in_use"] = model.transformer.wte.params_in_use(data.tokenizer.vocab_size)
    header = {"config": asdict(config), "arm": arm, "params": counts, "data": data.sha256,
              "world_size": place.world, "tokens_per_step": tokens_per_step, "epochs": epochs}
    folder.begin(header | machine, step)
    place.say(f"{folder.path}: {arm}, {counts['total']:,} parameters ({counts['input']:,} input of "
              f"which {counts['in_use']:,} in use, {counts['body']:,} body, {counts['head']:,} "
              f"head), {tokens_per_step:,} tokens per step, {epochs:.2f} epochs, {config.dtype} on "
              f"{place.device}")
    if hasattr(model.transformer.wte, "pos_dim"):  # what lies beyond P bytes is not seen
        place.say("\n".join(code_lines(data.tokenizer, (config.pos_dim,))))
    if step >= config.max_steps:
        place.say(f"{folder.path} is finished at step {step}; --overwrite starts over")
    advice = f"lower learning_rate or raise warmup_steps; {folder.path} keeps the last good state"
    stop = StopRequest()
    stopping, validation_due = False, folder.fresh  # a fresh run is validated before it learns
    start = logged_at = time.perf_counter()
    first = logged = validated = step
    norms, clipped = [], 0  # gradient norms since the last line, steps clipped since a validation
    watch = InputWatch(model, data, validation_blocks(data, config), place.device)

    while True:
        if validation_due:
            before = time.perf_counter()
            loss, bits_per_byte = validate(forward, data, config, place)
            if not loss < 700:  # past that the perplexity is no float; NaN is not below it either
                folder.log({"step": step, "val_loss": None})  # compare.py says that it diverged
                raise InputError(f"step {step}: the validation loss is {loss}; {advice}")
            folder.log({"step": step, "val_loss": loss, "val_ppl": math.exp(loss),
                        "val_bpb": bits_per_byte, "input_norm": input_norm(model),
                        "input_rms": watch.rms(), "input_speed": watch.speed(),
                        "clipped": clipped / max(1, step - validated)})
            place.say(f"step {step}/{config.max_steps} | validation loss {loss:.4f} nats, "
                      f"perplexity {math.exp(loss):.2f}, {bits_per_byte:.4f} bits/byte")
            folder.best = min(folder.best, [loss, step])
            if place.rank == 0 and not folder.held_back:  # else it is another run's
                loss_picture(folder.records, config.name, folder.path / "loss.png")
            place.say(one_line_sample(model, data.tokenizer))
            folder.save(step, model, optimizer, scaler)
            validated, clipped = step, 0
            logged_at += time.perf_counter() - before
        elif stopping:
            refuse_non_finite(norms, scaler, logged, config, advice, folder)
            folder.save(step, model, optimizer, scaler)
        if stopping or step >= config.max_steps:
            break

        validation_due = (step + 1) % config.eval_interval == 0 or step + 1 == config.max_steps
        if validation_due:
            watch.remember()
        loss, norm, crc = train_step(step, forward, model, optimizer, scaler, data, config, place)
        norms.append(norm)
        step += 1

        stopping = place.agree(bool(stop.received))
        if step % config.log_interval == 0 or step == 1 or validation_due:
            sums = torch.tensor([loss.item(), crc], dtype=torch.float64)
            loss, crc = place.sum(sums).tolist()
            refuse_non_finite(norms, scaler, logged, config, advice, folder)
            clipped += sum(n.item() > config.grad_clip > 0 for n in norms)
            now, lr, norm = time.perf_counter(), learning_rate(step - 1, config), norms[-1].item()
            seconds = (now - logged_at) / (step - logged)
            rate = tokens_per_step / seconds
            folder.log({"step": step, "loss": loss, "grad_norm": norm, "lr": lr,
                        "ms": seconds * 1e3, "tokens_per_s": rate, "batch_crc": int(crc)})
            mfu = f" | MFU {100 * rate * model.flops_per_token() / peak:.1f} %" if peak else ""
            left = clock((now - start) / (step - first) * (config.max_steps - step))
            said = slow_step(seconds) if logged == first + 1 else ""
            if step == first + 1:
                said = f" | first step {now - began:.1f} s after the start"
            place.say(f"step {step}/{config.max_steps} | loss {loss:.4f} | lr {lr:.2e} | "
                      f"{seconds * 1e3:.0f} ms | {rate:,.0f} tokens/s{mfu} | {left} left{said}")
            logged_at, logged, norms = now, step, []
    if step >= config.max_steps and not (folder.path / "eval.npz").exists():
        scores = failures_in_one_line(evaluate)(model, data, config, place, epochs)
        if place.rank == 0:
            save_evaluation(folder.path / "eval.npz", scores)
    leave_ranks()
    if step < config.max_steps:
        place.say(f"stopped at step {step}, which is saved; the same command again continues")
        return stop.exit_status()


if __name__ == "__main__":
    run(main)
