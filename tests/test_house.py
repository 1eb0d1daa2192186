"""The shape of the project: arrows go down, files import no circle, functions fit on a screen."""
import ast
from graphlib import TopologicalSorter

import pytest

from conftest import ROOT

FILES = sorted(path for folder in (".", "lib", "probes", "runs")
               for path in (ROOT / folder).glob("*.py"))
FLOORS = ["codes", "rivals", "model", "lib", "probes", "command"]  # from the bottom up


def name_of(path):
    """A file as a module's name: lib/stats.py is lib.stats."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


NAMES = {name_of(path) for path in FILES}


def imports_of(path, deep=True):
    """The project's own modules that a file imports; `deep`: also within its functions."""
    tree, found = ast.parse(path.read_bytes()), set()
    for node in ast.walk(tree) if deep else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & NAMES


def floor_of(name):
    """Which floor a module stands on; scripts and runs/ are commands."""
    first = name.split(".")[0]
    return FLOORS.index(first if first in FLOORS else "command")


def test_no_circle_of_files():
    """Sorting the files by their imports raises CycleError, with the circle, where there is one."""
    graph = {name_of(path): imports_of(path, deep=False) for path in FILES}
    assert set(TopologicalSorter(graph).static_order()) == NAMES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_go_down(path):
    """commands -> probes -> lib -> model -> rivals -> codes. codes.py may ask for a tokenizer where
    it is called with one: `from_tokenizer` and its own command."""
    mine = floor_of(name_of(path))
    imported = imports_of(path, deep=path.name != "codes.py")
    assert not [name for name in imported if floor_of(name) > mine]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_fit_on_a_screen(path):
    """80 lines at most, in lines of 100 columns."""
    functions = [node for node in ast.walk(ast.parse(path.read_bytes()))
                 if isinstance(node, ast.FunctionDef)]
    assert not [f.name for f in functions if f.end_lineno - f.lineno >= 80]
    assert max(map(len, path.read_text().splitlines()), default=0) <= 100
