"""What every script shares: how bad input ends, and how a file is written whole or not at all.

    if __name__ == "__main__":
        run(main)
"""
import argparse
import contextlib
import os
import shlex
import sys
from pathlib import Path


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what, and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations and without the usage dump: a wrong option is one line."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise InputError(f"{message} (--help shows the options)")


def whole_number(text):
    """An argparse type: a positive whole number, also written 10e6. Raises ValueError."""
    if not 1 <= (value := float(text)) < 2**63 or value != int(value):
        raise ValueError
    return int(value)


# What a file that is damaged, or made by hand, leads to.
DAMAGE = (KeyError, ValueError, TypeError, RuntimeError, AttributeError)


@contextlib.contextmanager
def one_line(says, kind=OSError, of=Exception):
    """Whatever a library raises, or errors `of` some classes, become a `kind` of one line."""
    try:
        yield
    except of as error:  # of the Hub's clients, httpx, pyarrow: no name in common
        raise kind(f"{says} ({type(error).__name__}: {error})") from error


def this_command():
    """The command line of this process, as it is recorded."""
    return shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])


def run(main):
    """Call `main()`. Bad input ends in one line on standard error and exit status 2, Ctrl-C in 130;
    a bug keeps its traceback. What standard output's encoding lacks (cp1252) is printed as `?`."""
    sys.stdout.reconfigure(errors="replace")
    try:
        status = main()
    except BrokenPipeError:  # `| head` closed our standard output
        os._exit(1)
    except (InputError, OSError, MemoryError) as error:
        # what is wrong for all ranks, one of each machine says; of disk and memory each has its own
        if os.environ.get("LOCAL_RANK", "0") == "0" or not isinstance(error, InputError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)


def write_atomic(path, write):
    """Write a file whole or not at all: `write(file)` fills a temporary neighbour, which is flushed
    to the disk and renamed. Its folder is made if need be."""
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
