"""Arms' colours, and all pictures."""
import math

import numpy as np

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
    "bpe_untied_fast": ("#C98500", "s", "-"),
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
    """A figure with `count` axes side by side, and the list of them. Text in it is text: a run that
    is called $x$ is no formula."""
    import matplotlib.figure  # takes a third of a second, which --help need not wait for
    matplotlib.rcParams["text.parse_math"] = False
    figure = matplotlib.figure.Figure(figsize=(width * count, height), layout="constrained")
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


MOST_CURVES = 10  # arms; past that a picture of curves shows those of the planned contrasts


def comparison_picture(tables, baseline, planned):
    """Validation loss, and the gap to the baseline, against tokens.

    `tables`: one a horizon (lib/results.py), the main one first; `planned`: arms that are shown
    where there are too many.
    """
    arms = list(dict.fromkeys(tables[0]["arm"]))
    shown = [arm for arm in arms if len(arms) <= MOST_CURVES or arm in (*planned, baseline)]
    figure, (losses, gaps) = panels(2, 7, 6)
    draw_losses(losses, tables[0], shown)
    draw_gaps(gaps, tables, shown, baseline)
    for ax in (losses, gaps):
        ax.set_xlabel("training tokens")
        ax.xaxis.set_major_formatter(lambda x, _: short(x))
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=6,
                  fontsize=9)
    return figure


def short(number):
    """A count as a tick: 0, 800, 25k, 2.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def token_curves(table, arm):
    """{seed: {tokens seen: validation loss}} of an arm's runs, but for step 0."""
    curves = {}
    for run in table.loc[table["arm"] == arm, "run"]:
        per_step = run["header"].get("tokens_per_step", 1)
        curve = {v["step"] * per_step: v["val_loss"] for v in run["vals"] if v["step"]}
        curves[run["header"]["config"]["seed"]] = curve
    return curves


def draw_losses(ax, table, shown):
    """Validation loss against tokens; the axis leaves out the first quarter's fall."""
    finals, late = [], []
    for arm in shown:
        curves = token_curves(table, arm)
        draw_curves(ax, arm, curves)
        for curve in curves.values():
            finals.append(curve[max(curve)])
            late += [loss for tokens, loss in curve.items() if tokens >= max(curve) / 4]
    ax.set(ylim=(min(finals) - 0.05, max(late) + 0.05), title="Validation loss",
           ylabel="validation loss (nats per token)")


def draw_gaps(ax, tables, shown, baseline):
    """Gap to the baseline against tokens, of each horizon; its end, after a cosine of its own, is a
    large marker, and a thick line joins the ends of an arm, over seeds that all its horizons
    have."""
    for arm in shown:
        both = [(token_curves(table, arm), token_curves(table, baseline)) for table in tables]
        seeds = [ours.keys() & theirs.keys() for ours, theirs in both]
        common = set.intersection(*map(set, filter(None, seeds))) if any(seeds) else set()
        ends = {}
        for table, (ours, theirs), paired in zip(tables, both, seeds):
            curves = {seed: {t: loss - theirs[seed][t] for t, loss in ours[seed].items()
                             if t in theirs[seed]} for seed in paired}
            draw_curves(ax, arm, curves, thin=True)
            if paired and common:
                final = table.set_index(["arm", "seed"])["loss"]
                gaps = [final[arm, seed] - final[baseline, seed] for seed in common]
                ends[max(ours[min(common)])] = np.mean(gaps)
        if ends:
            tokens = sorted(ends)
            ax.plot(tokens, [ends[t] for t in tokens], ms=9, lw=2.4, zorder=3, **look(arm))
    ax.set(ylabel=f"loss - loss of {baseline} (nats)",
           title="Gap at the same tokens; large: each run's end")


def values_picture(table, key, values):
    """Final loss against the values of one key: a thin line for each seed, the mean a thick one."""
    figure, (ax,) = panels(1, 7)
    places = range(len(values))
    for seed, group in table.groupby("seed"):
        at = [values.index(run["by"]) for run in group["run"]]
        ax.plot(at, group["loss"], ".-", color="0.7", lw=0.8)
    means = table.groupby("arm", sort=False)["loss"].mean()
    ax.plot(places, means, "o-", color="C0", label="mean over seeds")
    ax.set_xticks(places, [str(value) for value in values])
    ax.set(xlabel=key, ylabel="validation loss (nats per token)", title="grey: each seed")
    ax.legend()
    return figure
