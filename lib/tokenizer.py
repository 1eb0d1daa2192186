"""Text <-> token ids, and the true bytes of every token.

    tok = train_bpe(texts, 4096)            # or gpt2(), train_unicode(texts), hugging_face(spec)
    tok.decode(tok.encode("Hello"))         # "Hello"
    token_bytes(tok)[tok.encode("Hi")[0]]   # b"Hi"

All have `name`, `vocab_size`, `eot` (the id that separates documents), `token_bytes` (the bytes of
every id), `encode`, `encode_batch`, `decode`, `decode_bytes` and `state`, a JSON-able dict from
which `from_state` makes the same tokenizer again.
"""
import base64
import functools
import json
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import tiktoken

from lib.errors import InputError, one_line
from lib.unicode_tokenizer import END_OF_TEXT, UnicodeTokenizer, Vocabulary, train_unicode

# Rules for cutting text into pieces before merging, in the possessive form that tiktoken runs (same
# pieces, faster). \p{L} does not include the vowel signs of Indic scripts or other combining marks,
# \p{M}: gpt2 cuts words at them, indic does not, nor at the joiners that shape conjuncts.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"}
PATTERNS["indic"] = PATTERNS["gpt2"].replace(r"\p{L}++", r"\p{L}[\p{L}\p{M}\x{200c}\x{200d}]*+")
LONG = 100_000  # characters; a gap this long is cut before its last space, as the patterns do
LONG_GAP = re.compile(rf"(?=[\t-\r ]\S)(?<=[\t-\r ]{{{LONG}}})")


class Tokenizer(Vocabulary):
    """Byte-level BPE: ids 0..n-1 are the merged byte strings in the order they were learned, id n
    is `<|endoftext|>`, to which no text encodes, not even the literal string."""

    def __init__(self, name, tokens, pattern="gpt2"):
        """`name`: gpt2 or bpe:N; `tokens`: list of distinct byte strings that include all 256
        single bytes; `pattern`: of PATTERNS."""
        self.name, self.tokens, self.pattern = name, tokens, pattern
        self.eot, self.vocab_size = len(tokens), len(tokens) + 1
        ranks = {token: rank for rank, token in enumerate(tokens)}
        self.token_bytes = [*tokens, END_OF_TEXT.encode()]
        self.encoding = tiktoken.Encoding(name, pat_str=PATTERNS[pattern], mergeable_ranks=ranks,
                                          special_tokens={END_OF_TEXT: self.eot})

    def encode(self, text):
        """str -> list of ids. A very long gap is cut where the pattern would cut it: tiktoken gives
        up on a million spaces."""
        if len(text) <= LONG:
            return self.encoding.encode_ordinary(text)
        return [i for part in LONG_GAP.split(text) for i in self.encoding.encode_ordinary(part)]

    @property
    def state(self):
        """The tokenizer as a JSON-able dict; tokens in id order, base64, separated by spaces."""
        tokens = " ".join(base64.b64encode(token).decode() for token in self.tokens)
        return {"name": self.name, "pattern": self.pattern, "tokens": tokens}


class CharTokenizer(Vocabulary):
    """One id for each character of a fixed list, as in nanoGPT's meta.pkl, then `<|endoftext|>`."""
    name = "chars"

    def __init__(self, characters):
        """`characters`: a str of distinct ones in id order."""
        self.state = {"name": self.name, "characters": characters}
        self.ids = {c: i for i, c in enumerate(characters)}
        self.eot, self.vocab_size = len(characters), len(characters) + 1
        self.token_bytes = [c.encode(errors="replace") for c in characters] + [END_OF_TEXT.encode()]

    def encode(self, text):
        """str -> list of ids. InputError names a character that has none."""
        try:
            return [self.ids[c] for c in text]
        except KeyError as error:
            raise InputError(f"the character {error} is not one of the {len(self.ids)} that this "
                             f"vocabulary has: {''.join(self.ids)[:100]!r}") from None


# ---- tokenizers of Hugging Face ----------------------------------------------------------------

# What a document is ended by, in the order of choice; matched without regard to case.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>",
        "[eos]")


