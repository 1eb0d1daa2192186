"""probe.py: its measurements are those of independent computations, only what is needed is read, and bad input is one line."""
import csv
import json
import math
import struct
import threading
from collections import Counter
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

import probe
from lib import tokenizer
import train
from model import build_model, load_model, save_checkpoint

PAIRS = [("geography", "The capital of the country is", "The captial of the country is"),
         ("math", "Two plus two is", "Two pluss two is"),
         ("math", "The value of the sum is", "The vlaue of the sum is"),
         ("time", "The day after the first is", "The dya after the first is"),
         ("misc", "Return the length of", "Return the lenght of"),
         ("misc", "Open the file and read the", "Open the flie and read the")]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(probe, "DEVICE", torch.device("cpu"))


@pytest.fixture(scope="session")
def bpe500(docs):
    """500 ids, padded to 512: twelve ids that text never has."""
    return tokenizer.train_bpe(docs, 500)


def save_run(folder, arm, tok, *options, seed=1):
    """out/ARM-sSEED with an untrained checkpoint whose predictions are sharp,
    and whose padding ids would win if they were counted."""
    options = ["--n_layer=2", "--n_head=2", "--n_embd=24", "--block_size=64", f"--seed={seed}", *options]
    config, _, _ = train.compose([f"configs/{arm}.py", *options])
    model = build_model(vars(config), tok)
    with torch.no_grad():
        for p in model.parameters():  # from 0.02 to a scale at which attention chooses; kron's projection has it
            if p.dim() > 1 and p is not model.transformer.wte.weight or p is model.lm_head.weight:
                p *= 20
        model.lm_head.weight[tok.vocab_size:] = 5 * model.lm_head.weight[:model.config.padded_size - tok.vocab_size]
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
    return {(arm, seed): save_run(folder, arm, bpe500, seed=seed) for arm in ("kron", "bpe_tied") for seed in (1, 2)}


def write_pairs(path, pairs=PAIRS, head=("category", "clean", "typo")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([head, *pairs])
    return path


def result(out):
    """A probe's results, without what differs from call to call; all three files must be there."""
    assert (out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
            and "Made by `python probe.py" in out.with_suffix(".md").read_text())
    found = json.loads(out.with_suffix(".json").read_text())
    assert {"commit", "hardware"} <= found.keys()
    return {k: v for k, v in found.items() if k not in ("command", "date")}


# ---- robustness --------------------------------------------------------------------------------------------

def by_hand(model, tok, clean, typo):
    """The four measurements by their definitions, in numpy's float64, from the model's own logits."""
    def state(text):
        ids = torch.tensor([tok.encode(text)])
        with torch.no_grad():
            logits, hidden = model(ids)[0, -1].numpy().astype(np.float64), model.hidden(ids)[0, -1].numpy().astype(np.float64)
        logits = logits[:tok.vocab_size]
        return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum()), hidden
    (p, h), (q, g) = state(clean), state(typo)
    top = int(np.argmax(p))
    return {"top1_matches": int(np.argmax(q)) == top, "kl_clean_to_typo": sum(math.exp(a) * (a - b) for a, b in zip(p, q)),
            "cosine_hidden": float(h @ g / math.sqrt((h @ h) * (g @ g))), "logprob_drop": float(p[top] - q[top])}


def test_measurements_are_those_of_their_definitions(made, tmp_path, call):
    pairs = write_pairs(tmp_path / "pairs.tsv")
    assert call(probe.main, "robustness", *made.values(), f"--pairs={pairs}", "--out=rob", cwd=tmp_path) == 0
    found = result(tmp_path / "rob")
    for (arm, seed), run in made.items():
        model, tok, _ = load_model(run)
        hand = [by_hand(model, tok, clean, typo) for _, clean, typo in PAIRS]
        for record, expected in zip(found["per_prompt"][arm][str(seed)], hand, strict=True):
            assert record["top1_matches"] == expected["top1_matches"]
            for key in ("kl_clean_to_typo", "cosine_hidden", "logprob_drop"):
                assert record[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6)
        numbers = found["arms"][arm]["overall"]["kl_clean_to_typo"]
        assert numbers["per_seed"][seed - 1] == pytest.approx(np.mean([x["kl_clean_to_typo"] for x in hand]), rel=1e-4)
        assert (numbers["mean"] == pytest.approx(np.mean(numbers["per_seed"]))
                and numbers["sd"] == pytest.approx(np.std(numbers["per_seed"], ddof=1)))
    assert max(x["kl_clean_to_typo"] for x in hand) > 0.1  # so that agreement is not that of two zeros
    assert [c["a"] + c["b"] for c in found["contrasts"]] == ["bpe_tiedkron"]


