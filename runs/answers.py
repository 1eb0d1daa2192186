"""Writes what came out into the README, between marks there: the answers of results/tiny.json, and
losses of results/tiny/tuning.json.

    python -m runs.answers
"""
import json
import re

from compare import CONTRASTS
from lib.common import run, write_atomic
from lib.config import ROOT


def answer(contrast):
    """A planned contrast of a comparison's json in a few words: answer, gap, interval."""
    if not contrast["gap"] or contrast["answer"].startswith("not known:"):
        return "not known yet"
    low, high = contrast["interval"]
    return f"{contrast['answer']}: {contrast['gap']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def lowest(grid, usual):
    """The lowest loss among a grid's points, in nats; `usual`: among those of natural speed and
    scale."""
    losses = [point["val_loss"] for point in grid if point["val_loss"] is not None
              and not (usual and (point["embed_std"] or point["embed_lr_mult"] != 1))]
    return f"{min(losses):.2f}"


def written(text, results, tuning):
    """The text with the numbers of a comparison's and a grid's json between its marks:
    <!-- answer:ARM - BASE -->, <!-- tuned:ARM -->, <!-- usual:ARM -->, each up to <!-- / -->."""
    said = {f"answer:{arm} - {base}": answer(contrast)
            for (_, arm, base, _), contrast in zip(CONTRASTS, results["planned"])}
    for arm, chosen in tuning["arms"].items():
        for what in ("tuned", "usual"):
            said[f"{what}:{arm}"] = lowest(chosen["grid"], what == "usual")
    return re.sub("(<!-- (.+?:.+?) -->).*?(<!-- / -->)", lambda m: m[1] + said[m[2]] + m[3], text)


def main():
    page, results = ROOT / "README.md", ROOT / "results"
    found = [json.loads((results / name).read_text()) for name in ("tiny.json", "tiny/tuning.json")]
    text = written(page.read_text(), *found)
    write_atomic(page, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run(main)
