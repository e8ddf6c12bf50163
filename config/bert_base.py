# BERT base from scratch on English Wikipedia, on 8 GPUs: the masked objective alone, as RoBERTa showed to suffice.
#   python prepare.py wikipedia --tokenizer=google-bert/bert-base-uncased
#   torchrun --standalone --nproc_per_node=8 train.py config/bert_base.py

out_dir = 'out-bert-base'
dataset = 'wikipedia'

arch = 'bert'
objective = 'masked'
dropout = 0.1
bias = True  # BERT has them

# 256 rows x 512 tokens a step, the original's batch (Devlin et al. 2018, appendix A.2)
block_size = 512
batch_size = 32
gradient_accumulation_steps = 8

# its norms stand after the residual sum: without a long warm-up it diverges
learning_rate = 1e-4
min_lr = 0
schedule = 'linear'
warmup_iters = 10000
max_iters = 1000000
weight_decay = 0.01
beta2 = 0.999

eval_interval = 5000
eval_iters = 64
log_interval = 50