def test_measurements_are_float64():
    """Logits that differ by 1e-6 have a KL of about half their variance under p, 1e-13: nothing that float32 could hold."""
    rng = np.random.RandomState(0)
    logits, noise = rng.randn(1000), 1e-6 * rng.randn(1000)
    p = np.exp(logits) / np.exp(logits).sum()
    h = torch.from_numpy(rng.randn(8))
    found = probe.compare_states((torch.from_numpy(logits), h), (torch.from_numpy(logits + noise), h))
    assert found["kl_clean_to_typo"] == pytest.approx((p @ noise**2 - (p @ noise)**2) / 2, rel=1e-2)


def test_a_prompt_against_itself_changes_nothing(made):
    model, tok, _ = load_model(made["kron", 1])
    with torch.no_grad():
        state = probe.last_state(model, tok, PAIRS[0][1])
    assert [x.dtype for x in state] == [torch.float64] * 2 and [len(x) for x in state] == [tok.vocab_size, model.config.n_embd]
    found = probe.compare_states(state, state)
    assert (found["kl_clean_to_typo"] == 0 and found["logprob_drop"] == 0 and found["top1_matches"]
            and found["cosine_hidden"] == pytest.approx(1))


def test_the_order_of_runs_does_not_matter(made, tmp_path, call, capsys):
    pairs, texts = write_pairs(tmp_path / "pairs.tsv"), []
    for name, runs in (("a", list(made.values())), ("b", list(made.values())[::-1])):
        call(probe.main, "robustness", *runs, f"--pairs={pairs}", f"--out={name}", cwd=tmp_path)
        texts.append(capsys.readouterr().out.partition("\nwrote")[0])
    assert result(tmp_path / "a") == result(tmp_path / "b") and texts[0] == texts[1]


def published(tmp_path, bpe, kron):
    (tmp_path / "published.json").write_text(json.dumps({"bpe": {"per_prompt": bpe}, "kron": {"per_prompt": kron},
                                                         "meta": "more"}))
    return tmp_path / "published.json"


def test_published_results_are_aggregated_like_our_own(made, tmp_path, call):
    """Two of our runs, written in the published package's form and read back in another order, give the same tables."""
    pairs, runs = write_pairs(tmp_path / "pairs.tsv"), [made["bpe_tied", 1], made["kron", 1]]
    call(probe.main, "robustness", *runs, f"--pairs={pairs}", "--out=own", cwd=tmp_path)
    own = result(tmp_path / "own")
    path = published(tmp_path, own["per_prompt"]["bpe_tied"]["1"], own["per_prompt"]["kron"]["1"][::-1])
    call(probe.main, "robustness", f"--published={path}", "--out=theirs", cwd=tmp_path)
    theirs = result(tmp_path / "theirs")
    for group, metrics in own["arms"]["kron"].items():
        for metric, numbers in metrics.items():
            assert theirs["arms"]["kron"][group][metric]["mean"] == pytest.approx(numbers["mean"])
            assert theirs["arms"]["kron"][group][metric]["median"] == pytest.approx(numbers["median"])
    assert theirs["contrasts"][0]["difference"] == pytest.approx(own["contrasts"][0]["difference"])
    assert theirs["contrasts"][0]["winners"].values() != {None} and len(theirs["contrasts"][0]["winners"]) == 4
    call(probe.main, "robustness", *runs, f"--pairs={path}", "--out=again", cwd=tmp_path)  # such a file also gives the pairs
    assert result(tmp_path / "again")["arms"]["kron"]["math"] == own["arms"]["kron"]["math"]


