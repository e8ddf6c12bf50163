# A GPT so small that any CPU trains it in half a minute: for smoke runs and for trying changes.
#   python prepare.py python && python train.py config/tiny_gpt_cpu.py

out_dir = 'out-tiny-gpt'
dataset = 'python'

n_layer = 2
n_head = 2
n_embd = 64
block_size = 64
batch_size = 8
gradient_accumulation_steps = 2  # so that two processes can share a step

learning_rate = 3e-3
min_lr = 3e-4
warmup_iters = 20
max_iters = 200
beta2 = 0.99

eval_interval = 50
eval_iters = 10
log_interval = 10

device = 'cpu'
dtype = 'float32'
compile = False  # would take longer than the run
