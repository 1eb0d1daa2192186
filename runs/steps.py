"""How many steps each arm may train, so that all of them end in so many minutes.

    python bench.py step configs/tiny.py configs/kron.py configs/wide.py --out=out/speed
    python -m runs.steps out/speed.json 8

Beside its steps, a run of the demo takes about 8 s to start and to be scored at its end, and for
validations the time of 30 steps and of every twentieth.
"""
import json
import statistics
import sys

from lib.errors import Parser, run


def steps_for(ms, minutes):
    """How many steps every arm has, a multiple of 10 and at least 20. ms: a step of each arm."""
    share = (60e3 * minutes - 8e3 * len(ms)) / sum(ms)  # as many steps of every arm fit
    return max(20, int(0.9 * (share - 30)) // 10 * 10)  # a tenth: machines grow slower


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("speed", help="what bench.py step --out=... wrote")
    parser.add_argument("minutes", type=float)
    args = parser.parse_args()
    with open(args.speed) as file:
        ms = [statistics.median(row["ms"]) for row in json.load(file)["result"].values()]
    steps = steps_for(ms, args.minutes)
    print(f"\n{statistics.mean(ms):.0f} ms a step here: {steps} steps an arm", file=sys.stderr)
    print(steps)


if __name__ == "__main__":
    run(main)
