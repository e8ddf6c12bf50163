# A small GPT on Shakespeare, character by character; nanoGPT's "baby GPT". Minutes on a GPU.
#   python prepare.py shakespeare_char && python train.py config/train_shakespeare_char.py

out_dir = 'out-shakespeare-char'
dataset = 'shakespeare_char'

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2  # a megabyte of text is soon learned by heart
block_size = 256  # characters of context
batch_size = 64
gradient_accumulation_steps = 1

learning_rate = 1e-3
min_lr = 1e-4
max_iters = 5000
warmup_iters = 100
beta2 = 0.99  # few tokens a step: a longer memory of the gradients' size

eval_interval = 250  # often, because it overfits
log_interval = 10
always_save_checkpoint = False  # for the same reason
