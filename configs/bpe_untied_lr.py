# Control: also as fast as kron's input, which Adam moves by at least sqrt(D) lr, D = 4,096.
code = "learned"
lift = "none"
head = "table"
embed_std = 1.0
embed_lr_mult = 64.0
