"""The Unicode-centric tokenizer, and what all tokenizers share."""
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import tiktoken

END_OF_TEXT = "<|endoftext|>"
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
UNMERGED = re.compile("[^\0-\ud7ff\uf900-\ufffe]")  # characters that no merge has
# threads that stay: tiktoken copies its regular expression for new ones, up to a gigabyte
POOL = ThreadPoolExecutor(CPUS)


class Vocabulary:
    """What all tokenizers share: ids are decoded through `token_bytes`, the bytes of every id."""

    def encode_batch(self, texts):
        """List of str -> list of lists of ids, on several threads."""
        return list(POOL.map(self.encode, texts))

    def decode_bytes(self, ids):
        """Ids -> the bytes they stand for; a special token gives its literal text."""
        return b"".join([self.token_bytes[i] for i in ids])

    def decode(self, ids):
        """Ids -> str; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class UnicodeTokenizer(Vocabulary):
    """Ids are UTF-16 code units, V = 65,536: the Unicode-centric tokenizer of 2605.09751's family.

    A code point of the Basic Multilingual Plane is its own id; one above it is its two surrogates.
    The private-use ids hold the merges, frequent trigrams and bigrams of characters: at each place
    the longest match wins. The noncharacter U+FFFF is `<|endoftext|>`. A character c of the text
    whose own id is taken by these becomes two low surrogates, 0xDC00 + (c >> 10) and
    0xDC00 + (c & 0x3FF), which nothing else gives: every other low surrogate follows a high one.
    """
    name, eot, vocab_size, most_merges = "unicode", 0xFFFF, 0x10000, 0xF900 - 0xE000

    def __init__(self, trigrams, bigrams):
        """Two str, each of distinct merges one after the other, at most 6,400 in all."""
        self.state = {"name": self.name, "trigrams": trigrams, "bigrams": bigrams}
        self.merges = re.findall("(?s)...", trigrams) + re.findall("(?s)..", bigrams)
        taken = range(0xE000, 0xE000 + len(self.merges))
        tokens = [chr(i).encode("utf-8", "surrogatepass") for i in range(self.eot)]
        tokens[taken.start:taken.stop] = [merge.encode() for merge in self.merges]
        self.token_bytes = [*tokens, END_OF_TEXT.encode()]
        # each alternative is a token, the first that fits is taken
        pieces = ["".join(f"\\x{{{ord(c):x}}}" for c in merge) for merge in self.merges]
        ranks = {raw: i for i, raw in enumerate(tokens) if not 0xD800 <= i < 0xE000}
        self.encoding = tiktoken.Encoding(self.name, pat_str="|".join([*pieces, "(?s:.)"]),
                                          mergeable_ranks=ranks, special_tokens={})
        self.taken = "\uffff" + "".join(map(chr, taken))
        self.without_id = re.compile(f"([\U00010000-\U0010ffff{self.taken}])")
        self.spelling = re.compile(f"[{self.taken}]|[\udc00-\udfff]{{2}}")

    def encode(self, text):
        """str -> list of ids."""
        others, *rest = self.without_id.split(text)
        ids = self.encoding.encode_ordinary(others)
        for character, others in zip(rest[::2], rest[1::2]):
            c = ord(character)
            first = 0xD800 + ((c - 0x10000) >> 10) if c >= 0x10000 else 0xDC00 + (c >> 10)
            ids += [first, 0xDC00 + (c & 0x3FF), *self.encoding.encode_ordinary(others)]
        return ids

    def decode_bytes(self, ids):
        """Ids -> UTF-8; a surrogate without its partner gives its three WTF-8 bytes."""
        units = "".join(map(chr, ids)).encode("utf-16-le", "surrogatepass")
        text = units.decode("utf-16-le", "surrogatepass")  # joins the two halves of a character
        return self.spelling.sub(self.spell, text).encode("utf-8", "surrogatepass")

    def spell(self, match):
        """A match of `spelling`, one code unit or two -> what it stands for."""
        first, *second = map(ord, match[0])
        if not second:
            return END_OF_TEXT if first == self.eot else self.merges[first - 0xE000]
        c = chr(((first - 0xDC00) << 10) + second[0] - 0xDC00)
        return c if c in self.taken else match[0]


def train_unicode(texts):
    """A unicode tokenizer with the 6,400 most frequent bigrams and trigrams of an iterable of str,
    or all where there are fewer. Equal counts are decided by the code points."""
    counts = Counter()
    for text in texts:
        counts.update(map("".join, zip(text, text[1:])))
        counts.update(map("".join, zip(text, text[1:], text[2:])))
    found = [(-times, gram) for gram, times in counts.items() if not UNMERGED.search(gram)]
    best = [gram for _, gram in sorted(found)[:UnicodeTokenizer.most_merges]]
    return UnicodeTokenizer("".join(m for m in best if len(m) == 3),
                            "".join(m for m in best if len(m) == 2))
