# kron without centring: no common direction through which idle rows move all tokens.
code = "kron_raw"
lift = "linear"
head = "table"
