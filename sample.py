"""Trained checkpoints -> text.

    python sample.py                       # what two models noticed of a word they have never seen
    python sample.py out/tiny-kron-s1 out/tiny-bpe_untied-s1             # the same of these two
    python sample.py --interactive                                       # your own prompts
    python sample.py out/tiny-kron-s1 --prompt="Return the lenght of" --temperature=0.8 --top_k=50
    python sample.py out/tiny-kron-s1 out/tiny-bpe_untied-s1 --prompt=-  # from standard input
    python sample.py out/tiny-kron-s1 --prompt="The frobnicator is" --oov=frobnicator

Without a run it takes the newest pair under out/, else two checkpoints that the repository carries.
A sample ends at <|endoftext|> or after --max_new_tokens; past the context the window slides. --oov
puts a word into one token (whole words, case counts): codes that read bytes know it by its
spelling, and where the head is coded too the model can also say it.
"""
import itertools
import json
import math
import re
import shutil
import sys
import textwrap
from pathlib import Path

import torch

from lib.config import ROOT
from lib.errors import InputError, Parser, run, whole_number
from lib.generation import cut_out, generate, prompt_ids, refuse_context
from lib.results import read_run
from lib.run_folder import load_model
from lib.tokenizer import END_OF_TEXT
from probes.echo import echo_nats, read_prompts
from probes.shared import nearest

CARRIED = ROOT / "results" / "demo"   # the checkpoints that the repository carries
READABLE = math.log(60)  # nats per token: what models of a small vocabulary say begins to read well
OWN_PROMPT = re.compile(r"\{([^{}|]+)\|([^{}|]+)\}")  # {fucntion|function}

EXPLAINED = """
Each prompt has a misspelled or made-up word, and ends where it could be said again. Models as small
as these seldom say it. What they have noticed is in the bars, the echo of the word: how many times
likelier it is there because the prompt had it and not the clean word in its place; beside it the
clean word, likewise. Six # are a nat, which is a factor of 2.7; a bar that ends in > is longer.
"""


# ---- which models ------------------------------------------------------------------------------

def checkpoints(path):
    """What a path on the command line stands for: a folder of .pt files that is no run, for each of
    them; all else for itself."""
    files = sorted(Path(path).glob("*.pt"))
    return [path] if not files or (Path(path) / "ckpt.pt") in files else files


