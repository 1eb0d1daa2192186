"""Text <-> ids, and the true bytes of every token."""
import inspect
import json
import random
import re
import unicodedata
from collections import Counter

import pytest
import regex
import rustbpe
import tiktoken
import tokenizers
from tiktoken_ext import openai_public
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lib import tokenizer
from lib.tokenizer import (END_OF_TEXT, PATTERNS, HuggingFaceTokenizer, UnicodeTokenizer,
                           byte_alphabet, code_report, from_state, hf_token_bytes, script_of,
                           share_of_marks, token_bytes, train_bpe, train_unicode)

HARD = ["", " ", "\n\n\t x\r\n", "naïve café — 東京 🙂👩‍👩‍👧",
        "don't I'LL 1234567 x_y", "\0\x7f\ufeff\ufffd", f"a{END_OF_TEXT}b {END_OF_TEXT}"]


def is_utf8(raw):
    try:
        return raw.decode() is not None
    except UnicodeDecodeError:
        return False


def test_token_bytes_spell_the_text(tok, docs):
    """The bytes of a text's tokens, joined, are the text's bytes; decoding gives the text again,
    half a character U+FFFD. Text that says <|endoftext|> never ends a document. Batches on threads
    give what single texts give."""
    spelled = token_bytes(tok)
    found = [tok.encode(text) for text in docs + HARD]
    for text, ids in zip(docs + HARD, found):
        assert b"".join(spelled[i] for i in ids) == text.encode()
        assert tok.decode(ids) == text and tok.eot not in ids
    assert tok.encode_batch(docs + HARD, 2) == found
    assert tok.decode([spelled.index(b"\xc3")]) == "\ufffd"


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


def test_gpt2_is_tiktokens(gpt2, docs):
    """Our gpt2 encodes as tiktoken's own does."""
    reference = tiktoken.get_encoding("gpt2")
    for text in docs + HARD:
        assert gpt2.encode(text) == reference.encode_ordinary(text)


def test_trained_bpe_encodes_as_its_trainer(docs):
    """tiktoken with the trained merges gives the ids that rustbpe's own encoder gives, on text it
    was not trained on too."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(docs[::2]), 999, pattern=PATTERNS["gpt2"])
    ours = train_bpe(docs[::2], 1000)
    assert ours.vocab_size == 1000
    for text in docs + HARD:
        assert ours.encode(text) == list(trainer.encode(text))


def test_long_gaps_are_cut_where_the_pattern_would(tok, docs, monkeypatch):
    """A million spaces before a word make tiktoken give up; cut gaps give the same ids, which short
    gaps show."""
    text = "a" + " " * 1_100_000 + "x"
    assert tok.decode(tok.encode(text)) == text
    gaps = [" " * 9, "\n" * 7, " \n\t" * 3, "  "]
    texts = [re.sub(" ", lambda _: random.Random(i).choice(gaps), doc)
             for i, doc in enumerate(docs[:200])]
    wanted = [tok.encoding.encode_ordinary(text) for text in texts]
    short = re.compile(tokenizer.LONG_GAP.pattern.replace("100000", "4"))
    monkeypatch.setattr(tokenizer, "LONG_GAP", short)
    monkeypatch.setattr(tokenizer, "LONG", 4)
    assert any(len(short.split(text)) > 1 for text in texts)
    assert [tok.encode(text) for text in texts] == wanted


def test_state_through_json(tok, docs):
    """A tokenizer read back from JSON is the same tokenizer."""
    again = from_state(json.loads(json.dumps(tok.state)))
    assert (again.name, again.vocab_size, again.eot) == (tok.name, tok.vocab_size, tok.eot)
    assert token_bytes(again) == token_bytes(tok)
    for text in docs[:50] + HARD:
        assert again.encode(text) == tok.encode(text)


@pytest.mark.parametrize("state", [
    {}, None, [], {"name": "x"}, {"name": "x", "tokens": 3}, {"name": "x", "tokens": "###"},
    {"name": "x", "tokens": "YQ== Yg=="}, {"name": "x", "tokens": "YQ== YQ=="},
    {"name": "chars", "characters": "aa"}, {"name": "chars", "characters": 3},
    {"name": "x", "tokenizer.json": "YQ=="}, {"name": "x", "tokenizer.json": None}])
def test_what_is_no_tokenizer_is_refused(state):
    with pytest.raises(ValueError):
        from_state(state)


# ---- patterns ----------------------------------------------------------------------------------

def test_indic_differs_at_marks_only(docs):
    """Where there are no combining marks or joiners, pattern indic cuts as gpt2 does; words of
    Hindi and Malayalam, with signs, virama and joiners, and letters with accents stay whole."""
    text = "\n".join(docs) + "".join(HARD)
    text = "".join(c for c in text if unicodedata.category(c)[0] != "M" and c != "\u200d")
    pieces = {name: regex.findall(pattern.replace("\\x{200c}\\x{200d}", "\u200c\u200d"), text)
              for name, pattern in PATTERNS.items() if name != "gpt4"}
    assert pieces["indic"] == pieces["gpt2"]
    sentence = "क्षत्रिय हिन्दी में പൊന്‍മണി കുട്ടികൾ cafe\u0301 (ठीक)!"
    words = sentence.split(" ")[:-1]
    tok = train_bpe([" " + sentence] * 3, 328, "indic")
    assert all(len(tok.encode(f" {word}")) == 1 for word in words)
    with pytest.raises(ValueError, match="gives only"):
        train_bpe([" " + sentence] * 3, 328)
    again = from_state(json.loads(json.dumps(tok.state)))
    assert again.pattern == "indic" and again.encode(sentence) == tok.encode(sentence)


def test_patterns_are_tiktokens():
    """gpt2 and gpt4 are the rules of tiktoken's r50k_base and cl100k_base."""
    assert PATTERNS["gpt2"] == openai_public.r50k_pat_str
    assert f'"""{PATTERNS["gpt4"]}"""' in inspect.getsource(openai_public.cl100k_base)


