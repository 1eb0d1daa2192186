"""Arms' colours, and all pictures."""
import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lib.errors import write_atomic

# arm: (colour, marker, line). The order is that of the tables. Arms of one family share a marker;
# colours are Okabe and Ito's, safe for the colour-blind, and shades of them; lines tell the arms of
# a family apart in grey.
ARMS = {
    "bpe_tied": ("#000000", "o", "-"),
    "bpe_tied_usual": ("#777777", "o", ":"),
    "bpe_untied": ("#E69F00", "s", "--"),
    "bpe_untied_default": ("#A87400", "s", ":"),
    "bpe_untied_usual": ("#F5C76B", "s", "-."),
    "bpe_untied_unit": ("#56B4E9", "D", "-."),
    "bpe_untied_lr": ("#009E73", "^", ":"),
    "lowrank": ("#5B3A99", "p", "-"),
    "lowrank_tied": ("#B39DDB", "p", "-."),
    "binary": ("#B8A800", "v", (0, (5, 1))),
    "binary_linear": ("#7A7000", "v", "-"),
    "affine": ("#0072B2", "P", (0, (1, 1))),
    "minimal": ("#7FB8DA", "P", "--"),
    "wide": ("#004B75", "P", "-"),
    "frozen_random": ("#888888", "v", ":"),
    "visual": ("#444444", "v", "-."),
    "random": ("#CC79A7", "*", (0, (3, 1, 1, 1))),
    "hash": ("#8A3F68", "*", "-"),
    "qr": ("#E8BCD3", "*", "--"),
    "trigram": ("#00606B", ">", "-"),
    "phase": ("#6FB7A8", "h", "--"),
    "bytes2word": ("#3B6EA5", "<", "-."),
    "kron": ("#D55E00", "X", (0, (8, 2))),
    "kron_wide": ("#A63A00", "X", (0, (3, 1))),
    "kron_raw": ("#F4A582", "X", ":"),
    "kron_shuffled": ("#6E2400", "X", "-"),
    "kron_tied": ("#B2473E", "X", "-."),
    "kron_code_head": ("#F08080", "X", "--"),
}

OTHER_MARKERS = "Hd8|_1234"


def look(arm):
    """How an arm is drawn, {color, marker, ls}. One without a row in ARMS has a look of its own:
    a colour from its name, and a marker that no arm in ARMS has."""
    if arm in ARMS:
        colour, marker, line = ARMS[arm]
        return {"color": colour, "marker": marker, "ls": line}
    number = sum(byte * 31**i for i, byte in enumerate(arm.encode())) % 65_521  # a prime
    hue = (number * 0.618034) % 1.0  # neighbouring numbers, distant hues
    red, green, blue = (0.35 + 0.3 * math.cos(2 * math.pi * (hue - third / 3))
                        for third in range(3))
    return {"color": (red, green, blue), "marker": OTHER_MARKERS[number % len(OTHER_MARKERS)],
            "ls": "-"}


# ---- pictures out ------------------------------------------------------------------------------

def panels(count, width, height=4.4):
    """A figure with `count` axes side by side, and the list of them."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    return figure, axes


def draw_bars(ax, arm, x, middle, low, high, line=None):
    """An arm's values (n,) at x with bars from low to high; `line` in place of the arm's own."""
    style = look(arm)
    style["ls"] = style["ls"] if line is None else line
    below = np.maximum(np.subtract(middle, low), 0)
    above = np.maximum(np.subtract(high, middle), 0)
    ax.errorbar(x, middle, [below, above], capsize=2, lw=1.3, ms=6, label=arm, **style)


def draw_curves(ax, arm, curves, thin=False):
    """An arm's curves {seed: {step: value}}: the mean over seeds at the steps that all have, with a
    band from the lowest to the highest; `thin`: without markers and label."""
    steps = sorted(set.intersection(*(set(c) for c in curves.values()))) if curves else []
    if not steps:
        return
    values = np.array([[curve[step] for step in steps] for curve in curves.values()])
    style = look(arm)
    if thin:
        ax.plot(steps, values.mean(0), lw=1, alpha=0.6, color=style["color"], ls=style["ls"])
    else:
        ax.plot(steps, values.mean(0), ms=5, lw=1.6, label=arm, **style)
    ax.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.15, lw=0)


def smoothed(values):
    """The running mean of a list over about a 25th of it: what is k values past counts w^k."""
    weight = 1 - 25 / max(25, len(values))
    means, total, count = [], 0.0, 0.0
    for value in values:
        total, count = weight * total + value, weight * count + 1
        means.append(total / count)
    return means


def draw_loss(records, title):
    """Training and validation loss of one run against steps, with the last value; the axis leaves
    out the start, whose fall from ln V would flatten all that follows."""
    figure, (ax,) = panels(1, 7)
    training, validation = ([(r["step"], r[key]) for r in records if r.get(key) is not None]
                            for key in ("loss", "val_loss"))
    if training:
        steps, losses = zip(*training)
        ax.plot(steps, losses, color="0.75", lw=0.8, label="training batch")
        if len(steps) > 25:
            ax.plot(steps, smoothed(losses), color="0.4", lw=1.2, label="training, smoothed")
    if validation:
        ax.plot(*zip(*validation), color="C0", marker="o", ms=4, label="validation")
        ax.annotate(f"{validation[-1][1]:.3f}", validation[-1], (0, 8), ha="right", color="C0",
                    textcoords="offset points")
    last = max((step for step, _ in [*training, *validation]), default=0)
    later = [loss for step, loss in [*training, *validation] if step > last / 10]
    if later:
        ax.set_ylim(min(later) - 0.1, max(later) + 0.1)
    ax.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    if ax.lines:
        ax.legend()
    return figure


def loss_picture(records, title, path):
    """loss.png of one run."""
    figure = draw_loss(records, title)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))

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
