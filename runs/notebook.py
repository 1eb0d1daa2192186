"""Without Jupyter: run walkthrough.ipynb in this process and write its outputs into it.

    python -m runs.notebook
"""
import base64
import contextlib
import functools
import io
import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt


def shown(outputs, figure, display_id=None):
    """Jupyter's `display` of a picture, which `update` of what it returns replaces."""
    def update(figure):
        figure.savefig(file := io.BytesIO(), format="png", dpi=80)
        output["data"] = {"image/png": base64.b64encode(file.getvalue()).decode()}
    output = {"output_type": "display_data", "metadata": {}}
    outputs.append(output)
    update(figure)
    return SimpleNamespace(update=update)


def execute(cells):
    """Run code cells in order; what they print and their pictures become their outputs."""
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        outputs = []
        names["display"] = functools.partial(shown, outputs)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        for figure in plt.get_fignums():
            shown(outputs, plt.figure(figure))
        plt.close("all")
        text = said.getvalue().splitlines(keepends=True)
        stream = {"output_type": "stream", "name": "stdout", "text": text}
        cell |= {"execution_count": number, "outputs": [stream, *outputs] if text else outputs}


if __name__ == "__main__":
    path = Path("walkthrough.ipynb")
    book = json.loads(path.read_text())
    execute([cell for cell in book["cells"] if cell["cell_type"] == "code"])
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")
