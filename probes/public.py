"""Public models: their input table, read by ranges out of a safetensors file, and the bytes of each
token out of tokenizer.json. A folder, or OWNER/NAME of the Hub."""
import json
import os
import struct
from contextlib import suppress

import torch
from tqdm import trange

from lib.errors import one_line
from lib.tokenizer import hf_token_bytes

# What the input table is called, the likelier name first. "shared" is T5's, "emb" RWKV's.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
              "tok_embeddings.weight", "embedding.weight", "embeddings.weight", "shared.weight",
              "embed.weight", "emb.weight", "wte")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
PIECE = 2**26  # bytes that are asked for at once


def open_file(model, name):
    """A model's file, or the file that `model` itself is; of the Hub only what is read is fetched.
    FileNotFoundError if it is not there, ValueError if there is no such model."""
    if os.path.exists(model):
        return open(os.path.join(model, name) if os.path.isdir(model) else model, "rb")
    if model.count("/") != 1 or os.path.isdir(os.path.dirname(model)):
        raise ValueError("no such folder, and not OWNER/NAME of the Hub")
    from huggingface_hub import HfFileSystem  # takes a second, which other probes need not wait for
    return HfFileSystem().open(f"{model}/{name}", cache_type="none")


def read_bytes(file, start, end):
    """Bytes [start, end) of an open file. ValueError if it is not as long as that."""
    if file.seek(0, os.SEEK_END) < end:
        raise ValueError(f"it ends before byte {end:,}")
    data = bytearray()
    file.seek(start)
    for first in trange(start, end, PIECE, unit_scale=PIECE, unit="B", delay=2):
        data += file.read(min(PIECE, end - first))
    return data


def choose_tensor(names, wanted):
    """Which tensor is the input table: the one with the wanted or else the likeliest name, the
    shortest of several (some models have copies deeper inside). ValueError lists what there is."""
    for ending in EMBEDDINGS if wanted is None else [wanted]:
        fitting = [name for name in names if f".{name}".endswith(f".{ending}")]
        if fitting:
            return min(fitting, key=len)
    likely = sorted(names, key=lambda n: ("emb" not in n and "wte" not in n, len(n), n))
    raise ValueError(f"no input table found; --tensor=NAME chooses among its {len(names)} tensors: "
                     f"{', '.join(likely[:12])}")


def read_embedding(model, wanted=None):
    """The input-embedding table of a safetensors model, in its own dtype: (its name, (V, d)).
    Reads the header and the table, nothing else. OSError if that cannot be.

    A safetensors file is 8 bytes of header length, a JSON header {tensor: {dtype, shape,
    data_offsets}}, the tensors' bytes; an index of several files is {"weight_map": {tensor: file}}.
    """
    with one_line(f"{model}: no embedding that can be read here"):
        file_name = "model.safetensors"
        with suppress(FileNotFoundError), open_file(model, "model.safetensors.index.json") as index:
            weight_map = json.load(index)["weight_map"]
            wanted = choose_tensor(list(weight_map), wanted)
            file_name = os.path.basename(weight_map[wanted])
        with open_file(model, file_name) as file:
            size, = struct.unpack("<Q", read_bytes(file, 0, 8))
            header = json.loads(read_bytes(file, 8, 8 + size))
            header.pop("__metadata__", None)
            name = choose_tensor(list(header), wanted)
            dtype, (rows, width) = DTYPES[header[name]["dtype"]], header[name]["shape"]
            start, end = header[name]["data_offsets"]
            if start < 0 or end - start != rows * width * dtype.itemsize:
                raise ValueError(f"{rows} x {width} numbers are not in bytes {start} to {end}")
            data = read_bytes(file, 8 + size + start, 8 + size + end)
        return name, torch.frombuffer(data, dtype=dtype).view(rows, width)


def read_vocabulary(model):
    """The bytes of every id of a model's tokenizer.json, or that file: b"" for ids it lacks."""
    says = f"{model}: no vocabulary that can be read here"
    with one_line(says), open_file(model, "tokenizer.json") as file:
        return hf_token_bytes(json.load(file))
