# A model of Llama's shape and size on FineWeb-Edu, on 8 machines with 8 GPUs of 80 GB. Each machine holds it once: weights are
# sent within a machine only, and gradients once a step between machines.
#   python prepare.py fineweb-edu --hub_config=sample-350BT
#   torchrun --nnodes=8 --nproc_per_node=8 ... train.py config/llama_7b.py           # under Slurm: see docs/scaling.md

out_dir = 'out-llama-7b'
dataset = 'fineweb-edu'

arch = 'llama'
n_layer = 32
n_head = 32
n_embd = 4096
fsdp = 8  # the GPUs of a machine; what is left of 64 is ddp, 8

# 1 row x 4096 tokens x 1024 micro-batches = 4M tokens a step (Touvron et al. 2023, section 2.3, and its rates)
batch_size = 1
block_size = 4096
gradient_accumulation_steps = 16 * 64

learning_rate = 3e-4
min_lr = 3e-5
max_iters = 33000  # 138B tokens, 20 a parameter (Hoffmann et al. 2022)

eval_interval = 500
eval_iters = 512
log_interval = 10
