# A bag of hashed byte trigrams: spelling without position. T-FREE, arXiv 2406.19223.
code = "trigram"
lift = "linear"
head = "table"
