# GPT-2 124M from scratch on OpenWebText, on 8 GPUs.
#   python prepare.py openwebtext
#   torchrun --standalone --nproc_per_node=8 train.py config/gpt2_124m.py

out_dir = 'out-gpt2-124m'
dataset = 'openwebtext'

# 16 rows x 1024 tokens x 32 micro-batches = 524,288 tokens a step (Brown et al. 2020, table 2.1), whatever the number
# of processes; fewer rows and more micro-batches fit smaller GPUs
batch_size = 16
gradient_accumulation_steps = 4 * 8

# the model is what train.py has by default: 12 layers, 12 heads, 768 wide, no dropout, no biases
warmup_iters = 700
max_iters = 19073  # 10B tokens: a little more than once through OpenWebText; nanoGPT's 300B are 572,000 steps

eval_interval = 500
eval_iters = 128
log_interval = 10
