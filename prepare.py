"""Raw text to token files: read, clean, deduplicate, split, tokenize, into data/NAME/.

    python prepare.py --list                                         # the corpora known by name
    python prepare.py python
    python prepare.py fineweb-edu --max_documents=100000
    python prepare.py notes --files='~/notes/**/*.md' --tokenizer=bpe
    python prepare.py crawl --files=crawl.paths.gz --clean=web --show=20   # look at the filters' decisions first
    python prepare.py talks --files=chats.jsonl --task=chat
    python prepare.py mix --sources='wikipedia:0.3,fineweb-edu:0.7'
    torchrun --nproc_per_node=4 prepare.py fineweb-edu               # or srun: ranks share the work through the disk

Any process of any machine makes shards of units of work; then one process assigns all documents to splits and writes
their tokens. A run that was stopped goes on with the shards that are missing. docs/data.md tells more.
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
from corpus import filters, parallel, report, shard
from corpus import sources as readers
from corpus.dedup import benchmark_ngrams, fingerprint
from corpus.merge import assign_splits, write_splits
from corpus.parallel import RANK
from loader import mixture

# -----------------------------------------------------------------------------
name = ''  # the data set: data/NAME is written; a name that --list shows has its source and defaults
# what to read
files = ''  # a glob of local files, a URL, or a list of them (.paths, .paths.gz)
hub = ''  # OWNER/NAME of a data set on the Hugging Face hub, or a local directory laid out like one
hub_config = ''  # which of its configurations
hub_split = ''  # which of its splits; '': the source's, else train
text_field = ''  # the field of rows (.jsonl, .json, .csv, .parquet, .arrow, hub); '': the source's, else text
task = 'text'  # 'text'; 'chat': rows of messages, or of prompt and answer; 'classify': text_field and label
sources = ''  # instead of these, a mixture of prepared data sets with one vocabulary: 'a:0.3,b:0.7'
max_documents = 0  # stop after so many, read by one process; 0: all [0, inf)
strict = False  # stop at a damaged row instead of counting and skipping it
# what to keep
clean = ''  # 'none', 'basic' (repair), 'web' (filter web pages too), 'code'; '': the source's, else basic
dedup = ''  # 'near' (and exact copies), 'exact', 'none'; '': the source's, else near
bands = 14  # of MinHash: documents that agree in one band are near copies [1, inf)
rows = 8  # of each band; 14 x 8 finds documents whose 5-grams are 3/4 the same, as in FineWeb [1, inf)
decontaminate = ''  # a glob of evaluation files: documents that share 13 words in a row with one are dropped
val_fraction = 0.0  # of the documents; 0: the source's, else 0.01 [0, 1)
# the vocabulary
tokenizer = ''  # gpt2 | cl100k_base | o200k_base | a kind to learn | a directory | a hub repository; '': gpt2
vocab_size = 0  # of a learned one, special tokens included; 0: the source's, else 8192 [0, inf)
normalize = ''  # of a learned one: 'lower', 'accents' or 'lower,accents' folds text before it is split
tokenizer_chars = 1_000_000_000  # characters to learn it from, at most [0, inf)
# how to run
num_proc = 0  # processes; 0: one per core [0, inf)
ray = ''  # address of a Ray cluster ('auto', 'local') whose workers make the shards
# what to print
list = False  # the corpora known by name
show = 0  # print so many kept and so many dropped documents, and write nothing [0, inf)
# -----------------------------------------------------------------------------

# they say how to run and what to print; the other settings decide the result, and meta.json records them
INDECISIVE = ('name', 'sources', 'num_proc', 'ray', 'list', 'show')


def main():
    if list:
        return print(readers.listing())
    check_settings()
    if sources:
        return write_mixture() if RANK == 0 else None
    work = Path('data', name, '.work')
    job = decisive_settings() | dict(filters=own_settings(vars(filters)), directory=str(work))
    if show:
        inputs, _ = readers.find_files(job['files'], job['hub'], job['hub_config'], job['hub_split'])
        return report.show(readers.units(inputs), job, show)
    try:
        prepare(work, job)
    except OSError as e:
        fail(f'cannot write {work.parent}: {reason(e)}; {keep_shards(work)}')
    except BrokenProcessPool:
        fail(f'a worker was killed, most likely out of memory: try a smaller --num_proc; {keep_shards(work)}')
    except KeyboardInterrupt:
        fail(f'stopped; {keep_shards(work)}')
    except SystemExit:  # its message is printed
        keep_shards(work)
        raise


def prepare(work, job):
    """The stages in order. The directory `work` has the plan, the vocabulary, the shards, and the result until it is published."""
    started = time.time()
    plan = make_plan(work / 'plan.json', job)
    sizes = dict(plan['inputs'])
    total = sum(sizes.values())
    # bytes of input per unit: few, to balance the work and to lose little, but for at most 10,000 units
    target = max(min(max(total // 64, 1 << 20), 16 << 20), total // 10_000)
    units = readers.units(plan['inputs'], target)
    if max_documents:
        units = [[*itertools.chain(*units)]]  # one process reads the first ones, in order
    if RANK == 0 and not (work / 'shared').exists():
        save_shared(work, units, job, total)
    parallel.wait_for_rank_0((work / 'shared').exists, work)
    parallel.make_shards(units, job, sizes, num_proc or parallel.cores(), ray)
    if RANK > 0:
        return
    vocabulary = vocabularies.load(str(work / 'shared'))
    shards = shard.finished(work)
    split_of, cut, copies = assign_splits(shards, job)
    result = work / 'result'
    shutil.rmtree(result, ignore_errors=True)
    shutil.copytree(work / 'shared', result, ignore=lambda *_: ['benchmark.npz'])
    meta = write_splits(shards, split_of, cut, result, vocabulary, job)
    settings = {key: job[key] for key in job if key not in ('filters', 'directory')} | job['filters']
    meta |= dict(source=plan['origin'], settings=settings)
    stats = report.collect(name, shards, copies, meta, vocabulary, time.time() - started)
    report.write(result, stats)
    publish(result, work.parent, meta)
    shutil.rmtree(work)
    print(report.table(stats))


def keep_shards(work):
    """After a failure: keep finished shards for the next run, if any, else remove the directory -> what to say of it."""
    if RANK > 0:  # the others may go on
        return ''
    if done := len(shard.finished(work)):
        return f'{done} finished parts are kept, and the same command goes on from there'
    shutil.rmtree(work, ignore_errors=True)
    with contextlib.suppress(OSError):  # there is earlier data
        work.parent.rmdir()
    return 'nothing was kept'


# --- settings ---------------------------------------------------------------------


def check_settings():
    """Refuse what cannot work before anything is read."""
    if not name:
        fail('name a data set: prepare.py NAME, one of --list, or any with --files=GLOB or --hub=OWNER/NAME')
    if not re.fullmatch(r'\w[\w.-]*', name):
        fail(f'the name {name!r} becomes a folder: letters, digits, ".", "-" and "_" only')
    if bool(files) + bool(hub) + bool(sources) > 1:
        fail('give one of --files, --hub and --sources')
    if not (files or hub or sources or name in readers.SOURCES):
        fail(f'there is no data set {name!r}: see --list, or give --files=GLOB or --hub=OWNER/NAME')


def decisive_settings():
    """The settings that decide the result. Those left open get the source's values, else the usual ones."""
    source = readers.SOURCES.get(name, {})
    if files or hub:
        inputs = ('files', 'hub', 'hub_config', 'hub_split', 'text_field')
        source = {key: value for key, value in source.items() if key not in inputs}
    defaults = dict(tokenizer='gpt2', vocab_size=8192, val_fraction=0.01, clean='basic', dedup='near')
    defaults |= dict(hub_split='train', text_field='text') | source
    own = own_settings(globals())
    settings = {key: own[key] or defaults.get(key, own[key]) for key in own if key not in INDECISIVE}
    known = dict(clean=filters.PRESETS, dedup=('near', 'exact', 'none'), task=('text', 'chat', 'classify'))
    for key, values in known.items():
        if settings[key] not in values:
            fail(f'{key} = {settings[key]!r} is none of {", ".join(values)}')
    if task == 'chat' and settings['clean'] not in ('none', 'basic'):
        fail(f"clean = {settings['clean']!r} is for documents; task = 'chat' takes 'basic' or 'none'")
    return settings


