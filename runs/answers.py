"""Writes the answers of results/tiny.json into the README: what stands between answer marks there.

    python -m runs.answers
"""
import json
import re

from compare import CONTRASTS
from lib.common import run, write_atomic
from lib.config import ROOT

MARKED = re.compile(r"(<!-- answer:(.+?) -->).*?(<!-- /answer -->)")


def say(contrast):
    """A planned contrast of a comparison's json in a few words: answer, gap, interval."""
    if not contrast["gap"] or contrast["answer"].startswith("not known:"):
        return "not known yet"
    low, high = contrast["interval"]
    return f"{contrast['answer']}: {contrast['gap']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def answered(text, results):
    """The text with the answers of a comparison's json between its marks."""
    said = {f"{arm} - {base}": say(contrast)
            for (_, arm, base, _), contrast in zip(CONTRASTS, results["planned"])}
    return MARKED.sub(lambda mark: mark[1] + said[mark[2]] + mark[3], text)


def main():
    page = ROOT / "README.md"
    results = json.loads((ROOT / "results" / "tiny.json").read_text())
    text = answered(page.read_text(), results)
    write_atomic(page, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run(main)
