"""Draw results/visual.png: what the arm `visual` sees of three tokens.

    python -m runs.draw_visual
"""
from matplotlib.figure import Figure

from rivals import bitmap

TOKENS = {"cat": "cat",
          " a": "a space and a: white space is its\nhex digits, 20",
          "क": "Devanagari ka, U+0915: so is what\nthe font lacks"}

figure = Figure((9, 4.2), layout="constrained")
figure.suptitle("The arm `visual`: a token's vector is this bitmap of its text, reduced from its\n"
                "1,024 pixels to d numbers; nothing of it is trained.", fontsize=11)
for ax, (token, title) in zip(figure.subplots(1, len(TOKENS)), TOKENS.items()):
    ax.imshow(bitmap(token.encode()), cmap="gray_r", interpolation="nearest")
    ax.set_title(title, fontsize=10)
    ax.set(xticks=[], yticks=[])
figure.savefig("results/visual.png", dpi=100, metadata={"Software": None})
