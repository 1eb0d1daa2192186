# bpe_tied as GPT-2 sets it: N(0, 0.02), learning at the rate of the rest, not multiplied.
code = "learned"
lift = "none"
head = "tied"
embed_std = 0.02
embed_lr_mult = 1.0
input_multiplier = 1.0
