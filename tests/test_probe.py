"""probe.py: its measurements are those of independent computations, only what is needed is read,
and bad input is one line."""
import json
import math
import shutil
import struct
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hub import Hub
from pytest import approx

import probe
from conftest import HEADER, VAL, build, config_of
from lib import tokenizer
from lib.results import read_run
from lib.run_folder import build_model, load_model, save_checkpoint
from lib.tuning import KEYS, arm_keys
from probes import echo, generation, geometry, layers, public, robustness, shared

PAIRS = [("category", "clean", "typo"),
         ("geography", "The capital of the country is", "The captial of the country is"),
         ("math", "Two plus two is", "Two pluss two is"),
         ("misc", "Return the length of", "Return the lenght of")]


@pytest.fixture(scope="session")
def bpe500(docs):
    """500 ids, padded to 512: twelve ids that text never has."""
    return tokenizer.train_bpe(docs, 500)


def save_run(folder, arm, tok, *options, seed=1):
    """out/ARM-sSEED with an untrained checkpoint whose predictions are sharp, and whose padding ids
    would win if they were counted."""
    config = config_of(f"configs/{arm}.py", "--n_layer=2", "--n_head=2", "--n_embd=24",
                       "--block_size=64", f"--seed={seed}", *options)
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
    """Two arms, two seeds each: {(arm, seed): folder}."""
    folder = tmp_path_factory.mktemp("probed")
    return {(arm, seed): save_run(folder, arm, bpe500, seed=seed)
            for arm in ("kron", "bpe_tied") for seed in (1, 2)}


def result(out):
    """A probe's results, numbers with six digits."""
    return json.loads(out.with_suffix(".json").read_text())


def test_robustness_by_its_definitions(made, tmp_path, call):
    """The four measurements of every pair, worked out in numpy."""
    (tmp_path / "pairs.tsv").write_text("\n".join(map("\t".join, PAIRS)))
    argv = ["robustness", *made.values(), "--pairs=pairs.tsv"]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "out" / "probe-robustness")  # not results/, whose pages are committed
    for (arm, seed), run in made.items():
        model, tok, _ = load_model(run)
        hand = {metric: [] for metric in robustness.METRICS}
        for _, *texts in PAIRS[1:]:
            with torch.no_grad():
                ids = [torch.tensor([tok.encode(text)]) for text in texts]
                p, q = (model(one)[0, -1, :tok.vocab_size].double().log_softmax(0).numpy()
                        for one in ids)
                h, g = (model.hidden(one)[0, -1].double().numpy() for one in ids)
            hand["top1_matches"].append(p.argmax() == q.argmax())
            hand["kl_clean_to_typo"].append((np.exp(p) * (p - q)).sum())
            hand["cosine_hidden"].append(h @ g / math.sqrt((h @ h) * (g @ g)))
            hand["logprob_drop"].append(p.max() - q[p.argmax()])
        for metric, values in hand.items():
            of_seeds = found["arms"][arm]["overall"][metric]["per_seed"]
            assert of_seeds[seed - 1] == approx(np.mean(values), rel=1e-4, abs=1e-6)
    assert max(hand["kl_clean_to_typo"]) > 0.1  # agreement is not that of two zeros
    page = (tmp_path / "out" / "probe-robustness.md").read_text()
    assert "Made by `python probe.py" in page and "kron-s2 (step 7)" in page
    assert (tmp_path / "out" / "probe-robustness.png").read_bytes().startswith(b"\x89PNG")


