"""Keys, config files and the command line: everything that a run is asked for, checked before
anything is written.

    config, arm, flags = compose(["configs/tiny.py", "configs/kron.py", "--seed=2"])
    check(config, world=1)
"""
import ast
import difflib
import importlib.util
import inspect
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from lib.common import InputError

ROOT = Path(__file__).resolve().parent.parent

# The keys that make an arm. Runs that are compared may differ in these, in seed and in name.
ARM_KEYS = ("code", "lift", "head", "head_bias", "pos_dim", "rows", "rank", "code_width", "buckets",
            "embed_std", "embed_lr_mult", "code_form")


@dataclass
class Config:
    """Every key, with the GPT-2 124M recipe as its defaults (nanoGPT's names and values where it
    has them). The comments are what `train.py --help` prints."""
    dataset: str = "fineweb-edu"    # data/<dataset>, made by prepare.py
    name: str = ""                  # out/<name>; empty: named from the config files and the seed
    seed: int = 1337                # decides the initial weights, the batches and the codes
    max_steps: int = 4768           # 2.5B tokens
    batch_size: int = 16            # sequences that go through the model at once
    gradient_accumulation_steps: int = 32  # over all ranks: a step has batch_size * this sequences
    vocab_size: int = 0             # 0: what the data has; else the data must have exactly this
    block_size: int = 1024          # context, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768               # d, the model width
    dropout: float = 0.0
    bias: bool = False
    positions: str = "learned"      # or rotary
    code: str = "learned"           # the arm: this key and those down to code_form
    lift: str = "none"              # none (learned), tile or linear
    head: str = "tied"              # table: V x d; tied: the input's rows; code: its own W
    head_bias: bool = False         # a trained number per token, added to its logit
    embed_std: float = 0.0          # rms of the input per coordinate at the start; 0: natural
    embed_lr_mult: float = 1.0      # the input's learning rate over the rest's; its decay is / this
    pos_dim: int = 16               # P: how many bytes of a token kron and its kin see
    rows: int = 0                   # of W (random, hash, trigram); 0: 4,096 (random: 256 P)
    rank: int = 0                   # r (lowrank); 0: 62
    code_width: int = 0             # D (phase); 0: 1,536
    buckets: int = 0                # m (qr); 0: ceil(sqrt V)
    code_form: str = "on_the_fly"   # or table: the same vectors
    learning_rate: float = 6e-4     # at the peak
    min_lr: float = 6e-5            # at the last step
    warmup_steps: int = 700
    weight_decay: float = 0.1       # on matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0          # largest gradient norm; 0: no limit
    eval_interval: int = 250        # steps between validations; each writes ckpt.pt and loss.png
    eval_tokens: int = 2_097_152    # validation tokens, spread evenly over val.bin
    log_interval: int = 10          # steps between lines
    dtype: str = "auto"             # bfloat16, float32; auto: bfloat16 where hardware multiplies it
    device: str = "auto"            # cuda, cpu
    compile: str = "auto"           # True, False; auto: on cuda
    wandb_log: bool = False


TYPES = {f.name: f.type for f in fields(Config)}

# key: (lowest, highest) value. Those in POSITIVE must be above 0.
RANGES = {
    "seed": (0, 2**32 - 1),
    "vocab_size": (0, math.inf),
    "min_lr": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
    "grad_clip": (0, math.inf),
    "embed_std": (0, math.inf),
    "beta1": (0, 0.9999999),
    "beta2": (0, 0.9999999),
}
POSITIVE = ("max_steps", "batch_size", "gradient_accumulation_steps", "eval_interval",
            "eval_tokens", "log_interval", "learning_rate", "embed_lr_mult")


def explain(config):
    """What --help prints of every key: its effective value and its comment in `Config`."""
    field = re.compile(r"^    (\w+): \w+ = [^#\n]*# (.*)$", re.M)
    comments = dict(field.findall(inspect.getsource(Config)))
    lines = []
    for key in TYPES:
        option = f"--{key}={getattr(config, key)}"
        lines.append(f"  {option:40} {comments.get(key, '')}".rstrip())
    return "\n".join(lines)


def assign(config, key, value, where):
    """config.key = value, if the key exists and the value has its type (an int may be written 1e4).

    InputError says what is near.
    """
    if key not in TYPES:
        near = difflib.get_close_matches(key, TYPES, 1)
        raise InputError(f"{where}: unknown key '{key}'"
                         + (f", did you mean '{near[0]}'?" if near else ""))
    kind = TYPES[key]
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and type(value) is int:
        value = float(value)
    if key == "compile":
        value = str(value)
    wrong_type = type(value) is not kind
    if wrong_type or (kind is float and not math.isfinite(value)):
        article = "an" if kind is int else "a"
        raise InputError(f"{where}: {key}={value!r} is not {article} {kind.__name__}")
    setattr(config, key, value)


