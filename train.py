"""Train one run, in one process or in many.

    python train.py configs/tiny.py configs/kron.py          # a small CPU run, out/tiny-kron-s1337
    python train.py configs/tiny.py configs/kron.py --seed=2 --max_steps=500
    python train.py configs/kron.py --dry_run=8              # what it takes on 8 GPUs; runs nothing
    torchrun --standalone --nproc_per_node=8 train.py configs/kron.py    # GPT-2 124M on eight GPUs

Config files are plain assignments of literals; they compose left to right, then --key=value. Data
comes from prepare.py. Everything a run leaves is in out/NAME: ckpt.pt, best.pt, log.jsonl,
loss.png. The same command again continues a run that was stopped; --overwrite starts over.
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

from lib.checkpoint import RunFolder, build_model
from lib.common import InputError, clock, run
from lib.config import check, compose, explain
from lib.data import Data, sequence_blocks, text_bytes, to_device
from lib.estimate import dry_run
from lib.evaluate import evaluate, save_evaluation
from lib.machine import (StopRequest, autocast, describe_machine, is_restart, join_ranks,
                         leave_ranks, this_place, world_size)
from lib.report import loss_picture


def learning_rate(step, config):
    """Linear warmup, then a cosine from learning_rate down to min_lr at the last step (nanoGPT's
    rule)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + cosine * (config.learning_rate - config.min_lr)


def make_optimizer(model, config):
    """Fused AdamW. Weight decay on matrices only; the input has its own learning rate and,
    inversely, weight decay."""
    inputs = {id(p) for p in model.transformer.wte.parameters()}
    decay, mult = config.weight_decay, config.embed_lr_mult
    own = {"params": [], "weight_decay": decay / mult, "lr_mult": mult}
    matrices = {"params": [], "weight_decay": decay, "lr_mult": 1.0}
    vectors = {"params": [], "weight_decay": 0.0, "lr_mult": 1.0}
    for p in model.parameters():
        group = own if id(p) in inputs else matrices if p.dim() >= 2 else vectors
        group["params"].append(p)
    groups = [group for group in (own, matrices, vectors) if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2),
                             fused=True)


