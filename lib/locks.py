"""One process at a time: a lock on a file, which the system drops when its process ends, however
that ends."""
import os
import sys

from lib.common import InputError


def hold_lock(path, what):
    """Lock the file `path`, made if need be, for as long as the open file that is returned stays
    open: `with hold_lock(...)`, or until the process ends.

    InputError if another process has it: `what` is in use, by whom. Where the system or the file
    system has no locks: one warning, and none. (Never filelock's soft lock, a file that a killed
    process leaves behind.)
    """
    try:
        from filelock import lock_descriptor
    except ImportError:  # not there, or older than 3.30
        lock_descriptor = None
    while True:
        file = open(path, "a+b")
        try:
            if lock_descriptor is None:
                raise OSError("filelock 3.30 or later is not installed")
            taken = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            print(f"warning: {path} cannot be locked ({error}); nothing keeps a second process "
                  f"from {what}", file=sys.stderr)
            return file
        if not taken:
            holder = read_holder(file)
            file.close()
            raise InputError(f"{what} is in use by {holder}")
        if is_at(file, path):
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()).encode())
            file.flush()
            return file
        file.close()  # its holder deleted it between our opening and our locking it


def read_holder(file):
    """Who has a lock, as its file says; Windows lets nobody else read it."""
    try:
        file.seek(0)
        return f"process {int(file.read(20))}"
    except (OSError, ValueError):
        return "another process"


def is_at(file, path):
    """Whether an open file is the one that stands at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False
