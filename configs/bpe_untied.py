# A learned table of its own.
code = "learned"
lift = "none"
head = "table"