def test_contrasts_use_the_seeds_that_both_arms_have():
    """By hand: of three pairs and two common seeds the differences are (1, 0, 0) and (1, 0, -1)."""
    def measured(kept, kl=1):
        return dict.fromkeys(robustness.METRICS, [kl, 1, 1]) | {"top1_matches": kept}
    a = {1: measured([1, 1, 0]), 2: measured([1, 1, 0], kl=4), 3: measured([0, 0, 0])}
    b = {1: measured([0, 1, 0]), 2: measured([0, 1, 1]), 7: measured([1, 1, 1])}
    found = robustness.aggregate({"a": a, "b": b, "c": {5: a[1]}})
    (pair,) = found["contrasts"]  # c shares no seed with a or b
    assert (pair["a"], pair["b"], pair["seeds"]) == ("a", "b", 2)
    assert pair["difference"] == approx(1 / 6) and pair["kl"] == 0.5
    assert pair["interval"][0] < 0 < pair["interval"][1]


@pytest.mark.parametrize("seeds, prompts, seed_sd", [(3, 30, 1), (3, 24, 0), (1, 12, 0)])
def test_intervals_over_prompts_crossed_with_seeds_cover_the_truth(monkeypatch, seeds, prompts,
                                                                   seed_sd):
    """In about 95 of 100 simulated experiments."""
    monkeypatch.setattr(shared, "DRAWS", 500)
    rng, hits = np.random.RandomState(1), 0
    for _ in range(400):
        values = seed_sd * rng.randn(seeds, 1) + 2 * rng.randn(1, prompts)
        low, high = shared.crossed_interval(values + rng.randn(seeds, prompts))
        hits += low <= 0 <= high
    assert 0.91 <= hits / 400 <= 0.995


def test_nothing_in_480_samples_of_20_prompts_is_nothing_in_20():
    """Three seeds and eight samples a prompt are not 480 independent trials: the upper end is that
    of Wilson's interval for 0 of 20."""
    silent = np.zeros((3, 20))
    assert shared.share_interval(silent) == approx([0, 0.1611], abs=1e-4)
    assert shared.share_interval(1 - silent) == approx([0.8389, 1], abs=1e-4)


# ---- prompts and words -------------------------------------------------------------------------

def test_the_prompt_files_are_what_they_should_be():
    """One word of a pair is misspelled; to say the right word is no echo of the wrong one."""
    pairs, prompts, families = (shared.read_rows(shared.PROMPTS / f"{name}.tsv", [])
                                for name in ("typo_pairs", "generation", "families"))
    echoes = echo.read_prompts(shared.PROMPTS / "echo.tsv")
    for p in pairs:
        words = zip(p["clean"].split(" "), p["typo"].split(" "), strict=True)
        (changed,) = [(a, b) for a, b in words if a != b]
        assert shared.edit_distance(*changed) in (1, 2)
    for p in prompts:
        assert p["normal"] not in p["prompt"] and shared.edit_distance(p["normal"], p["typo"]) == 2
    for p in echoes:
        assert p["template"].endswith(" {}") and p["clean"] not in p["template"].lower()
        assert shared.edit_distance(p["clean"], p["typo"]) in (1, 2)
    assert [*Counter(row["category"] for row in pairs).values()] == [10] * 11
    assert [*Counter(row["family"] for row in families).values()] == [8] * 6
    assert len({p["novel"] for p in prompts}) == 20 and len({p["novel"] for p in echoes}) == 24


@pytest.mark.parametrize("text, word, edits", [
    ("Zorblat, zorblats", "zorblat", 0), ("zorblats", "zorblat", 1), ("a zorbat", "zorblat", 1),
    ("zorblta", "zorblat", 2), ("a_zorblat_b", "zorblat", 0),
    ("pre-zorblat zorblat's", "zorblat", 2), ("", "zorblat", math.inf), ("I am", "a", math.inf),
    # vowel signs and composed or decomposed accents belong to their letters
    ("कार्यक्रमों", "कार", 8), ("une e\u0301toile", "étoile", 0)])
def test_the_nearest_whole_word(text, word, edits):
    assert generation.fewest_edits(text, word) == edits


