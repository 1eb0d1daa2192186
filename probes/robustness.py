"""Does one misspelled word change the prediction? Top-1 kept, KL and cosines, clean against
misspelled prompts."""
import itertools
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lib.errors import InputError
from lib.plots import draw_bars, panels
from lib.results import is_number
from lib.tables import markdown_table, pm
from lib.stats import crossed_interval, holm, sign_flip, spread
from probes.shared import PROMPTS, check_rows, interval, measure_runs, read_rows, save

COLUMNS = ["category", "clean", "typo"]
METRICS = {"top1_matches": "share of top-1 kept", "kl_clean_to_typo": "KL (nats)",
           "cosine_hidden": "cosine", "logprob_drop": "drop (nats)"}
SHOWN = ("top1_matches", "kl_clean_to_typo")  # of each category
PUBLISHED = [["published: BPE, tied", 1, "47.3", "0.859", "0.857", "-"],  # arXiv 2605.29459, 124M
             ["published: Kronecker", 1, "55.5", "0.794", "0.879", "-"]]


def add_arguments(parser):
    """The options that only this probe has."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="like out/tiny-kron-s1")
    parser.add_argument("--pairs", default=PROMPTS / "typo_pairs.tsv",
                        help=".tsv, .jsonl, or a results .json")
    parser.add_argument("--published", help="no runs, but the published package's results .json")


def read_pairs(path):
    """Prompt pairs, {category, clean, typo} each, from a TSV, from JSON lines or from a results
    JSON (see `read_published`)."""
    if str(path).endswith(".json"):
        rows = read_published(path)["bpe"][0]
    else:
        rows = read_rows(path, COLUMNS)
    return [{column: row[column] for column in COLUMNS} for row in rows]


def read_published(path):
    """A results JSON, {"bpe": {"per_prompt": [...]}, "kron": ...} -> {arm: {0: per_prompt}}.

    InputError if it is not one.
    """
    def key(row):
        return [row[column] for column in COLUMNS]
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {}
        for arm in ("bpe", "kron"):
            rows = check_rows(path, data[arm]["per_prompt"], COLUMNS)
            for row in rows:
                if not all(is_number(float(row[metric])) for metric in METRICS):
                    raise ValueError("a measurement is not finite")
            found[arm] = sorted(rows, key=key)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not results with bpe and kron, per_prompt each "
                         f"({type(error).__name__}: {error})") from None
    if [key(row) for row in found["bpe"]] != [key(row) for row in found["kron"]]:
        raise InputError(f"{path}: bpe and kron were not measured on the same pairs")
    return {arm: {0: rows} for arm, rows in found.items()}


def last_state(model, tok, prompt, head=None):
    """A prompt's last position: (logits (V,) over the real vocabulary, hidden state after the last
    norm (d,)), float64. `head`: what the model's `head_rows` gave, for many prompts at once."""
    ids = torch.tensor([tok.encode(prompt)], device=model.device)
    if ids.size(1) > model.config.block_size:
        raise InputError(f"a prompt has {ids.size(1):,} tokens, the context is "
                         f"{model.config.block_size:,}: {prompt[:50]!r}...")
    h = model.hidden(ids)[0, -1]
    return model.logits(h, head)[:model.config.vocab_size].double(), h.double()


def compare_states(clean, typo):
    """Two `last_state`s -> one pair's measurements, named as in the published package. 2605.29459.

    With p and q the probabilities after the clean prompt and after the typo, t = argmax p and h, g
    the hidden states: kl_clean_to_typo = sum_v p(v) (log p(v) - log q(v)) and logprob_drop =
    log p(t) - log q(t), both in nats; cosine_hidden = cos(h, g); top1_matches: argmax q = t.
    """
    (p, h), (q, g) = clean, typo
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    top = p.argmax()
    return {"top1_matches": bool(q.argmax() == top),
            "kl_clean_to_typo": (p.exp() * (p - q)).sum().item(),
            "cosine_hidden": F.cosine_similarity(h, g, dim=0).item(),
            "logprob_drop": (p[top] - q[top]).item()}


