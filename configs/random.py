# Control: kron with its rows drawn by a hash instead of by spelling.
code = "random"
lift = "linear"
tie = False
pos_dim = 16