def write_mixture():
    """Write meta.json of a mixture of other data sets: their names and weights. Nothing is copied."""
    weights = {each: str(weight) for each, weight in mixture(sources).items()}
    home = Path('data', name)
    home.mkdir(parents=True, exist_ok=True)
    (home / 'meta.json.partial').write_text(json.dumps({'mixture': weights}, indent=2) + '\n')
    os.replace(home / 'meta.json.partial', home / 'meta.json')
    print(f'{home}: {", ".join(f"{float(weight):.1%} {each}" for each, weight in mixture(name).items())}')


# --- the plan ---------------------------------------------------------------------


def make_plan(path, job):
    """plan.json: the job, the input files and their origin. A run with the same plan goes on with the shards that exist."""
    job = json.loads(json.dumps(job))  # as plan.json gives it back
    del job['val_fraction']  # no shard depends on it
    earlier = read_plan(path)
    if earlier.get('job') == job and earlier['origin'].get('revision', 'local') != 'local':
        inputs, origin = earlier['inputs'], earlier['origin']  # stay at the pinned revision
    else:
        inputs, origin = readers.find_files(job['files'], job['hub'], job['hub_config'], job['hub_split'])
    paths = [source for source, _ in inputs] + glob.glob(decontaminate)
    paths += [f'{job["tokenizer"]}/tokenizer.json', filters.scorer]
    changed = [os.stat(each).st_mtime if os.path.exists(each) else 0 for each in paths]
    plan = dict(job=job, origin=origin, inputs=[[*each] for each in inputs], changed=changed)
    if earlier != plan and RANK == 0:
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        path.with_suffix('.partial').write_text(json.dumps(plan, indent=1))
        os.replace(path.with_suffix('.partial'), path)
    parallel.wait_for_rank_0(lambda: read_plan(path) == plan, path.parent)
    return plan