def aggregate(results):
    """{arm: {seed: per_prompt}}, all on the same pairs in the same order -> the tables' numbers.

    "arms": per arm, group ("overall" and each category) and metric (of a category those in SHOWN)
    the mean with its spread over seeds, and the seeds' mean of medians. "contrasts": per two arms
    with seeds in common what `contrast` says, and "p_holm", its p-value corrected for all of these.
    """
    first_arm = next(iter(results.values()))
    category = np.array([row["category"] for row in next(iter(first_arm.values()))])
    groups = {"overall": np.full(len(category), True)}
    for name in dict.fromkeys(category.tolist()):
        groups[name] = category == name

    arms = {}
    for arm, seeds in results.items():
        arms[arm] = {group: {} for group in groups}
        for metric in METRICS:
            values = np.array([[row[metric] for row in rows] for rows in seeds.values()], float)
            for group, mask in groups.items():
                numbers = spread(values[:, mask].mean(1))
                numbers["median"] = float(np.median(values[:, mask], 1).mean())
                if group == "overall":
                    arms[arm][group][metric] = numbers
                elif metric in SHOWN:
                    del numbers["per_seed"]
                    arms[arm][group][metric] = numbers

    contrasts = {}
    for a, b in itertools.combinations(arms, 2):
        if results[a].keys() & results[b].keys():
            winners = {group: winner(arms, a, b, group) for group in groups if group != "overall"}
            contrasts[a, b] = contrast(results[a], results[b]) | {"winners": winners}
    corrected = holm({pair: numbers["p"] for pair, numbers in contrasts.items()})
    contrasts = [{"a": a, "b": b} | numbers | {"p_holm": corrected[a, b]}
                 for (a, b), numbers in contrasts.items()]
    return {"pairs": len(category), "arms": arms, "contrasts": contrasts}


def contrast(a, b):
    """Two arms' {seed: per_prompt} -> a - b over the seeds that both have.

    "difference", "interval": of the share of top-1 kept, over pairs crossed with seeds; "kl",
    "kl_interval": of the mean KL, likewise. "only_a", "only_b": pairs whose top-1 a keeps with more
    seeds than b does, and the reverse. "p": the exact test over the pairs, for these very runs:
    McNemar's with one seed; with several each pair's sum of differences flips its sign.
    """
    seeds = sorted(a.keys() & b.keys())

    def difference(metric):
        rows = []
        for seed in seeds:
            rows.append([float(x[metric]) - float(y[metric]) for x, y in zip(a[seed], b[seed])])
        return np.array(rows)  # (seeds, pairs)
    kept, kl = difference("top1_matches"), difference("kl_clean_to_typo")
    by_pair = kept.sum(0).round().astype(int)
    return {"seeds": len(seeds), "difference": kept.mean(), "interval": crossed_interval(kept),
            "only_a": int((by_pair > 0).sum()), "only_b": int((by_pair < 0).sum()),
            "p": sign_flip(by_pair), "kl": kl.mean(), "kl_interval": crossed_interval(kl)}


def winner(arms, a, b, group):
    """Which of two arms keeps more top-1 in a group or, at a tie, has the lower mean KL; None."""
    def score(arm):
        numbers = arms[arm][group]
        return numbers["top1_matches"]["mean"], -numbers["kl_clean_to_typo"]["mean"]
    if score(a) == score(b):
        return None
    return a if score(a) > score(b) else b


def percent(x):
    """A share's spread as text, in percent."""
    return pm({"mean": 100 * x["mean"], "sd": x["sd"] and 100 * x["sd"]}, 1)


def with_median(x, digits):
    """A spread as text, the median behind it."""
    return f"{pm(x, digits)} ({x['median']:.{digits}f})"


