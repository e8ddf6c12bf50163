# GPT-2 1.5B from scratch on OpenWebText, on 8 GPUs of 40 GB or more, each of which holds an eighth of the model.
#   python prepare.py openwebtext
#   torchrun --standalone --nproc_per_node=8 train.py config/gpt2_xl.py

out_dir = 'out-gpt2-xl'
dataset = 'openwebtext'

n_layer = 48
n_head = 25  # which no tp divides but 5 and 25
n_embd = 1600
fsdp = 8

# 4 rows x 1024 tokens x 256 micro-batches = 1,048,576 tokens a step, as of GPT-3 1.3B (Brown et al. 2020, table 2.1), which
# has this rate too
batch_size = 4
gradient_accumulation_steps = 32 * 8

learning_rate = 2e-4
min_lr = 2e-5
warmup_iters = 375
max_iters = 30000  # 31B tokens, 20 a parameter (Hoffmann et al. 2022); 3.5 times through OpenWebText

eval_interval = 500
eval_iters = 256
log_interval = 10
