# The main job in miniature: a GPT on the source code of Python's standard library, about 3 minutes on 2 CPU cores.
#   python prepare.py python && python train.py config/quickstart.py

out_dir = 'out-quickstart'
dataset = 'python'

# 4M parameters: what 3 minutes on a CPU can feed
n_layer = 4
n_head = 4
n_embd = 256
block_size = 256
batch_size = 16
gradient_accumulation_steps = 1

learning_rate = 2e-3  # small models stand high rates
min_lr = 0
warmup_iters = 50
max_iters = 600
lr_decay_iters = 600
beta2 = 0.99  # few tokens a step: a longer memory of the gradients' size
weight_decay = 0.1

eval_interval = 200
eval_iters = 16
log_interval = 20
