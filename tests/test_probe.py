"""probe.py: its measurements are those of independent computations, only what is needed is read,
and bad input is one line."""
import csv
import itertools
import json
import math
import struct
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hub import Handler, Hub

import probe
from codes import kron_cosine
from lib import stats, tokenizer
from lib.run_folder import build_model, load_model, save_checkpoint
from lib.config import compose
from probes import echo, generation, layers, public, robustness, shared, spaces

PAIRS = [("geography", "The capital of the country is", "The captial of the country is"),
         ("math", "Two plus two is", "Two pluss two is"),
         ("math", "The value of the sum is", "The vlaue of the sum is"),
         ("time", "The day after the first is", "The dya after the first is"),
         ("misc", "Return the length of", "Return the lenght of"),
         ("misc", "Open the file and read the", "Open the flie and read the")]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(shared, "DEVICE", torch.device("cpu"))


@pytest.fixture(scope="session")
def bpe500(docs):
    """500 ids, padded to 512: twelve ids that text never has."""
    return tokenizer.train_bpe(docs, 500)


def save_run(folder, arm, tok, *options, seed=1):
    """out/ARM-sSEED with an untrained checkpoint whose predictions are sharp, and whose padding ids
    would win if they were counted."""
    options = ["--n_layer=2", "--n_head=2", "--n_embd=24", "--block_size=64", f"--seed={seed}",
               *options]
    config, _, _ = compose([f"configs/{arm}.py", *options])
    model = build_model(vars(config), tok)
    head, wte = model.lm_head.weight, next(model.transformer.wte.parameters(), None)
    with torch.no_grad():
        for p in model.parameters():
            # from 0.02 to a scale at which attention chooses; kron's projection has it
            if p.dim() > 1 and (p is head or p is not wte):
                p *= 20
        head[tok.vocab_size:] = 5 * head[:model.config.padded_size - tok.vocab_size]
    run = folder / "out" / f"{arm}-s{seed}"
    run.mkdir(parents=True)
    state = {"model": model.state_dict(), "step": 7, "tokenizer": tok.state,
             "config": asdict(config) | {"arm": arm, "data": {"train": "0"}}}
    save_checkpoint(run / "ckpt.pt", state)
    return str(run)


@pytest.fixture(scope="session")
def made(tmp_path_factory, bpe500):
    """Two arms, two seeds each."""
    folder = tmp_path_factory.mktemp("probed")
    return {(arm, seed): save_run(folder, arm, bpe500, seed=seed)
            for arm in ("kron", "bpe_tied") for seed in (1, 2)}


def write_pairs(path, pairs=PAIRS, head=("category", "clean", "typo")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([head, *pairs])
    return path


def result(out):
    """A probe's results, without what differs from call to call; all three files must be there."""
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "Made by `python probe.py" in out.with_suffix(".md").read_text()
    found = json.loads(out.with_suffix(".json").read_text())
    assert {"commit", "hardware"} <= found.keys()
    return {key: value for key, value in found.items() if key not in ("command", "date")}


def written(x):
    """A number as a results file has it: with six digits."""
    return pytest.approx(x, rel=1e-5)


# ---- robustness --------------------------------------------------------------------------------

def by_hand(model, tok, clean, typo):
    """The four measurements by their definitions, in numpy's float64, from the model's logits."""
    def state(text):
        ids = torch.tensor([tok.encode(text)])
        with torch.no_grad():
            logits = model(ids)[0, -1].numpy().astype(np.float64)[:tok.vocab_size]
            hidden = model.hidden(ids)[0, -1].numpy().astype(np.float64)
        logits -= logits.max()
        return logits - math.log(np.exp(logits).sum()), hidden
    (p, h), (q, g) = state(clean), state(typo)
    top = int(np.argmax(p))
    return {"top1_matches": int(np.argmax(q)) == top,
            "kl_clean_to_typo": sum(math.exp(a) * (a - b) for a, b in zip(p, q)),
            "cosine_hidden": float(h @ g / math.sqrt((h @ h) * (g @ g))),
            "logprob_drop": float(p[top] - q[top])}


def test_measurements_are_those_of_their_definitions(made, tmp_path, call):
    pairs = write_pairs(tmp_path / "pairs.tsv")
    argv = ["robustness", *made.values(), f"--pairs={pairs}", "--out=rob"]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "rob")
    for (arm, seed), run in made.items():
        model, tok, _ = load_model(run)
        hand = [by_hand(model, tok, clean, typo) for _, clean, typo in PAIRS]
        with torch.no_grad():
            for (_, clean, typo), expected in zip(PAIRS, hand):
                record = robustness.compare_states(robustness.last_state(model, tok, clean),
                                                   robustness.last_state(model, tok, typo))
                assert record.pop("top1_matches") == expected["top1_matches"]
                for key in record:
                    assert record[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6)
        kl = np.mean([x["kl_clean_to_typo"] for x in hand])
        numbers = found["arms"][arm]["overall"]["kl_clean_to_typo"]
        assert numbers["per_seed"][seed - 1] == pytest.approx(kl, rel=1e-4)
        assert numbers["mean"] == written(np.mean(numbers["per_seed"]))
        assert numbers["sd"] == pytest.approx(np.std(numbers["per_seed"], ddof=1), rel=1e-3)
    assert max(x["kl_clean_to_typo"] for x in hand) > 0.1  # agreement is not that of two zeros
    assert [c["a"] + c["b"] for c in found["contrasts"]] == ["bpe_tiedkron"]


def published(tmp_path, bpe, kron):
    """A results file in the published package's form."""
    data = {"bpe": {"per_prompt": bpe}, "kron": {"per_prompt": kron}, "meta": "more"}
    (tmp_path / "published.json").write_text(json.dumps(data))
    return tmp_path / "published.json"


def measured(run):
    """A run's records on PAIRS, in the published package's form."""
    model, tok, _ = load_model(run)
    records = []
    with torch.no_grad():
        for category, clean, typo in PAIRS:
            states = [robustness.last_state(model, tok, prompt) for prompt in (clean, typo)]
            records.append({"category": category, "clean": clean, "typo": typo}
                           | robustness.compare_states(*states))
    return records


def test_published_results_are_aggregated_like_our_own(made, tmp_path, call):
    """Two of our runs, written in the published package's form and read back in another order,
    give the same tables."""
    pairs, runs = write_pairs(tmp_path / "pairs.tsv"), [made["bpe_tied", 1], made["kron", 1]]
    call(probe.main, "robustness", *runs, f"--pairs={pairs}", "--out=own", cwd=tmp_path)
    own = result(tmp_path / "own")
    path = published(tmp_path, measured(runs[0]), measured(runs[1])[::-1])
    call(probe.main, "robustness", f"--published={path}", "--out=theirs", cwd=tmp_path)
    theirs = result(tmp_path / "theirs")
    for group, metrics in own["arms"]["kron"].items():
        for metric, numbers in metrics.items():
            same = theirs["arms"]["kron"][group][metric]
            assert same["mean"] == pytest.approx(numbers["mean"])
            assert same["median"] == pytest.approx(numbers["median"])
    ours, other = own["contrasts"][0], theirs["contrasts"][0]
    assert other["difference"] == pytest.approx(ours["difference"])
    assert other["winners"].values() != {None} and len(other["winners"]) == 4
    # such a file also gives the pairs
    call(probe.main, "robustness", *runs, f"--pairs={path}", "--out=again", cwd=tmp_path)
    assert result(tmp_path / "again")["arms"]["kron"]["math"] == own["arms"]["kron"]["math"]


