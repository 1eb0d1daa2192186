"""What this machine says about speed and memory.

    python bench.py codes          # every input embedding alone, forward and backward
    python bench.py step configs/kron.py configs/bpe_untied.py --batch_size=1
    python bench.py step configs/kron.py configs/kron.py,code_form=table    # with keys of its own
    python bench.py step configs/tiny.py configs/bpe_tied.py --nanogpt=../nanoGPT
    python bench.py sample configs/kron.py    # cached against recomputing; also of out/RUN
    python bench.py memory         # bytes of buffers and tables
    python bench.py prepare        # prepare.py's encoding against tiktoken's bare batch call

What is in one table is measured alternately: A B A B ... Ratios are medians of the ratios within
each round, with the lowest and the highest. Token ids come from --dataset (data/NAME, made by
prepare.py): in natural text tokens repeat, which is the point. `step` times train.py's own
train_step, reading included; --nanogpt=FOLDER, where you have a clone of nanoGPT, beside it that
program on the same data and shapes, by its own log.
"""
import json
import math
import os
import pickle
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, fields
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

from codes import KroneckerEmbedding
from lib import tokenizer
from lib.bins import encode, new_state
from lib.run_folder import build_model, load_model
from lib.errors import InputError, Parser, run, whole_number, write_atomic
from lib.config import ROOT, check, compose, read_config
from lib.data import Data, sequence_blocks, to_device
from lib.provenance import describe_machine
from lib.distributed import this_place
from lib.tables import markdown_table
from lib.generation import generate
from lib.sources import CPUS, local
from model import CODES, GPTConfig, make_embedding
from train import make_optimizer, train_step

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


# ---- measuring ---------------------------------------------------------------------------------

def once(work, i):
    """Run work(i): (wall seconds, CPU seconds), until the GPU is done, if there is one."""
    if CUDA:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work(i)
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def several(work, count, i):
    """Medians of `count` calls of `work`: (wall seconds, CPU seconds)."""
    walls, cpus = zip(*[once(work, i * count + k) for k in range(count)])
    return statistics.median(walls), statistics.median(cpus)


def alternately(measures, rounds, warmup=2):
    """{name: measure(round) -> (wall, CPU seconds)} -> {name: what it gave in each round}. Every
    round measures each once, after `warmup` uncounted rounds."""
    times = {name: [] for name in measures}
    for i in tqdm(range(warmup + rounds), "rounds", leave=False):
        for name, measure in measures.items():
            seconds = measure(i)
            if i >= warmup:
                times[name].append(seconds)
    return times


def spread(values, digits):
    """Numbers -> "median (lowest - highest)"; "-" if they are not known."""
    if None in values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"


def show(times, base, what=None, how_many=1):
    """Print a table of medians and of ratios to `base`; with `what`, of which a call makes
    `how_many`, also how many a second. Returns its numbers as a dict."""
    head = ["", "wall ms", "CPU ms", f"ratio to {base}"] + ([f"{what}/s"] if what else [])
    rows, saved = [], {}
    for name, seconds in times.items():
        wall = [1e3 * wall for wall, _ in seconds]
        cpu = [None if cpu is None else 1e3 * cpu for _, cpu in seconds]
        ratio = [mine / its for (mine, _), (its, _) in zip(seconds, times[base])]
        saved[name] = {"wall_ms": wall, "cpu_ms": cpu, "ratio": ratio}
        row = [name, spread(wall, 1), spread(cpu, 1), spread(ratio, 3)]
        if what:
            rate = [1e3 * how_many / ms for ms in wall]
            saved[name][f"{what}_per_s"] = rate
            row.append(spread(rate, 0))
        rows.append(row)
    print(markdown_table(head, rows))
    return saved


# ---- input embeddings alone --------------------------------------------------------------------

