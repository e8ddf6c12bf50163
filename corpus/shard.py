"""Shards: one unit of work read, cleaned, filtered, signed and tokenized. This is what every process of prepare.py does.

`make` depends on the unit and the job alone. It writes beside the shard's final name and renames at the end, so any
process of any machine may make any shard, even twice, and a shard that exists is complete. It is a directory:

    tokens.bin       the tokens of every document that the filters keep, each with its end-of-text id
    mask.bin         of conversations: 1 for each token to be learned
    rows.bin         ROW of each document
    signatures.bin   dedup.signature_dtype of each document
    report.json      what was read, changed and dropped, and the seconds it took
"""

import functools
import itertools
import json
import os
import shutil
import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np

import chat
import tokenizer
from common import fail
from corpus import dedup, filters, formats

BATCH = 1 << 20  # characters tokenized together
EXAMPLES = 3  # documents shown for each rule that drops some
EXCERPT = 300  # characters of each
ROW = np.dtype([('tokens', '<u4'), ('bytes', '<u8'), ('characters', '<u8'), ('label', '<i4')])


def make(number, unit, job):
    """Make the shard of a unit, unless it exists.

    job: the settings of prepare.py that decide the result; `filters`, those of corpus/filters.py; and `directory`, which
    has shared/, the vocabulary and evaluation n-grams, and gets the shards, named by their numbers.
    """
    final = Path(job['directory'], f'{number:06}')
    if final.is_dir():
        return
    partial = final.with_name(f'{final.name}.{socket.gethostname()}-{os.getpid()}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write(partial, unit, job)
    try:
        os.rename(partial, final)
    except OSError:  # another process was faster
        if not final.is_dir():
            raise
        shutil.rmtree(partial)


def write(directory, unit, job):
    """Write the files of a shard, batch by batch."""
    for setting, value in job['filters'].items():  # not those of this process, nor of an earlier job
        setattr(filters, setting, value)
    vocabulary, benchmark = load_shared(job['directory'], job['decontaminate'])
    stats, labels = new_stats(), {}
    documents = itertools.islice(read_and_clean(unit, job, stats), job['max_documents'] or None)
    for batch in batches(documents):
        kept, signatures = filter_and_sign(batch, job, benchmark, stats)
        lap(stats, 'sign')
        ids, masks = encode(kept, vocabulary, job['task'])
        lap(stats, 'tokenize')
        tokens = np.concatenate([*ids, np.empty(0, vocabulary.dtype)])
        stats['unknown'] += int((tokens == vocabulary.special['unk']).sum())
        rows = np.empty(len(kept), ROW)
        for i, document in enumerate(kept):
            text, label = document['text'], labels.setdefault(str(document['label']), len(labels))
            rows[i] = len(ids[i]), len(text.encode()), len(text), label
        mask = np.concatenate([*masks, np.empty(0, np.uint8)])
        for name, array in dict(tokens=tokens, mask=mask, rows=rows, signatures=signatures).items():
            append(directory / f'{name}.bin', array)
        (directory / 'progress').write_text(str(stats['input_bytes']))
        lap(stats, 'write')
    (directory / 'report.json').write_text(json.dumps(stats | dict(labels=[*labels])))


def append(path, array):
    """Append an array to a file, little-endian."""
    with open(path, 'ab') as file:
        file.write(array.astype(array.dtype.newbyteorder('<'), copy=False).tobytes())


# --- statistics -------------------------------------------------------------------


def new_stats():
    """What report.json tells of one shard or of all."""
    counts = dict.fromkeys(('documents', 'bytes', 'input_bytes', 'unknown', 'damaged_rows'), 0)
    return counts | dict(changed=Counter(), dropped={}, damaged=[], contaminated=[], seconds=Counter())


def lap(stats, stage):
    """Add the time since stats['clock'], when the stage before ended, to the seconds of a stage."""
    now = time.perf_counter()
    stats['seconds'][stage] += now - stats['clock']
    stats['clock'] = now


def add_dropped(stats, rule, dropped):
    """Add what a rule dropped, {'documents', 'bytes', 'examples'}, to the statistics, which keep the first examples."""
    total = stats['dropped'].setdefault(rule, dict(documents=0, bytes=0, examples=[]))
    for key in total:
        total[key] += dropped[key]
    del total['examples'][EXAMPLES:]


# --- from files to token ids ------------------------------------------------------


def read_and_clean(unit, job, stats):
    """Yield every document of a unit as a dict: its place, its raw and its cleaned text, the rule that drops it or '',
    the messages of a conversation, the label of a labelled row. `stats` counts what happens.
    """

    def damaged(place, why):
        if job['strict']:
            fail(f'{place}: {why}')
        stats['damaged_rows'] += 1
        if len(stats['damaged']) < 100:
            stats['damaged'].append({'place': place, 'why': why})

    def count_bytes(n):
        stats['input_bytes'] += n

    field = job['text_field'] if job['task'] == 'text' else ''  # '' asks for complete rows
    stats['clock'] = time.perf_counter()
    for place, raw in formats.documents(unit, field, damaged, count_bytes):
        lap(stats, 'read')
        messages = label = None
        try:
            if job['task'] == 'chat':
                messages = chat.conversation(raw)
            elif job['task'] == 'classify':
                raw, label = chat.classification(raw, job['text_field'])
        except ValueError as e:
            damaged(place, str(e))
            continue
        if messages:
            for message in messages:
                message['content'], _ = filters.clean(message['content'], job['clean'], stats['changed'])
            raw = '\n\n'.join(message['content'] for message in messages)
        text, rule = filters.clean(raw, job['clean'], stats['changed'])
        lap(stats, 'clean')
        yield dict(place=place, raw=raw, text=text, rule=rule, messages=messages, label=label)


def batches(documents):
    """Group documents into lists of about BATCH characters."""
    batch, length = [], 0
    for document in documents:
        batch.append(document)
        length += len(document['raw'])
        if length >= BATCH:
            yield batch
            batch, length = [], 0
    yield batch


def filter_and_sign(batch, job, benchmark, stats):
    """The documents of a batch that no rule drops, and their signatures. The others are counted in `stats`."""
    near = job['dedup'] == 'near'
    kept = [document for document in batch if not document['rule']]
    texts = [document['text'] for document in kept]
    words = dedup.lower_words(texts) if near or benchmark else None
    if benchmark:
        for document, shared in zip(kept, dedup.overlaps(texts, words, benchmark), strict=True):
            if shared:
                document['rule'] = 'contaminated'
                stats['contaminated'].append({'place': document['place'], 'words': shared})
    signed = dedup.signatures(texts, words, job['bands'] if near else 0, job['rows'])
    for document in batch:
        size = len(document['raw'].encode(errors='ignore'))
        stats['documents'] += 1
        stats['bytes'] += size
        if document['rule']:
            example = {'place': document['place'], 'text': document['raw'][:EXCERPT]}
            add_dropped(stats, document['rule'], dict(documents=1, bytes=size, examples=[example]))
    stays = np.array([not document['rule'] for document in kept], bool)
    return [document for document in kept if not document['rule']], signed[stays]


def encode(documents, vocabulary, task):
    """The token ids of each document with their end of text, and for conversations the masks of what is learned."""
    if task == 'chat':
        rendered = [chat.render(document['messages'], vocabulary) for document in documents]
        return [ids for ids, _ in rendered], [mask for _, mask in rendered]
    end = np.array([vocabulary.special['eot']], vocabulary.dtype)
    return [np.append(ids, end) for ids in vocabulary.encode_batch([d['text'] for d in documents])], []


def evaluation_texts(inputs):
    """All strings of evaluation files: texts, and in rows all fields, whatever they are called."""
    for path, _ in inputs:
        for _, document in formats.documents([(path, 0, None)], text_field=''):
            values = [document]
            for value in values:  # grows by the values of lists and dicts
                if isinstance(value, str):
                    yield value
                elif isinstance(value, dict | list):
                    values += value.values() if isinstance(value, dict) else value


@functools.cache
def load_shared(directory, decontaminate):
    """The vocabulary, and the n-grams of evaluation texts if there are any."""
    benchmark = np.load(Path(directory, 'shared/benchmark.npz')) if decontaminate else {}
    benchmark = {int(length): dedup.lookup_table(benchmark[length]) for length in benchmark}
    return tokenizer.load(str(Path(directory, 'shared'))), benchmark


# --- finished shards, by their directories ----------------------------------------


def finished(directory):
    """The directories of the shards that exist, in order."""
    return sorted(path for path in directory.glob('[0-9]*') if path.name.isdigit())


def read_report(path):
    return json.loads((path / 'report.json').read_text())


def read_array(path, dtype):
    """The array in a file, as a memory map; an empty file, which cannot be mapped, as an empty array."""
    return np.memmap(path, dtype.newbyteorder('<'), 'r') if path.stat().st_size else np.empty(0, dtype)


def column(shards, field):
    """A field of ROW of the documents of all shards, (documents,)."""
    return np.concatenate([read_array(path / 'rows.bin', ROW)[field] for path in shards])


def tokens_of(shards, index, dtype):
    """The token ids of one document, without its end of text. Documents are numbered through all shards."""
    for path in shards:
        counts = read_array(path / 'rows.bin', ROW)['tokens']
        if index < len(counts):
            end = int(counts[: index + 1].sum(dtype=np.int64))
            return read_array(path / 'tokens.bin', dtype)[end - int(counts[index]) : end - 1]
        index -= len(counts)


def gather_signatures(shards, bands):
    """The signatures of the documents of all shards, (documents,), as one file: thousands could not be open at once."""
    path = shards[0].with_name('signatures.bin')
    with open(path, 'wb') as out:
        for each in shards:
            out.write((each / 'signatures.bin').read_bytes())
    return read_array(path, dedup.signature_dtype(bands))
