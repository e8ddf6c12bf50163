"""Evaluation: loss, perplexity, bits per byte and accuracy over the whole validation split, each token once.

    python eval.py --out_dir=out-quickstart
    python eval.py --init_from=gpt2 --dataset=shakespeare
    python eval.py --out_dir=out --json

A causal model is scored in overlapping windows, so that every token has at least block_size - stride tokens of context
(all there are, near the beginning); a masked one at 15 % of the tokens. An even sample of the training split is scored
too: where its loss is well below the validation loss and it was seen more than once, the model has overfitted. Each
part of a mixture is scored on its own.
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

from infra import checkpoint, runtime
from loader import Mixture, Windows, mixture, read_meta
from objectives import OBJECTIVES, Context

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

GAP = 0.1  # of the validation loss: a training loss lower by more than this is called overfitting


def main():
    torch_device = runtime.choose_device(device)
    precision = runtime.choose_dtype(dtype, torch_device)
    path = checkpoint.resolve(init_from, out_dir)
    state = checkpoint.read_state(path) if path else None
    if not dataset and not path:
        fail('name the data to score on: --dataset=NAME')
    scored = dataset or state['settings']['dataset']
    meta = read_meta(scored)
    model = checkpoint.load_model(path or init_from)
    vocabulary_hash = state['tokenizer_hash'] if path else checkpoint.load_vocabulary(init_from).hash
    if vocabulary_hash != meta['tokenizer_hash']:
        fail(f'{path or init_from} and data/{scored} have different vocabularies: prepare.py --tokenizer')
    T = block_size or model.config.block_size
    if T > model.config.block_size:
        fail(f'block_size = {T} is longer than the {model.config.block_size} tokens the model sees')
    if stride > T:
        fail(f'stride = {stride} is longer than block_size = {T}')
    apart = (stride or max(1, T // 2)) if model.config.causal else T
    config = vars(model.config).items()
    fitting = (o for o in OBJECTIVES.values() if o.flags.items() <= config)  # that it can be trained with
    objective = OBJECTIVES[state['settings']['objective']] if path else next(fitting)
    cut = (T, T + objective.more_tokens, objective.cut, objective.columns)
    data = {
        name: {split: Mixture(name, split, *cut).parts[0][0] for split in ('train', 'val')}
        for name in mixture(scored)
    }
    model.eval().to(torch_device)
    for name, splits in data.items():
        results = dict(model=str(path or init_from), dataset=name, block_size=T)
        results['stride'] = apart if objective.cut == 'windows' else 0  # 0: documents, packed into rows
        results |= evaluate(model, objective, splits, read_meta(name), apart, torch_device, precision)
        if train_tokens:
            results['gap'] = results['val']['loss'] - results['train']['loss']
            results['epochs'] = epochs_seen(state, name, len(splits['train'].tokens))
            results['overfitting'] = results['epochs'] > 1 and results['gap'] > GAP * results['val']['loss']
        print(json_format.dumps(results) if json else table(results, objective.metrics))


def evaluate(model, objective, splits, meta, apart, torch_device, precision):
    """The scores of each split of a data set and the rate to beat -> dict. apart: tokens between windows."""
    results = {}
    for split, source in splits.items():
        if split == 'train' and not train_tokens:
            continue
        rows = rows_to_score(source, apart, train_tokens if split == 'train' else 0)
        results[split] = scores = score(model, objective, source, *rows, meta, torch_device, precision, split)
        if 'bits_per_byte' in objective.metrics:
            per_byte = meta[split]['tokens'] / meta[split]['bytes']
            scores['bits_per_byte'] = scores['loss'] / math.log(2) * per_byte
    return results | dict(commonest_token_rate=commonest_token_rate(splits, meta))


def epochs_seen(state, name, length):
    """How often the checkpoint has seen the training split; 0 for a model from elsewhere or trained on other data."""
    if not state:
        return 0.0
    factors = (state['settings'][k] for k in ('block_size', 'batch_size', 'gradient_accumulation_steps'))
    return float(Fraction(state['mixture'].get(name, 0)) * state['step'] * math.prod(factors) / length)


def rows_to_score(source, apart, sample):
    """Where each window starts, and from where on it is scored: the whole split, or an even sample of so many tokens of it.

    Of packed documents: the numbers of the rows, and None, as they do not overlap.
    """
    is_windows, count = isinstance(source, Windows), max(1, sample // apart)
    last = len(source.tokens) - source.row_tokens if is_windows else source.rows_per_epoch - 1
    even = np.linspace(0, last, count).astype(np.int64)
    if not is_windows:
        return np.unique(even) if sample else np.arange(last + 1), None
    if sample:
        return even, even + source.block_size - apart
    starts = np.append(np.arange(0, last, apart), last)
    return starts, np.append(0, starts[:-1] + source.block_size)


@torch.inference_mode()
def score(model, objective, source, at, scored_from, meta, torch_device, precision, label):
    """Loss, perplexity and accuracy -> dict. at: starts of windows, or numbers of rows; see `rows_to_score`."""
    nats, right, count = 0.0, 0, 0
    with progress(f'scoring {label}', len(at) * source.row_tokens, 'tok') as bar:
        for first in range(0, len(at), batch_size):
            chunk = slice(first, first + batch_size)
            rows = source.read(at[chunk], 0) if scored_from is None else source.cut(at[chunk])
            numbers = range(first, first + len(at[chunk]))
            batch = objective.make_batch(rows, Context(numbers, 0, meta, model.config, training=False))
            targets = batch.pop('targets')  # (B, T)
            if scored_from is not None and model.config.causal:
                position = at[chunk, None] + np.arange(targets.shape[1])  # (B, T), in the split
                targets[torch.from_numpy(position < scored_from[chunk, None])] = -100
            scored = targets != -100  # (B, T)
            targets = targets[scored].to(torch_device)  # (number scored,)
            batch.pop('predict_at', None)  # which fixes their number, not needed here
            with runtime.autocast(torch_device, precision):
                hidden = model.hidden(**runtime.to_device(batch, torch_device))
                logits = model.logits(hidden[scored.to(torch_device)]).float()
            nats += torch.nn.functional.cross_entropy(logits, targets, reduction='sum').item()
            right += (logits.argmax(-1) == targets).sum().item()
            count += len(targets)
            bar.update(rows['tokens'].size)
    loss = nats / count
    return dict(tokens=count, loss=loss, perplexity=math.exp(min(loss, 700)), accuracy=right / count)


def commonest_token_rate(splits, meta):
    """The accuracy of always guessing the commonest token of the training split: what a model must beat."""
    seen = np.bincount(splits['train'].tokens[:10_000_000], minlength=meta['vocab_size'])
    seen[list(meta['special'].values())] = 0
    tokens = np.bincount(splits['val'].tokens, minlength=meta['vocab_size'])
    return float(tokens[seen.argmax()] / tokens.sum())


def table(results, metrics):
    rows = f'windows of {results["block_size"]} tokens, {results["stride"]} apart'
    rows = rows if results['stride'] else f'documents packed into rows of {results["block_size"]} tokens'
    lines = [f'{results["model"]} on data/{results["dataset"]}, {rows}']
    forms = dict(tokens=',', loss='.4f', perplexity='.2f', bits_per_byte='.4f', accuracy='.2%')
    columns = ['tokens', *metrics]
    lines.append(f'{"":8}' + ''.join(f'{name.replace("_", " "):>15}' for name in columns))
    for split in ('train', 'val'):
        if split in results:
            cells = (f'{results[split][name]:>15{forms[name]}}' for name in columns)
            lines.append(f'{split:8}' + ''.join(cells))
    rate = results['commonest_token_rate']
    lines.append(f'always guessing the commonest token would be right {rate:.2%} of the time')
    if 'gap' in results:
        verdict = 'overfitting: stop sooner, add dropout or data'
        verdict = verdict if results['overfitting'] else 'no overfitting'
        lines.append(f'validation loss - training loss = {results["gap"]:+.4f}: {verdict}')
    return '\n'.join(lines)


if __name__ == '__main__':
    configure(globals())
    main()
