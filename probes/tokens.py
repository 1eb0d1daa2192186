"""Where is an arm better or worse: at tokens rare or frequent in training, short or long, of which
script, with a code of their own or a shared one?

Reads eval.npz of each run, out/RUN or results/NAME/RUN, which train.py writes at the last step."""
from lib.errors import InputError
from lib.plots import panels
from lib.results import read_evaluation
from lib.stats import summary
from lib.tables import bracket, markdown_table, pm
from lib.tokenizer import END_OF_TEXT
from probes.shared import draw_points, read_logs, save

OPTIONS = {}
GROUPINGS = {"seen": "expected times in training", "length": "length in bytes", "script": "script",
             "shared": "first P bytes, own or shared"}  # of the input token
LONG = 17  # bytes from which lengths are one group: what the usual P = 16 cuts
NOTE = f"One token of {len(END_OF_TEXT)} bytes is {END_OF_TEXT}"


def read_groups(run):
    """A run's eval.npz -> [(grouping, group, nats, tokens)], the whole as ("all", "all")."""
    arrays = read_evaluation(run)
    if arrays is None or "seen_nats" not in arrays:
        raise InputError(f"{run['name']}: no eval.npz with groups; the last step writes one")
    rows = [("all", "all", float(arrays["doc_nats"].sum()), int(arrays["doc_tokens"].sum()))]
    for grouping in GROUPINGS:
        nats, tokens = arrays[f"{grouping}_nats"], arrays[f"{grouping}_tokens"]
        count = len(nats)
        names = {  # "own" stands alone where no two tokens share their bytes
            "seen": ["never", "1", *(f"{2**(k - 1):,}-{2**k - 1:,}" for k in range(2, count))],
            "length": [str(n) if n < LONG else f"{LONG} or more" for n in range(count)],
            "script": arrays["script_names"].tolist(), "shared": ["own", "shared"]}[grouping]
        rows += [(grouping, *group) for group in zip(names, nats.astype(float), tokens.tolist())]
    return rows


def aggregate(runs):
    """Runs -> {grouping: {group: {"share": of all tokens, "arms": {arm: {"nats", "gap"}}}}}: the
    `summary` over seeds of the mean nats a token, and of the gap to the first arm over the seeds in
    which both have the same tokens there (at another P other codes are shared); None for none."""
    import pandas as pd  # takes half a second, which --help need not wait for
    rows = [(run["arm"], run["header"]["config"]["seed"], *group)
            for run in runs for group in read_groups(run)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "grouping", "group", "nats", "tokens"])
    table = table.groupby(["arm", "seed", "grouping", "group"], sort=False).sum().reset_index()
    arms, everything = list(table["arm"].unique()), table[table["grouping"] == "all"]
    table = table[table["tokens"] > 0].assign(nats=lambda t: t["nats"] / t["tokens"])
    first, same = table["arm"] == arms[0], ["seed", "grouping", "group", "tokens"]
    base = table[first].set_index(same)["nats"].rename("base")
    table["gap"] = table["nats"][~first] - table.join(base, on=same)["base"]
    result = {}
    for (grouping, group), part in table.groupby(["grouping", "group"], sort=False):
        of_arms = {arm: {key: summary(x.dropna()) if x.count() else None
                         for key, x in part.loc[part["arm"] == arm, ["nats", "gap"]].items()}
                   for arm in arms}
        share = part["tokens"].sum() / everything["tokens"].sum()
        result.setdefault(grouping, {})[group] = {"share": float(share), "arms": of_arms}
    return result


def main(args):
    runs = read_logs(args)
    result = aggregate(runs)
    everything = result["all"]["all"]["arms"]
    arms = list(everything)
    text = ["Mean nats per token over the whole validation text, by the input token, the one just "
            "before what is predicted; mean ± sd over seeds. Exploratory: many groups, and no "
            f"correction for that. No gap where two arms have other tokens in a group. {NOTE}, "
            "after which another document begins. All tokens: "
            + "; ".join(f"{arm} {pm(everything[arm]['nats'])}" for arm in arms) + "."]
    for grouping, title in GROUPINGS.items():
        rows, gaps = [], []
        for name, numbers in result[grouping].items():
            start, of_arms = [name, f"{100 * numbers['share']:.2f}"], numbers["arms"]
            rows.append([*start, *(pm(of_arms[arm]["nats"], 3) for arm in arms)])
            gaps.append(start)
            for gap in (of_arms[arm]["gap"] for arm in arms[1:]):
                ends = f" {bracket(gap['interval'], 3)}" if gap and gap["interval"] else ""
                gaps[-1].append(pm(gap, 3, "+") + ends)
        head = [title, "tokens (%)"]
        text += [f"By the input token's {title}:", markdown_table([*head, *arms], rows)]
        if len(arms) > 1:
            text += [f"The same, minus {arms[0]}'s, paired by seed; 95 % Student intervals over "
                     "seeds:", markdown_table([*head, *arms[1:]], gaps)]
    save(args, text, {"groups": result}, draw(arms, result), runs)


def draw(arms, result):
    """The picture: the gap to the first arm in each group; of one arm alone, its nats."""
    what, shown = ("gap", arms[1:]) if len(arms) > 1 else ("nats", arms)
    figure, axes = panels(2, 5.5, 9, rows=2)
    for ax, (grouping, title) in zip(axes, GROUPINGS.items()):
        groups = {name: numbers["arms"] for name, numbers in result[grouping].items()
                  if numbers["share"] >= 0.001}
        points = {arm: [x and (x["mean"], x["mean"] - (x["sd"] or 0), x["mean"] + (x["sd"] or 0))
                        for x in (of_arms[arm][what] for of_arms in groups.values())]
                  for arm in shown}
        draw_points(ax, points, [name.split("-")[0] for name in groups],
                    joined=grouping in ("seen", "length"))
        if what == "gap":
            ax.axhline(0, color="0.5", lw=0.8)
        ax.set_title(f"input token: {title}", fontsize=11)
        if grouping == "seen":
            ax.tick_params("x", rotation=45)
            ax.legend()
    figure.supylabel("nats per token" + (f" minus {arms[0]}'s" if what == "gap" else ""))
    figure.suptitle("Lower is better. Bars: sd over seeds. Groups under 0.1 % of the tokens are "
                    f"left out. {NOTE}", fontsize=10)
    return figure
