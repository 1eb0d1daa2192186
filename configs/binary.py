# The bits of the token id, tiled to model width; nothing trained. arXiv 2605.09751.
code = "binary"
lift = "tile"
head = "table"
