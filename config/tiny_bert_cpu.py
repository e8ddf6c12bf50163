# A small BERT, a few minutes on 2 CPU cores: learns to fill in hidden tokens of Python code.
#   python prepare.py python && python train.py config/tiny_bert_cpu.py

out_dir = 'out-tiny-bert'
dataset = 'python'

arch = 'bert_prenorm'  # learns faster than the original with its norms last
objective = 'masked'
mask_ratio = 0.25  # more to learn from a row than the original's 0.15 (Wettig et al. 2023)
n_layer = 4
n_head = 4
n_embd = 256
bias = True
block_size = 128
batch_size = 32
gradient_accumulation_steps = 1

learning_rate = 2e-3
min_lr = 0
schedule = 'linear'
warmup_iters = 100
max_iters = 500
lr_decay_iters = 500
beta2 = 0.98

eval_interval = 100
eval_iters = 16
log_interval = 20

device = 'cpu'