def test_a_state_without_a_pattern_is_gpt2s(tok):
    """Tokenizers saved before patterns were recorded cut as they did."""
    state = {key: value for key, value in tok.state.items() if key != "pattern"}
    assert from_state(state).pattern == "gpt2"
    with pytest.raises(ValueError, match="unknown pattern 'x'"):
        from_state(state | {"pattern": "x"})


# ---- tokenizers of Hugging Face ----------------------------------------------------------------

def byte_level(docs, alphabet=None):
    """A byte-level BPE as most models have, with an added token for four spaces. `alphabet`: the
    bytes that it knows beside those of the text, all if None."""
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    if alphabet is None:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=["<pad>", "<|endoftext|>"],
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


STYLES = {"byte_level": byte_level, "sentencepiece_bpe": sentencepiece_bpe, "unigram": unigram}
ENDS = {"byte_level": b"<|endoftext|>", "sentencepiece_bpe": b"</s>", "unigram": b"</s>"}


@pytest.fixture(scope="module")
def files(docs):
    """{style: a parsed tokenizer.json}."""
    return {style: make(docs) for style, make in STYLES.items()}


@pytest.mark.parametrize("style", STYLES)
def test_hugging_face(files, docs, style):
    """The library's own ids, without what its file adds around a text; the bytes of the tokens
    spell the text (after one space where it is sentencepiece's), whatever it says; batches and
    single texts are alike; saved and loaded it is the same, in less room."""
    data = files[style]
    tok = HuggingFaceTokenizer("mine.json", json.dumps(data))
    plain = tokenizers.Tokenizer.from_str(json.dumps(data | {"post_processor": None}))
    plain.no_truncation()
    plain.no_padding()
    if style != "unigram":
        plain.model.dropout = None
    plain.encode_special_tokens = True
    front = "" if style == "byte_level" else " "
    texts = [text for text in docs if "  " not in text.replace("    ", "")][:200]
    texts += [] if style == "unigram" else HARD[3:] + ["नमस्ते कुट्टी", "    four", "🙂"]
    spelled = token_bytes(tok)
    assert len(spelled) == tok.vocab_size and spelled[tok.eot] == ENDS[style]
    for text in texts:
        ids = tok.encode(text)
        assert ids == plain.encode(text, add_special_tokens=False).ids
        if style != "unigram" or text.isascii():
            joined = b"".join(spelled[i] for i in ids)
            assert tok.decode_bytes(ids) == joined
            if style != "unigram":
                assert joined == (front + text).encode()
            else:  # it takes other gaps for spaces
                assert joined.split() == text.encode().split()
    assert tok.encode_batch(texts, 2) == [tok.encode(text) for text in texts]
    state = tok.state
    assert len(json.dumps(state)) < 0.6 * len(json.dumps(data))
    again = from_state(json.loads(json.dumps(state)))
    assert (again.name, again.eot, token_bytes(again)) == ("mine.json", tok.eot, spelled)
    assert again.encode_batch(texts, 2) == tok.encode_batch(texts, 2)