def test_aggregates_of_a_small_published_file(tmp_path, call, capsys):
    def rows(kept, kl):
        return [dict(zip(("category", "clean", "typo"), pair), top1_matches=k, kl_clean_to_typo=x,
                     cosine_hidden=0.5, logprob_drop=x / 2)
                for pair, k, x in zip(PAIRS[:4], kept, kl)]
    path = published(tmp_path, rows([True, False, False, True], [0.1, 0.9, 0.3, 0.7]),
                     rows([True, True, False, True], [0.2, 0.5, 0.5, 0.4]))
    assert call(probe.main, "robustness", f"--published={path}", "--out=x", cwd=tmp_path) == 0
    found = result(tmp_path / "x")
    bpe, kron = (found["arms"][arm] for arm in ("bpe", "kron"))
    assert (bpe["overall"]["top1_matches"]["mean"], kron["overall"]["top1_matches"]["mean"]) == (0.5, 0.75)
    assert (bpe["overall"]["kl_clean_to_typo"]["mean"] == pytest.approx(0.5)
            and bpe["overall"]["kl_clean_to_typo"]["median"] == pytest.approx(0.5))
    assert kron["math"]["kl_clean_to_typo"]["mean"] == pytest.approx(0.5) and kron["math"]["top1_matches"]["mean"] == 0.5
    contrast = found["contrasts"][0]
    assert contrast["difference"] == -0.25 and contrast["interval"] == [-0.75, 0.0]
    assert contrast["winners"] == {"geography": "bpe", "math": "kron", "time": "kron"}  # by KL, by top-1, by KL
    printed = capsys.readouterr().out
    assert "55.5" in printed and "0.859" in printed  # the published figures stand beside


def test_the_bootstrap_interval_is_that_of_the_mean():
    differences = np.random.RandomState(3).randn(400)
    low, high = probe.bootstrap(differences)
    half = 1.96 * differences.std() / math.sqrt(400)
    assert (low, high) == (pytest.approx(differences.mean() - half, abs=0.01), pytest.approx(differences.mean() + half, abs=0.01))
    assert probe.bootstrap(differences) == [low, high] and probe.bootstrap(np.zeros(9)) == [0, 0]


def test_tab_newline_and_quotes_in_a_prompt_survive(tmp_path):
    pairs = [("misc", 'a\ttab, a\nnew line and "quotes"', '"quoted" from\r\nthe start'),
             ("people", "naïve — ‘日本’", " leading and trailing ")]
    rows = [dict(zip(("category", "clean", "typo"), pair)) for pair in pairs]
    assert probe.read_pairs(write_pairs(tmp_path / "pairs.tsv", pairs)) == rows
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row | {"note": 1}) + "\n" for row in rows))
    assert probe.read_pairs(tmp_path / "pairs.jsonl") == rows


def test_the_prompt_files_are_what_they_should_be():
    pairs = probe.read_pairs(probe.PROMPTS / "typo_pairs.tsv")
    assert Counter(p["category"] for p in pairs) == {c: 10 for c in probe.CATEGORIES} and len(probe.CATEGORIES) == 11
    assert len({p["clean"] for p in pairs}) == len({p["typo"] for p in pairs}) == 110
    for p in pairs:
        (changed,) = [(a, b) for a, b in zip(p["clean"].split(" "), p["typo"].split(" "), strict=True) if a != b]
        assert probe.edit_distance(*changed) in (1, 2) and len(changed[0].strip(",")) > 3, changed
    prompts = probe.read_rows(probe.PROMPTS / "generation.tsv", ["prompt", "normal", "typo", "novel"])
    assert len(prompts) == len({p["prompt"] for p in prompts}) == len({p["novel"] for p in prompts}) == 20
    for p in prompts:  # to say the right word must not count as an echo of the wrong one
        assert (p["prompt"].count("{}") == 1 and p["normal"] not in p["prompt"]
                and probe.edit_distance(p["normal"], p["typo"]) == 2)
        assert len(f" {p['novel']}".encode()) <= 16 and len(p["novel"]) >= 6
    families = probe.read_families()
    assert len(families) == 6 and all(len(set(words)) == 8 for _, words in families.values())


# ---- generation --------------------------------------------------------------------------------------------

def test_echoes_are_whole_words_exactly_or_within_one_edit():
    text = "A zorblat. Zorblat, zorblats zorbat xorblat zorblta zorblatter a_zorblat_b pre-zorblat zorblat's"
    spans = [(text[start:end], edits) for start, end, edits in probe.find_echoes(text, "zorblat")]
    assert spans == [("zorblat", 0), ("Zorblat", 0), ("zorblats", 1), ("zorbat", 1), ("xorblat", 1), ("zorblat", 0)]
    assert probe.find_echoes("", "zorblat") == probe.find_echoes("a b c", "") == probe.find_echoes("I am", "a") == []


