"""Public models: their input table, read by ranges out of a safetensors file, and the bytes of each
token out of tokenizer.json. A folder, or OWNER/NAME of the Hub."""
import json
import os
import re
import struct
from contextlib import contextmanager

import torch
from tqdm import tqdm

from lib.errors import InputError
from lib.tokenizer import hf_token_bytes

# What the input table is called, the likelier name first. "shared" is T5's, "emb" RWKV's.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
              "tok_embeddings.weight", "embedding.weight", "embeddings.weight", "shared.weight",
              "embed.weight", "emb.weight", "wte")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
PIECE = 2**26  # bytes that are asked for at once


def open_file(model, name):
    """A model's file, opened for reading; of one on the Hub only what is read is fetched, with the
    user's token. FileNotFoundError if it is not there, InputError if there is no such model."""
    if os.path.isdir(model):
        return open(os.path.join(model, name), "rb")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        raise InputError(f"{model}: no such folder, and not OWNER/NAME of the Hub")
    try:
        from huggingface_hub import HfFileSystem
    except ImportError:
        raise InputError(f"{model}: to read a model from the Hub, pip install "
                         "huggingface_hub") from None
    return HfFileSystem().open(f"{model}/{name}", cache_type="none")


def read_bytes(file, start, end):
    """Bytes [start, end) of an open file. ValueError if it is not as long as that."""
    data = bytearray()
    file.seek(start)
    with tqdm(total=end - start, unit="B", unit_scale=True, delay=2) as bar:
        while len(data) < end - start:
            wanted = min(PIECE, end - start - len(data))
            piece = file.read(wanted)
            if len(piece) != wanted:
                raise ValueError(f"{len(piece):,} bytes came where {wanted:,} were asked for")
            data += piece
            bar.update(len(piece))
    return data


def choose_tensor(model, names, wanted=None):
    """Which of a model's tensors is the input table: `wanted`, or the one with the likeliest name,
    the shortest of several (some models have copies deeper inside). InputError lists what there is.
    """
    if wanted is None:
        for ending in EMBEDDINGS:
            fitting = [n for n in names if n == ending or n.endswith(f".{ending}")]
            if fitting:
                return min(fitting, key=len)
        problem = "no tensor has a name that input tables have"
    elif wanted in names:
        return wanted
    else:
        problem = f"no tensor is called '{wanted}'"
    likely = sorted(names, key=lambda n: ("emb" not in n and "wte" not in n, len(n), n))
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    raise InputError(f"{model}: {problem}; --tensor=NAME chooses among "
                     f"{', '.join(likely[:12])}{more}")


@contextmanager
def refusing(model, what):
    """Whatever is wrong with a model, or on the way to it, is an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # those of the network library have no name in common
        raise InputError(f"{model}: no {what} that can be read here "
                         f"({type(error).__name__}: {error})") from None


def read_embedding(model, wanted=None):
    """The input-embedding table of a safetensors model, in its own dtype: (its name, (V, d)).
    Reads the header and the table, nothing else.

    A safetensors file is 8 bytes of header length, a JSON header {tensor: {dtype, shape,
    data_offsets}}, then the tensors' bytes; a model in several files has an index,
    {"weight_map": {tensor: file}}. InputError for anything else.
    """
    with refusing(model, "embedding"):
        name, file_name = wanted, "model.safetensors"
        try:
            with open_file(model, "model.safetensors.index.json") as index:
                weight_map = dict(json.loads(index.read())["weight_map"])
        except FileNotFoundError:
            pass
        else:
            name = choose_tensor(model, list(weight_map), wanted)
            file_name = os.path.basename(weight_map[name])
        with open_file(model, file_name) as file:
            size, = struct.unpack("<Q", read_bytes(file, 0, 8))
            if size > 100_000_000:  # the format's own limit
                raise ValueError(f"a header of {size:,} bytes")
            header = json.loads(read_bytes(file, 8, 8 + size))
            header.pop("__metadata__", None)
            name = choose_tensor(model, list(header), name)
            tensor = header[name]
            if tensor["dtype"] not in DTYPES:
                raise ValueError(f"{name} is of type {tensor['dtype']}, which is not read; of "
                                 f"these are: {', '.join(DTYPES)}")
            dtype, shape = DTYPES[tensor["dtype"]], tensor["shape"]
            start, end = tensor["data_offsets"]
            if len(shape) != 2:
                raise ValueError(f"{name} has the shape {shape}, no table")
            rows, width = shape
            if min(rows, width) < 1 or start < 0 or end - start != rows * width * dtype.itemsize:
                raise ValueError(f"shape {shape} does not fit data_offsets {start}, {end}")
            data = read_bytes(file, 8 + size + start, 8 + size + end)
        return name, torch.frombuffer(data, dtype=dtype).view(rows, width)


def read_vocabulary(model):
    """The bytes of every id of a tokenizer.json, b"" for ids it does not name. `model`: a folder,
    OWNER/NAME of the Hub, or the file itself. InputError if it is none that can be read."""
    with refusing(model, "vocabulary"):
        is_file = str(model).endswith(".json")
        with open(model, "rb") if is_file else open_file(model, "tokenizer.json") as file:
            return hf_token_bytes(json.loads(file.read()))
