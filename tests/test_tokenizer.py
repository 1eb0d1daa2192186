"""Text <-> ids, and the true bytes of every token."""
import json
import random
import re
from collections import Counter

import pytest
import rustbpe
import tiktoken

from lib import tokenizer
from lib.tokenizer import END_OF_TEXT, SPLIT_PATTERN, UnicodeTokenizer, from_state, token_bytes, train_bpe, train_unicode

HARD = ["", " ", "\n\n\t x\r\n", "naïve café — 東京 🙂👩‍👩‍👧", "don't I'LL 1234567 x_y", "\0\x7f\ufeff\ufffd",
        f"a{END_OF_TEXT}b {END_OF_TEXT}"]


def is_utf8(raw):
    try:
        return raw.decode() is not None
    except UnicodeDecodeError:
        return False


def test_token_bytes_spell_the_text(tok, docs):
    """The bytes of a text's tokens, joined, are the text's bytes, and decoding gives the text again."""
    spelled = token_bytes(tok)
    for text in docs + HARD:
        ids = tok.encode(text)
        assert b"".join(spelled[i] for i in ids) == text.encode()
        assert tok.decode(ids) == text


def test_every_id_has_its_own_bytes(tok):
    """token_bytes gives vocab_size distinct byte strings, the separator's literal text last;
    single bytes that are no UTF-8 too."""
    spelled = token_bytes(tok)
    assert len(spelled) == len(set(spelled)) == tok.vocab_size
    assert spelled[tok.eot] == END_OF_TEXT.encode() and tok.eot == tok.vocab_size - 1
    assert sum(not is_utf8(raw) for raw in spelled) >= 128
    assert all(tok.decode_bytes([i]) == raw for i, raw in enumerate(spelled))


def test_gpt2_facts(gpt2):
    """Of GPT-2's vocabulary: decoded one by one, 340 tokens collapse, 255 of them onto U+FFFD;
    72 and 14 are long; mean 6.38 bytes."""
    spelled = token_bytes(gpt2)
    decoded = Counter(gpt2.decode([i]) for i in range(gpt2.vocab_size))
    assert gpt2.vocab_size == len(set(spelled)) == 50257
    assert sum(n for n in decoded.values() if n > 1) == 340 and decoded["\ufffd"] == 255
    assert [sum(len(raw) > P for raw in spelled) for P in (16, 32)] == [72, 14]
    assert sum(map(len, spelled)) / len(spelled) == pytest.approx(6.38, abs=0.005)


@pytest.mark.parametrize("P, shared", [(16, 44), (32, 17)])
def test_gpt2_tokens_that_share_a_code(gpt2, P, shared):
    """Cut to P bytes, 44 tokens at P = 16 and 17 at P = 32 are like another; every other token's bytes are its own."""
    cut = Counter(raw[:P] for raw in token_bytes(gpt2))
    assert sum(n for n in cut.values() if n > 1) == shared


def test_gpt2_is_tiktokens(gpt2, docs):
    """Our gpt2 encodes as tiktoken's own does."""
    reference = tiktoken.get_encoding("gpt2")
    for text in docs + HARD:
        assert gpt2.encode(text) == reference.encode_ordinary(text)


