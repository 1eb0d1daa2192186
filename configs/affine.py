# The bits after a random invertible affine map over GF(2), tiled; nothing trained. arXiv 2605.09751.
code = "affine"
lift = "tile"
head = "table"
