"""The Unicode-centric tokenizer: 65,536 ids, most of them characters, 6,400 of them merges.

What lib/tokenizer.py shares with it stands here too: END_OF_TEXT, pool, portions.
"""
import functools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tiktoken

END_OF_TEXT = "<|endoftext|>"


@functools.cache
def pool(threads):
    """Threads that stay: tiktoken copies its regular expression for new ones, up to 128 times,
    which is a gigabyte in the end."""
    return ThreadPoolExecutor(threads)


def portions(texts, size):
    """An iterable of str -> lists of them of about `size` characters each."""
    portion, length = [], 0
    for text in texts:
        portion.append(text)
        length += len(text)
        if length >= size:
            yield portion
            portion, length = [], 0
    if portion:
        yield portion


class UnicodeTokenizer:
    """Ids are UTF-16 code units, V = 65,536: the Unicode-centric tokenizer of 2605.09751's family.

    A code point of the Basic Multilingual Plane is its own id; one above it is its two surrogates.
    The private-use ids hold the merges, frequent trigrams and bigrams of characters: at each place
    the longest match wins. The noncharacter U+FFFF is `<|endoftext|>`. A character c of the text
    whose own id is taken by these becomes two low surrogates, 0xDC00 + (c >> 10) and
    0xDC00 + (c & 0x3FF), which nothing else gives: every other low surrogate follows a high one.
    """
    name, eot, vocab_size, most_merges = "unicode", 0xFFFF, 0x10000, 0xF900 - 0xE000

    def __init__(self, trigrams, bigrams):
        """Two lists of str; ValueError if they are too many, not distinct, or not of characters
        that are their own ids."""
        self.merges, sizes = [*trigrams, *bigrams], [3] * len(trigrams) + [2] * len(bigrams)
        fit = [len(merge) for merge in self.merges] == sizes
        distinct = len(set(self.merges)) == len(sizes) <= self.most_merges
        if not fit or not distinct or re.search("[^\0-\ud7ff\uf900-\ufffe]", "".join(self.merges)):
            raise ValueError("merges are at most 6,400 distinct trigrams and bigrams of characters "
                             "that have their own ids")
        self.tokens = [chr(i).encode("utf-8", "surrogatepass") for i in range(self.eot)]
        self.tokens[0xE000:0xE000 + len(sizes)] = [merge.encode() for merge in self.merges]
        self.spelled = [*self.tokens, END_OF_TEXT.encode()]
        # tiktoken looks a piece up before it would merge bytes, so the pattern alone decides: a
        # merge, or else one character. What has no id of its own falls into its bytes; their ids,
        # beyond the vocabulary, become two surrogates in encode_batch.
        ranks = {raw: i for i, raw in enumerate(self.tokens) if not 0xD800 <= i < 0xE000}
        ranks |= {bytes([b]): self.vocab_size + b for b in range(128, 256)}
        pieces = ["".join(f"\\x{{{ord(c):x}}}" for c in merge) for merge in self.merges]
        pattern = "|".join([*pieces, "(?s:.)"])  # the first alternative that fits is taken
        self.encoding = tiktoken.Encoding(self.name, pat_str=pattern, mergeable_ranks=ranks,
                                          special_tokens={})
        taken = f"[\ue000-{chr(0xDFFF + len(sizes))}]|" if sizes else ""
        self.spelling = re.compile(f"{taken}\uffff|[\ud800-\udfff][\udc00-\udfff]")

    def encode(self, text):
        """str -> list of ids. A lone surrogate, which no encoding of Unicode has, is read as
        U+FFFD."""
        return self.encode_batch([text], 1)[0]

    def encode_batch(self, texts, threads):
        """List of str -> list of lists of ids, on several threads."""
        found = list(pool(threads).map(self.encoding.encode_ordinary, texts))
        return [ids if text.isascii() or max(ids) < self.vocab_size else self.join_bytes(ids)
                for text, ids in zip(texts, found)]

    def join_bytes(self, ids):
        """tiktoken's ids -> ours: where a character stands as the ids of its bytes, its two
        surrogates."""
        joined, at = [], 0
        while at < len(ids):
            lead = ids[at] - self.vocab_size
            if lead < 0:
                joined.append(ids[at])
                at += 1
                continue
            size = 4 if lead >= 0xF0 else 3  # as UTF-8's first byte says
            c = ord(bytes(i - self.vocab_size for i in ids[at:at + size]).decode())
            first = 0xDC00 + (c >> 10) if size == 3 else 0xD800 + ((c - 0x10000) >> 10)
            joined += [first, 0xDC00 + (c & 0x3FF)]
            at += size
        return joined

    def decode_bytes(self, ids):
        """Ids -> UTF-8; a surrogate without its partner gives its three WTF-8 bytes,
        `<|endoftext|>` its literal text."""
        text = "".join(map(chr, ids))
        return self.spelling.sub(self.spell, text).encode("utf-8", "surrogatepass")

    def spell(self, match):
        """A match of `spelling`, one code unit or two -> what it stands for."""
        first, *second = map(ord, match[0])
        if not second:
            return END_OF_TEXT if first == self.eot else self.merges[first - 0xE000]
        low = second[0] - 0xDC00
        if first < 0xDC00:
            return chr(0x10000 + ((first - 0xD800) << 10) + low)
        c = ((first - 0xDC00) << 10) + low
        is_taken = c == self.eot or 0xE000 <= c < 0xE000 + len(self.merges)
        return chr(c) if is_taken else match[0]

    def decode(self, ids):
        """Ids -> str; each byte of a surrogate without its partner becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @property
    def state(self):
        """The tokenizer as a JSON-able dict: its name, its trigrams and its bigrams, each joined in
        id order."""
        return {"name": self.name, "trigrams": "".join(m for m in self.merges if len(m) == 3),
                "bigrams": "".join(m for m in self.merges if len(m) == 2)}


# ---- training ----------------------------------------------------------------------------------

def ngrams(units, n):
    """All n-grams of UTF-16 code units (int64) that are without U+FFFF, as numbers of 16 n bits."""
    windows = np.lib.stride_tricks.sliding_window_view(units, n)  # (len - n + 1, n)
    windows = windows[(windows != 0xFFFF).all(axis=1)]
    shifts = 16 * np.arange(n - 1, -1, -1)
    return (windows << shifts).sum(axis=1)


def train_unicode(texts):
    """A unicode tokenizer with the 6,400 most frequent bigrams and trigrams of an iterable of str,
    or all where there are fewer.

    Equal counts are decided by the code points. Memory depends on the number of distinct n-grams,
    not on the length of the text.
    """
    nothing = np.zeros(0, np.int64)
    known, often = {2: nothing, 3: nothing}, {2: nothing, 3: nothing}  # n-grams, sorted; how often
    for portion in portions(texts, 2_000_000):
        joined = "\uffff".join([*portion, "\uffff" * 3])
        units = np.frombuffer(joined.encode("utf-16-le", "replace"), np.uint16).astype(np.int64)
        units[(units >= 0xD800) & (units < 0xF900)] = 0xFFFF  # no merge has it; between texts too
        for n in known:
            new, times = np.unique(ngrams(units, n), return_counts=True)
            union, where = np.unique(np.concatenate([known[n], new]), return_inverse=True)
            count = np.bincount(where, np.concatenate([often[n], times]))
            known[n], often[n] = union, count.astype(np.int64)
    found = []
    for n in known:
        for gram, times in zip(known[n].tolist(), often[n].tolist()):
            units = [(gram >> (16 * i)) & 0xFFFF for i in reversed(range(n))]
            found.append((-times, "".join(map(chr, units))))
    best = [merge for _, merge in sorted(found)[:UnicodeTokenizer.most_merges]]
    return UnicodeTokenizer([m for m in best if len(m) == 3], [m for m in best if len(m) == 2])
