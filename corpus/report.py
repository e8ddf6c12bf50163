"""Reports: report.json, report.png and the table that prepare.py ends with; --show, documents and what the filters decide."""

import itertools
import json

import numpy as np

from common import clock
from corpus import shard


def collect(name, shards, copies, meta, vocabulary, seconds):
    """The statistics of a data set, as a dict: those of its shards, which documents were copies, what was written.

    copies: as of merge.assign_splits; seconds: of the whole run.
    """
    stats = shard.new_stats() | dict(name=name, source=meta['source'], settings=meta['settings'])
    for each in map(shard.read_report, shards):
        for rule, dropped in each.pop('dropped').items():
            shard.add_dropped(stats, rule, dropped)
        for key in stats.keys() & each.keys():
            stats[key] += type(stats[key])(each[key])  # numbers, lists and Counters
    first, index = copies['first'], np.arange(len(copies['first']))
    near = (first != index) & ~copies['exact']
    for rule, which in (('exact duplicate', copies['exact']), ('near duplicate', near)):
        if which.any():
            shard.add_dropped(stats, rule, describe_copies(shards, first, np.flatnonzero(which), vocabulary))
    kept = first == index
    sizes = np.bincount(np.bincount(first, minlength=len(first))[kept])
    tokens = shard.column(shards, 'tokens')[kept]
    lengths = np.bincount(np.log2(np.maximum(tokens, 1)).astype(np.int64))
    stats['dropped'] = dict(sorted(stats['dropped'].items(), key=lambda item: -item[1]['documents']))
    return stats | dict(
        clusters={str(n): int(count) for n, count in enumerate(sizes) if n > 1 and count},
        moved_to_training=copies['moved'],
        tokens_per_document={str(1 << n): int(count) for n, count in enumerate(lengths) if count},
        train=meta['train'],
        val=meta['val'],
        vocabulary=dict(name=meta['settings']['tokenizer'], size=meta['vocab_size']),
        wall_seconds=seconds,
    )


def describe_copies(shards, first, which, vocabulary):
    """Copies as what a rule dropped, with the beginnings of a few beside those of their originals."""
    examples = []
    for index in which[: shard.EXAMPLES]:
        ids = [shard.tokens_of(shards, i, vocabulary.dtype) for i in (index, first[index])]
        text, original = (vocabulary.decode(each[: shard.EXCERPT // 4]) for each in ids)
        examples.append({'text': text, 'copy of': original})
    size = int(shard.column(shards, 'bytes')[which].sum())
    return dict(documents=len(which), bytes=size, examples=examples)


def write(directory, stats):
    """Write report.json and report.png."""
    from matplotlib.figure import Figure

    text = json.dumps(stats, indent=1, ensure_ascii=False) + '\n'
    # lone surrogates in examples are replaced
    (directory / 'report.json').write_text(text, 'utf-8', errors='replace')
    figure = Figure((12, 8), layout='constrained')
    figure.suptitle(f'{stats["name"]}: {stats["documents"]:,} documents, {stats["bytes"] / 1e6:,.1f} MB')
    kept = stats['train']['documents'] + stats['val']['documents']
    dropped = {rule: dropped['documents'] for rule, dropped in stats['dropped'].items()}
    panels = {
        'documents kept, or dropped by a rule': dict(kept=kept) | dropped,
        'documents kept, by tokens: from n to 2n - 1': stats['tokens_per_document'],
        'clusters of copies, by their documents': stats['clusters'],
        'seconds of all processes': {stage: round(s, 1) for stage, s in stats['seconds'].items()},
    }
    for axes, (title, values) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        axes.set_title(title)
        axes.barh([*values][14::-1], [*values.values()][14::-1])
        axes.bar_label(axes.containers[0], fmt='{:,.6g}', padding=3)
        axes.margins(x=0.15)
    figure.savefig(directory / 'report.png', dpi=100)


def table(stats):
    """The lines that a run ends with."""
    train, val, seconds = stats['train'], stats['val'], stats['seconds']
    rows = {'documents read': f'{stats["documents"]:,}, {stats["bytes"] / 1e6:,.1f} MB'}
    if stats['damaged_rows']:
        example = '{place}: {why}'.format(**stats['damaged'][0])
        rows['damaged rows skipped'] = f'{stats["damaged_rows"]:,}, such as {example}'
    rows |= {change: f'{count:,}' for change, count in stats['changed'].items() if count}
    for rule, dropped in stats['dropped'].items():
        fraction, size = dropped['documents'] / stats['documents'], dropped['bytes'] / 1e6
        rows[f'dropped: {rule}'] = f'{dropped["documents"]:,} ({fraction:.1%}), {size:,.1f} MB'
    if stats['moved_to_training']:
        rows['moved to training'] = f'{stats["moved_to_training"]:,}, too similar to another document'
    if stats['unknown']:
        rows['unknown tokens'] = f'{stats["unknown"]:,}'
    for split in ('train', 'val'):
        rows[split] = '{documents:,} documents, {tokens:,} tokens, {bytes:,} bytes'.format(**stats[split])
    density = (train['bytes'] + val['bytes']) / (train['tokens'] + val['tokens'])
    vocabulary = '{name}, {size:,} tokens'.format(**stats['vocabulary'])
    rows['vocabulary'] = f'{vocabulary}, {density:.2f} bytes per token'
    stages = ', '.join(f'{stage} {s / (sum(seconds.values()) or 1):.0%}' for stage, s in seconds.items())
    rate = stats['bytes'] / 1e6 / stats['wall_seconds']
    rows['time'] = f'{clock(stats["wall_seconds"])}, {rate:.1f} MB/s; of the work: {stages}'
    width = max(map(len, rows))
    lines = [f'  {label:<{width}}  {value}' for label, value in rows.items()]
    return '\n'.join([f'data/{stats["name"]}', *lines])


def show(units, job, count):
    """Print the beginnings of the first `count` kept and `count` dropped documents, as far as the source has them."""
    left = {True: count, False: count}
    for document in itertools.chain(*(shard.read_and_clean(unit, job, shard.new_stats()) for unit in units)):
        kept = not document['rule']
        if left[kept]:
            left[kept] -= 1
            decision = 'kept' if kept else f'DROPPED, {document["rule"]}'
            print(f'--- {decision}: {document["place"]}\n{document["raw"][:500]}\n')
        if not any(left.values()):
            break
