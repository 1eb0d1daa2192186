"""Draws results/visual.png: what the arm `visual` sees of three tokens.

    python -m runs.draw_visual
"""
from matplotlib.figure import Figure

from rivals import bitmap

TITLES = {"cat": "cat", " a": "a space and a: white space\nis its hex digits, 20",
          "क": "Devanagari ka, U+0915: so is\nwhat the font lacks"}

figure = Figure((9, 4.3), layout="constrained")
figure.suptitle("""\
The arm `visual`: a token's vector is this picture of its text, 32 x 32 pixels,
reduced to the d numbers in which tokens differ most; nothing of it is trained.
 """)
for ax, (token, title) in zip(figure.subplots(1, 3), TITLES.items()):
    ax.imshow(bitmap(token.encode()), cmap="gray_r", interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9.5)
figure.savefig("results/visual.png", dpi=100)
