"""What this machine says about speed and memory. Everything in one table is measured alternately in one run: A B A B ...

    python bench.py codes                                   # input embeddings alone, forward and backward, on natural tokens
    python bench.py step configs/kron.py configs/bpe_untied.py --batch_size=1     # whole training steps of the 124M shape
    python bench.py step configs/kron.py configs/kron.py,code_form=table          # a candidate may change keys of its own
    python bench.py step configs/tiny.py configs/bpe_tied.py --nanogpt            # the loop against nanoGPT's, same shapes
    python bench.py sample configs/kron.py                  # greedy generation, cached against recomputing; or out/RUN
    python bench.py memory                                  # bytes of buffers and tables
    python bench.py prepare                                 # prepare.py's encoding against bare encode_ordinary_batch

--rounds=N repeats, --out=NAME writes NAME.json. Token ids come from --dataset (data/NAME, made by prepare.py): in natural text
tokens repeat, which is the point. Ratios are medians of the ratios within each round, with the lowest and the highest.
"""
import json
import math
import os
import shlex
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import prepare
from lib import tokenizer
from codes import KroneckerEmbedding
from lib.common import InputError, Parser, run, whole_number, write_atomic
from lib.checkpoint import build_model, load_model
from lib.config import check, compose, read_config
from lib.data import Data, sequence_blocks, to_device
from lib.machine import describe_machine
from lib.report import markdown_table
from model import GPTConfig, make_embedding
from train import make_optimizer

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def once(work, i):
    """Run work(i) and return (wall seconds, CPU seconds); on CUDA the wall seconds are those between two events."""
    cpu = time.process_time()
    if CUDA:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work(i)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3, time.process_time() - cpu
    wall = time.perf_counter()
    work(i)
    return time.perf_counter() - wall, time.process_time() - cpu


def alternately(works, rounds, warmup=2):
    """{name: work(i)} -> {name: [(wall, CPU seconds) per round]}: every round runs each once, after `warmup` uncounted rounds."""
    times = {name: [] for name in works}
    for i in tqdm(range(warmup + rounds), "rounds", leave=False):
        for name, work in works.items():
            seconds = once(work, i)
            if i >= warmup:
                times[name].append(seconds)
    return times


