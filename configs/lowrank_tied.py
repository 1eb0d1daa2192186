# A table of rank r that is also the output head.
code = "lowrank"
lift = "linear"
head = "tied"
rank = 62
