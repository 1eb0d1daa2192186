"""Trained checkpoints -> text.

    python sample.py                       # what two models noticed of a word they have never seen
    python sample.py out/tiny-kron-s1 out/tiny-bpe_untied-s1             # the same of these two
    python sample.py --interactive                                       # your own prompts
    python sample.py out/tiny-kron-s1 --prompt="Return the length of" --temperature=0.8
    python sample.py results/demo --prompt="Return the"                # every .pt file in a folder

Without a run it takes the newest pair under out/, else two checkpoints that the repository carries.
"""
import itertools
import math
import re
import shutil
import textwrap
from pathlib import Path

import torch

from lib.config import ROOT
from lib.errors import InputError, Parser, run, whole_number
from lib.generation import continue_text
from lib.results import find_runs
from lib.run_folder import load_model
from probes.echo import echo_nats, read_prompts
from probes.shared import DEVICE

OWN_WORDS = re.compile(r"\{([^{|}]+)\|([^{|}]+)\}")  # {odd|usual} in a prompt
DEMO = ROOT / "results" / "demo"  # the checkpoints that the repository carries

EXPLAINED = """
Each prompt has a misspelled or made-up word, and ends where it could be said again. Small models
seldom say it; above a perplexity of about 60 their text is not worth reading. The bars show what
they noticed: how many times likelier the word is there because the prompt had it and not the clean
word, and beside it the clean word likewise. Six # are a nat, which is a factor of 2.7; a bar that
ends in > is longer.
"""


def checkpoints(path):
    """The .pt files of a folder that is no run, else the path itself."""
    files = sorted(Path(path).glob("*.pt"))
    return [path] if not files or (Path(path) / "ckpt.pt") in files else files


def demo_runs():
    """The newest kron and the newest learned table under out/, untied and of one dataset, size,
    number of steps and seed; else the two that the repository carries. [path, path]."""
    runs = [run for run in find_runs(["out"], []) if Path(run["name"], "ckpt.pt").is_file()]
    runs.sort(key=lambda run: Path(run["name"], "ckpt.pt").stat().st_mtime, reverse=True)
    pairs = {}  # {what a pair shares: {code: folder}}
    for run in runs:
        config = run["header"]["config"]
        shared = [config[k] for k in ("dataset", "max_steps", "n_layer", "n_embd", "seed", "head")]
        pair = pairs.setdefault(str([run["header"]["data"], *shared]), {})
        pair.setdefault(config["code"], run["name"])
        if config["head"] == "table" and {"kron", "learned"} <= pair.keys():
            print("the newest pair under out/")
            return [pair["kron"], pair["learned"]]
    print("two checkpoints that come with the repository; your own are shown once out/ has some")
    return sorted(DEMO.glob("*.pt"))


def load_models(paths, device, quiet=False):
    """Checkpoints -> [(name, model, tokenizer), ...]. Prints which each is, unless `quiet`."""
    models = []
    for path in map(Path, paths):
        model, tok, checkpoint = load_model(path, device)
        config = checkpoint["config"]
        models.append((path.stem if path.is_file() else path.name, model, tok))
        if not quiet:
            print(f"  {models[-1][0]}: {config['arm']}, step {checkpoint['step']:,} of "
                  f"{config['max_steps']:,} on {config['dataset']}, "
                  f"perplexity {math.exp(checkpoint['best'][0]):.0f}")
    return models


