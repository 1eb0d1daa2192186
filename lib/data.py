"""Tokens on disk -> batches. Batch s is a pure function of (data, seed, s): there is no loader
state, and every arm sees the same batches."""
import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from lib import tokenizer
from lib.errors import DAMAGE, InputError, one_line


class Data:
    """data/NAME as prepare.py left it, read block by block.

    Block i of a split is tokens i*T .. (i+1)*T inclusive: T inputs and, shifted by one, T targets.
    The files stay open: a run goes on reading them if the folder is replaced meanwhile. InputError
    if anything is amiss."""

    def __init__(self, name, block_size):
        folder, self.block_size, self.files = Path("data") / name, block_size, {}
        if not (folder / "meta.json").is_file():
            there = ", ".join(sorted(p.parent.name for p in Path("data").glob("*/meta.json")))
            how = "docstrings makes that of tiny.py, prepare.py --help says how to make others"
            if (folder / "train.bin").is_file():
                how = f"bins {folder} --name=NAME adopts nanoGPT's files"
            raise InputError(f"{folder}: no prepared data there (data/ has: {there or 'nothing'}); "
                             f"python prepare.py {how}")
        with one_line(f"{folder}/meta.json is damaged; prepare again", InputError, DAMAGE):
            meta = json.loads((folder / "meta.json").read_bytes())
            if meta.pop("checksum") != hashlib.sha256(json.dumps(meta).encode()).hexdigest():
                raise ValueError("it does not have the hash it was written with")
            self.tokenizer = tokenizer.from_state(meta["tokenizer"])
        self.dtype, self.tokens = np.dtype(meta["dtype"]), meta["tokens"]
        self.sha256 = meta["sha256"]
        self.kept = meta.get("kept", 1.0)  # share of the characters that decoding gives back
        for split, tokens in self.tokens.items():
            path = folder / f"{split}.bin"
            if not path.is_file() or path.stat().st_size != tokens * self.dtype.itemsize:
                raise InputError(f"{path} is missing or not {tokens:,} tokens long; prepare again")
            if tokens <= block_size:
                raise InputError(f"{path} has {tokens:,} tokens, a block needs {block_size + 1:,}: "
                                 f"--block_size={tokens - 1} or less fits")
            self.files[split] = open(path, "rb")

    def verify(self):
        """Read all of it. InputError unless the files have the hashes of meta.json."""
        for split, file in self.files.items():
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256[split]:
                raise InputError(f"{file.name} does not have the hash in meta.json; prepare again")

    def map(self, split):
        """The split's tokens as a memory map, a new one each time: pages read do not pile up."""
        return np.memmap(self.files[split], self.dtype, mode="r")

    @functools.cached_property
    def train_counts(self):
        """How often each id stands in the training split, (V,) int64."""
        tokens, V = self.map("train"), self.tokenizer.vocab_size
        starts = range(0, len(tokens), 2**24)
        return sum(np.bincount(tokens[i:i + 2**24], minlength=V) for i in starts)

    def blocks(self, split):
        """How many blocks a split has."""
        return (self.tokens[split] - 1) // self.block_size

    def read(self, split, blocks):
        """Block numbers -> (len(blocks), T + 1) array of token ids."""
        tokens, T = self.map(split), self.block_size
        return np.stack([tokens[i * T:(i + 1) * T + 1] for i in blocks])


@functools.lru_cache(maxsize=2)
def epoch_order(blocks, seed, epoch):
    """The order in which an epoch visits the blocks. RandomState is the same in every numpy."""
    return np.random.RandomState([seed, epoch]).permutation(blocks)


def sequence_blocks(blocks, seed, first, count):
    """The blocks of training sequences first .. first + count - 1: epochs, each shuffled."""
    sequences = range(first, first + count)
    return [int(epoch_order(blocks, seed, i // blocks)[i % blocks]) for i in sequences]


def to_device(rows, device):
    """(n, T + 1) token ids -> inputs and targets, (n, T) int64 each."""
    ids = torch.from_numpy(rows.astype(np.int64))
    if device.type == "cuda":
        ids = ids.pin_memory().to(device, non_blocking=True)
    ids = ids.to(device)
    return ids[:, :-1], ids[:, 1:]