@pytest.mark.parametrize("a, b, distance", [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3),
                                            ("run", "RUN", 3), ("form", "from", 2)])
def test_edit_distance(a, b, distance):
    assert probe.edit_distance(a, b) == probe.edit_distance(b, a) == distance


def test_wilson_interval():
    """The score interval's ends are where the normal test of a proportion is just not rejected."""
    for hits, trials in ((0, 10), (5, 10), (10, 10), (3, 480)):
        low, high = probe.wilson(hits, trials)
        for end in (low, high):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(hits / trials - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / trials))
        assert 0 <= low <= hits / trials + 1e-12 and hits / trials - 1e-12 <= high <= 1
    assert probe.wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))


def test_continuations_repeat_and_end_with_the_document(made):
    model, tok, _ = load_model(made["kron", 1])
    ids = torch.tensor([tok.encode("The length of")])
    first = probe.continuations(model, tok, ids, 3)
    assert first == probe.continuations(model, tok, ids, 3) and len(set(first)) == 3
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, torch.tensor(tok.eot), 100.0))
    assert probe.continuations(model, tok, ids, 2) == ["", ""]


def test_echo_rates_and_forced_bytes(made, tmp_path, call, monkeypatch, capsys):
    """A reader that says the bytes of the free slot again, where the prompt has it: only kron's prompts in one slot echo."""
    def parrot(model, tok, ids, samples):
        slot = model.config.vocab_size
        if slot not in ids[0].tolist():
            return [" nothing"] * samples
        wte = model.transformer.wte
        word = bytes(wte.bytes[slot, :wte.length[slot]].tolist()).decode()
        return [f" one{word}", f"{word}s"] + [" nothing"] * (samples - 2)
    monkeypatch.setattr(probe, "continuations", parrot)
    assert call(probe.main, "generation", *made.values(), "--samples=4", "--out=gen", cwd=tmp_path) == 0
    rates = result(tmp_path / "gen")["rates"]
    assert rates["bpe_tied"]["exact"].keys() == {"normal", "typo", "novel"}
    for kind, hits in (("typo", 0), ("novel", 0), ("novel in one slot", 40), ("typo in one slot", 40)):
        kron = rates["kron"]
        assert ((kron["exact"][kind]["hits"], kron["one_edit"][kind]["hits"], kron["exact"][kind]["samples"])
                == (hits, 2 * hits, 20 * 4 * 2))
        assert kron["exact"][kind]["interval"] == pytest.approx([100 * x for x in probe.wilson(hits, 160)])
    printed = capsys.readouterr().out
    assert "one zorblat" in printed and "\033" not in printed  # plain text where there is no terminal


# ---- layers ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arm, options", [("bpe_tied", []), ("kron", ["--positions=rotary"])])
def test_levels_are_the_states_of_a_token_alone(tmp_path, bpe500, arm, options):
    model, tok, _ = load_model(save_run(tmp_path, arm, bpe500, *options))
    ids, seen = torch.arange(tok.vocab_size), {}
    for i, block in enumerate(model.transformer.h):
        block.register_forward_hook(lambda module, args, output, i=i: seen.update({f"L{i}": output[:, 0]}))
    with torch.no_grad():
        found = probe.levels(model, model.transformer.wte(ids))
        model(ids.unsqueeze(1))
        assert torch.equal(found["E_raw"], model.transformer.wte(ids)) and found.keys() == {"E_raw", "L0", "L1"}
        for level in ("L0", "L1"):
            torch.testing.assert_close(found[level], seen[level])


def test_words_of_several_tokens(made):
    """kron embeds the string's bytes as one code, other arms average their tokens; a word of one token is its own embedding."""
    words = ["the", "unquestionably"]
    for arm in ("kron", "bpe_tied"):
        model, tok, _ = load_model(made[arm, 1])
        wte = model.transformer.wte
        with torch.no_grad():
            vectors, own = probe.word_vectors(model, tok, words)
            assert own == [tok.encode(" the")[0], -1]
            torch.testing.assert_close(vectors[0], wte(torch.tensor(own[0])))
            pieces = wte(torch.tensor(tok.encode(" unquestionably")))
            whole = (probe.kron_rows([b" unquestionably"], 16)(torch.arange(1))[0] @ wte.weight if arm == "kron" else
                     pieces.mean(0))
            torch.testing.assert_close(vectors[1], whole)


