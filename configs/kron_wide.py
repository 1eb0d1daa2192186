# Bytes and identity: kron plus half of the wide affine code.
code = "kron_wide"
lift = "linear"
head = "table"
