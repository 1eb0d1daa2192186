# A table of rank r; at 124M r = 62 is kron's budget. arXiv 1909.11942.
code = "lowrank"
lift = "linear"
head = "table"
rank = 62
