"""Text <-> token ids, and the true bytes of every token.

    from lib.tokenizer import gpt2, train_bpe, train_unicode, from_state, token_bytes
    tok = train_bpe(texts, 4096)            # or gpt2(), or train_unicode(texts)
    tok.decode(tok.encode("Hello"))         # "Hello"
    token_bytes(tok)[tok.encode("Hi")[0]]   # b"Hi"

A tokenizer is its vocabulary: `tok.state` is a small JSON-able dict that goes into meta.json and into every checkpoint,
`from_state(tok.state)` is the same tokenizer again. Splitting and merging are tiktoken's, training is rustbpe's.
"""
import base64
import binascii
import functools
import itertools
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tiktoken

# GPT-2's rule for cutting text into pieces before merging, in the possessive form that tiktoken runs (same pieces, faster).
SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
END_OF_TEXT = "<|endoftext|>"
LONG = 100_000
LONG_GAP = re.compile(r"(?=[\t-\r \x85\u00a0\u2000-\u200a]\S)"  # before its last space
                      r"(?<=[\t-\r \x85\u00a0\u2000-\u200a]{100000})")


@functools.cache
def pool(threads):
    """Threads that stay: tiktoken copies its regular expression for new ones, up to 128 times, which is a gigabyte in the end."""
    return ThreadPoolExecutor(threads)