def input_configs():
    """{arm: Config}: one of configs/ for each code and lift, in the order of model.CODES."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        if "code" in read_config(path):
            config, arm, _ = compose([str(path)])
            found.setdefault((config.code, config.lift), (arm, config))
    order = list(CODES)
    return dict(sorted(found.values(), key=lambda pair: order.index(pair[1].code)))


def published(kron, padded, d, P):
    """The published package's module with the buffers and weights of ours; None if the package is
    not installed."""
    try:
        from kronecker_embeddings import KroneckerEmbedding as Published
    except ImportError:
        print("(the package kronecker-embeddings is not installed: it is not in the table)\n")
        return None
    module = Published(padded, d, pos_dim=P, byte_buffer=kron.bytes[:padded],
                       length_buffer=kron.length[:padded])
    with torch.no_grad():
        module.projection.weight.copy_(kron.W.T)
    return module


def codes(args):
    """Forward and backward of every input embedding alone; the output's gradient is given."""
    torch._dynamo.config.recompile_limit = 64  # the codes share a forward that is compiled for each
    data = Data(args.dataset, 1024)
    V, d, N = data.tokenizer.vocab_size, 768, 8192
    raw = tokenizer.token_bytes(data.tokenizer)
    blocks = [sequence_blocks(data.blocks("train"), 1337, 8 * i, N // 1024) for i in range(8)]
    batches = [to_device(data.read("train", some), DEVICE)[0].flatten() for some in blocks]
    distinct = statistics.mean(len(ids.unique()) for ids in batches)

    shape = {"vocab_size": V, "n_embd": d}
    padded = GPTConfig(**shape).padded_size
    modules = {"nn.Embedding": nn.Embedding(padded, d)}
    for arm, config in input_configs().items():
        if issubclass(CODES[config.code], nn.Embedding):
            continue  # the first row
        keys = {f.name: getattr(config, f.name) for f in fields(GPTConfig)}
        modules[arm] = make_embedding(GPTConfig(**keys | shape), raw)
        modules[arm].reset_parameters(config.seed, "")
    P = modules["kron"].pos_dim
    print(f"V = {V:,} ({padded:,} padded), d = {d}, P = {P}, {N:,} tokens of {args.dataset}, "
          f"{distinct:,.0f} distinct, float32, {DEVICE}\n")
    theirs = published(modules["kron"], padded, d, P)
    if theirs:
        with torch.no_grad():
            ids = batches[0].cpu()
            difference = (theirs(ids) - modules["kron"](ids)).abs().max().item()
        print("largest difference between kron's output and the published package's, same "
              f"weights: {difference:.1e}\n")
        modules["published, dynamic"] = theirs

    gradient = torch.randn(N, d, device=DEVICE)

    def both(module, forward, i):
        e = forward(batches[i % len(batches)])
        if e.requires_grad:
            e.backward(gradient)
            for p in module.parameters():
                p.grad = None
    measures = {}
    for name, module in modules.items():
        module.to(DEVICE)
        forward = torch.compile(module, fullgraph=True) if CUDA else module
        measures[name] = partial(once, partial(both, module, forward))
    return show(alternately(measures, args.rounds or 11), "nn.Embedding")


# ---- whole training steps ----------------------------------------------------------------------

def candidates(args):
    """The command line of `step` -> {name: Config}. A file that sets `code` is a candidate, with
    changes of its own after commas; other files and options are shared by all."""
    shared, arms = [], []
    for arg in args.configs or ["configs/kron.py", "configs/bpe_untied.py"]:
        is_arm = not arg.startswith("--") and "code" in read_config(arg.split(",")[0])
        (arms if is_arm else shared).append(arg)
    found = {}
    for arm in arms or ["configs/bpe_tied.py"]:
        path, *changes = arm.split(",")
        config, _, _ = compose([*shared, path, *(f"--{change}" for change in changes),
                                f"--dataset={args.dataset}"])
        check(config, 1)
        found[",".join([Path(path).stem, *changes])] = config
    return found


def trainer(config, data):
    """train.py's own step as a function of its number."""
    place = this_place(config.device)
    model = build_model(asdict(config), data.tokenizer).to(place.device)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(place.device.type, enabled=config.dtype == "float16")
    forward = torch.compile(model) if config.compile == "True" else model

    def step(i):
        train_step(i, forward, model, optimizer, scaler, data, config, place)
    return step


def step(args):
    """Whole training steps. Ratios are to nanoGPT, else to the last candidate."""
    configs = candidates(args)
    first = next(iter(configs.values()))
    tokens = first.batch_size * first.gradient_accumulation_steps * first.block_size
    data = Data(first.dataset, first.block_size)
    clone = args.nanogpt and is_nanogpt(args.nanogpt)
    if args.nanogpt and not clone:
        print(f"(nanoGPT is not in the table: {args.nanogpt} is no clone of it)\n")
    count = NANOGPT_STEPS if clone else 1
    measures = {name: partial(several, trainer(config, data), count)
                for name, config in configs.items()}
    if clone:
        measures["nanoGPT"] = partial(nanogpt, args.nanogpt, first, data)
    print(f"{first.batch_size} x {first.gradient_accumulation_steps} x {first.block_size} tokens "
          f"of {first.dataset}, {first.n_layer} layers, d {first.n_embd}, "
          f"V {data.tokenizer.vocab_size:,}, {first.dtype}, compile={first.compile}, "
          f"{first.device}\n")
    times = alternately(measures, args.rounds or 7, warmup=0 if clone else 2)
    return show(times, list(measures)[-1], "tokens", tokens)


# ---- nanoGPT -----------------------------------------------------------------------------------

NANOGPT_STEPS, NANOGPT_WARMUP = 10, 3  # a round; the first of its steps is also an evaluation


def is_nanogpt(folder):
    """Whether a folder has nanoGPT's three files."""
    return all((Path(folder) / f"{name}.py").is_file() for name in ("train", "model",
                                                                    "configurator"))


def nanogpt(folder, config, data, _):
    """Run the train.py of a clone on our bins with the shapes of `config`: (median wall seconds of
    its steps as its log says, None).

    It reads configurator.py and data/ below the folder that it is started in, and meta.pkl for the
    vocabulary. InputError if it cannot do what is asked, or does not run.
    """
    if data.dtype != np.uint16 or config.positions != "learned":
        raise InputError("nanoGPT reads ids of 16 bits and has learned positions only")
    folder, steps = Path(folder).resolve(), NANOGPT_WARMUP + NANOGPT_STEPS
    vocabulary = GPTConfig(vocab_size=data.tokenizer.vocab_size).padded_size
    same = ("batch_size", "gradient_accumulation_steps", "block_size", "n_layer", "n_head",
            "n_embd", "dropout", "bias", "learning_rate", "min_lr", "weight_decay", "beta1",
            "beta2", "grad_clip", "device", "dtype", "compile")
    options = {key: getattr(config, key) for key in same}
    options |= {"dataset": "ours", "out_dir": "out", "max_iters": steps - 1, "warmup_iters": 1,
                "lr_decay_iters": steps, "log_interval": 1, "eval_interval": 10**9,
                "eval_iters": 1}
    with tempfile.TemporaryDirectory() as place:
        ours = Path(place) / "data" / "ours"
        ours.mkdir(parents=True)
        for split in ("train", "val"):
            (ours / f"{split}.bin").symlink_to((data.folder / f"{split}.bin").resolve())
        (ours / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocabulary}))
        (Path(place) / "configurator.py").symlink_to(folder / "configurator.py")
        command = [sys.executable, str(folder / "train.py"),
                   *(f"--{key}={value}" for key, value in options.items())]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    said = re.findall(r"^iter \d+: .*\btime ([\d.]+)ms", done.stdout, re.M)
    if done.returncode or len(said) < steps:
        reason = (done.stderr.strip() or "no times in its log").splitlines()[-1]
        raise InputError(f"{folder}/train.py: exit status {done.returncode}, {reason}")
    return statistics.median(float(ms) for ms in said[NANOGPT_WARMUP:]) / 1e3, None


