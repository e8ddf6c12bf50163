# The main job in miniature: a GPT on the source code of Python's standard library, about 3 minutes on 2 CPU cores.
#   python prepare.py python && python train.py config/quickstart.py

out_dir = 'out-quickstart'
dataset = 'python'

# 2.6M parameters: in so short a time a larger model sees too little text
n_layer = 4
n_head = 3
n_embd = 192
block_size = 128
batch_size = 32
gradient_accumulation_steps = 1

learning_rate = 4e-3  # small models stand high rates
min_lr = 0
warmup_iters = 50
max_iters = 420
lr_decay_iters = 420
beta2 = 0.99  # few tokens a step: a longer memory of the gradients' size
weight_decay = 0.1

eval_interval = 105
eval_iters = 16
log_interval = 20
