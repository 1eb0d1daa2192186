"""What this machine says about speed and memory.

    python bench.py codes                             # every code against nn.Embedding
    python bench.py codes configs/kron.py configs/wide.py --compile=True
    python bench.py step configs/kron.py configs/bpe_untied.py --batch_size=1
    python bench.py step configs/kron.py configs/kron.py,code_form=table

A config file that sets `code` is an arm, with keys of its own after commas; other files and
--key=value are train.py's and hold for all arms. `codes` runs forward and backward of each input
embedding alone, in float32, in both forms where a code has two; `step` whole steps by train.py's
own train_step, reading included. Token ids come from data/NAME, made by prepare.py: in natural text
tokens repeat, which is the point.

What is in one table is measured alternately: A B A B ... Times are medians (lowest - highest) of
the rounds, ratios those of the ratios within each round.
"""
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from lib.config import ROOT, check, compose, read_config
from lib.data import Data, sequence_blocks, to_device
from lib.distributed import start_ranks
from lib.errors import Parser, run, whole_number, write_atomic
from lib.hardware import peak_flops
from lib.provenance import describe_machine
from lib.run_folder import build_model
from lib.tables import markdown_table
from model import CODES
from train import make_optimizer, train_step

WARMUP = 2  # uncounted rounds: memory is allocated, graphs are compiled


# ---- measuring ---------------------------------------------------------------------------------

def measure(works, rounds):
    """{name: work(i)} -> {name: seconds in each round}. A round runs each work once, until the GPU
    is done, if there is one."""
    times = {name: [] for name in works}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for i in tqdm(range(WARMUP + rounds), "rounds", leave=False):
        for name, work in works.items():
            wait()
            start = time.perf_counter()
            work(i)
            wait()
            if i >= WARMUP:
                times[name].append(time.perf_counter() - start)
    return times


def spread(values, digits):
    """Numbers -> "median (lowest - highest)"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"


def compare(works, rounds, base):
    """Measure works: {name: {"ms", "ratio"}}, each a list over rounds; ratios are to `base`."""
    times = measure(works, rounds)
    return {name: {"ms": [1e3 * s for s in seconds],
                   "ratio": [mine / its for mine, its in zip(seconds, times[base])]}
            for name, seconds in times.items()}


def compiled(module, config):
    """A module as a config wants it to run."""
    if config.compile != "True":
        return module
    torch._dynamo.config.recompile_limit = 64  # arms share code that is compiled for each
    return torch.compile(module)


# ---- which arms ---------------------------------------------------------------------------------

def read_arms(args, default):
    """The command line -> {name: Config}; `default` are the arms where it names none."""
    shared, arms = ["--dataset=docstrings"], []
    for arg in args:
        is_arm = not arg.startswith("-") and "code" in read_config(arg.split(",")[0])
        (arms if is_arm else shared).append(arg)
    found = {}
    for arm in arms or default:
        path, *changes = arm.split(",")
        config, _, _ = compose([*shared, path, *(f"--{change}" for change in changes)])
        check(config, 1)
        found[",".join([Path(path).stem, *changes])] = config
    return found


def one_of_each_code():
    """Config files, one for each input embedding in the order of CODES, a plain table last."""
    keys = ("code", "lift", "pos_dim", "rows", "rank", "code_width", "code_levels", "buckets")
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py"), key=lambda path: len(path.stem)):
        values = read_config(path)
        if values.get("code", "learned") != "learned":
            found.setdefault(tuple(values.get(key) for key in keys), str(path))
    order = list(CODES)
    files = sorted(found.values(), key=lambda path: order.index(read_config(path)["code"]))
    return [*files, "configs/bpe_untied.py"]


# ---- what is measured ---------------------------------------------------------------------------

def alone(module, config, batches, gradient):
    """Forward and backward of an input embedding, as a function of the round."""
    forward = compiled(module, config)

    def work(i):
        e = forward(batches[i % len(batches)])
        if e.requires_grad:
            e.backward(gradient)
            module.zero_grad(set_to_none=True)
    return work


def bench_codes(arms, rounds):
    """Print time and memory of each arm's input; returns the numbers."""
    config = next(iter(arms.values()))
    data, device = Data(config.dataset, config.block_size), torch.device(config.device)
    batches = []
    for i in range(8):
        blocks = sequence_blocks(data.blocks("train"), config.seed, i * config.batch_size,
                                 config.batch_size)
        batches.append(to_device(data.read("train", blocks), device)[0].flatten())
    gradient = torch.randn(len(batches[0]), config.n_embd, device=device)
    distinct = statistics.mean(len(ids.unique()) for ids in batches)
    print(f"{len(gradient):,} tokens of {config.dataset}, {distinct:,.0f} of them distinct, "
          f"V {data.tokenizer.vocab_size:,}, d {config.n_embd}, float32, "
          f"compile={config.compile}, {device}\n")
    works, memory = {}, {}
    for name, config in arms.items():
        both = hasattr(CODES[config.code], "set_form") and "code_form" not in name
        for form in ("on_the_fly", "table") if both else (config.code_form,):
            keys = asdict(config) | {"n_layer": 1, "code_form": form}
            module = build_model(keys, data.tokenizer).transformer.wte.to(device)
            row = name if form == config.code_form else f"{name},code_form={form}"
            works[row] = alone(module, config, batches, gradient)
            memory[row] = {"weights_mb": sum(p.nbytes for p in module.parameters()) / 1e6,
                           "buffers_mb": sum(b.nbytes for b in module.buffers()) / 1e6}
    base = list(works)[-1]
    result = {name: row | memory[name] for name, row in compare(works, rounds, base).items()}
    print(markdown_table(
        ["input", "ms", f"ratio to {base}", "weights MB", "buffers MB"],
        [[name, spread(row["ms"], 2), spread(row["ratio"], 3), f"{row['weights_mb']:,.2f}",
          f"{row['buffers_mb']:,.2f}"] for name, row in result.items()]))
    return result


