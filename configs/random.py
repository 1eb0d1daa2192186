# Control: kron with its rows drawn by a hash instead of by spelling.
code = "random"
lift = "linear"
head = "table"
pos_dim = 16
