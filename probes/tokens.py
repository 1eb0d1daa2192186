"""Where is an arm better or worse: at tokens rare or frequent in training, short or long, of which
script, with a code of their own or a shared one?

Reads eval.npz of each run, out/RUN or results/NAME/RUN, which train.py writes at the last step."""
import numpy as np

from lib.errors import InputError
from lib.results import arm_of, read_run
from lib.tables import bracket, markdown_table, pm
from lib.plots import draw_bars, panels
from lib.results import read_evaluation
from lib.stats import summary
from probes.shared import about, comparable, save

GROUPINGS = {"seen": "expected times in training", "length": "length in bytes", "script": "script",
             "shared": "code at P"}  # all of the input token, the one before what is predicted
LONG = 17  # bytes from which lengths are one group: what the usual P = 16 cuts


def add_arguments(parser):
    """The options that only this probe has."""
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="like out/tiny-kron-s1 or results/tiny/tiny-kron-s1")


def seen_name(k):
    """The name of a log2 bin of counts: 0 is never, k is 2^(k-1) <= count < 2^k."""
    if k == 0:
        return "never"
    low, high = 2**(k - 1), 2**k - 1
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def group_names(grouping, arrays, count):
    """What the groups of one grouping are called, in order."""
    if grouping == "script":
        return [str(name) for name in arrays["script_names"]]
    if grouping == "shared":
        return ["own", "shared"][:count]  # "own" alone where no two tokens share their bytes
    if grouping == "seen":
        return [seen_name(k) for k in range(count)]
    return [str(n) if n < LONG else f"{LONG} or more" for n in range(count)]


def read_groups(run):
    """A run's eval.npz (lib/evaluate.py says what is in it) -> {grouping: {group: [nats, tokens]}},
    with all tokens under "all"; groups without tokens are there too. InputError if there is none or
    it is not one."""
    arrays = read_evaluation(run)
    if arrays is None:
        raise InputError(f"{run['name']}: no eval.npz there; train.py writes it at the last step")
    try:
        total = [float(arrays["doc_nats"].sum()), float(arrays["doc_tokens"].sum())]
        if not np.isfinite(total).all() or total[1] < 1:
            raise ValueError("no token was scored")
        groups = {"all": {"all": total}}
        for grouping in GROUPINGS:
            nats, tokens = arrays[f"{grouping}_nats"], arrays[f"{grouping}_tokens"]
            names = group_names(grouping, arrays, len(nats))
            found = groups[grouping] = {}
            for name, n, t in zip(names, nats, tokens, strict=True):
                sums = found.setdefault(name, [0.0, 0.0])
                sums[0] += float(n)
                sums[1] += float(t)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run['name']}/eval.npz: not what train.py writes "
                         f"({type(error).__name__}: {error})") from None
    return groups


def aggregate(found):
    """{arm: {seed: groups}} -> {grouping: {group: {"share": of all tokens, "arms": {arm: {"nats",
    "gap"}}}}}: mean nats a token over the seeds that have such tokens, and the gap to the first arm
    over the seeds in which both have the same of them (at another P other codes are shared),
    `over_seeds` each. Groups without tokens are left out."""
    first_arm = next(iter(found))
    result = {}
    for grouping in ("all", *GROUPINGS):
        result[grouping] = {}
        for name in names_in(found, grouping):
            means, shares = {arm: {} for arm in found}, []
            for arm, seeds in found.items():
                for seed, groups in seeds.items():
                    nats, tokens = groups[grouping].get(name, (0.0, 0.0))
                    shares.append(tokens / groups["all"]["all"][1])
                    if tokens:
                        means[arm][seed] = nats / tokens
            if not any(shares):
                continue
            arms = {}
            for arm, by_seed in means.items():
                common = [seed for seed in sorted(by_seed.keys() & means[first_arm].keys())
                          if found[arm][seed][grouping][name][1]
                          == found[first_arm][seed][grouping][name][1]]
                gaps = [by_seed[seed] - means[first_arm][seed] for seed in common]
                arms[arm] = {"nats": over_seeds(list(by_seed.values())),
                             "gap": over_seeds(gaps) if arm != first_arm else None}
            result[grouping][name] = {"share": float(np.mean(shares)), "arms": arms}
    return result


