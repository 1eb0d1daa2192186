"""Arms' colours, and all pictures."""
import zlib

import numpy as np

from lib.errors import write_atomic

# Arms that the picture of sizes draws as lines, and that of gaps also with a single horizon.
LINES = ("kron", "bpe_untied", "bpe_untied_usual", "bpe_tied", "bpe_tied_usual")

# arm: (colour, marker, line), in the order of the tables. A family shares a marker; colours are
# Okabe and Ito's, safe for the colour-blind; lines tell the arms of a family apart in grey.
ARMS = {
    "bpe_tied": ("#000000", "o", "-"),
    "bpe_tied_usual": ("#777777", "o", ":"),
    "bpe_untied": ("#E69F00", "s", "--"),
    "bpe_untied_default": ("#A87400", "s", ":"),
    "bpe_untied_usual": ("#D4A017", "D", "-."),
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


def arm_style(arm):
    """How an arm is drawn, {color, marker, ls}; one without a row in ARMS by its name's hash."""
    number = zlib.crc32(arm.encode())
    other = f"#{number & 0x9f9f9f:06x}", "Hd8|_1234"[(number >> 24) % 9], "-"
    return dict(zip(("color", "marker", "ls"), ARMS.get(arm, other)))


def panels(count, width, height=4.4, dpi=110, rows=1):
    """A figure with rows of `count` axes, and an array of all. Text in it is no formula."""
    import matplotlib.figure  # takes a third of a second, which --help need not wait for
    matplotlib.rcParams["text.parse_math"] = False
    figure = matplotlib.figure.Figure((width * count, height), dpi=dpi, layout="constrained")
    axes = figure.subplots(rows, count, squeeze=False).ravel()
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    return figure, axes


def draw_curves(ax, arm, curves, **style):
    """An arm's curves {seed: {x: value}}: the mean over seeds, with a band from the lowest to the
    highest. Its end: (x, mean, colour)."""
    import pandas as pd  # takes half a second, which --help need not wait for
    values, style = pd.DataFrame(curves).sort_index(), arm_style(arm) | style
    mean = values.mean(axis=1)
    ax.plot(mean.index, mean, ms=5, lw=1.5, label=arm, **style)
    ax.fill_between(mean.index, values.min(axis=1), values.max(axis=1), color=style["color"],
                    alpha=0.2, lw=0)
    return mean.index[-1], mean.iloc[-1], style["color"]


def loss_picture(records, title, path):
    """loss.png of one run: losses against steps; the axis leaves out the fall from ln V."""
    figure, (ax,) = panels(1, 7, dpi=120)
    training, validation = ([(r["step"], r[key]) for r in records if r.get(key) is not None]
                            for key in ("loss", "val_loss"))
    ax.plot(*zip(*training), color="0.6", lw=0.8, label="training batch")
    ax.plot(*zip(*validation), color="C0", marker="o", ms=4, label="validation")
    ax.annotate(f"{validation[-1][1]:.3f}", validation[-1], (0, 8), ha="right", color="C0",
                textcoords="offset points")
    later = [loss for step, loss in training + validation if step >= validation[-1][0] / 10]
    ax.set(xlabel="step", ylabel="loss (nats per token)", title=title,
           ylim=(min(later) - 0.1, max(later) + 0.1))
    ax.legend()
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def curves_picture(table):
    """Validation loss of every arm against steps, from a nat above the highest final loss on."""
    figure, (ax,) = panels(1, 8, 5)
    for arm, group in table.groupby("arm", sort=False):
        draw_curves(ax, arm, {seed: {v["step"]: v["val_loss"] for v in run["vals"] if v["step"]}
                              for seed, run in zip(group["seed"], group["run"])})
    ax.set(ylim=(table["loss"].min() - 0.05, table["loss"].max() + 1), xlabel="step",
           ylabel="validation loss (nats per token)")
    ax.legend(fontsize=9)
    return figure


def finish(ax, values, ends):
    """A logarithmic axis with ticks at those of its values that do not stand too close; the lines'
    names, (x, y, colour, name) of an end each, beside it and joined to their ends: as near to these
    as they can be with a line's height between them."""
    from scipy.optimize import isotonic_regression  # takes a second
    ticks = []
    for value in sorted(values):
        if not ticks or value > 1.5 * ticks[-1]:
            ticks.append(value)
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{value:,.0f}" for value in ticks])
    ax.minorticks_off()
    low, high = ax.get_ylim()
    ends.sort(key=lambda end: end[1])
    heights = np.arange(len(ends)) * (high - low) / 18
    places = isotonic_regression([y for _, y, *_ in ends] - heights).x + heights
    for (x, y, colour, name), place in zip(ends, places):
        ax.annotate(name, (x, y), (1.09, place), textcoords=("axes fraction", "data"), fontsize=8,
                    va="center", annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "ls": ":",
                                "relpos": (0, 0.5)})  # from the middle of the name's left side


