"""A run's folder, out/NAME: its lock, its log, its checkpoints, and a model out of them again.

    model, tokenizer, checkpoint = load_model("out/tiny-kron-s1")
"""
import fcntl
import hashlib
import json
import math
import os
import pickle
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import torch

from lib import tokenizer
from lib.common import InputError, write_atomic
from lib.config import Config, modernise
from model import GPT, GPTConfig


# ---- a checkpoint ------------------------------------------------------------------------------

def fingerprint(state):
    """SHA-256 of nested dicts and lists of tensors and plain values: what a checkpoint is checked
    by when it is read."""
    digest = hashlib.sha256()

    def add(x):
        if isinstance(x, dict):
            for key in sorted(x, key=repr):
                add(key)
                add(x[key])
        elif isinstance(x, (list, tuple)):
            for item in x:
                add(item)
        elif isinstance(x, torch.Tensor):
            digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        else:
            digest.update(repr(x).encode())
        digest.update(b";")
    add(state)
    return digest.hexdigest()


def save_checkpoint(path, state):
    """Write a checkpoint, a dict of tensors and plain values, whole or not at all.

    OSError if the disk does not take it.
    """
    def write(file):
        try:
            torch.save(state | {"sha256": fingerprint(state)}, file)
        except RuntimeError as error:  # torch's way of saying that a write failed
            reason = getattr(error.__context__, "strerror", None) or error
            raise OSError(f"{path} cannot be written ({reason}); "
                          "the checkpoint before it is kept") from None
    write_atomic(path, write)


def load_checkpoint(run):
    """Read a run's checkpoint: out/RUN, or the file itself. Weights and plain values only; nothing
    in it is executed.

    Returns the dict that `save_checkpoint` was given. InputError if there is none, or if a single
    bit of it has changed.
    """
    path = os.path.join(run, "ckpt.pt") if os.path.isdir(run) else run
    if not os.path.isfile(path):
        raise InputError(f"{run}: no checkpoint there (train.py writes one to out/RUN/ckpt.pt)")
    try:
        with warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        intact = checkpoint.pop("sha256") == fingerprint(checkpoint)
    except pickle.UnpicklingError as error:
        unsafe = "it would run code when loaded, it is unsafe and was not loaded"
        why = unsafe if "Unsupported" in str(error) else "damaged"
        raise InputError(f"{path}: not a checkpoint of this project ({why})") from None
    except Exception as error:  # the reader raises whatever the damage leads to
        raise InputError(f"{path}: not a checkpoint of this project, or damaged "
                         f"({type(error).__name__})") from None
    if not intact:
        raise InputError(f"{path} is damaged: its content does not have the hash it was saved with")
    if isinstance(checkpoint.get("config"), dict):
        checkpoint["config"] = asdict(Config()) | modernise(checkpoint["config"])
    return checkpoint


def build_model(config, tok):
    """A fresh GPT for a run's config, a dict that may hold more keys than the model's, and its
    tokenizer. InputError if there can be none."""
    keys = {f.name for f in fields(GPTConfig)} & config.keys()
    chosen = {key: config[key] for key in keys} | {"vocab_size": tok.vocab_size}
    try:
        model = GPT(GPTConfig(**chosen), tokenizer.token_bytes(tok))
    except ValueError as error:
        raise InputError(str(error)) from None
    mult = config.get("embed_lr_mult", 1)
    if mult != 1 and not any(True for _ in model.transformer.wte.parameters()):
        raise InputError(f"embed_lr_mult={mult}: this input has no weights (code={config['code']}, "
                         f"lift={config['lift']})")
    return model


def load_model(run, device="cpu"):
    """A trained run, ready to use: (model in eval mode, tokenizer, checkpoint dict).

    InputError as `load_checkpoint`.
    """
    checkpoint = load_checkpoint(run)
    try:
        tok = tokenizer.from_state(checkpoint["tokenizer"])
        model = build_model(checkpoint["config"], tok)
        model.load_state_dict(checkpoint["model"])
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


# ---- a run's folder ----------------------------------------------------------------------------

class RunFolder:
    """out/NAME of one run: refused if it is another run's or in use, else begun or gone on with.

    Rank 0 alone writes. `fresh`: nothing was there to go on from. `records`: the log so far.
    """

    def __init__(self, config, arm, data, place, overwrite=False):
        self.path, self.place, self.config = Path("out") / config.name, place, config
        self.identity = asdict(config) | {"arm": arm, "data": data.sha256}
        self.tokenizer = data.tokenizer
        self.records, self.step, self.best, self.wandb = [], 0, [math.inf, 0], None
        self.checkpoint = None
        if (self.path / "ckpt.pt").exists() and not overwrite:
            self.checkpoint = load_checkpoint(self.path)
            self.refuse_another_run()
        self.fresh = self.checkpoint is None
        self.path.mkdir(parents=True, exist_ok=True)
        if place.rank == 0:
            self.lock()
            if overwrite:
                for name in ("ckpt.pt", "best.pt"):
                    (self.path / name).unlink(missing_ok=True)

    def refuse_another_run(self):
        """InputError, naming the first difference, unless the checkpoint is of this very run."""
        made_with = self.checkpoint["config"]
        for key, value in self.identity.items():
            if made_with.get(key) != value and key != "wandb_log":
                raise InputError(f"{self.path} was made with {key}={made_with.get(key)}, now "
                                 f"{key}={value}; give another --name, or start over with "
                                 "--overwrite")

    def lock(self):
        """Hold the folder until this process ends. InputError if another process holds it."""
        self.lock_file = open(self.path / "lock", "a")
        try:
            fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path} is being trained by another process") from None

    def restore(self, model, optimizer):
        """Load what the checkpoint holds into model and optimizer; returns its step, 0 if none."""
        if self.checkpoint is None:
            return 0
        model.load_state_dict(self.checkpoint["model"])
        optimizer.load_state_dict(self.checkpoint["optimizer"])
        self.step, self.best = self.checkpoint["step"], self.checkpoint["best"]
        for record in read_log(self.path / "log.jsonl")[0]:
            if record.get("step", 0) <= self.step:  # a killed run may have logged beyond it
                self.records.append(record)
        self.checkpoint = None  # as large as the model and the optimizer's state together
        return self.step

    def begin(self, header):
        """Write the log as far as it is valid, under `header` if it is new; start wandb."""
        self.records = self.records or [header]
        if self.place.rank != 0:
            return
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        write_atomic(self.path / "log.jsonl", lambda file: file.write(text.encode()))
        if self.config.wandb_log:
            import wandb
            self.wandb = wandb
            wandb.init(project="input-embeddings", name=self.config.name, id=self.config.name,
                       config=asdict(self.config), resume="allow")

    def log(self, record):
        """Append a record, a dict with a step, to the log."""
        self.records.append(record)
        if self.place.rank != 0:
            return
        with open(self.path / "log.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if self.wandb:
            values = {key: value for key, value in record.items() if key != "step"}
            self.wandb.log(values, step=record["step"])

    def save(self, step, model, optimizer):
        """Write ckpt.pt, and best.pt if this is the lowest validation loss so far."""
        if self.place.rank != 0:
            return
        new = self.path / "ckpt.new"
        save_checkpoint(new, {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
            "best": self.best, "tokenizer": self.tokenizer.state, "config": self.identity})
        if self.best[1] == step:  # a second name for the same file costs no disk
            os.link(new, self.path / "best.new")
            os.replace(self.path / "best.new", self.path / "best.pt")
        os.replace(new, self.path / "ckpt.pt")
