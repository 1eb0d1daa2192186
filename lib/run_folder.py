"""A run's folder, out/NAME: its lock, its log, its checkpoints, and a model out of them again.

    model, tokenizer, checkpoint = load_model("out/tiny-kron-s1")
"""
import json
import math
import os
import shutil
import sys
import zipfile
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

import filelock
import torch

from lib import tokenizer
from lib.config import Config
from lib.distributed import print0, rank
from lib.errors import DAMAGE, InputError, one_line, write_atomic
from model import GPT, GPTConfig


def save_checkpoint(path, state):
    """Write a dict of tensors and plain values whole or not at all; OSError on a full disk."""
    try:
        write_atomic(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # torch's way of saying that a write failed
        raise OSError(f"{path} cannot be written ({error.__context__ or error}); the checkpoint "
                      "before it is kept") from None


def load_checkpoint(run):
    """A run's checkpoint, out/RUN or the file itself: the dict that `save_checkpoint` was given.
    Nothing in it is executed. InputError if there is none or its checksums are wrong."""
    path = os.path.join(run, "ckpt.pt") if os.path.isdir(run) else run
    if not os.path.isfile(path):
        raise InputError(f"{run}: no checkpoint there (train.py writes one to out/RUN/ckpt.pt)")
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():
                raise ValueError("a checksum is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["config"] = asdict(Config()) | checkpoint["config"]
    except Exception as error:  # the reader raises whatever the damage leads to
        reason = str(error).split(". ")[0][:100]
        raise InputError(f"{path}: damaged, or not a checkpoint of this project "
                         f"({type(error).__name__}: {reason})") from None
    return checkpoint


def build_model(config, tok, initialise=True):
    """A fresh GPT for a run's config, a dict that may hold more keys than the model's, and its
    tokenizer. InputError if there can be none."""
    chosen = {f.name: config[f.name] for f in fields(GPTConfig)} | {"vocab_size": tok.vocab_size}
    if config["vocab_size"] not in (0, tok.vocab_size):
        raise InputError(f"vocab_size={config['vocab_size']}: the data has {tok.vocab_size:,}")
    try:
        model = GPT(GPTConfig(**chosen), tokenizer.token_bytes(tok), initialise)
    except ValueError as error:
        raise InputError(str(error)) from None
    trained = any(p.requires_grad for p in model.transformer.wte.parameters())
    if config.get("embed_lr_mult", 1) != 1 and not trained:
        raise InputError(f"embed_lr_mult={config['embed_lr_mult']}: this input has no weights")
    return model


def load_model(run, device="cpu"):
    """A trained run, ready to use: (model in eval mode, tokenizer, checkpoint dict). InputError as
    `load_checkpoint`."""
    checkpoint = load_checkpoint(run)
    with one_line(f"{run}: damaged, or of other code than this", InputError, (InputError, *DAMAGE)):
        tok = tokenizer.from_state(checkpoint["tokenizer"])
        model = build_model(checkpoint["config"], tok, initialise=False)
        model.load_state_dict(checkpoint["model"])
    return model.eval().to(device), tok, checkpoint


def read_log(path):
    """log.jsonl -> its records, dicts with a step, or the header; a kill can leave half a line."""
    records = []
    for line in Path(path).read_bytes().splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step", 0), int):
                records.append(record)
    return records


def hold_lock(path):
    """Lock out/.NAME.lock until this process ends. InputError if another process holds it; a
    warning where the file system has no locks."""
    path.parent.mkdir(exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), blocking=False,
                             fallback_to_soft=False)  # a soft lock outlives a kill
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"{path} is in use by another process") from None
    except (OSError, NotImplementedError) as error:
        print(f"warning: nothing keeps a second process from {path} ({error})", file=sys.stderr)
    return lock


# Keys that may change when a run is resumed: those that touch no number, and those that change
# bits, not batches. The log says so.
FREE = {"log_interval", "eval_interval", "device", "dtype", "compile"}
SPLIT = {"batch_size", "gradient_accumulation_steps"}  # these where their product stays