def test_canonical_forms_keep_marks_and_drop_the_rest():
    for a, b, same in [
            (" Run", "run", True), ("e\u0301te\u0301-", "Été", True), ("क्\u200dष", "क्ष", True),
            ("...", "", True), ("कि", "की", False), ("run", "runs", False)]:
        assert (shared.canonical(a) == shared.canonical(b)) == same


def test_nearest_leaves_the_word_itself_out_and_takes_the_mean_off():
    table = torch.tensor([[10.0, 1], [10, 2], [10, -1], [10, -2], [10, 0.5]])
    asked = table[:2], [0, -1], lambda i: table[i], torch.arange(5), 2
    assert [[id for id, _ in row] for row in shared.nearest(*asked)] == [[4, 1], [1, 0]]
    centred, _ = shared.nearest(*asked, torch.tensor([10.0, 0]))
    assert centred == [(1, 1.0), (4, 1.0)]  # both at cosine 1: the lower id comes first


@pytest.mark.parametrize("arm", ["kron", "kron_tied", "trigram", "bytes2word"])
def test_the_slot_stands_in_place_of_the_word(bpe, arm):
    """It embeds as the word's bytes do, the rest is encoded as ever; the next prompt forgets it."""
    model, slot = build(arm, bpe), bpe.vocab_size
    ids = generation.prompt_ids(model, bpe, "in {} end", "the", one_slot=True)
    assert ids == [*bpe.encode("in"), slot, *bpe.encode(" end")]
    e = model.transformer.wte(torch.tensor([slot, bpe.encode(" the")[0]]))
    torch.testing.assert_close(e[0], e[1])
    ids = generation.prompt_ids(model, bpe, "in {} end", "the", one_slot=False)
    assert ids == bpe.encode("in the end") and model.slot is None


def test_echo_rates_and_forced_bytes(made, tmp_path, call, monkeypatch):
    """A reader that says the bytes of the free slot again, where the prompt has it: only kron's
    prompts in one slot echo."""
    def parrot(model, tok, ids, word, **sampler):
        slot, wte = model.config.vocab_size, model.transformer.wte
        if slot not in ids[0].tolist():
            return [" nothing"] * 4
        word = bytes(wte.bytes[slot, :wte.length[slot]].tolist()).decode()
        return [f" one{word}", f"{word}s", " nothing", " nothing"]
    monkeypatch.setattr(generation, "continue_text", parrot)
    argv = ["generation", *made.values(), "--samples=4", "--out=gen"]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "gen")
    rates, texts = found["rates"], found["first_samples"][made["kron", 1]]
    assert texts["novel in one slot"][0] == " one zorblat" and len(texts["typo"]) == 20
    assert rates["bpe_tied"]["exact"].keys() == {"normal", "typo", "novel"}
    for kind, hits in (("typo", 0), ("novel in one slot", 40), ("typo in one slot", 40)):
        exact, one_edit = (rates["kron"][what][kind] for what in ("exact", "one_edit"))
        assert (exact["hits"], one_edit["hits"], exact["samples"]) == (hits, 2 * hits, 160)
        # said by one of four samples of each prompt, or of none
        assert exact["interval"] == approx([25, 25] if hits else [0, 16.11], abs=0.01)


def log_p(model, tok, text, word):
    """log p(word | text), a token at a time."""
    total, ids = 0.0, tok.encode(text)
    for target in tok.encode(word):
        total += model(torch.tensor([ids]))[0, -1, :tok.vocab_size].log_softmax(0)[target].item()
        ids.append(target)
    return total


