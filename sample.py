"""Text from a trained model.

    python sample.py --out_dir=out-quickstart --start='def '
    python sample.py --init_from=gpt2-xl --start='What is the answer to life?' --num_samples=5 --max_new_tokens=100
    python sample.py --init_from=bert-base-uncased --start='The capital of France is [MASK].'

A causal model continues `start`; a masked one lists the likeliest fillings of each [MASK] in it.
"""

import torch

import checkpoint
import runtime
from config import configure, fail, reason

# -----------------------------------------------------------------------------
init_from = 'resume'  # 'resume': the best checkpoint of out_dir; else a name such as 'gpt2', or a directory
out_dir = 'out'  # a run, or one checkpoint of it
start = '\n'  # the prompt; may hold special tokens such as <|endoftext|>; FILE:prompt.txt reads a file
num_samples = 10
max_new_tokens = 500  # of each sample; it ends sooner at the end of text
temperature = 0.8  # below 1.0 less random, above more; 0 takes the likeliest token
top_k = 200  # choose among the k likeliest tokens; 0: all
top_p = 1.0  # choose among the likeliest that make up this probability
seed = 1337
device = 'auto'  # as in train.py
dtype = 'auto'  # of the weights; auto is bf16 where the hardware has it, packed fp16 on an x86 CPU
compile = False  # torch.compile: slower to start, worth it for many samples on a GPU
# -----------------------------------------------------------------------------


def main():
    where = runtime.choose_device(device)
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or max_new_tokens < 0:
        fail('temperature, top_k and max_new_tokens should be at least 0, top_p above 0 and at most 1')
    model, vocabulary = checkpoint.load(init_from, out_dir)
    runtime.ready_to_generate(model, where, dtype, compile)
    prompt = read_prompt()
    torch.manual_seed(seed)
    if model.config.causal:
        ids = vocabulary.encode(prompt, special=True) or [vocabulary.special['eot']]
        for _ in range(num_samples):
            print_sample(model, vocabulary, torch.tensor([ids], device=where))
    else:
        print_fillings(model, vocabulary, prompt, where)


def read_prompt():
    if not start.startswith('FILE:'):
        return start
    try:
        with open(start.removeprefix('FILE:'), encoding='utf-8') as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as e:
        fail(f'cannot read the prompt {start}: {reason(e)}')


def print_sample(model, vocabulary, inputs):
    """Print the prompt and then each token of its continuation as it is made. inputs (1, T)."""
    stop = vocabulary.special['eot']
    ids, shown = inputs[0].tolist(), 0
    print(vocabulary.decode(ids), end='', flush=True)
    made = []
    for token in model.stream(
        inputs, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop
    ):
        if token.item() == stop:
            break
        made.append(token.item())
        text = vocabulary.decode(made)
        if not text.endswith('\ufffd'):  # the rest of this character is still to come
            print(text[shown:], end='', flush=True)
            shown = len(text)
    print(vocabulary.decode(made)[shown:], '---------------', sep='\n')


@torch.inference_mode()
def print_fillings(model, vocabulary, prompt, where, count=5):
    """Print the likeliest tokens at each [MASK], with their probabilities."""
    special = vocabulary.special
    ids = [special['cls'], *vocabulary.encode(prompt, special=True), special['sep']]
    masks = [i for i, token in enumerate(ids) if token == special['mask']]
    if not masks:
        spelling = vocabulary.decode([special['mask']])
        fail(
            f"this is a masked model: --start should hold {spelling}, such as --start='Paris is the {spelling} of France.'"
        )
    if len(ids) > model.config.block_size:
        fail(f'the prompt is {len(ids)} tokens long, the model sees {model.config.block_size}')
    logits = model(torch.tensor([ids], device=where))[0, masks].float()  # (number of masks, V)
    print(prompt)
    for position, probabilities in zip(masks, logits.softmax(-1), strict=True):
        best = probabilities.topk(count)
        found = [
            f'{vocabulary.decode([i])!r} {p:.1%}' for p, i in zip(best.values, best.indices, strict=True)
        ]
        print(f'  token {position}: {", ".join(found)}')


if __name__ == '__main__':
    configure(globals())
    main()
