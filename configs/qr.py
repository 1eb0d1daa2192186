# A row by the remainder times a row by the quotient. arXiv 1909.02107.
code = "qr"
lift = "linear"
head = "table"