class HuggingFaceTokenizer(Vocabulary):
    """A `tokenizer.json` of the library `tokenizers`, byte-level or sentencepiece-style. No text
    encodes to `eot`. What its normalizer changes (NFKC, lower case) stays changed."""

    def __init__(self, name, text):
        """`text`: the file's. ValueError if it is not one that can be used."""
        from tokenizers import Tokenizer as Encoding  # where none is given, nothing needs it
        with one_line("not a tokenizer.json that can be used here", ValueError):
            data = json.loads(text)
            self.token_bytes = hf_token_bytes(data)
            special = {token["content"]: token["id"] for token in data.get("added_tokens", ())
                       if token["special"]}
            # what a model wants around its inputs: documents are separated here, and are not cut
            data |= dict.fromkeys(("post_processor", "truncation", "padding"))
            data["model"]["dropout"] = None  # the same text gives the same ids
            self.encoding = Encoding.from_str(json.dumps(data))
        self.encoding.encode_special_tokens = True  # a text that spells one is text
        self.name, self.text = name, text
        ends = {content.lower(): id for content, id in reversed(special.items())}
        self.eot = next((ends[end] for end in ENDS if end in ends), len(self.token_bytes))
        if self.eot == len(self.token_bytes):
            self.token_bytes.append(END_OF_TEXT.encode())
        self.vocab_size = len(self.token_bytes)

    def encode(self, text):
        """str -> list of ids."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """List of str -> list of lists of ids, on the library's threads (RAYON_NUM_THREADS)."""
        found = self.encoding.encode_batch_fast(texts, add_special_tokens=False)
        return [[i for i in encoded.ids if i != self.eot] for encoded in found]

    @functools.cached_property
    def state(self):
        """The tokenizer as a JSON-able dict: its file, zlib in base64."""
        packed = zlib.compress(self.text.encode(), 9)
        return {"name": self.name, "tokenizer.json": base64.b64encode(packed).decode()}


def byte_alphabet():
    """The characters that byte-level tokenizers of Hugging Face write bytes as: {character: byte}.
    GPT-2's visible bytes are themselves, the others follow from U+0100 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(others)}


def hf_token_bytes(data):
    """A parsed tokenizer.json -> the true bytes of every id, a list; b"" for an id that no token
    has. ValueError, KeyError, TypeError or AttributeError if it is none. Byte-level vocabularies
    write bytes in `byte_alphabet`; sentencepiece-style ones a space as ▁, a byte as <0xNN>; added
    tokens stand as they are."""
    model = data["model"]
    if model.get("type") in ("WordPiece", "WordLevel"):
        raise ValueError(f"a {model['type']} vocabulary, whose words do not say their spaces")
    if isinstance(model["vocab"], dict):
        tokens = {id: token for token, id in model["vocab"].items()}
    else:
        tokens = dict(enumerate(token for token, _ in model["vocab"]))
    parts = [data.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
    alphabet = byte_alphabet() if '"ByteLevel"' in json.dumps(parts) else None
    ending = model.get("end_of_word_suffix")

    def spell(token):
        if alphabet and all(c in alphabet for c in token):
            return bytes([alphabet[c] for c in token])
        if byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", token):
            return bytes.fromhex(byte[1])
        if ending and token.endswith(ending):
            token = token.removesuffix(ending) + " "
        return token.replace("▁", " ").encode(errors="replace")

    strings = {id: spell(token) for id, token in tokens.items()}
    for token in data.get("added_tokens") or ():
        strings[token["id"]] = token["content"].encode(errors="replace")
    if not strings or min(strings) < 0 or max(strings) >= 2**24:
        raise ValueError("no ids, or some that are out of range")
    return [strings.get(id, b"") for id in range(max(strings) + 1)]


def hugging_face(spec):
    """The tokenizer of FILE.json, of a folder with a tokenizer.json, or of OWNER/NAME on the Hub.
    InputError if there is none, OSError if the Hub does not give it."""
    path = Path(spec)
    if path.is_dir():
        path = path / "tokenizer.json"
    elif not spec.lower().endswith(".json"):
        from huggingface_hub import hf_hub_download
        with one_line(f"--tokenizer={spec}: no such folder, and no tokenizer.json of the Hub"):
            path = Path(hf_hub_download(spec, "tokenizer.json"))
    if not path.is_file():
        raise InputError(f"--tokenizer={spec}: {path} is not there (from vocab.json and merges.txt,"
                         " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) makes it)")
    try:
        return HuggingFaceTokenizer(spec, path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"--tokenizer={spec}: {error}") from None


# ---- making one --------------------------------------------------------------------------------

def from_state(state):
    """A tokenizer from its `state`. ValueError, KeyError, TypeError or AttributeError if none."""
    if "tokenizer.json" in state:
        packed = base64.b64decode(state["tokenizer.json"], validate=True)
        return HuggingFaceTokenizer(state["name"], zlib.decompress(packed).decode())
    if state["name"] == CharTokenizer.name:
        return CharTokenizer(state["characters"])
    if state["name"] == UnicodeTokenizer.name:
        return UnicodeTokenizer(state["trigrams"], state["bigrams"])
    tokens = [base64.b64decode(token, validate=True) for token in state["tokens"].split(" ")]
    return Tokenizer(state["name"], tokens, state.get("pattern", "gpt2"))


def gpt2():
    """GPT-2's tokenizer, V = 50,257. OSError if tiktoken cannot get its vocabulary."""
    with one_line("no GPT-2 vocabulary from tiktoken; set TIKTOKEN_CACHE_DIR to a folder with it"):
        encoding = tiktoken.get_encoding("gpt2")
    return Tokenizer("gpt2", encoding.decode_tokens_bytes(range(encoding.eot_token)))