@torch.no_grad()
def test_copying_by_its_definition(made, tmp_path, call, capsys):
    """The word's tokens behind the text that has the word, and behind that with the other word."""
    (tmp_path / "p.tsv").write_text("template\tclean\ttypo\tnovel\n"
                                    "The {} or the {} is not read\tfile\tflie\tzorb\n"
                                    "Set {} and get {} again\tvalue\tvlaue\tquimb\n")
    argv = ["echo", *made.values(), "--prompts=p.tsv", "--out=echo"]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "echo")["echo"]
    for (arm, seed), run in made.items():
        model, tok, _ = load_model(run)
        hand = [log_p(model, tok, there, typo) - log_p(model, tok, absent, typo)
                for there, absent, typo in (
                    ("The flie or the", "The file or the", " flie"),
                    ("Set vlaue and get", "Set value and get", " vlaue"))]
        assert found[arm]["typo"]["per_seed"][seed - 1] == approx(np.mean(hand), abs=1e-4)
        assert min(map(abs, hand)) > 0.001
    kron, bpe = found["kron"]["novel"], found["bpe_tied"]["novel"]
    assert kron["gap"] == approx(kron["mean"] - bpe["mean"], rel=1e-3) and bpe["gap"] is None
    assert kron["gap_interval"][0] <= kron["gap"] <= kron["gap_interval"][1]
    said = capsys.readouterr().out
    assert "minus bpe_tied's" in said and "0 of 3 differences to bpe_tied are clear." in said


# ---- tokens and norms --------------------------------------------------------------------------

def write_log(folder, arm, seed, norms, **config):
    """out/ARM-sSEED with the log of a run that was validated every 50 steps."""
    run = folder / "out" / f"{arm}-s{seed}"
    run.mkdir(parents=True)
    config = {"seed": seed, "code": arm, "max_steps": 100} | config
    header = HEADER | {"config": config, "arm": arm}
    vals = [VAL | {"step": 50 * i, "val_loss": 3.0, "input_norm": x} for i, x in enumerate(norms)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, [header, *vals])))
    return run


def write_eval(folder, arm, seed, nats, tokens=(30, 10, 0, 60), **config):
    """A run's folder with a log and an eval.npz of 100 tokens: mean nats by how often the input
    token was seen (never, 1, 2-3, 4-7), all else alike; no two tokens share their bytes."""
    run = write_log(folder, arm, seed, [1.0, 1.0], **config)
    tokens, lengths = np.array(tokens), np.zeros(21, int)
    sums = (tokens * nats).astype(np.float32)
    lengths[[3, 13, 16, 17, 20]] = 65, 5, 10, 15, 5
    even, scripts = sums.sum() / 100, np.array([0, 80, 20])
    np.savez(run / "eval.npz", doc_nats=sums, doc_tokens=tokens, doc_bytes=4 * tokens,
             seen_nats=sums, seen_tokens=tokens, length_nats=even * lengths, length_tokens=lengths,
             script_names=np.array(["Devanagari", "Latin", "digits"]),
             script_nats=even * scripts, script_tokens=scripts,
             shared_nats=np.array([100 * even]), shared_tokens=np.array([100]))
    return run


def test_nats_by_group_are_sums_over_tokens(tmp_path, call, capsys):
    runs = [write_eval(tmp_path, arm, seed, [never, 6, 0, 2]) for arm, seed, never in (
        ("bpe_tied", 1, 8), ("bpe_tied", 2, 9), ("kron", 1, 7), ("kron", 2, 7))]
    assert call(probe.main, "tokens", *runs, "--out=tok", cwd=tmp_path) == 0
    printed, groups = capsys.readouterr().out, result(tmp_path / "tok")["groups"]
    assert list(groups["seen"]) == ["never", "1", "4-7"]  # 2-3 has no token
    never = groups["seen"]["never"]
    assert never["share"] == approx(0.3)
    assert never["arms"]["bpe_tied"]["nats"]["mean"] == approx(8.5)
    gap = never["arms"]["kron"]["gap"]
    assert gap["mean"] == approx(-1.5) and gap["sd"] == approx(math.sqrt(0.5))
    # Student's 12.706 for one degree of freedom
    assert gap["interval"][1] == approx(-1.5 + 12.706 * 0.5, abs=1e-2)
    assert groups["all"]["all"]["arms"]["bpe_tied"]["nats"]["mean"] == approx(4.35)
    assert {name: group["share"] for name, group in groups["length"].items()} == {
        "3": 0.65, "13": 0.05, "16": 0.1, "17 or more": 0.2}
    assert list(groups["script"]) == ["Latin", "digits"] and list(groups["shared"]) == ["own"]
    assert "One token of 13 bytes is <|endoftext|>" in printed and "nan" not in printed


