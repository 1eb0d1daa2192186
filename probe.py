"""What the papers measured besides the loss, on any checkpoint of this project.

    python probe.py robustness out/tiny-kron-s* out/tiny-bpe_tied-s*   # does a typo matter?
    python probe.py generation out/tiny-*             # is an odd word of the prompt said again?
    python probe.py echo out/tiny-*                   # in-context copying, in nats
    python probe.py tokens out/tiny-*                 # at which tokens is an arm better or worse?
    python probe.py layers out/tiny-*                 # what is near a word, at the input and above?
    python probe.py geometry --model=HuggingFaceTB/SmolLM-135M     # in Kronecker space, in tables?
    python probe.py norms out/tiny-*                  # how far does the input drift in training?

Seeds of an arm are averaged. Runs may differ in arm and seed alone, or in rates that a grid chose:
--tuned=results/tiny/tuning.json. Each probe prints its tables and writes out/probe-NAME.md, .json
and most a .png. Prompts are small TSV files in prompts/. `python probe.py NAME --help` says more.
"""
from lib.errors import Parser, run
from lib.tables import refuse_folder
from probes import echo, generation, geometry, layers, norms, robustness, tokens

PROBES = {"robustness": robustness, "generation": generation, "echo": echo, "tokens": tokens,
          "layers": layers, "geometry": geometry, "norms": norms}


def main():
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="probe", required=True, metavar="|".join(PROBES))
    for name, probe in PROBES.items():
        command = commands.add_parser(name, description=probe.__doc__)
        if probe is not geometry:
            command.add_argument("runs", nargs="+", metavar="RUN", help="like out/tiny-kron-s1")
            command.add_argument("--tuned", help="tuning.json: the grid that chose each setting")
        for option, how in probe.OPTIONS.items():
            command.add_argument(option, **how)
        command.add_argument("--out", default=f"out/probe-{name}", help="write OUT.md, .json, .png")
    args = parser.parse_args()
    refuse_folder(args.out)
    PROBES[args.probe].main(args)


if __name__ == "__main__":
    run(main)