def records(kept, kl, pairs=PAIRS):
    """Records in the published package's form: which pairs kept their top-1, and their KL."""
    rows = []
    for pair, keep, x in zip(pairs, kept, kl):
        rows.append(dict(zip(("category", "clean", "typo"), pair), top1_matches=keep,
                         kl_clean_to_typo=x, cosine_hidden=0.5, logprob_drop=x / 2))
    return rows


def test_aggregates_of_a_small_published_file(tmp_path, call, capsys):
    path = published(tmp_path, records([True, False, False, True], [0.1, 0.9, 0.3, 0.7]),
                     records([True, True, False, True], [0.2, 0.5, 0.5, 0.4]))
    assert call(probe.main, "robustness", f"--published={path}", "--out=x", cwd=tmp_path) == 0
    found = result(tmp_path / "x")
    bpe, kron = (found["arms"][arm] for arm in ("bpe", "kron"))
    assert bpe["overall"]["top1_matches"]["mean"] == 0.5
    assert kron["overall"]["top1_matches"]["mean"] == 0.75
    assert bpe["overall"]["kl_clean_to_typo"]["mean"] == pytest.approx(0.5)
    assert bpe["overall"]["kl_clean_to_typo"]["median"] == pytest.approx(0.5)
    assert kron["math"]["kl_clean_to_typo"]["mean"] == pytest.approx(0.5)
    assert kron["math"]["top1_matches"]["mean"] == 0.5
    (pair,) = found["contrasts"]
    assert pair["difference"] == -0.25 and pair["interval"] == pytest.approx(
        [-0.25 - 0.5 * 1.8746, -0.25 + 0.25 * 1.8746], abs=1e-3)  # 3.182 / 1.96 * sqrt(4 / 3)
    assert (pair["only_a"], pair["only_b"], pair["p"]) == (0, 1, 1.0)
    assert pair["kl"] == pytest.approx((-0.1 + 0.4 - 0.2 + 0.3) / 4)
    # by KL, by top-1, by KL
    assert pair["winners"] == {"geography": "bpe", "math": "kron", "time": "kron"}
    printed = capsys.readouterr().out
    assert "55.5" in printed and "0.859" in printed  # the published figures stand beside


def test_the_published_difference_is_not_resolved(tmp_path, call, capsys):
    """55.5 against 47.3 % of 110 pairs, 22 against 13 of them discordant: exact McNemar p = 0.18,
    the binomial's two tails beyond 13 of 35."""
    pairs = [("misc", f"prompt {i}", f"prmopt {i}") for i in range(110)]
    bpe = [i < 39 or 61 <= i < 74 for i in range(110)]
    kron = [i < 61 for i in range(110)]
    path = published(tmp_path, records(bpe, [0.1] * 110, pairs), records(kron, [0.1] * 110, pairs))
    assert call(probe.main, "robustness", f"--published={path}", "--out=x", cwd=tmp_path) == 0
    found = result(tmp_path / "x")
    (pair,) = found["contrasts"]
    for arm, share in (("bpe", 47.3), ("kron", 55.5)):
        kept = found["arms"][arm]["overall"]["top1_matches"]["mean"]
        assert 100 * kept == pytest.approx(share, abs=0.05)
    tails = 2 * sum(math.comb(35, k) for k in range(14)) / 2**35
    assert (pair["only_a"], pair["only_b"]) == (13, 22) and tails == pytest.approx(0.1755, abs=1e-4)
    assert pair["p"] == written(tails) and pair["p_holm"] == pair["p"]
    low, high = pair["interval"]
    assert low < 0 < high and "| 0.18 | 0.18 |" in capsys.readouterr().out.replace("  ", " ")


def test_contrasts_use_the_seeds_that_both_arms_have():
    """By hand: of three pairs and two common seeds the differences are (1, 0, 0) and (1, 0, -1);
    by pair 2, 0, -1, of whose four equally likely sign patterns two lie as far out as 1."""
    a = {1: records([True, True, False], [1, 1, 1]), 2: records([True, True, False], [1, 1, 1]),
         3: records([False, False, False], [9, 9, 9])}
    b = {1: records([False, True, False], [1, 1, 1]), 2: records([False, True, True], [1, 1, 1]),
         7: records([True, True, True], [9, 9, 9])}
    found = robustness.aggregate({"a": a, "b": b, "c": {5: a[1]}})
    (pair,) = found["contrasts"]  # c shares no seed with a or b
    assert (pair["a"], pair["b"], pair["seeds"]) == ("a", "b", 2)
    assert pair["difference"] == pytest.approx(1 / 6) and pair["kl"] == 0
    assert (pair["only_a"], pair["only_b"], pair["p"]) == (1, 1, 1.0)


# ---- statistics --------------------------------------------------------------------------------

def test_the_sign_flip_test_counts_all_sign_patterns():
    for differences in ([3, -2, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1], [2, -2], [0, 0]):
        sizes, total = np.abs(differences), abs(sum(differences))
        signs = itertools.product([1, -1], repeat=len(sizes))
        share = np.mean([abs(np.dot(pattern, sizes)) >= total for pattern in signs])
        assert stats.sign_flip(differences) == pytest.approx(share)
    assert stats.sign_flip([1] * 5) == 2 / 2**5


def test_intervals_over_prompts_crossed_with_seeds_cover_the_truth():
    """In about 95 of 100 simulated experiments: few seeds that differ, prompts that differ, both;
    one seed alone. With many prompts and equal seeds it is the mean's usual interval."""
    rng, draws = np.random.RandomState(1), stats.DRAWS
    stats.DRAWS = 500
    try:
        for seeds, prompts, seed_sd, prompt_sd in ((3, 30, 1, 3), (3, 30, 1, 0), (3, 24, 0, 1),
                                                   (1, 40, 0, 2), (1, 12, 0, 2)):
            hits = 0
            for _ in range(400):
                values = (seed_sd * rng.randn(seeds, 1) + prompt_sd * rng.randn(1, prompts)
                          + rng.randn(seeds, prompts))
                low, high = stats.crossed_interval(values)
                hits += low <= 0 <= high
            assert 0.91 <= hits / 400 <= 0.995, (seeds, prompts, seed_sd, prompt_sd, hits)
    finally:
        stats.DRAWS = draws
    values = np.tile(rng.randn(400), (3, 1))
    half = 1.96 * values[0].std() / math.sqrt(400)
    low, high = stats.crossed_interval(values)
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    assert stats.crossed_interval(values) == [low, high]  # the draws are the same each time


def test_nothing_in_480_samples_of_20_prompts_is_nothing_in_20():
    """Three seeds and eight samples a prompt are not 480 independent trials: the upper end is that
    of Wilson's interval for 0 of 20, 0.161, not 0.008."""
    silent = np.zeros((3, 20))
    assert stats.share_interval(silent) == pytest.approx([0, 0.1611], abs=1e-4)
    assert stats.share_interval(1 - silent) == pytest.approx([0.8389, 1], abs=1e-4)
    one = silent.copy()
    one[0, 0] = 1 / 8  # a single echo in 480
    low, high = stats.share_interval(one)
    assert 0 <= low < 1 / 480 and 0.16 < high < 0.18
    # samples of a prompt that agree tell no more than one of them does
    half = np.tile([0.0, 1.0], (3, 10))
    low, high = stats.share_interval(half)
    assert low == pytest.approx(0.3, abs=0.06) and high == pytest.approx(0.7, abs=0.06)