def test_gaps_are_of_the_same_tokens(tmp_path, call):
    """Where two runs group other tokens together, as codes of another P do, there is no gap."""
    runs = [write_eval(tmp_path, "bpe_tied", 1, [8, 6, 0, 2]),
            write_eval(tmp_path, "kron", 1, [7, 6, 0, 2], tokens=(29, 11, 0, 60))]
    assert call(probe.main, "tokens", *runs, "--out=tok", cwd=tmp_path) == 0
    seen = result(tmp_path / "tok")["groups"]["seen"]
    never, often = (seen[name]["arms"]["kron"]["gap"] for name in ("never", "4-7"))
    assert never is None and often["mean"] == approx(0)


def test_tuned_runs_stand_side_by_side(tmp_path, call, refuse):
    """With the grid that chose them arms of other learning rates are compared and keep their short
    names; without it they are not, nor is what the grid did not choose."""
    runs, arms = [], {}
    for name, rate, std in (("bpe_untied,embed_std=1", 4e-3, 1), ("affine", 2e-3, 0)):
        point = {"learning_rate": rate, "min_lr": rate / 10, "embed_std": std}
        runs.append(write_eval(tmp_path, name, 1, [8, 6, 0, 2], **point))
        arm = name.split(",")[0]
        keys = arm_keys(read_run(runs[-1])["header"]["config"])
        arms[arm] = {"arm": arm, "keys": keys, "edges": [], "grid": [point], "best": KEYS | point}
    table = {"seeds": [100], "steps": 1, "arms": arms, "settings": {"data": {}}}
    (tmp_path / "tuning.json").write_text(json.dumps(table))
    arms["affine"]["best"]["learning_rate"] = 8e-3
    (tmp_path / "other.json").write_text(json.dumps(table))
    assert "learning_rate is" in refuse(probe.main, "tokens", *runs, cwd=tmp_path)
    line = refuse(probe.main, "tokens", *runs, "--tuned=other.json", cwd=tmp_path)
    assert "is not what the grid chose (0.008" in line
    argv = ("tokens", *runs, "--tuned=tuning.json", "--out=tok")
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    assert [run["arm"] for run in result(tmp_path / "tok")["runs"]] == ["bpe_untied", "affine"]


def test_bad_evaluations_are_one_line(tmp_path, refuse):
    run = write_log(tmp_path, "kron", 1, [1.0])
    assert "no eval.npz" in refuse(probe.main, "tokens", run, cwd=tmp_path)
    for nats, named in ([0.0], "no eval.npz with groups"), ([{}], "allow_pickle=False"):
        np.savez(run / "eval.npz", doc_nats=nats, doc_tokens=[1], doc_bytes=[1])
        assert named in refuse(probe.main, "tokens", run, cwd=tmp_path)


def test_norms_drift(tmp_path, call, capsys, refuse):
    runs = [write_log(tmp_path, arm, seed, norms) for arm, seed, norms in (
        ("kron", 1, [1.0, 1.1, 1.2]), ("kron", 2, [2.0, 2.2, 2.8]), ("binary", 1, [None] * 3))]
    assert call(probe.main, "norms", *runs, "--out=norms", cwd=tmp_path) == 0
    found, printed = result(tmp_path / "norms"), capsys.readouterr().out
    kron = found["norms"]["kron"]
    assert kron["drift"]["mean"] == approx(1.3) and kron["start"]["mean"] == 1.5
    assert kron["drift"]["sd"] == approx(math.sqrt(0.02), rel=1e-5)
    assert "no weights" in printed and "near 1.0" in printed and "binary" not in found["norms"]
    empty = write_log(tmp_path, "kron", 3, [])
    assert "no validation" in refuse(probe.main, "norms", empty, cwd=tmp_path)


