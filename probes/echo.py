"""In-context copying: does having a word in the prompt make it likelier later, and is it so for
misspelled and made-up words too?

The copy log-ratio in nats: log p(w | the prompt with w) - log p(w | the prompt with another word in
its place), teacher-forced. A small model that never says a word again still shows this."""
import itertools

import numpy as np
import torch

from lib.plots import panels
from lib.stats import summary
from lib.tables import markdown_table
from probes.shared import (PROMPTS, crossed_interval, draw_points, hidden, interval,
                           measure_models, paired, read_rows, save)

KINDS = {"clean": "typo", "typo": "clean", "novel": "clean"}  # w: w'
OPTIONS = {"--prompts": dict(default=PROMPTS / "echo.tsv",
                             help=".tsv of template (with {} twice), clean, typo, novel")}


def read_prompts(path):
    """Rows of {template, clean, typo, novel}; the template has {} twice. InputError if not."""
    return read_rows(path, ["template", *KINDS], "template", count=2)


@torch.no_grad()
def log_prob(model, tok, before, text, head=None):
    """log p(text | before) in nats, summed over the text's tokens. `head`: as in `GPT.logits`."""
    context, target = tok.encode(before) or [tok.eot], tok.encode(text)
    h = hidden(model, context + target[:-1], before)[len(context) - 1:]  # (tokens of text, d)
    log_p = model.logits(h, head)[:, :model.config.vocab_size].double().log_softmax(-1)
    return log_p[range(len(target)), target].sum().item()


def echo_nats(model, tok, template, word, other, head=None):
    """The copy log-ratio: how many nats likelier `word` is at the template's second {} when `word`,
    and not `other`, is at the first."""
    start, between, _ = template.split("{}")
    space = " " if between.endswith(" ") else ""  # a space belongs to the word after it
    between = between.removesuffix(space)
    return (log_prob(model, tok, start + word + between, space + word, head)
            - log_prob(model, tok, start + other + between, space + word, head))


def aggregate(found):
    """{arm: {seed: {kind: nats of each prompt}}} -> {arm: {kind: {"mean", "sd", "per_seed",
    "interval", "share", "gap", "gap_interval"}}}. Intervals are over prompts crossed with seeds;
    "share": of prompts with a positive mean; "gap": to the first arm over common seeds, or None."""
    first = next(iter(found.values()))
    echoes = {arm: {} for arm in found}
    for (arm, seeds), kind in itertools.product(found.items(), KINDS):
        values = np.array([nats[kind] for nats in seeds.values()])  # (seeds, prompts)
        gaps = paired(seeds, first, kind) if seeds is not first else []
        echoes[arm][kind] = summary(values.mean(1)) | {
            "interval": crossed_interval(values), "share": float((values.mean(0) > 0).mean()),
            "gap": gaps.mean() if len(gaps) else None,
            "gap_interval": crossed_interval(gaps) if len(gaps) else None}
    return echoes


def resolved(echoes):
    """How many differences to the first arm have an interval without 0, as text; "" of one arm."""
    first, *others = echoes
    gaps = [echoes[arm][kind]["gap_interval"] for arm in others for kind in KINDS]
    clear = [low > 0 or high < 0 for low, high in filter(None, gaps)]
    return f"{sum(clear)} of {len(clear)} differences to {first} are clear" if clear else ""


def main(args):
    prompts = read_prompts(args.prompts)

    def measure(model, tok, row, head):
        return {kind: echo_nats(model, tok, row["template"], row[kind], row[other], head)
                for kind, other in KINDS.items()}
    runs, found = measure_models(args, prompts, measure)
    echoes = aggregate(found)
    rows, gaps = [], []
    for arm, kinds in echoes.items():
        cells = [f"{interval(x['mean'], x['interval'], '+', 3)}, {100 * x['share']:.0f} %"
                 for x in kinds.values()]
        rows.append([arm, len(kinds["clean"]["per_seed"]), *cells])
        if kinds["clean"]["gap"] is not None:
            gaps.append([arm, *(interval(x["gap"], x["gap_interval"], "+", 3)
                                for x in kinds.values())])
    text = ["In-context copying: the copy log-ratio, log p(w | the prompt with w) - log p(w | the "
            "prompt with w'), teacher-forced, in nats over the word's tokens; w' is the clean word "
            f"for a typo and a novel word, the typo for the clean word. Means over {len(prompts)} "
            "prompts and the seeds with 95 % intervals over prompts (bootstrap) crossed with seeds "
            "(Student; one seed: of that training run), and the share of prompts above 0:",
            markdown_table(["arm", "seeds", *KINDS], rows)]
    if gaps:
        text += [f"The same, minus {next(iter(echoes))}'s, over the seeds that both have:",
                 markdown_table(["arm", *KINDS], gaps), resolved(echoes) + "."]
    save(args, text, {"prompts": len(prompts), "echo": echoes}, draw(echoes), runs)


def draw(echoes):
    """The picture: nats a kind, a point an arm."""
    figure, (ax,) = panels(1, 7.5)
    draw_points(ax, {arm: [(numbers["mean"], *numbers["interval"]) for numbers in kinds.values()]
                     for arm, kinds in echoes.items()},
                ["usual words", "misspelled words", "made-up words"])
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set_ylabel("copy log-ratio (nats); 0: no copying")
    ax.set_title("In-context copying: how much likelier is a word for being in the prompt?\n"
                 "Bars: 95 % over prompts and seeds. " + resolved(echoes), fontsize=10)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
