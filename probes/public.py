"""Public models in, of which only what is needed is read: the input table out of a safetensors
file, and the bytes of each token out of tokenizer.json. A folder, or a Hub id."""
import json
import os
import re
import struct
from pathlib import Path

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


def read_file(model, name, start=0, end=None):
    """Bytes [start, end) of a file of a model, all of it if `end` is None.

    FileNotFoundError if there is no such file, InputError if it cannot be read or is not as long
    as that.
    """
    if os.path.isdir(model):
        with open(os.path.join(model, name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(min(start, size))  # a damaged header may say any number
            data = file.read(size if end is None else min(end - start, size))
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
        raise InputError(f"{model}: no such folder, and not a Hub id")
    elif end is None:
        data = fetch(model, name)
    else:
        data = bytearray()
        with tqdm(desc=name, total=end - start, unit="B", unit_scale=True, delay=2) as bar:
            while start + len(data) < end:
                first = start + len(data)
                piece = fetch(model, name, first, min(first + PIECE, end))
                if len(piece) != min(PIECE, end - first):
                    raise InputError(f"{model}/{name}: {len(piece):,} bytes came where "
                                     f"{min(PIECE, end - first):,} were asked for")
                data += piece
                bar.update(len(piece))
    if end is not None and len(data) != end - start:
        raise InputError(f"{model}/{name}: {len(data):,} bytes came where {end - start:,} "
                         "should be")
    return bytearray(data)


def fetch(model, name, start=None, end=None):
    """Bytes of a file on the Hub, by a request that the Hub's own client sends: with the user's
    token, HF_ENDPOINT, redirects, and retries of what passes. Errors as `read_file`."""
    try:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff
    except ImportError:
        raise InputError(f"{model}: to read a model from the Hub, pip install "
                         "huggingface_hub") from None
    try:
        headers = build_hf_headers()
        if end is not None:
            headers["Range"] = f"bytes={start}-{end - 1}"
        url = hf_hub_url(model, name)
        reply = http_backoff("GET", url, headers=headers,
                             timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(reply)
        return reply.content
    except EntryNotFoundError:
        raise FileNotFoundError(f"{model}: no {name} there") from None
    except Exception as error:  # the errors of its network library have no name here
        raise InputError(f"{model}/{name}: {error} ({type(error).__name__})") from None


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


def read_embedding(model, wanted=None):
    """The input-embedding table of a safetensors model, in its own dtype: (its name, (V, d)).
    Reads the header and the table, nothing else.

    A safetensors file is 8 bytes of header length, a JSON header {tensor: {dtype, shape,
    data_offsets}}, then the tensors' bytes; a model in several files has an index,
    {"weight_map": {tensor: file}}. InputError for anything else.
    """
    try:
        try:
            index = read_file(model, "model.safetensors.index.json")
            weight_map = dict(json.loads(index)["weight_map"])
            name = choose_tensor(model, list(weight_map), wanted)
            file = os.path.basename(weight_map[name])
        except FileNotFoundError:
            file, name = "model.safetensors", None
        (size,) = struct.unpack("<Q", read_file(model, file, 0, 8))
        if size > 100_000_000:  # the format's own limit
            raise ValueError(f"a header of {size:,} bytes")
        header = json.loads(read_file(model, file, 8, 8 + size))
        header.pop("__metadata__", None)
        name = choose_tensor(model, list(header), wanted if name is None else name)
        tensor = header[name]
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"{name} is of type {tensor['dtype']}, which is not read; of these "
                             f"are: {', '.join(DTYPES)}")
        dtype, shape = DTYPES[tensor["dtype"]], tensor["shape"]
        start, end = tensor["data_offsets"]
        if len(shape) != 2:
            raise ValueError(f"{name} has the shape {shape}, no table")
        rows, width = shape
        if min(rows, width) < 1 or start < 0 or end - start != rows * width * dtype.itemsize:
            raise ValueError(f"shape {shape} does not fit data_offsets {tensor['data_offsets']}")
        data = read_file(model, file, 8 + size + start, 8 + size + end)
        return name, torch.frombuffer(data, dtype=dtype).view(rows, width)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{model}: no embedding that can be read here "
                         f"({type(error).__name__}: {error})") from None


def read_vocabulary(model):
    """The bytes of every id of a tokenizer.json, b"" for ids it does not name. `model`: a folder, a
    Hub id, or the file itself. InputError if it is none that can be read."""
    try:
        if str(model).endswith(".json"):
            raw = Path(model).read_bytes()
        else:
            raw = read_file(model, "tokenizer.json")
        return hf_token_bytes(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{model}: no vocabulary that can be read here "
                         f"({type(error).__name__}: {error})") from None
