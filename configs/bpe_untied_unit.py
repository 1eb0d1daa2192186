# Control: a learned table that starts at the scale of kron's input, N(0, 1).
code = "learned"
lift = "none"
head = "table"
embed_std = 1.0
