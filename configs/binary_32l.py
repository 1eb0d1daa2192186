# The model of arXiv 2605.09751: 32 layers, d 1024, rotary positions, about 17B tokens.
dataset = "fineweb-cosmopedia-unicode"
vocab_size = 65_536
n_layer = 32
n_head = 32
n_embd = 1024
block_size = 1024
positions = "rotary"
batch_size = 8
gradient_accumulation_steps = 64
max_steps = 32_425
learning_rate = 6e-4
min_lr = 6e-5
warmup_steps = 700
eval_interval = 1000
eval_tokens = 2_097_152