# ---- the rest ----------------------------------------------------------------------------------

def sample(args):
    """Greedy generation after a prompt of 16 tokens, with the KV cache and recomputing every
    position for every token."""
    first = args.configs[0] if args.configs else "configs/kron.py"
    if first.endswith(".py") or first.startswith("--"):
        argv = [*(args.configs or [first]), f"--dataset={args.dataset}"]
        config, name, _ = compose(argv)
        tok = Data(config.dataset, config.block_size).tokenizer
        model = build_model(asdict(config), tok).eval().to(DEVICE)
    else:
        name = first
        model, tok, _ = load_model(first, DEVICE)
    text = ("The quick brown fox jumps over the lazy dog, and then it runs away from all of the "
            "others.")
    prompt = torch.tensor([tok.encode(text)[:16]], device=DEVICE)
    said = {}

    def say(use_cache, _):
        ids = generate(model, prompt, args.tokens, temperature=0, use_cache=use_cache)
        said[use_cache] = [i.item() for i in ids]
    measures = {"cached": partial(once, partial(say, True)),
                "recomputing": partial(once, partial(say, False))}
    times = alternately(measures, args.rounds or 3, warmup=0)
    print(f"{name}, {args.tokens} tokens, {DEVICE}; same text: {said[True] == said[False]}\n")
    return show(times, "cached", "tokens", args.tokens)


