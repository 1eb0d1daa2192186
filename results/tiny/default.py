# The setting that nobody tuned, for `compare.py --tune results/tiny/tuning`: configs/tiny.py had
# these rates when the runs of this folder were made.
learning_rate = 1e-3
min_lr = 1e-4
