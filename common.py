"""What every script shares: how bad input ends, and how a file is written whole or not at all.

    if __name__ == "__main__":
        run(main)
"""
import argparse
import json
import os
import sys

# The config keys that make an arm. Runs that are compared may differ in these, in the seed and in the run's name.
ARM_KEYS = ("code", "lift", "tie", "pos_dim", "embed_std", "embed_lr_mult", "code_form")


class InputError(Exception):
    """Something the user gave is wrong. The message is one line that says what, and what is near it."""


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations and without the usage dump: a wrong option is one line."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        raise InputError(f"{message} (--help shows the options)")


def whole_number(text):
    """An argparse type: a positive whole number, also written 10e6. Raises ValueError."""
    if not 1 <= (value := float(text)) < 2**63 or value != int(value):
        raise ValueError
    return int(value)


def run(main):
    """Call `main()`. Bad input ends in one line on standard error and exit status 2, Ctrl-C in 130; a bug keeps its traceback."""
    try:
        status = main()
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` closed our standard output
            os._exit(1)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # under torchrun one rank of each machine speaks
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)


def write_atomic(path, write):
    """Write a file whole or not at all: `write(file)` fills a temporary neighbour, which is flushed to the disk and renamed."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        os.fsync(folder)  # the rename itself
        os.close(folder)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def read_log(path):
    """log.jsonl -> (its records, how many lines were dropped): a kill can leave half a line.
    A record is a dict with a step, or the header."""
    records, dropped = [], 0
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict) and isinstance(record.get("step", 0), int):
                records.append(record)
            else:
                dropped += 1
    return records, dropped


def markdown_table(head, rows):
    """Rows of cells -> a GitHub table, padded so that it reads well in a terminal too."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = ["| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths)) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
