# For one GPU of 24 GB: GPT-2's 124M shape on 1.0B tokens, in steps half as large as gpt2_124m's.
dataset = "fineweb-edu-24gb"
batch_size = 8
gradient_accumulation_steps = 32
max_steps = 3815
warmup_steps = 350
eval_tokens = 1_048_576