@pytest.mark.parametrize("style", STYLES)
def test_no_text_becomes_a_special_token(files, style):
    """A document that spells the end of text, or another special token, is text."""
    tok = HuggingFaceTokenizer("mine.json", json.dumps(files[style]))
    special = {token["id"] for token in files[style]["added_tokens"] if token["special"]}
    for token in files[style]["added_tokens"]:
        if token["special"]:
            for text in (token["content"], f"the {token['content']} token", token["content"] * 3):
                ids = tok.encode(text)
                assert not special & set(ids) and tok.decode(ids).strip() == text


def test_end_of_text_is_added_where_there_is_none(files, docs):
    """Without a special token that ends documents one more id does, the last."""
    data = files["byte_level"]
    others = [token for token in data["added_tokens"] if token["content"] != END_OF_TEXT]
    tok = HuggingFaceTokenizer("mine.json", json.dumps(data | {"added_tokens": others}))
    assert tok.eot == tok.vocab_size - 1 and token_bytes(tok)[tok.eot] == END_OF_TEXT.encode()
    assert tok.eot not in tok.encode(END_OF_TEXT)
    assert from_state(tok.state).eot == tok.eot


def test_bytes_of_a_vocabulary(gpt2, files):
    """hf_token_bytes: GPT-2's vocabulary in the byte-level alphabet gives its bytes; an id without
    a token gives b"", an added token its own text."""
    names = {b: c for c, b in byte_alphabet().items()}
    vocab = {"".join(names[b] for b in raw): i for i, raw in enumerate(token_bytes(gpt2))}
    data = {"model": {"type": "BPE", "vocab": vocab}, "decoder": {"type": "ByteLevel"}}
    assert hf_token_bytes(data) == token_bytes(gpt2)
    data["added_tokens"] = [{"id": 50260, "content": "Ġé", "special": False}]
    strings = hf_token_bytes(data)
    assert strings[50257:] == [b"", b"", b"", "Ġé".encode()]
    spelled = hf_token_bytes(files["sentencepiece_bpe"])
    assert b" the" in spelled and b"\xff" in spelled and b"<s>" in spelled


@pytest.mark.parametrize("data, says", [
    ([], "not a tokenizer.json"), ({}, "not a tokenizer.json"), ({"model": {}}, "vocab"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "a WordPiece vocabulary"),
    ({"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}}, "ids"),
    ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "ids"),
    ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
      "pre_tokenizer": {"type": "Whitespace"}}, "lose the spaces")])
def test_what_is_no_tokenizer_json(data, says):
    with pytest.raises(ValueError, match=says):
        HuggingFaceTokenizer("x.json", json.dumps(data))


# ---- what a code needs to know -----------------------------------------------------------------

@pytest.mark.parametrize("text, script", [
    (" the", "Latin"), ("é", "Latin"), ("e\u0301", "Latin"), (" हिन्दी", "Devanagari"),
    ("ि", "Devanagari"), ("കുട്ടി", "Malayalam"), ("東", "CJK"), ("あ", "Hiragana"),
    ("ｶ", "Katakana"), ("мир", "Cyrillic"),
    ("aб", "mixed"), ("ª", "other"), ("x1.", "Latin"), (" 12", "digits"), ("१२", "digits"),
    ("½", "digits"), ("...", "punctuation"), (" =", "punctuation"), ("🙂", "punctuation"),
    ("।", "punctuation"), ("\n  ", "space"), ("\ufffd", "bytes"), (" \ufffd", "bytes"),
    ("क\ufffd", "Devanagari"), ("\0", "other"), ("", "other")])
def test_scripts(text, script):
    """What script_of says of a token's text."""
    assert script_of(text) == script


def test_code_report(gpt2):
    """By script, and in all as GPT-2's published figures: 72 and 14 long, 44 and 17 share."""
    report = code_report(gpt2)
    assert {P: [sum(some.values()) for some in found.values()] for P, found in report.items()} == {
        16: [72, 44], 32: [14, 17]}
    assert report[16]["longer"]["Latin"] > 10 and 0 not in report[16]["longer"].values()
    assert share_of_marks("Hello, 3 words") == share_of_marks("") == share_of_marks("...") == 0
    assert share_of_marks("e\u0301") == 0.5 and 0.3 < share_of_marks("हिन्दी में लिखा") < 0.6
    assert code_report(gpt2, (1,))[1]["shared"].keys() >= {"Latin", "bytes", "digits"}


# ---- the unicode tokenizer ---------------------------------------------------------------------

@pytest.fixture(scope="module")
def unicode(docs):
    """Trained on the docstrings: all 6,400 merges are taken, so every private-use character needs
    its two low surrogates."""
    return train_unicode(docs)


