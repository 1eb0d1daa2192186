"""The pictures of a comparison: losses, gaps, the frontier, where the gap is."""
import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lib.report import draw_curves, look

FAMILY_LOOKS = {"learned": "bpe_untied"}  # a family is a code; it looks like the arm of its name
MOST_CURVES = 10  # arms; past that a picture of curves shows those of the planned contrasts
# where a name may stand: right or left of its point, so many points above it
PLACES = [(side, height) for height in (0, 6, -6, 12, -12, 18, -18) for side in (1, -1)]


def comparison_picture(horizons, baseline, planned):
    """Four panels, or three without eval.npz.

    `horizons`: lists of runs by {arm: {seed: run}}, the main one first, runs having "loss" and
    "eval"; `planned`: arms that are shown where there are too many.
    """
    arms = horizons[0]
    shown = [arm for arm in arms if len(arms) <= MOST_CURVES or arm in (*planned, baseline)]
    scored = [r for by_seed in arms.values() for r in by_seed.values()]
    counted = all(r["eval"] is not None and "seen_nats" in r["eval"] for r in scored)
    figure = Figure(figsize=(14, 11), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).ravel()
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    losses, gaps, frontier, counts = axes
    draw_losses(losses, arms, shown)
    draw_gaps(gaps, horizons, shown, baseline)
    if counted:
        draw_counts(counts, arms, shown, baseline)
    else:
        counts.axis("off")
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=9)
    draw_frontier(frontier, arms)
    return figure


