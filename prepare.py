"""Raw text to token files: read, clean, drop duplicates, split, tokenize, into data/NAME/.

    python prepare.py --list                                         # the corpora known by name
    python prepare.py python
    python prepare.py fineweb-edu --max_documents=100000
    python prepare.py notes --files='~/notes/**/*.md' --tokenizer=bpe
    python prepare.py crawl --files=crawl.paths.gz --clean=web --show=20   # judge the rules before using them
    python prepare.py talks --files=chats.jsonl --task=chat
    python prepare.py mix --sources='wikipedia:0.3,fineweb-edu:0.7'
    torchrun --nproc_per_node=4 prepare.py fineweb-edu               # or srun: ranks share the work through the disk

Three stages. `work` makes a shard of each unit of work (an input file, a part of a large one, some small ones): it is a
function of the unit alone, so that any process of any machine may do it, and a shard appears when it is whole, so that
nothing is done twice, after a crash neither. `decide` looks at all documents, by their sketches of 176 bytes: which are
copies of others, which are for validation. `join` writes the tokens of those that stay. What happened is in report.json.
"""

import contextlib
import glob
import itertools
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

import chat
import tokenizer as vocabularies
from common import fail, progress, reason, sha256
from configurator import configure, own_settings
from corpus import dedup as copies
from corpus import filters as rules
from corpus import parallel, report, shard
from corpus import sources as readers
from corpus.merge import cut_document, decide, join, open_shards
from corpus.parallel import RANK
from loader import mixture

# -----------------------------------------------------------------------------
name = ''  # the data set: data/NAME is written; a name that --list shows brings its source and the defaults below
# what to read
files = ''  # a glob of local files, a URL, or a listing of them (.paths, .paths.gz)
hub = ''  # OWNER/NAME of a data set on the Hugging Face hub, or a local directory laid out like one
hub_config = ''  # which of its configurations
hub_split = 'train'  # which of its splits
text_field = 'text'  # the field of rows (.jsonl, .json, .csv, .parquet, .arrow, hub) that holds the text
task = 'text'  # 'text'; 'chat': rows of messages or prompts with answers; 'classify': rows of text_field and label
sources = ''  # instead of all this, a mixture of prepared data sets that share a vocabulary: 'a:0.3,b:0.7'
max_documents = 0  # stop after so many, read by one process; 0: all
strict = False  # stop at a damaged row instead of counting it and going on
# what to keep
clean = ''  # 'none', 'basic' (Unicode), 'web' (and all rules for web pages), 'code'; '': as the source says, else basic
dedup = ''  # 'near' (and exact copies), 'exact', 'none'; '': as the source says, else near
bands = 14  # of MinHash: documents that agree in one band are near copies
rows = 8  # of each band; 14 bands of 8 find 3 in 4 words alike, as in FineWeb (Penedo et al. 2024)
decontaminate = ''  # a glob of evaluation files: a document with 13 words in a row of theirs is dropped
val_fraction = 0.0  # of the documents; 0: as the source says, else 0.01
# the vocabulary
tokenizer = ''  # gpt2 | cl100k_base | o200k_base | a kind to learn | a directory | a hub repository; '': gpt2
vocab_size = 0  # of one learned here, special tokens included; 0: as the source says, else 8192
normalize = ''  # of one learned here: 'lower', 'accents' or 'lower,accents' folds text before it is split
tokenizer_chars = 1_000_000_000  # learn it from at most this many characters
# who does it
num_proc = 0  # processes; 0: one per core
ray = ''  # the address of a Ray cluster ('auto', 'local'): its workers do the units
# what to print
list = False  # the corpora known by name
show = 0  # so many kept and dropped documents side by side; nothing is written
# -----------------------------------------------------------------------------

# what makes the result what it is; the other settings say who does it and what is printed
DECISIVE = (
    'files', 'hub', 'hub_config', 'hub_split', 'text_field', 'task', 'max_documents', 'strict', 'clean', 'dedup', 'bands',
    'rows', 'decontaminate', 'val_fraction', 'tokenizer', 'vocab_size', 'normalize', 'tokenizer_chars',
)  # fmt: skip