def train_bpe(texts, vocab_size, pattern="gpt2"):
    """Train byte-level BPE with `vocab_size` ids, `<|endoftext|>` included, on an iterable of str.
    InputError if it is under 257 or if the text has too few pairs for that many merges."""
    if not 257 <= vocab_size <= 2**31:
        raise InputError(f"bpe:{vocab_size}: a vocabulary has at least 257 ids, at most 2^31")
    import rustbpe  # where nothing is trained, nothing needs it
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size - 1, pattern=PATTERNS[pattern])
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    if len(ranks) < vocab_size - 1:
        raise InputError(f"the training text gives only {len(ranks) + 1:,} tokens, "
                         f"bpe:{vocab_size} wants {vocab_size:,}")
    return Tokenizer(f"bpe:{vocab_size}", [bytes(token) for token, _ in ranks], pattern)


def make(spec, training_text):
    """The tokenizer that --tokenizer says, trained on an iterable of text if need be. InputError
    if there can be none, OSError if it cannot be fetched."""
    if trained := re.fullmatch(r"bpe:(\d+)(:indic)?", spec):
        return train_bpe(training_text, int(trained[1]), "indic" if trained[2] else "gpt2")
    if spec == "unicode":
        return train_unicode(training_text)
    if spec == "gpt2":
        return gpt2()
    if "/" in spec or spec.lower().endswith(".json") or Path(spec).is_dir():
        return hugging_face(spec)
    raise InputError(f"unknown tokenizer '{spec}' (gpt2, unicode, bpe:N, FILE.json, a folder or "
                     "OWNER/NAME)")


def token_bytes(tokenizer):
    """The true bytes of every id, a list; b"" for an id that has none. Not `decode([id]).encode()`:
    344 of GPT-2's tokens are no UTF-8 on their own. tokenizer: one of this file, of tiktoken, of
    `tokenizers` or a fast one of `transformers`, else TypeError; ValueError for a vocabulary that
    does not say its bytes."""
    if hasattr(tokenizer, "token_bytes"):
        return list(tokenizer.token_bytes)
    if isinstance(tokenizer, tiktoken.Encoding):
        strings = [b""] * tokenizer.n_vocab
        for raw in (*tokenizer.token_byte_values(), *map(str.encode, tokenizer.special_tokens_set)):
            strings[tokenizer.encode_single_token(raw)] = raw
        return strings
    rust = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(rust, "to_str"):
        raise TypeError(f"the bytes of a {type(tokenizer).__name__}'s tokens are not known here")
    return hf_token_bytes(json.loads(rust.to_str()))


def text_bytes(tok):
    """How many bytes of text each id stands for, (V,) int array: what bits per byte divide by."""
    width = np.array([len(raw) for raw in tok.token_bytes])
    width[tok.eot] = 0  # it separates documents and is no text
    if tok.name == "unicode":
        width[0xD800:0xE000] = 2  # a surrogate is half of a character, whose UTF-8 is four bytes
    return width


def id_type(tok):
    """The numpy type of token ids on disk."""
    return np.dtype(np.uint16 if tok.vocab_size <= 2**16 else np.uint32)


def unseen(strings, pos_dim):
    """What a code that reads a token's first P bytes does not see, a bool for each byte string, two
    lists: whether it is longer, whether another shares its first P bytes; b"" is never read."""
    holders = Counter(raw[:pos_dim] for raw in strings if raw)
    return [len(raw) > pos_dim for raw in strings], [holders[raw[:pos_dim]] > 1 for raw in strings]


def script_of(text):
    """The script of a token's letters and marks ("Latin", ...; "mixed" for several); without any
    "bytes" (it has a part of a character, U+FFFD), "digits", "punctuation", "space" or "other"."""
    from fontTools.unicodedata import category, script, script_name  # takes a twentieth of a second
    categories = [category(c)[0] for c in text]
    scripts = {script(c) for c, kind in zip(text, categories) if kind in "LM"} - {"Zyyy", "Zinh"}
    if scripts:
        return script_name(scripts.pop()) if len(scripts) == 1 else "mixed"
    others = {"bytes": "\ufffd" in text, "digits": "N" in categories,
              "punctuation": "P" in categories or "S" in categories, "space": text.isspace()}
    return next((kind for kind, is_it in others.items() if is_it), "other")


def by_script(strings):
    """How many byte strings there are, and of which scripts: "3 (Latin 2, bytes 1)"."""
    scripts = Counter(script_of(raw.decode(errors="replace")) for raw in strings)
    named = ", ".join(f"{script} {count:,}" for script, count in scripts.most_common())
    return f"{scripts.total():,}" + (f" ({named})" if named else "")
