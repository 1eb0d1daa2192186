"""Writes what came out, results/tiny.json and results/probe-echo.json, between marks of the README.

    python -m runs.answers
"""
import json
import re
from collections import Counter

import numpy as np

from compare import CONTRASTS
from lib.errors import run, write_atomic
from lib.config import ROOT
from lib.page import numbers, table_needed


def gap(contrast):
    """A contrast's gap in nats and its interval, if it has one: -0.085 [-0.110, -0.060]."""
    text = f"{contrast['gap']['mean']:+.3f}"
    if not contrast["interval"]:
        return text
    low, high = contrast["interval"]
    return f"{text} [{low:+.3f}, {high:+.3f}]"


def answer(contrast):
    """A planned contrast in a few words: answer, gap, interval."""
    if not contrast["gap"] or contrast["answer"].startswith("not known:"):
        return "not known yet"
    return f"{contrast['answer']}: {gap(contrast)}"


def own_seeds(contrast):
    """A contrast's Student interval over its own seeds, which takes no other arm's spread."""
    if not contrast["gap"] or not contrast["gap"]["interval"]:
        return "-"
    return "[{:+.3f}, {:+.3f}]".format(*contrast["gap"]["interval"])


def state(planned):
    """How many of the planned contrasts were run with which seeds."""
    seeds = Counter(tuple(c["seeds"]) for c in planned if c["gap"])
    said = [f"{count} with seed{'s' if len(those) > 1 else ''} {numbers(those)}"
            for those, count in seeds.most_common()]
    lacking = len(planned) - seeds.total()
    return "; ".join(said + ([f"{lacking} not yet"] if lacking else []))


def horizons(results):
    """{(arm, base): its gap at each number of steps, over equal seeds}, as text."""
    said, seeds = {}, {}
    for c in results["equal_seeds"]:
        said.setdefault((c["arm"], c["base"]), []).append(f"{gap(c)} at {c['steps']:,}")
        seeds[c["arm"], c["base"]] = numbers(c["seeds"])
    return {pair: f"{' and '.join(parts)} steps (seed {seeds[pair]})"
            for pair, parts in said.items()}


def written(text, results, echo):
    """The text with the numbers of a comparison's json and of the echo probe's between its marks,
    each up to <!-- / -->: <!-- answer:ARM - BASE -->, <!-- own:ARM - BASE -->, <!-- own:hold 0 -->,
    <!-- other:ARM - BASE -->, <!-- horizon:ARM - BASE -->, <!-- state:planned -->,
    <!-- needed:table --> and <!-- echo:ARM KIND -->. KeyError for what is not in them."""
    said = {"state:planned": state(results["planned"]),
            "needed:table": table_needed(results["planned"])}
    both = [f"{c['arm']} - {c['base']}" for c in results["planned"]
            if c["gap"] and c["gap"]["interval"] and np.prod(c["gap"]["interval"]) <= 0]
    said["own:hold 0"] = ", ".join(both) or "nowhere"
    for (_, arm, base, _), contrast in zip(CONTRASTS, results["planned"]):
        said[f"answer:{arm} - {base}"] = answer(contrast)
        said[f"own:{arm} - {base}"] = own_seeds(contrast)
    for contrast in results["exploratory"]:
        said[f"other:{contrast['arm']} - {contrast['base']}"] = gap(contrast)
    for (arm, base), gaps in horizons(results).items():
        said[f"horizon:{arm} - {base}"] = gaps
    for arm, kinds in echo["echo"].items():
        for kind, c in kinds.items():
            if c["gap_interval"]:
                said[f"echo:{arm} {kind}"] = gap({"gap": {"mean": c["gap"]},
                                                  "interval": c["gap_interval"]})
    return re.sub("(<!-- (.+?:.+?) -->).*?(<!-- / -->)", lambda m: m[1] + said[m[2]] + m[3], text)


def main():
    page = ROOT / "README.md"
    found = [json.loads((ROOT / "results" / f"{name}.json").read_text())
             for name in ("tiny", "probe-echo")]
    text = written(page.read_text(), *found)
    write_atomic(page, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run(main)
