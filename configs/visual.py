# What the token looks like: a bitmap, reduced to d numbers; never trained. arXiv 2507.04886.
code = "visual"
lift = "none"
head = "table"
