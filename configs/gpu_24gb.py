# For one GPU of 24 GB: GPT-2's 124M shape on 1.0B tokens, in steps half as large as gpt2_124m's.
dataset = "fineweb-edu-24gb"
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
batch_size = 8
gradient_accumulation_steps = 32
max_steps = 3815
learning_rate = 6e-4
min_lr = 6e-5
warmup_steps = 350
eval_interval = 250
eval_tokens = 1_048_576
