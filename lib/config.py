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
from model import CODES, OPTIONS, Architecture, GPTConfig

ROOT = Path(__file__).resolve().parent.parent

# The keys that make an arm. Runs that are compared may differ in these, in seed and in name.
ARM_KEYS = ("code", "lift", "head", "head_bias", *OPTIONS, "embed_std", "embed_lr_mult",
            "input_multiplier", "input_norm", "code_form")


@dataclass
class Config(GPTConfig):
    """The keys of the model and these, with the GPT-2 124M recipe as defaults (nanoGPT's names and
    values where it has them). The comments are what `train.py --help` prints."""
    dataset: str = "fineweb-edu"    # data/<dataset>, made by prepare.py
    name: str = ""                  # out/<name>; empty: named from the config files and the seed
    vocab_size: int = 0             # 0: what the data has; else the data must have exactly this
    max_steps: int = 4768           # 2.5B tokens
    batch_size: int = 16            # sequences that go through the model at once
    gradient_accumulation_steps: int = 32  # over all ranks: a step has batch_size * this sequences
    learning_rate: float = 6e-4     # at the peak
    min_lr: float = 6e-5            # at the last step
    warmup_steps: int = 700
    embed_lr_mult: float = 1.0      # the input's learning rate over the rest's; its decay is / this
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
    "overwrite": "start over; the run that is there becomes NAME.old, in the place of an older one",
    "extend": "go on with a larger max_steps: the same weights, the new cosine",
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


def readers(key):
    """The codes that have an option, as text."""
    return ", ".join(name for name, kind in CODES.items() if key in kind.options)


def explain(config):
    """What --help prints of every flag, and of every key: its effective value and its comment; of
    an arm's own key, which codes have it."""
    field = re.compile(r"^    (\w+): \w+ = [^#\n]*# (.*)$", re.M)
    comments = {key: f"of code {readers(key)}" for key in OPTIONS}
    comments |= field.findall(inspect.getsource(Architecture) + inspect.getsource(Config))
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
    """Configs, logs and checkpoints of before: their keys and values by today's names."""
    values = dict(values)
    if "run" in values:
        values["name"] = values.pop("run")
    if "tie" in values:
        values["head"] = "tied" if values.pop("tie") else "table"
        if values.get("code", "learned") != "learned" or values.get("embed_std") == 0.02:
            values["embed_std"] = 0.0  # the default; it had no meaning for other codes
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
    refuse_unread(config, given)
    config.name = config.name or "-".join([*(names or ["default"]), f"s{config.seed}"])
    return config, arm, flags | {"given": given}


def refuse_unread(config, given):
    """InputError for an option of other codes that is `given` or is not at its default: it would do
    nothing, and stand in the run's name. (An unknown code is the model's to refuse.)"""
    kind = CODES.get(config.code)
    for key, default in OPTIONS.items():
        value = getattr(config, key)
        if kind and key not in kind.options and (key in given or value != default):
            raise InputError(f"{key}={value}: code '{config.code}' does not read it; it is of "
                             f"{readers(key)}")


def check(config, world, hardware=None):
    """Refuse values and combinations that cannot be trained by `world` ranks. Resolves every `auto`
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
    resolve(config, world, hardware or this_hardware())
    if config.wandb_log and not importlib.util.find_spec("wandb"):
        raise InputError("wandb_log=True, but wandb is not installed (pip install wandb)")


def resolve(config, world, hardware):
    """Choose device, dtype and compile where they are auto; refuse what the hardware has not."""
    if config.device == "auto":
        config.device = "cuda" if hardware.gpus else "cpu"
    known = {"device": ("cuda", "cpu", "mps"), "dtype": ("bfloat16", "float16", "float32"),
             "compile": ("True", "False")}
    for key, values in known.items():
        if getattr(config, key) not in (*values, "auto"):
            raise InputError(f"{key}='{getattr(config, key)}': {', '.join(values)} and auto are "
                             "known")
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
    if config.dtype != "float32" and config.device == "mps":
        raise InputError(f"dtype='{config.dtype}': on MPS only float32 was made to work")

    triton = hardware.compiler and hardware.capability >= (7, 0)  # it has nothing for Pascal
    if config.compile == "auto":
        config.compile = str(config.device == "cuda" and triton)
    if config.compile == "True" and config.device == "mps":
        raise InputError("compile=True: not on MPS")
    if config.compile == "True" and config.device == "cuda" and not triton:
        raise InputError("compile=True: this GPU, or this machine without Triton or a C compiler, "
                         "cannot; --compile=False")
