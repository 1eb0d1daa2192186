#!/usr/bin/env bash
# What the arm `visual` sees of three tokens, before it reduces the 1,024 pixels of each: results/visual.png.
#
#     bash runs/visual.sh
source "$(dirname "$0")/setup.sh"
python - <<'PYTHON'
from matplotlib.figure import Figure

from rivals import bitmap

tokens = {"cat": "cat", " a": "a space and a: white space is its\nhex digits, 20",
          "क": "Devanagari ka, U+0915: so is what\nthe font lacks"}
figure = Figure((9, 3.6), layout="constrained")
for ax, (token, title) in zip(figure.subplots(1, len(tokens)), tokens.items()):
    ax.imshow(bitmap(token.encode()), cmap="gray_r", interpolation="nearest")
    ax.set_title(title, fontsize=10)
    ax.set(xticks=[], yticks=[])
figure.savefig("results/visual.png", dpi=100, metadata={"Software": None})
PYTHON
