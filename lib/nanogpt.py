"""nanoGPT's prepared data -> ours: train.bin and val.bin of GPT-2's ids or of characters."""
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
        table = PlainUnpickler(io.BytesIO(path.read_bytes())).load()["itos"]
        characters = [table[i] for i in range(len(table))]
        if not all(isinstance(c, str) and len(c) == 1 for c in characters):
            raise ValueError("its itos is not a table of single characters")
    except Exception as error:  # unpickling bytes raises whatever they lead to
        raise InputError(f"{path}: not nanoGPT's table of characters "
                         f"({type(error).__name__}: {error})") from None
    return "".join(characters)


def read_bin(path, dtype):
    """A file of raw ids -> memory map. dtype: None is nanoGPT's uint16, refused where the file
    looks like another."""
    raw = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else b""
    head, says = bytes(raw[:2**20]), ""
    if not head:
        says = "there is nothing in it"
    elif head.startswith(b"\x93NUMPY"):
        says = "a .npy file, not raw ids; write them with array.tofile(path)"
    elif head.startswith((20240520).to_bytes(4, "little")):
        says = "llm.c's header of 1,024 bytes stands before the ids; write it without"
    elif not dtype:
        dtype, ids = "uint16", np.frombuffer(head[:len(head) // 8 * 8], np.uint16)
        if len(ids) >= 16 and ids[::2].any() and not ids[1::2].any():
            wide = "uint32" if ids[2::4].any() else "int64"
            says = (f"every second number is 0 if its ids are uint16 as nanoGPT's; they look like "
                    f"{wide}: --dtype={wide}, or --dtype=uint16 if not")
    width = np.dtype(dtype or "uint16").itemsize
    if not says and len(raw) % width:
        says = f"{len(raw):,} bytes are no whole number of ids of {width} bytes ({dtype})"
    if says:
        raise InputError(f"{path}: {says}")
    return raw.view(dtype)


def adopt(source, folder, dtype=None):
    """Copy nanoGPT's train.bin and val.bin, with the characters of a meta.pkl or else GPT-2's ids,
    into a folder. Returns (tokenizer, what meta.json says of them). InputError if they are none."""
    table = source / "meta.pkl"
    tok = tokenizer.CharTokenizer(read_characters(table)) if table.exists() else tokenizer.gpt2()
    width = np.array([len(raw) for raw in tok.spelled])
    width[tok.eot] = 0  # it separates documents and is no text
    counts = {key: {} for key in ("tokens", "documents", "text_bytes")}
    for split in ("train", "val"):
        path, count = source / f"{split}.bin", np.zeros(tok.vocab_size, np.int64)
        every = read_bin(path, dtype)
        with open(folder / f"{split}.bin", "wb") as copy:
            for i in range(0, len(every), 2**22):
                ids = every[i:i + 2**22]
                worst = ids.max() if ids.min() >= 0 else ids.min()
                if not 0 <= worst < tok.vocab_size:
                    raise InputError(f"{path}: the id {worst:,} is none of the {tok.vocab_size:,} "
                                     f"of {tok.name} (characters need meta.pkl beside the bins, "
                                     "other types --dtype)")
                copy.write(ids.astype(tokenizer.id_type(tok)).tobytes())
                count += np.bincount(ids, minlength=tok.vocab_size)
            copy.flush()
            os.fsync(copy.fileno())
        counts["tokens"][split] = len(every)
        counts["documents"][split] = int(count[tok.eot]) + int(every[-1] != tok.eot)
        counts["text_bytes"][split] = int(count @ width)
    source = {"position": None, "used": 0, "skipped": 0,
              "documents": sum(counts["documents"].values()),
              "tokens": sum(counts["tokens"].values())}
    return tok, counts | {"sources": {"bins": source}, "sample": None, "kept": 1.0}
