# A small BERT, a few minutes on 2 CPU cores: learns to fill in hidden tokens of Python code.
#   python prepare.py python && python train.py config/tiny_bert_cpu.py

out_dir = 'out-tiny-bert'
dataset = 'python'

arch = 'modern_bert'  # and Muon: bert_prenorm with AdamW guesses a third as many right after as many steps
objective = 'masked'
mask_ratio = 0.25  # more to learn from a row than the original's 0.15 (Wettig et al. 2023)
n_layer = 4
n_head = 4
n_embd = 256
block_size = 128
batch_size = 32
gradient_accumulation_steps = 1

optimizer = 'muon'
muon_learning_rate = 0.04
momentum_warmup_iters = 100
learning_rate = 1e-2
min_lr = 0
schedule = 'linear'
warmup_iters = 0
max_iters = 500
weight_decay = 0.0
grad_clip = 0.0

eval_interval = 100
eval_iters = 16
log_interval = 20

device = 'cpu'
