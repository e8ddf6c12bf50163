# What nanoGPT's README trains on a CPU in a minute or two (Shakespeare, letter by letter), to the same loss in an eighth of
# the time: rotary positions, Muon, a table of pairs of letters. docs/experiments.md has what each of them gives.
#   python prepare.py shakespeare_char && python train.py config/modern_tiny_cpu.py

out_dir = 'out-modern-tiny'
dataset = 'shakespeare_char'

arch = 'modern'
n_layer = 2  # in so short a time few layers and many steps win
n_head = 4
n_embd = 128
bigrams = 5120  # about as many as there are pairs of the 71 tokens
block_size = 64
batch_size = 16
gradient_accumulation_steps = 1

optimizer = 'muon'
muon_learning_rate = 0.04
momentum_warmup_iters = 100
learning_rate = 1e-2
min_lr = 0
schedule = 'linear'
warmup_iters = 0
max_iters = 176
weight_decay = 0.0
grad_clip = 0.0  # Muon's steps are as long whatever the gradient

eval_interval = 176
eval_iters = 20
log_interval = 44

device = 'cpu'
compile = False  # would take longer than the run
