# Learned queries attend over the token's bytes. In the spirit of arXiv 2211.12677.
code = "bytes2word"
lift = "attention"
head = "table"
