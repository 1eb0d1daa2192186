"""Which tokens are nearest in Kronecker space, and which in the input tables of public models? What
does the code have rows for, and what does it confuse?"""
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from codes import KroneckerEmbedding, kron_cosine
from lib import tokenizer
from lib.errors import InputError
from lib.plots import panels
from lib.run_folder import load_model
from lib.tables import markdown_table
from probes.public import read_embedding, read_vocabulary
from probes.shared import canonical, edit_distance, nearest, save

OPTIONS = {
    "--words": dict(default="run,compute,nation,return,value,water,Monday,science",
                    help="comma-separated"),
    "--tokenizer": dict(help="gpt2, a run, FILE.json, or a folder or OWNER/NAME of the Hub with a "
                        "tokenizer.json; else the first model's, else gpt2"),
    "--model": dict(nargs="+", action="extend", default=[],
                    help="safetensors models: folders or OWNER/NAME of the Hub"),
    "--tensor": dict(help="the input table's name, where it is not found")}
FALLOFF = {"run": "runs RUN ran running rerun",
           "compute": "computed computer commute compete",
           "nation": "nations notion national station",
           "international": "internationally interntional internatoinal"}
SPACES = {"trained": "o", "Kronecker": "s"}  # and how the picture marks them
PUBLISHED_P = 32  # bytes that 2605.29459's own encoder reads
PUBLISHED = ("Published (2605.29459): in models of 135M to 671B parameters the five nearest are "
             "often typographic variants in trained tables, seldom in Kronecker space.")


def kron_code(strings, pos_dim=PUBLISHED_P):
    """The Kronecker codes z of byte strings, as a function: ids (n,) -> (n, 256 P)."""
    return KroneckerEmbedding(len(strings), 1, strings, pos_dim).code


def five_nearest(name, strings, rows, words):
    """The five tokens nearest to " word", else to "word", of the words that are one token:
    {"typographic": the share that is a variant of its word, "neighbours": {word: [(text, cosine),
    ...]}}. rows: a function, ids (n,) -> (n, d). InputError if none is."""
    index = {raw: i for i, raw in reversed(list(enumerate(strings))) if raw}  # lowest id
    found = {word: index.get(f" {word}".encode(), index.get(word.encode())) for word in words}
    found = {word: id for word, id in found.items() if id is not None}
    if not found:
        raise InputError(f"{name}: none of the words is one token of it: {', '.join(words)}")
    ids = torch.tensor([i for i, raw in enumerate(strings) if raw])
    near = nearest(rows(torch.tensor(list(found.values()))), found.values(), rows, ids, 5)
    near = {word: [(strings[i].decode(errors="replace"), cosine) for i, cosine in row]
            for word, row in zip(found, near)}
    alike = [canonical(text) == canonical(word) for word, row in near.items() for text, _ in row]
    return {"typographic": float(np.mean(alike)), "neighbours": near}


def study_model(model, tensor, words):
    """Words' neighbours in a public model's table and in the Kronecker code of its tokens."""
    strings = read_vocabulary(model)  # the small file first
    name, table = read_embedding(model, tensor)
    strings = strings[:len(table)] + [b""] * (len(table) - len(strings))
    spaces = {"trained": lambda ids: table[ids].float(), "Kronecker": kron_code(strings)}
    for space, rows in tqdm(spaces.items(), model):
        spaces[space] = five_nearest(model, strings, rows, words)
    return {"tensor": name, "shape": list(table.shape),
            "words": list(spaces["trained"]["neighbours"]), "spaces": spaces}


def what_p_does(strings, pos_dim):
    """Of a vocabulary's byte strings: {"longer": how many have more than P bytes, "share": how many
    share their first P bytes with another, "rows": how many rows of W some token sums}."""
    longer, share = map(sum, tokenizer.unseen(strings, pos_dim))
    embedding = KroneckerEmbedding(len(strings), 1, strings, pos_dim)
    return {"longer": longer, "share": share, "rows": embedding.params_in_use(len(strings))}


