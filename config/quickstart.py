# The main job in miniature: a GPT on the source code of Python's standard library, about 3 minutes on 2 CPU cores.
#   python prepare.py python && python train.py config/quickstart.py

out_dir = 'out-quickstart'
dataset = 'python'

arch = 'modern'  # and Muon: after as much text they are far ahead of GPT-2 and AdamW (docs/experiments.md)
n_layer = 4  # in so short a time a larger model sees too little text
n_head = 3
n_embd = 192
bigrams = 8192
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
max_iters = 280
weight_decay = 0.0
grad_clip = 0.0

eval_interval = 70
eval_iters = 16
log_interval = 10
