# The bits with a trained K x d lift: it separates the code from the lift.
code = "binary"
lift = "linear"
head = "table"