def test_tab_newline_and_quotes_in_a_prompt_survive(tmp_path):
    pairs = [("misc", 'a\ttab, a\nnew line and "quotes"', '"quoted" from\r\nthe start'),
             ("people", "naïve — ‘日本’", " leading and trailing ")]
    rows = [dict(zip(("category", "clean", "typo"), pair)) for pair in pairs]
    assert robustness.read_pairs(write_pairs(tmp_path / "pairs.tsv", pairs)) == rows
    lines = "".join(json.dumps(row | {"note": 1}) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl").write_text(lines)
    assert robustness.read_pairs(tmp_path / "pairs.jsonl") == rows


def test_the_prompt_files_are_what_they_should_be():
    pairs = robustness.read_pairs(shared.PROMPTS / "typo_pairs.tsv")
    categories = Counter(pair["category"] for pair in pairs)
    assert len(categories) == 11 and set(categories.values()) == {10}
    assert len({p["clean"] for p in pairs}) == len({p["typo"] for p in pairs}) == 110
    for p in pairs:
        words = zip(p["clean"].split(" "), p["typo"].split(" "), strict=True)
        (changed,) = [(a, b) for a, b in words if a != b]
        assert shared.edit_distance(*changed) in (1, 2) and len(changed[0].strip(",")) > 3, changed
    prompts = shared.read_rows(shared.PROMPTS / "generation.tsv",
                               ["prompt", "normal", "typo", "novel"])
    assert len(prompts) == 20
    assert len({p["prompt"] for p in prompts}) == len({p["novel"] for p in prompts}) == 20
    for p in prompts:  # to say the right word must not count as an echo of the wrong one
        assert p["prompt"].count("{}") == 1 and p["normal"] not in p["prompt"]
        assert shared.edit_distance(p["normal"], p["typo"]) == 2
        assert len(f" {p['novel']}".encode()) <= 16 and len(p["novel"]) >= 6
    echoes = echo.read_prompts(shared.PROMPTS / "echo.tsv")
    assert len(echoes) == len({p["template"] for p in echoes}) == 24
    assert len({p["novel"] for p in echoes} | {p["clean"] for p in echoes}) == 48
    for p in echoes:
        assert p["template"].endswith(" {}") and p["clean"] not in p["template"].lower()
        assert shared.edit_distance(p["clean"], p["typo"]) in (1, 2) and len(p["novel"]) >= 6
    families = shared.read_families(shared.PROMPTS / "families.tsv")
    assert len(families) == 6 and all(len(set(words)) == 8 for _, words in families.values())


# ---- generation --------------------------------------------------------------------------------

def test_echoes_are_whole_words_exactly_or_within_one_edit():
    text = ("A zorblat. Zorblat, zorblats zorbat xorblat zorblta zorblatter a_zorblat_b "
            "pre-zorblat zorblat's")
    found = generation.find_echoes(text, "zorblat")
    assert [(text[start:end], edits) for start, end, edits in found] == [
        ("zorblat", 0), ("Zorblat", 0), ("zorblats", 1), ("zorbat", 1), ("xorblat", 1),
        ("zorblat", 0)]
    assert generation.find_echoes("", "zorblat") == []
    # vowel signs and composed or decomposed accents belong to their letters
    text = "यह कार्यक्रम है, कार्यक्रमों का; une e\u0301toile"
    for word, said in (("कार्यक्रम", ["कार्यक्रम"]), ("étoile", ["e\u0301toile"]), ("कर", [])):
        spans = generation.find_echoes(text, word)
        assert [text[start:end] for start, end, edits in spans if edits == 0] == said
    assert generation.find_echoes("a b c", "") == generation.find_echoes("I am", "a") == []


def test_canonical_forms_keep_marks_and_drop_the_rest():
    same = [(" Run", "run"), ("RUN-", "run"), ("e\u0301te\u0301", "Été"), ("क्\u200dष", "क्ष")]
    for a, b in same:
        assert shared.canonical(a) == shared.canonical(b)
    for a, b in [("कि", "की"), ("run", "runs"), ("കാ", "ക")]:  # a vowel sign is no decoration
        assert shared.canonical(a) != shared.canonical(b)
    assert shared.canonical("...") == ""


@pytest.mark.parametrize("a, b, distance", [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3),
                                            ("run", "RUN", 3), ("form", "from", 2)])
def test_edit_distance(a, b, distance):
    assert shared.edit_distance(a, b) == shared.edit_distance(b, a) == distance


def test_a_slot_that_is_said_is_its_word(made, monkeypatch):
    """A coded head may choose the slot, which the tokenizer does not know."""
    model, tok, _ = load_model(made["kron", 1])
    model.slot = tok.vocab_size
    said = [*tok.encode("the"), model.slot, *tok.encode(" end"), tok.eot, model.slot]
    steps = torch.tensor(said).unsqueeze(1)  # one id a step
    monkeypatch.setattr(generation, "generate", lambda *_, **how: iter(steps))
    ids = torch.tensor([tok.encode("The")])
    assert generation.continuations(model, tok, ids, 1, "zorblat") == ["the zorblat end"]


def test_echo_rates_and_forced_bytes(made, tmp_path, call, monkeypatch, capsys):
    """A reader that says the bytes of the free slot again, where the prompt has it: only kron's
    prompts in one slot echo."""
    def parrot(model, tok, ids, samples, word=""):
        slot = model.config.vocab_size
        if slot not in ids[0].tolist():
            return [" nothing"] * samples
        wte = model.transformer.wte
        word = bytes(wte.bytes[slot, :wte.length[slot]].tolist()).decode()
        return [f" one{word}", f"{word}s"] + [" nothing"] * (samples - 2)
    monkeypatch.setattr(generation, "continuations", parrot)
    argv = ["generation", *made.values(), "--samples=4", "--out=gen"]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "gen")
    rates, texts = found["rates"], found["first_samples"]["kron"]
    assert texts["novel in one slot"][0] == " one zorblat" and len(texts["typo"]) == 20
    assert rates["bpe_tied"]["exact"].keys() == {"normal", "typo", "novel"}
    for kind, hits in (("typo", 0), ("novel", 0), ("novel in one slot", 40),
                       ("typo in one slot", 40)):
        exact, one_edit = (rates["kron"][what][kind] for what in ("exact", "one_edit"))
        assert exact["hits"] == hits and one_edit["hits"] == 2 * hits
        assert exact["samples"] == 20 * 4 * 2
        # said by one of four samples of each prompt, or of none
        assert exact["interval"] == pytest.approx([25, 25] if hits else [0, 16.11], abs=0.01)
    printed = capsys.readouterr().out
    assert "one zorblat" in printed and "\033" not in printed  # plain where there is no terminal
    assert (tmp_path / "gen.png").is_file()
    monkeypatch.setattr(generation, "continuations", lambda *_: [" nothing"] * 4)
    assert call(probe.main, *argv, cwd=tmp_path) == 0  # a picture of zeros is a sentence instead
    page = (tmp_path / "gen.md").read_text()
    assert "there is nothing to draw" in page and "![" not in page
    assert not (tmp_path / "gen.png").exists()


# ---- echo --------------------------------------------------------------------------------------

