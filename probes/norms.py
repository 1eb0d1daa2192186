"""How far does the mean row norm of the input's weights drift from the first validation to the
last?"""
from lib.plots import draw_curves, panels
from lib.stats import summary
from lib.tables import markdown_table, pm
from probes.shared import by_arm, read_logs, save

OPTIONS = {}
PUBLISHED = ("Published (2605.29459): the learned table's mean row norm drifts in training, the "
             "projection's stays near 1.0.")


def main(args):
    import pandas as pd  # takes half a second, which --help need not wait for
    runs = read_logs(args)
    curves = by_arm(runs, lambda run: {v["step"]: v.get("input_norm") for v in run["vals"]})
    drifts, rows = {}, []
    figure, (ax,) = panels(1, 7.5)
    for arm, seeds in curves.items():
        norms = pd.DataFrame(seeds).sort_index().dropna()  # at the steps that all seeds have
        if norms.empty:
            rows.append([arm, len(seeds), "no weights", "-", "-"])
            continue
        start, end = norms.iloc[0], norms.iloc[-1]
        drifts[arm] = {"start": summary(start), "end": summary(end), "drift": summary(end / start)}
        rows.append([arm, len(seeds), *(pm(numbers, 3) for numbers in drifts[arm].values())])
        draw_curves(ax, arm, norms / start)
    ax.set(xlabel="training step", ylabel="input norm / its start",
           title="Mean row norm (bands: range over seeds)")
    if drifts:
        ax.legend(fontsize=8)
    text = ["Mean norm of the table's rows, or of the projection's as d x D, at the first and the "
            "last validation that all seeds of an arm have; mean ± sd over seeds:",
            markdown_table(["arm", "seeds", "start", "end", "drift = end / start"], rows),
            PUBLISHED]
    save(args, text, {"norms": drifts, "curves": curves}, figure, runs)