# ---- layers ------------------------------------------------------------------------------------

@pytest.mark.parametrize("arm, options", [("bpe_tied", []), ("kron", ["--positions=rotary"])])
def test_levels_are_the_states_of_a_token_alone(tmp_path, bpe500, arm, options):
    model, tok, _ = load_model(save_run(tmp_path, arm, bpe500, *options))
    ids = torch.arange(tok.vocab_size)
    found = layers.levels(model, model.transformer.wte(ids))
    assert found.keys() == {"E_raw", "L0", "L1"}
    model.transformer.ln_f = torch.nn.Identity()
    for level, count in (("L1", 2), ("L0", 1)):
        model.transformer.h = model.transformer.h[:count]
        torch.testing.assert_close(found[level], model.hidden(ids.unsqueeze(1))[:, 0])


@pytest.mark.parametrize("arm", ["kron", "bpe_untied"])
def test_words_of_several_tokens(tmp_path, bpe500, arm):
    """kron embeds the string's bytes as one code, other arms average their tokens; a word of one
    token is what the body is given for it."""
    model, tok, _ = load_model(save_run(tmp_path, arm, bpe500, "--input_multiplier=3"))
    vectors, own = layers.word_vectors(model, tok, ["the", "unquestionably"])
    assert own == [tok.encode(" the")[0], -1]
    torch.testing.assert_close(vectors[0], model.embed(torch.tensor(own[0])))
    whole = model.embed(torch.tensor(tok.encode(" unquestionably"))).mean(0)
    if arm == "kron":
        z = geometry.kron_code([b" unquestionably"], 16)(torch.arange(1))[0]
        whole = 3 * z @ model.transformer.wte.W
    torch.testing.assert_close(vectors[1], whole)


def test_shares_of_variants_roots_and_families():
    near = [" Compute", "COMPUTE", " computers", "Computed", " compute-", " recompute", " commute",
            " the", " run", "�"]
    family = ["compute", "computers", "computed"]
    assert layers.shares(near, "compute", "comput", family) == [0.7, 0.6, 0.5]


def test_layers_of_every_level(tmp_path, bpe, call):
    """Untrained, bytes find the root and a random table does not. Step 0 is a fresh model, whose
    blocks `save_run` changes."""
    runs = [save_run(tmp_path, arm, bpe, seed=seed)
            for arm, seed in (("kron", 1), ("kron", 2), ("bpe_tied", 1))]
    assert call(probe.main, "layers", *runs, "--out=lay", cwd=tmp_path) == 0
    found = result(tmp_path / "lay")
    kron, table = (found["levels"][arm] for arm in ("kron", "bpe_tied"))
    of_kron, of_table = (stages["trained"]["E_raw"]["overall"][1] for stages in (kron, table))
    assert of_kron > 0.1 > 3 * of_table
    assert kron["step 0"]["E_raw"]["overall"] == kron["trained"]["E_raw"]["overall"]
    assert kron["step 0"]["L1"]["overall"] != kron["trained"]["L1"]["overall"]
    assert "computational" in found["words_of_several_tokens"]


def test_collisions_of_gpt2(gpt2):
    strings = tokenizer.token_bytes(gpt2)
    assert geometry.what_p_does(strings, 16) == {"longer": 72, "share": 44, "rows": 1488}
    assert geometry.what_p_does(strings, 32) == {"longer": 14, "share": 17, "rows": 1737}


# ---- public models -----------------------------------------------------------------------------

def safetensors(tensors):
    """{name: tensor} -> a file's bytes."""
    kinds = {dtype: name for name, dtype in public.DTYPES.items()}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


