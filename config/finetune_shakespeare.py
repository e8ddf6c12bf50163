# GPT-2's own weights, fine-tuned on Shakespeare: a few minutes on one GPU.
#   python prepare.py shakespeare && python train.py config/finetune_shakespeare.py

out_dir = 'out-shakespeare'
dataset = 'shakespeare'
init_from = 'gpt2-xl'  # the largest; gpt2, gpt2-medium and gpt2-large need less memory

# 1 row x 32 micro-batches x 1024 tokens = 32,768 tokens a step; an epoch of the 301,966 tokens is about 9 steps
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False  # so few steps need no schedule

eval_interval = 5
eval_iters = 40
always_save_checkpoint = False  # it overfits within a few epochs
