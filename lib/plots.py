"""Arms' colours, and all pictures."""
import zlib

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
    "bpe_untied_usual": ("#D4A017", "s", "-."),
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
    """How an arm is drawn, {color, marker, ls}; one without a row in ARMS by its name's hash."""
    number = zlib.crc32(arm.encode())
    other = f"#{number & 0x9f9f9f:06x}", OTHER_MARKERS[(number >> 24) % len(OTHER_MARKERS)], "-"
    colour, marker, line = ARMS.get(arm, other)
    return {"color": colour, "marker": marker, "ls": line}


# ---- pictures out ------------------------------------------------------------------------------

def panels(count, width, height=4.4, dpi=110):
    """A figure with `count` axes side by side, and the list of them. Text in it is text: a run that
    is called $x$ is no formula."""
    import matplotlib.figure  # takes a third of a second, which --help need not wait for
    matplotlib.rcParams["text.parse_math"] = False
    figure = matplotlib.figure.Figure((width * count, height), dpi=dpi, layout="constrained")
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


def draw_curves(ax, arm, curves):
    """An arm's curves {seed: {step: value}}: the mean over seeds at the steps that all have, with a
    band from the lowest to the highest."""
    steps = sorted(set.intersection(*map(set, curves.values()))) if curves else []
    if steps:
        values = np.array([[curve[step] for step in steps] for curve in curves.values()])
        ax.plot(steps, values.mean(0), ms=5, lw=1.6, label=arm, **look(arm))
        ax.fill_between(steps, values.min(0), values.max(0), color=look(arm)["color"], alpha=0.15,
                        lw=0)


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
            import pandas as pd  # takes half a second, which --help need not wait for
            running = pd.Series(losses).ewm(alpha=25 / len(losses)).mean()
            ax.plot(steps, running, color="0.4", lw=1.2, label="training, smoothed")
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


LINES = ("kron", "bpe_untied", "bpe_untied_usual", "bpe_tied", "bpe_tied_usual")
MOST_CURVES = 10  # arms; past that a picture of curves shows those of lowest loss


def comparison_picture(table):
    """Validation loss against training tokens, of the best arms where there are many; the first
    quarter's fall is left out."""
    curves = {}  # {arm: {seed: {tokens seen: loss}}}
    for arm, run in zip(table["arm"], table["run"]):
        per_step = run["header"].get("tokens_per_step", 1)
        curve = {v["step"] * per_step: v["val_loss"] for v in run["vals"] if v["step"]}
        curves.setdefault(arm, {})[run["header"]["config"]["seed"]] = curve
    figure, (ax,) = panels(1, 8, 5)
    late = []
    for arm in table.groupby("arm", sort=False)["loss"].mean().nsmallest(MOST_CURVES).index:
        draw_curves(ax, arm, curves[arm])
        late += [loss for c in curves[arm].values() for t, loss in c.items() if t >= max(c) / 4]
    ax.set(ylim=(min(late) - 0.05, max(late) + 0.05), xlabel="training tokens",
           ylabel="validation loss (nats per token)")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x:,g}")
    ax.legend(fontsize=9)
    return figure


def name_ends(ax, ends):
    """Name lines, (x, y, name, colour) of an end each, beside the axes: the names are pushed apart
    so that none is on another, and joined to their ends."""
    low, high = ax.get_ylim()
    step, ends = (high - low) / 18, sorted(ends, key=lambda end: end[1])
    places = np.array([y for _, y, *_ in ends])
    for _ in range(500):
        push = np.maximum(0, step - np.diff(places)) / 2
        places = places + np.append(0, push) - np.append(push, 0)
        places += max(0, low - places[0]) - max(0, places[-1] - high)
    for (x, y, name, colour), place in zip(ends, places):
        ax.annotate(name, (x, y), (1.09, place), textcoords=("axes fraction", "data"), fontsize=8,
                    va="center", annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8})


def draw_seeds(ax, arm, points, **style):
    """An arm's values {x: [one per seed]}: means joined, with a band from lowest to highest. The
    last point, (x, mean)."""
    x, style = sorted(points), look(arm) | style
    means = [np.mean(points[at]) for at in x]
    ax.plot(x, means, ms=5, lw=1.5, **style)
    ax.fill_between(x, [min(points[at]) for at in x], [max(points[at]) for at in x], lw=0,
                    color=style["color"], alpha=0.2)
    return x[-1], means[-1]