def test_echo_is_the_difference_of_two_log_probabilities(made):
    """By hand, a token at a time, in numpy: the word's tokens at its second place, behind the text
    that has the word at its first, and behind the one that has the other word there."""
    def by_hand(model, tok, text, word):
        total, ids = 0.0, tok.encode(text)
        for target in tok.encode(word):
            logits = model(torch.tensor([ids]))[0, -1].numpy().astype(np.float64)[:tok.vocab_size]
            logits -= logits.max()
            total += logits[target] - math.log(np.exp(logits).sum())
            ids.append(target)
        return total
    template = "Return the {} of the sequence. The {} is not read"
    for run in (made["kron", 1], made["bpe_tied", 2]):
        model, tok, _ = load_model(run)
        for word, other in (("lenght", "length"), ("glorvex", "length")):
            assert len(tok.encode(f" {word}")) > 1
            with torch.no_grad():
                hand = [by_hand(model, tok, f"Return the {first} of the sequence. The", f" {word}")
                        for first in (word, other)]
            found = echo.echo_log_probs(model, tok, template, word, other)
            assert found == pytest.approx(hand, rel=1e-5)
            difference = echo.echo_nats(model, tok, template, word, other)
            assert difference == pytest.approx(hand[0] - hand[1], abs=1e-4)
        assert abs(difference) > 0.01
        assert echo.echo_nats(model, tok, template, "length", "length") == 0


def test_echoes_of_every_arm(made, tmp_path, call, capsys, refuse):
    prompts = tmp_path / "prompts.tsv"
    prompts.write_text("template\tclean\ttypo\tnovel\nThe {} or the {}\tfile\tflie\tzorb\n"
                       "Set {} and get {} again\tvalue\tvlaue\tquimb\n")
    argv = ["echo", *made.values(), f"--prompts={prompts}", "--out=echo"]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "echo")["echo"]
    for (arm, seed), run in made.items():
        model, tok, _ = load_model(run)
        hand = [echo.echo_nats(model, tok, "The {} or the {}", "flie", "file"),
                echo.echo_nats(model, tok, "Set {} and get {} again", "vlaue", "value")]
        assert found[arm]["typo"]["per_seed"][seed - 1] == written(np.mean(hand))
    kron, bpe = found["kron"]["novel"], found["bpe_tied"]["novel"]
    assert kron["gap"] == pytest.approx(kron["mean"] - bpe["mean"], rel=1e-3)
    assert bpe["gap"] is None
    low, high = kron["gap_interval"]
    assert low <= kron["gap"] <= high
    assert "minus bpe_tied's" in capsys.readouterr().out
    prompts.write_text("template\tclean\ttypo\tnovel\nThe {} or\tfile\tflie\tzorb\n")
    assert "row 1: the template needs {} twice" in refuse(probe.main, *argv, cwd=tmp_path)
    prompts.write_text(f"template\tclean\ttypo\tnovel\n{'word ' * 99}{{}} {{}}\ta\tb\tc\n")
    assert "context is 64" in refuse(probe.main, *argv, cwd=tmp_path)


# ---- tokens ------------------------------------------------------------------------------------

def write_eval(folder, arm, seed, nats, tokens=(30, 10, 0, 60)):
    """A run's folder with a log and an eval.npz of 100 tokens: mean nats by how often the input
    token was seen (never, 1, 2-3, 4-7), all else alike."""
    run = write_log(folder, arm, seed, [1.0, 1.0])
    tokens, nats = np.array(tokens), np.array(nats, float)
    sums = (tokens * nats).astype(np.float32)
    lengths = np.zeros(21, int)
    lengths[[3, 16, 17, 20]] = 70, 10, 15, 5
    even = sums.sum() / 100
    np.savez(run / "eval.npz", doc_nats=sums, doc_tokens=tokens, doc_bytes=4 * tokens,
             seen_nats=sums, seen_tokens=tokens, length_nats=even * lengths, length_tokens=lengths,
             script_names=np.array(["Devanagari", "Latin", "digits"]),
             script_nats=even * np.array([0, 80, 20]), script_tokens=np.array([0, 80, 20]),
             shared_nats=np.array([100 * even, 0]), shared_tokens=np.array([100, 0]))
    return run


def test_nats_by_group_are_sums_over_tokens(tmp_path, call, capsys):
    runs = [write_eval(tmp_path, "bpe_tied", 1, [8, 6, 0, 2]),
            write_eval(tmp_path, "bpe_tied", 2, [9, 6, 0, 2]),
            write_eval(tmp_path, "kron", 1, [7, 6.5, 0, 2]),
            write_eval(tmp_path, "kron", 2, [7, 6.5, 0, 2])]
    assert call(probe.main, "tokens", *runs, "--out=tok", cwd=tmp_path) == 0
    printed = capsys.readouterr().out
    groups = result(tmp_path / "tok")["groups"]
    assert list(groups["seen"]) == ["never", "1", "4-7"]  # 2-3 has no token
    never = groups["seen"]["never"]
    assert never["share"] == pytest.approx(0.3)
    assert never["arms"]["bpe_tied"]["nats"]["mean"] == pytest.approx(8.5)
    gap = never["arms"]["kron"]["gap"]
    assert gap["mean"] == pytest.approx(-1.5) and gap["sd"] == pytest.approx(math.sqrt(0.5))
    # Student's 12.706 for one degree of freedom
    assert gap["high"] == pytest.approx(-1.5 + 12.706 * 0.5, abs=1e-2)
    assert groups["seen"]["1"]["arms"]["kron"]["gap"]["mean"] == pytest.approx(0.5)
    assert groups["all"]["all"]["arms"]["bpe_tied"]["nats"]["mean"] == pytest.approx(4.35)
    assert list(groups["length"]) == ["3", "16", "17 or more"]
    assert groups["length"]["17 or more"]["share"] == pytest.approx(0.2)
    assert list(groups["script"]) == ["Latin", "digits"] and list(groups["shared"]) == ["own"]
    sentence = printed[printed.index("No token of the validation text falls under"):]
    assert "2-3" in sentence and "Devanagari" in sentence and "shared" in sentence
    assert "nan" not in printed


def test_tokens_that_share_no_bytes(tmp_path, call):
    """Where no two tokens share their bytes there is a group of their own and no other."""
    run = write_eval(tmp_path, "kron", 1, [8, 6, 0, 2])
    arrays = dict(np.load(run / "eval.npz"))
    for key in ("shared_nats", "shared_tokens"):
        arrays[key] = arrays[key][:1]
    np.savez(run / "eval.npz", **arrays)
    assert call(probe.main, "tokens", run, "--out=tok", cwd=tmp_path) == 0
    assert list(result(tmp_path / "tok")["groups"]["shared"]) == ["own"]


def test_gaps_are_of_the_same_tokens(tmp_path, call):
    """Where two runs group other tokens together, as codes of another P do, there is no gap."""
    runs = [write_eval(tmp_path, "bpe_tied", 1, [8, 6, 0, 2]),
            write_eval(tmp_path, "kron", 1, [7, 6, 0, 2], tokens=(29, 11, 0, 60))]
    assert call(probe.main, "tokens", *runs, "--out=tok", cwd=tmp_path) == 0
    seen = result(tmp_path / "tok")["groups"]["seen"]
    assert seen["never"]["arms"]["kron"]["gap"] is None
    assert seen["4-7"]["arms"]["kron"]["gap"]["mean"] == pytest.approx(0)