def main(args):
    if bool(args.runs) == bool(args.published):
        raise InputError("robustness needs runs, or --published=FILE.json, and not both")
    if args.published:
        results, runs = read_published(args.published), []
    else:
        pairs = read_pairs(args.pairs)

        def measure(model, tok, tick):
            records, head = [], model.head_rows()
            for pair in pairs:
                clean = last_state(model, tok, pair["clean"], head)
                typo = last_state(model, tok, pair["typo"], head)
                records.append(pair | compare_states(clean, typo))
                tick()
            return records
        results, runs = measure_runs(args.runs, args.tuned, len(pairs), measure)
    found = aggregate(results)
    save(args, tables(found), {"runs": runs} | found, draw(found))


def tables(found):
    """The page's texts."""
    arms, metrics = found["arms"], list(METRICS)[1:]
    rows = []
    for arm, groups in arms.items():
        overall = groups["overall"]
        rows.append([arm, len(overall["cosine_hidden"]["per_seed"]),
                     percent(overall["top1_matches"]),
                     *(with_median(overall[metric], 3) for metric in metrics)])
    head = ["arm", "seeds", "top-1 kept (%)", *(METRICS[metric] for metric in metrics)]
    text = [f"{found['pairs']} pairs of a clean and a misspelled prompt; mean ± sd over seeds "
            "(median over pairs). The published figures (2605.29459, 124M) are of one checkpoint "
            "an arm: of its 110 pairs 22 keep their top-1 with Kronecker only and 13 with BPE "
            "only, exact McNemar p = 0.18.", markdown_table(head, rows + PUBLISHED)]

    rows = []
    for group in next(iter(arms.values())):
        cells = [f"{percent(groups[group]['top1_matches'])} %, "
                 f"{with_median(groups[group]['kl_clean_to_typo'], 2)}" for groups in arms.values()]
        rows.append([group, *cells])
    text += ["Per category: top-1 kept, mean KL in nats (median):",
             markdown_table(["category", *arms], rows)]

    rows = []
    for pair in found["contrasts"]:
        low, high = pair["interval"]
        row = [f"{pair['a']} - {pair['b']}",
               interval(100 * pair["difference"], 100 * low, 100 * high, "+"),
               pair["only_a"], pair["only_b"], f"{pair['p']:.2g}", f"{pair['p_holm']:.2g}",
               interval(pair["kl"], *pair["kl_interval"], "+", 3)]
        for side in ("a", "b"):
            won = [group for group, arm in pair["winners"].items() if arm == pair[side]]
            row.append(", ".join(won) or "-")
        rows.append(row)
    if rows:
        text += ["Two by two, over the seeds that both have: the difference in top-1 kept (points) "
                 "and in mean KL (nats), with 95 % intervals over pairs (bootstrap) crossed with "
                 "seeds (Student); with one seed they hold for that training run. Only a, only b: "
                 "pairs whose top-1 the one keeps with more seeds than the other. p: exact test "
                 "over the pairs, for these very runs (McNemar's with one seed, with several the "
                 "signs of the pairs' sums flip); Holm: corrected for all rows. Then the "
                 "categories that each wins (more top-1 kept, else lower KL).",
                 markdown_table(["a - b", "top-1 kept", "only a", "only b", "p", "Holm", "KL",
                                 "a wins", "b wins"], rows)]
    return text


def draw(found):
    """The picture: three of the metrics, a point an arm."""
    arms = found["arms"]
    figure, axes = panels(3, 5)
    for ax, (metric, label) in zip(axes, METRICS.items()):
        for i, (arm, groups) in enumerate(arms.items()):
            values = groups["overall"][metric]["per_seed"]
            draw_bars(ax, arm, [i], [np.mean(values)], [min(values)], [max(values)], "")
        ax.set(xticks=range(len(arms)), ylabel=f"mean {label}")
        ax.set_xticklabels(arms, rotation=35, ha="right")
    axes[1].set_title(f"One misspelled word, {found['pairs']} prompt pairs "
                      "(bars: range over seeds)")
    return figure