def random_texts(count, seed=0):
    """Texts of random code points: of every plane, private use, the ends of each range,
    and the letters that merges are made of."""
    rng = random.Random(seed)
    ranges = [(0, 0x7F), (0x80, 0xD7FF), (0xE000, 0xF8FF), (0xF900, 0xFFFF), (0xFFFE, 0xFFFF)]
    ranges += [(plane << 16, (plane << 16) | 0xFFFF) for plane in range(1, 17)]
    for _ in range(count):
        chosen = rng.choices(ranges, k=rng.randint(1, 40))
        points = [rng.choice([rng.randint(*ends), rng.choice(ends)]) for ends in chosen]
        yield "".join(chr(c) + rng.choice(["", "the ", "ing"]) for c in points)


def test_unicode_is_lossless(unicode, docs):
    """Random code points of every plane, and real text, come back; no id is outside the vocabulary,
    the separator, or a stand-in for many."""
    ends = "\uffff", "\ue000\uf8ff\ud7ff\U00010000\U0010ffff"
    for text in [*random_texts(500), *docs, *HARD, *ends]:
        ids = unicode.encode(text)
        assert all(0 <= i < 0xFFFF for i in ids)
        assert unicode.decode(ids) == text and unicode.decode_bytes(ids) == text.encode()


def test_unicode_gives_every_code_point_its_own_id():
    """Without merges: each of the Basic Multilingual Plane's code points is its own id,
    and those above are their two surrogates."""
    plain = UnicodeTokenizer([], [])
    points = [*range(0xD800), *range(0xE000, 0xFFFF)]
    assert plain.encode("".join(map(chr, points))) == points
    for c in (0x10000, 0x1F642, 0xFFFFF, 0x10FFFF):
        raw = chr(c).encode("utf-16-be")
        assert plain.encode(chr(c)) == [int.from_bytes(raw[:2]), int.from_bytes(raw[2:])]


def test_unicode_merges_the_longest_match(unicode, docs):
    """The 6,400 merges are the most frequent bigrams and trigrams of the sample; at each place a
    trigram goes before a bigram."""
    counts = Counter(text[i:i + n] for text in docs for n in (2, 3)
                     for i in range(len(text) - n + 1))
    counts = {gram: times for gram, times in counts.items()
              if all(c < "\ud800" or "\uf900" <= c < "\uffff" for c in gram)}
    assert len(unicode.merges) == 6400
    assert sorted(counts[m] for m in unicode.merges) == sorted(sorted(counts.values())[-6400:])
    small = UnicodeTokenizer(["the"], ["th", "he", "e "])
    assert [small.decode([i]) for i in small.encode("thehe th")] == ["the", "he", " ", "th"]
    assert max(map(len, map(unicode.encode, docs))) < max(map(len, docs)) / 2


def test_unicode_bytes(unicode):
    """token_bytes is UTF-8; a lone surrogate has its three WTF-8 bytes, a merge the bytes of its
    characters; all differ."""
    spelled = token_bytes(unicode)
    assert len(spelled) == len(set(spelled)) == unicode.vocab_size == 65536
    assert spelled[0x41] == b"A" and spelled[0x20AC] == "€".encode()
    assert spelled[0xD83D] == b"\xed\xa0\xbd" and spelled[0xDE42] == b"\xed\xb9\x82"
    assert spelled[0xE000:0xF900] == [merge.encode() for merge in unicode.merges]
    assert spelled[-1] == END_OF_TEXT.encode()
    assert all(unicode.decode_bytes([i]) == raw for i, raw in enumerate(spelled))


def test_unicode_state_and_batches(unicode, docs):
    """Saved and read back it is the same; batches on threads give what single texts give; a lone
    surrogate reads as U+FFFD."""
    again = from_state(json.loads(json.dumps(unicode.state)))
    texts = [*random_texts(200, seed=1), *docs[:100], *HARD]
    assert again.merges == unicode.merges
    assert again.encode_batch(texts, 2) == [unicode.encode(text) for text in texts]
    assert unicode.decode(unicode.encode("a\ud800b")) == "a\ufffdb"


def test_unicode_samples_are_trained_alike_in_any_portions(docs):
    """What is learned depends on the text, not on how the memory-bound counting cuts it up; nothing
    merges across documents."""
    assert train_unicode(docs * 8).merges == train_unicode(docs).merges
    assert "xy" not in train_unicode(["x", "y"] * 5).merges


@pytest.mark.parametrize("trigrams, bigrams", [
    (["ab"], []), ([], ["abc"]), (["abc", "abc"], []), ([], ["a\ue000"]),
    ([], [chr(i) + "a" for i in range(7000)])])
def test_what_are_no_merges_is_refused(trigrams, bigrams):
    with pytest.raises(ValueError, match="merges"):
        UnicodeTokenizer(trigrams, bigrams)
