"""One unit of work -> one shard: its documents read, judged, sketched and tokenized. What every process of prepare.py does.

`make` is a function of the unit and the job alone and writes beside the shard's final name, so that any process of any
machine may make any shard, twice if need be, and a shard that is there is whole. A shard is a directory:

    tokens.bin     the tokens of every document that the rules keep, each with its end of text
    mask.bin       of conversations: 1 for each token that is to be learned
    rows.bin       ROW of each document
    sketches.bin   dedup.signature_dtype of each document
    report.json    what was read, changed, dropped and why, and the seconds it took
"""

import contextlib
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
from configurator import own_settings
from corpus import dedup, filters, formats

BATCH = 1 << 20  # characters tokenized together
EXAMPLES = 3  # of the documents that each rule drops
EXCERPT = 300  # characters of each
ROW = np.dtype(
    [('number', '<u4'), ('tokens', '<u4'), ('bytes', '<u8'), ('characters', '<u8'), ('label', '<i4')]
)


def path_of(directory, number):
    return Path(directory, f'{number:06}')


def make(number, unit, job):
    """Make the shard of a unit, unless it is there.

    job: the settings of prepare.py that decide and those of clean.py, and `directory`, where vocabulary/ and
    benchmark.npz lie.
    """
    final = path_of(job['directory'], number)
    if final.is_dir():
        return
    partial = final.with_name(f'{final.name}.{socket.gethostname()}-{os.getpid()}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    vocabulary = load_vocabulary(job['directory'])
    benchmark = load_benchmark(job['directory']) if job['decontaminate'] else None
    told, labels = new_report(), {}

    def done(n):
        told['input_bytes'] += n
        if told['input_bytes'] - done.told >= BATCH:
            done.told = told['input_bytes']
            with contextlib.suppress(OSError):  # a disk that is full will say so where it matters
                (partial / 'progress').write_text(str(done.told))

    done.told = 0
    with (
        open(partial / 'tokens.bin', 'wb') as tokens,
        open(partial / 'mask.bin', 'wb') as masks,
        open(partial / 'rows.bin', 'wb') as rows,
        open(partial / 'sketches.bin', 'wb') as sketches,
    ):
        documents = itertools.islice(judged(unit, job, told, done), job['max_documents'] or None)
        for batch in batches(documents):
            kept, found = sketched(batch, job, benchmark, told)
            sketches.write(found.tobytes())
            lap(told, 'sketch')
            ids, mask = encode(kept, vocabulary, job['task'])
            lap(told, 'tokenize')
            for written, arrays in ((tokens, ids), (masks, mask)):
                for array in arrays:
                    written.write(array.astype(array.dtype.newbyteorder('<')).tobytes())
            for document, array in zip(kept, ids, strict=True):
                size, label = len(document['text'].encode()), label_number(document['label'], labels)
                rows.write(
                    np.array(
                        (document['number'], len(array), size, len(document['text']), label), ROW
                    ).tobytes()
                )
                told['unknown'] += int((array == vocabulary.special['unk']).sum())
            lap(told, 'write')
    told['labels'] = labels
    (partial / 'report.json').write_text(json.dumps(told))
    (partial / 'progress').unlink(missing_ok=True)
    try:
        os.rename(partial, final)
    except OSError:  # another process was quicker
        if not final.is_dir():
            raise
        shutil.rmtree(partial)


def new_report():
    counts = dict.fromkeys(('documents', 'bytes', 'input_bytes', 'unknown', 'damaged_rows'), 0)
    found = dict(changed=Counter(), dropped={}, damaged=[], contaminated=[], seconds=Counter())
    return counts | found | dict(mark=time.perf_counter())


def lap(told, stage):
    """Add the time since the last call to a stage."""
    now = time.perf_counter()
    told['seconds'][stage] += now - told['mark']
    told['mark'] = now


def judged(unit, job, told, done=lambda n: None):
    """Yield every document of a unit as a dict: its number in the unit, its place, the raw and the cleaned text, the rule
    that drops it or ''; the messages of a conversation, the label of a labelled one. `told` counts what happens.
    """
    vars(filters).update({key: job[key] for key in own_settings(vars(filters))})

    def damaged(place, why):
        if job['strict']:
            fail(f'{place}: {why}')
        told['damaged_rows'] += 1
        if len(told['damaged']) < 100:
            told['damaged'].append({'place': place, 'why': why})

    field = job['text_field'] if job['task'] == 'text' else ''  # '' asks for whole rows
    stream = formats.documents(unit, field, damaged, done)
    told['mark'] = time.perf_counter()
    for number, (place, raw) in enumerate(stream):
        lap(told, 'read')
        document = dict(number=number, place=place, messages=None, label=None)
        try:
            if job['task'] == 'chat':
                raw = clean_messages(chat.conversation(raw), job['clean'], told['changed'])
                document['messages'], raw = raw, '\n\n'.join(message['content'] for message in raw)
            elif job['task'] == 'classify':
                raw, document['label'] = chat.classification(raw, job['text_field'])
        except ValueError as e:
            damaged(place, str(e))
            continue
        document['raw'] = raw
        document['text'], document['rule'] = filters.clean(raw, job['clean'], told['changed'])
        lap(told, 'clean')
        yield document


def clean_messages(messages, preset, changed):
    return [
        message | {'content': filters.clean(message['content'], preset, changed)[0]} for message in messages
    ]


def sketched(batch, job, benchmark, told):
    """The documents of a batch that stay so far, and their sketches; the others are noted with what drops them."""
    near = job['dedup'] == 'near'
    left = [document for document in batch if not document['rule']]
    texts = [document['text'] for document in left]
    words = dedup.lower_words(texts) if near or benchmark else None
    for document, shared in zip(
        left, dedup.overlaps(texts, words, benchmark) if benchmark else [], strict=False
    ):
        if shared:
            document['rule'] = 'contaminated'
            told['contaminated'].append({'place': document['place'], 'words': shared})
    found = dedup.signatures(texts, words, job['bands'] if near else 0, job['rows'])
    stays = np.array([not document['rule'] for document in left], bool)
    for document in batch:
        told['documents'] += 1
        told['bytes'] += len(document['raw'].encode(errors='ignore'))
        if document['rule']:
            note_dropped(told, document)
    return [document for document in left if not document['rule']], found[stays]


def note_dropped(told, document):
    rule = document['rule']
    dropped = told['dropped'].setdefault(rule, {'documents': 0, 'bytes': 0, 'examples': []})
    dropped['documents'] += 1
    dropped['bytes'] += len(document['raw'].encode(errors='ignore'))
    if len(dropped['examples']) < EXAMPLES:
        dropped['examples'].append({'place': document['place'], 'text': document['raw'][:EXCERPT]})


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


def encode(documents, vocabulary, task):
    """The token ids of each document, end of text included, and, of conversations, what of them is to be learned."""
    if task == 'chat':
        rendered = [chat.render(document['messages'], vocabulary) for document in documents]
        return [ids for ids, _ in rendered], [mask for _, mask in rendered]
    end = np.array([vocabulary.special['eot']], vocabulary.dtype)
    return [np.append(ids, end) for ids in vocabulary.encode_batch([d['text'] for d in documents])], []


def label_number(label, labels):
    """The number of a label among those of this shard, -1 without one."""
    return -1 if label is None else labels.setdefault(str(label), len(labels))


def evaluation_texts(inputs):
    """Every string of evaluation files: the texts, and of rows all fields, whatever they are called."""
    for path, _ in inputs:
        for _, document in formats.documents([(path, 0, None)], text_field=''):
            yield from strings(document)


def strings(value):
    """All strings in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


@functools.cache
def load_vocabulary(directory):
    return tokenizer.load(str(Path(directory, 'vocabulary')))


@functools.cache
def load_benchmark(directory):
    with np.load(Path(directory, 'benchmark.npz')) as file:
        return {int(length): dedup.lookup_table(file[length]) for length in file}


class Shard:
    """A finished shard, read: `rows` (documents,) ROW, `tokens` and `mask` (tokens,), `report`.

    The arrays are memory maps, made anew at each use: of all shards together they are more files than a process may open.
    """

    def __init__(self, path, dtype):
        self.path, self.dtype = path, dtype
        self.number = int(path.name)  # of its unit
        self.report = json.loads((path / 'report.json').read_text())

    @property
    def rows(self):
        return read_array(self.path / 'rows.bin', ROW)

    @property
    def tokens(self):
        return read_array(self.path / 'tokens.bin', self.dtype.newbyteorder('<'))

    @property
    def mask(self):
        return read_array(self.path / 'mask.bin', np.dtype(np.uint8))


def column(shards, field):
    """A field of ROW of the documents of all shards, (documents,)."""
    return np.concatenate([np.array(each.rows[field]) for each in shards])


def gather_sketches(shards, bands):
    """The sketches of the documents of all shards, (documents,), as one file in place of thousands."""
    path = shards[0].path.with_name('sketches.bin')
    with open(path, 'wb') as out:
        for each in shards:
            with open(each.path / 'sketches.bin', 'rb') as file:
                shutil.copyfileobj(file, out)
    return read_array(path, dedup.signature_dtype(bands))


def read_array(path, dtype):
    """The array in a file, as a memory map; an empty one, which cannot be mapped, as itself."""
    return np.memmap(path, dtype, 'r') if path.stat().st_size else np.empty(0, dtype)
