# GPT-2's 124M shape and nanoGPT's recipe for 2.5B tokens of FineWeb-Edu: train.py's defaults.
dataset = "fineweb-edu"