class RunFolder:
    """out/NAME of one run, locked. Rank 0 alone writes, and nothing but the lock before `begin`.
    `fresh`: there is no checkpoint to resume. `records`: the log so far. `best`: [the lowest
    validation loss, its step]. InputError if the folder is in use or its checkpoint is gone."""

    def __init__(self, config, arm, data, overwrite):
        self.path, self.config, self.tokenizer = Path("out") / config.name, config, data.tokenizer
        self.identity = asdict(config) | {"arm": arm, "data": data.sha256}
        self.records, self.changes, self.best = [], {}, [math.inf, 0]
        if self.path.is_file():
            raise InputError(f"{self.path} is a file; give another --name")
        if rank() == 0:
            self.lock = hold_lock(self.path)
        # restarted by torchrun, it resumes what its first start began
        self.overwrite = overwrite and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        self.fresh = self.overwrite or not (self.path / "ckpt.pt").exists()
        if self.fresh and not self.overwrite and (self.path / "eval.npz").exists():
            raise InputError(f"{self.path} is a finished run whose ckpt.pt is gone; give another "
                             "--name, or start over with --overwrite")

    def restore(self, model, optimizer, scaler):
        """Load the checkpoint; returns its step, 0 if there is none. InputError if it is damaged or
        of another run."""
        if self.fresh:
            return 0
        checkpoint = load_checkpoint(self.path)
        with one_line(f"{self.path}/ckpt.pt does not hold together", InputError, DAMAGE):
            self.compare(checkpoint["config"])
            step, self.best = checkpoint["step"], checkpoint["best"]
            model.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            if scaler.is_enabled() and "dtype" not in self.changes:
                scaler.load_state_dict(checkpoint["scaler"])
        # a run that was killed may have logged steps after its checkpoint, and a resume at it
        self.records = [record for record in read_log(self.path / "log.jsonl")
                        if record.get("step", 0) + ("resumed_with" in record) <= step]
        return step

    def compare(self, old):
        """InputError, naming the first difference, unless a checkpoint's config is this run's. What
        may change is noted in `changes`: {key: [before, now]}."""
        split = old["batch_size"] * old["gradient_accumulation_steps"] == self.config.sequences
        for key in old | self.identity:
            before, now = old.get(key), self.identity.get(key)
            if before == now or key == "vocab_size":  # the data's hash stands for it
                continue
            if key not in FREE and not (split and key in SPLIT):
                raise InputError(f"{self.path} was made with {key}={before}, now {key}={now}; give "
                                 "another --name, or start over with --overwrite")
            self.changes[key] = [before, now]

    def begin(self, header, step):
        """Begin to write: the log up to `step`, under `header` if it has none. A run that goes on
        with other keys, hardware, ranks or code logs it."""
        self.records = self.records or [header]
        known = self.records[0].copy()  # as it was when the run was last begun or resumed
        for record in self.records:
            known |= {key: now for key, (_, now) in record.get("resumed_with", {}).items()}
        for key in ("hardware", "world_size", "code_hash"):
            if known.get(key) != header[key]:
                self.changes[key] = [known.get(key), header[key]]
        if self.changes and step < self.config.max_steps:
            self.records.append({"step": step, "resumed_with": self.changes})
            print0("resumed with " + ", ".join(f"{key}={now} (before: {before})"
                                               for key, (before, now) in self.changes.items()))
        if rank() != 0:
            return
        if self.overwrite and self.path.exists():
            old = self.path.with_name(f"{self.path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            self.path.rename(old)
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        write_atomic(self.path / "log.jsonl", lambda file: file.write(text.encode()))

    def log(self, record):
        """Append a record, a dict with a step, to the log."""
        self.records.append(record)
        if rank() == 0:
            with open(self.path / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")

    def save(self, step, model, optimizer, scaler):
        """Write ckpt.pt, and best.pt before it if this is the lowest validation loss so far."""
        if rank() != 0:
            return
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                 "scaler": scaler.state_dict(), "best": self.best,
                 "tokenizer": self.tokenizer.state, "config": self.identity}
        for name in ("best.pt", "ckpt.pt") if self.best[1] == step else ("ckpt.pt",):
            save_checkpoint(self.path / name, state)
