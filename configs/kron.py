# Kronecker byte-position code and one projection. arXiv 2605.29459.
code = "kron"
lift = "linear"
head = "table"