def test_tuned_runs_stand_side_by_side(tmp_path, call, refuse, capsys):
    """With the grid that chose them arms of other learning rates are compared and keep their short
    names; without it they are not, nor is what the grid did not choose."""
    runs = [write_eval(tmp_path, "bpe_untied,embed_std=1", 1, [8, 6, 0, 2]),
            write_eval(tmp_path, "affine", 1, [7, 6, 0, 2])]
    arms = {}
    for run, arm, rate, std in zip(runs, ("bpe_untied", "affine"), (4e-3, 2e-3), (1, 0)):
        header, *lines = (run / "log.jsonl").read_text().splitlines()
        header = json.loads(header)
        header["config"] |= {"learning_rate": rate, "min_lr": rate / 10, "embed_std": std}
        (run / "log.jsonl").write_text("\n".join([json.dumps(header), *lines]) + "\n")
        best = {"learning_rate": rate, "min_lr": rate / 10, "embed_lr_mult": 1, "embed_std": std}
        arms[arm] = {"arm": arm, "best": best, "edges": [], "grid": [best]}
    table = {"seed": 100, "steps": 1, "default": None, "arms": arms,
             "settings": {"data": {}}}
    (tmp_path / "tuning.json").write_text(json.dumps(table))
    for name in ("tokens", "norms"):
        assert "learning_rate is" in refuse(probe.main, name, *runs, cwd=tmp_path)
        argv = (name, *runs, "--tuned=tuning.json", "--out=tok")
        assert call(probe.main, *argv, cwd=tmp_path) == 0
        assert [run["arm"] for run in result(tmp_path / "tok")["runs"]] == ["bpe_untied", "affine"]
        (tmp_path / "tok.md").unlink()
    arms["affine"]["best"]["learning_rate"] = 8e-3
    (tmp_path / "other.json").write_text(json.dumps(table))
    argv = ("tokens", *runs, "--tuned=other.json")
    assert "is not what the grid chose (0.008" in refuse(probe.main, *argv, cwd=tmp_path)


def test_bad_evaluations_are_one_line(tmp_path, refuse):
    run = write_log(tmp_path, "kron", 1, [1.0])
    assert "no eval.npz there" in refuse(probe.main, "tokens", run, cwd=tmp_path)
    whole = (write_eval(tmp_path, "kron", 2, [1, 1, 1, 1]) / "eval.npz").read_bytes()
    for content in (b"", b"text", whole[:500]):
        (run / "eval.npz").write_bytes(content)
        assert "eval.npz is damaged" in refuse(probe.main, "tokens", run, cwd=tmp_path)
    documents = {"doc_nats": np.zeros(3), "doc_tokens": np.zeros(3), "doc_bytes": np.zeros(3)}
    np.savez(run / "eval.npz", **documents)
    assert "no token was scored" in refuse(probe.main, "tokens", run, cwd=tmp_path)
    np.savez(run / "eval.npz", **documents | {"doc_tokens": np.ones(3)})
    assert "seen_nats" in refuse(probe.main, "tokens", run, cwd=tmp_path)
    np.savez(run / "eval.npz", **documents | {"doc_nats": np.array([{"a": 1}], object)})
    assert "allow_pickle=False" in refuse(probe.main, "tokens", run, cwd=tmp_path)


# ---- layers ------------------------------------------------------------------------------------

@pytest.mark.parametrize("arm, options", [("bpe_tied", []), ("kron", ["--positions=rotary"])])
def test_levels_are_the_states_of_a_token_alone(tmp_path, bpe500, arm, options):
    model, tok, _ = load_model(save_run(tmp_path, arm, bpe500, *options))
    ids, seen = torch.arange(tok.vocab_size), {}
    for i, block in enumerate(model.transformer.h):
        def keep(module, args, output, name=f"L{i}"):
            seen[name] = output[:, 0]
        block.register_forward_hook(keep)
    with torch.no_grad():
        found = layers.levels(model, model.transformer.wte(ids))
        model(ids.unsqueeze(1))
        assert found.keys() == {"E_raw", "L0", "L1"}
        assert torch.equal(found["E_raw"], model.transformer.wte(ids))
        for level in ("L0", "L1"):
            torch.testing.assert_close(found[level], seen[level])


def test_words_of_several_tokens(made):
    """kron embeds the string's bytes as one code, other arms average their tokens; a word of one
    token is its own embedding."""
    for arm in ("kron", "bpe_tied"):
        model, tok, _ = load_model(made[arm, 1])
        wte = model.transformer.wte
        with torch.no_grad():
            vectors, own = layers.word_vectors(model, tok, ["the", "unquestionably"])
            assert own == [tok.encode(" the")[0], -1]
            torch.testing.assert_close(vectors[0], wte(torch.tensor(own[0])))
            if arm == "kron":
                z = spaces.kron_code([b" unquestionably"], 16)(torch.arange(1))[0]
                whole = z @ wte.W
            else:
                whole = wte(torch.tensor(tok.encode(" unquestionably"))).mean(0)
            torch.testing.assert_close(vectors[1], whole)


def test_nearest_leaves_the_word_itself_out_and_takes_the_mean_off():
    table = torch.tensor([[10.0, 1], [10, 2], [10, -1], [10, -2], [10, 0.5]])
    near, itself = shared.nearest(table[:2], [0, -1], lambda i: table[i], torch.arange(5), 2)
    assert [[id for id, _ in row] for row in near] == [[4, 1], [1, 0]] and itself == [True, False]
    centred, _ = shared.nearest(table[:1], [0], lambda i: table[i], torch.arange(5), 2,
                                torch.tensor([10.0, 0]))
    assert centred == [[(1, 1.0), (4, 1.0)]]  # both at cosine 1: the lower id comes first


def test_shares_of_variants_roots_and_families():
    near = [" Compute", "COMPUTE", " computers", "Computed", " compute-", " recompute", " commute",
            " the", " run", "�"]
    family = ["compute", "computers", "computed"]
    assert layers.shares(near, "compute", "comput", family) == [0.7, 0.6, 0.5]


def test_layers_of_every_level(tmp_path, bpe, call, capsys):
    runs = [save_run(tmp_path, arm, bpe, seed=seed) for arm in ("kron", "bpe_tied")
            for seed in (1, 2)]
    assert call(probe.main, "layers", *runs, "--out=lay", cwd=tmp_path) == 0
    found = result(tmp_path / "lay")
    names = shared.read_families(shared.PROMPTS / "families.tsv")
    for stages in found["levels"].values():
        assert list(stages) == ["trained", "step 0"]
        for levels in stages.values():
            assert list(levels) == ["E_raw", "L0", "L1"]
            for level in levels.values():
                assert level["self_retrieval"] == 1 and abs(level["random_pair"]) < 0.03
                families = [level[family] for family in names]
                assert level["overall"] == written(np.mean(families, 0).tolist())
    kron, table = (found["levels"][arm]["trained"]["E_raw"]["overall"]
                   for arm in ("kron", "bpe_tied"))
    # untrained, bytes alone find the root and a random table does not
    assert kron[1] > 0.1 > 3 * table[1]
    printed = capsys.readouterr().out
    assert "computational" in found["words_of_several_tokens"]
    assert "average their tokens' rows" in printed and "0.97 / 0.26 / 0.23" in printed


def test_step_0_is_the_same_model_before_training(tmp_path, bpe500, call):
    """`save_run` changes the blocks of a fresh model: step 0 is the fresh one, at every level, and
    the run differs from it."""
    run = save_run(tmp_path, "kron", bpe500, seed=3)
    assert call(probe.main, "layers", run, "--out=lay", cwd=tmp_path) == 0
    levels = result(tmp_path / "lay")["levels"]["kron"]
    config, _, _ = compose(["configs/kron.py", "--n_layer=2", "--n_head=2", "--n_embd=24",
                            "--block_size=64", "--seed=3"])
    fresh = build_model(vars(config), bpe500).eval()
    families = shared.read_families(shared.PROMPTS / "families.tsv")
    with torch.no_grad():
        expected, _ = layers.study(fresh, bpe500, families)
    for level, numbers in expected.items():
        assert levels["step 0"][level]["overall"] == written(numbers["overall"])
        assert levels["step 0"][level]["random_pair"] == written(numbers["random_pair"])
    assert levels["step 0"]["E_raw"]["overall"] == levels["trained"]["E_raw"]["overall"]
    assert levels["step 0"]["L1"]["random_pair"] != levels["trained"]["L1"]["random_pair"]