def over_seeds(values):
    """Numbers, one per seed -> {"mean", "sd", "low", "high"} with Student's 95 % interval, the
    last three None for one seed; None for none."""
    if not values:
        return None
    numbers = summary(values)
    low, high = numbers["interval"] or (None, None)
    return {"mean": numbers["mean"], "sd": numbers["sd"], "low": low, "high": high}


def names_in(found, grouping):
    """What groups of one grouping any run has, in order of appearance."""
    names = {}
    for seeds in found.values():
        for groups in seeds.values():
            names |= dict.fromkeys(groups[grouping])
    return list(names)


def left_out(found, result):
    """A sentence on the groups that no token falls into; empty if there are none."""
    empty = []
    for grouping in GROUPINGS:
        missing = [name for name in names_in(found, grouping) if name not in result[grouping]]
        if missing:
            empty.append(f"{GROUPINGS[grouping]}: {', '.join(missing)}")
    return f"No token of the validation text falls under {'; '.join(empty)}." if empty else ""


def main(args):
    runs, found = comparable([read_run(path) for path in args.runs], args.tuned), {}
    for run in runs:
        found.setdefault(arm_of(run), {})[run["header"]["config"]["seed"]] = read_groups(run)
        run["step"] = max((record["step"] for record in run["vals"]), default=0)
    result = aggregate(found)
    text = tables(found, result)
    save(args, text, {"runs": about(runs), "groups": result}, draw(list(found), result))


def tables(found, result):
    """The page's texts: a table a grouping."""
    arms = list(found)
    everything = result["all"]["all"]["arms"]
    text = ["Mean nats per token over the whole validation text, by the input token, the one just "
            "before what is predicted; mean ± sd over seeds. Exploratory: many groups, and no "
            "correction for that. No gap where two arms have other tokens in a group. All tokens: "
            + "; ".join(f"{arm} {pm(everything[arm]['nats'])}" for arm in arms) + "."]
    for grouping, title in GROUPINGS.items():
        rows, gaps = [], []
        for name, numbers in result[grouping].items():
            share = f"{100 * numbers['share']:.2f}"
            rows.append([name, share, *(pm(numbers["arms"][arm]["nats"], 3) for arm in arms)])
            cells = []
            for arm in arms[1:]:
                gap = numbers["arms"][arm]["gap"]
                cell = pm(gap, 3, "+")
                if gap and gap["sd"] is not None:
                    cell += f" {bracket((gap['low'], gap['high']), 3)}"
                cells.append(cell)
            gaps.append([name, share, *cells])
        head = [title, "tokens (%)"]
        text += [f"By the input token's {title}:", markdown_table([*head, *arms], rows)]
        if len(arms) > 1:
            text += [f"The same, minus {arms[0]}'s, paired by seed; 95 % Student intervals over "
                     "seeds:", markdown_table([*head, *arms[1:]], gaps)]
    empty = left_out(found, result)
    return text + [empty] if empty else text


def draw(arms, result):
    """The picture: the gap to the first arm in each group; of one arm alone, its nats."""
    what = "gap" if len(arms) > 1 else "nats"
    figure, axes = panels(len(GROUPINGS), 4.6, 5)
    for ax, (grouping, title) in zip(axes, GROUPINGS.items()):
        names = list(result[grouping])
        shown = arms[1:] if len(arms) > 1 else arms
        line = "" if grouping in ("script", "shared") else None  # these have no order
        for i, arm in enumerate(shown):
            x, middle, low, high = [], [], [], []
            for place, name in enumerate(names):
                numbers = result[grouping][name]["arms"][arm][what]
                if numbers is None:
                    continue
                sd = numbers["sd"] or 0.0
                x.append(place + (i - (len(shown) - 1) / 2) * 0.06)
                middle.append(numbers["mean"])
                low.append(numbers["mean"] - sd)
                high.append(numbers["mean"] + sd)
            draw_bars(ax, arm, x, middle, low, high, line)
        if what == "gap":
            ax.axhline(0, color="0.5", lw=0.8)
        ax.set(title=title, xticks=range(len(names)))
        ax.set_xticklabels(names, rotation=60, ha="right", fontsize=8)
    label = f"nats per token minus {arms[0]}'s" if what == "gap" else "nats per token"
    axes[0].set_ylabel(f"{label} (bars: sd over seeds)")
    axes[0].legend(fontsize=8)
    return figure