def read_plan(path):
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return {}


def save_shared(work, units, job, total):
    """Write shared/, which all workers read: the vocabulary, loaded or learned, and n-grams of the evaluation files."""
    partial = work / 'shared.partial'
    shutil.rmtree(partial, ignore_errors=True)
    if job['tokenizer'] in vocabularies.KINDS:
        with progress('learning the vocabulary', min(total, tokenizer_chars), 'B') as bar:
            texts = first_texts(units, job, bar)
            vocabulary = vocabularies.learn(job['tokenizer'], texts, job['vocab_size'], normalize)
    else:
        vocabulary = vocabularies.load(job['tokenizer'])
    partial.mkdir()
    vocabulary.save(partial)
    if task == 'chat':
        chat.save(vocabulary, partial)
    if decontaminate:
        inputs, _ = readers.find_files(decontaminate)
        benchmark = benchmark_ngrams([*shard.evaluation_texts(inputs)])
        np.savez(partial / 'benchmark.npz', **{str(n): known for n, (known, *_) in benchmark.items()})
    os.rename(partial, work / 'shared')


def first_texts(units, job, bar):
    """Distinct documents that the filters keep, up to `tokenizer_chars` characters."""
    left, seen, stats = tokenizer_chars, set(), shard.new_stats()
    documents = itertools.chain.from_iterable(shard.read_and_clean(unit, job, stats) for unit in units)
    for document in itertools.islice(documents, max_documents or None):
        bar.update(stats['input_bytes'] - bar.n)
        key = fingerprint(document['text'])
        if not document['rule'] and key not in seen:
            seen.add(key)
            yield document['text'][:left]
            left -= len(document['text'])
            if left <= 0:
                return


# --- the end ----------------------------------------------------------------------


def publish(partial, final, meta):
    """Move finished files into place. meta.json goes first and comes last: while it exists the data set is complete."""
    meta['sha256'] = {p.name: sha256(p) for p in sorted(partial.iterdir()) if not p.name.startswith('report')}
    (partial / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n')
    (final / 'meta.json').unlink(missing_ok=True)
    for stale in [path for path in final.glob('[!.]*') if not path.is_dir()]:
        stale.unlink()
    for path in sorted(partial.iterdir(), key=lambda path: path.name == 'meta.json'):
        os.replace(path, final / path.name)


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='replace')  # a terminal may lack characters that a text has
    configure(globals(), positional=['name'], parts=[filters])
    main()