TOKENS = [" run", " Run", " RUN", "run", "Run", " compute", " Compute", "compute", " computed",
          " computes", " computer", "the", " running", " nation", *(f" w{i}" for i in range(34))]
VOCABULARY = json.dumps({"pre_tokenizer": {"type": "ByteLevel"}, "model": {
    "type": "BPE", "vocab": {token.replace(" ", "Ġ"): id for id, token in enumerate(TOKENS)}}})


def trained_table():
    """A table of 64 rows (most of them padding) in which the forms of a word lie together."""
    table, noise = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
    table[:5] = table[0] + 0.01 * noise[:5]
    table[5:8] = table[5] + 0.01 * noise[5:8]
    table[8] = table[5] + 0.5 * noise[8]
    return table


def write_model(folder, tensors):
    """A public model's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    (folder / "tokenizer.json").write_text(VOCABULARY)


@pytest.fixture
def hub(monkeypatch):
    """A Hub of models on loopback, `hub.models`, which the real client in this process asks."""
    from huggingface_hub import HfFileSystem, constants
    HfFileSystem.clear_instance_cache()
    with Hub({}) as hub:
        for key, value in hub.env("none").items():
            monkeypatch.setenv(key, value)
        endpoint, template = hub.env("none")["HF_ENDPOINT"], constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            template.replace(constants.ENDPOINT, endpoint))
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        yield hub


def test_only_the_embedding_of_a_hub_model_is_fetched(hub, tmp_path, monkeypatch):
    """In one file, and in shards of which only one is opened: 8 bytes, the header, the table in
    pieces, no more; what passes is tried again."""
    monkeypatch.setattr(public, "PIECE", 1500)
    table, name = trained_table().to(torch.float8_e4m3fn), "model.embed_tokens.weight"
    other = torch.zeros(1000, 16, dtype=torch.float16)
    shard = tmp_path / "2.safetensors"
    shard.write_bytes(safetensors({"a.weight": other, name: table, "lm_head.weight": other}))
    index = {"copy.layers.61.embed_tokens.weight": "3.safetensors", name: "2.safetensors",
             "a.weight": "1.safetensors"}
    hub.models |= {"me/one": {"model.safetensors": shard.read_bytes()}, "me/many": {
        "2.safetensors": shard.read_bytes(),
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode()}}
    for model in hub.models:
        hub.reads.clear()
        found, read = public.read_embedding(model)
        assert found == name and torch.equal(read.float(), table.float())
        sizes = [last - first + 1 for _, first, last, _ in hub.reads]
        assert sum(sizes) == shard.stat().st_size - 2 * other.nbytes and max(sizes) <= 1500
    hub.faults["model.safetensors"] = ["busy"]
    assert torch.equal(public.read_embedding("me/one")[1].float(), table.float())
    assert not hub.faults["model.safetensors"]


def test_a_tensor_is_found_or_chosen_and_the_message_lists_what_there_is():
    for name in ("wte", "backbone.embeddings.weight", "emb.weight", "gpt_neox.embed_in.weight"):
        names = ["position_embedding.weight", name, "decoder.shared.weight.scale"]
        assert public.choose_tensor(names, None) == name
    names = ["embedder", *(f"layer.{i}" for i in range(20))]
    assert public.choose_tensor(names, "embedder") == "embedder"
    with pytest.raises(ValueError, match="--tensor=NAME chooses among its 21 tensors: embedder, "):
        public.choose_tensor(names, None)


def test_geometry_of_a_public_model(tmp_path, call):
    """The trained neighbours are as built."""
    (tmp_path / "tokenizer.json").write_text(VOCABULARY)
    (tmp_path / "model.safetensors").write_bytes(safetensors({"wte.weight": trained_table()}))
    argv = "--words=run,compute,absent", "--tokenizer=tokenizer.json", "--out=geo", "--model=."
    assert call(probe.main, "geometry", *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "geo")
    model = found["models"]["."]
    assert model["words"] == ["run", "compute"] and model["shape"] == [64, 16]
    trained, kron = model["spaces"].values()
    run, compute = ([text for text, _ in trained["neighbours"][word]]
                    for word in ("run", "compute"))
    assert set(run[:4]) == {" Run", " RUN", "run", "Run"} and " run" not in run
    assert set(compute[:2]) == {" Compute", "compute"} and compute[2] == " computed"
    assert trained["typographic"] == approx((4 + 2) / 10) and kron["typographic"] <= 0.2
    near = {text for text, _ in kron["neighbours"]["compute"][:3]}
    assert near == {" computes", " computed", " computer"}
    station, = (row for row in found["falloff"] if row["variant"] == "station")
    assert station["edits"] == 2 and abs(station["cosine"]) < 0.002
    assert found["tokens"] == len(TOKENS)


def test_damaged_models_are_refused(tmp_path, refuse):
    """Whatever a file says, the answer is one line; no length is trusted."""
    def header(**changes):
        entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes
        head = json.dumps({"wte.weight": entry}).encode()
        return struct.pack("<Q", len(head)) + head + bytes(64)
    (tmp_path / "tokenizer.json").write_text(VOCABULARY)
    for data in (b"\x01", struct.pack("<Q", 2**60) + bytes(10**6), header()[:-1],
                 header(dtype="I8"), header(shape=[4, 5]), header(data_offsets=[-64, 0])):
        (tmp_path / "model.safetensors").write_bytes(data)
        line = refuse(probe.main, "geometry", "--model=.", cwd=tmp_path)
        assert "no embedding that can be read" in line
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": "b"}}}')
    assert "no vocabulary" in refuse(probe.main, "geometry", "--model=.", cwd=tmp_path)


# ---- bad input ---------------------------------------------------------------------------------

@pytest.mark.parametrize("content, named", [
    (b"", "no rows"), (b"misc\ta\n", "row 1: no text in one of category, clean, typo"),
    (b"misc\ta\tb\tc\n", "more cells"), (b"misc\t\xff\tb\n", "cannot be read"),
    (b"misc\t" + b"word " * 100 + b"\tb\n", "context is 64")])
def test_bad_pairs_are_one_line(made, tmp_path, refuse, content, named):
    (tmp_path / "pairs.tsv").write_bytes(b"category\tclean\ttypo\n" + content)
    argv = ["robustness", made["kron", 1], "--pairs=pairs.tsv"]
    assert named in refuse(probe.main, *argv, cwd=tmp_path)


@pytest.mark.parametrize("argv, named", [
    ("layers RUN out/none", "no checkpoint"), ("generation RUN copy", "same arm and seed"),
    ("layers RUN OTHER", "block_size"), ("robustness", "RUN"), ("poems", "poems"),
    ("norms .", "not a run"), ("layers RUN --out=.", "is a folder"),
    ("generation RUN --samples=0", "samples"),
    ("echo RUN --prompts=once.tsv", "row 1: the template needs exactly 2 {}"),
    ("echo RUN --prompts=none.tsv", "No such"),
    ("geometry --words=zzzq --tokenizer=RUN", "none of the words is one token"),
    ("geometry --tokenizer=out/none", "not OWNER/NAME")])
def test_bad_arguments_are_one_line(made, tmp_path, bpe500, refuse, argv, named):
    other = save_run(tmp_path, "binary", bpe500, "--block_size=32")
    shutil.copytree(made["kron", 1], tmp_path / "copy")
    (tmp_path / "once.tsv").write_text("template\tclean\ttypo\tnovel\nThe {}\ta\tb\tc\n")
    argv = argv.replace("RUN", made["kron", 1]).replace("OTHER", other).split()
    assert named in refuse(probe.main, *argv, cwd=tmp_path)
