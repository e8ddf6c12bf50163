"""Text from a trained model.

    python sample.py --out_dir=out-quickstart --start='def '
    python sample.py --init_from=gpt2-xl --start='What is the answer to life?' --num_samples=5 --max_new_tokens=100
    python sample.py --out_dir=out-quickstart --start=LINES:prompts.txt --num_samples=1      # each line is a prompt
    python sample.py --init_from=bert-base-uncased --start='The capital of France is [MASK].'

A causal model continues `start`; a masked one lists the likeliest fillings of each [MASK] in it.
"""

import itertools

from common import fail, reason
from configurator import answer_help, configure

if __name__ == '__main__':
    answer_help(globals())  # before torch is imported, which takes seconds

import torch

import generate
from infra import checkpoint, runtime

# -----------------------------------------------------------------------------
init_from = 'resume'  # 'resume': the best checkpoint of out_dir; else a name such as 'gpt2', or a directory
out_dir = 'out'  # a run, or one checkpoint of it
start = '\n'  # the prompt; may hold special tokens such as <|endoftext|>; FILE:prompt.txt reads a file
# LINES:prompts.txt takes each of its lines for a prompt
num_samples = 10  # of each prompt; all are made at the same time [1, inf)
max_new_tokens = 500  # of each sample; it ends sooner at the end of text [0, inf)
temperature = 0.8  # below 1.0 less random, above more; 0 takes the likeliest token [0, inf)
top_k = 200  # choose among the k likeliest tokens; 0: all [0, inf)
top_p = 1.0  # choose among the likeliest that make up this probability (0, 1]
seed = 1337  # [0, inf)
device = 'auto'  # as in train.py
dtype = 'auto'  # of the weights, or 'int8'; auto is bf16 where the hardware has it, packed fp16 for one sample on x86
compile = False  # torch.compile: slower to start, worth it for thousands of tokens
# -----------------------------------------------------------------------------

RULE = '---------------'


def main():
    torch_device = runtime.choose_device(device)
    model, vocabulary = checkpoint.load(init_from, out_dir)
    prompts = read_prompts()
    generate.prepare_model(model, torch_device, dtype, compile, len(prompts) * num_samples)
    torch.manual_seed(seed)
    if model.config.causal:
        print_samples(model, vocabulary, prompts * num_samples, torch_device)
    else:
        for prompt in prompts:
            print_fillings(model, vocabulary, prompt, torch_device)


def read_prompts():
    kind, colon, path = start.partition(':')
    if not colon or kind not in ('FILE', 'LINES'):
        return [start]
    try:
        with open(path, encoding='utf-8') as f:
            text = f.read()
    except (OSError, UnicodeDecodeError) as e:
        fail(f'cannot read the prompt {start}: {reason(e)}')
    return [text] if kind == 'FILE' else text.splitlines() or ['']


def print_samples(model, vocabulary, prompts, torch_device):
    """Print prompts with their continuations: the first as it is made, and then the others, which were made with it."""
    stop = vocabulary.special['eot']
    ids = [vocabulary.encode(prompt, special=True) or [stop] for prompt in prompts]
    longest = max(map(len, ids))
    inputs = torch.tensor([row + [stop] * (longest - len(row)) for row in ids], device=torch_device)
    lengths = torch.tensor([len(row) for row in ids], device=torch_device)
    lengths = None if (lengths == longest).all() else lengths
    print(vocabulary.decode(ids[0]), end='', flush=True)
    made, shown = [], 0
    sampling = dict(temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, compile=compile)
    for tokens in generate.stream(model, inputs, max_new_tokens, lengths, **sampling):
        made.append(tokens.tolist())
        text = vocabulary.decode(until(stop, made, row=0))
        if not text.endswith('\ufffd'):  # the rest of this character is still to come
            print(text[shown:], end='', flush=True)
            shown = len(text)
    print(vocabulary.decode(until(stop, made, row=0))[shown:], RULE, sep='\n')
    for row in range(1, len(ids)):
        print(vocabulary.decode(ids[row]) + vocabulary.decode(until(stop, made, row)), RULE, sep='\n')


def until(stop, made, row):
    """The tokens of a row up to the first that is `stop`. made: a list of the rows' tokens for each step."""
    return list(itertools.takewhile(lambda token: token != stop, (tokens[row] for tokens in made)))


@torch.inference_mode()
def print_fillings(model, vocabulary, prompt, torch_device, count=5):
    """Print the likeliest tokens at each [MASK], with their probabilities."""
    special = vocabulary.special
    ids = [special['cls'], *vocabulary.encode(prompt, special=True), special['sep']]
    masks = [i for i, token in enumerate(ids) if token == special['mask']]
    if not masks:
        spelling = vocabulary.decode([special['mask']])
        fail(f'a masked model needs {spelling} in --start, such as "Paris is the {spelling} of France."')
    if len(ids) > model.config.block_size:
        fail(f'the prompt is {len(ids)} tokens long, the model sees {model.config.block_size}')
    logits = model(torch.tensor([ids], device=torch_device))[0, masks].float()  # (number of masks, V)
    print(prompt)
    for position, probabilities in zip(masks, logits.softmax(-1), strict=True):
        best = probabilities.topk(count)
        best = zip(best.indices, best.values, strict=True)
        found = ', '.join(f'{vocabulary.decode([i])!r} {p:.1%}' for i, p in best)
        print(f'  token {position}: {found}')


if __name__ == '__main__':
    configure(globals())
    main()
