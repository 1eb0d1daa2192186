"""Keys, config files and the command line: everything that a run is asked for, checked before
anything is written.

    config, arm, flags = compose(["configs/tiny.py", "configs/kron.py", "--seed=2"])
    check(config, world=1)
"""
import ast
import difflib
import inspect
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from lib.errors import InputError, one_line
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
    name: str = ""                  # out/<name>; empty: the configs' names and the seed
    vocab_size: int = 0             # 0: what the data has; else the data must have exactly this
    max_steps: int = 4768           # 2.5B tokens
    batch_size: int = 16            # sequences that go through the model at once
    gradient_accumulation_steps: int = 32  # over all ranks: a step has batch_size * this sequences
    learning_rate: float = 6e-4     # at the peak
    min_lr: float = 6e-5            # where the cosine ends
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

    @property
    def sequences(self):
        """How many sequences a step has, over all ranks."""
        return self.batch_size * self.gradient_accumulation_steps


TYPES = {f.name: f.type for f in fields(Config)}

# The lowest value of keys, and the highest. What the model needs, it checks itself.
LOWEST = dict.fromkeys(("seed", "vocab_size", "min_lr", "warmup_steps", "beta1", "beta2",
                        "weight_decay", "grad_clip", "embed_std"), 0)
LOWEST |= dict.fromkeys(("max_steps", "batch_size", "gradient_accumulation_steps", "eval_interval",
                         "eval_tokens", "log_interval"), 1)
LOWEST |= dict.fromkeys(("learning_rate", "embed_lr_mult", "input_multiplier"), 1e-30)
HIGHEST = {"seed": 2**32 - 1, "beta1": 0.9999999, "beta2": 0.9999999, "embed_lr_mult": 10**6,
           "embed_std": 10**6, "input_multiplier": 10**6}


def readers(key):
    """The codes that have an option, as text."""
    return ", ".join(name for name, kind in CODES.items() if key in kind.options)


def explain(config):
    """What --help prints of every key: its value and its comment, or which codes have it."""
    field = re.compile(r"^    (\w+): \w+ = [^#\n]*# (.*)$", re.M)
    comments = {key: f"of code {readers(key)}" for key in OPTIONS}
    comments |= field.findall(inspect.getsource(Architecture) + inspect.getsource(Config))
    options = {key: f"--{key}={getattr(config, key)}" for key in TYPES}
    return "\n".join(f"  {options[key]:40} {comments.get(key, '')}" for key in TYPES)


def near(word, known):
    """", did you mean 'WORD'?", or "" where no known word is near."""
    found = difflib.get_close_matches(word, known, 1)
    return f", did you mean '{found[0]}'?" if found else ""


def assign(config, key, value, where):
    """config.key = value, if the key exists and the value has its type (an int may be written 1e4).
    InputError says what is near."""
    if key not in TYPES:
        own = "; a new arm's key is in its class's `options`, the class in CODES or RIVALS"
        raise InputError(f"{where}: unknown key '{key}'{near(key, TYPES) or own}")
    kind = TYPES[key]
    numbers = {kind, type(value)} == {int, float} and math.isfinite(value)
    if key == "compile" or numbers and kind(value) == value:
        value = kind(value)
    if type(value) is not kind or value == math.inf:
        raise InputError(f"{where}: {key}={value!r} is not of type {kind.__name__}")
    setattr(config, key, value)


def read_config(path):
    """A config file -> {key: literal}. It is parsed, never run: plain assignments of literals,
    comments, nothing else. `config/kron.py` finds configs/kron.py."""
    places = [Path(path), ROOT / path, ROOT / "configs" / Path(path).name]
    found = [p for p in places if p.is_file()]
    if not found:
        known = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
        like = difflib.get_close_matches(Path(path).stem, known, 3)
        raise InputError(f"{path}: no such config (there are {', '.join(like or known)})")
    values = {}
    with one_line(f"{path}: not a config of plain assignments", InputError):
        for node in ast.parse(found[0].read_bytes()).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
                continue
            targets = node.targets if isinstance(node, ast.Assign) else []
            if [type(target) for target in targets] != [ast.Name]:
                raise ValueError(f"line {node.lineno}: only key = value is read")
            values[targets[0].id] = ast.literal_eval(node.value)
    return values


def parse_value(key, text):
    """The value of --key=text: the literal, or the text where it is none or the key is a str."""
    if TYPES.get(key) is not str:
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(text)
    return text


