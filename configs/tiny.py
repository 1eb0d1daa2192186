# A size that two CPU cores train in minutes: d = 192 = 16 * 12, so that 12-bit codes tile evenly.
dataset = "docstrings"
n_layer = 4
n_head = 6
n_embd = 192
block_size = 256
batch_size = 8
gradient_accumulation_steps = 1
max_steps = 1200
learning_rate = 4e-3  # what tuning chose for nearly every arm: results/tiny/tuning.md
min_lr = 4e-4
warmup_steps = 100
eval_interval = 100
eval_tokens = 65_536
