"""Raw text to token files: read, clean, drop duplicates, split, tokenize, write `data/NAME/`.

    python prepare.py python                           # Python's standard library, on every machine, no download
    python prepare.py openwebtext                      # a named corpus (sources.py lists them)
    python prepare.py books --files='books/**/*.txt'   # your own .txt .md .py .jsonl .parquet, plain, .gz or .zst
    python prepare.py pile --hub=monology/pile-uncopyrighted
    python train.py --dataset=books                    # next

Text streams through: memory grows by a hash per document and nothing is copied to disk. The main process reads and
writes, the others clean and tokenize; the result is the same bytes whatever their number.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

import tokenizer as vocabularies
from config import configure, fail, progress, reason
from sources import SOURCES, clean, documents, hub_documents, hub_revision, local_files

# -----------------------------------------------------------------------------
name = ''  # the data set: data/NAME is written; a name of sources.py brings its source and the defaults below
files = ''  # a glob of local files, or a URL
hub = ''  # OWNER/NAME of a data set on the Hugging Face hub, or a local directory laid out like one
hub_config = ''  # which of its configurations
hub_split = 'train'  # which of its splits
text_field = 'text'  # the field of .jsonl, .parquet and hub rows that holds the text
tokenizer = ''  # gpt2 | cl100k_base | o200k_base | bpe, byte, char (learned here) | a directory | a hub repository; '': gpt2
vocab_size = 0  # of a bpe learned here, special tokens included; 0: as the source says, else 8192
tokenizer_chars = 1_000_000_000  # learn the vocabulary from at most this many characters
val_fraction = 0.0  # of the documents; 0: as the source says, else 0.01
max_documents = 0  # stop after so many; 0: all
num_proc = 0  # processes that clean and tokenize; 0: one per core
# -----------------------------------------------------------------------------

FEW = 100  # fewer documents than this are split by position: a hash would leave the shares to chance
BATCH = 1 << 20  # characters a worker gets at a time


def fingerprint(text):
    """64 bits of the text's hash: equal for equal documents; among 100M others a false match has odds of 1 in 3,700."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'little')


# --- one batch of documents, in a worker ----------------------------------------


def start_worker(directory):
    global vocabulary
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # the processes are the parallelism
    threading.Thread(target=end_with_parent, daemon=True).start()
    vocabulary = vocabularies.load(directory)


def end_with_parent():
    """A worker whose main process was killed would wait for its next task forever."""
    wait([parent_process().sentinel])
    os._exit(1)


def tokenize(task):
    """(split or None, raw texts) -> (split, ids of all, rows, counts).

    Each document's ids end with the end of text; its row is (fingerprint, bytes, tokens). An empty one has no tokens.
    """
    split, texts = task
    counts = Counter()
    texts = [clean(text, counts) for text in texts]
    texts = [text if text.strip() else '' for text in texts]
    encoded = vocabulary.encode_batch(texts)
    end = np.array([vocabulary.special['eot']], vocabulary.dtype)
    ids = [part for text, ids in zip(texts, encoded, strict=True) if text for part in (ids, end)]
    rows = [
        (fingerprint(t), len(t.encode()), len(i) + 1 if t else 0) for t, i in zip(texts, encoded, strict=True)
    ]
    counts['unknown characters'] = sum(int((i == vocabulary.special['unk']).sum()) for i in encoded)
    return split, np.concatenate(ids or [end[:0]]), rows, counts


def in_order(pool, function, tasks, waiting):
    """map() over a pool that holds at most `waiting` tasks at a time, so that reading never runs ahead of the work."""
    futures = deque()
    for task in tasks:
        futures.append(pool.submit(function, task))
        if len(futures) >= waiting:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


# --- splitting ------------------------------------------------------------------


def batches(placed):
    """Group (split, text) pairs into (split, list of texts) of about BATCH characters."""
    for split, run in itertools.groupby(placed, key=lambda pair: pair[0]):
        batch, length = [], 0
        for _, text in run:
            batch.append(text)
            length += len(text)
            if length >= BATCH:
                yield split, batch
                batch, length = [], 0
        if batch:
            yield split, batch


