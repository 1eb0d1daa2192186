# No V-sized trained table at all: the head is a second Kronecker module with its own W.
code = "kron"
lift = "linear"
head = "code"