def read_config(path):
    """A config file -> {key: literal}. It is parsed, never run: plain assignments of literals,
    comments, nothing else. `config/kron.py` finds configs/kron.py."""
    places = [Path(path), ROOT / path, ROOT / "configs" / Path(path).name]
    found = [p for p in places if p.is_file()]
    if not found:
        known = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
        raise InputError(f"{path}: no such config (there are {', '.join(known)})")
    values = {}
    try:
        for node in ast.parse(found[0].read_bytes()).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
                continue
            plain = isinstance(node, ast.Assign) and len(node.targets) == 1
            if not plain or not isinstance(node.targets[0], ast.Name):
                raise InputError(f"{path}, line {node.lineno}: "
                                 "only assignments like key = value are read")
            values[node.targets[0].id] = ast.literal_eval(node.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: not a config of plain assignments ({error})") from None
    return modernise(values)


def modernise(values):
    """Keys and values as today's names say them: configs, logs and checkpoints of before keep
    loading."""
    values = dict(values)
    if "run" in values:
        values["name"] = values.pop("run")
    if "tie" in values:
        values["head"] = "tied" if values.pop("tie") else "table"
        if values.get("code", "learned") != "learned":
            values.pop("embed_std", None)  # it had no meaning for these
    return values


def parse_value(key, text):
    """The value of --key=text: the text itself where the key is a str, else the literal it is."""
    if TYPES.get(key) is str:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text  # `assign` says that it has the wrong type


def parse_flag(key, text):
    """The value of a flag: --overwrite, or --dry_run with a number of GPUs."""
    if key == "dry_run":
        if not re.fullmatch(r"[1-9]\d*", text or "1"):
            raise InputError(f"--dry_run={text}: it takes a number of GPUs, as in --dry_run=8")
        return int(text or 1)
    if text not in ("", "True", "False"):
        raise InputError(f"--{key}={text}: --{key} is a flag")
    return text != "False"


def compose(argv):
    """Command line -> (Config, its arm's name, flags {overwrite, dry_run, help}).

    Files compose left to right, options come on top. InputError for what cannot be meant.
    """
    config, arm, names = Config(), "bpe_tied", []
    flags = {"overwrite": False, "dry_run": 0, "help": False}
    for arg in argv:
        if not arg.startswith("-"):
            values = read_config(arg)
            for key, value in values.items():
                assign(config, key, value, arg)
            names.append(Path(arg).stem)
            if any(key in ARM_KEYS for key in values):
                arm = names[-1]
            continue
        key, equals, text = arg.lstrip("-").partition("=")
        if key in flags or arg == "-h":
            key = "help" if arg == "-h" else key
            flags[key] = parse_flag(key, text)
        elif not equals or not arg.startswith("--"):
            raise InputError(f"{arg}: options are written --key=value")
        else:
            assign(config, key, parse_value(key, text), arg)
            if key in ARM_KEYS:
                arm += f",{key}={text}"
    config.name = config.name or "-".join([*(names or ["default"]), f"s{config.seed}"])
    return config, arm, flags


def check(config, world):
    """Refuse values and combinations that cannot be trained. Settles every `auto`."""
    for key, (low, high) in RANGES.items():
        if not low <= getattr(config, key) <= high:
            raise InputError(f"{key}={getattr(config, key)} is out of range")
    for key in POSITIVE:
        if getattr(config, key) <= 0:
            raise InputError(f"{key}={getattr(config, key)}: must be positive")
    if "/" in config.name or config.name.startswith("."):
        raise InputError(f"name='{config.name}' is not a plain folder name")
    sequences = config.batch_size * config.gradient_accumulation_steps
    mine = sequences // world
    if sequences % world or mine % min(config.batch_size, mine):
        raise InputError(f"batch_size * gradient_accumulation_steps = {sequences} sequences cannot "
                         f"be dealt evenly to {world} ranks in micro-batches of "
                         f"{config.batch_size}")
    choose_hardware(config)
    if config.wandb_log and not importlib.util.find_spec("wandb"):
        raise InputError("wandb_log=True, but wandb is not installed (pip install wandb)")


def choose_hardware(config):
    """Settle device, dtype and compile, or refuse what this machine has not."""
    if config.device == "auto":
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.device not in ("cuda", "cpu"):
        raise InputError(f"device='{config.device}': cuda, cpu and auto are known")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda': no CUDA device is here")
    if config.dtype == "auto":
        if config.device == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        config.dtype = "bfloat16" if fast else "float32"
    if config.dtype not in ("bfloat16", "float32"):
        raise InputError(f"dtype='{config.dtype}': bfloat16, float32 and auto are known")
    if config.compile == "auto":
        config.compile = str(config.device == "cuda")
    if config.compile not in ("True", "False"):
        raise InputError(f"compile='{config.compile}': True, False and auto are known")
