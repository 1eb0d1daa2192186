"""Text <-> ids, and the true bytes of every token."""
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
import regex
import tiktoken
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lib import tokenizer
from lib.tokenizer import (END_OF_TEXT, PATTERNS, HuggingFaceTokenizer, UnicodeTokenizer,
                           byte_alphabet, from_state, hf_token_bytes, id_type, script_of,
                           token_bytes, train_bpe, train_unicode)

HARD = ["", " ", "\n\n\t x\r\n", "naïve café — 東京 🙂👩‍👩‍👧", "don't I'LL 1234567 x_y",
        "\0\x7f\ufeff\ufffd", f"a{END_OF_TEXT}b {END_OF_TEXT}", "^" * 1_000_000]


@pytest.fixture(scope="module")
def unicode(docs):
    """Trained on the docstrings: all 6,400 merges are taken, so every private-use character needs
    its two low surrogates."""
    return train_unicode(docs)


@pytest.fixture(params=["bpe", "gpt2", "unicode"])
def tok(request):
    return request.getfixturevalue(request.param)


def test_token_bytes_spell_the_text(tok, docs):
    """The bytes of a text's tokens, joined, are the text's, and no text ends a document. Batches on
    threads give what single texts give."""
    spelled, texts = token_bytes(tok), docs[::4] + HARD
    found = [tok.encode(text) for text in texts]
    for text, ids in zip(texts, found):
        assert tok.decode_bytes(ids) == text.encode() and tok.decode(ids) == text
        assert tok.name == "unicode" or b"".join(spelled[i] for i in ids) == text.encode()
        assert tok.eot not in ids
    assert tok.encode_batch(texts) == found


def test_every_id_has_its_own_bytes(tok, docs):
    """token_bytes gives vocab_size distinct byte strings, the separator's literal text last. A
    tokenizer read back from JSON is the same tokenizer."""
    spelled = token_bytes(tok)
    assert len(spelled) == len(set(spelled)) == tok.vocab_size
    assert spelled[tok.eot] == END_OF_TEXT.encode() and tok.eot == tok.vocab_size - 1
    assert all(tok.decode_bytes([i]) == raw for i, raw in enumerate(spelled))
    again = from_state(json.loads(json.dumps(tok.state)))
    assert (again.name, again.eot, token_bytes(again)) == (tok.name, tok.eot, spelled)
    assert again.encode_batch(docs[:50] + HARD) == tok.encode_batch(docs[:50] + HARD)


def test_gpt2_facts(gpt2, docs):
    """Our gpt2 encodes as tiktoken's own does. Decoded one by one, 340 tokens collapse, 255 of them
    onto U+FFFD; mean 6.38 bytes."""
    reference = tiktoken.get_encoding("gpt2")
    assert all(gpt2.encode(text) == reference.encode_ordinary(text) for text in docs + HARD)
    decoded = Counter(gpt2.decode([i]) for i in range(gpt2.vocab_size))
    assert gpt2.vocab_size == 50257 and decoded["\ufffd"] == 255
    assert sum(n for n in decoded.values() if n > 1) == 340
    assert np.mean([len(raw) for raw in token_bytes(gpt2)]) == pytest.approx(6.38, abs=0.005)


def test_long_gaps_are_cut_where_the_pattern_would(bpe, docs, monkeypatch):
    """A million spaces before a word make tiktoken give up; cut gaps give the same ids, which short
    gaps show."""
    text = "a" + " " * 1_100_000 + "x"
    assert bpe.decode(bpe.encode(text)) == text
    gaps = [" " * 9, "\n" * 7, " \n\t" * 3, "  "]
    texts = [doc.replace(" ", gaps[i % 4]) for i, doc in enumerate(docs[:100])]
    short = re.compile(tokenizer.LONG_GAP.pattern.replace(str(tokenizer.LONG), "4"))
    monkeypatch.setattr(tokenizer, "LONG_GAP", short)
    monkeypatch.setattr(tokenizer, "LONG", 4)
    assert len(short.split(texts[0])) > 1
    assert [bpe.encode(text) for text in texts] == list(map(bpe.encoding.encode_ordinary, texts))