def bench_step(arms, rounds):
    """Print time, tokens/s and MFU of each arm's training step; returns the numbers."""
    works, flops = {}, {}
    for name, config in arms.items():
        data, device = Data(config.dataset, config.block_size), start_ranks(config.device)
        model = build_model(asdict(config), data.tokenizer).to(device)
        flops[name] = model.flops_per_token()
        works[name] = trainer(model, config, data)
    tokens = config.batch_size * config.gradient_accumulation_steps * config.block_size
    print(f"{config.batch_size} x {config.gradient_accumulation_steps} x {config.block_size} "
          f"tokens of {config.dataset}, {config.n_layer} layers, d {config.n_embd}, "
          f"V {data.tokenizer.vocab_size:,}, {config.dtype}, compile={config.compile}, "
          f"{device}\n")
    result, peak, rows = compare(works, rounds, name), peak_flops(device, 1), []
    for name, row in result.items():
        row["tokens_per_s"] = [1e3 * tokens / ms for ms in row["ms"]]
        row["mfu"] = [rate * flops[name] / peak for rate in row["tokens_per_s"]] if peak else None
        mfu = spread([100 * share for share in row["mfu"]], 1) if peak else "-"
        rows.append([name, spread(row["ms"], 1), spread(row["ratio"], 3),
                     spread(row["tokens_per_s"], 0), mfu])
    print(markdown_table(["arm", "ms", f"ratio to {name}", "tokens/s", "MFU %"], rows))
    return result


def trainer(model, config, data):
    """train.py's own step as a function of its number."""
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(model.device.type, enabled=config.dtype == "float16")
    forward = compiled(model, config)

    def work(i):
        train_step(i, forward, model, optimizer, scaler, data, config)
    return work


WHAT = {"codes": bench_codes, "step": bench_step}


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=WHAT, metavar="|".join(WHAT))
    parser.add_argument("configs", nargs="*", help="config files and train.py's --key=value")
    parser.add_argument("--rounds", type=whole_number, default=11, help="how often all is measured")
    parser.add_argument("--out", help="write OUT.json")
    args, options = parser.parse_known_args()
    default = {"codes": one_of_each_code(), "step": ["configs/kron.py", "configs/bpe_untied.py"]}
    arms = read_arms([*args.configs, *options], default[args.what])
    torch.set_float32_matmul_precision("high")  # as in training
    about = describe_machine(start_ranks(next(iter(arms.values())).device), 1)
    print(f"{about['hardware']}, torch {about['torch']}, commit {about['commit']}")
    about["result"] = WHAT[args.what](arms, args.rounds)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(about, indent=1) + "\n"
        write_atomic(f"{args.out}.json", lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run(main)
