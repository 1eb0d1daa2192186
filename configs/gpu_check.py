# GPT-2's 124M shape on 41M tokens: 80 seconds of an H100 at 45 % of its peak.
dataset = "gpu_check"
batch_size = 32
gradient_accumulation_steps = 2
max_steps = 625
warmup_steps = 60
eval_interval = 125
eval_tokens = 524_288
