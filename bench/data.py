"""Speed of preparing data: the whole command beside nanoGPT's, MinHash beside datasketch, as ratios.

    python -m bench.data --nanogpt=../nanoGPT               # both parts; run it in the repository's root
    python -m bench.data prepare --megabytes=200

Needs tiktoken's GPT-2 vocabulary for `prepare` (from the network or TIKTOKEN_CACHE_DIR).
"""

import functools
import importlib.util
import itertools
import json
import os
import random
import re
import sysconfig
import time
from pathlib import Path

from bench.measure import ROOT, run_parts, run_script, take_turns
from configurator import configure
from corpus import dedup

# -----------------------------------------------------------------------------
what = ()  # the parts to run: prepare, minhash; none: both
nanogpt = ''  # a checkout of nanoGPT to run beside
rounds = 3  # turns of each side
megabytes = 60  # of text to prepare
# -----------------------------------------------------------------------------


def bench_preparation(work):
    """MB of text a second from JSON lines to GPT-2 tokens on disk, the whole command, with its peak memory."""
    text_bytes, peaks = 0, {}
    with open(work / 'text.jsonl', 'w') as out:
        for text in random_prose():
            out.write(json.dumps({'text': text}) + '\n')
            text_bytes += len(text.encode())

    def rate(name, *command, **flags):
        cache = dict(HF_HOME=f'{work}/cache-{time.time()}')  # `datasets` would find its last result
        done = run_script(work, *command, measure_memory=True, env=cache, **flags)
        peaks[name] = max(peaks.get(name, 0), done.peak_memory)
        return text_bytes / 1e6 / done.seconds

    def ours(name, **flags):
        flags |= dict(files=work / 'text.jsonl', tokenizer='gpt2', val_fraction=0.0005)
        return lambda: rate(f'barelm, {name}', ROOT / 'prepare.py', name, **flags)

    sides = {
        'barelm, tokens only': ours('tokens', clean='none', dedup='none'),
        'barelm, defaults: basic, near copies': ours('defaults'),
        'barelm, web rules, near copies': ours('web', clean='web', languages='en'),
    }
    if nanogpt:
        script = Path(nanogpt, 'data', 'openwebtext', 'prepare.py').read_text()
        for theirs, here in (
            ('load_dataset("openwebtext"', f'load_dataset("json", data_files="{work}/text.jsonl"'),
            ('get_encoding("gpt2")', 'get_encoding("r50k_base")'),  # the same vocabulary, from one file
            ('num_proc = 8', f'num_proc = {os.cpu_count()}'),
            ('total_batches = 1024', 'total_batches = min(1024, len(dset))'),  # validation is small
        ):
            script = script.replace(theirs, here)
        (work / 'nanogpt_prepare.py').write_text(script)
        sides['nanoGPT, tokens only'] = lambda: rate('nanoGPT', work / 'nanogpt_prepare.py')
    take_turns(f'preparing {text_bytes / 1e6:.0f} MB', 'MB/s', sides, rounds)
    for name, peak in peaks.items():
        print(f'  peak memory of all processes: {name} {peak / 1e6:,.0f} MB')


def random_prose():
    """English that every machine has: texts of sentences of Python's documentation strings, drawn at random."""
    sentence = re.compile(r'[A-Z][a-z]+ [a-z][^.!?{}<>_=|`"\\]{20,300}[.!?](?=\s)')
    sentences = set()
    for file in sorted(Path(sysconfig.get_paths()['stdlib']).rglob('*.py')):
        found = sentence.findall(file.read_bytes().decode(errors='ignore'))
        sentences.update(' '.join(each.split()) for each in found)
    draw, sentences, total = random.Random(0), sorted(sentences), 0
    while total < megabytes * 1e6:
        lengths = [draw.randint(2, 7) for _ in range(draw.randint(3, 12))]
        text = '\n\n'.join(' '.join(draw.choices(sentences, k=k)) for k in lengths)
        yield text
        total += len(text.encode())


def bench_minhash(work):
    """MB of text a second into MinHash signatures; datasketch makes 112 hashes of the same 5-grams."""
    texts = list(itertools.islice(random_prose(), 2000))
    dedup.lower_words(texts[:1])  # makes a table of all characters, once
    sides = {'barelm': lambda: dedup.signatures(texts, dedup.lower_words(texts))}
    if importlib.util.find_spec('datasketch'):
        from datasketch import MinHash

        def ngrams(text):
            words = re.findall(r'\w+', text.lower())
            return [' '.join(words[i : i + 5]).encode() for i in range(len(words) - 4)]

        sides['datasketch, in bulk'] = lambda: MinHash.bulk(map(ngrams, texts), num_perm=112)

    def rate(function):
        start = time.perf_counter()
        function()
        return sum(map(len, texts)) / 1e6 / (time.perf_counter() - start)

    sides = {name: functools.partial(rate, function) for name, function in sides.items()}
    take_turns('MinHash, one process', 'MB/s', sides, rounds)


if __name__ == '__main__':
    configure(globals(), positional=['what'])
    run_parts(what, dict(prepare=bench_preparation, minhash=bench_minhash), nanogpt)