def table_rows(table):
    """How many rows a V x d table has in the runs of a comparison: V, padded."""
    headers = [run["header"] for run in table["run"]]
    sizes = [header["params"][part] // header["config"]["n_embd"] for header in headers
             for part, key, value in (("input", "code", "learned"), ("head", "head", "table"))
             if header["config"][key] == value]
    return max(1, min(sizes, default=1))


def draw_gaps(ax, texts, baseline):
    """The final gap to the baseline against training tokens per vocabulary entry, over the seeds of
    all of an arm's horizons; hollow from the second text on."""
    import pandas as pd  # takes half a second, which --help need not wait for
    found, ends = [], []
    for text, horizons in enumerate(texts):
        for table in horizons:
            base = table[table["arm"] == baseline].set_index("seed")["loss"]
            header, size = table["run"].iloc[0]["header"], table_rows(table)
            tokens = header["config"]["max_steps"] * header["tokens_per_step"]
            gaps = table["loss"] - table["seed"].map(base)
            found.append(table.assign(gap=gaps, text=text, size=size, seen=tokens / size))
    found = pd.concat(found).dropna(subset="gap")
    lines = {key: line.pivot(index="seen", columns="seed", values="gap").dropna(axis=1)
             for key, line in found.groupby(["text", "arm", "size"])}
    shown = {key: line for key, line in lines.items()
             if line.size and (len(line) > 1 or key[1] in (*LINES, "minimal"))} or lines
    for (text, arm, size), line in shown.items():
        if not text or arm != baseline:
            name = f"{arm}, V {size:,}" if text else arm
            ends.append((*draw_curves(ax, arm, line, mfc="white" if text else None), name))
    first = found["size"].iloc[0]
    steps = sorted(table["run"].iloc[0]["header"]["config"]["max_steps"] for table in texts[0])
    ax.set(xlabel="training tokens per vocabulary entry\n"
           f"(V {first:,}: {', '.join(map('{:,}'.format, steps))} steps;\nbands span the seeds)",
           ylabel=f"loss - loss of {baseline} (nats per token)")
    finish(ax, {x for line in shown.values() for x in line.index}, ends)


def draw_sizes(ax, table):
    """Final loss against how many numbers a token's code has, fixed codes and trained ranks; the
    arms of LINES are horizontal lines."""
    codes, ends = {}, []
    for arm, group in table.groupby("arm", sort=False):
        config = group["run"].iloc[0]["header"]["config"]
        widths = {0: (table_rows(table) - 1).bit_length(), -1: config["n_embd"]}  # minimal, wide
        at = {"affine": widths.get(config["code_width"], config["code_width"]),
              "lowrank": config["rank"], "frozen_random": config["n_embd"]}.get(config["code"])
        if at and not config["input_norm"]:
            for seed, loss in zip(group["seed"], group["loss"]):
                codes.setdefault(config["code"], {}).setdefault(seed, {})[at] = loss
        elif arm in LINES:
            loss, style = group["loss"].mean(), arm_style(arm)
            ax.axhline(loss, lw=1.3, color=style["color"], ls=style["ls"])
            ends.append((config["n_embd"], loss, style["color"], arm))
    for code, curves in codes.items():
        name = {"affine": "minimal to wide", "lowrank": "trained rank"}.get(code, code)
        ends.append((*draw_curves(ax, "wide" if code == "affine" else code, curves), name))
    ax.set(xlabel="numbers in a token's code", ylabel="loss (nats per token)")
    finish(ax, {x for curves in codes.values() for curve in curves.values() for x in curve}, ends)


def answer_picture(tables, others, baseline):
    """The two pictures of the answer; `others`: comparisons of other texts and vocabularies."""
    figure, (left, right) = panels(2, 4, 4.2, 220)  # twice the width at which a page shows it
    data = tables[0]["run"].iloc[0]["header"]["data"]
    texts = [other["tables"] for other in others
             if other["tables"][0]["run"].iloc[0]["header"]["data"] != data]
    draw_gaps(left, [tables, *texts], baseline)
    draw_sizes(right, tables[0])
    return figure