def test_nearest_leaves_the_word_itself_out_and_takes_the_mean_off():
    table = torch.tensor([[10.0, 1], [10, 2], [10, -1], [10, -2], [10, 0.5]])
    near, itself = probe.nearest(table[:2], [0, -1], lambda i: table[i], torch.arange(5), 2)
    assert near == [[4, 1], [1, 0]] and itself == [True, False]
    centred, _ = probe.nearest(table[:1], [0], lambda i: table[i], torch.arange(5), 2, torch.tensor([10.0, 0]))
    assert centred == [[1, 4]]  # both at cosine 1: the lower id comes first


def test_shares_of_variants_roots_and_families():
    near = [" Compute", "COMPUTE", " computers", "Computed", " compute-", " recompute", " commute", " the", " run", "�"]
    assert probe.shares(near, "compute", "comput", ["compute", "computers", "computed"]) == [0.7, 0.6, 0.5]


def test_layers_of_every_level(tmp_path, bpe, call, capsys):
    runs = [save_run(tmp_path, arm, bpe, seed=seed) for arm in ("kron", "bpe_tied") for seed in (1, 2)]
    assert call(probe.main, "layers", *runs, "--out=lay", cwd=tmp_path) == 0
    found = result(tmp_path / "lay")
    for seeds in found["levels"].values():
        for levels in seeds.values():
            assert list(levels) == ["E_raw", "L0", "L1"]
            for level in levels.values():
                assert level["self_retrieval"] == 1 and abs(level["random_pair"]) < 0.03
                families = [level[f] for f in probe.read_families()]
                assert level["overall"] == pytest.approx(np.mean(families, 0).tolist())
    kron, table = (found["levels"][arm]["1"]["E_raw"]["overall"] for arm in ("kron", "bpe_tied"))
    assert kron[1] > 0.1 > 3 * table[1]  # untrained, bytes alone find the root and a random table does not
    printed = capsys.readouterr().out
    assert ("computational" in found["words_of_several_tokens"] and "average their tokens' rows" in printed
            and "0.97 / 0.26 / 0.23" in printed)


# ---- geometry ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("a, b, cosine", [("run", "runs", 0.866), ("run", "RUN", 0.0), ("compute", "commute", 0.857),
                                          ("nation", "station", 0.0), ("nation", "notion", 0.833)])
def test_cosines_in_kronecker_space(a, b, cosine):
    assert probe.kron_cosine(a.encode(), b.encode(), 32) == pytest.approx(cosine, abs=0.002)


def test_collisions():
    assert probe.collisions([b"abcd", b"abce", b"abc", b"xyzw", b"q"], 3) == (3, 3)
    assert probe.collisions([b"abcd", b"abce", b"abc", b"xyzw", b"q"], 4) == (0, 0)


def test_collisions_of_gpt2(gpt2):
    strings = tokenizer.token_bytes(gpt2)
    assert [probe.collisions(strings, P) for P in (16, 32)] == [(72, 44), (14, 17)]


def safetensors(tensors):
    """{name: tensor} -> (the file's bytes, {name: length of 8 + header + that tensor})."""
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    return (struct.pack("<Q", len(head)) + head + data,
            {name: 8 + len(head) + t.numel() * t.itemsize for name, t in tensors.items()})


TOKENS = ["the", " run", " Run", " RUN", "run", "Run", " running", " compute", " Compute", "compute", " computes", " computed",
          " computer", " water", " nation", " national", "\n", "é", " x", " y"] + [f" w{i}" for i in range(30)]


def vocabulary(style):
    """TOKENS as a tokenizer.json: GPT-2's byte-level alphabet, sentencepiece in BPE form, sentencepiece in unigram form."""
    if style == "bytes":
        written = [t.replace(" ", "Ġ").replace("\n", "Ċ").replace("é", "Ã©") for t in TOKENS]
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]},
                "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(written)}}}
    written = [t.replace(" ", "▁").replace("\n", "<0x0A>") for t in TOKENS]
    vocab = {t: i for i, t in enumerate(written)} if style == "bpe" else [[t, -1.0] for t in written]
    return {"decoder": {"type": "Replace"}, "model": {"type": "BPE" if style == "bpe" else "Unigram", "vocab": vocab}}


