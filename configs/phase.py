# Bytes as phases, positions as rotations: no position slot, no cut.
code = "phase"
lift = "linear"
head = "table"
code_width = 1536