def cut_by_position(texts, done, counts):
    """Yield (split, cleaned text) of a few documents; the one that straddles the cut comes in two.

    texts: opens the stream anew, once to measure it and once to hand it on. The first 1 - val_fraction of all
    characters is the training split, as in nanoGPT.
    """
    seen = set()
    lengths = []  # of each document in characters; 0 where it is blank or seen before
    for text in texts():
        text = clean(text, Counter())
        mark = fingerprint(text)
        lengths.append(len(text) if text.strip() and mark not in seen else 0)
        seen.add(mark)
    left = int(sum(lengths) * (1 - val_fraction))  # characters of the training split still to come
    for text, length in zip(texts(done), lengths, strict=True):
        text = clean(text, counts)
        counts['documents read'] += 1
        if not text.strip():
            counts['dropped: empty'] += 1
        elif not length:
            counts['dropped: exact duplicate'] += 1
        else:
            yield from (
                (split, part) for split, part in (('train', text[:left]), ('val', text[left:])) if part
            )
        left = max(left - length, 0)


def place_by_hash(rows, seen, counts):
    """The split of each document of a batch, '' for those dropped: a function of the document's content alone."""
    splits = []
    for mark, _, tokens in rows:
        counts['documents read'] += 1
        if not tokens:
            counts['dropped: empty'] += 1
            splits.append('')
        elif mark in seen:
            counts['dropped: exact duplicate'] += 1
            splits.append('')
        else:
            seen.add(mark)
            splits.append('val' if mark < val_fraction * 2**64 else 'train')
    return splits


class Split:
    """The two files of a split as they grow: token ids, and the end offset of every document."""

    def __init__(self, directory, split, dtype):
        self.paths = [Path(directory, f'{split}.bin'), Path(directory, f'{split}.idx')]
        self.bin, self.idx = (open(path, 'wb') for path in self.paths)
        self.dtype, self.documents, self.tokens, self.bytes = dtype, 0, 0, 0

    def write(self, ids, tokens, size):
        """ids of some documents, the array of the number that each has, and their bytes as text."""
        self.bin.write(ids.astype(self.dtype.newbyteorder('<')).tobytes())
        self.idx.write((self.tokens + np.cumsum(tokens)).astype('<u8').tobytes())
        self.documents += len(tokens)
        self.tokens += len(ids)
        self.bytes += int(size)

    def close(self):
        self.bin.close()
        self.idx.close()
        return {'documents': self.documents, 'tokens': self.tokens, 'bytes': self.bytes}


# --- the whole --------------------------------------------------------------------


def settle_settings():
    """Fill what was left open from the source's defaults, and refuse what cannot be before anything is read."""
    global files, hub, hub_config, tokenizer, vocab_size, val_fraction, num_proc
    if not name:
        fail(
            f'name a data set: python prepare.py NAME, with NAME one of {", ".join(SOURCES)}, or any with --files=GLOB'
        )
    if not re.fullmatch(r'\w[\w.-]*', name):
        fail(f'the name {name!r} becomes a folder: letters, digits, ".", "-" and "_" only')
    if not (files or hub) and name not in SOURCES:
        fail(
            f'there is no data set {name!r}: choose one of {", ".join(SOURCES)}, or give --files=GLOB or --hub=OWNER/NAME'
        )
    source = SOURCES.get(name, {})
    if not (files or hub):
        files, hub, hub_config = (source.get(k, '') for k in ('files', 'hub', 'hub_config'))
    tokenizer = tokenizer or source.get('tokenizer', 'gpt2')
    vocab_size = vocab_size or source.get('vocab_size', 8192)
    val_fraction = val_fraction or source.get('val_fraction', 0.01)
    num_proc = num_proc or cores()
    if files and hub:
        fail('give --files or --hub, not both')
    for setting in ('num_proc', 'max_documents', 'vocab_size', 'tokenizer_chars'):
        if globals()[setting] < 0:
            fail(f'{setting} = {globals()[setting]} should not be negative')
    if not 0 < val_fraction < 1:
        fail(f'val_fraction = {val_fraction} should lie between 0 and 1')


def cores():
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def main():
    settle_settings()
    began = time.time()
    if hub:
        revision = hub_revision(hub)
        source, total, unit = (
            {'hub': hub, 'config': hub_config, 'split': hub_split, 'revision': revision},
            0,
            ' docs',
        )
    else:
        paths = local_files(files)
        source, total, unit = {'files': files, 'count': len(paths)}, sum(map(os.path.getsize, paths)), 'B'

    def texts(done=lambda n: None):  # opens the stream of raw documents at its beginning
        if hub:
            stream = hub_documents(hub, hub_config, hub_split, revision, text_field, done)
        else:
            stream = documents(paths, text_field, done)
        return itertools.islice(stream, max_documents or None)

    final = Path('data', name)
    partial = final / '.partial'
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        meta, counts = build(partial, texts, total, unit)
        if not meta['train']['tokens']:
            fail(f'{files or hub} holds no text')
        if not meta['val']['tokens']:
            fail(f'no document fell into the validation split: raise val_fraction = {val_fraction}')
        publish(partial, final, meta | {'source': source})
    except OSError as e:
        fail(f'cannot write {final}: {reason(e)}; nothing was kept')
    except BrokenProcessPool:
        fail('a worker process was killed, most likely for want of memory: try a smaller --num_proc')
    except KeyboardInterrupt:
        fail('stopped; nothing was kept')
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if final.is_dir() and not any(final.iterdir()):
            final.rmdir()
    report(meta, counts, time.time() - began)


