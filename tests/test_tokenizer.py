"""Text <-> ids, and the true bytes of every token."""
import json
from collections import Counter

import pytest
import rustbpe
import tiktoken

from tokenizer import END_OF_TEXT, SPLIT_PATTERN, from_state, token_bytes, train_bpe

HARD = ["", " ", "\n\n\t x\r\n", "naïve café — 東京 🙂👩‍👩‍👧", "don't I'LL 1234567 x_y", "\0\x7f\ufeff\ufffd", f"a{END_OF_TEXT}b {END_OF_TEXT}"]


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
    """token_bytes gives vocab_size distinct byte strings, the separator's literal text last; single bytes that are no UTF-8 too."""
    spelled = token_bytes(tok)
    assert len(spelled) == len(set(spelled)) == tok.vocab_size
    assert spelled[tok.eot] == END_OF_TEXT.encode() and tok.eot == tok.vocab_size - 1
    assert sum(not is_utf8(raw) for raw in spelled) >= 128
    assert all(tok.decode_bytes([i]) == raw for i, raw in enumerate(spelled))


def test_gpt2_facts(gpt2):
    """SPEC.md of GPT-2's vocabulary: decoded one by one, 340 tokens collapse, 255 of them onto U+FFFD; 72 and 14 are long; mean 6.38 bytes."""
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


@pytest.mark.parametrize("state", [{}, None, [], {"name": "x"}, {"name": "x", "tokens": 3}, {"name": "x", "tokens": "###"}, {"name": "x", "tokens": "YQ== Yg=="},
                                   {"name": "x", "tokens": "YQ== YQ=="}])
def test_what_is_no_tokenizer_is_refused(state):
    with pytest.raises(ValueError):
        from_state(state)
