"""nanoGPT's prepared data -> ours: train.bin and val.bin of GPT-2's ids or of characters."""
import hashlib
import io
import os
import pickle

import numpy as np

from lib import tokenizer
from lib.errors import InputError


class PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings and numbers; whatever would run code is an error."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def read_characters(path):
    """nanoGPT's meta.pkl -> its characters in id order, a str. Nothing in it is run. InputError if
    it is not a table of single characters."""
    try:
        meta = PlainUnpickler(io.BytesIO(path.read_bytes())).load()
        table = meta["itos"]
        characters = [table[i] for i in range(len(table))]
        if not all(isinstance(c, str) and len(c) == 1 for c in characters):
            raise ValueError("its itos is not a table of single characters")
    except Exception as error:  # unpickling bytes raises whatever they lead to
        raise InputError(f"{path}: not nanoGPT's table of characters "
                         f"({type(error).__name__}: {error})") from None
    return "".join(characters)


def copy_bin(path, to, tok):
    """Copy a file of uint16 ids. Returns (its SHA-256, how often each id stands in it, its last
    id). InputError if an id is none of the tokenizer's."""
    digest, count, last = hashlib.sha256(), np.zeros(tok.vocab_size, np.int64), None
    with open(path, "rb") as source, open(to, "wb") as copy:
        while chunk := source.read(2**22):
            if len(chunk) % 2:
                raise InputError(f"{path}: its size is odd, so these are not ids of two bytes")
            ids = np.frombuffer(chunk, np.uint16)
            if ids.max() >= tok.vocab_size:
                raise InputError(f"{path}: the id {ids.max():,} is none of the {tok.vocab_size:,} "
                                 f"of {tok.name} (characters need meta.pkl beside the bins)")
            digest.update(chunk)
            copy.write(chunk)
            count += np.bincount(ids, minlength=tok.vocab_size)
            last = int(ids[-1])
        copy.flush()
        os.fsync(copy.fileno())
    if last is None:
        raise InputError(f"{path}: there is nothing in it")
    return digest.hexdigest(), count, last


def adopt(source, folder):
    """Copy nanoGPT's train.bin and val.bin, with the characters of a meta.pkl or else GPT-2's ids,
    into a folder. Returns (what meta.json says of them, tokenizer)."""
    table = source / "meta.pkl"
    tok = tokenizer.CharTokenizer(read_characters(table)) if table.exists() else tokenizer.gpt2()
    width = np.array([len(raw) for raw in tok.spelled])
    width[tok.eot] = 0  # it separates documents and is no text
    found = {key: {} for key in ("tokens", "documents", "text_bytes", "sha256")}
    for split in ("train", "val"):
        name = f"{split}.bin"
        found["sha256"][split], count, last = copy_bin(source / name, folder / name, tok)
        found["tokens"][split] = int(count.sum())
        found["documents"][split] = int(count[tok.eot]) + (last != tok.eot)
        found["text_bytes"][split] = int(count @ width)
    return found, tok
