# GPT-2 124M's size by the modern recipe on OpenWebText, on 8 GPUs. Tried at this size on no machine yet: the rates are those
# that modded-nanogpt's plain runs of this size settled on (github.com/KellerJordan/modded-nanogpt).
#   python prepare.py openwebtext
#   torchrun --standalone --nproc_per_node=8 train.py config/modern_124m.py

out_dir = 'out-modern-124m'
dataset = 'openwebtext'

arch = 'modern'
batch_size = 32  # 32 rows x 1024 tokens x 16 micro-batches = 524,288 tokens a step
gradient_accumulation_steps = 2 * 8

optimizer = 'muon'
learning_rate = 3e-3
min_lr = 0
schedule = 'wsd'  # constant, then a linear decay over the last part
wsd_decay = 0.4
warmup_iters = 0
max_iters = 6000  # 3.1B tokens
weight_decay = 0.0
grad_clip = 0.0

eval_interval = 250
eval_iters = 128
log_interval = 10
