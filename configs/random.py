# A multi-hash (Bloom) embedding: kron with its rows drawn by a hash of the id. arXiv 1706.03993.
code = "random"
lift = "linear"
head = "table"