def memory(args):
    """Bytes of what each form keeps, at the paper's V = 131,072, P = 32."""
    V, P = 131_072, 32
    kron = KroneckerEmbedding(V, 1, [b"x" * (1 + i % P) for i in range(V)], P)
    buffers = sum(b.nbytes for b in kron.buffers())
    table = torch.empty(V, 256 * P, dtype=torch.bfloat16, device="meta").nbytes
    print(markdown_table(["what", "MB"], [
        [f"byte buffer, on the fly, V = {V:,}, P = {P}", f"{buffers / 1e6:,.2f}"],
        [f"the V x D table in bfloat16, D = {256 * P:,}", f"{table / 1e6:,.2f}"]]))
    return {"buffer_bytes": buffers, "table_bytes": table}


def preparation(args):
    """prepare.py's encode (hashing, splitting, writing and all) against the library's bare batch
    call on the same documents, tiktoken's or that of Hugging Face."""
    data = Data(args.dataset, 1)
    tok, ids = data.tokenizer, data.map("train")
    ends = np.flatnonzero(ids == tok.eot)[:20_000]  # that many documents, as text again
    starts = [0, *ends + 1]
    texts = [tok.decode(ids[start:end].tolist()) for start, end in zip(starts, ends)]
    tokens = sum(map(len, tok.encode_batch(texts, CPUS)))

    if isinstance(tok, tokenizer.HuggingFaceTokenizer):
        name, options = "encode_batch", {"add_special_tokens": False}
    else:
        name, options = "encode_ordinary_batch", {"num_threads": CPUS}

    def bare(_):
        getattr(tok.encoding, name)(texts, **options)

    def ours(_):
        everything = {"train": math.inf, "val": math.inf}
        with tempfile.TemporaryDirectory() as folder:
            sources = [local("texts", None, lambda: ((text, 0.0) for text in texts))]
            encode(Path(folder), sources, tok, 0.02, everything, new_state(sources))
    measures = {name: partial(once, bare), "prepare.py": partial(once, ours)}
    return show(alternately(measures, args.rounds or 7), name, "tokens", tokens)


WHAT = {"codes": codes, "step": step, "sample": sample, "memory": memory, "prepare": preparation}


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=WHAT, metavar="|".join(WHAT))
    parser.add_argument("configs", nargs="*", default=[],
                        help="of step and sample: config files (unset: kron, and bpe_untied "
                             "beside it); of sample also a run")
    parser.add_argument("--dataset", default="docstrings",
                        help="data/NAME that token ids and the tokenizer come from")
    parser.add_argument("--rounds", type=whole_number, help="how often everything is measured")
    parser.add_argument("--tokens", type=whole_number, default=512, help="to generate (sample)")
    parser.add_argument("--nanogpt", metavar="FOLDER", help="a clone of nanoGPT, to time (step)")
    parser.add_argument("--out", help="write OUT.json")
    args, options = parser.parse_known_args()
    for option in options:
        is_key = option.startswith("--") and "=" in option
        if args.what not in ("step", "sample") or not is_key:
            raise InputError(f"unknown option {option} (--help shows the options; step and sample "
                             "take train.py's --key=value too)")
    args.configs = [*args.configs, *options]
    about = describe_machine(DEVICE, 1)
    print(f"{about['hardware']}, torch {about['torch']}, commit {about['commit']}")
    result = WHAT[args.what](args)
    if args.out:
        about["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about["command"] = shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(about | {"result": result}, indent=1) + "\n"
        write_atomic(f"{args.out}.json", lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run(main)