def test_trained_bpe_encodes_as_its_trainer(docs):
    """tiktoken with the trained merges gives the ids that rustbpe's own encoder gives, on text it was not trained on too."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(docs[::2]), 999, pattern=SPLIT_PATTERN)
    ours = train_bpe(docs[::2], 1000)
    assert ours.vocab_size == 1000
    for text in docs + HARD:
        assert ours.encode(text) == list(trainer.encode(text))


def test_batches_encode_like_single_texts(tok, docs):
    assert tok.encode_batch(docs, 2) == [tok.encode(text) for text in docs]


def test_long_gaps_are_cut_where_the_pattern_would(tok, docs, monkeypatch):
    """A million spaces before a word make tiktoken give up; cut gaps give the same ids, which short gaps show."""
    text = "a" + " " * 1_100_000 + "x"
    assert tok.decode(tok.encode(text)) == text
    texts = [re.sub(" ", lambda _: random.Random(i).choice([" " * 9, "\n" * 7, " \n\t" * 3, "  "]), doc)
             for i, doc in enumerate(docs[:200])]
    wanted = [tok.encoding.encode_ordinary(text) for text in texts]
    monkeypatch.setattr(tokenizer, "LONG_GAP", re.compile(tokenizer.LONG_GAP.pattern.replace("100000", "4")))
    monkeypatch.setattr(tokenizer, "LONG", 4)
    assert any(len(tokenizer.LONG_GAP.split(text)) > 1 for text in texts) and [tok.encode(text) for text in texts] == wanted


def test_the_literal_separator_is_text(tok):
    """A document that mentions <|endoftext|> does not end there: the literal never becomes the id."""
    for text in (END_OF_TEXT, f"the {END_OF_TEXT} token", END_OF_TEXT * 3):
        assert tok.eot not in tok.encode(text)
        assert tok.eot not in tok.encode_batch([text], 1)[0]


def test_state_through_json(tok, docs):
    """A tokenizer read back from JSON is the same tokenizer."""
    again = from_state(json.loads(json.dumps(tok.state)))
    assert (again.name, again.vocab_size, again.eot) == (tok.name, tok.vocab_size, tok.eot)
    assert token_bytes(again) == token_bytes(tok)
    assert [again.encode(text) for text in docs[:50] + HARD] == [tok.encode(text) for text in docs[:50] + HARD]


def test_decoding_broken_characters(tok):
    """Half a character decodes to U+FFFD, its bytes are kept."""
    half = tok.encode("é")[:1] if len(tok.encode("é")) > 1 else [token_bytes(tok).index(b"\xc3")]
    assert tok.decode(half) == "\ufffd" and tok.decode_bytes(half) == b"\xc3"


@pytest.mark.parametrize("size, says", [(256, "too small"), (100_000, "gives only")])
def test_impossible_sizes(docs, size, says):
    with pytest.raises(ValueError, match=says):
        train_bpe(docs, size)


@pytest.mark.parametrize("state", [{}, None, [], {"name": "x"}, {"name": "x", "tokens": 3}, {"name": "x", "tokens": "###"},
                                   {"name": "x", "tokens": "YQ== Yg=="}, {"name": "x", "tokens": "YQ== YQ=="}])
def test_what_is_no_tokenizer_is_refused(state):
    with pytest.raises(ValueError):
        from_state(state)


# ---- the unicode tokenizer ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def unicode(docs):
    """Trained on the docstrings: all 6,400 merges are taken, so every private-use character needs its two low surrogates."""
    return train_unicode(docs)


def random_texts(count, seed=0):
    """Texts of random code points: of every plane, private use, the ends of each range,
    and the letters that merges are made of."""
    rng = random.Random(seed)
    ranges = [(0, 0x7F), (0x80, 0xD7FF), (0xE000, 0xF8FF), (0xF900, 0xFFFF), (0xFFFE, 0xFFFF)]
    ranges += [(plane << 16, plane << 16 | 0xFFFF) for plane in range(1, 17)]
    for _ in range(count):
        points = [rng.choice([rng.randint(*ends), rng.choice(ends)]) for ends in rng.choices(ranges, k=rng.randint(1, 40))]
        yield "".join(chr(c) + rng.choice(["", "the ", "ing"]) for c in points)


def test_unicode_is_lossless(unicode, docs):
    """Random code points of every plane, and real text, come back; no id is outside the vocabulary,
    the separator, or a stand-in for many."""
    for text in [*random_texts(3000), *docs, *HARD, "\uffff", "\ue000\uf8ff\ud7ff\U00010000\U0010ffff"]:
        ids = unicode.encode(text)
        assert all(0 <= i < 0xFFFF for i in ids)
        assert unicode.decode(ids) == text and unicode.decode_bytes(ids) == text.encode()


def test_unicode_gives_every_code_point_its_own_id():
    """Without merges: each of the Basic Multilingual Plane's code points is its own id,
    and those above are their two surrogates."""
    plain = UnicodeTokenizer([], [])
    points = [*range(0xD800), *range(0xE000, 0xFFFF)]
    assert plain.encode_batch([chr(c) for c in points], 1) == [[c] for c in points]
    for c in (0x10000, 0x1F642, 0xFFFFF, 0x10FFFF):
        raw = chr(c).encode("utf-16-be")
        assert plain.encode(chr(c)) == [int.from_bytes(raw[:2]), int.from_bytes(raw[2:])]


def test_unicode_merges_the_longest_match(unicode, docs):
    """The 6,400 merges are the most frequent bigrams and trigrams of the sample; at each place a trigram goes before a bigram."""
    counts = Counter(text[i:i + n] for text in docs for n in (2, 3) for i in range(len(text) - n + 1))
    counts = {gram: times for gram, times in counts.items() if all(c < "\ud800" or "\uf900" <= c < "\uffff" for c in gram)}
    assert len(unicode.merges) == 6400
    assert sorted(counts[m] for m in unicode.merges) == sorted(sorted(counts.values())[-6400:])
    small = UnicodeTokenizer(["the"], ["th", "he", "e "])
    assert [small.decode([i]) for i in small.encode("thehe th")] == ["the", "he", " ", "th"]
    assert max(map(len, map(unicode.encode, docs))) < max(map(len, docs)) / 2


def test_unicode_bytes(unicode):
    """token_bytes is UTF-8; a lone surrogate has its three WTF-8 bytes, a merge the bytes of its characters; all differ."""
    spelled = token_bytes(unicode)
    assert len(spelled) == len(set(spelled)) == unicode.vocab_size == 65536
    assert (spelled[0x41] == b"A" and spelled[0x20AC] == "€".encode()
            and spelled[0xD83D] == b"\xed\xa0\xbd" and spelled[0xDE42] == b"\xed\xb9\x82")
    assert spelled[0xE000:0xF900] == [merge.encode() for merge in unicode.merges] and spelled[-1] == END_OF_TEXT.encode()
    assert all(unicode.decode_bytes([i]) == raw for i, raw in enumerate(spelled))


def test_unicode_state_and_batches(unicode, docs):
    """Saved and read back it is the same; batches on threads give what single texts give; a lone surrogate reads as U+FFFD."""
    again = from_state(json.loads(json.dumps(unicode.state)))
    texts = [*random_texts(200, seed=1), *docs[:100], *HARD]
    assert again.merges == unicode.merges and again.encode_batch(texts, 2) == [unicode.encode(text) for text in texts]
    assert unicode.decode(unicode.encode("a\ud800b")) == "a\ufffdb"


def test_unicode_samples_are_trained_alike_in_any_portions(docs):
    """What is learned depends on the text, not on how the memory-bound counting cuts it up; nothing merges across documents."""
    assert train_unicode(docs * 8).merges == train_unicode(docs).merges
    assert "xy" not in train_unicode(["x", "y"] * 5).merges


@pytest.mark.parametrize("trigrams, bigrams", [(["ab"], []), ([], ["abc"]), (["abc", "abc"], []), ([], ["a\ue000"]),
                                               ([], [chr(i) + "a" for i in range(7000)])])
def test_what_are_no_merges_is_refused(trigrams, bigrams):
    with pytest.raises(ValueError, match="merges"):
        UnicodeTokenizer(trigrams, bigrams)