def main():
    if list:
        return print(readers.listing())
    settle_settings()
    if sources:
        return name_mixture()
    began = time.time()
    home, directory = Path('data', name), Path('data', name, '.work')
    job = {key: globals()[key] for key in DECISIVE} | own_settings(vars(rules))
    job['directory'] = str(directory)
    if show:
        inputs, _ = readers.find_files(files, hub, hub_config, hub_split)
        return report.show(readers.units(inputs), job, show)
    try:
        plan = make_plan(directory / 'plan.json', job)
        sizes = dict(plan['inputs'])
        units = readers.units(plan['inputs'], unit_size(sizes))
        parallel.once(
            directory / 'vocabulary', lambda path: save_vocabulary(path, units, job, sum(sizes.values()))
        )
        if decontaminate:
            parallel.once(directory / 'benchmark.npz', save_benchmark)
        parallel.make_shards(units, job, sizes, num_proc, ray)
        if RANK > 0:
            return
        vocabulary = vocabularies.load(str(directory / 'vocabulary'))
        shards = open_shards(directory, len(units), vocabulary)
        places, found = decide(shards, job)
        cut = cut_document(units, shards, places, job)
        result = directory / 'result'
        shutil.rmtree(result, ignore_errors=True)
        shutil.copytree(directory / 'vocabulary', result)
        meta = join(shards, places, result, vocabulary, cut, job)
        del job['directory']
        meta |= dict(source=plan['origin'], settings=job)
        told = report.collect(name, shards, found, meta, vocabulary, time.time() - began)
        report.write(result, told)
        publish(result, home, meta)
        shutil.rmtree(directory)
    except OSError as e:
        fail(f'cannot write {home}: {reason(e)}; {keep_shards(directory)}')
    except BrokenProcessPool:
        why = 'a worker was killed, most likely for want of memory: try a smaller --num_proc'
        fail(f'{why}; {keep_shards(directory)}')
    except KeyboardInterrupt:
        fail(f'stopped; {keep_shards(directory)}')
    except SystemExit:  # with its line said
        keep_shards(directory)
        raise
    print(report.table(told))


def keep_shards(directory):
    """After a run that did not end: what is finished stays for the next one; without any shard there is nothing to keep."""
    if RANK > 0:  # the others may go on
        return ''
    done = sum(path.name.isdigit() for path in directory.glob('*'))
    if done:
        return f'{done} finished parts are kept, and the same command goes on from there'
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):  # where there is earlier data
        directory.parent.rmdir()
    return 'nothing was kept'


# --- the plan ---------------------------------------------------------------------


def settle_settings():
    """Fill what was left open from the source's defaults, and refuse what cannot be before anything is read."""
    global files, hub, hub_config, hub_split, text_field
    global tokenizer, vocab_size, val_fraction, clean, dedup, num_proc
    if not name:
        fail(
            'name a data set: python prepare.py NAME, one that --list shows, or any with --files=GLOB or --hub=OWNER/NAME'
        )
    if not re.fullmatch(r'\w[\w.-]*', name):
        fail(f'the name {name!r} becomes a folder: letters, digits, ".", "-" and "_" only')
    if bool(files) + bool(hub) + bool(sources) > 1:
        fail('give one of --files, --hub and --sources')
    if sources:
        return
    source = readers.SOURCES.get(name, {})
    if not (files or hub or sources):
        if not source:
            fail(
                f'there is no data set {name!r}: --list shows those there are; or give --files=GLOB or --hub=OWNER/NAME'
            )
        files, hub = source.get('files', ''), source.get('hub', '')
        hub_config = hub_config or source.get('hub_config', '')
        hub_split, text_field = source.get('hub_split', hub_split), source.get('text_field', text_field)
    tokenizer = tokenizer or source.get('tokenizer', 'gpt2')
    vocab_size = vocab_size or source.get('vocab_size', 8192)
    val_fraction = val_fraction or source.get('val_fraction', 0.01)
    clean = clean or source.get('clean', 'basic')
    dedup = dedup or source.get('dedup', 'near')
    num_proc = num_proc or parallel.cores()
    for setting in ('num_proc', 'max_documents', 'vocab_size', 'tokenizer_chars', 'show'):
        if globals()[setting] < 0:
            fail(f'{setting} = {globals()[setting]} should not be negative')
    for setting in ('bands', 'rows'):
        if globals()[setting] < 1:
            fail(f'{setting} = {globals()[setting]} should be at least 1')
    if not 0 < val_fraction < 1:
        fail(f'val_fraction = {val_fraction} should lie between 0 and 1')
    known = dict(clean=rules.PRESETS, dedup=('near', 'exact', 'none'), task=('text', 'chat', 'classify'))
    for setting, values in known.items():
        if globals()[setting] not in values:
            fail(f'{setting} = {globals()[setting]!r} is none of {", ".join(values)}')
    if task == 'chat' and clean not in ('none', 'basic'):
        fail(f"clean = {clean!r} is for documents; task = 'chat' takes 'basic' or 'none'")


