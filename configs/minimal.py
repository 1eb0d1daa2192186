# The minimal affine code, K = ceil(log2 V) bits, as -1 and +1: what `wide` is but for its width.
code = "affine"
lift = "tile"
head = "table"
code_levels = "signs"
