# The baseline of both papers: a learned table that is also the output head.
code = "learned"
lift = "none"
head = "tied"
