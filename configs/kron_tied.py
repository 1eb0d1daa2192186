# No V-sized trained table at all: the head's rows are the input's.
code = "kron"
lift = "linear"
head = "tied"