def answer_picture(tables, others, baseline):
    """Two pictures. Left: the final gap to the baseline against training tokens per vocabulary
    entry, of the arms that were run at several (else of all); `tables`: one a horizon, the main one
    first; `others`: (name, its tables, ...) of other texts and vocabularies, drawn hollow. Right:
    final loss against how many numbers a token's code has, fixed codes and trained ranks; the arms
    of LINES are horizontal lines."""
    figure, (left, right) = panels(2, 4, 4.2, 220)  # twice the width at which a page shows it
    gaps, sizes = {}, []  # {(text, arm): {tokens per entry: gaps}}
    texts = [tables, *(other[1] for other in others if baseline in set(other[1][0]["arm"]))]
    for text, horizons in enumerate(texts):
        header = horizons[0].loc[horizons[0]["arm"] == baseline, "run"].iloc[0]["header"]
        entries = max(header["params"]["input"], header["params"]["head"])
        sizes.append(max(1, entries // header["config"]["n_embd"]))
        for table in horizons:
            steps = table["run"].iloc[0]["header"]["config"]["max_steps"]
            losses = table.pivot(index="seed", columns="arm", values="loss")
            for arm in losses.columns:
                found = (losses[arm] - losses[baseline]).dropna()
                if len(found):
                    seen = steps * header.get("tokens_per_step", 1) / sizes[text]
                    gaps.setdefault((text, arm), {})[seen] = found
    for line, points in gaps.items():  # over the seeds that all of its points have
        seeds = sorted(set.intersection(*(set(found.index) for found in points.values())))
        gaps[line] = {x: found[seeds] for x, found in points.items() if seeds}
    several = {line for line, points in gaps.items() if len(points) > 1} or {*gaps}
    ends = []
    for text, arm in sorted(several - {(text, baseline) for text in range(1, len(texts))}):
        name = f"{arm}, V {sizes[text]:,}" if text else arm  # hollow: another vocabulary
        ends.append((*draw_seeds(left, arm, gaps[text, arm], mfc="white" if text else None), name,
                     look(arm)["color"]))
    left.set(xscale="log", xlabel="training tokens per vocabulary entry",
             ylabel=f"loss - loss of {baseline} (nats per token)")
    set_ticks(left, [x for line in several for x in gaps[line]])
    name_ends(left, ends)

    codes, lines, ends = {}, {}, []
    for arm, group in tables[0].groupby("arm", sort=False):
        config = group["run"].iloc[0]["header"]["config"]
        widths = {0: (sizes[0] - 1).bit_length(), -1: config["n_embd"]}  # minimal, as wide as e
        at = {"affine": widths.get(config["code_width"], config["code_width"]),
              "lowrank": config["rank"], "frozen_random": config["n_embd"]}.get(config["code"])
        if at and not config["input_norm"]:
            name = {"affine": "wide"}.get(config["code"], config["code"])
            codes.setdefault(name, {})[at] = group["loss"].tolist()
        elif arm in LINES:
            lines[arm] = group["loss"].mean()
    for name, points in codes.items():
        said = {"wide": "fixed parities", "lowrank": "trained rank"}.get(name, name)
        ends.append((*draw_seeds(right, name, points), said, look(name)["color"]))
    right.set(xscale="log", xlabel="numbers in a token's code", ylabel="loss (nats per token)")
    set_ticks(right, [x for points in codes.values() for x in points])
    for arm, loss in lines.items():
        right.axhline(loss, lw=1.3, color=look(arm)["color"], ls=look(arm)["ls"])
        ends.append((right.get_xlim()[1], loss, arm, look(arm)["color"]))
    name_ends(right, ends)
    return figure


def set_ticks(ax, values):
    """Ticks of a logarithmic axis at some of its values, those that do not stand too close."""
    ticks = []
    for value in sorted(values):
        if not ticks or value > 1.5 * ticks[-1]:
            ticks.append(value)
    ax.set_xticks(ticks, [f"{value:,.0f}" for value in ticks])
    ax.minorticks_off()


def values_picture(table, key, values):
    """Final loss against the values of one key: the mean, with a band over seeds."""
    figure, (ax,) = panels(1, 7)
    losses = table.groupby("arm", sort=False)["loss"].apply(list)
    draw_seeds(ax, key, dict(enumerate(losses)))
    ax.set_xticks(range(len(values)), [str(value) for value in values])
    ax.set(xlabel=key, ylabel="validation loss (nats per token)")
    return figure
