# GPT-2's 124M shape and nanoGPT's recipe for 2.5B tokens of FineWeb-Edu: train.py's defaults.
dataset = "fineweb-edu"
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
batch_size = 16
gradient_accumulation_steps = 32
max_steps = 4768
learning_rate = 6e-4
min_lr = 6e-5
warmup_steps = 700
eval_interval = 250
eval_tokens = 2_097_152