class Tokenizer:
    """Byte-level BPE: ids 0..n-1 are the merged byte strings in the order they were learned, id n is `<|endoftext|>`.

    Text never encodes to `<|endoftext|>`, not even the literal string: the id separates documents and nothing else.
    """

    def __init__(self, name, tokens):
        """`name`: gpt2 or bpe:N; `tokens`: list of distinct byte strings that include all 256 single bytes (else ValueError)."""
        ranks = {token: rank for rank, token in enumerate(tokens)}
        if len(ranks) != len(tokens) or any(bytes([b]) not in ranks for b in range(256)):
            raise ValueError("a vocabulary needs distinct tokens and every single byte among them")
        self.name, self.tokens = name, tokens
        self.eot = len(tokens)
        self.vocab_size = len(tokens) + 1
        self.encoding = tiktoken.Encoding(name, pat_str=SPLIT_PATTERN, mergeable_ranks=ranks,
                                          special_tokens={END_OF_TEXT: self.eot})

    def encode(self, text):
        """str -> list of ids. A very long gap is cut where the pattern would cut it: tiktoken gives up on a million spaces."""
        if len(text) > LONG and len(parts := LONG_GAP.split(text)) > 1:
            return [i for part in parts for i in self.encoding.encode_ordinary(part)]
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts, threads):
        """List of str -> list of lists of ids, on several threads (tiktoken works outside Python's lock)."""
        return list(pool(threads).map(self.encode, texts))

    def decode_bytes(self, ids):
        """Ids -> the bytes they stand for; `<|endoftext|>` gives its literal text."""
        return self.encoding.decode_bytes(ids)

    def decode(self, ids):
        """Ids -> str; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @property
    def state(self):
        """The tokenizer as a JSON-able dict: its name, and its tokens in id order, base64, separated by spaces."""
        return {"name": self.name, "tokens": " ".join(base64.b64encode(t).decode() for t in self.tokens)}


class UnicodeTokenizer:
    """Ids are UTF-16 code units, V = 65,536: the Unicode-centric tokenizer of 2605.09751's family.

    A code point of the Basic Multilingual Plane is its own id; one above it is its two surrogates. The private-use ids hold the
    merges, frequent trigrams and bigrams of characters: at each place the longest match wins. The noncharacter U+FFFF is
    `<|endoftext|>`. A character c of the text whose own id is taken by these becomes two low surrogates, 0xDC00 + (c >> 10) and
    0xDC00 + (c & 0x3FF), which nothing else gives: every other low surrogate follows a high one.
    """
    name, eot, vocab_size, most_merges = "unicode", 0xFFFF, 0x10000, 0xF900 - 0xE000

    def __init__(self, trigrams, bigrams):
        """Two lists of str; ValueError if they are too many, not distinct, or not of characters that are their own ids."""
        self.merges, sizes = [*trigrams, *bigrams], [3] * len(trigrams) + [2] * len(bigrams)
        if ([*map(len, self.merges)] != sizes or len(set(self.merges)) != len(sizes) or len(sizes) > self.most_merges
                or re.search("[^\0-\ud7ff\uf900-\ufffe]", "".join(self.merges))):
            raise ValueError("merges are at most 6,400 distinct trigrams and bigrams of characters that have their own ids")
        self.tokens = [chr(i).encode("utf-8", "surrogatepass") for i in range(self.eot)]
        self.tokens[0xE000:0xE000 + len(sizes)] = (merge.encode() for merge in self.merges)
        # tiktoken looks a piece up before it would merge bytes, so the pattern alone decides: a merge, or else one character.
        # What has no id of its own falls into its bytes; their ids, beyond the vocabulary, become two surrogates in encode_batch.
        ranks = {raw: i for i, raw in enumerate(self.tokens) if not 0xD800 <= i < 0xE000}
        ranks |= {bytes([b]): self.vocab_size + b for b in range(128, 256)}
        pieces = ["".join(f"\\x{{{ord(c):x}}}" for c in merge) for merge in self.merges]
        pattern = "|".join([*pieces, "(?s:.)"])  # the first alternative that fits is taken
        self.encoding = tiktoken.Encoding(self.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        taken = f"[\ue000-{chr(0xDFFF + len(sizes))}]|" if sizes else ""
        self.spelling = re.compile(f"{taken}\uffff|[\ud800-\udfff][\udc00-\udfff]")

    def encode(self, text):
        """str -> list of ids. A lone surrogate, which no encoding of Unicode has, is read as U+FFFD."""
        return self.encode_batch([text], 1)[0]

    def encode_batch(self, texts, threads):
        """List of str -> list of lists of ids, on several threads."""
        found = list(pool(threads).map(self.encoding.encode_ordinary, texts))
        for text, ids in zip(texts, found):
            if not text.isascii() and max(ids) >= self.vocab_size:
                bytewise, ids[:] = iter(ids[:]), []
                for i in bytewise:
                    if i >= self.vocab_size:
                        size = 4 if i - self.vocab_size >= 0xF0 else 3
                        c = ord(bytes(j - self.vocab_size for j in (i, *itertools.islice(bytewise, size - 1))).decode())
                        ids.append(0xDC00 + (c >> 10) if size == 3 else 0xD800 + (c - 0x10000 >> 10))
                        i = 0xDC00 + (c & 0x3FF)
                    ids.append(i)
        return found

    def decode_bytes(self, ids):
        """Ids -> UTF-8; a surrogate without its partner gives its three WTF-8 bytes, `<|endoftext|>` its literal text."""
        def spell(match):
            first, *second = map(ord, match[0])
            if not second:
                return END_OF_TEXT if first == self.eot else self.merges[first - 0xE000]
            if first < 0xDC00:
                return chr(0x10000 + (first - 0xD800 << 10) + second[0] - 0xDC00)
            c = (first - 0xDC00 << 10) + second[0] - 0xDC00
            return chr(c) if c == self.eot or 0xE000 <= c < 0xE000 + len(self.merges) else match[0]
        return self.spelling.sub(spell, "".join(map(chr, ids))).encode("utf-8", "surrogatepass")

    def decode(self, ids):
        """Ids -> str; each byte of a surrogate without its partner becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @property
    def state(self):
        """The tokenizer as a JSON-able dict: its name, its trigrams and its bigrams, each joined in id order."""
        parts = {size: "".join(merge for merge in self.merges if len(merge) == size) for size in (3, 2)}
        return {"name": self.name, "trigrams": parts[3], "bigrams": parts[2]}


def from_state(state):
    """The inverse of a tokenizer's `state`. ValueError if the dict is not one."""
    try:
        if state["name"] == UnicodeTokenizer.name:
            return UnicodeTokenizer(*([text[i:i + n] for i in range(0, len(text), n)]
                                      for text, n in ((state["trigrams"], 3), (state["bigrams"], 2))))
        return Tokenizer(state["name"], [base64.b64decode(t, validate=True) for t in state["tokens"].split(" ")])
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"not a saved tokenizer ({type(error).__name__}: {error})") from None


