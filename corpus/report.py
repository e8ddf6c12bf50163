"""What became of a corpus: report.json, report.png, the table at the end; and documents for a person to judge."""

import itertools
import json
import shutil
import textwrap
from collections import Counter

import numpy as np

from common import clock
from corpus import shard


def collect(name, shards, found, meta, vocabulary, seconds):
    """All there is to tell, as a dict: what the shards report, which documents were copies, and what was written.

    found: what prepare.decide found of copies; seconds: of the whole run.
    """
    told = shard.new_report() | dict(name=name, source=meta['source'], settings=meta['settings'])
    for each in shards:
        for rule, dropped in each.report['dropped'].items():
            add_dropped(told, rule, dropped)
        for key in ('changed', 'seconds'):
            told[key].update(each.report[key])
        for key in (
            'documents',
            'bytes',
            'input_bytes',
            'unknown',
            'damaged_rows',
            'damaged',
            'contaminated',
        ):
            told[key] += each.report[key]
    first = found['first']
    copied = first != np.arange(len(first))
    for rule, which in (('exact duplicate', found['exact']), ('near duplicate', copied & ~found['exact'])):
        if which.any():
            add_dropped(told, rule, describe_copies(shards, first, np.flatnonzero(which), vocabulary))
    sizes = np.bincount(first, minlength=len(first))[~copied]
    told['clusters'] = {str(n): int(count) for n, count in enumerate(np.bincount(sizes)) if n > 1 and count}
    told['moved_to_training'] = found['moved']
    tokens = shard.column(shards, 'tokens')[~copied]
    told['tokens_per_document'] = {
        f'{1 << n}': int(count) for n, count in enumerate(histogram(tokens)) if count
    }
    told |= {split: meta[split] for split in ('train', 'val')}
    told['vocabulary'] = dict(name=meta['settings']['tokenizer'], size=meta['vocab_size'])
    told['wall_seconds'] = seconds
    del told['mark']
    return told


def add_dropped(told, rule, dropped):
    total = told['dropped'].setdefault(rule, {'documents': 0, 'bytes': 0, 'examples': []})
    total['documents'] += dropped['documents']
    total['bytes'] += dropped['bytes']
    total['examples'] = (total['examples'] + dropped['examples'])[: shard.EXAMPLES]