def show_texts(models, prompt, seed, how):
    """A prompt's continuation by each model, side by side; by one alone, after the prompt. how:
    arguments of `generate`. InputError if the prompt is too long."""
    texts = []
    for name, model, tok in models:
        ids = tok.encode(prompt) or [tok.eot]  # an empty prompt begins a document
        if len(ids) > model.config.block_size:
            raise InputError(f"the prompt has {len(ids):,} tokens, the context of {name} is "
                             f"{model.config.block_size:,}")
        text, = continue_text(model, tok, torch.tensor([ids], device=model.device), seed, **how)
        # newlines alone would scroll the screen and show nothing
        texts.append((name, text if text.strip() else repr(text)[1:-1]))
    if len(texts) == 1:
        print(prompt + texts[0][1])
        return
    width = max(20, (shutil.get_terminal_size((110, 24)).columns + 3) // len(texts) - 3)
    cells = []
    for name, text in texts:
        cells.append([name, "-" * len(name)])
        for line in text.split("\n"):
            cells[-1] += textwrap.wrap(line, width) or [""]
    for row in itertools.zip_longest(*cells, fillvalue=""):
        print(" | ".join(cell.ljust(width) for cell in row).rstrip())
    print()


def bar(nats, width=24):
    """exp(nats) as text, after a bar of six # a nat that ends in > where it is cut to `width`."""
    marks, ratio = "#" * max(0, round(6 * nats)), math.exp(nats)
    if len(marks) > width:
        marks = "#" * (width - 1) + ">"
    times = f"{ratio:,.1f}x" if ratio < 100 else f"{ratio:,.0f}x"
    return f"{marks:{width}} {times:>8}"


def show_echo(models, template, clean, written):
    """A bar for each model and for the written and the clean word: `echo_nats`."""
    width = max(len(name) for name, *_ in models)
    print(f"  {'':{width}}  {written:33}  {clean} (the clean word)")
    for name, model, tok in models:
        odd = bar(echo_nats(model, tok, template, written, clean))
        usual = bar(echo_nats(model, tok, template, clean, written))
        print(f"  {name:{width}}  {odd}  {usual}")
    print()


def echo_demo(models, how, seed):
    """Four prompts of prompts/echo.tsv: the models' texts, and how much likelier a word became."""
    print(EXPLAINED)
    for i, row in enumerate(read_prompts(ROOT / "prompts" / "echo.tsv")[:4]):
        written = row["typo"] if i < 3 else row["novel"]
        prompt = row["template"].format(written, "").rstrip()
        print(f'"{prompt}"\n')
        show_texts(models, prompt, seed, how)
        show_echo(models, row["template"], row["clean"], written)
    print("The same over all of prompts/echo.tsv, with intervals: python probe.py echo RUN...\n"
          "Your own prompts: python sample.py --interactive")


def interactive(models, how, seed):
    """Prompts from standard input until it ends."""
    print("A prompt a line; Ctrl-D ends. Copying is measured where a word is {odd|usual}, as in\n"
          "Call the {fucntion|function} twice. The second time, the")
    while True:
        try:
            line = input("> ")
            words = OWN_WORDS.findall(line)
            show_texts(models, OWN_WORDS.sub(r"\1", line), seed, how)
            if len(words) == 1 and "{}" not in line:
                template = OWN_WORDS.sub("{}", line).rstrip() + " {}"
                show_echo(models, template, clean=words[0][1], written=words[0][0])
        except EOFError:
            print()
            return
        except InputError as error:
            print(error)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="folders that train.py made, checkpoint files, or "
                                                "a folder of those")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", default="")
    source.add_argument("--interactive", action="store_true", help="prompts as you type them")
    parser.add_argument("--max_new_tokens", type=whole_number, default=60)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top_p", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    if not (args.temperature == 0 or 1e-3 <= args.temperature < math.inf) or not args.top_p > 0:
        raise InputError("--temperature must be 0, or 0.001 and more, --top_p above 0")
    if not 0 <= args.seed < 2**64:
        raise InputError(f"--seed={args.seed}: must be from 0 to 2^64 - 1")
    if args.prompt != args.prompt.encode(errors="replace").decode():
        raise InputError("--prompt is not UTF-8")
    how = {key: getattr(args, key) for key in ("max_new_tokens", "temperature", "top_p")}
    given = [path for run in args.runs for path in checkpoints(run)]
    text = not args.interactive and (args.prompt or len(given) == 1)
    models = load_models(given or demo_runs(), DEVICE, quiet=bool(text and given))
    if args.interactive:
        interactive(models, how, args.seed)
    elif text:
        if len(models) > 1:
            print(f'"{args.prompt}"\n')
        show_texts(models, args.prompt, args.seed, how)
    else:
        echo_demo(models, how, args.seed)


if __name__ == "__main__":
    run(main)