def gpt2():
    """GPT-2's tokenizer, V = 50,257. OSError if tiktoken has no copy of the vocabulary and cannot fetch one."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except OSError as error:  # requests' errors are OSErrors
        raise OSError(f"tiktoken cannot fetch GPT-2's vocabulary ({type(error).__name__}); without a network, set "
                      "TIKTOKEN_CACHE_DIR to a folder that tiktoken filled elsewhere, or use --tokenizer=bpe:N") from error
    return Tokenizer("gpt2", [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)])


def train_bpe(texts, vocab_size):
    """Train byte-level BPE with `vocab_size` ids, `<|endoftext|>` included, on an iterable of str.

    ValueError if `vocab_size` < 257 or > 2^31, or if the text has too few distinct pairs for that many merges.
    """
    if not 257 <= vocab_size <= 2**31:
        raise ValueError(f"bpe:{vocab_size} is too {'small' if vocab_size < 257 else 'large'}: "
                         "256 bytes and <|endoftext|> need 257, 2^31 is the most")
    import rustbpe  # where nothing is trained, nothing needs it
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size - 1, pattern=SPLIT_PATTERN)
    tokens = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]
    if len(tokens) < vocab_size - 1:
        raise ValueError(f"the training text gives only {len(tokens) + 1:,} tokens, bpe:{vocab_size} wants {vocab_size:,}")
    return Tokenizer(f"bpe:{vocab_size}", tokens)


def train_unicode(texts):
    """A unicode tokenizer with the 6,400 most frequent bigrams and trigrams of an iterable of str, or all where there are fewer.

    Equal counts are decided by the code points. Memory depends on the number of distinct n-grams, not on the length of the text.
    """
    counts = {n: (np.zeros(0, np.int64), np.zeros(0, np.int64)) for n in (2, 3)}  # n: (sorted n-grams as numbers, how often)
    texts, portion = iter(texts), [""]
    while portion:
        portion, size = [], 0
        while size < 2_000_000 and (text := next(texts, None)) is not None:
            portion.append(text)
            size += len(text)
        joined = "\uffff".join([*portion, "\uffff" * 3])
        units = np.frombuffer(joined.encode("utf-16-le", "replace"), np.uint16).astype(np.int64)
        units[(units >= 0xD800) & (units < 0xF900)] = 0xFFFF  # which no merge contains; it stands between texts too
        for n, (known, often) in counts.items():
            grams = np.lib.stride_tricks.sliding_window_view(units, n)
            grams = sum(grams[:, i] << 16 * (n - 1 - i) for i in range(n))[(grams != 0xFFFF).all(axis=1)]
            new, times = np.unique(grams, return_counts=True)
            union, where = np.unique(np.concatenate([known, new]), return_inverse=True)
            counts[n] = union, np.bincount(where, np.concatenate([often, times])).astype(np.int64)
    found = [(-times, "".join(chr(gram >> 16 * i & 0xFFFF) for i in reversed(range(n))))
             for n, both in counts.items() for gram, times in zip(*map(np.ndarray.tolist, both))]
    best = [merge for _, merge in sorted(found)[:UnicodeTokenizer.most_merges]]
    return UnicodeTokenizer([m for m in best if len(m) == 3], [m for m in best if len(m) == 2])


def token_bytes(tokenizer):
    """The true bytes of every id, a list of `vocab_size` byte strings.

    Not `decode([id]).encode()`: 344 of GPT-2's tokens are no UTF-8 on their own, and 340 ids would share a string with others.
    """
    return tokenizer.tokens + [END_OF_TEXT.encode()]


def script_of(text):
    """The script of a token's text: that of its letters ("Latin", "Devanagari", ...; "mixed" where
    there are several), else "digits", "space", "punctuation", or "bytes" for what is no UTF-8."""
    scripts = {unicodedata.name(c, "other").split()[0].capitalize() for c in text
               if unicodedata.category(c)[0] in "LM"}
    if scripts:
        return scripts.pop() if len(scripts) == 1 else "mixed"
    if "\ufffd" in text:
        return "bytes"
    if any(c.isdigit() for c in text):
        return "digits"
    return "punctuation" if text.strip() else "space"