def describe_copies(shards, first, which, vocabulary):
    """Copies as dropped documents: how many, their bytes, and the beginnings of a few beside what they are copies of."""
    begins = np.cumsum([0, *(len(each.rows) for each in shards)])

    def beginning(index):
        number = int(np.searchsorted(begins, index, side='right')) - 1
        counts = shards[number].rows['tokens'][: index - begins[number] + 1].astype(np.int64)
        end = int(counts.sum())
        return vocabulary.decode(shards[number].tokens[end - counts[-1] : end - 1][: shard.EXCERPT // 4])

    bytes_of_all = shard.column(shards, 'bytes')
    examples = [{'text': beginning(i), 'copy of': beginning(first[i])} for i in which[: shard.EXAMPLES]]
    return {'documents': len(which), 'bytes': int(bytes_of_all[which].sum()), 'examples': examples}


def histogram(tokens):
    """How many documents have 1, 2 to 3, 4 to 7, ... tokens."""
    return np.bincount(np.log2(np.maximum(tokens, 1)).astype(np.int64))


def write(directory, told):
    """Write report.json and report.png."""
    text = json.dumps(told, indent=1, ensure_ascii=False) + '\n'
    (directory / 'report.json').write_text(text, 'utf-8', errors='replace')  # examples are as they came
    plot(directory / 'report.png', told)


def plot(path, told):
    from matplotlib.figure import Figure

    figure = Figure((12, 8), layout='constrained')
    figure.suptitle(f'{told["name"]}: {told["documents"]:,} documents, {told["bytes"] / 1e6:,.1f} MB')
    went, lengths, clusters, seconds = figure.subplots(2, 2).flat
    kept = told['train']['documents'] + told['val']['documents']
    rules = sorted(told['dropped'].items(), key=lambda item: -item[1]['documents'])
    bars(went, 'where the documents went', {'kept': kept} | {rule: d['documents'] for rule, d in rules[:14]})
    tokens = told['tokens_per_document']
    lengths.bar([np.log2(int(n)) + 0.5 for n in tokens], [*tokens.values()], width=0.9)
    lengths.set(title='tokens in a document that stays', xlabel='tokens', ylabel='documents')
    lengths.xaxis.set_major_formatter(lambda n, _: f'{2**n:,.0f}')
    bars(clusters, 'clusters of copies, by their documents', grouped(told['clusters']))
    bars(seconds, 'seconds of all processes', {stage: round(s, 1) for stage, s in told['seconds'].items()})
    figure.savefig(path, dpi=100)


def grouped(clusters):
    """{size: number of clusters} with sizes put together as 2 to 3, 4 to 7, ..."""
    groups = Counter()
    for n, count in clusters.items():
        low = 1 << (int(n).bit_length() - 1)
        groups[f'{low:,} to {2 * low - 1:,}'] += count
    return groups


def bars(axes, title, values):
    axes.set_title(title)
    axes.barh([*values][::-1], [*values.values()][::-1])
    axes.bar_label(axes.containers[0], fmt='{:,.6g}', padding=3)
    axes.margins(x=0.15)


def table(told):
    """The lines that a run ends with."""
    rows = [('documents read', f'{told["documents"]:,}, {told["bytes"] / 1e6:,.1f} MB')]
    if told['damaged_rows']:
        one = told['damaged'][0]
        rows.append(
            ('damaged rows passed over', f'{told["damaged_rows"]:,}, such as {one["place"]}: {one["why"]}')
        )
    rows += [(what, f'{count:,}') for what, count in told['changed'].items() if count]
    for rule, dropped in sorted(told['dropped'].items(), key=lambda item: -item[1]['documents']):
        share = dropped['documents'] / told['documents']
        rows.append(
            (f'dropped: {rule}', f'{dropped["documents"]:,} ({share:.1%}), {dropped["bytes"] / 1e6:,.1f} MB')
        )
    if told['moved_to_training']:
        rows.append(('kept out of validation', f'{told["moved_to_training"]:,}, too like another document'))
    if told['unknown']:
        rows.append(('unknown tokens', f'{told["unknown"]:,}'))
    for split in ('train', 'val'):
        n = told[split]
        rows.append((split, f'{n["documents"]:,} documents, {n["tokens"]:,} tokens, {n["bytes"]:,} bytes'))
    size, tokens = (told['train'][k] + told['val'][k] for k in ('bytes', 'tokens'))
    vocabulary = told['vocabulary']
    rows.append(
        (
            'vocabulary',
            f'{vocabulary["name"]}, {vocabulary["size"]:,} tokens, {size / tokens:.2f} bytes a token',
        )
    )
    total = sum(told['seconds'].values()) or 1
    stages = ', '.join(f'{stage} {seconds / total:.0%}' for stage, seconds in told['seconds'].items())
    rate = told['bytes'] / 1e6 / told['wall_seconds']
    rows.append(('time', f'{clock(told["wall_seconds"])}, {rate:.1f} MB/s; of the work: {stages}'))
    width = max(len(label) for label, _ in rows)
    return '\n'.join([f'data/{told["name"]}', *(f'  {label:<{width}}  {value}' for label, value in rows)])


def show(units, job, count):
    """Print the first `count` kept and dropped documents side by side, as far as the source has them."""
    columns = {True: [], False: []}  # kept, dropped
    for document in itertools.chain.from_iterable(
        shard.judged(unit, job, shard.new_report()) for unit in units
    ):
        columns[not document['rule']].append(document)
        if min(map(len, columns.values())) >= count:
            break
    width = max(30, shutil.get_terminal_size().columns // 2 - 2)
    for pair in itertools.zip_longest(*(column[:count] for column in columns.values())):
        for left, right in itertools.zip_longest(
            *(excerpt(document, width) for document in pair), fillvalue=''
        ):
            print(f'{left:<{width}}  {right}'.rstrip())
        print()


def excerpt(document, width, lines=8):
    """The first lines of a document as it came, under what became of it; nothing of none."""
    if document is None:
        return []
    title = f'DROPPED, {document["rule"]}: ' if document['rule'] else 'kept: '
    wrapped = [part for line in document['raw'][:2000].splitlines() for part in textwrap.wrap(line, width)]
    return [*textwrap.wrap(title + document['place'], width), '-' * width, *wrapped[:lines]]
