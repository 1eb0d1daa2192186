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
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

from lib.errors import InputError
from lib.hardware import parse_gpus, this_hardware
from model import CODES

ROOT = Path(__file__).resolve().parent.parent

# The keys that make an arm. Runs that are compared may differ in these, in seed and in name.
ARM_KEYS = ("code", "lift", "head", "head_bias", "pos_dim", "rows", "rank", "code_width",
            "code_levels", "buckets", "embed_std", "embed_lr_mult", "input_multiplier",
            "input_norm", "code_form")


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
    head_bias: str = "none"         # a trained number per token, from zero or unigram (log p) on
    embed_std: float = 0.0          # rms of the input per coordinate at the start; 0: natural
    embed_lr_mult: float = 1.0      # the input's learning rate over the rest's; its decay is / this
    input_multiplier: float = 1.0   # the input times this; a tied head's rows are not
    input_norm: bool = False        # RMSNorm of the input before the first block
    pos_dim: int = 16               # P: how many bytes of a token kron and its kin see
    rows: int = 0                   # of W (random, hash, trigram); 0: 4,096 (random: 256 P)
    rank: int = 0                   # r (lowrank); 0: 62
    code_width: int = 0             # K' (affine; 0: minimal, -1: widest), D (phase; 0: 1,536)
    code_levels: str = "bits"       # 0 and 1; signs: -1 and +1 (binary, affine)
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
    dtype: str = "auto"             # bfloat16, float16, float32; auto: what the hardware multiplies
    device: str = "auto"            # cuda, cpu, mps
    compile: str = "auto"           # True, False; auto: on cuda, where Triton is
    wandb_log: bool = False


TYPES = {f.name: f.type for f in fields(Config)}

# Options that are no keys of a run.
FLAGS = {
    "overwrite": "start over; the run that is there stays until the new one has a checkpoint",
    "extend": "go on with a larger max_steps: the same weights, the new cosine",
    "verify": "read all of the data again; else it is believed as at the run's first start",
    "dry_run": "say what it takes on one H100 (=8, =T4, =2x4090: on others); runs nothing",
    "help": "print this",
}

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
            "eval_tokens", "log_interval", "learning_rate", "embed_lr_mult",
            "input_multiplier")


def explain(config):
    """What --help prints of every flag, and of every key: its effective value and its comment in
    `Config`."""
    field = re.compile(r"^    (\w+): \w+ = [^#\n]*# (.*)$", re.M)
    comments = dict(field.findall(inspect.getsource(Config)))
    lines = [f"  {'--' + flag:40} {text}" for flag, text in FLAGS.items()] + [""]
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
        if values.get("code", "learned") != "learned" or values.get("embed_std") == 0.02:
            values["embed_std"] = 0.0  # natural; it had no meaning for codes other than learned
    if isinstance(values.get("head_bias"), bool):
        values["head_bias"] = "zero" if values["head_bias"] else "none"
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
    """The value of a flag: --overwrite, or --dry_run with (how many GPUs, which)."""
    if key == "dry_run":
        return parse_gpus(text or "1")
    if text not in ("", "True", "False"):
        raise InputError(f"--{key}={text}: --{key} is a flag")
    return text != "False"


def compose(argv):
    """Command line -> (Config, its arm's name, flags: FLAGS, and `given`, the keys of options).

    Files compose left to right, options come on top. InputError for what cannot be meant.
    """
    config, arm, names = Config(), "bpe_tied", []
    flags = dict.fromkeys(FLAGS, False)
    given = set()
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
            given.add(key)
            if key in ARM_KEYS:
                arm += f",{key}={text}"
    config.name = config.name or "-".join([*(names or ["default"]), f"s{config.seed}"])
    return config, arm, flags | {"given": given}


def check(config, world, hardware=None):
    """Refuse values and combinations that cannot be trained by `world` ranks. Settles every `auto`
    for `hardware`, a `lib.hardware.Hardware` (unset: this machine)."""
    for key, (low, high) in RANGES.items():
        if not low <= getattr(config, key) <= high:
            raise InputError(f"{key}={getattr(config, key)} is out of range")
    for key in POSITIVE:
        if getattr(config, key) <= 0:
            raise InputError(f"{key}={getattr(config, key)}: must be positive")
    if Path(config.name).name != config.name or config.name.startswith("."):
        raise InputError(f"name='{config.name}' is not a plain folder name")
    sequences = config.batch_size * config.gradient_accumulation_steps
    mine = sequences // world
    if sequences % world or mine % min(config.batch_size, mine):
        raise InputError(f"batch_size * gradient_accumulation_steps = {sequences} sequences cannot "
                         f"be dealt evenly to {world} ranks in micro-batches of "
                         f"{config.batch_size}")
    settle(config, world, hardware or this_hardware())
    if config.wandb_log and not importlib.util.find_spec("wandb"):
        raise InputError("wandb_log=True, but wandb is not installed (pip install wandb)")