def read_strings(source):
    """The vocabulary that --tokenizer names: (its name, the bytes of every id)."""
    if source == "gpt2":
        return source, tokenizer.token_bytes(tokenizer.gpt2())
    if source.endswith(".pt") or (Path(source) / "ckpt.pt").is_file():
        _, tok, _ = load_model(source)
        return tok.name, tokenizer.token_bytes(tok)
    return source, read_vocabulary(source)


def main(args):
    words = list(dict.fromkeys(args.words.split(",")))
    models = {model: study_model(model, args.tensor, words) for model in dict.fromkeys(args.model)}
    name, strings = read_strings(args.tokenizer or next(iter(models), "gpt2"))
    near = five_nearest(name, strings, kron_code(strings), words)
    falloff = [{"anchor": a, "variant": b, "edits": edit_distance(a, b),
                "cosine": kron_cosine(a.encode(), b.encode(), PUBLISHED_P)}
               for a, variants in FALLOFF.items() for b in variants.split()]
    use = {pos_dim: what_p_does(strings, pos_dim) for pos_dim in (8, 16, 32)}
    rows = [[word, ", ".join(f"{text!r} ({cosine:.2f})".replace("|", "¦")
                             for text, cosine in row)] for word, row in near["neighbours"].items()]
    pairs = [[x["anchor"], x["variant"], x["edits"], f"{x['cosine']:.3f}"] for x in falloff]
    text = [f"Of {name}'s {len(strings):,} tokens the five nearest to \" word\" in Kronecker space "
            f"(P = 32), {100 * near['typographic']:.0f} % typographic variants:",
            markdown_table(["word", "nearest (cosine)"], rows), "Falloff with edit distance:",
            markdown_table(["anchor", "variant", "edits", "cos z"], pairs)]
    rows = [[P, x["longer"], x["share"], f"{x['rows']:,} of {256 * P:,}"] for P, x in use.items()]
    text += [f"What P does to {name}'s tokens, and the rows of W that some token sums:",
             markdown_table(["P (bytes)", "longer than P", "share their code", "rows in use"],
                            rows)]
    if models:
        rows = []
        for model, study in models.items():
            shares = [f"{100 * space['typographic']:.0f}" for space in study["spaces"].values()]
            table = "{} ({}, {:,} x {})".format(model, study["tensor"], *study["shape"])
            rows.append([table, len(study["words"]), *shares])
        text += ["Input tables of public models: of the five nearest (raw cosine) of the words "
                 "that are one token, how many are typographic variants (%):",
                 markdown_table(["model", "words", *SPACES], rows)]
    save(args, [*text, PUBLISHED],
         {"tokenizer": name, "tokens": len(strings), "neighbours": near["neighbours"],
          "falloff": falloff, "use": use, "models": models}, draw(falloff, models))


def draw(falloff, models):
    """The picture: the falloff, and beside it the models' typographic neighbours."""
    figure, axes = panels(2 if models else 1, 6.5)
    rows = sorted(falloff, key=lambda row: (-row["edits"], row["cosine"]))
    labels = [f"{row['anchor']} -> {row['variant']} ({row['edits']})" for row in rows]
    axes[0].barh(labels, [row["cosine"] for row in rows], color="#0072B2")
    axes[0].set(xlabel="cosine of z (in brackets: edits)", title="Kronecker space, P = 32")
    if models:
        for space, marker in SPACES.items():
            shares = [100 * study["spaces"][space]["typographic"] for study in models.values()]
            axes[1].plot([Path(model).name for model in models], shares, marker, label=space)
        axes[1].set(title="Input tables", ylabel="typographic among the five nearest (%)",
                    ylim=(0, 100))
        axes[1].tick_params("x", rotation=20)
        axes[1].legend()
    return figure
