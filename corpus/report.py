"""Reports: report.json, report.png and the table that prepare.py ends with; and --show, documents beside the rules' decisions."""

import itertools
import json
import shutil
import textwrap
from collections import Counter

import numpy as np

from common import clock
from corpus import shard


def collect(name, shards, copies, meta, vocabulary, seconds):
    """The statistics of a data set, as a dict: those of its shards, which documents were copies, what was written.

    copies: as of merge.assign_splits; seconds: of the whole run.
    """
    stats = shard.new_stats() | dict(name=name, source=meta['source'], settings=meta['settings'])
    del stats['clock']
    for each in shards:
        for key in stats.keys() & each.report.keys():
            if key == 'dropped':
                for rule, dropped in each.report[key].items():
                    shard.add_dropped(stats, rule, dropped)
            elif isinstance(stats[key], Counter):
                stats[key].update(each.report[key])
            else:
                stats[key] += each.report[key]
    first, index = copies['first'], np.arange(len(copies['first']))
    near = (first != index) & ~copies['exact']
    for rule, which in (('exact duplicate', copies['exact']), ('near duplicate', near)):
        if which.any():
            shard.add_dropped(stats, rule, describe_copies(shards, first, np.flatnonzero(which), vocabulary))
    kept = first == index
    sizes = np.bincount(np.bincount(first, minlength=len(first))[kept])
    tokens = shard.column(shards, 'tokens')[kept]
    lengths = np.bincount(np.log2(np.maximum(tokens, 1)).astype(np.int64))
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

    def beginning(index):
        return vocabulary.decode(shard.tokens_of(shards, index)[: shard.EXCERPT // 4])

    examples = [{'text': beginning(i), 'copy of': beginning(first[i])} for i in which[: shard.EXAMPLES]]
    size = int(shard.column(shards, 'bytes')[which].sum())
    return dict(documents=len(which), bytes=size, examples=examples)


def by_documents(stats):
    """(rule, what it dropped) of each rule, the most documents first."""
    return sorted(stats['dropped'].items(), key=lambda item: -item[1]['documents'])


def write(directory, stats):
    """Write report.json and report.png."""
    text = json.dumps(stats, indent=1, ensure_ascii=False) + '\n'
    (directory / 'report.json').write_text(
        text, 'utf-8', errors='replace'
    )  # examples may have lone surrogates
    from matplotlib.figure import Figure

    figure = Figure((12, 8), layout='constrained')
    figure.suptitle(f'{stats["name"]}: {stats["documents"]:,} documents, {stats["bytes"] / 1e6:,.1f} MB')
    clusters = Counter()  # by powers of two
    for size, count in stats['clusters'].items():
        clusters[1 << (int(size).bit_length() - 1)] += count
    panels = {
        'documents kept, or dropped by a rule': {
            'kept': stats['train']['documents'] + stats['val']['documents'],
            **{rule: dropped['documents'] for rule, dropped in by_documents(stats)[:14]},
        },
        'documents kept, by their tokens': ranges(stats['tokens_per_document']),
        'clusters of copies, by their documents': ranges(clusters),
        'seconds of all processes': {stage: round(s, 1) for stage, s in stats['seconds'].items()},
    }
    for axes, (title, values) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        axes.set_title(title)
        axes.barh([*values][::-1], [*values.values()][::-1])
        axes.bar_label(axes.containers[0], fmt='{:,.6g}', padding=3)
        axes.margins(x=0.15)
    figure.savefig(directory / 'report.png', dpi=100)


def ranges(counts):
    """{power of two: count} with labels such as '4 to 7' for the powers."""
    return {f'{int(low):,} to {2 * int(low) - 1:,}': count for low, count in counts.items()}


def table(stats):
    """The lines that a run ends with."""
    train, val = stats['train'], stats['val']
    rows = [('documents read', f'{stats["documents"]:,}, {stats["bytes"] / 1e6:,.1f} MB')]
    if stats['damaged_rows']:
        example = '{place}: {why}'.format(**stats['damaged'][0])
        rows.append(('damaged rows skipped', f'{stats["damaged_rows"]:,}, such as {example}'))
    rows += [(change, f'{count:,}') for change, count in stats['changed'].items() if count]
    for rule, dropped in by_documents(stats):
        share = dropped['documents'] / stats['documents']
        size = f'{dropped["bytes"] / 1e6:,.1f} MB'
        rows.append((f'dropped: {rule}', f'{dropped["documents"]:,} ({share:.1%}), {size}'))
    if stats['moved_to_training']:
        rows.append(('moved to training', f'{stats["moved_to_training"]:,}, too similar to another document'))
    if stats['unknown']:
        rows.append(('unknown tokens', f'{stats["unknown"]:,}'))
    for split, n in (('train', train), ('val', val)):
        rows.append((split, '{documents:,} documents, {tokens:,} tokens, {bytes:,} bytes'.format(**n)))
    density = f'{(train["bytes"] + val["bytes"]) / (train["tokens"] + val["tokens"]):.2f} bytes per token'
    rows.append(('vocabulary', '{name}, {size:,} tokens, '.format(**stats['vocabulary']) + density))
    total = sum(stats['seconds'].values()) or 1
    stages = ', '.join(f'{stage} {seconds / total:.0%}' for stage, seconds in stats['seconds'].items())
    rate = f'{stats["bytes"] / 1e6 / stats["wall_seconds"]:.1f} MB/s'
    rows.append(('time', f'{clock(stats["wall_seconds"])}, {rate}; of the work: {stages}'))
    width = max(len(label) for label, _ in rows)
    return '\n'.join([f'data/{stats["name"]}', *(f'  {label:<{width}}  {value}' for label, value in rows)])


def show(units, job, count):
    """Print the first `count` kept and `count` dropped documents side by side, as far as the source has them."""
    kept, dropped = [], []
    for document in itertools.chain(*(shard.read_and_clean(unit, job, shard.new_stats()) for unit in units)):
        (dropped if document['rule'] else kept).append(document)
        if min(len(kept), len(dropped)) >= count:
            break
    width = max(30, shutil.get_terminal_size().columns // 2 - 2)
    for pair in itertools.zip_longest(kept[:count], dropped[:count]):
        for lines in itertools.zip_longest(*(excerpt(each, width) for each in pair), fillvalue=''):
            print('{:<{width}}  {}'.format(*lines, width=width).rstrip())
        print()


def excerpt(document, width, lines=8):
    """The first lines of a raw document below what the rules decided; nothing of None."""
    if document is None:
        return []
    title = f'DROPPED, {document["rule"]}: ' if document['rule'] else 'kept: '
    wrapped = [part for line in document['raw'][:2000].splitlines() for part in textwrap.wrap(line, width)]
    return [*textwrap.wrap(title + document['place'], width), '-' * width, *wrapped[:lines]]