def settle(config, world, hardware):
    """Settle device, dtype and compile, or refuse what the hardware has not."""
    if config.device == "auto":
        config.device = "cuda" if hardware.gpus else "cpu"
    if config.device not in ("cuda", "cpu", "mps"):
        raise InputError(f"device='{config.device}': cuda, cpu, mps and auto are known")
    if config.device == "cuda" and not hardware.gpus:
        raise InputError("device='cuda': no CUDA device is here")
    ranks_here = min(world, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if config.device == "cuda" and ranks_here > hardware.gpus:
        raise InputError(f"{ranks_here} ranks on this machine, but it has {hardware.gpus} GPUs: "
                         f"torchrun --nproc_per_node={hardware.gpus}")
    if config.device == "mps" and not hardware.mps:
        raise InputError("device='mps': no Apple GPU that torch can use is here")
    if config.device == "mps" and world > 1:
        raise InputError("device='mps': one process only, MPS has no collectives")

    native = {"cpu": hardware.cpu_bfloat16, "mps": False, "cuda": hardware.capability >= (8, 0)}
    if config.dtype == "auto":
        config.dtype = "bfloat16" if native[config.device] else "float32"
        if config.device == "cuda" and not native["cuda"]:
            config.dtype = "float16"  # Turing, Volta and Pascal would emulate bfloat16
    if config.dtype not in ("bfloat16", "float16", "float32"):
        raise InputError(f"dtype='{config.dtype}': bfloat16, float16, float32 and auto are known")
    if config.dtype != "float32" and config.device == "mps":
        raise InputError(f"dtype='{config.dtype}': on MPS only float32 was made to work")

    triton = hardware.compiler and hardware.capability >= (7, 0)  # it has nothing for Pascal
    if config.compile == "auto":
        config.compile = str(config.device == "cuda" and triton)
    if config.compile not in ("True", "False"):
        raise InputError(f"compile='{config.compile}': True, False and auto are known")
    if config.compile == "True" and config.device == "mps":
        raise InputError("compile=True: not on MPS")
    if config.compile == "True" and config.device == "cuda" and not triton:
        raise InputError("compile=True: this GPU, or this machine without Triton or a C compiler, "
                         "cannot; --compile=False")


def check_shape(config):
    """InputError if no model can be built from a GPTConfig."""
    for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "pos_dim"):
        if getattr(config, key) < 1:
            raise InputError(f"{key}={getattr(config, key)}: must be at least 1")
    for key in ("rows", "rank", "buckets"):
        if getattr(config, key) < 0:
            raise InputError(f"{key}={getattr(config, key)}: must be 0 (the default) or more")
    known = {"code": CODES, "positions": ("learned", "rotary"),
             "head": ("table", "tied", "code"), "head_bias": ("none", "zero", "unigram"),
             "code_levels": ("bits", "signs"), "code_form": ("on_the_fly", "table")}
    for key, values in known.items():
        if getattr(config, key) not in values:
            raise InputError(f"{key}='{getattr(config, key)}': must be one of "
                             f"{', '.join(values)}")
    lifts = CODES[config.code].lifts
    if config.lift not in lifts:
        raise InputError(f"lift='{config.lift}': code '{config.code}' takes {' or '.join(lifts)}")
    if config.head != "table" and config.lift not in CODES[config.code].head_lifts:
        raise InputError(f"head='{config.head}': code '{config.code}' with lift '{config.lift}' "
                         "cannot be a head; set head='table'")
    if config.head == "code" and config.code == "learned":
        raise InputError("head='code': a learned table of its own is head='table'")
    if config.code_form == "table" and not hasattr(CODES[config.code], "set_form"):
        raise InputError(f"code_form='table': code '{config.code}' has no fixed code")
    if config.n_embd % config.n_head:
        raise InputError(f"n_embd={config.n_embd} is not divisible by n_head={config.n_head}")
    if config.positions == "rotary" and config.n_embd // config.n_head % 2:
        raise InputError("positions='rotary' needs an even head width, n_embd / n_head = "
                         f"{config.n_embd // config.n_head}")
    if config.pos_dim > 255:
        raise InputError(f"pos_dim={config.pos_dim}: at most 255, lengths are stored in a byte")
    if not 0 <= config.dropout < 1:
        raise InputError(f"dropout={config.dropout}: must be in [0, 1)")
