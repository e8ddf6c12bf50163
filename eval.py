"""How good a model is: loss, perplexity, bits per byte and accuracy over the whole validation split, each token once.

    python eval.py --out_dir=out-quickstart
    python eval.py --init_from=gpt2 --dataset=shakespeare
    python eval.py --out_dir=out --json

A causal model is scored in overlapping windows, so that every token has at least block_size - stride tokens of context
(all there are, near the beginning); a masked one at 15 % of the tokens. The training split is scored in the same way
on an even sample of it. Where its loss is well below the validation loss and it was seen more than once, the model has
overfitted; seen once or less, the gap can only come from the splits. Each part of a mixture is scored on its own.
"""

import json as json_format
import math
from fractions import Fraction

from common import fail, progress
from configurator import answer_help, configure

if __name__ == '__main__':
    answer_help(globals())  # before torch is imported, which takes seconds

import numpy as np
import torch

import objectives
from infra import checkpoint, runtime
from loader import mixture, open_split, read_meta

# -----------------------------------------------------------------------------
init_from = 'resume'  # 'resume': the best checkpoint of out_dir; else a name such as 'gpt2', or a directory
out_dir = 'out'  # a run, or one checkpoint of it
dataset = ''  # data/DATASET or a mixture, as in train.py; '': the one the checkpoint was trained on
block_size = 0  # tokens in a window; 0: as many as the model sees [0, inf)
stride = 0  # tokens between windows; 0: half of block_size; as many as block_size: no overlap, as in training [0, inf)
batch_size = 8  # windows at a time [1, inf)
train_tokens = 50_000  # size of the sample of the training split; 0: leave it out [0, inf)
device = 'auto'  # as in train.py
dtype = 'auto'
json = False  # print a JSON object, one line, instead of the table
# -----------------------------------------------------------------------------

MASK_RATIO = 0.15  # always: a higher one in training makes another task
GAP = 0.1  # of the validation loss: a training loss lower by more than this is called overfitting


