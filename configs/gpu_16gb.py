# For one GPU of 16 GB (a T4 has 15): a body of 25.7M weights and GPT-2's ids on 524M tokens.
dataset = "fineweb-edu-16gb"
n_layer = 8
n_head = 8
n_embd = 512
batch_size = 8
gradient_accumulation_steps = 16
max_steps = 4000
learning_rate = 1e-3  # not tuned: between d = 192 (4e-3) and nanoGPT's d = 768 (6e-4)
min_lr = 1e-4
warmup_steps = 250
eval_tokens = 1_048_576
