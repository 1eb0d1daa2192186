"""What this machine says about speed and memory.

    python bench.py codes                             # every code against nn.Embedding
    python bench.py codes configs/kron.py configs/wide.py --compile=True
    python bench.py step configs/kron.py configs/bpe_untied.py --batch_size=1
    python bench.py step configs/kron.py configs/kron.py,code_form=table
    python bench.py step configs/tiny.py configs/kron.py configs/wide.py --minutes=8  # how many fit

A config file that sets `code` is an arm, with keys of its own after commas; other files and
--key=value are train.py's and hold for all arms. `codes` times forward and backward of each input
alone, in float32, in both forms where a code has two; `step` times train.py's train_step. Token ids
are those of data/docstrings, or of --dataset=NAME: real text repeats tokens.

Rows are measured in turn: A B A B ... Times are the median (lowest - highest) of the rounds; a
ratio is to the last row, round by round.
"""
import json
import math
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from lib.config import ROOT, check, compose, read_config
from lib.data import Data, sequence_blocks, to_device
from lib.distributed import start_ranks
from lib.errors import InputError, Parser, run, whole_number, write_atomic
from lib.provenance import describe_machine
from lib.run_folder import build_model
from lib.tables import markdown_table, refuse_folder
from model import CODES
from train import make_optimizer, train_step


def measure(works, rounds):
    """{name: work(i)} -> {name: {"ms", "ratio" to the last}}, a list over rounds each. A round runs
    each work once, until the GPU is done, if there is one."""
    ms = {name: [] for name in works}
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for i in tqdm(range(rounds + 2), "rounds", leave=False):
        for name, work in works.items():
            wait()
            start = time.perf_counter()
            work(i)
            wait()
            ms[name].append(1e3 * (time.perf_counter() - start))
    last = list(ms.values())[-1][2:]  # the first two rounds allocate and compile
    return {name: {"ms": mine[2:], "ratio": [a / b for a, b in zip(mine[2:], last)]}
            for name, mine in ms.items()}


def spread(values, digits):
    """Numbers -> "median (lowest - highest)"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"


def steps_for(ms, minutes):
    """How many steps every arm has so that all end in `minutes`, a multiple of 10 and at least 20.
    ms: a step of each arm. A run of the demo also takes about 8 s to start and to be scored at its
    end, and for validations the time of 30 steps and of every twentieth."""
    share = (60e3 * minutes - 8e3 * len(ms)) / sum(ms)  # as many steps of every arm fit
    return max(20, int(0.9 * (share - 30)) // 10 * 10)  # a tenth: machines grow slower


def every_input():
    """A config file for each input that is no table, and last a table's."""
    files = {str(path): read_config(path) for path in sorted((ROOT / "configs").glob("*.py"))}
    found = [path for path, values in files.items()
             if values.get("head") == "table" and values.get("code", "learned") != "learned"]
    return [*found, "configs/bpe_untied.py"]


def read_arms(args, default, both_forms):
    """The command line -> {name: Config}; `default` where it names no arm."""
    shared, arms, found = ["--dataset=docstrings"], [], {}
    for arg in args:
        is_arm = not arg.startswith("-") and "code" in read_config(arg.split(",")[0])
        (arms if is_arm else shared).append(arg)
    for arm in arms or default:
        path, *changes = arm.split(",")
        config, _, _ = compose([*shared, path, *(f"--{change}" for change in changes)])
        check(config, 1)
        name = ",".join([Path(path).stem, *changes])
        found[name] = config
        if both_forms and hasattr(CODES[config.code], "set_form") and "code_form" not in name:
            other = "table" if config.code_form == "on_the_fly" else "on_the_fly"
            found[f"{name},code_form={other}"] = replace(config, code_form=other)
    return found


def input_alone(config, data, device):
    """(forward and backward of an input as a function of the round, its memory in MB)."""
    module = build_model(asdict(config) | {"n_layer": 1}, data.tokenizer).transformer.wte.to(device)
    forward = torch.compile(module) if config.compile == "True" else module
    blocks = sequence_blocks(data.blocks("train"), config.seed, 0, 8 * config.batch_size)
    batches = to_device(data.read("train", blocks), device)[0].flatten().chunk(8)
    gradient = torch.randn(len(batches[0]), config.n_embd, device=device)

    def work(i):
        e = forward(batches[i % len(batches)])
        if e.requires_grad:
            e.backward(gradient)
            module.zero_grad(set_to_none=True)
    return work, {"weights MB": sum(p.nbytes for p in module.parameters()) / 1e6,
                  "buffers MB": sum(b.nbytes for b in module.buffers()) / 1e6}


def whole_step(config, data, device):
    """(train.py's own step as a function of its number, {})."""
    model = build_model(asdict(config), data.tokenizer).to(device)
    optimizer = make_optimizer(model, config)
    forward = torch.compile(model) if config.compile == "True" else model
    scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
    return lambda i: train_step(i, forward, model, optimizer, scaler, data, config), {}


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=("codes", "step"), metavar="codes|step")
    parser.add_argument("configs", nargs="*", help="config files and train.py's --key=value")
    parser.add_argument("--rounds", type=whole_number, default=11, help="how often all is measured")
    parser.add_argument("--minutes", type=float, help="how many steps all arms can have in these")
    parser.add_argument("--out", help="write OUT.json")
    args, options = parser.parse_known_args()
    codes = args.what == "codes"
    if args.minutes is not None and (codes or not 0 <= args.minutes < math.inf):
        raise InputError("--minutes goes with step, and is a number from 0 on")
    if args.out:
        refuse_folder(args.out)
    default = every_input() if codes else ["configs/kron.py", "configs/bpe_untied.py"]
    arms = read_arms([*args.configs, *options], default, both_forms=codes)
    config = next(iter(arms.values()))
    for key in ("dataset", "block_size", "batch_size", "gradient_accumulation_steps", "compile"):
        if any(getattr(arm, key) != getattr(config, key) for arm in arms.values()):
            raise InputError(f"{key} must be equal in all arms: give --{key}=VALUE")
    data, device = Data(config.dataset, config.block_size), start_ranks(config.device)
    torch.set_float32_matmul_precision("high")  # as in training
    torch._dynamo.config.recompile_limit = 64  # arms share code, which is compiled for each
    about = describe_machine(device, 1)
    print(f"{about['hardware']}, torch {about['torch']}, commit {about['commit']}\n"
          f"{config.batch_size} x {config.block_size} tokens of {config.dataset}, a step has "
          f"{config.gradient_accumulation_steps} such; {config.n_layer} layers, d {config.n_embd}, "
          f"V {data.tokenizer.vocab_size:,}, {config.dtype}, compile={config.compile}\n")
    make = input_alone if codes else whole_step
    made = {name: make(arm, data, device) for name, arm in arms.items()}
    result = measure({name: work for name, (work, _) in made.items()}, args.rounds)
    rows = []
    for name, (_, facts) in made.items():
        ms, ratio = spread(result[name]["ms"], 2), spread(result[name]["ratio"], 3)
        rows.append([name, ms, ratio, *(f"{fact:,.2f}" for fact in facts.values())])
        result[name] |= facts
    print(markdown_table([args.what, "ms", f"ratio to {name}", *facts], rows))
    if args.minutes is not None:
        ms = [statistics.median(found["ms"]) for found in result.values()]
        about["steps"] = steps_for(ms, args.minutes)
        print(f"\n{statistics.mean(ms):.0f} ms a step here: {about['steps']} steps an arm")
    if args.out:
        text = json.dumps(about | {"result": result}, indent=1) + "\n"
        write_atomic(f"{args.out}.json", lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run(main)