def spread(values, digits):
    """median (lowest - highest) as text."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def show(times, base, per_second=None):
    """Print a table of medians and of ratios to `base`; returns it as a dict.
    per_second: (what, how many of them one round is)."""
    head, rows, saved = ["", "wall ms", "CPU ms", f"ratio to {base}"] + ([f"{per_second[0]}/s"] if per_second else []), [], {}
    for name, seconds in times.items():
        wall, cpu = ([1e3 * x for x in column] for column in zip(*seconds))
        ratios = [a / b for (a, _), (b, _) in zip(seconds, times[base])]
        rows.append([name, spread(wall, 1), spread(cpu, 1), spread(ratios, 3)])
        saved[name] = {"wall_ms": wall, "cpu_ms": cpu, "ratio": ratios}
        if per_second:
            rates = [per_second[1] / s for s, _ in seconds]
            rows[-1].append(spread(rates, 0))
            saved[name][f"{per_second[0]}_per_s"] = rates
    print(markdown_table(head, rows))
    return saved


def batches(data, sequences):
    """Eight batches as training sees them, blocks from all over the text: [(inputs, targets) of (sequences, T)]."""
    blocks = data.blocks("train")
    return [to_device(data.read("train", sequence_blocks(blocks, 1337, i * sequences, sequences)), DEVICE) for i in range(8)]


# ---- the measurements --------------------------------------------------------------------------------------

def codes(args):
    """Forward and backward of every input embedding alone; the output's gradient is given."""
    data = Data(args.dataset, 1024)
    V, d, P, N = data.tokenizer.vocab_size, 768, 16, 8192
    padded, raw = -(-V // 64) * 64, tokenizer.token_bytes(data.tokenizer)
    ids = [x.flatten() for x, _ in batches(data, N // data.block_size)]
    gradient = torch.randn(N, d, device=DEVICE)
    print(f"V = {V:,} ({padded:,} padded), d = {d}, P = {P}, {N:,} tokens of {args.dataset}, "
          f"{statistics.mean(len(i.unique()) for i in ids):,.0f} distinct, float32, {DEVICE}\n")
    modules = {"nn.Embedding": nn.Embedding(padded, d)}
    for code, lift in (("kron", "linear"), ("random", "linear"), ("binary", "tile"), ("affine", "tile")):
        modules[code] = make_embedding(GPTConfig(vocab_size=V, n_embd=d, pos_dim=P, code=code, lift=lift, head="table"), raw)
    try:
        from kronecker_embeddings import KroneckerEmbedding as Published
    except ImportError:
        print("(the package kronecker-embeddings is not installed: it is not in the table)\n")
    else:
        packed, length = modules["kron"].bytes[:padded], modules["kron"].length[:padded]
        modules["published, dynamic"] = Published(padded, d, pos_dim=P, byte_buffer=packed, length_buffer=length)
    for module in modules.values():
        for p in module.parameters():
            nn.init.normal_(p, std=1 / 64)
        module.to(DEVICE)
    if "published, dynamic" in modules:
        with torch.no_grad():
            modules["published, dynamic"].projection.weight.copy_(modules["kron"].weight.T)
            difference = (modules["published, dynamic"](ids[0]) - modules["kron"](ids[0])).abs().max().item()
        print(f"largest difference between kron's output and the published package's, same weights: {difference:.1e}\n")

    def work(module):
        forward = torch.compile(module, fullgraph=True) if CUDA else module

        def both(i):
            e = forward(ids[i % len(ids)])
            if e.requires_grad:
                e.backward(gradient)
                for p in module.parameters():
                    p.grad = None
        return both
    works = {name: work(module) for name, module in modules.items()}
    return show(alternately(works, args.rounds or 11), "nn.Embedding")


def step(args):
    """Whole training steps: forward, backward, clipping, AdamW. A file that sets `code` is a candidate, with changes of its own
    after commas; other files and options are shared by all. Ratios are to the last candidate."""
    shared, arms = [], []
    for arg in args.configs or ["configs/kron.py", "configs/bpe_untied.py"]:
        (arms if not arg.startswith("--") and "code" in read_config(arg.split(",")[0]) else shared).append(arg)
    works = {}
    for arm in arms or ["configs/bpe_tied.py"]:
        path, *changes = arm.split(",")
        config, name, _ = compose([*shared, path, *(f"--{change}" for change in changes), f"--dataset={args.dataset}"])
        check(config, 1)
        data = Data(config.dataset, config.block_size)
        works[name] = trainer(config, data)
        if args.nanogpt:
            works[f"{name}, nanoGPT's loop"] = nanogpt(config, data)
    print(f"{config.batch_size} x {config.block_size} tokens of {config.dataset}, {config.n_layer} layers, d {config.n_embd}, "
          f"V {data.tokenizer.vocab_size:,}, {config.dtype}, compile={config.compile}, {DEVICE}\n")
    return show(alternately(works, args.rounds or 7), list(works)[-1], ("tokens", config.batch_size * config.block_size))


def trainer(config, data):
    """train.py's step as a function of the round."""
    inputs = batches(data, config.batch_size)
    model = build_model(asdict(config), data.tokenizer).to(DEVICE)
    optimizer = make_optimizer(model, config)
    forward = torch.compile(model) if config.compile == "True" else model
    autocast = torch.autocast(DEVICE.type, torch.bfloat16) if config.dtype == "bfloat16" else nullcontext()

    def one(i):
        with autocast:
            loss = forward(*inputs[i % len(inputs)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return one


def nanogpt(config, data):
    """nanoGPT's step at its CPU settings: float32, whole logits, a fresh memory map and random offsets,
    plain AdamW, loss.item()."""
    model = build_model(asdict(config), data.tokenizer).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(config.beta1, config.beta2),
                                  weight_decay=config.weight_decay, fused=CUDA)
    T = config.block_size

    def one(i):
        tokens = data.map("train")
        offsets = torch.randint(len(tokens) - T, (config.batch_size,))
        x = torch.stack([torch.from_numpy(tokens[o:o + T].astype(np.int64)) for o in offsets]).to(DEVICE)
        y = torch.stack([torch.from_numpy(tokens[o + 1:o + 1 + T].astype(np.int64)) for o in offsets]).to(DEVICE)
        logits = model(x)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    return one


def sample(args):
    """Greedy generation of 512 tokens after a prompt of 16, with the KV cache and recomputing every position for every token."""
    if args.configs and not args.configs[0].endswith(".py") and not args.configs[0].startswith("--"):
        model, tok, _ = load_model(args.configs[0], DEVICE)
        name = args.configs[0]
    else:
        config, name, _ = compose([*(args.configs or ["configs/kron.py"]), f"--dataset={args.dataset}"])
        tok = Data(config.dataset, config.block_size).tokenizer
        model = build_model(asdict(config), tok).eval().to(DEVICE)
    text = "The quick brown fox jumps over the lazy dog, and then it runs away from all of the others."
    prompt = torch.tensor([tok.encode(text)[:16]], device=DEVICE)
    texts = {}

    def work(use_cache):
        def generate(_):
            texts[use_cache] = [i.item() for i in model.generate(prompt, args.tokens, temperature=0, use_cache=use_cache)]
        return generate
    times = alternately({"cached": work(True), "recomputing": work(False)}, args.rounds or 3, warmup=0)
    print(f"{name}, {args.tokens} tokens, {DEVICE}; same text: {texts[True] == texts[False]}\n")
    return show(times, "cached", ("tokens", args.tokens))


def memory(args):
    """Bytes of what each form keeps, at the paper's V = 131,072, P = 32."""
    V, P = 131_072, 32
    kron = KroneckerEmbedding(V, 1, [b"x" * (1 + i % P) for i in range(V)], P)
    buffers = sum(b.nbytes for b in kron.buffers())
    table = torch.empty(V, 256 * P, dtype=torch.bfloat16, device="meta").nbytes
    print(markdown_table(["what", "MB"], [[f"byte buffer, on the fly, V = {V:,}, P = {P}", f"{buffers / 1e6:,.2f}"],
                                          [f"the V x D table in bfloat16, D = {256 * P:,}", f"{table / 1e6:,.2f}"]]))
    return {"buffer_bytes": buffers, "table_bytes": table}


def preparation(args):
    """prepare.py's encode (hashing, splitting, writing and all) against the tokenizer's bare batch call on the same documents."""
    data = Data(args.dataset, 1)
    tok, ids = data.tokenizer, data.map("train")
    ends = np.flatnonzero(ids == tok.eot)[:20_000]  # that many documents, as text again
    texts = [tok.decode(ids[start:end].tolist()) for start, end in zip([0, *ends + 1], ends)]
    tokens = sum(map(len, tok.encode_batch(texts, prepare.CPUS)))

    def ours(_):
        with tempfile.TemporaryDirectory() as folder:
            sources = [prepare.local("texts", None, lambda: ((text, 0.0) for text in texts))]
            prepare.encode(Path(folder), sources, tok, 0.02, {"train": math.inf, "val": math.inf}, prepare.new_state(sources))
    works = {"encode_ordinary_batch": lambda _: tok.encoding.encode_ordinary_batch(texts, num_threads=prepare.CPUS),
             "prepare.py": ours}
    return show(alternately(works, args.rounds or 7), "encode_ordinary_batch", ("tokens", tokens))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=("codes", "step", "sample", "memory", "prepare"))
    parser.add_argument("configs", nargs="*", help="config files (step, sample) or a run (sample)")
    parser.add_argument("--dataset", default="docstrings", help="data/NAME that token ids and the tokenizer come from")
    parser.add_argument("--rounds", type=whole_number, help="how often everything is measured")
    parser.add_argument("--tokens", type=whole_number, default=512, help="to generate (sample)")
    parser.add_argument("--nanogpt", action="store_true", help="measure nanoGPT's loop beside train.py's (step)")
    parser.add_argument("--out", help="write OUT.json")
    args, options = parser.parse_known_args()
    unknown = [o for o in options if not (args.what in ("step", "sample") and o.startswith("--") and "=" in o)]
    if unknown:
        raise InputError(f"unknown option {unknown[0]} "
                         "(--help shows the options; step and sample take train.py's --key=value too)")
    args.configs += options
    about = describe_machine(DEVICE, 1)
    print(f"{about['hardware']}, torch {about['torch']}, commit {about['commit']}")
    result = {"codes": codes, "step": step, "sample": sample, "memory": memory, "prepare": preparation}[args.what](args)
    if args.out:
        about["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about["command"] = shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(f"{args.out}.json",
                     lambda file: file.write((json.dumps(about | {"result": result}, indent=1) + "\n").encode()))


if __name__ == "__main__":
    run(main)
