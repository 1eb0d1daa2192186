"""A run's folder, out/NAME: its lock, its log, its checkpoints, and a model out of them again.

    model, tokenizer, checkpoint = load_model("out/tiny-kron-s1")
"""
import json
import math
import os
import pickle
import shutil
import sys
import warnings
import zipfile
from dataclasses import asdict, fields
from pathlib import Path

import filelock
import torch

from lib import tokenizer
from lib.config import Config, assign, modernise
from lib.distributed import any_rank, is_restart, rank
from lib.errors import InputError, write_atomic
from model import GPT, GPTConfig


def hold_lock(path, what):
    """Lock the file `path`, made if need be, for as long as the open file that is returned stays
    open: `with hold_lock(...)`, or until the process ends.

    InputError if another process has it: `what` is in use, by whom. Where the file system has no
    locks: one warning, and none. (Never filelock's soft lock, a file that a killed process leaves
    behind.)
    """
    while True:
        file = open(path, "a+b")
        try:
            taken = filelock.lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            print(f"warning: {path} cannot be locked ({error}); nothing keeps a second process "
                  f"from {what}", file=sys.stderr)
            return file
        if not taken:
            with file:
                raise InputError(f"{what} is in use by {read_holder(file)}")
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            return file
        file.close()  # its holder moved it away between our opening and our locking it


def read_holder(file):
    """Who has a lock, as its file says; Windows lets nobody else read it."""
    try:
        file.seek(0)
        return f"process {int(file.read(20))}"
    except (OSError, ValueError):
        return "another process"


# ---- a checkpoint ------------------------------------------------------------------------------

def save_checkpoint(path, state):
    """Write a checkpoint, a dict of tensors and plain values, whole or not at all.

    OSError if the disk does not take it.
    """
    def write(file):
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's way of saying that a write failed
            reason = getattr(error.__context__, "strerror", None) or error
            raise OSError(f"{path} cannot be written ({reason}); "
                          "the checkpoint before it is kept") from None
    write_atomic(path, write)


def load_checkpoint(run):
    """Read a run's checkpoint: out/RUN, or the file itself. Weights and plain values only; nothing
    in it is executed.

    Returns the dict that `save_checkpoint` was given. InputError if there is none, or if one of its
    parts does not have the checksum that torch.save stored with it.
    """
    path = os.path.join(run, "ckpt.pt") if os.path.isdir(run) else run
    if not os.path.isfile(path):
        raise InputError(f"{run}: no checkpoint there (train.py writes one to out/RUN/ckpt.pt)")
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():
                raise ValueError("a checksum is wrong")
        with warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint.pop("sha256", None)  # of before: a hash of the whole
    except pickle.UnpicklingError as error:
        unsafe = "it would run code when loaded, it is unsafe and was not loaded"
        why = unsafe if "Unsupported" in str(error) else "damaged"
        raise InputError(f"{path}: not a checkpoint of this project ({why})") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # the reader raises whatever the damage leads to
        raise InputError(f"{path}: not a checkpoint of this project, or damaged "
                         f"({type(error).__name__}: {str(error)[:100]})") from None
    if isinstance(checkpoint.get("config"), dict):
        checkpoint["config"] = asdict(Config()) | modernise(checkpoint["config"])
    return checkpoint


def build_model(config, tok, initialise=True):
    """A fresh GPT for a run's config, a dict that may hold more keys than the model's, and its
    tokenizer. InputError if there can be none."""
    keys = {f.name for f in fields(GPTConfig)} & config.keys()
    chosen = {key: config[key] for key in keys} | {"vocab_size": tok.vocab_size}
    try:
        model = GPT(GPTConfig(**chosen), tokenizer.token_bytes(tok), initialise)
    except ValueError as error:
        raise InputError(str(error)) from None
    mult, weights = config.get("embed_lr_mult", 1), model.transformer.wte.parameters()
    if mult != 1 and not any(p.requires_grad for p in weights):
        raise InputError(f"embed_lr_mult={mult}: this input has no weights (code={config['code']}, "
                         f"lift={config['lift']})")
    return model


def load_weights(model, weights):
    """`load_state_dict`, also of checkpoints in which a lift's matrix, W, was called weight."""
    before = {f"{name}.weight": f"{name}.W" for name, module in model.named_modules()
              if hasattr(module, "W")}
    model.load_state_dict({before.get(name, name): value for name, value in weights.items()})


def load_model(run, device="cpu"):
    """A trained run, ready to use: (model in eval mode, tokenizer, checkpoint dict).

    InputError as `load_checkpoint`.
    """
    checkpoint = load_checkpoint(run)
    try:
        tok = tokenizer.from_state(checkpoint["tokenizer"])
        model = build_model(checkpoint["config"], tok, initialise=False)
        load_weights(model, checkpoint["model"])
    except (InputError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(f"{run}: the checkpoint does not hold together ({error})") from None
    return model.eval().to(device), tok, checkpoint


# ---- a log -------------------------------------------------------------------------------------

def read_log(path):
    """log.jsonl -> (its records, how many lines were dropped): a kill can leave half a line.

    A record is a dict with a step, or the header.
    """
    records, dropped = [], 0
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict) and isinstance(record.get("step", 0), int):
                records.append(record)
            else:
                dropped += 1
    return records, dropped