def main():
    global dataset, block_size, stride
    where = runtime.choose_device(device)
    precision = runtime.choose_dtype(dtype, where)
    path = checkpoint.resolve(init_from, out_dir)
    state = checkpoint.read_state(path) if path else None
    if not dataset and not path:
        fail('name the data to score on: --dataset=NAME')
    dataset = dataset or state['settings']['dataset']
    meta = read_meta(dataset)
    model = checkpoint.load_model(path or init_from)
    vocabulary_hash = state['tokenizer_hash'] if path else checkpoint.load_vocabulary(init_from).hash
    if vocabulary_hash != meta['tokenizer_hash']:
        fail(
            f'{path or init_from} and data/{dataset} have different vocabularies; prepare.py takes one by --tokenizer'
        )
    block_size = block_size or model.config.block_size
    if block_size > model.config.block_size:
        fail(f'block_size = {block_size} is longer than the {model.config.block_size} tokens the model sees')
    stride = block_size if not model.config.causal else stride or max(1, block_size // 2)
    if stride > block_size:
        fail(f'stride = {stride} is longer than block_size = {block_size}')
    parts = {
        name: {split: open_split(name, split, block_size) for split in ('train', 'val')}
        for name in mixture(dataset)
    }
    model.eval().to(where)
    for name, splits in parts.items():
        results = dict(model=str(path or init_from), dataset=name, block_size=block_size, stride=stride)
        results |= evaluate(model, splits, read_meta(name), where, precision)
        if train_tokens:
            results['gap'] = results['val']['loss'] - results['train']['loss']
            results['epochs'] = epochs_seen(state, name, len(splits['train']))
            results['overfitting'] = results['epochs'] > 1 and results['gap'] > GAP * results['val']['loss']
        print(json_format.dumps(results) if json else table(results, model.config.causal))


def evaluate(model, splits, meta, where, precision):
    """The scores of each split of a data set and the rate to beat -> dict."""
    results = {}
    for split, tokens in splits.items():
        if split == 'train' and not train_tokens:
            continue
        starts, scored_from = every_window(len(tokens)) if split == 'val' else even_sample(len(tokens))
        results[split] = score(model, tokens, starts, scored_from, meta, where, precision, split)
        if model.config.causal:
            per_byte = meta[split]['tokens'] / meta[split]['bytes']
            results[split]['bits_per_byte'] = results[split]['loss'] / math.log(2) * per_byte
    return results | dict(commonest_token_rate=commonest_token_rate(splits, meta))


def epochs_seen(state, name, length):
    """How often the checkpoint has seen the training split; 0 for a model from elsewhere or trained on other data."""
    if not state:
        return 0.0
    shares = state.get('mixture', {state['settings']['dataset']: 1})  # older checkpoints know no mixtures
    factors = (state['settings'][k] for k in ('block_size', 'batch_size', 'gradient_accumulation_steps'))
    return float(Fraction(shares.get(name, 0)) * state['step'] * math.prod(factors) / length)


def every_window(length):
    """Windows that cover a split: where each starts, and from where on it is scored; the last one ends with the split."""
    last = length - 1 - block_size
    starts = np.append(np.arange(0, last, stride), last)
    return starts, np.append(0, starts[:-1] + block_size)


def even_sample(length):
    """Windows that lie evenly in a split and score train_tokens of it, with as much context as `every_window` gives."""
    starts = np.linspace(0, length - 1 - block_size, max(1, train_tokens // stride)).astype(np.int64)
    return starts, starts + block_size - stride


@torch.inference_mode()
def score(model, tokens, starts, scored_from, meta, where, precision, label):
    """Loss, perplexity and accuracy over the windows that begin at `starts`, of the positions from scored_from on -> dict."""
    nats, right, count = 0.0, 0, 0
    with progress(f'scoring {label}', len(starts) * block_size, 'tok') as bar:
        for first in range(0, len(starts), batch_size):
            chunk = slice(first, first + batch_size)
            rows = np.stack([tokens[s : s + block_size + 1] for s in starts[chunk]]).astype(np.int64)
            if model.config.causal:
                batch = objectives.causal(rows)
                position = starts[chunk, None] + np.arange(block_size)  # (B, T), in the split
                batch['targets'][torch.from_numpy(position < scored_from[chunk, None])] = -100
            else:
                numbers = range(first, first + len(rows))
                batch = objectives.masked(rows, numbers, 0, meta['special'], meta['vocab_size'], MASK_RATIO)
            batch = runtime.to_device(batch, where)
            scored = batch['targets'] != -100  # (B, T)
            targets = batch['targets'][scored]  # (number scored,)
            with runtime.autocast(where, precision):
                logits = model.logits(model.hidden(batch['inputs'])[scored]).float()
            nats += torch.nn.functional.cross_entropy(logits, targets, reduction='sum').item()
            right += (logits.argmax(-1) == targets).sum().item()
            count += len(targets)
            bar.update(rows.size)
    return dict(
        tokens=count, loss=nats / count, perplexity=math.exp(min(nats / count, 700)), accuracy=right / count
    )


def commonest_token_rate(splits, meta):
    """The accuracy of always guessing the commonest token of the training split: what a model must beat."""
    seen = np.bincount(splits['train'][:10_000_000], minlength=meta['vocab_size'])
    seen[list(meta['special'].values())] = 0
    tokens = np.bincount(splits['val'], minlength=meta['vocab_size'])
    return float(tokens[seen.argmax()] / tokens.sum())


def table(results, causal):
    windows = f'windows of {results["block_size"]} tokens, {results["stride"]} apart'
    lines = [f'{results["model"]} on data/{results["dataset"]}, {windows}']
    columns = ['tokens', 'loss', 'perplexity', *(['bits_per_byte'] if causal else []), 'accuracy']
    lines.append(f'{"":8}' + ''.join(f'{name.replace("_", " "):>15}' for name in columns))
    forms = dict(tokens='{:,}', loss='{:.4f}', perplexity='{:.2f}', bits_per_byte='{:.4f}', accuracy='{:.2%}')
    for split in ('train', 'val'):
        if split in results:
            cells = [forms[name].format(results[split][name]) for name in columns]
            lines.append(f'{split:8}' + ''.join(f'{cell:>15}' for cell in cells))
    lines.append(
        f'always guessing the commonest token would be right {results["commonest_token_rate"]:.2%} of the time'
    )
    if 'gap' in results:
        verdict = (
            'overfitting: stop sooner, add dropout or data' if results['overfitting'] else 'no overfitting'
        )
        lines.append(f'validation loss - training loss = {results["gap"]:+.4f}: {verdict}')
    return '\n'.join(lines)


if __name__ == '__main__':
    configure(globals())
    main()
