# A table of rank r: the baseline that everybody asks for first. arXiv 1909.11942.
# At 124M, r = 62 is kron's budget; at tiny kron's budget is the table's, see results/PLAN.md.
code = "lowrank"
lift = "linear"
head = "table"
rank = 62
