# bpe_untied as tuning at the tiny size left it: N(0, 1), 50 times as fast (results/tiny/tuning.md).
code = "learned"
lift = "none"
head = "table"
embed_std = 1.0
embed_lr_mult = 50.0
