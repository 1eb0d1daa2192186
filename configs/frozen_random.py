# Control: a random unit vector per token, never trained.
code = "frozen_random"
lift = "none"
head = "table"