@pytest.mark.parametrize("V, dtype", [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_fit_their_type(bpe, monkeypatch, V, dtype):
    """uint16 holds vocabularies up to 65,536, the last id included; beyond, uint32."""
    monkeypatch.setattr(bpe, "vocab_size", V)
    assert id_type(bpe) == dtype and np.array([V - 1], id_type(bpe))[0] == V - 1


def test_indic_keeps_words_whole():
    """Words of Hindi and Malayalam, with signs, virama and joiners, and letters with accents are
    not cut by the pattern indic, but by gpt2's."""
    sentence = "क्षत्रिय हिन्दी में പൊന്‍മണി കുട്ടികൾ cafe\u0301 (ठीक)!"
    pieces = {name: regex.findall(pattern.replace("\\x{200c}\\x{200d}", "\u200c\u200d"), sentence)
              for name, pattern in PATTERNS.items()}
    assert [piece.strip() for piece in pieces["indic"][:6]] == sentence.split()[:6]
    assert len(pieces["gpt2"]) > len(pieces["indic"])
    tok = train_bpe([" " + sentence] * 3, 328, "indic")
    again = from_state(json.loads(json.dumps(tok.state)))
    assert again.pattern == "indic" and again.encode(sentence) == tok.encode(sentence)


# ---- tokenizers of Hugging Face ----------------------------------------------------------------

def byte_level(docs, alphabet=None):
    """A byte-level BPE as most models have, with an added token for four spaces. `alphabet`: the
    bytes that it knows beside those of the text, all if None."""
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    known = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    tok.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=known, special_tokens=["<pad>", "<|endoftext|>"],
        show_progress=False))
    tok.add_tokens([tokenizers.AddedToken("    ", normalized=False)])
    tok.post_processor = processors.TemplateProcessing("<pad> $A", special_tokens=[("<pad>", 0)])
    tok.enable_truncation(5)
    tok.enable_padding()
    return json.loads(tok.to_str())


def sentencepiece_bpe(docs):
    """As Llama 2's: a space is ▁, one stands before the text, other bytes fall back to <0xNN>."""
    tok = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training only
    tok.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    data = json.loads(tok.to_str()) | {"pre_tokenizer": None}
    size = len(data["model"]["vocab"])
    data["model"]["vocab"] |= {f"<0x{b:02X}>": size + b for b in range(256)}
    data["model"]["dropout"] = 0.5
    return data


def unigram(docs):
    """As T5's: pieces with scores, the special tokens among them."""
    tok = tokenizers.Tokenizer(models.Unigram())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tok.train_from_iterator(docs, trainers.UnigramTrainer(
        vocab_size=700, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False))
    return json.loads(tok.to_str())


@pytest.fixture(scope="module", params=[
    (byte_level, b"<|endoftext|>", b""), (sentencepiece_bpe, b"</s>", b" "),
    (unigram, b"</s>", b" ")], ids=["byte_level", "sentencepiece_bpe", "unigram"])
def style(request, docs):
    """(a parsed tokenizer.json, the separator's bytes, what a text starts with)."""
    make, *rest = request.param
    return make(docs), *rest


def test_hugging_face(style, docs):
    """The library's own ids, without what its file adds around a text; the tokens' bytes spell the
    text, after what it starts with."""
    data, end, start = style
    tok = HuggingFaceTokenizer("mine.json", json.dumps(data))
    bare = data | dict.fromkeys(("post_processor", "truncation", "padding"))
    plain = tokenizers.Tokenizer.from_str(
        json.dumps(bare | {"model": data["model"] | {"dropout": None}}))
    plain.encode_special_tokens = True
    texts = [*docs[:200], *HARD[3:-1], "नमस्ते कुट्टी", "    four"]
    if data["model"]["type"] == "Unigram":  # it takes gaps for spaces and does not know all bytes
        texts = [" ".join(text.split()) for text in docs[:200] if text.isascii()]
    spelled, found = token_bytes(tok), tok.encode_batch(texts)
    assert len(spelled) == tok.vocab_size and spelled[tok.eot] == end
    for text, ids in zip(texts, found):
        assert ids == plain.encode(text, add_special_tokens=False).ids
        assert tok.decode_bytes(ids) == b"".join(spelled[i] for i in ids) == start + text.encode()


def test_no_text_ends_a_document(style):
    """Not even one that spells the end of text; in a BPE what spells a special token is text. Where
    no special token ends documents one more id does, the last."""
    data = style[0]
    tok = HuggingFaceTokenizer("mine.json", json.dumps(data))
    special = {token["id"]: token["content"] for token in data["added_tokens"] if token["special"]}
    for content in special.values():
        ids = tok.encode(f"{content} the {content}")
        assert tok.eot not in ids
        if data["model"]["type"] == "BPE":
            assert not special.keys() & set(ids)
            assert tok.decode(ids).strip() == f"{content} the {content}"
    others = [token for token in data["added_tokens"] if token["id"] != tok.eot]
    tok = HuggingFaceTokenizer("mine.json", json.dumps(data | {"added_tokens": others}))
    assert tok.eot == tok.vocab_size - 1 and token_bytes(tok)[tok.eot] == END_OF_TEXT.encode()
    assert tok.eot not in tok.encode(END_OF_TEXT) and from_state(tok.state).eot == tok.eot