def short(number):
    """A count as a tick: 0, 800, 25k, 2.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def token_curve(run):
    """{tokens seen: validation loss} of a run, but for step 0."""
    per_step = run["header"].get("tokens_per_step", 1)
    return {v["step"] * per_step: v["val_loss"] for v in run["vals"] if v["step"]}


def draw_losses(ax, arms, shown):
    """Validation loss against tokens."""
    finals, late = [], []
    for arm in shown:
        curves = {seed: token_curve(run) for seed, run in arms[arm].items()}
        draw_curves(ax, arm, curves)
        for curve in curves.values():
            finals.append(list(curve.values())[-1])
            late += [loss for tokens, loss in curve.items() if tokens >= max(curve) / 4]
    ax.set(ylim=(min(finals) - 0.05, max(late) + 0.05), xlabel="training tokens",
           ylabel="validation loss (nats per token)", title="Validation loss")
    ax.xaxis.set_major_formatter(lambda x, _: short(x))


def draw_gaps(ax, horizons, shown, baseline):
    """Gap to the baseline against tokens, of each horizon; its end, after a cosine of its own, is a
    large marker, and a thick line joins the ends of an arm, over seeds that all its horizons
    have."""
    for arm in shown:
        style, ends = look(arm), {}
        both = [arms.get(arm, {}).keys() & arms.get(baseline, {}).keys() for arms in horizons]
        common = set.intersection(*(set(seeds) for seeds in both if seeds)) if any(both) else set()
        for arms, seeds in zip(horizons, both):
            curves = {}
            for seed in seeds:
                ours, theirs = token_curve(arms[arm][seed]), token_curve(arms[baseline][seed])
                curves[seed] = {t: loss - theirs[t] for t, loss in ours.items() if t in theirs}
            draw_curves(ax, arm, curves, thin=True)
            if seeds and common:
                final = [arms[arm][s]["loss"] - arms[baseline][s]["loss"] for s in common]
                ends[max(token_curve(arms[arm][min(common)]))] = np.mean(final)
        if ends:
            tokens = sorted(ends)
            ax.plot(tokens, [ends[t] for t in tokens], ms=9, lw=2.4, zorder=3, **style)
    ax.set(xlabel="training tokens", ylabel=f"loss - loss of {baseline} (nats)",
           title="Gap at the same tokens; large: each run's end")
    ax.xaxis.set_major_formatter(lambda x, _: short(x))


def draw_frontier(ax, arms):
    """Final loss against trained input parameters in use, a colour and a marker a family, bars from
    the lowest to the highest seed; hollow: no V-sized table of its own at the head."""
    families, names = {}, []
    for arm, by_seed in arms.items():
        header = next(iter(by_seed.values()))["header"]
        config, params = header["config"], header["params"]
        x = params.get("in_use", params.get("input", 0))
        losses = [run["loss"] for run in by_seed.values()]
        style = look(FAMILY_LOOKS.get(config["code"], config["code"])) | {"ls": "none"}
        fill = style["color"] if config["head"] == "table" else "none"
        loss = np.mean(losses)
        bar = [[loss - min(losses)], [max(losses) - loss]] if len(losses) > 1 else None
        ax.errorbar(x, loss, bar, ms=8, capsize=2, mfc=fill, **style)
        names.append((loss, x, arm))
        if config["head"] == "table":
            lowest = families.setdefault(style["color"], {})
            lowest[x] = min(loss, lowest.get(x, math.inf))
    for colour, lowest in families.items():
        ax.plot(*zip(*sorted(lowest.items())), lw=0.8, alpha=0.6, color=colour)
    ax.set_xscale("symlog", linthresh=1e4)
    ax.set_xlim(-2e3, 8 * max(x for _, x, _ in names) + 1e4)  # room for names
    ax.xaxis.set_major_formatter(lambda x, _: short(x))
    ax.set(xlabel="trained input parameters in use (logarithmic past 10k)",
           ylabel="validation loss (nats per token)",
           title="Frontier: a colour a family; hollow: no table of its own at the head")
    name_points(ax, names)


def name_points(ax, names):
    """Write names beside points [(y, x, name)]: each at the place around its point that covers
    least of the other points and of the names before it."""
    ax.figure.canvas.draw()  # lays the axes out, so that places on the page are known
    renderer = ax.figure.canvas.get_renderer()
    marks = [Bbox.from_bounds(*(ax.transData.transform((x, y)) - 5), 10, 10) for y, x, _ in names]
    written = []
    for y, x, name in sorted(names):
        text = ax.annotate(name, (x, y), (0, 0), textcoords="offset points", fontsize=7,
                           va="center")
        tries = []
        for i, (side, height) in enumerate(PLACES):
            text.set(position=(7 * side, height), ha="left" if side > 0 else "right")
            box = text.get_window_extent(renderer)
            covered = sum(overlap(box, other) for other in marks + written)
            tries.append((covered, i))
        side, height = PLACES[min(tries)[1]]
        text.set(position=(7 * side, height), ha="left" if side > 0 else "right")
        written.append(text.get_window_extent(renderer))


def overlap(a, b):
    """The area that two boxes on the page share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0) * max(height, 0)


def draw_counts(ax, arms, shown, baseline):
    """Gap to the baseline by how often training is expected to have seen the current input token,
    mean over seeds with a band; grey: the share of validation tokens."""
    common = next(iter(arms[baseline].values()))["eval"]["seen_tokens"]
    bins = np.flatnonzero(common)
    share = common[bins] / common.sum()
    twin = ax.twinx()
    twin.bar(bins, 100 * share, color="0.85", width=0.8)
    twin.set_ylabel("share of validation tokens (%), grey bars")
    twin.set_ylim(0, 300 * share.max())  # bars stay in the lower third
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)
    for arm in shown:
        curves = {}
        for seed in arms[arm].keys() & arms[baseline].keys():
            ours, theirs = arms[arm][seed]["eval"], arms[baseline][seed]["eval"]
            gap = (ours["seen_nats"][bins] - theirs["seen_nats"][bins]) / common[bins]
            curves[seed] = dict(zip(bins, gap))
        draw_curves(ax, arm, curves)
    labels = ["never" if k == 0 else f"{2 ** (k - 1):,}" for k in bins]
    ax.set_xticks(bins, labels, rotation=45, ha="right", fontsize=8)
    ax.set(xlabel="times that training saw the current input token (expected), from",
           ylabel=f"loss - loss of {baseline} (nats)", title="Where the gap is")
