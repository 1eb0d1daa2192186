# The wide affine code: as many parities of the id's bits as the model is wide, -1 and +1.
code = "affine"
lift = "tile"
head = "table"
code_width = -1
code_levels = "signs"
