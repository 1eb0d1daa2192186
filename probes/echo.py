"""In-context copying: does having a word in the prompt make it likelier later, and is it so for
misspelled and made-up words too?

The copy log-ratio, teacher-forced, in nats: log p(w | the prompt with w) - log p(w | the prompt
with w'), summed over the tokens of w where the prompt ends. w' is the clean word for a typo and for
a novel word, the typo for the clean word. A small model that never repeats a word in its samples
still shows this."""
import numpy as np
import torch

from lib.errors import InputError
from lib.plots import draw_bars, panels
from lib.tables import markdown_table
from lib.stats import crossed_interval, spread
from probes.shared import PROMPTS, interval, measure_runs, read_rows, save

KINDS = {"clean": "typo", "typo": "clean", "novel": "clean"}  # w: w'


def add_arguments(parser):
    """The options that only this probe has."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="like out/tiny-kron-s1")
    parser.add_argument("--prompts", default=PROMPTS / "echo.tsv",
                        help=".tsv or .jsonl of template (with {} twice), clean, typo, novel")


def read_prompts(path):
    """Rows of {template, clean, typo, novel}. InputError if a template has not {} twice."""
    rows = read_rows(path, ["template", *KINDS])
    for i, row in enumerate(rows, 1):
        if row["template"].count("{}") != 2:
            raise InputError(f"{path}, row {i}: the template needs {{}} twice, where the word goes "
                             f"and comes back: {row['template']!r}")
    return rows


def log_prob(model, tok, before, text, head=None):
    """log p(text | before) in nats, summed over the text's tokens, each given those before it.
    `head`: what the model's `head_rows` gave, for many texts at once."""
    context, target = tok.encode(before) or [tok.eot], tok.encode(text)
    ids = torch.tensor([context + target[:-1]], device=model.device)
    if ids.size(1) > model.config.block_size:
        raise InputError(f"a prompt has {ids.size(1):,} tokens, the context is "
                         f"{model.config.block_size:,}: {before[:50]!r}...")
    h = model.hidden(ids)[0, len(context) - 1:]  # (tokens of text, d)
    log_p = model.logits(h, head)[:, :model.config.vocab_size].double().log_softmax(-1)
    return log_p[range(len(target)), target].sum().item()


@torch.no_grad()
def echo_log_probs(model, tok, template, word, other, head=None):
    """(log p(w | the prompt with w), log p(w | the prompt with w')) of w = `word`, w' = `other`, in
    nats. `template` has {} twice: the word in the prompt, and where w is scored; what follows the
    second {} is not read."""
    start, between, _ = template.split("{}")
    space = " " if between.endswith(" ") else ""  # a space belongs to the word after it
    between = between[:len(between) - len(space)]
    return tuple(log_prob(model, tok, start + first + between, space + word, head)
                 for first in (word, other))


def echo_nats(model, tok, template, word, other, head=None):
    """The copy log-ratio: how many nats likelier `word` is at the second {} when `word`, and not
    `other`, is at the first."""
    with_word, with_other = echo_log_probs(model, tok, template, word, other, head)
    return with_word - with_other


def aggregate(found):
    """{arm: {seed: {kind: nats of each prompt}}} -> {arm: {kind: {"mean", "sd", "per_seed",
    "interval", "share", "gap", "gap_interval"}}}.

    Intervals are over prompts crossed with seeds. "share": of prompts with a positive mean over
    seeds. "gap": to the first arm, over the seeds that both have; None without any.
    """
    first = next(iter(found.values()))
    echoes = {}
    for arm, seeds in found.items():
        echoes[arm] = {}
        common = sorted(seeds.keys() & first.keys())
        for kind in KINDS:
            values = np.array([by_kind[kind] for by_kind in seeds.values()])  # (seeds, prompts)
            numbers = spread(values.mean(1)) | {
                "interval": crossed_interval(values), "share": float((values.mean(0) > 0).mean()),
                "gap": None, "gap_interval": None}
            if arm != next(iter(found)) and common:
                gap = np.array([np.subtract(seeds[s][kind], first[s][kind]) for s in common])
                numbers |= {"gap": gap.mean(), "gap_interval": crossed_interval(gap)}
            echoes[arm][kind] = numbers
    return echoes


def main(args):
    prompts = read_prompts(args.prompts)

    def measure(model, tok, tick):
        nats, head = {kind: [] for kind in KINDS}, model.head_rows()
        for row in prompts:
            for kind, other in KINDS.items():
                nats[kind].append(echo_nats(model, tok, row["template"], row[kind], row[other],
                                            head))
            tick()
        return nats
    found, runs = measure_runs(args.runs, args.tuned, len(prompts), measure)
    echoes = aggregate(found)
    save(args, tables(found, echoes, len(prompts)),
         {"runs": runs, "prompts": len(prompts), "echo": echoes}, draw(echoes))


def tables(found, echoes, prompts):
    """The page's texts."""
    rows, gaps = [], []
    for arm, kinds in echoes.items():
        cells, differences = [], []
        for numbers in kinds.values():
            nats = interval(numbers["mean"], *numbers["interval"], "+", 3)
            cells.append(f"{nats}, {100 * numbers['share']:.0f} %")
            if numbers["gap"] is not None:
                differences.append(interval(numbers["gap"], *numbers["gap_interval"], "+", 3))
        rows.append([arm, len(found[arm]), *cells])
        if differences:
            gaps.append([arm, *differences])
    text = ["In-context copying: the copy log-ratio, log p(w | the prompt with w) - log p(w | the "
            "prompt with w'), teacher-forced, in nats over the word's tokens; w' is the clean word "
            f"for a typo and a novel word, the typo for the clean word. Means over {prompts} "
            "prompts and the seeds with 95 % intervals over prompts (bootstrap) crossed with "
            "seeds (Student; with one seed the interval holds for that training run), and the "
            "share of prompts above 0:",
            markdown_table(["arm", "seeds", *KINDS], rows)]
    if gaps:
        text += [f"The same, minus {next(iter(echoes))}'s, over the seeds that both have:",
                 markdown_table(["arm", *KINDS], gaps)]
    return text


def draw(echoes):
    """The picture: nats a kind, a point an arm."""
    figure, (ax,) = panels(1, 7.5)
    for i, (arm, kinds) in enumerate(echoes.items()):
        low, high = zip(*(numbers["interval"] for numbers in kinds.values()))
        x = np.arange(len(kinds)) + (i - (len(echoes) - 1) / 2) * 0.06
        draw_bars(ax, arm, x, [numbers["mean"] for numbers in kinds.values()], low, high, "")
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xticks=range(len(KINDS)), xticklabels=KINDS, ylabel="copy log-ratio (nats)",
           title="In-context copying (bars: 95 %, prompts crossed with seeds)")
    ax.legend(fontsize=8)
    return figure