def test_own_families_of_words_that_are_no_token(made, tmp_path, call, capsys):
    """Nothing to be its own nearest: a sentence, no nan."""
    families = tmp_path / "families.tsv"
    families.write_text("family\troot\tword\nकार्य\tकार्य\tकार्यक्रम\nकार्य\tकार्य\tकार्यालय\n")
    argv = ["layers", made["kron", 1], f"--families={families}", "--out=lay"]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    printed = capsys.readouterr().out
    assert "No word is one token here" in printed and "कार्यालय" in printed
    assert "nan" not in printed + (tmp_path / "lay.json").read_text().lower()


# ---- geometry ----------------------------------------------------------------------------------

# What the authors of 2605.29459 published for their own encoder (P = 32), "word cosine" each.
PUBLISHED_COSINES = {
    "run": "run 1.0000, Run 0.6665, RUN -0.0004, runs 0.8660, ran 0.6665, runner 0.7070, "
           "running 0.6545, rune 0.8660, road 0.2884, kitchen -0.0006",
    "compute": "compute 1.0000, Compute 0.8570, computes 0.9353, computed 0.9353, "
               "computer 0.9353, computing 0.7557, computation 0.6834, commute 0.8570, "
               "compose 0.7140, kitchen -0.0009",
    "nation": "nation 1.0000, Nation 0.8332, nations 0.9258, national 0.8659, nationally 0.7744, "
              "station -0.0008, notion 0.8332, ration 0.8332, kitchen 0.1536",
    "import": "import 1.0000, Import 0.8332, imports 0.9258, imported 0.8659, importing 0.8163, "
              "important 0.8163, export 0.6664, kitchen -0.0008",
    "code": "code 1.0000, Code 0.7499, codes 0.8944, coded 0.8944, coding 0.6121, codec 0.8944, "
            "decode -0.0006, encode -0.0006, kitchen -0.0006"}


def test_the_published_edit_distance_pairs():
    for anchor, entries in PUBLISHED_COSINES.items():
        for entry in entries.split(", "):
            word, cosine = entry.split()
            found = kron_cosine(anchor.encode(), word.encode(), 32)
            assert found == pytest.approx(float(cosine), abs=1e-4), word


def lost(strings, pos_dim):
    found = spaces.truncation(strings, pos_dim)
    return found["longer"], found["share"]


def test_collisions_of_gpt2(gpt2):
    strings = tokenizer.token_bytes(gpt2)
    assert [lost(strings, P) for P in (16, 32)] == [(72, 44), (14, 17)]
    scripts = spaces.truncation(strings, 16)["scripts"]
    assert sum(counts[2] for counts in scripts.values()) == 44
    assert scripts["Latin"] == [47_004, 35, 6] and "digits" not in scripts


def test_collisions_by_script():
    """At 16 bytes three Devanagari words share their code, at 32 none; ids without a token share
    nothing."""
    words = ["कार्य", "कार्यक्रम", "कार्यालय", "run", "12", "  "]
    strings = [word.encode() for word in words] + [b"", b""]
    assert [len(raw) for raw in strings[:3]] == [15, 27, 24]
    found = spaces.truncation(strings, 15)
    assert found == {"longer": 2, "share": 3, "scripts": {"Devanagari": [3, 2, 3]}}
    assert spaces.truncation(strings, 32)["scripts"] == {}


def test_rows_and_rank_are_those_of_the_dense_codes(bpe500):
    strings = tokenizer.token_bytes(bpe500)
    z = spaces.kron_code(strings, 8)(torch.arange(len(strings))).double()
    high = z.max(1, keepdim=True).values
    bag = (z == high).double()  # the larger of z's two values is where a byte stands
    rows, rank = spaces.rows_and_rank(strings, 8)
    assert rows == int((bag.sum(0) > 0).sum()) and rank == int(torch.linalg.matrix_rank(bag))
    assert rank < rows < 8 * 256


KINDS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8"}


