"""Train one run, in one process or in many.

    python train.py configs/tiny.py configs/kron.py                            # a small CPU run, out/tiny-kron-s1337
    python train.py configs/tiny.py configs/kron.py --seed=2 --max_steps=500   # any key below, on top of the files
    python train.py configs/kron.py --dry_run=8                           # params, FLOPs, memory, hours on 8 GPUs; runs nothing
    torchrun --standalone --nproc_per_node=8 -- train.py configs/kron.py  # GPT-2 124M on eight GPUs; -- lets --run=NAME through

Config files are plain assignments of literals; they compose left to right, then --key=value. Data comes from prepare.py.
Everything a run leaves is in out/RUN: ckpt.pt, best.pt, log.jsonl, loss.png. The same command again continues a run that was
stopped; --overwrite starts over.
"""
import ast
import difflib
import fcntl
import functools
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import tokenizer as tokenizers
from common import ARM_KEYS, InputError, read_log, run, write_atomic
from model import GPT, GPTConfig, build_model, load_checkpoint, save_checkpoint

HERE = Path(__file__).resolve().parent
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}  # dense bf16, vendor's figures


@dataclass
class Config:
    """Every key, with the GPT-2 124M recipe as its defaults (nanoGPT's names and values where it has them)."""
    dataset: str = "fineweb-edu"             # data/<dataset>, made by prepare.py
    run: str = ""                            # out/<run>; empty: named from the config files and the seed
    seed: int = 1337                         # decides the initial weights, the batches and the codes
    max_steps: int = 4768                    # 2.5B tokens
    batch_size: int = 16                     # sequences that go through the model at once
    gradient_accumulation_steps: int = 32    # over all ranks together: a step has batch_size * this sequences, however many ranks
    vocab_size: int = 0                      # 0: what the data has; else the data must have exactly this
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False
    positions: str = "learned"               # or rotary
    code: str = "learned"                    # the arm: these keys are explained in model.py
    lift: str = "none"
    tie: bool = True
    pos_dim: int = 16
    embed_std: float = 0.02
    embed_lr_mult: float = 1.0               # the input's learning rate over the rest's; its weight decay is divided by the same
    code_form: str = "on_the_fly"
    learning_rate: float = 6e-4
    min_lr: float = 6e-5
    warmup_steps: int = 700
    weight_decay: float = 0.1                # on matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0                   # 0: none
    eval_interval: int = 250                 # steps between validations; each writes a checkpoint and loss.png
    eval_tokens: int = 2_097_152             # validation tokens, spread evenly over val.bin
    log_interval: int = 10
    dtype: str = "auto"                      # bfloat16, float32; auto: bfloat16 where the hardware multiplies it
    device: str = "auto"                     # cuda, cpu
    compile: str = "auto"                    # True, False; auto: on cuda
    wandb_log: bool = False


# ---- configuration -----------------------------------------------------------------------------------------

def assign(config, key, value, where):
    """config.key = value if the key exists and the value has its type (an int may be written 1e4);
    InputError says what is near."""
    types = {f.name: f.type for f in fields(Config)}
    if key not in types:
        near = difflib.get_close_matches(key, types, 1)
        raise InputError(f"{where}: unknown key '{key}'" + (f", did you mean '{near[0]}'?" if near else ""))
    kind = types[key]
    if kind is int and isinstance(value, float) and value.is_integer() or kind is float and type(value) is int:
        value = kind(value)
    if kind is str and key == "compile":
        value = str(value)
    if type(value) is not kind or kind is float and not math.isfinite(value):
        raise InputError(f"{where}: {key}={value!r} is not {'an' if kind is int else 'a'} {kind.__name__}")
    setattr(config, key, value)