def name_mixture():
    """A data set that is a mixture of others: its meta.json names them, and nothing is copied."""
    if RANK == 0:
        weights = {part: str(weight) for part, weight in mixture(sources).items()}
        home = Path('data', name)
        home.mkdir(parents=True, exist_ok=True)
        (home / 'meta.json.partial').write_text(json.dumps({'mixture': weights}, indent=2) + '\n')
        os.replace(home / 'meta.json.partial', home / 'meta.json')
        print(
            f'data/{name}: {", ".join(f"{float(weight):.1%} {part}" for part, weight in mixture(name).items())}'
        )


def make_plan(path, job):
    """What is to be done, as a dict: the job, the origin and the inputs; kept in plan.json for a run that goes on.

    A run with the same job over the same files goes on with the shards that are there, at the pinned revision.
    """
    job = json.loads(json.dumps(job))  # as it will be read again
    del job['val_fraction']  # which no shard depends on
    before = read_plan(path)
    if before.get('job') == job and before['origin'].get('revision', 'local') != 'local':
        inputs, origin = before['inputs'], before['origin']  # the data set as it stood then
    else:
        inputs, origin = readers.find_files(files, hub, hub_config, hub_split)
    read = [
        *(path for path, _ in inputs),
        *glob.glob(decontaminate),
        f'{tokenizer}/tokenizer.json',
        rules.scorer,
    ]
    changed = [os.stat(path).st_mtime if os.path.exists(path) else 0 for path in read]
    plan = dict(job=job, origin=origin, inputs=[[*each] for each in inputs], changed=changed)
    if before != plan and RANK == 0:
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        path.with_suffix('.partial').write_text(json.dumps(plan, indent=1))
        os.replace(path.with_suffix('.partial'), path)
    parallel.wait_for_rank_0(lambda: read_plan(path) == plan, path.parent)
    return plan


def read_plan(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def unit_size(sizes):
    """Bytes of input that make a unit: few enough to share out evenly and to lose little, but at most 10,000 units."""
    total = sum(sizes.values())
    return max(min(max(total // 64, 1 << 20), 16 << 20), total // 10_000)


def save_vocabulary(directory, units, job, total):
    """Write the vocabulary, learned from the first documents or loaded, where every worker finds it."""
    if tokenizer in vocabularies.KINDS:
        with progress('learning the vocabulary', min(total, tokenizer_chars), 'B') as bar:
            texts = first_texts(units, job, bar.update)
            vocabulary = vocabularies.learn(tokenizer, texts, vocab_size, normalize)
    else:
        vocabulary = vocabularies.load(tokenizer)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    vocabulary.save(directory)
    if task == 'chat':
        chat.save(vocabulary, directory)


def first_texts(units, job, done):
    """Documents that the rules keep, each once, until `tokenizer_chars` characters are through."""
    left, seen, told = tokenizer_chars, set(), shard.new_report()
    documents = itertools.chain.from_iterable(shard.judged(unit, job, told, done) for unit in units)
    for document in itertools.islice(documents, max_documents or None):
        mark = copies.fingerprint(document['text'])
        if not document['rule'] and mark not in seen:
            seen.add(mark)
            yield document['text'][:left]
            left -= len(document['text'])
            if left <= 0:
                return


def save_benchmark(path):
    """Write the n-grams of the evaluation files where every worker finds them."""
    inputs, _ = readers.find_files(decontaminate)
    found = copies.benchmark_ngrams([*shard.evaluation_texts(inputs)])
    with open(path, 'wb') as f:
        np.savez(f, **{str(length): known for length, (known, *_) in found.items()})


# --- the end ----------------------------------------------------------------------


def publish(partial, final, meta):
    """Move finished files to their place. meta.json goes first and comes last: while it is there the data is whole."""
    meta['sha256'] = {
        path.name: sha256(path) for path in sorted(partial.iterdir()) if not path.name.startswith('report')
    }
    (partial / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n')
    (final / 'meta.json').unlink(missing_ok=True)
    for stale in final.glob('[!.]*'):
        if not stale.is_dir():
            stale.unlink()
    for path in partial.iterdir():
        if path.name != 'meta.json':
            os.replace(path, final / path.name)
    os.replace(partial / 'meta.json', final / 'meta.json')


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # whatever the terminal can show, and whatever a text holds
    configure(globals(), positional=['name'], parts=[rules])
    main()
