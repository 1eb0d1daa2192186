# Control for spelling: kron's codes, dealt to other tokens of equal length and similar frequency.
code = "kron_shuffled"
lift = "linear"
head = "table"