def demo_runs():
    """The newest kron and the newest learned table under out/, untied and of one dataset, size,
    number of steps and seed; else the two that the repository carries. [path, path]."""
    groups = {}  # {what a pair shares: {code: folder}}, newest first
    paths = sorted(Path("out").glob("*/ckpt.pt"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in paths:
        try:
            header = read_run(path.parent)["header"]
        except InputError:
            continue  # not a run of ours
        config = header["config"]
        if config.get("head") == "table":
            shared = [config.get(k) for k in ("dataset", "max_steps", "n_layer", "n_embd", "seed")]
            group = groups.setdefault(json.dumps([header["data"], *shared]), {})
            group.setdefault(config.get("code"), path.parent)
    for group in groups.values():
        if {"kron", "learned"} <= group.keys():
            print("the newest pair under out/")
            return [group["kron"], group["learned"]]
    pair = [CARRIED / "kron.pt", CARRIED / "bpe_untied.pt"]
    if not all(path.is_file() for path in pair):
        raise InputError("no kron beside a learned table under out/, and no results/demo/*.pt; "
                         "bash runs/demo.sh trains such a pair")
    print("two checkpoints that come with the repository; your own are shown once out/ has some")
    return pair


def load_models(paths, device, quiet=False):
    """Checkpoints -> ([(name, model, tokenizer), ...], the highest of their best validation
    losses). Prints which each is, and at what step, unless `quiet`."""
    models, losses = [], []
    for path in map(Path, paths):
        model, tok, checkpoint = load_model(path, device)
        config, (loss, _) = checkpoint["config"], checkpoint["best"]
        refuse_context(model, path)
        name = path.stem if path.is_file() else path.name
        if not quiet:
            print(f"  {name}: {config.get('arm')}, step {checkpoint['step']:,} of "
                  f"{config['max_steps']:,} on {config['dataset']}, perplexity "
                  f"{math.exp(loss):.0f}")
        models.append((name, model, tok))
        losses.append(loss)
    return models, max(losses)


# ---- text --------------------------------------------------------------------------------------

def continuation(model, tok, ids, seed, word="", **how):
    """Continue ids (1, T) up to <|endoftext|>; yields text as it comes, whole characters only.
    `word`: what the model's slot stands for, if it has one. `how`: arguments of `generate`."""
    generator = torch.Generator(ids.device).manual_seed(seed)
    held = []  # ids that end within a character
    for next_id in generate(model, ids, generator=generator, **how):
        if next_id == tok.eot:
            break
        if next_id == model.slot:  # it has no bytes in the tokenizer
            yield tok.decode(held) + word
            held.clear()
            continue
        held.append(next_id.item())
        text = tok.decode(held)
        if not text.endswith("\ufffd"):
            yield text
            held.clear()
    yield tok.decode(held)


def visible(text):
    """A text, escaped if it is white space alone, which would scroll a screen and show nothing."""
    return text if text.strip() else repr(text)[1:-1]


def stream(pieces):
    """Print text as it comes; of white space alone, at the end, what is `visible`."""
    held, begun = "", False
    for piece in pieces:
        held += piece
        if begun or held.strip():
            print(held, end="", flush=True)
            held, begun = "", True
    print(visible(held))


def highlight(text, word):
    """The text with every `word` in reverse video, where standard output is a terminal."""
    if word and sys.stdout.isatty():
        return text.replace(word, f"\033[7m{word}\033[0m")
    return text


def side_by_side(columns, word=None):
    """Print texts in columns: [(title, text), ...]."""
    bars = 3 * (len(columns) - 1)
    width = max(20, (shutil.get_terminal_size((110, 24)).columns - bars) // len(columns))
    cells = []
    for title, text in columns:
        cells.append([title, "-" * len(title)])
        for line in text.split("\n"):
            cells[-1] += textwrap.wrap(line, width) or [""]
    for row in itertools.zip_longest(*cells, fillvalue=""):
        print(highlight(" | ".join(cell.ljust(width) for cell in row).rstrip(), word))
    print()


def show_texts(models, prompt, word, seed, how):
    """A prompt's continuation by each model, side by side."""
    columns = []
    for name, model, tok in models:
        text = "".join(continuation(model, tok, prompt_ids(model, tok, prompt), seed, **how))
        columns.append((name, visible(text)))
    side_by_side(columns, word)


# ---- the copying demo --------------------------------------------------------------------------

def bar(nats, width=24):
    """A bar of six # a nat, as text of a fixed width; nothing below 0, and > at the end of what is
    longer than that."""
    marks = "#" * max(0, round(6 * nats))
    return marks.ljust(width) if len(marks) <= width else "#" * (width - 1) + ">"


def times(nats):
    """exp(nats) as text: how many times likelier."""
    ratio = math.exp(nats)
    return f"{ratio:,.1f}x" if ratio < 100 else f"{ratio:,.0f}x"


def show_echo(models, template, clean, written):
    """Per model: how many times likelier the written and the clean word are at the template's
    second {} when they are at its first."""
    width = max(len(name) for name, *_ in models)
    print(f"  {'':{width}}  {written:33}  {clean} (the clean word)")
    for name, model, tok in models:
        cells = []
        for word, other in ((written, clean), (clean, written)):
            nats = echo_nats(model, tok, template, word, other)
            cells.append(f"{bar(nats)} {times(nats):>8}")
        print(f"  {name:{width}}  {'  '.join(cells)}".rstrip())
    print()


@torch.no_grad()
def neighbours(model, tok, word, k):
    """The k tokens nearest to `word`, one token, at the input: [(text, cosine)], the mean of all
    tokens taken off."""
    ids = torch.arange(tok.vocab_size, device=model.device)
    vectors, own = model.transformer.wte(ids).float(), tok.encode(word)
    (near,), _ = nearest(vectors[own], own, lambda i: vectors[i], ids, k, vectors.mean(0))
    return [(tok.decode([id]), cosine) for id, cosine in near]


def show_neighbours(models, words=("compute", "returns", "list", "time")):
    """What is near a word at each model's input: the first of `words` that is one token."""
    single = [f" {word}" for word in words
              if all(len(tok.encode(f" {word}")) == 1 for _, _, tok in models)]
    if not single:
        return
    print(f'nearest to "{single[0]}" at the input (cosine, the mean of all tokens taken off; where '
          "a code reads bytes,\nwords of like spelling are near before any training):")
    width = max(len(name) for name, *_ in models)
    for name, model, tok in models:
        near = [f"{text!r} {cosine:.2f}" for text, cosine in neighbours(model, tok, single[0], 5)]
        print(f"  {name:{width}}  {'  '.join(near)}")
    print()


def echo_demo(models, how, seed, loss):
    """Four prompts of prompts/echo.tsv: the models' texts, the echoes, what is near a word.

    models: [(name, model, tokenizer), ...]; how: arguments of `generate`; loss: the highest
    validation loss of the models, in nats. Where it is too high for text that is worth reading,
    only what is measured is shown.
    """
    print(EXPLAINED)
    for i, row in enumerate(read_prompts(ROOT / "prompts" / "echo.tsv")[:4]):
        written = row["typo"] if i < 3 else row["novel"]
        start, between, _ = row["template"].split("{}")
        prompt = (start + written + between).rstrip()
        print(f'"{highlight(prompt, written)}"\n')
        if loss < READABLE:
            show_texts(models, prompt, written, seed, how)
        show_echo(models, row["template"], row["clean"], written)
    show_neighbours(models)
    if loss >= READABLE:
        print(f"Their text is left out: it is not worth reading before a perplexity of about "
              f"{math.exp(READABLE):.0f}.\npython sample.py RUN --prompt=... shows it.")
    print("The same over all of prompts/echo.tsv, with intervals: python probe.py echo RUN...\n"
          "Your own prompts: python sample.py --interactive")


def interactive(models, how, seed):
    """Prompts from standard input until it ends, each continued side by side; {fucntion|function}
    in one measures the echo of fucntion against function."""
    print("A prompt a line; Ctrl-D ends. An echo is measured where a word is {odd|usual}, as in\n"
          "Call the {fucntion|function} twice. The second time, the")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        pairs = OWN_PROMPT.findall(line)
        prompt = OWN_PROMPT.sub(r"\1", line)
        longest = min(model.config.block_size for _, model, _ in models)
        if any(len(tok.encode(prompt)) + 20 > longest for _, _, tok in models):
            print(f"too long: the context is {longest} tokens")
            continue
        word = pairs[0][0] if len(pairs) == 1 and "{}" not in line else None
        show_texts(models, prompt, word, seed, how)
        if word:
            template = OWN_PROMPT.sub("{}", line).rstrip() + " {}"
            show_echo(models, template, clean=pairs[0][1], written=word)


# ---- the command -------------------------------------------------------------------------------

def note(text):
    """Say something that is no sample."""
    print(f"note: {text}", file=sys.stderr)


def positive(text):
    """An argparse type: a finite number above 0. Raises ValueError."""
    if not 0 < (value := float(text)) < float("inf"):
        raise ValueError
    return value


def read_prompt(args):
    """(The prompt, the text in it that --oov makes one token, "" without). InputError if they do
    not go together."""
    try:
        prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
        f"{prompt}{args.oov}".encode()
    except UnicodeError as error:
        raise InputError(f"the prompt is not UTF-8 ({error})") from None
    if END_OF_TEXT in prompt:
        note(f"{END_OF_TEXT} is ordinary text in a prompt; an empty prompt begins a document")
    word = cut_out(args.oov, prompt)[0] if args.oov else ""
    if args.oov and not word:
        raise InputError(f"--oov={args.oov}: the prompt does not have that word, whole and case "
                         "and all")
    return prompt, word


def sample(models, prompt, word, args, how):
    """Print the continuations of a prompt, --num_samples of each model."""
    inputs = []
    for name, model, tok in models:
        wte, seen = model.transformer.wte, word.encode()
        P = getattr(wte, "pos_dim", len(seen))  # codes without one cut nothing
        if word and not wte.reads_bytes:
            note(f"{name} reads no bytes; it reads '{args.oov}' as its usual tokens")
        elif len(seen) > P:
            note(f"{name} sees the first {P} bytes of '{word}' alone, "
                 f"'{seen[:P].decode(errors='replace')}'")
        inputs.append(prompt_ids(model, tok, prompt, args.oov))
        if inputs[-1].size(1) > model.config.block_size:
            raise InputError(f"the prompt has {inputs[-1].size(1):,} tokens, "
                             f"the context of {name} is {model.config.block_size:,}")
    for seed in range(args.seed, args.seed + args.num_samples):
        texts = [continuation(model, tok, ids, seed, word, **how)
                 for (_, model, tok), ids in zip(models, inputs)]
        if len(models) > 1:
            columns = [(name, prompt + visible("".join(text)))
                       for (name, *_), text in zip(models, texts)]
            side_by_side(columns, args.oov)
            continue
        print(prompt, end="", flush=True)
        stream(texts[0])
        if args.num_samples > 1:
            print("-" * 20)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="folders that train.py made, checkpoint files, or "
                                                "a folder of those")
    parser.add_argument("--prompt", default="", help="- reads standard input")
    parser.add_argument("--interactive", action="store_true", help="prompts as you type them")
    parser.add_argument("--oov", help="a word of the prompt that becomes one slot with its bytes")
    parser.add_argument("--max_new_tokens", type=whole_number, default=60)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top_k", type=whole_number)
    parser.add_argument("--top_p", type=positive, default=0.9)
    parser.add_argument("--num_samples", type=whole_number, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if not 0 <= args.temperature < float("inf"):
        raise InputError(f"--temperature={args.temperature}: must be 0 or more")
    if not 0 <= args.seed < 2**62:
        raise InputError(f"--seed={args.seed}: must be from 0 to 2^62")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device=cuda: no CUDA device is here")
    if args.oov is not None and not (args.oov.strip() and args.prompt):
        raise InputError(f"--oov={args.oov}: it takes a word, and a --prompt that has it")
    how = {key: getattr(args, key) for key in ("max_new_tokens", "temperature", "top_k", "top_p")}
    given = [path for run in args.runs for path in checkpoints(run)]
    demo = not args.prompt and len(given) != 1
    text_only = given and not demo and not args.interactive
    models, loss = load_models(given or demo_runs(), args.device, quiet=text_only)
    if args.interactive:
        interactive(models, how, args.seed)
    elif demo:
        echo_demo(models, how, args.seed, loss)
    else:
        prompt, word = read_prompt(args)
        sample(models, prompt, word, args, how)


if __name__ == "__main__":
    run(main)