def test_bytes_of_a_vocabulary(gpt2):
    """hf_token_bytes: GPT-2's vocabulary in the byte-level alphabet gives its bytes; an id without
    a token gives b"", an added token its own text."""
    names = {b: c for c, b in byte_alphabet().items()}
    vocab = {"".join(names[b] for b in raw): i for i, raw in enumerate(token_bytes(gpt2))}
    data = {"model": {"type": "BPE", "vocab": vocab}, "decoder": {"type": "ByteLevel"},
            "added_tokens": [{"id": 50260, "content": "Ġé", "special": False}]}
    assert hf_token_bytes(data) == [*token_bytes(gpt2), b"", b"", b"", "Ġé".encode()]


@pytest.mark.parametrize("data, says", [
    ([], "not a tokenizer.json"), ({}, "not a tokenizer.json"), ({"model": {}}, "vocab"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "a WordPiece vocabulary"),
    ({"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}}, "out of range")])
def test_what_is_no_tokenizer_json(data, says):
    with pytest.raises(ValueError, match=says):
        HuggingFaceTokenizer("x.json", json.dumps(data))


@pytest.mark.parametrize("text, script", [
    (" the", "Latin"), ("e\u0301", "Latin"), (" हिन्दी", "Devanagari"), ("ि", "Devanagari"),
    ("東", "Han"), ("ｶ", "Katakana"), ("aб", "mixed"), ("ª", "Latin"), ("x1.", "Latin"),
    ("१२", "digits"), (" =", "punctuation"), ("🙂", "punctuation"), ("\n  ", "space"),
    (" \ufffd", "bytes"), ("क\ufffd", "Devanagari"), ("\0", "other"), ("", "other")])
def test_scripts(text, script):
    """What script_of says of a token's text."""
    assert script_of(text) == script


def test_unicode_is_lossless(unicode):
    """Random code points of every plane, private use, the ends of each range and letters that
    merges are made of come back; no id is the separator. A lone surrogate reads as U+FFFD."""
    rng = random.Random(0)
    ranges = [(0, 0x7F), (0x80, 0xD7FF), (0xE000, 0xF8FF), (0xF900, 0xFFFF), (0xFFFE, 0xFFFF)]
    ranges += [(plane << 16, (plane << 16) | 0xFFFF) for plane in range(1, 17)]
    for _ in range(500):
        chosen = rng.choices(ranges, k=rng.randint(1, 40))
        points = [rng.choice([rng.randint(*ends), *ends]) for ends in chosen]
        text = "".join(chr(c) + rng.choice(["", "the ", "ing"]) for c in points)
        ids = unicode.encode(text)
        assert unicode.eot not in ids
        assert unicode.decode(ids) == text and unicode.decode_bytes(ids) == text.encode()
    assert unicode.decode(unicode.encode("a\ud800b")) == "a\ufffdb"
    assert unicode.decode_bytes([0xDC00, 0xDC41]) == "\udc00\udc41".encode(errors="surrogatepass")


def test_unicode_gives_every_code_point_its_own_id():
    """Without merges the ids are UTF-16's code units."""
    plain = UnicodeTokenizer("", "")
    points = [*range(0xD800), *range(0xE000, 0xFFFF), 0x10000, 0x1F642, 0xFFFFF, 0x10FFFF]
    text = "".join(map(chr, points))
    assert plain.encode(text) == np.frombuffer(text.encode("utf-16-le"), "<u2").tolist()


def test_unicode_merges_the_longest_match(unicode, docs):
    """The 6,400 merges are the most frequent bigrams and trigrams of the sample, none across
    documents; at each place a trigram goes before a bigram."""
    counts = Counter()
    for text in docs:
        counts.update(text[i:i + n] for n in (2, 3) for i in range(len(text) - n + 1))
    best = [times for _, times in counts.most_common(6400)]
    assert [counts[m] for m in sorted(unicode.merges, key=counts.get, reverse=True)] == best
    assert "xy" not in train_unicode(["x", "y"] * 5).merges
    small = UnicodeTokenizer("the", "thhee ")
    assert [small.decode([i]) for i in small.encode("thehe th")] == ["the", "he", " ", "th"]
