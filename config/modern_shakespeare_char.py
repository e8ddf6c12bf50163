# The character model of Shakespeare by the modern recipe, for a GPU: as large as nanoGPT's, in a fifth of its steps.
#   python prepare.py shakespeare_char && python train.py config/modern_shakespeare_char.py

out_dir = 'out-modern-shakespeare'
dataset = 'shakespeare_char'

arch = 'modern'
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
bigrams = 5120
block_size = 256
batch_size = 64
gradient_accumulation_steps = 1

optimizer = 'muon'
momentum_warmup_iters = 100
learning_rate = 5e-3
min_lr = 0
schedule = 'linear'
warmup_iters = 0
max_iters = 1000
weight_decay = 0.0
grad_clip = 0.0

eval_interval = 100
eval_iters = 50
log_interval = 10