def safetensors(tensors):
    """{name: tensor} -> (the file's bytes, {name: length of 8 + header + that tensor})."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    cost = {name: 8 + len(head) + t.numel() * t.itemsize for name, t in tensors.items()}
    return struct.pack("<Q", len(head)) + head + data, cost


TOKENS = ["the", " run", " Run", " RUN", "run", "Run", " running", " compute", " Compute",
          "compute", " computes", " computed", " computer", " water", " nation", " national", "\n",
          "é", " x", " y"] + [f" w{i}" for i in range(30)]


def vocabulary(style):
    """TOKENS as a tokenizer.json: GPT-2's byte-level alphabet, sentencepiece in BPE form,
    sentencepiece in unigram form."""
    if style == "bytes":
        written = [t.replace(" ", "Ġ").replace("\n", "Ċ").replace("é", "Ã©") for t in TOKENS]
        splitter = {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}
        return {"pre_tokenizer": splitter,
                "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(written)}}}
    written = [t.replace(" ", "▁").replace("\n", "<0x0A>") for t in TOKENS]
    if style == "bpe":
        model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(written)}}
    else:
        model = {"type": "Unigram", "vocab": [[t, -1.0] for t in written]}
    return {"decoder": {"type": "Replace"}, "model": model}


def trained_table(dtype=torch.float32):
    """A table of 64 rows (14 of them padding) in which the forms of a word lie together."""
    rng = torch.Generator().manual_seed(1)
    table = torch.randn(64, 16, generator=rng)
    for i, token in enumerate(TOKENS):
        for word in ("run", "compute"):
            if shared.canonical(token) == word:
                close = table[TOKENS.index(f" {word}")]
                table[i] = close + 0.01 * torch.randn(16, generator=rng)
    close = table[TOKENS.index(" compute")]
    table[TOKENS.index(" computed")] = close + 0.5 * torch.randn(16, generator=rng)
    return table.to(dtype)


class ModelHandler(Handler):
    """What the Hub answers for models, and only to who is allowed."""

    def route(self):
        path = self.path.partition("?")[0].removeprefix("/api/models")
        owner, name, rest = (path.lstrip("/").split("/", 2) + ["", ""])[:3]
        self.hub.tokens.append(self.headers.get("Authorization"))
        return self.hub.repos.get(f"{owner}/{name}"), f"/{rest}" if rest else ""

    def do_GET(self):
        if "/me/gated/resolve" in self.path and not self.headers.get("Authorization"):
            return self.answer(b"{}", 401, X_Error_Code="GatedRepo")
        if not self.hub.ranges:
            del self.headers["Range"]
        if self.path.startswith("/me/moved/resolve"):  # as large files stand on another host
            target = self.path.replace("/me/moved/", "/me/one/")
            return self.answer(b"", 302, Location=target)
        super().do_GET()


class ModelHub(Hub):
    """tests/hub.py's Hub for models: `repos[id]` is {file name: bytes or path}; `sent()` what was
    read of the files on disk."""

    def __init__(self):
        super().__init__({})
        self.ranges, self.tokens = True, []

    def __enter__(self):
        super().__enter__()
        self.server.RequestHandlerClass = type("ModelHandler", (ModelHandler,), {"hub": self})
        return self

    def sent(self):
        read = Counter()
        for name, first, last, _ in self.reads:
            read[name] += last - first + 1
        return read


@pytest.fixture
def hub(monkeypatch):
    """A Hub of models on loopback, which the real client in this process asks."""
    from huggingface_hub import HfFileSystem, constants
    HfFileSystem.clear_instance_cache()
    with ModelHub() as hub:
        for key, value in hub.env("none").items():
            monkeypatch.setenv(key, value)
        endpoint, template = hub.env("none")["HF_ENDPOINT"], constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            template.replace(constants.ENDPOINT, endpoint))
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_only_the_embedding_of_a_hub_model_is_fetched(hub, tmp_path, monkeypatch, dtype):
    """In one file, and in shards of which only one is opened: 8 bytes, the header, the table in
    pieces, no more; what passes is tried again."""
    monkeypatch.setattr(public, "PIECE", 1500)
    table, other = trained_table(dtype), torch.zeros(1000, 16)
    name = "model.embed_tokens.weight"
    data, cost = safetensors({"a.layer.weight": other, name: table, "lm_head.weight": other})
    (tmp_path / "2.safetensors").write_bytes(data)
    index = {"copy.layers.61.embed_tokens.weight": "3.safetensors", name: "2.safetensors",
             "a.weight": "1.safetensors"}
    hub.repos |= {"me/one": {"model.safetensors": tmp_path / "2.safetensors"},
                  "me/many": {"2.safetensors": tmp_path / "2.safetensors",
                              "model.safetensors.index.json":
                              json.dumps({"weight_map": index}).encode()}}
    for model in ("me/one", "me/many"):
        hub.reads.clear()
        found, read = public.read_embedding(model)
        assert found == name and torch.equal(read.float(), table.float())
        assert hub.sent() == {"2.safetensors": cost[name]}
        assert max(last - first + 1 for _, first, last, _ in hub.reads) <= 1500
    hub.faults["2.safetensors"] = ["busy"]
    assert torch.equal(public.read_embedding("me/one")[1].float(), table.float())


def test_the_users_token_is_sent_and_redirects_are_followed(hub, tmp_path, monkeypatch, refuse):
    (tmp_path / "model.safetensors").write_bytes(safetensors({"wte.weight": trained_table()})[0])
    files = {"model.safetensors": tmp_path / "model.safetensors",
             "tokenizer.json": json.dumps(vocabulary("bytes")).encode()}
    hub.repos |= {"me/gated": files, "me/one": files, "me/moved": files}
    line = refuse(probe.main, "geometry", "--model", "me/gated", cwd=tmp_path)
    assert "me/gated" in line and "GatedRepoError" in line
    assert torch.equal(public.read_embedding("me/moved")[1], trained_table())
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert torch.equal(public.read_embedding("me/gated")[1], trained_table())
    assert hub.tokens[-1] == "Bearer hf_secret"


@pytest.mark.parametrize("name", [
    "embedding.weight", "shared.weight", "wte", "backbone.embeddings.weight", "emb.weight",
    "model.embed.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight"])
def test_names_of_input_tables(tmp_path, name):
    other = torch.zeros(3, 16)
    data, _ = safetensors({"position_embedding.weight": other, name: trained_table(),
                           "decoder.shared.weight.scale": other, "lm_head.weight": other})
    (tmp_path / "model.safetensors").write_bytes(data)
    found, table = public.read_embedding(str(tmp_path))
    assert found == name and torch.equal(table, trained_table())


def test_a_tensor_can_be_chosen_and_the_message_lists_what_there_is(tmp_path, refuse, call):
    data, _ = safetensors({"tokens.table": trained_table(), "lm_head.weight": torch.zeros(3, 16),
                           **{f"layer.{i}.weight": torch.zeros(1, 1) for i in range(20)}})
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary("bpe")))
    argv = ["geometry", "--words=run,compute", "--out=geo", "--model", str(tmp_path)]
    for more, said in (([], "no tensor has a name"), (["--tensor=table"], "no tensor is called")):
        line = refuse(probe.main, *argv, *more, cwd=tmp_path)
        assert said in line and "--tensor=NAME" in line
        assert "tokens.table" in line and "and 10 more" in line
    assert call(probe.main, *argv, "--tensor=tokens.table", cwd=tmp_path) == 0
    (study,) = result(tmp_path / "geo")["models"].values()
    assert study["tensor"] == "tokens.table" and study["shape"] == [64, 16]


def test_the_vocabulary_of_a_tokenizer_on_the_hub(hub, tmp_path, call, refuse):
    """--tokenizer=OWNER/NAME, as prepare.py takes it; of a file of the same content, the same."""
    text = json.dumps(vocabulary("bytes"))
    (tmp_path / "tokenizer.json").write_text(text)
    hub.repos |= {"me/one": {"tokenizer.json": text.encode()}, "me/other": {}}
    found = {}
    for source in ("me/one", "tokenizer.json"):
        argv = "geometry", "--words=run", "--out=geo", f"--tokenizer={source}"
        assert call(probe.main, *argv, cwd=tmp_path) == 0
        found[source] = result(tmp_path / "geo")
        assert found[source]["tokenizer"] == source and found[source]["tokens"] == len(TOKENS)
    for key in ("neighbours", "use"):
        assert found["me/one"][key] == found["tokenizer.json"][key]
    line = refuse(probe.main, "geometry", "--tokenizer=me/other", cwd=tmp_path)
    assert "me/other: no vocabulary" in line


@pytest.mark.parametrize("style", ["bytes", "bpe", "unigram"])
def test_vocabularies(tmp_path, style):
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary(style)))
    strings = [t.encode() for t in TOKENS]
    assert public.read_vocabulary(str(tmp_path)) == strings
    assert public.read_vocabulary(str(tmp_path / "tokenizer.json")) == strings


def test_geometry_of_public_models(hub, tmp_path, call, made, capsys):
    """The same model from the Hub and from a folder, in two styles of vocabulary: the same
    neighbours, and the trained ones as built."""
    data, _ = safetensors({"wte.weight": trained_table()})
    local = tmp_path / "local"
    local.mkdir()
    (local / "model.safetensors").write_bytes(data)
    (local / "tokenizer.json").write_text(json.dumps(vocabulary("unigram")))
    hub.repos["me/one"] = {"model.safetensors": local / "model.safetensors",
                           "tokenizer.json": json.dumps(vocabulary("bytes")).encode()}
    argv = ["geometry", "--words=run,compute,absent", f"--tokenizer={made['kron', 1]}", "--out=geo",
            "--model", "me/one", str(local)]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "geo")
    first, second = found["models"].values()
    assert first == second and first["words"] == ["run", "compute"] and first["shape"] == [64, 16]
    trained, random, kron = (first["spaces"][name] for name in ("trained", "random", "Kronecker"))
    run, compute = trained["neighbours"]["run"], trained["neighbours"]["compute"]
    assert set(run[:4]) == {" Run", " RUN", "run", "Run"} and " run" not in run
    assert set(compute[:2]) == {" Compute", "compute"} and compute[2] == " computed"
    assert trained["typographic"] == pytest.approx((4 + 2) / 10)
    assert kron["typographic"] <= 0.2 and random["typographic"] <= 0.3
    assert set(kron["neighbours"]["compute"][:3]) == {" computes", " computed", " computer"}
    members = [TOKENS.index(f" {w}") for w in ("compute", "computes", "computed", "computer")]
    table = trained_table().double()
    # the padding rows do not count
    for name, centre in (("raw", 0), ("centred", table[:len(TOKENS)].mean(0))):
        hand = [torch.cosine_similarity(table[a] - centre, table[b] - centre, dim=0).item()
                for i, a in enumerate(members) for b in members[:i]]
        assert trained["cosine"][name][0] == pytest.approx(np.mean(hand), abs=1e-5)
    assert abs(trained["cosine"]["centred"][1]) < 0.1
    (stability,) = found["jaccard"]
    assert stability == {"models": ["me/one", str(local)], "trained": 1.0, "random": 1.0,
                         "Kronecker": 1.0}
    rows = {(f["anchor"], f["variant"]): f for f in found["falloff"]}
    station = rows["nation", "station"]
    assert station["edits"] == 2 and abs(station["cosine"]) < 0.002
    assert found["use"].keys() == {"8", "16", "32"}
    assert "44 (P = 16)" in capsys.readouterr().out


def test_jaccard():
    a, b = {"a": ["x", "X", "y"], "b": ["q"]}, {"a": [" x", "z"], "c": ["q"]}
    assert spaces.jaccard(a, b) == pytest.approx(1 / 3)
    assert spaces.jaccard({"a": ["x"]}, {"b": ["x"]}) is None


def test_damaged_models_are_refused(hub, tmp_path, refuse):
    """Whatever a file or a server says, the answer is one line; nothing is executed, and no length
    is trusted."""
    def header(entry, name="wte.weight"):
        head = json.dumps({name: entry}).encode()
        return struct.pack("<Q", len(head)) + head + bytes(64)
    good = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    cases = {
        "short": b"\x01", "endless": struct.pack("<Q", 2**60), "cut": header(good)[:-1],
        "no json": struct.pack("<Q", 3) + b"{]}",
        "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "other": header(good, "head.weight"), "i8": header(good | {"dtype": "I8"}),
        "size": header(good | {"shape": [4, 5]}),
        "negative": header(good | {"data_offsets": [-64, 0]}),
        "words": header(good | {"shape": "44"}),
        "far": header(good | {"data_offsets": [2**70, 2**70 + 64]}),
        "huge": header({"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}),
        "list": struct.pack("<Q", 2) + b"[]"}
    for name, data in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(data)
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary("bpe")))
    for name in cases:
        model = str(tmp_path / name)
        assert model in refuse(probe.main, "geometry", "--model", model, cwd=tmp_path)
    texts = {"no": "{", "ids": '{"model": {"vocab": {"a": "b"}}}',
             "far id": '{"model": {"vocab": {"a": 1000000000000}}}',
             "wordpiece": '{"model": {"type": "WordPiece", "vocab": {"##a": 1}}}'}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(text)
        line = refuse(probe.main, "geometry", "--model", str(tmp_path / name), cwd=tmp_path)
        assert "vocabulary" in line
    tokens = {"tokenizer.json": json.dumps(vocabulary("bpe")).encode()}
    hub.repos["me/endless"] = tokens | {"model.safetensors": tmp_path / "endless.safetensors"}
    (tmp_path / "endless.safetensors").write_bytes(cases["endless"] + bytes(10**6))
    line = refuse(probe.main, "geometry", "--model", "me/endless", cwd=tmp_path)
    assert "a header of 1,152,921" in line and sum(hub.sent().values()) == 8
    (tmp_path / "whole.safetensors").write_bytes(header(good))
    hub.repos["me/one"] = tokens | {"model.safetensors": tmp_path / "whole.safetensors"}
    hub.ranges = False
    for model, named in (("me/one", "8 were asked for"), ("me/none", "me/none"),
                         ("/no/folder", "not OWNER/NAME"), ("a/b/c", "not OWNER/NAME")):
        assert named in refuse(probe.main, "geometry", "--model", model, cwd=tmp_path)


# ---- norms -------------------------------------------------------------------------------------

def write_log(folder, arm, seed, norms):
    run = folder / "out" / f"{arm}-s{seed}"
    run.mkdir(parents=True)
    config = {"seed": seed, "code": arm, "max_steps": 100}
    lines = [{"config": config, "arm": arm, "params": {}, "data": {}}]
    for i, norm in enumerate(norms):
        lines.append({"step": 50 * i, "val_loss": 3.0, "input_norm": norm})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_norms_drift(tmp_path, call, capsys, refuse):
    runs = [write_log(tmp_path, "kron", 1, [1.0, 1.1, 1.2]),
            write_log(tmp_path, "kron", 2, [2.0, 2.2, 2.8]),
            write_log(tmp_path, "binary", 1, [None, None, None])]
    assert call(probe.main, "norms", *runs, "--out=norms", cwd=tmp_path) == 0
    found, printed = result(tmp_path / "norms"), capsys.readouterr().out
    kron = found["norms"]["kron"]
    assert kron["drift"]["mean"] == pytest.approx(1.3) and kron["start"]["mean"] == 1.5
    assert kron["drift"]["sd"] == written(math.sqrt(0.02))
    assert "no weights" in printed and "near 1.0" in printed and "binary" not in found["norms"]
    empty = write_log(tmp_path, "kron", 3, [])
    assert "no validation" in refuse(probe.main, "norms", empty, cwd=tmp_path)
    assert "not a run" in refuse(probe.main, "norms", tmp_path, cwd=tmp_path)


# ---- bad input ---------------------------------------------------------------------------------

def test_bad_pairs_are_one_line(made, tmp_path, refuse):
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "cells.tsv").write_text("category\tclean\ttypo\nmisc\ta\tb\tc\n")
    (tmp_path / "quote.tsv").write_text('category\tclean\ttypo\nmisc\t"a\tb\n')
    (tmp_path / "bytes.tsv").write_bytes(b"category\tclean\ttypo\nmisc\t\xff\tb\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "half.json").write_text(json.dumps({"kron": {"per_prompt": []}}))
    write_pairs(tmp_path / "head.tsv", [])
    write_pairs(tmp_path / "column.tsv", PAIRS, ("category", "clean", "wrong"))
    write_pairs(tmp_path / "short.tsv", [("misc", "a")])
    write_pairs(tmp_path / "long.tsv", [("misc", "word " * 100, "b")])
    for pairs, named in {"empty.tsv": "no rows", "head.tsv": "no rows",
                         "column.tsv": "no text in column 'typo'",
                         "short.tsv": "no text in column 'typo'", "cells.tsv": "more cells",
                         "quote.tsv": "cannot be read", "bytes.tsv": "cannot be read",
                         "list.jsonl": "no text in column",
                         "half.json": "not results with bpe and kron",
                         "none.tsv": "No such file", "long.tsv": "context is 64"}.items():
        argv = ["robustness", made["kron", 1], f"--pairs={tmp_path / pairs}"]
        assert named in refuse(probe.main, *argv, cwd=tmp_path), pairs


def test_bad_arguments_are_one_line(made, tmp_path, bpe500, refuse):
    run, other = made["kron", 1], save_run(tmp_path, "binary", bpe500, "--block_size=32")
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    row = records([True], [0.1])[0]
    for name, bpe, kron in (("nan", row | {"cosine_hidden": math.nan}, row),
                            ("pairs", row, row | {"typo": "c"})):
        published(tmp_path, [bpe], [kron]).rename(tmp_path / f"{name}.json")
    for argv, named in [
            (["robustness", tmp_path / "no.pt"], "not a checkpoint"),
            (["layers", run, "out/none"], "no checkpoint"),
            (["generation", run, run], "same arm and seed"),
            (["layers", run, other], "block_size"),
            (["robustness"], "needs runs"),
            (["robustness", run, "--published=x.json"], "not both"),
            (["robustness", "--published=nan.json"], "not finite"),
            (["robustness", "--published=pairs.json"], "same pairs"),
            (["norms"], "RUN"), ([], "robustness"), (["poems"], "poems"),
            (["layers", run, f"--out={tmp_path}"], "is a folder"),
            (["generation", run, "--samples=0"], "samples"),
            (["geometry", "--words=,", f"--tokenizer={run}"], "--words is empty"),
            (["geometry", f"--tokenizer={tmp_path}/none"], "no checkpoint")]:
        assert named in refuse(probe.main, *argv, cwd=tmp_path), argv
