"""How fast preparing data is: the whole command beside nanoGPT's, MinHash beside datasketch, BPE beside rustbpe, as ratios.

    python bench_data.py --nanogpt=../nanoGPT               # all, against a checkout of nanoGPT
    python bench_data.py prepare --megabytes=200

Needs tiktoken's GPT-2 vocabulary for `prepare` (from the network or TIKTOKEN_CACHE_DIR).
"""

import importlib.util
import json
import random
import re
import sysconfig
import tempfile
import time
from pathlib import Path

import psutil
import tokenizers

import tokenizer
from bench.measure import run_measuring_memory, some_sources, take_turns
from common import fail
from configurator import configure
from corpus import dedup

# -----------------------------------------------------------------------------
what = 'all'  # or 'prepare', 'copies', 'vocabulary'
nanogpt = ''  # a checkout of nanoGPT to run beside
rounds = 3  # how often each side has its turn
megabytes = 60  # of text to prepare or to learn a vocabulary from
# -----------------------------------------------------------------------------

HERE = Path(__file__).parent.parent.resolve()


def main():
    parts = {'prepare': bench_preparation, 'copies': bench_copies, 'vocabulary': bench_vocabulary}
    if what not in ('all', *parts):
        fail(f'{what!r} is none of all, {", ".join(parts)}')
    if nanogpt and not Path(nanogpt, 'train.py').exists():
        fail(f'there is no nanoGPT checkout in {nanogpt}')
    for name, bench in parts.items():
        if what in ('all', name):
            with tempfile.TemporaryDirectory() as work:
                bench(Path(work))


def bench_preparation(work):
    """MB of text a second from JSON lines to GPT-2 tokens on disk, the whole command, with its peak memory."""
    text_bytes = write_prose(work / 'text.jsonl')
    peaks = {}

    def timed(name, *command):
        began = time.perf_counter()
        peaks[name] = max(peaks.get(name, 0), run_measuring_memory(command, work))
        return text_bytes / 1e6 / (time.perf_counter() - began)

    def ours(name, *flags):
        prepare = (
            HERE / 'prepare.py',
            name,
            f'--files={work}/text.jsonl',
            '--tokenizer=gpt2',
            '--val_fraction=0.0005',
        )
        return lambda: timed(f'barelm, {name}', *prepare, *flags)

    sides = {
        'barelm, tokens only': ours('tokens', '--clean=none', '--dedup=none'),
        'barelm, defaults: basic, near copies': ours('defaults'),
        'barelm, web rules, near copies': ours('web', '--clean=web', '--languages=en'),
    }
    if nanogpt:
        script = Path(nanogpt, 'data', 'openwebtext', 'prepare.py').read_text()
        # the same script on local text, with the same vocabulary from one file, on the cores there are
        local = f'load_dataset("json", data_files="{work}/text.jsonl"'
        script = script.replace('load_dataset("openwebtext"', local)
        script = script.replace('get_encoding("gpt2")', 'get_encoding("r50k_base")')
        script = re.sub(r'num_proc = 8', f'num_proc = {psutil.cpu_count()}', script)
        # a small val split
        script = script.replace('total_batches = 1024', 'total_batches = min(1024, len(dset))')
        (work / 'nanogpt_prepare.py').write_text(script)
        sides['nanoGPT, tokens only'] = lambda: timed('nanoGPT', work / 'nanogpt_prepare.py')
    take_turns(f'preparing {text_bytes / 1e6:.0f} MB', 'MB/s', sides, rounds)
    for name, peak in peaks.items():
        print(f'  peak memory of all processes: {name} {peak / 1e6:,.0f} MB')
    told = json.loads((work / 'data' / 'web' / 'report.json').read_text())
    kept = sum(told[split]['documents'] for split in ('train', 'val'))
    total = sum(told['seconds'].values())
    stages = ', '.join(f'{stage} {seconds / total:.0%}' for stage, seconds in told['seconds'].items())
    print(f'  web rules kept {kept / told["documents"]:.0%} of the documents; of the work: {stages}')


def write_prose(path):
    """Pages of English that every machine has: sentences of Python's documentation strings, drawn at random -> their bytes."""
    sentence = re.compile(r'[A-Z][a-z]+ [a-z][^.!?{}<>_=|`"\\]{20,300}[.!?](?=\s)')
    sentences = set()
    for file in sorted(Path(sysconfig.get_paths()['stdlib']).rglob('*.py')):
        sentences.update(
            ' '.join(found.split()) for found in sentence.findall(file.read_bytes().decode(errors='ignore'))
        )
    draw, sentences, total = random.Random(0), sorted(sentences), 0
    with open(path, 'w') as out:
        while total < megabytes * 1e6:
            paragraphs = [
                ' '.join(draw.choices(sentences, k=draw.randint(2, 7))) for _ in range(draw.randint(3, 12))
            ]
            out.write(json.dumps({'text': '\n\n'.join(paragraphs)}) + '\n')
            total += len('\n\n'.join(paragraphs).encode())
    return total


def bench_copies(work):
    """MB of text a second into MinHash sketches; datasketch makes 112 hashes of the same shingles, one by one or in bulk."""
    write_prose(work / 'text.jsonl')
    lines = (work / 'text.jsonl').read_text().splitlines()[:2000]
    texts = [json.loads(line)['text'] for line in lines]
    size = sum(map(len, texts)) / 1e6

    def timed(function):
        began = time.perf_counter()
        function()
        return size / (time.perf_counter() - began)

    dedup.lower_words(texts[:1])  # which makes a table of all characters, once
    sides = {'barelm': lambda: timed(lambda: dedup.signatures(texts, dedup.lower_words(texts)))}
    if importlib.util.find_spec('datasketch'):
        from datasketch import MinHash

        def shingles(text):
            words = re.findall(r'\w+', text.lower())
            return [' '.join(words[i : i + 5]).encode() for i in range(len(words) - 4)]

        def one_by_one():
            for text in texts:
                sketch = MinHash(num_perm=112)
                for shingle in shingles(text):
                    sketch.update(shingle)

        sides['datasketch, one by one'] = lambda: timed(one_by_one)
        sides['datasketch, in bulk'] = lambda: timed(lambda: MinHash.bulk(map(shingles, texts), num_perm=112))
    take_turns('MinHash, one process', 'MB/s', sides, rounds)


def bench_vocabulary(work):
    """MB of text a second into a BPE of 32,768 tokens; beside the library called directly, and nanochat's rustbpe."""
    texts = [file.read_bytes().decode(errors='ignore') for file in some_sources(megabytes)]
    size = sum(len(text.encode()) for text in texts) / 1e6

    def timed(learn):
        began = time.perf_counter()
        learn()
        return size / (time.perf_counter() - began)

    def library():
        learned = tokenizers.Tokenizer(tokenizers.models.BPE())
        learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=32768, initial_alphabet=alphabet, show_progress=False
        )
        learned.train_from_iterator(texts, trainer)

    sides = {'barelm': lambda: timed(lambda: tokenizer.learn('bpe', iter(texts), 32768))}
    sides['tokenizers, called directly'] = lambda: timed(library)
    if importlib.util.find_spec('rustbpe'):
        import rustbpe

        sides['rustbpe'] = lambda: timed(lambda: rustbpe.Tokenizer().train_from_iterator(iter(texts), 32768))
    take_turns(f'learning a BPE of 32,768 from {size:.0f} MB', 'MB/s', sides, rounds)


if __name__ == '__main__':
    configure(globals(), positional=['what'])
    main()
