"""Text <-> token ids, and the true bytes of every token.

    from tokenizer import gpt2, train_bpe, from_state, token_bytes
    tok = train_bpe(texts, 4096)            # or gpt2()
    tok.decode(tok.encode("Hello"))         # "Hello"
    token_bytes(tok)[tok.encode("Hi")[0]]   # b"Hi"

A tokenizer is its vocabulary: `tok.state` is a small JSON-able dict that goes into meta.json and into every checkpoint,
`from_state(tok.state)` is the same tokenizer again. Splitting and merging are tiktoken's, training is rustbpe's.
"""
import base64
import binascii

import rustbpe
import tiktoken

# GPT-2's rule for cutting text into pieces before merging, in the possessive form that tiktoken runs (same pieces, faster).
SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
END_OF_TEXT = "<|endoftext|>"


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
        """str -> list of ids."""
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts, threads):
        """List of str -> list of lists of ids, on several threads (tiktoken works outside Python's lock)."""
        return self.encoding.encode_ordinary_batch(texts, num_threads=threads)

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


def from_state(state):
    """The inverse of `Tokenizer.state`. ValueError if the dict is not one."""
    try:
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
        raise ValueError(f"bpe:{vocab_size} is too {'small' if vocab_size < 257 else 'large'}: 256 bytes and <|endoftext|> need 257, 2^31 is the most")
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size - 1, pattern=SPLIT_PATTERN)
    tokens = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]
    if len(tokens) < vocab_size - 1:
        raise ValueError(f"the training text gives only {len(tokens) + 1:,} tokens, bpe:{vocab_size} wants {vocab_size:,}")
    return Tokenizer(f"bpe:{vocab_size}", tokens)


def token_bytes(tokenizer):
    """The true bytes of every id, a list of `vocab_size` byte strings.

    Not `decode([id]).encode()`: 344 of GPT-2's tokens are no UTF-8 on their own, and 340 ids would share a string with others.
    """
    return tokenizer.tokens + [END_OF_TEXT.encode()]
