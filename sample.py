"""Trained checkpoints -> text.

    python sample.py                                                   # typo echo: the newest kron and bpe runs side by side
    python sample.py out/tiny-kron-s1 --prompt="Return the lenght of" --max_new_tokens=60 --temperature=0.8 --top_k=50
    python sample.py out/tiny-kron-s1 out/tiny-bpe_tied-s1             # typo echo of these two
    python sample.py out/tiny-kron-s1 out/tiny-bpe_tied-s1 --prompt=-  # the prompt from standard input, two arms side by side
    python sample.py out/tiny-kron-s1 --prompt="The frobnicator is" --oov=frobnicator      # the word's bytes in one slot (kron)

A sample ends at <|endoftext|> or after --max_new_tokens; past the model's context the window slides.
"""
import json
import shutil
import sys
import textwrap
from pathlib import Path

import torch

from lib.common import InputError, Parser, run, whole_number
from lib.checkpoint import load_model

# (clean, misspelled, the misspelling): a model that sees spelling can say the misspelled word again.
TYPO_PROMPTS = [("Return the length of the sequence. The length", "Return the lenght of the sequence. The lenght", "lenght"),
                ("The argument must be an integer. If the argument",
                 "The arguement must be an integer. If the arguement", "arguement"),
                ("Write the buffer to the file. The buffer", "Write the bufffer to the file. The bufffer", "bufffer")]


def prompt_ids(model, tok, prompt, oov=None):
    """Prompt -> (1, T) ids. With `oov`, a kron model reads each " word" as one free slot that is given the word's bytes."""
    pieces, slot = [prompt], None
    if oov and model.config.code == "kron":
        word = f" {oov}" if f" {oov}" in prompt else oov  # a space belongs to the word after it, as in GPT-2's tokens
        pieces, slot = prompt.split(word), model.config.vocab_size
        model.transformer.wte.set_bytes(slot, word.encode())
    ids = []
    for i, piece in enumerate(pieces):
        ids += ([slot] if i else []) + tok.encode(piece)
    return torch.tensor([ids or [tok.eot]], device=model.device)


def continuation(model, tok, ids, seed, **how):
    """Continue ids (1, T) up to <|endoftext|>; yields text as it comes, whole characters only.
    `how`: arguments of `GPT.generate`."""
    generator = torch.Generator(ids.device).manual_seed(seed)
    held = []  # ids that end within a character
    for next_id in model.generate(ids, generator=generator, **how):
        if next_id.item() == tok.eot:
            break
        held.append(next_id.item())
        if not (text := tok.decode(held)).endswith("\ufffd"):
            yield text
            held.clear()
    yield tok.decode(held)


def highlight(text, word):
    """The text with every `word` in reverse video, where standard output is a terminal."""
    return text.replace(word, f"\033[7m{word}\033[0m") if word and sys.stdout.isatty() else text


def side_by_side(columns, word=None):
    """Print texts in columns: [(title, text), ...]."""
    width = max(20, (shutil.get_terminal_size((110, 24)).columns - 3 * (len(columns) - 1)) // len(columns))
    cells = [[title, "-" * len(title)] + [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]]
             for title, text in columns]
    for i in range(max(map(len, cells))):
        row = [(cell[i] if i < len(cell) else "").ljust(width) for cell in cells]
        print(highlight(" | ".join(row).rstrip(), word))
    print()


def newest(code):
    """The most recently saved run under out/ whose input code is `code`; None if there is none."""
    for path in sorted(Path("out").glob("*/ckpt.pt"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            with open(path.parent / "log.jsonl") as file:
                if json.loads(file.readline())["config"]["code"] == code:
                    return path.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a run of ours
    return None


def typo_echo(models, seed, how):
    """The demo: clean and misspelled prompts to several models, the misspelling highlighted where it comes back."""
    for prompts in TYPO_PROMPTS:
        word = prompts[2]
        for prompt in prompts[:2]:
            print(f'prompt: "{highlight(prompt, word)}"')
            side_by_side([(name, "".join(continuation(model, tok, prompt_ids(model, tok, prompt), seed, **how)))
                          for name, model, tok in models], word)
    print("A misspelling that comes back is highlighted in a terminal; python probe.py generation counts it.")


def positive(text):
    """An argparse type: a finite number above 0. Raises ValueError."""
    if not 0 < (value := float(text)) < float("inf"):
        raise ValueError
    return value


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="folders that train.py made, or checkpoint files")
    parser.add_argument("--prompt", default="", help="- reads standard input")
    parser.add_argument("--oov", help="a word of the prompt that becomes one slot with its bytes")
    parser.add_argument("--max_new_tokens", type=whole_number, default=60)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy")
    parser.add_argument("--top_k", type=whole_number)
    parser.add_argument("--top_p", type=positive, default=0.9)
    parser.add_argument("--num_samples", type=whole_number, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if not 0 <= args.temperature < float("inf"):
        raise InputError(f"--temperature={args.temperature}: must be 0 or more")
    if not 0 <= args.seed < 2**62:
        raise InputError(f"--seed={args.seed}: must be from 0 to 2^62")
    how = dict(max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    runs = [Path(r) for r in args.runs] or [newest("kron"), newest("learned")]
    if None in runs:
        raise InputError("no trained kron and bpe runs under out/; "
                         "python train.py configs/tiny.py configs/kron.py makes one, or name a run")
    models = [(r.name, *load_model(r, args.device)[:2]) for r in runs]
    if len(models) > 1 and not args.prompt:
        return typo_echo(models, args.seed, how)
    try:
        prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
        f"{prompt}{args.oov}".encode()
    except UnicodeError as error:
        raise InputError(f"the prompt is not UTF-8 ({error})") from None
    if args.oov and args.oov not in prompt:
        raise InputError(f"--oov={args.oov}: the prompt does not have that word")
    inputs = []
    for name, model, tok in models:
        if args.oov and model.config.code != "kron":
            print(f"note: {name} is no kron run; it reads '{args.oov}' as its usual tokens", file=sys.stderr)
        inputs.append(prompt_ids(model, tok, prompt, args.oov))
        if inputs[-1].size(1) > model.config.block_size:
            raise InputError(f"the prompt has {inputs[-1].size(1):,} tokens, "
                             f"the context of {name} is {model.config.block_size:,}")
    for seed in range(args.seed, args.seed + args.num_samples):
        texts = [continuation(model, tok, ids, seed, **how) for (_, model, tok), ids in zip(models, inputs)]
        if len(models) > 1:
            side_by_side([(name, prompt + "".join(text)) for (name, *_), text in zip(models, texts)], args.oov)
            continue
        print(prompt, end="", flush=True)
        for piece in texts[0]:
            print(piece, end="", flush=True)
        print("\n" + "-" * 20 if args.num_samples > 1 else "")


if __name__ == "__main__":
    run(main)
