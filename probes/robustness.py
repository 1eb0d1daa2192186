"""Does one misspelled word change the prediction? Top-1 kept, KL and cosines, clean against
misspelled prompts."""
import itertools

import numpy as np
import torch.nn.functional as F

from lib.plots import panels
from lib.stats import summary
from lib.tables import markdown_table
from probes.shared import (PROMPTS, crossed_interval, draw_points, hidden, interval,
                           measure_models, paired, read_rows, save, share_interval)

OPTIONS = {"--pairs": dict(default=PROMPTS / "typo_pairs.tsv",
                           help=".tsv of category, clean, typo")}
METRICS = {"top1_matches": "top-1 kept (%)", "kl_clean_to_typo": "KL (nats)",
           "cosine_hidden": "cosine", "logprob_drop": "drop (nats)"}
PUBLISHED = [["published: BPE, tied", 1, "47.3", "0.859", "0.857", "-"],  # arXiv 2605.29459, 124M
             ["published: Kronecker", 1, "55.5", "0.794", "0.879", "-"]]


def measure(model, tok, pair, head):
    """One pair's measurements at the last position, named as in the published package. 2605.29459.

    With p and q the probabilities after the clean prompt and after the typo, t = argmax p and h, g
    the hidden states: kl_clean_to_typo = sum_v p(v) (log p(v) - log q(v)) and logprob_drop =
    log p(t) - log q(t), both in nats; cosine_hidden = cos(h, g); top1_matches: argmax q = t.
    """
    h, g = (hidden(model, tok.encode(text), text)[-1] for text in (pair["clean"], pair["typo"]))
    p, q = (model.logits(state, head)[:model.config.vocab_size].double().log_softmax(-1)
            for state in (h, g))  # logarithms, (V,)
    top = p.argmax()
    return {"top1_matches": float(q.argmax() == top),
            "kl_clean_to_typo": (p.exp() * (p - q)).sum().item(),
            "cosine_hidden": F.cosine_similarity(h.double(), g.double(), dim=0).item(),
            "logprob_drop": (p[top] - q[top]).item()}


def aggregate(results):
    """{arm: {seed: {metric: a number of each pair}}} -> {"pairs", "arms", "contrasts"}: per arm and
    metric the mean over seeds with its interval over pairs crossed with seeds, and the seeds' mean
    of medians; per two arms a - b of top-1 kept ("difference") and of KL, over common seeds."""
    arms, contrasts = {arm: {"overall": {}} for arm in results}, []
    for (arm, seeds), metric in itertools.product(results.items(), METRICS):
        values = np.array([measured[metric] for measured in seeds.values()])  # (seeds, pairs)
        of_mean = share_interval if metric == "top1_matches" else crossed_interval
        arms[arm]["overall"][metric] = summary(values.mean(1)) | {
            "median": float(np.median(values, 1).mean()), "interval": of_mean(values)}
    for a, b in itertools.combinations(results, 2):
        kept, kl = (paired(results[a], results[b], metric)
                    for metric in ("top1_matches", "kl_clean_to_typo"))
        if len(kept):
            contrasts.append({"a": a, "b": b, "seeds": len(kept), "difference": kept.mean(),
                              "interval": crossed_interval(kept), "kl": kl.mean(),
                              "kl_interval": crossed_interval(kl)})
    return {"pairs": values.shape[1], "arms": arms, "contrasts": contrasts}


def main(args):
    pairs = read_rows(args.pairs, ["category", "clean", "typo"])
    runs, results = measure_models(args, pairs, measure)
    found = aggregate(results)
    rows = []
    for arm, groups in found["arms"].items():
        kept, *others = groups["overall"].values()
        cells = [f"{interval(x['mean'], x['interval'], digits=3)}, {x['median']:.3f}"
                 for x in others]
        kept_percent = interval(kept["mean"], kept["interval"], scale=100)
        rows.append([arm, len(kept["per_seed"]), kept_percent, *cells])
    text = [f"{found['pairs']} pairs of a clean and a misspelled prompt: means with 95 % intervals "
            "over pairs (bootstrap) crossed with seeds (Student; one seed: of that training run), "
            "then the median over pairs. The published figures (2605.29459, 124M) are of one "
            "checkpoint an arm: of its 110 pairs 22 keep their top-1 with Kronecker only and 13 "
            "with BPE only, exact McNemar p = 0.18.",
            markdown_table(["arm", "seeds", *METRICS.values()], rows + PUBLISHED)]
    rows = [[f"{pair['a']} - {pair['b']}",
             interval(pair["difference"], pair["interval"], "+", scale=100),
             interval(pair["kl"], pair["kl_interval"], "+", 3)] for pair in found["contrasts"]]
    if rows:
        text += ["Two by two, over the seeds that both have: the difference in top-1 kept (points) "
                 "and in mean KL (nats), with intervals as above:",
                 markdown_table(["a - b", "top-1 kept", "KL"], rows)]
    save(args, text, found, draw(found), runs)


def draw(found):
    """The picture: three of the metrics, a point an arm, each axis from its natural end."""
    figure, axes = panels(3, 4.5, 5)
    for ax, (metric, label) in zip(axes, METRICS.items()):
        top = None if metric == "kl_clean_to_typo" else 1
        of_arms = {arm: groups["overall"][metric] for arm, groups in found["arms"].items()}
        draw_points(ax, {arm: [(x["mean"], *x["interval"])] for arm, x in of_arms.items()}, [""])
        ax.set(ylim=(0, top), ylabel=f"mean {label}", xmargin=0.2,
               title="higher is better" if top else "lower is better")
    axes[0].set_yticks(np.linspace(0, 1, 6), range(0, 101, 20))  # %
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"One misspelled word, {found['pairs']} prompt pairs; bars: 95 % over pairs "
                    "and seeds", fontsize=10)
    return figure
