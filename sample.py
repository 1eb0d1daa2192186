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
import sys

import regex  # tiktoken's; its \w, unlike re's, has the vowel signs of Devanagari
import torch

from lib.errors import InputError, Parser, run, whole_number
from lib.show import continuation, demo_runs, echo_demo, interactive, load_models, side_by_side
from lib.tokenizer import END_OF_TEXT


def cut_out(word, prompt):
    """A word that is to be one token -> (its text in the prompt, "" if it is not there; the pieces
    of the prompt around it). Whole words, case counts; the space before a word belongs to it, as in
    GPT-2's tokens, and is in the text if one of its places has it."""
    whole = regex.compile(rf" ?(?<!\w){regex.escape(word)}(?!\w)")
    return max(whole.findall(prompt), key=len, default=""), whole.split(prompt)


def prompt_ids(model, tok, prompt, oov=None):
    """Prompt -> (1, T) ids; an empty one begins a document. With `oov`, a model that reads bytes
    reads that word as one free slot with its bytes, which a coded head can also say."""
    text, pieces = "", [prompt]
    if oov and model.transformer.wte.reads_bytes:
        text, pieces = cut_out(oov, prompt)
    model.slot = model.set_bytes(text.encode()) if text else None  # one of before is forgotten
    ids = tok.encode(pieces[0])
    for piece in pieces[1:]:
        ids += [model.slot, *tok.encode(piece)]
    return torch.tensor([ids or [tok.eot]], device=model.device)


def note(text):
    """Say something that is no sample."""
    print(f"note: {text}", file=sys.stderr)


def positive(text):
    """An argparse type: a finite number above 0. Raises ValueError."""
    if not 0 < (value := float(text)) < float("inf"):
        raise ValueError
    return value


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="folders that train.py made, or checkpoint files")
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
    demo = not args.prompt and len(args.runs) != 1
    runs = args.runs or demo_runs()
    text_only = args.runs and not demo and not args.interactive
    models, loss = load_models(runs, args.device, quiet=text_only)
    if args.interactive:
        return interactive(models, how, args.seed)
    if demo:
        return echo_demo(models, how, args.seed, loss)
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
            columns = [(name, prompt + "".join(text)) for (name, *_), text in zip(models, texts)]
            side_by_side(columns, args.oov)
            continue
        print(prompt, end="", flush=True)
        for piece in texts[0]:
            print(piece, end="", flush=True)
        print("\n" + "-" * 20 if args.num_samples > 1 else "")


if __name__ == "__main__":
    run(main)
