# bpe_untied as GPT-2 sets a table: N(0, 0.02), learning at the rate of the rest.
code = "learned"
lift = "none"
head = "table"
embed_std = 0.02
embed_lr_mult = 1.0
