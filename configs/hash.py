# Two hashed rows with learned weights. Hash embeddings, Svenstrup et al. 2017.
code = "hash"
lift = "linear"
head = "table"