def train_step(step, forward, model, optimizer, data, config, place):
    """One step: its batch, forward and backward in micro-batches, clipping, AdamW.

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
        micro_loss.backward()
        loss += micro_loss.detach()
    if place.world > 1:
        for p in model.parameters():
            dist.all_reduce(p.grad)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, crc


def validation_blocks(data, config):
    """The blocks that every validation reads: about eval_tokens, evenly over the split."""
    count = max(1, min(config.eval_tokens // config.block_size, data.blocks("val")))
    return [i * data.blocks("val") // count for i in range(count)]


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
        nats, size = loss.double().item() * tokens, width[rows[:, 1:]].sum()
        sums += torch.tensor([nats, tokens, size], dtype=torch.float64)
    forward.train()
    nats, tokens, size = place.sum(sums).tolist()
    return nats / tokens, nats / math.log(2) / size


def common_ids(data, config, place):
    """The distinct input ids of the validation blocks, (n,), and the share of each, (n,)."""
    ids = data.read("val", validation_blocks(data, config))[:, :-1]
    distinct, count = np.unique(ids, return_counts=True)
    distinct = torch.from_numpy(distinct.astype(np.int64))
    share = torch.from_numpy(count / ids.size).float()
    return distinct.to(place.device), share.to(place.device)


def rms(vectors, share):
    """Root mean square per coordinate of vectors (n, d), token-weighted by `share` (n,)."""
    return (share @ vectors.square().mean(1)).sqrt().item()


def refuse_non_finite(norms, logged, config, advice):
    """InputError if one of the gradient norms of the steps after step `logged` is not finite."""
    finite = torch.stack(norms).isfinite().tolist() if norms else []
    if False in finite:
        step = logged + finite.index(False)
        sequences = config.batch_size * config.gradient_accumulation_steps
        raise InputError(f"step {step + 1}: the gradient norm is not finite (sequences "
                         f"{step * sequences} to {(step + 1) * sequences - 1} of the training "
                         f"order); {advice}")


def main():
    began = time.perf_counter()
    config, arm, flags = compose(sys.argv[1:])
    if flags["help"]:
        print(__doc__ + explain(config))
        return
    check(config, flags["dry_run"] or world_size())
    prepared = not flags["dry_run"] or (Path("data") / config.dataset).exists()
    data = Data(config.dataset, config.block_size) if prepared else None
    if data and config.vocab_size not in (0, data.tokenizer.vocab_size):
        raise InputError(f"{data.folder} has a vocabulary of {data.tokenizer.vocab_size:,}, "
                         f"vocab_size={config.vocab_size} wants another")
    if flags["dry_run"]:
        return dry_run(config, arm, data, flags["dry_run"])

    place = this_place(config.device)
    model = build_model(asdict(config), data.tokenizer)
    folder = RunFolder(config, arm, data, place, flags["overwrite"] and not is_restart())
    torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    model.to(place.device)
    optimizer = make_optimizer(model, config)
    join_ranks(place)
    step = folder.restore(model, optimizer)
    forward = torch.compile(model) if config.compile == "True" else model

    sequences = config.batch_size * config.gradient_accumulation_steps
    tokens_per_step = sequences * config.block_size
    epochs = config.max_steps * sequences / data.blocks("train")
    counts, peak = model.num_params(), place.peak_flops()
    counts["in_use"] = model.transformer.wte.params_in_use(data.tokenizer.vocab_size)
    folder.begin({"config": asdict(config), "arm": arm, "params": counts, "data": data.sha256,
                  "world_size": place.world, "tokens_per_step": tokens_per_step, "epochs": epochs}
                 | describe_machine(place.device, place.world))
    place.say(f"{folder.path}: {arm}, {counts['total']:,} parameters ({counts['input']:,} input of "
              f"which {counts['in_use']:,} in use, {counts['body']:,} body, {counts['head']:,} "
              f"head), {tokens_per_step:,} tokens per step, {epochs:.2f} epochs, {config.dtype} on "
              f"{place.device}")
    if step >= config.max_steps:
        place.say(f"{folder.path} is finished: step {step} of {config.max_steps}; "
                  "--overwrite starts over")
    advice = (f"lower learning_rate or raise warmup_steps; {folder.path}/ckpt.pt is the last good "
              "state")
    stop = StopRequest()
    stopping, validation_due = False, folder.fresh  # a fresh run is validated before it learns
    start = logged_at = time.perf_counter()
    first = logged = step
    norms = []  # gradient norms since the last line
    validated, clipped, speed = step, 0, None  # of the last validation; and since then
    common, share = common_ids(data, config, place)
    embed = torch.no_grad()(model.transformer.wte)

    while True:
        if validation_due:
            before = time.perf_counter()
            loss, bits_per_byte = validate(forward, data, config, place)
            if not math.isfinite(loss):
                raise InputError(f"step {step}: the validation loss is {loss}; {advice}")
            folder.log({"step": step, "val_loss": loss, "val_ppl": math.exp(loss),
                        "val_bpb": bits_per_byte, "input_norm": model.input_norm(),
                        "input_rms": rms(embed(common), share), "input_speed": speed,
                        "clipped": clipped / max(1, step - validated)})
            place.say(f"step {step}/{config.max_steps} | validation loss {loss:.4f} nats, "
                      f"perplexity {math.exp(loss):.2f}, {bits_per_byte:.4f} bits/byte")
            folder.best = min(folder.best, [loss, step])
            folder.save(step, model, optimizer)
            if place.rank == 0:
                loss_picture(folder.records, config.name, folder.path / "loss.png")
            if step >= config.max_steps:
                scores = evaluate(model, data, config, place, epochs)
                if place.rank == 0:
                    save_evaluation(folder.path / "eval.npz", scores)
            validated, clipped = step, 0
            logged_at += time.perf_counter() - before
        elif stopping:
            refuse_non_finite(norms, logged, config, advice)
            folder.save(step, model, optimizer)
        if stopping or step >= config.max_steps:
            break

        validation_due = (step + 1) % config.eval_interval == 0 or step + 1 == config.max_steps
        old = embed(common) if validation_due else None
        loss, norm, crc = train_step(step, forward, model, optimizer, data, config, place)
        if validation_due:  # how far this step moved the input, measured, not derived
            speed = rms(embed(common) - old, share) / max(rms(old, share), 1e-30)
        norms.append(norm)
        step += 1

        stopping = bool(stop.received) and place.world == 1
        if step % config.log_interval == 0 or step == 1 or validation_due:
            # ranks hear of a signal at different moments, so they agree on it here
            sums = [loss.item(), crc, len(stop.received)]
            loss, crc, signals = place.sum(torch.tensor(sums, dtype=torch.float64)).tolist()
            stopping = stopping or signals > 0
            refuse_non_finite(norms, logged, config, advice)
            clipped += sum(n.item() > config.grad_clip > 0 for n in norms)
            now, lr = time.perf_counter(), learning_rate(step - 1, config)
            seconds = (now - logged_at) / (step - logged)
            rate = tokens_per_step / seconds
            folder.log({"step": step, "loss": loss, "grad_norm": norms[-1].item(), "lr": lr,
                        "ms": seconds * 1e3, "tokens_per_s": rate, "batch_crc": int(crc)})
            mfu = f" | MFU {100 * rate * model.flops_per_token() / peak:.1f} %" if peak else ""
            left = clock((now - start) / (step - first) * (config.max_steps - step))
            said = f" | first step {now - began:.1f} s after the start" if step == first + 1 else ""
            place.say(f"step {step}/{config.max_steps} | loss {loss:.4f} | lr {lr:.2e} | "
                      f"{seconds * 1e3:.0f} ms | {rate:,.0f} tokens/s{mfu} | {left} left{said}")
            logged_at, logged, norms = now, step, []
    leave_ranks()
    if step < config.max_steps:
        place.say(f"stopped at step {step}, saved to {folder.path}/ckpt.pt; the same command again "
                  "continues from there")
        return stop.exit_status()


if __name__ == "__main__":
    run(main)