def trained_table(dtype=torch.float32):
    """A table of 64 rows (14 of them padding) in which the forms of a word lie together."""
    rng = torch.Generator().manual_seed(1)
    table = torch.randn(64, 16, generator=rng)
    for i, token in enumerate(TOKENS):
        for word in ("run", "compute"):
            if probe.canonical(token) == word:
                table[i] = table[TOKENS.index(f" {word}")] + 0.01 * torch.randn(16, generator=rng)
    table[TOKENS.index(" computed")] = table[TOKENS.index(" compute")] + 0.5 * torch.randn(16, generator=rng)
    return table.to(dtype)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on loopback: hub.files[path] = bytes, hub.sent[path] = bytes sent of it, hub.ranges = whether it honours them."""
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            data, wanted = server.files.get(self.path), self.headers.get("Range")
            if data is None:
                return self.send_error(404)
            if wanted and server.ranges:
                start, end = map(int, wanted.removeprefix("bytes=").split("-"))
                data = data[start:end + 1]
            self.send_response(206 if wanted and server.ranges else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            server.sent[self.path] += len(data)
            self.wfile.write(data)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.sent, server.ranges = {}, Counter(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_only_the_embedding_of_a_hub_model_is_fetched(hub, dtype):
    """In one file, and in shards of which only one is opened: 8 bytes, the header, the table, no more."""
    table, other = trained_table(dtype), torch.zeros(1000, 16)
    data, cost = safetensors({"a.layer.weight": other, "model.embed_tokens.weight": table, "lm_head.weight": other})
    hub.files["/me/one/resolve/main/model.safetensors"] = data
    assert torch.equal(probe.read_embedding("me/one"), table)
    assert (hub.sent == {"/me/one/resolve/main/model.safetensors": cost["model.embed_tokens.weight"]}
            and sum(hub.sent.values()) < len(data) / 10)

    hub.sent.clear()
    index = {"copy.layers.61.embed_tokens.weight": "3.safetensors", "model.embed_tokens.weight": "2.safetensors",
             "a.weight": "1.safetensors"}
    hub.files |= {f"/me/many/resolve/main/{name}": value for name, value in {
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
        "1.safetensors": safetensors({"a.weight": other})[0], "2.safetensors": data,
        "3.safetensors": safetensors({"copy.layers.61.embed_tokens.weight": other})[0]}.items()}
    assert torch.equal(probe.read_embedding("me/many"), table)
    shards = {path: n for path, n in hub.sent.items() if path.endswith(".safetensors")}
    assert shards == {"/me/many/resolve/main/2.safetensors": cost["model.embed_tokens.weight"]}


@pytest.mark.parametrize("style", ["bytes", "bpe", "unigram"])
def test_vocabularies(tmp_path, style):
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary(style)))
    assert probe.read_vocabulary(str(tmp_path), 64) == [t.encode() for t in TOKENS] + [b""] * 14
    assert probe.read_vocabulary(str(tmp_path), 5) == [t.encode() for t in TOKENS[:5]]


def test_geometry_of_public_models(hub, tmp_path, call, made, capsys):
    """The same model from the Hub and from a folder, in two styles of vocabulary: the same neighbours,
    and the trained ones as built."""
    data, _ = safetensors({"wte.weight": trained_table()})
    hub.files |= {"/me/one/resolve/main/model.safetensors": data,
                  "/me/one/resolve/main/tokenizer.json": json.dumps(vocabulary("bytes")).encode()}
    local = tmp_path / "local"
    local.mkdir()
    (local / "model.safetensors").write_bytes(data)
    (local / "tokenizer.json").write_text(json.dumps(vocabulary("unigram")))
    argv = ["geometry", "--words=run,compute,absent", f"--tokenizer={made['kron', 1]}", "--out=geo",
            "--model", "me/one", str(local)]
    assert call(probe.main, *argv, cwd=tmp_path) == 0
    found = result(tmp_path / "geo")
    first, second = found["models"].values()
    assert first == second and first["words"] == ["run", "compute"] and first["shape"] == [64, 16]
    trained, random, kron = (first["spaces"][name] for name in ("trained", "random", "Kronecker"))
    assert set(trained["neighbours"]["run"][:4]) == {" Run", " RUN", "run", "Run"} and " run" not in trained["neighbours"]["run"]
    assert trained["neighbours"]["compute"][:3] in ([" Compute", "compute", " computed"], ["compute", " Compute", " computed"])
    assert trained["typographic"] == pytest.approx((4 + 2) / 10) and kron["typographic"] <= 0.2 and random["typographic"] <= 0.3
    assert set(kron["neighbours"]["compute"][:3]) == {" computes", " computed", " computer"}
    members = [TOKENS.index(f" {w}") for w in ("compute", "computes", "computed", "computer")]
    table = trained_table().double()
    for name, centre in (("raw", 0), ("centred", table[:len(TOKENS)].mean(0))):  # the padding rows do not count
        hand = [torch.cosine_similarity(table[a] - centre, table[b] - centre, dim=0).item()
                for i, a in enumerate(members) for b in members[:i]]
        assert trained["cosine"][name][0] == pytest.approx(np.mean(hand), abs=1e-5)
    assert abs(trained["cosine"]["centred"][1]) < 0.1
    assert found["jaccard"] == [{"models": ["me/one", str(local)], "trained": 1.0, "random": 1.0, "Kronecker": 1.0}]
    rows = {(f["anchor"], f["variant"]): f for f in found["falloff"]}
    assert rows["nation", "station"]["edits"] == 2 and abs(rows["nation", "station"]["cosine"]) < 0.002
    assert found["collisions"].keys() == {"8", "16", "32"} and "44 (P = 16)" in capsys.readouterr().out


def test_jaccard():
    assert probe.jaccard({"a": ["x", "X", "y"], "b": ["q"]}, {"a": [" x", "z"], "c": ["q"]}) == pytest.approx(1 / 3)
    assert probe.jaccard({"a": ["x"]}, {"b": ["x"]}) is None


def test_damaged_models_are_refused(hub, tmp_path, made, refuse):
    """Whatever a file or a server says, the answer is one line; nothing is executed, and no length is trusted."""
    def header(entry, name="wte.weight"):
        head = json.dumps({name: entry}).encode()
        return struct.pack("<Q", len(head)) + head + bytes(64)
    good = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    cases = {"short": b"\x01", "endless": struct.pack("<Q", 2**60), "cut": header(good)[:-1],
             "no json": struct.pack("<Q", 3) + b"{]}", "deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
             "other": header(good, "head.weight"), "fp8": header(good | {"dtype": "F8_E4M3"}),
             "size": header(good | {"shape": [4, 5]}), "negative": header(good | {"data_offsets": [-64, 0]}),
             "words": header(good | {"shape": "44"}), "far": header(good | {"data_offsets": [2**70, 2**70 + 64]}),
             "huge": header({"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}),
             "list": struct.pack("<Q", 2) + b"[]"}
    for name, data in cases.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)
    tokenizer_argument = f"--tokenizer={made['kron', 1]}"
    for name in cases:
        assert str(tmp_path / name) in refuse(probe.main, "geometry", tokenizer_argument,
                                              "--model", str(tmp_path / name), cwd=tmp_path)
    for name, text in {"no": "{", "wordpiece": '{"model": {"type": "WordPiece", "vocab": {"##a": 1}}}',
                       "ids": '{"model": {"vocab": {"a": "b"}}}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(header(good))
        (tmp_path / name / "tokenizer.json").write_text(text)
        assert "vocabulary" in refuse(probe.main, "geometry", tokenizer_argument, "--model", str(tmp_path / name), cwd=tmp_path)
    hub.files["/me/endless/resolve/main/model.safetensors"] = cases["endless"] + bytes(10**6)
    assert "a header of 1,152,921" in refuse(probe.main, "geometry", tokenizer_argument, "--model", "me/endless", cwd=tmp_path)
    assert sum(hub.sent.values()) == 8
    hub.files["/me/one/resolve/main/model.safetensors"], hub.ranges = header(good), False
    for model, named in (("me/one", "ignores byte ranges"), ("me/none", "not found"),
                         ("/no/folder", "not a Hub id"), ("a/b/c", "not a Hub id")):
        assert named in refuse(probe.main, "geometry", tokenizer_argument, "--model", model, cwd=tmp_path)


# ---- norms -------------------------------------------------------------------------------------------------

def write_log(folder, arm, seed, norms):
    run = folder / "out" / f"{arm}-s{seed}"
    run.mkdir(parents=True)
    lines = [{"config": {"seed": seed, "code": arm, "max_steps": 100}, "arm": arm, "params": {}, "data": {}}]
    lines += [{"step": 50 * i, "val_loss": 3.0, "input_norm": norm} for i, norm in enumerate(norms)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_norms_drift(tmp_path, call, capsys, refuse):
    runs = [write_log(tmp_path, "kron", 1, [1.0, 1.1, 1.2]), write_log(tmp_path, "kron", 2, [2.0, 2.2, 2.8]),
            write_log(tmp_path, "binary", 1, [None, None, None])]
    assert call(probe.main, "norms", *runs, "--out=norms", cwd=tmp_path) == 0
    found, printed = result(tmp_path / "norms"), capsys.readouterr().out
    kron = found["norms"]["kron"]
    assert (kron["drift"]["mean"] == pytest.approx(1.3) and kron["drift"]["sd"] == pytest.approx(math.sqrt(0.02))
            and kron["start"]["mean"] == 1.5)
    assert "no weights" in printed and "near 1.0" in printed and "binary" not in found["norms"]
    assert "no validation" in refuse(probe.main, "norms", write_log(tmp_path, "kron", 3, []), cwd=tmp_path)
    assert "not a run" in refuse(probe.main, "norms", tmp_path, cwd=tmp_path)


# ---- bad input ---------------------------------------------------------------------------------------------

def test_bad_input_is_one_line(made, tmp_path, bpe500, refuse):
    run, other = made["kron", 1], save_run(tmp_path, "binary", bpe500, "--block_size=32")
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "cells.tsv").write_text("category\tclean\ttypo\nmisc\ta\tb\tc\n")
    (tmp_path / "quote.tsv").write_text('category\tclean\ttypo\nmisc\t"a\tb\n')
    (tmp_path / "bytes.tsv").write_bytes(b"category\tclean\ttypo\nmisc\t\xff\tb\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "half.json").write_text(json.dumps({"kron": {"per_prompt": []}}))
    row = {"category": "misc", "clean": "a", "typo": "b", "top1_matches": True,
           "kl_clean_to_typo": 0.1, "cosine_hidden": 1.0, "logprob_drop": 0.0}
    (tmp_path / "nan.json").write_text(json.dumps({"bpe": {"per_prompt": [row | {"cosine_hidden": math.nan}]},
                                                   "kron": {"per_prompt": [row]}}))
    (tmp_path / "pairs.json").write_text(json.dumps({"bpe": {"per_prompt": [row]},
                                                     "kron": {"per_prompt": [row | {"typo": "c"}]}}))
    for pairs, named in [(tmp_path / "empty.tsv", "no rows"), (write_pairs(tmp_path / "head.tsv", []), "no rows"),
                         (write_pairs(tmp_path / "category.tsv", [("colours", "a", "b")]),
                          "unknown category 'colours' (known: colors)"),
                         (write_pairs(tmp_path / "column.tsv", PAIRS, ("category", "clean", "wrong")),
                          "no text in column 'typo'"),
                         (write_pairs(tmp_path / "short.tsv", [("misc", "a")]), "no text in column 'typo'"),
                         (tmp_path / "cells.tsv", "more cells"), (tmp_path / "quote.tsv", "cannot be read"),
                         (tmp_path / "bytes.tsv", "cannot be read"), (tmp_path / "list.jsonl", "no text in column"),
                         (tmp_path / "half.json", "not results with bpe and kron"), (tmp_path / "none.tsv", "No such file"),
                         (write_pairs(tmp_path / "long.tsv", [("misc", "word " * 100, "b")]), "context is 64")]:
        assert named in refuse(probe.main, "robustness", run, f"--pairs={pairs}", cwd=tmp_path), pairs
    for argv, named in [(["robustness", tmp_path / "no.pt"], "not a checkpoint"), (["layers", run, "out/none"], "no checkpoint"),
                        (["generation", run, run], "same arm and seed"), (["layers", run, other], "block_size"),
                        (["robustness"], "needs runs"), (["robustness", run, "--published=x.json"], "not both"),
                        (["robustness", "--published=nan.json"], "not finite"),
                        (["robustness", "--published=pairs.json"], "same pairs"), (["norms"], "RUN"), ([], "robustness"),
                        (["poems"], "poems"), (["layers", run, f"--out={tmp_path}"], "is a folder"),
                        (["generation", run, "--samples=0"], "samples"),
                        (["geometry", "--words=,", f"--tokenizer={run}"], "--words is empty"),
                        (["geometry", "--tokenizer=out/none"], "no checkpoint")]:
        assert named in refuse(probe.main, *argv, cwd=tmp_path), argv
