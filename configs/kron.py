# Kronecker byte-position code and one projection. arXiv 2605.29459.
code = "kron"
lift = "linear"
tie = False
pos_dim = 16