def as_line(record):
    """A record as a line of log.jsonl. JSON knows no infinity: what is not finite (of a float16
    step that overflowed and was skipped) becomes null."""
    finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value
              for key, value in record.items()}
    return json.dumps(finite) + "\n"


# ---- a run's folder ----------------------------------------------------------------------------

# Keys that may change when a run is gone on with: those that touch no number (the data's hash is
# compared too, so vocab_size is one), and those that change the bits alone, for which the command
# line has to ask.
FREE = {"wandb_log", "log_interval", "eval_interval", "vocab_size"}
BITS = {"device", "dtype", "compile", "batch_size", "gradient_accumulation_steps"}

# What is written whole or not at all: a kill may leave a NAME.tmp.
FILES = ("ckpt.pt", "best.pt", "log.jsonl", "loss.png", "eval.npz")


class RunFolder:
    """out/NAME of one run: refused if it is another run's or in use, else begun or gone on with.

    Rank 0 alone writes, and nothing before `begin`. `fresh`: nothing was there to go on from.
    `records`: the log so far. flags: `overwrite`, `extend` and `given`, the keys on the command
    line. InputError for what cannot be gone on with.
    """

    def __init__(self, config, arm, data, flags):
        self.path, self.config = Path("out") / config.name, config
        self.identity = asdict(config) | {"arm": arm, "data": data.sha256}
        self.tokenizer = data.tokenizer
        self.records, self.best, self.wandb = [], [math.inf, 0], None
        self.checkpoint, self.changes, self.lock_file = None, {}, None
        for folder in (self.path.parent, self.path):
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder} exists and is no folder")
        if self.path.is_dir():
            self.lock()  # before anything is read
        # started again by torchrun, it goes on with what its first start began
        self.overwrite = flags["overwrite"] and not any_rank(is_restart())
        if self.file("ckpt.pt").exists() and not self.overwrite:
            self.checkpoint = load_checkpoint(self.file("ckpt.pt"))
            self.compare_with_checkpoint(flags)
        elif not self.overwrite:
            self.refuse_lost_checkpoint()
        self.fresh = self.checkpoint is None

    def file(self, name):
        """The path of a file in the folder."""
        return self.path / name

    def lock(self):
        """Hold the folder until this process ends. InputError if another process holds it."""
        if rank() == 0 and self.lock_file is None:
            self.lock_file = hold_lock(self.file("lock"), str(self.path))

    def compare_with_checkpoint(self, flags):
        """InputError, naming the first difference and how to go on, unless the checkpoint is of
        this very run. Allowed changes are noted in `changes`: {key: [before, now]}."""
        needed = {"model", "optimizer", "step", "best", "tokenizer", "config"}
        lacking = needed - self.checkpoint.keys()
        old = self.checkpoint.get("config")
        if lacking or not isinstance(old, dict):
            raise InputError(f"{self.path}/ckpt.pt lacks {', '.join(sorted(lacking)) or 'a config'}"
                             ": not a checkpoint that can be gone on with")
        for key in old.keys() - {"arm", "data"}:
            assign(Config(), key, old[key], f"{self.path}/ckpt.pt")  # a key and a type of today

        def sequences(config):
            return config["batch_size"] * config["gradient_accumulation_steps"]
        for key, value in self.identity.items():
            before = old.get(key)
            if before == value or key in FREE:
                continue
            made = f"{self.path} was made with {key}={before}, now {key}={value}"
            only_bits = key in BITS and sequences(old) == sequences(self.identity)
            if only_bits and key not in flags["given"]:
                raise InputError(f"{made}: --{key}={before} goes on with it bit for bit, "
                                 f"--{key}={value} goes on otherwise")
            longer = key == "max_steps" and value > before
            if longer and not flags["extend"]:
                raise InputError(f"{made}, another schedule: --extend goes on with these weights "
                                 "and the new cosine, or give another --name")
            if not only_bits and not longer:
                raise InputError(f"{made}; give another --name, or start over with --overwrite")
            self.changes[key] = [before, value]

    def refuse_lost_checkpoint(self):
        """InputError if a run was here, and its checkpoint is not."""
        log, best = self.file("log.jsonl"), self.file("best.pt")
        steps = [r["step"] for r in read_log(log)[0] if "step" in r] if log.exists() else []
        if best.exists() or max(steps, default=0) > 0:
            hint = f"copy {best} to ckpt.pt to go on from it, or " if best.exists() else ""
            raise InputError(f"{self.path} has the log of a run up to step {max(steps, default=0)} "
                             f"but no ckpt.pt; {hint}start over with --overwrite")

    def restore(self, model, optimizer, scaler):
        """Load what the checkpoint holds; returns its step, 0 if there is none.

        InputError if anything is missing or has another shape.
        """
        if self.checkpoint is None:
            return 0
        try:
            step = int(self.checkpoint["step"])
            load_weights(model, self.checkpoint["model"])
            restore_optimizer(optimizer, self.checkpoint["optimizer"], step)
            if scaler.is_enabled() and "dtype" not in self.changes:
                scaler.load_state_dict(self.checkpoint["scaler"])
            self.best = [float(self.checkpoint["best"][0]), int(self.checkpoint["best"][1])]
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise InputError(f"{self.path}/ckpt.pt does not hold together "
                             f"({type(error).__name__}: {error})") from None
        log = self.file("log.jsonl")
        for record in read_log(log)[0] if log.exists() else []:
            # a killed run may have logged beyond it, or may have gone on from here for nothing
            last = step - 1 if "went_on_with" in record else step
            if record.get("step", 0) <= last:
                self.records.append(record)
        self.checkpoint = None  # as large as the model and the optimizer's state together
        return step

    def begin(self, header, step):
        """Begin to write: the log as far as it is valid, under `header` if it has none; wandb.

        A run that goes on with changed keys, on other hardware, with another number of ranks or
        other code says so in its log.
        """
        if not self.records or "config" not in self.records[0]:
            self.records.insert(0, header)
        if step < self.config.max_steps and not self.fresh:
            self.note_changes(header, step)
        if rank() != 0:
            return
        if self.overwrite:
            self.move_away()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        if self.fresh and self.file("ckpt.pt").exists():
            raise InputError(f"{self.path} was begun by another process in the meantime")
        for name in FILES:
            self.file(f"{name}.tmp").unlink(missing_ok=True)
        if step < self.config.max_steps:
            self.file("eval.npz").unlink(missing_ok=True)  # it is of the last step
        if not self.fresh and self.best[1] == step:
            self.keep_best()
        text = "".join(as_line(record) for record in self.records)
        write_atomic(self.file("log.jsonl"), lambda file: file.write(text.encode()))
        if self.config.wandb_log:
            import wandb
            self.wandb = wandb
            wandb.init(project="input-embeddings", name=self.config.name, id=self.config.name,
                       config=asdict(self.config), resume="allow")

    def move_away(self):
        """Rename the folder, if there is one, to NAME.old, in the place of an older one."""
        if self.path.exists():
            old = self.path.with_name(f"{self.path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            self.lock_file.close()  # it is taken anew in the new folder
            self.lock_file = None
            os.rename(self.path, old)

    def note_changes(self, header, step):
        """Append what is no longer as it was when the run was last gone on with, if anything; the
        header says to which step the run goes, and how it was extended to it."""
        first = self.records[0]
        for key in ("hardware", "world_size", "code_hash"):
            before = first.get(key)
            for record in self.records:
                if key in record.get("went_on_with", {}):
                    before = record["went_on_with"][key][1]
            if before != header[key]:
                self.changes[key] = [before, header[key]]
        if self.changes:
            self.records.append({"step": step, "went_on_with": self.changes})
        first["config"]["max_steps"] = self.config.max_steps
        extended = [record["went_on_with"]["max_steps"] for record in self.records
                    if "max_steps" in record.get("went_on_with", {})]
        first.pop("extended", None)
        if extended:
            first["extended"] = extended

    def log(self, record):
        """Append a record, a dict with a step, to the log."""
        self.records.append(record)
        if rank() != 0:
            return
        with open(self.file("log.jsonl"), "a") as file:
            file.write(as_line(record))
        if self.wandb:
            values = {key: value for key, value in record.items() if key != "step"}
            self.wandb.log(values, step=record["step"])

    def save(self, step, model, optimizer, scaler):
        """Write ckpt.pt, and best.pt if this is the lowest validation loss so far."""
        if rank() != 0:
            return
        save_checkpoint(self.file("ckpt.pt"), {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
            "scaler": scaler.state_dict(), "best": self.best, "tokenizer": self.tokenizer.state,
            "config": self.identity})
        if self.best[1] == step:
            self.keep_best()

    def keep_best(self):
        """Make best.pt a second name of ckpt.pt, which costs no disk; a copy where the file system
        has no hard links."""
        ckpt, best = self.file("ckpt.pt"), self.file("best.pt")
        temporary = self.file("best.pt.tmp")
        try:
            temporary.unlink(missing_ok=True)
            os.link(ckpt, temporary)
        except OSError:
            shutil.copyfile(ckpt, temporary)
        os.replace(temporary, best)
        temporary.unlink(missing_ok=True)  # rename leaves it where both were one file already


def restore_optimizer(optimizer, saved, step):
    """Load an optimizer's state after `step` steps; the settings of its groups stay those that the
    config gave. ValueError or KeyError if it is not the state of these parameters."""
    groups = optimizer.state_dict()["param_groups"]
    if [g["params"] for g in saved["param_groups"]] != [g["params"] for g in groups]:
        raise ValueError("the optimizer has other groups of parameters")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for group in optimizer.param_groups if step else []:
        for p in group["params"]:
            for name in ("exp_avg", "exp_avg_sq"):
                shape = optimizer.state[p][name].shape
                if shape != p.shape:
                    raise ValueError(f"the optimizer's {name} is {tuple(shape)} for a parameter "
                                     f"of {tuple(p.shape)}")
            float(optimizer.state[p]["step"])