def compose(argv):
    """Command line -> (Config, its arm's name, flags: {"overwrite", "help": whether it is given,
    "dry_run": (how many GPUs, which) or False}). InputError for what cannot be meant."""
    config, arm, names, given = Config(), "bpe_tied", [], set()
    flags = {"overwrite": False, "help": False, "dry_run": False}
    size = 0  # how many names stand before the dataset's: up to that of the file that sets it
    for before, value in zip(argv, argv[1:]):
        if before.removeprefix("--") in TYPES and not value.startswith("-"):
            raise InputError(f"{before} {value}: options are written {before}={value}")
    for path in (arg for arg in argv if not arg.startswith("-")):
        values = read_config(path)
        for key, value in values.items():
            assign(config, key, value, path)
        names.append(Path(path).stem)
        given |= values.keys()
        if any(key in ARM_KEYS for key in values):
            arm = names[-1]
        if "dataset" in values:
            size = len(names)
    own_dataset = config.dataset
    for option in (arg for arg in argv if arg.startswith("-")):
        key, equals, text = option.removeprefix("--").partition("=")
        key = "help" if key == "-h" else key
        if key == "dry_run":
            flags[key] = parse_gpus(text or "1")
        elif key in flags and equals:
            raise InputError(f"{option}: --{key} has no value")
        elif key in flags:
            flags[key] = True
        elif not equals:
            raise InputError(f"{option}: options are written --key=value; --help shows them")
        else:
            assign(config, key, parse_value(key, text), option)
            given.add(key)
            if key in ARM_KEYS:
                arm += f",{key}={text}"
    kind = CODES.get(config.code)  # an unknown code is the model's to refuse
    for key in OPTIONS:
        if kind and key in given and key not in kind.options:
            raise InputError(f"{key}={getattr(config, key)}: code '{config.code}' does not read "
                             f"it; it is of {readers(key)}")
    if config.dataset != own_dataset:
        names.insert(size, config.dataset)
    config.name = config.name or "-".join([*(names or ["default"]), f"s{config.seed}"])
    return config, arm, flags


def check(config, world, hardware=None):
    """Resolve every `auto` for `hardware`, a `lib.hardware.Hardware` (unset: this machine).
    InputError for what cannot be trained there by `world` ranks."""
    for key, low in LOWEST.items():
        value, high = getattr(config, key), HIGHEST.get(key, math.inf)
        if not low <= value <= high:
            bounds = f"from {low:,} to {high:,}" if high < math.inf else f"at least {low:,}"
            raise InputError(f"{key}={value}: must be {bounds}")
    if config.min_lr > config.learning_rate:
        raise InputError(f"min_lr={config.min_lr:g} is above learning_rate="
                         f"{config.learning_rate:g}: the rate falls to it")
    plain = Path(config.name).name == config.name and config.name.isprintable()
    if not plain or config.name.startswith(".") or len(config.name.encode()) > 200:
        raise InputError(f"name='{config.name}' is not a plain folder name")
    mine = config.sequences // world
    if config.sequences % world or mine % min(config.batch_size, mine):
        raise InputError(f"{config.sequences} sequences a step (batch_size * gradient_accumulation_"
                         f"steps) on {world} ranks: each needs as many, a multiple of batch_size")
    known = {"device": ("cuda", "cpu", "mps"), "dtype": ("bfloat16", "float16", "float32"),
             "compile": ("True", "False")}
    for key, values in known.items():
        if getattr(config, key) not in (*values, "auto"):
            raise InputError(f"{key}='{getattr(config, key)}': known are {', '.join(values)}, auto")
    hardware = hardware or this_hardware()
    if config.device == "auto":
        config.device = "cuda" if hardware.gpus else "cpu"
    cuda, mps = config.device == "cuda", config.device == "mps"
    bfloat16 = hardware.capability >= (8, 0) if cuda else hardware.cpu_bfloat16 and not mps
    if config.dtype == "auto":  # Turing, Volta and Pascal would emulate bfloat16
        config.dtype = "bfloat16" if bfloat16 else "float16" if cuda else "float32"
    triton = hardware.compiler and hardware.capability >= (7, 0)  # it has nothing for Pascal
    if config.compile == "auto":
        config.compile = str(cuda and triton)
    compiled = config.compile == "True"
    ranks = min(world, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # on this machine
    if cuda and ranks > hardware.gpus:
        raise InputError(f"device='cuda': {ranks} ranks on this machine, but {hardware.gpus} GPUs")
    if cuda and compiled and not triton:
        raise InputError("compile=True: no Triton or C compiler for this GPU; --compile=False")
    if mps and not hardware.mps:
        raise InputError("device='mps': no Apple GPU that torch can use is here")
    if mps and (world > 1 or config.dtype != "float32" or compiled):
        raise InputError("device='mps': only one process, --dtype=float32 and --compile=False work")