def read_config(path):
    """A config file -> {key: literal}. It is parsed, never run: plain assignments of literals, comments, nothing else."""
    tries = [p for p in (Path(path), HERE / path, HERE / "configs" / Path(path).name) if p.is_file()]
    if not tries:
        known = sorted(p.stem for p in (HERE / "configs").glob("*.py"))
        raise InputError(f"{path}: no such config (there are {', '.join(known)})")
    values = {}
    try:
        for node in ast.parse(tries[0].read_bytes()).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
                continue
            if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
                raise InputError(f"{path}, line {node.lineno}: only assignments like key = value are read")
            values[node.targets[0].id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: not a config of plain assignments ({error})") from None
    return values


def compose(argv):
    """Command line -> (Config, its arm's name, {resume, overwrite, dry_run}). InputError for anything that cannot be meant."""
    config, arm, names, flags = Config(), "bpe_tied", [], {"resume": False, "overwrite": False, "dry_run": 0}
    for arg in argv:
        if not arg.startswith("--"):
            values = read_config(arg)
            for key, value in values.items():
                assign(config, key, value, arg)
            names.append(Path(arg).stem)
            if values.keys() & set(ARM_KEYS):
                arm = names[-1]
            continue
        key, equals, text = arg[2:].partition("=")
        if key == "dry_run":
            if not re.fullmatch(r"[1-9]\d*", text or "1"):
                raise InputError(f"{arg}: --dry_run takes a number of GPUs, as in --dry_run=8")
            flags[key] = int(text or 1)
            continue
        if key in flags:
            if text not in ("", "True", "False"):
                raise InputError(f"{arg}: --{key} is a flag")
            flags[key] = text != "False"
            continue
        if not equals:
            raise InputError(f"{arg}: options are written --key=value")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = text
        assign(config, key, text if isinstance(getattr(Config, key, None), str) else value, arg)
        if key in ARM_KEYS:
            arm += f",{key}={text}"
    config.run = config.run or "-".join([*(names or ["default"]), f"s{config.seed}"])
    return config, arm, flags


def check(config, world):
    """Refuse values and combinations that cannot be trained, before anything is written. Settles every `auto`."""
    positive = ("max_steps", "batch_size", "gradient_accumulation_steps", "eval_interval", "eval_tokens", "log_interval",
                "learning_rate", "embed_lr_mult")
    if config.vocab_size < 0:
        raise InputError(f"vocab_size={config.vocab_size}: must be 0 (that of the data) or more")
    for key, low, high in [(k, 0, math.inf) for k in ("min_lr", "warmup_steps", "weight_decay", "grad_clip", "embed_std")] + \
                          [("seed", 0, 2**32 - 1), ("beta1", 0, 0.9999999), ("beta2", 0, 0.9999999)]:
        if not low <= getattr(config, key) <= high:
            raise InputError(f"{key}={getattr(config, key)} is out of range")
    for key in positive:
        if getattr(config, key) <= 0:
            raise InputError(f"{key}={getattr(config, key)}: must be positive")
    if "/" in config.run or config.run.startswith("."):
        raise InputError(f"run='{config.run}' is not a plain folder name")
    if config.embed_lr_mult != 1 and (config.tie or config.lift == "tile"):
        raise InputError(f"embed_lr_mult={config.embed_lr_mult}: this input has no weights of its own "
                         f"(code={config.code}, tie={config.tie})")
    sequences = config.batch_size * config.gradient_accumulation_steps
    if sequences % world or (sequences // world) % min(config.batch_size, sequences // world):
        raise InputError(f"batch_size * gradient_accumulation_steps = {sequences} sequences cannot be dealt evenly to "
                         f"{world} ranks in micro-batches of {config.batch_size}")
    if config.device == "auto":
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.device not in ("cuda", "cpu") or config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device='{config.device}': "
                         f"{'no CUDA device is here' if config.device == 'cuda' else 'cuda, cpu and auto are known'}")
    if config.dtype == "auto":
        fast = (torch.cuda.is_bf16_supported() if config.device == "cuda" else
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        config.dtype = "bfloat16" if fast else "float32"
    if config.dtype not in ("bfloat16", "float32"):
        raise InputError(f"dtype='{config.dtype}': bfloat16, float32 and auto are known")
    if config.compile == "auto":
        config.compile = str(config.device == "cuda")
    if config.compile not in ("True", "False"):
        raise InputError(f"compile='{config.compile}': True, False and auto are known")
    if config.wandb_log and not importlib.util.find_spec("wandb"):
        raise InputError("wandb_log=True, but wandb is not installed (pip install wandb)")


# ---- data --------------------------------------------------------------------------------------------------

class Data:
    """data/NAME as prepare.py left it: checked against the hashes in its meta.json, then read block by block.

    Block i of a split is tokens i*T .. (i+1)*T inclusive: T inputs and, shifted by one, T targets.
    InputError if anything is amiss.
    """

    def __init__(self, name, block_size):
        self.folder, self.block_size = Path("data") / name, block_size
        if not (self.folder / "meta.json").is_file():
            there = sorted(p.parent.name for p in Path("data").glob("*/meta.json"))
            raise InputError(f"{self.folder}: no prepared data there (data/ has: {', '.join(there) or 'nothing'}); "
                             "prepare.py makes it")
        try:
            meta = json.loads((self.folder / "meta.json").read_bytes())
            if meta.pop("checksum") != hashlib.sha256(json.dumps(meta).encode()).hexdigest():
                raise ValueError("it does not have the hash it was written with")
            self.tokenizer = tokenizers.from_state(meta["tokenizer"])
            self.dtype, self.tokens, self.sha256 = np.dtype(meta["dtype"]), meta["tokens"], meta["sha256"]
            sizes = {split: self.tokens[split] * self.dtype.itemsize for split in ("train", "val")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.folder}/meta.json is damaged ({type(error).__name__}: {error}); "
                             "prepare the data again") from None
        for split, size in sizes.items():
            path = self.folder / f"{split}.bin"
            if not path.is_file():
                raise InputError(f"{path} is missing; prepare the data again")
            if path.stat().st_size != size:
                raise InputError(f"{path} has {path.stat().st_size:,} bytes, meta.json says {size:,}; prepare the data again")
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256[split]:
                    raise InputError(f"{path} does not have the hash that meta.json says; prepare the data again")
            if self.tokens[split] <= block_size:
                raise InputError(f"{path} has {self.tokens[split]:,} tokens, a block needs {block_size + 1:,} (block_size + 1)")
            if self.map(split).max() >= self.tokenizer.vocab_size:
                raise InputError(f"{path} holds ids beyond the vocabulary of {self.tokenizer.vocab_size:,}")

    def map(self, split):
        """The split's tokens as a memory map; opened anew each time, so that pages read do not pile up in this process."""
        return np.memmap(self.folder / f"{split}.bin", self.dtype, mode="r")

    def blocks(self, split):
        """How many blocks a split has."""
        return (self.tokens[split] - 1) // self.block_size

    def read(self, split, blocks):
        """Block numbers -> (len(blocks), T + 1) array of token ids."""
        tokens, T = self.map(split), self.block_size
        return np.stack([tokens[i * T:(i + 1) * T + 1] for i in blocks])


@functools.lru_cache(maxsize=2)
def epoch_order(blocks, seed, epoch):
    """The order in which an epoch visits the blocks. RandomState's stream is frozen: the same in every numpy version."""
    return np.random.RandomState([seed, epoch]).permutation(blocks)


def sequence_blocks(blocks, seed, first, count):
    """Which blocks the training sequences number first .. first + count - 1 are: every block once an epoch, epochs shuffled."""
    return [int(epoch_order(blocks, seed, i // blocks)[i % blocks]) for i in range(first, first + count)]


def to_device(rows, device):
    """(n, T + 1) token ids -> inputs and targets, (n, T) int64 each."""
    ids = torch.from_numpy(rows.astype(np.int64))
    if device.type == "cuda":
        ids = ids.pin_memory().to(device, non_blocking=True)
    return ids[:, :-1], ids[:, 1:]


@torch.no_grad()
def validate(model, data, config, rank, world, device, autocast):
    """Mean loss in nats and bits per byte over a fixed set of validation blocks, dealt to the ranks and summed in float64."""
    count = max(1, min(config.eval_tokens // config.block_size, data.blocks("val")))
    mine = [i * data.blocks("val") // count for i in range(count)][rank::world]  # spread evenly over the split
    width = np.array([len(b) for b in tokenizers.token_bytes(data.tokenizer)])
    width[data.tokenizer.eot] = 0  # it separates documents and is no text
    if data.tokenizer.name == "unicode":
        width[0xD800:0xE000] = 2  # a surrogate is half of a character, whose UTF-8 is four bytes
    sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
    model.eval()
    for i in range(0, len(mine), config.batch_size):
        rows = data.read("val", mine[i:i + config.batch_size])
        x, y = to_device(np.pad(rows, ((0, config.batch_size - len(rows)), (0, 0))), device)  # one shape, compiled once
        y = y.clone()  # inputs and targets share their memory
        y[len(rows):] = -100  # which the loss ignores
        with autocast:
            loss = model(x, y)
        tokens = len(rows) * config.block_size
        sums += torch.tensor([loss.double().item() * tokens, tokens, width[rows[:, 1:]].sum()], dtype=torch.float64)
    model.train()
    nats, tokens, size = all_reduce(sums, device).tolist()
    return nats / tokens, nats / math.log(2) / size


# ---- small helpers -----------------------------------------------------------------------------------------

def all_reduce(tensor, device):
    """Sum of a small CPU tensor over all ranks."""
    if dist.is_initialized():
        tensor = tensor.to(device)
        dist.all_reduce(tensor)
    return tensor.cpu()


def learning_rate(step, config):
    """Linear warmup, then a cosine from learning_rate down to min_lr at the last step (nanoGPT's rule)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - config.min_lr)


def make_optimizer(model, config):
    """Fused AdamW. Weight decay on matrices only; the input has its own learning rate and, inversely, weight decay."""
    own = {id(p) for p in model.transformer.wte.parameters()}
    groups = [dict(params=[], weight_decay=config.weight_decay / config.embed_lr_mult, lr_mult=config.embed_lr_mult),
              dict(params=[], weight_decay=config.weight_decay, lr_mult=1.0),
              dict(params=[], weight_decay=0.0, lr_mult=1.0)]
    for p in model.parameters():
        groups[0 if id(p) in own else 1 if p.dim() >= 2 else 2]["params"].append(p)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate,
                             betas=(config.beta1, config.beta2), fused=True)


def describe_machine(device, world):
    """Hardware, versions and commit: what results are quoted with."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), cpu)
    cuda = device.type == "cuda"
    hardware = (f"{world} x {torch.cuda.get_device_name(device)}" if cuda else
                f"{cpu}, {world} x {torch.get_num_threads()} threads")
    git, capture = ["git", "-C", str(HERE)], dict(capture_output=True, text=True)
    try:
        commit = subprocess.run(git + ["rev-parse", "--short=12", "HEAD"], check=True, **capture).stdout.strip()
        commit += "+changes" if subprocess.run(git + ["status", "--porcelain", "-uno"], **capture).stdout else ""
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {"hardware": hardware, "python": platform.python_version(), "torch": torch.__version__, "commit": commit,
            "command": shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def plot(records, title, path):
    """loss.png: training loss and validation loss against steps."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for key, style in (("loss", dict(color="0.7", lw=1, label="training batch")),
                       ("val_loss", dict(color="C0", marker="o", ms=4, label="validation"))):
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            axes.plot(*zip(*points), **style)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))
    plt.close(figure)


def clock(seconds):
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"


def estimate_memory(model, config, micro):
    """Bytes at the peak of a step in eager mode, at the start of the backward pass:
    {"weights and optimizer", "activations", "loss"}.

    AdamW in float32 keeps 12 bytes per weight besides the gradient; bfloat16 autocast adds copies of what it multiplies. A block
    keeps, per token, 38 d bytes in bfloat16 (68 d in float32): two norms' inputs and outputs, q, k, v, the attention twice,
    4 d twice of the MLP. The loss keeps float32 log-probabilities; on a GPU the logits stand beside them in both formats.
    """
    c, counts, tokens = model.config, model.num_params(), micro * config.block_size
    half = config.dtype == "bfloat16"
    head = c.padded_size * c.n_embd
    dense_table = 4 * c.padded_size * 256 * c.pos_dim if c.code_form == "table" and c.code in ("kron", "random") else 0
    return {"weights and optimizer": 12 * counts["total"] + 2 * half * (counts["body"] + head) + 4 * head + dense_table,
            "activations": (38 if half else 68) * c.n_layer * c.n_embd * tokens,
            "loss": tokens * c.padded_size * (4 if config.device == "cpu" else 10 if half else 8)}


def dry_run(config, arm, data, gpus):
    """Print what a run would take on `gpus` ranks.
    The model is built on the meta device: nothing is allocated, nothing written."""
    # GPT-2's vocabulary where nothing else is said
    vocab_size = data.tokenizer.vocab_size if data else config.vocab_size or GPTConfig.vocab_size
    shape = {f.name: getattr(config, f.name) for f in fields(GPTConfig)} | {"vocab_size": vocab_size, "code_form": "on_the_fly"}
    with torch.device("meta"):
        model = GPT(GPTConfig(**shape), [])
    model.config.code_form = config.code_form
    counts, table = model.num_params(), model.config.padded_size * config.n_embd
    sequences = config.batch_size * config.gradient_accumulation_steps
    tokens = config.max_steps * sequences * config.block_size
    flops, flops_per_second = model.flops_per_token() * tokens, 0.45 * PEAK_FLOPS["H100"] * gpus
    micro = min(config.batch_size, sequences // gpus)
    memory = estimate_memory(model, config, micro)
    epochs = (f"{config.max_steps * sequences / data.blocks('train'):.2f} epochs of {config.dataset}" if data else
              f"{config.dataset} is not prepared yet")
    print(f"{arm}, seed {config.seed}, vocabulary {vocab_size:,} ({model.config.padded_size:,} with padding)\n"
          f"parameters: {counts['total']:,} = {counts['input']:,} input + {counts['body']:,} body + {counts['head']:,} head; "
          + (f"{table - counts['input']:,} fewer than with a learned input table" if config.code != "learned" else
             "the input is a learned table") +
          f"\nsteps: {config.max_steps:,} of {sequences * config.block_size:,} tokens ({sequences} x {config.block_size}) = "
          f"{tokens:,} tokens, {epochs}\ncompute: {model.flops_per_token():.3g} FLOPs per token, {flops:.3g} in all: "
          f"{flops / flops_per_second / 3600:,.1f} hours on {gpus} H100 at 45 % MFU\n"
          f"memory per GPU, micro-batch {micro}, eager {config.dtype}: {sum(memory.values()) / 1e9:.2f} GB = "
          + " + ".join(f"{v / 1e9:.2f} {k}" for k, v in memory.items()) + "; compiled it is less")


# ---- the run -----------------------------------------------------------------------------------------------

def main():
    began = time.perf_counter()
    if "--help" in sys.argv or "-h" in sys.argv:
        print(__doc__)
        print("\n".join(f"  --{f.name}={f.default}" for f in fields(Config)))
        return
    rank, local_rank, world = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    config, arm, flags = compose(sys.argv[1:])
    check(config, flags["dry_run"] or world)
    prepared = not flags["dry_run"] or (Path("data") / config.dataset).exists()
    data = Data(config.dataset, config.block_size) if prepared else None
    if data and config.vocab_size not in (0, data.tokenizer.vocab_size):
        raise InputError(f"{data.folder} has a vocabulary of {data.tokenizer.vocab_size:,}, "
                         f"vocab_size={config.vocab_size} wants another")
    try:
        if flags["dry_run"]:
            return dry_run(config, arm, data, flags["dry_run"])
        model = build_model(asdict(config), data.tokenizer)
    except ValueError as error:
        raise InputError(str(error)) from None
    device = torch.device("cuda", local_rank) if config.device == "cuda" else torch.device("cpu")

    # Continue what is there, unless it is another run under the same name.
    out = Path("out") / config.run
    overwrite = flags["overwrite"] and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"  # torchrun's restarts continue
    checkpoint = None
    if (out / "ckpt.pt").exists() and not overwrite:
        checkpoint = load_checkpoint(out)
        for key, value in (asdict(config) | {"arm": arm, "data": data.sha256}).items():
            if checkpoint["config"].get(key) != value and key != "wandb_log":
                raise InputError(f"{out} was made with {key}={checkpoint['config'].get(key)}, now {key}={value}; "
                                 "name another --run, or start over with --overwrite")
    elif flags["resume"]:
        raise InputError(f"--resume: {out} has no checkpoint to continue from")
    out.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        lock = open(out / "lock", "a")  # held until this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out} is being trained by another process") from None
        for name in ("ckpt.pt", "best.pt") if overwrite else ():
            (out / name).unlink(missing_ok=True)
    torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32

    model.to(device)
    params = list(model.parameters())
    optimizer = make_optimizer(model, config)
    # after the first optimizer, which imports torch.distributed.nn: its default arguments would keep the group alive to the end
    if world > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # torchrun's store outlives a restart: without a prefix a rank may read the address that a killed one left there, and
        # wait for it. Several machines count their restarts apart: see the README.
        store, _, _ = next(dist.rendezvous("env://"))
        one_machine = world == int(os.environ.get("LOCAL_WORLD_SIZE", 0))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else "0", store)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world)
    step, records = 0, []
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        step = checkpoint["step"]  # a killed run may have logged beyond it
        records = [r for r in read_log(out / "log.jsonl")[0] if r.get("step", 0) <= step]
    forward = torch.compile(model) if config.compile == "True" else model
    autocast = torch.autocast(device.type, torch.bfloat16) if config.dtype == "bfloat16" else nullcontext()
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)

    def say(text):
        if rank == 0:
            print(text, flush=True)

    def log(record):
        records.append(record)
        if rank == 0:
            with open(out / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
            if wandb:
                wandb.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def save():
        if rank == 0:
            save_checkpoint(out / "ckpt.new", {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "best": best,
                "tokenizer": data.tokenizer.state, "config": asdict(config) | {"arm": arm, "data": data.sha256}})
            if best[1] == step:  # a second name for the same file costs no disk
                os.link(out / "ckpt.new", out / "best.new")
                os.replace(out / "best.new", out / "best.pt")
            os.replace(out / "ckpt.new", out / "ckpt.pt")
            plot(records, config.run, out / "loss.png")

    def evaluate():
        nonlocal best
        loss, bpb = validate(forward, data, config, rank, world, device, autocast)
        if not math.isfinite(loss):
            raise InputError(f"step {step}: the validation loss is {loss}; {advice}")
        log({"step": step, "val_loss": loss, "val_ppl": math.exp(loss), "val_bpb": bpb, "input_norm": model.input_norm()})
        say(f"step {step}/{config.max_steps} | validation loss {loss:.4f} nats, perplexity {math.exp(loss):.2f}, "
            f"{bpb:.4f} bits/byte")
        best = min(best, [loss, step])
        save()

    def refuse_non_finite():
        bad = (~torch.stack(norms or [torch.zeros(())]).isfinite()).nonzero()
        if len(bad):
            bad = logged + int(bad[0])
            raise InputError(f"step {bad + 1}: the gradient norm is not finite (sequences {bad * sequences} to "
                             f"{(bad + 1) * sequences - 1} of the training order); {advice}")

    best = [math.inf, 0] if checkpoint is None else checkpoint["best"]  # the lowest validation loss so far, and its step
    fresh, checkpoint = checkpoint is None, None  # it is as large as the model and the optimizer's state together
    advice = f"lower learning_rate or raise warmup_steps; {out}/ckpt.pt is the last good state"
    sequences = config.batch_size * config.gradient_accumulation_steps  # in a step, over all ranks
    rows = sequences // world                                           # of those, mine
    micro = min(config.batch_size, rows)
    tokens_per_step = sequences * config.block_size
    epochs = config.max_steps * sequences / data.blocks("train")
    counts = model.num_params()
    wandb = None
    if rank == 0:
        header = {"config": asdict(config), "arm": arm, "params": counts, "data": data.sha256, "world_size": world,
                  "tokens_per_step": tokens_per_step, "epochs": epochs} | describe_machine(device, world)
        records = records or [header]
        write_atomic(out / "log.jsonl", lambda file: file.write("".join(json.dumps(r) + "\n" for r in records).encode()))
        if config.wandb_log:
            import wandb
            wandb.init(project="input-embeddings", name=config.run, config=asdict(config), resume="allow", id=config.run)
    say(f"{out}: {arm}, {counts['total']:,} parameters ({counts['input']:,} input, {counts['body']:,} body, "
        f"{counts['head']:,} head), {tokens_per_step:,} tokens per step, {epochs:.2f} epochs, {config.dtype} on {device}")
    if step >= config.max_steps:
        say(f"{out} is finished: step {step} of {config.max_steps}; --overwrite starts over")
    asked = []  # signals so far: the first asks to finish the step and save, a second exits at once

    def stop(number, _):
        asked.append(number)
        if len(asked) > 1:
            os._exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    if fresh:
        evaluate()
    start, first = time.perf_counter(), step
    since, logged, norms, stopping = start, step, [], False
    while step < config.max_steps and not stopping:
        lr = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_mult"]
        if config.dropout:  # a pure function of (seed, step, rank), so that a resumed run drops the same units
            torch.manual_seed(hash((config.seed, step, rank)))
        mean_loss, crc = torch.zeros((), device=device), 0
        for i in range(rows // micro):
            block_numbers = sequence_blocks(data.blocks("train"), config.seed, step * sequences + rank * rows + i * micro, micro)
            ids = data.read("train", block_numbers)
            crc += sum(zlib.crc32(row) for row in ids)  # a sum: the same however the rows are dealt to ranks
            x, y = to_device(ids, device)
            with autocast:
                loss = forward(x, y) * (micro / sequences)  # so that the ranks' gradients add up to that of the whole batch
            loss.backward()
            mean_loss += loss.detach()
        if world > 1:
            for p in params:
                dist.all_reduce(p.grad)
        norms.append(torch.nn.utils.clip_grad_norm_(params, config.grad_clip or math.inf))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1

        validation_due = step % config.eval_interval == 0 or step == config.max_steps
        if step % config.log_interval == 0 or step == 1 or validation_due:
            # ranks hear of a signal at different moments, so they agree on it here
            sums = torch.tensor([mean_loss.item(), crc, len(asked)], dtype=torch.float64)
            loss, crc, stopping = all_reduce(sums, device).tolist()
            refuse_non_finite()
            now = time.perf_counter()
            seconds = (now - since) / (step - logged)
            rate = tokens_per_step / seconds
            log({"step": step, "loss": loss, "grad_norm": norms[-1].item(), "lr": lr, "ms": seconds * 1e3, "tokens_per_s": rate,
                 "batch_crc": int(crc)})
            mfu = f" | MFU {100 * rate * model.flops_per_token() / (peak * world):.1f} %" if peak else ""
            left = clock((now - start) / (step - first) * (config.max_steps - step))
            said = f" | first step {now - began:.1f} s after the start" if step == first + 1 else ""
            say(f"step {step}/{config.max_steps} | loss {loss:.4f} | lr {lr:.2e} | {seconds * 1e3:.0f} ms | "
                f"{rate:,.0f} tokens/s{mfu} | {left} left{said}")
            since, logged, norms = now, step, []

        if validation_due:
            before = time.perf_counter()
            evaluate()
            since += time.perf_counter() - before
        elif stopping or asked and world == 1:
            stopping = True
            refuse_non_finite()
            save()
    if dist.is_initialized():
        dist.destroy_process_group()
    if step < config.max_steps:
        say(f"stopped at step {step}, saved to {out}/ckpt.pt; the same command again continues from there")
        return 128 + asked[0] if asked else 128 + signal.SIGTERM  # another rank may have heard it first


if __name__ == "__main__":
    run(main)
