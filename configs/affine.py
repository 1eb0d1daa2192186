# The bits after a random invertible affine map over GF(2), tiled; nothing trained. 2605.09751.
code = "affine"
lift = "tile"
head = "table"
