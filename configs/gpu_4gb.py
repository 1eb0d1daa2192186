# For one GPU of 4 GB: a body of 10.8M weights on 131M tokens; four arms are a night.
dataset = "fineweb-edu-4gb"
vocab_size = 16_384  # trained on the text; with GPT-2's 50,257 ids the head takes most of the time
n_layer = 6
n_head = 6
n_embd = 384
block_size = 512
batch_size = 8
gradient_accumulation_steps = 8
max_steps = 4000
learning_rate = 1.5e-3  # not tuned: between d = 192 (4e-3) and nanoGPT's d = 768 (6e-4)
min_lr = 1.5e-4
warmup_steps = 250
eval_interval = 250
eval_tokens = 524_288