def build(directory, texts, total, unit):
    """Write the vocabulary and both splits into a directory -> (meta, counts).

    texts: opens the stream of raw documents, its argument a function called with the amount read.
    """
    few = sum(1 for _ in itertools.islice(texts(), FEW)) < FEW
    if tokenizer in vocabularies.KINDS:
        with progress('learning the vocabulary', total, unit) as bar:
            vocabulary = vocabularies.learn(tokenizer, first_characters(texts(bar.update)), vocab_size)
    else:
        vocabulary = vocabularies.load(tokenizer)
    vocabulary.save(directory)

    counts, seen = Counter(), set()
    splits = {split: Split(directory, split, vocabulary.dtype) for split in ('train', 'val')}
    # spawned, not forked: a fork of a process that runs threads can hang
    pool = ProcessPoolExecutor(num_proc, get_context('spawn'), start_worker, (str(directory),))
    with pool, progress('tokenizing', total, unit) as bar:
        stream = cut_by_position(texts, bar.update, counts) if few else ((None, t) for t in texts(bar.update))
        for split, ids, rows, batch_counts in in_order(pool, tokenize, batches(stream), 2 * num_proc):
            counts.update(batch_counts)
            placed = np.array([split] * len(rows) if split else place_by_hash(rows, seen, counts))
            _, sizes, tokens = (np.array(column) for column in zip(*rows, strict=True))
            for each, written in splits.items():
                chosen = (placed == each) & (tokens > 0)
                written.write(ids[np.repeat(chosen, tokens)], tokens[chosen], sizes[chosen].sum())
    meta = {split: written.close() for split, written in splits.items()}
    meta |= dict(
        tokenizer=vocabulary.name,
        tokenizer_hash=vocabulary.hash,
        vocab_size=vocabulary.vocab_size,
        special=vocabulary.special,
        dtype=vocabulary.dtype.name,
    )
    return meta, counts


def first_characters(texts):
    """Cleaned documents until `tokenizer_chars` characters are through."""
    left = tokenizer_chars
    for text in texts:
        yield clean(text[:left], Counter())
        left -= len(text)
        if left <= 0:
            return


def publish(partial, final, meta):
    """Move finished files to their place. meta.json goes first and comes last: while it is there the data is whole."""
    keep = ('text_field', 'tokenizer', 'vocab_size', 'tokenizer_chars', 'val_fraction', 'max_documents')
    meta['settings'] = {key: globals()[key] for key in keep}
    meta['sha256'] = {path.name: sha256(path) for path in sorted(partial.iterdir())}
    (partial / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n')
    for stale in ('meta.json', 'tokenizer.json', 'tokenizer.txt'):
        (final / stale).unlink(missing_ok=True)
    for file in [*meta['sha256'], 'meta.json']:
        os.replace(partial / file, final / file)


def sha256(path):
    with open(path, 'rb') as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def report(meta, counts, seconds):
    """The final table."""
    rows = [
        (label, f'{counts[label]:,}')
        for label in ('documents read', 'dropped: empty', 'dropped: exact duplicate')
    ]
    rows += [
        (label, f'{counts[label]:,}') for label in ('documents changed by NFC', 'control characters removed')
    ]
    if counts['unknown characters']:
        rows.append(
            (
                'unknown characters',
                f'{counts["unknown characters"]:,} (became {vocabularies.SPECIAL["unk"][0]})',
            )
        )
    for split in ('train', 'val'):
        n = meta[split]
        rows.append((split, f'{n["documents"]:,} documents, {n["tokens"]:,} tokens, {n["bytes"]:,} bytes'))
    size, tokens = (meta['train'][k] + meta['val'][k] for k in ('bytes', 'tokens'))
    rows.append(
        ('vocabulary', f'{tokenizer}, {meta["vocab_size"]:,} tokens, {size / tokens:.2f} bytes per token')
    )
    rows.append(('time', f'{seconds:.1f} s, {size / 1e6 / seconds:.1f} MB/s with {num_proc} processes'))
    print(f'data/{name}')
    for label, value in rows:
        print(f'  {label:<27} {value}')


if __name__ == '__main__':
    configure(globals(), positional=['name'])
    main()
