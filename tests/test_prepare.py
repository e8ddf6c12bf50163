"""Raw text to token files: equal to a slow reference, byte for byte; whole or not there, whatever happens."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from conftest import ROOT, one_line, run
from hypothesis import example, given
from hypothesis import strategies as st

import loader
import prepare
import tokenizer as vocabularies

# --- an independent reference ---------------------------------------------------------


def cleaned(text):
    """As the README says, a character at a time: line ends \\n, no control characters or half surrogates, NFC."""
    text = text.replace('\r\n', '\n').replace('\r', '\n')
    kept = [c for c in text if c in '\t\n' or unicodedata.category(c) not in ('Cc', 'Cs')]
    return unicodedata.normalize('NFC', ''.join(kept))


def reference(texts, vocabulary, val_fraction):
    """texts -> {split: (ids, end offsets, bytes)}, and counts of what was dropped, one document at a time."""
    seen, kept, counts = set(), [], Counter()
    for text in map(cleaned, texts):
        if not text.strip():
            counts['empty'] += 1
        elif text in seen:
            counts['duplicate'] += 1
        else:
            seen.add(text)
            kept.append(text)
    if len(texts) < 100:
        cut, place, placed = int(sum(map(len, kept)) * (1 - val_fraction)), 0, []
        for text in kept:
            here = min(max(cut - place, 0), len(text))
            placed += [
                (split, part) for split, part in (('train', text[:here]), ('val', text[here:])) if part
            ]
            place += len(text)
    else:
        placed = [('val' if in_val(text, val_fraction) else 'train', text) for text in kept]
    splits = {}
    for split in ('train', 'val'):
        ids, ends = [], []
        for text in [text for where, text in placed if where == split]:
            ids += [*vocabulary.encode(text), vocabulary.special['eot']]
            ends.append(len(ids))
        size = sum(len(text.encode()) for where, text in placed if where == split)
        splits[split] = (ids, ends, size)
    return splits, counts


def in_val(text, val_fraction):
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') / 2**64 < val_fraction


def check(directory, texts, val_fraction):
    """A written data set against the reference, and against what it says of itself -> (meta, dropped counts)."""
    meta = json.loads((directory / 'meta.json').read_text())
    splits, counts = reference(texts, vocabularies.load(str(directory)), val_fraction)
    dtype = {'uint16': '<u2', 'uint32': '<u4'}[meta['dtype']]
    for split, (ids, ends, size) in splits.items():
        assert (directory / f'{split}.bin').read_bytes() == np.array(ids, dtype).tobytes()
        assert (directory / f'{split}.idx').read_bytes() == np.array(ends, '<u8').tobytes()
        assert meta[split] == dict(documents=len(ends), tokens=len(ids), bytes=size)
    assert whole(directory)
    return meta, counts


def whole(directory):
    """Whether a data set is there: meta.json, and every file as it says."""
    if not (directory / 'meta.json').exists():
        return False
    hashes = json.loads((directory / 'meta.json').read_text())['sha256']
    files = {p.name for p in directory.iterdir() if not p.name.startswith('.')}
    assert files == {'meta.json', *hashes} and {'train.bin', 'val.bin', 'train.idx', 'val.idx'} < set(hashes)
    for name, digest in hashes.items():
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest, name
    return True


def write_jsonl(path, texts):
    path.write_text('\n'.join(json.dumps({'text': text}) for text in texts) + '\n')


def table(out):
    """The final table as {label: number}."""
    rows = re.findall(r'^  (\S.*?)  +([\d,]+)', out, re.MULTILINE)
    return {label: int(number.replace(',', '')) for label, number in rows}


def messy(n, seed=0):
    """Documents of all lengths with everything that cleaning is for."""
    rng = random.Random(seed)
    words = [
        'the',
        'naïve',
        'nai\u0308ve',
        'e\u0301\u0323',
        '日本語',
        '🙂',
        '<|endoftext|>',
        '[MASK]',
        '  ',
        '\n\n',
    ]
    words += [
        '\r\n',
        'a\rb',
        '\x00',
        'bell\x07',
        '\x85',
        '\x1f',
        'e\x01\u0301',
        'half\ud83d',
        '\udc00\u0301',
        '\t',
    ]
    texts = [' '.join(rng.choices(words, k=rng.choice([1, 3, 30, 300]))) + f' {i}' for i in range(n)]
    for i in range(0, n, 7):
        texts[i] = rng.choice(['', ' \n\t', '\x00', '\ud800', '\r\n', '\u2003'])
    for i in range(3, n, 11):
        texts[i] = texts[rng.randrange(i)].replace('naïve', 'nai\u0308ve')  # a duplicate once it is NFC
    return texts


# --- cleaning ---------------------------------------------------------------------------

ANY = st.text(
    st.one_of(
        st.sampled_from('\r\n\t\x00\x1f\x7f\x9f ae\u0301\u0323é\ud800\udfff'),
        st.characters(exclude_categories=()),
    )
)


@given(ANY)
@example('e\x00\u0301')  # removing the character in between makes a pair that NFC joins
@example('\r\x00\n')
@example('\ud83d\ude00')
def test_cleaning_equals_the_reference_and_is_clean(text):
    counts = Counter()
    got = prepare.clean(text, counts)
    assert got == cleaned(text)
    assert unicodedata.is_normalized('NFC', got) and prepare.clean(got, Counter()) == got
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]', got)
    lines = text.replace('\r\n', '\n').replace('\r', '\n')
    assert counts['control characters removed'] == sum(
        unicodedata.category(c) in ('Cc', 'Cs') and c not in '\t\n' for c in lines
    )


# --- whole runs against the reference -----------------------------------------------------


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    """A directory with many.jsonl, 300 messy documents, and the documents."""
    where, texts = tmp_path_factory.mktemp('many'), messy(300)
    write_jsonl(where / 'many.jsonl', texts)
    return where, texts


def test_many_documents_equal_the_reference_whatever_the_number_of_processes(many, monkeypatch):
    where, texts = many
    flags = '--files=many.jsonl --tokenizer=bpe --vocab_size=400 --val_fraction=0.2'
    out, err = run(f'prepare.py one {flags} --num_proc=1', where)
    run(f'prepare.py three {flags} --num_proc=3', where)
    meta, dropped = check(where / 'data/one', texts, 0.2)
    assert err == ''
    assert 20 < meta['val']['documents'] < 80
    assert dropped['empty'] > 30 and dropped['duplicate'] > 10
    rows = table(out)
    assert rows['documents read'] == 300
    assert rows['dropped: empty'] == dropped['empty']
    assert rows['dropped: exact duplicate'] == dropped['duplicate']
    # the same files; meta.json too, for it says nothing of time and place
    for file in (where / 'data/one').iterdir():
        assert file.read_bytes() == (where / 'data/three' / file.name).read_bytes(), file.name
    vocabulary = vocabularies.load(str(where / 'data/one'))
    assert meta['tokenizer_hash'] == vocabulary.hash and meta['special'] == vocabulary.special
    assert meta['vocab_size'] == vocabulary.vocab_size == 400 and meta['dtype'] == 'uint16'
    assert meta['source'] == {'files': 'many.jsonl', 'count': 1} and meta['settings']['val_fraction'] == 0.2
    monkeypatch.chdir(where)
    ids, ends = np.array(loader.open_split('one', 'val', 8)), np.fromfile('data/one/val.idx', '<u8')
    assert np.array_equal(np.flatnonzero(ids == meta['special']['eot']) + 1, ends)


@pytest.mark.parametrize('kind', ['char', 'byte'])
def test_few_documents_are_cut_by_position(tmp_path, kind):
    texts = messy(99, seed=1) if kind == 'char' else [*messy(20, seed=2), ' ' * 5000]  # one large and empty
    write_jsonl(tmp_path / 'few.jsonl', texts)
    run(f'prepare.py few --files=few.jsonl --tokenizer={kind} --val_fraction=0.3', tmp_path)
    check(tmp_path / 'data/few', texts, 0.3)


def test_one_text_is_cut_where_nanogpt_cuts_it(tmp_path, library):
    text = (library / 'encoder.py').read_text(encoding='utf-8')
    (tmp_path / 'input.txt').write_text(text, encoding='utf-8')
    run('prepare.py few --files=input.txt --tokenizer=char --val_fraction=0.1', tmp_path)
    vocabulary = vocabularies.load(str(tmp_path / 'data/few'))
    stoi = {c: i for i, c in enumerate(sorted(set(text)))}  # as nanoGPT's prepare.py numbers and cuts
    n = len(text)
    for split, part in (('train', text[: int(n * 0.9)]), ('val', text[int(n * 0.9) :])):
        ids = np.fromfile(tmp_path / f'data/few/{split}.bin', np.uint16).tolist()
        assert ids == [*(stoi[c] for c in part), vocabulary.special['eot']]


def test_ids_above_65535_are_stored_in_32_bits(tmp_path):
    characters = [chr(i) for i in range(0x20, 0x20000) if not 0xD800 <= i < 0xE000]
    vocabulary = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(characters)}, []))
    (tmp_path / 'wide').mkdir()
    vocabulary.save(str(tmp_path / 'wide' / 'tokenizer.json'))
    texts = [f'🙂 {i} 𝄞' for i in range(40)]
    write_jsonl(tmp_path / 'a.jsonl', texts)
    run('prepare.py wide --files=a.jsonl --tokenizer=wide --val_fraction=0.2 --num_proc=1', tmp_path)
    meta, _ = check(tmp_path / 'data/wide', texts, 0.2)
    assert meta['dtype'] == 'uint32' and np.fromfile(tmp_path / 'data/wide/val.bin', '<u4').max() > 65535


def test_files_of_all_formats_and_a_limit(tmp_path):
    texts = messy(130, seed=3)
    write_jsonl(tmp_path / 'b.jsonl', texts[2:])
    plain = [text.encode(errors='ignore').decode() for text in texts[:2]]
    (tmp_path / 'a.txt').write_text(plain[0], encoding='utf-8', newline='')
    pyarrow.parquet.write_table(pyarrow.table({'text': [plain[1]]}), tmp_path / 'a.parquet')
    flags = '--files=*.* --tokenizer=byte --val_fraction=0.2 --max_documents=120'
    run(f'prepare.py mixed {flags}', tmp_path)
    check(tmp_path / 'data/mixed', [plain[1], plain[0], *texts[2:120]], 0.2)


def test_a_directory_laid_out_like_a_hub_data_set(tmp_path):
    texts = [text.encode(errors='ignore').decode() for text in messy(150, seed=4)]
    (tmp_path / 'stories').mkdir()
    column = pyarrow.table({'story': texts})
    pyarrow.parquet.write_table(column, tmp_path / 'stories' / 'train.parquet', row_group_size=40)
    flags = '--hub=stories --text_field=story --tokenizer=byte --val_fraction=0.2'
    env = dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path / 'home'))
    run(f'prepare.py stories {flags}', tmp_path, **env)
    meta, _ = check(tmp_path / 'data/stories', texts, 0.2)
    assert meta['source'] == dict(hub='stories', config='', split='train', revision='local')


def test_unknown_characters_are_counted_in_the_table(tmp_path):
    (tmp_path / 'a.txt').write_text('abc ' * 50)
    run('tokenizer.py train --files=a.txt --kind=char --out_dir=abc', tmp_path)
    (tmp_path / 'b.txt').write_text('abd?' * 50)
    out, _ = run('prepare.py b --files=b.txt --tokenizer=abc', tmp_path)
    assert table(out)['unknown characters'] == 100


# --- memory -----------------------------------------------------------------------------------

PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)  # of the largest process
"""


# one text is read in parts of 16M characters, and a part takes some memory
@pytest.mark.parametrize('form, largest, growth', [('many documents', 40, 20), ('one text', 20, 400)])
def test_memory_does_not_grow_with_the_corpus(tmp_path, library, form, largest, growth):
    text = (library / 'encoder.py').read_text(encoding='utf-8')
    peaks = []
    for megabytes in (5, largest):
        with open(tmp_path / 'a.jsonl', 'w') as rows, open(tmp_path / 'a.txt', 'w', encoding='utf-8') as one:
            for i in range(megabytes * 1_000_000 // len(text)):
                if form == 'one text':
                    one.write(f'{i}\n{text}')
                else:
                    rows.write(json.dumps({'text': f'{i}\n{text}'}) + '\n')
        name = 'a.txt' if form == 'one text' else 'a.jsonl'
        words = ['prepare.py', 'big', f'--files={name}', '--tokenizer=byte', '--num_proc=1']
        done = subprocess.run(
            [sys.executable, '-c', PEAK, str(ROOT / words[0]), *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1000 * (1 if sys.platform != 'darwin' else 1 / 1000))  # MB
    assert peaks[1] < peaks[0] + growth, peaks


# --- mistakes: one line, and nothing half-written --------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    """A directory with good.txt, empty.txt, blank.txt, latin.txt, later.jsonl and bad.jsonl."""
    (tmp_path / 'good.txt').write_text('Once upon a time. ' * 200)
    (tmp_path / 'empty.txt').write_text('')
    (tmp_path / 'blank.txt').write_text(' \n\x00\n')
    (tmp_path / 'latin.txt').write_bytes('naïve '.encode('latin-1') * 100)
    write_jsonl(tmp_path / 'later.jsonl', [f'document {i}' for i in range(200)])
    with open(tmp_path / 'later.jsonl', 'a') as f:
        f.write('{"text": 5}\n')  # met when everything before it has been written
    return tmp_path


MISTAKES = {
    'prepare.py': ['NAME', 'shakespeare'],
    'prepare.py openwebtxt': ['openwebtxt', 'openwebtext', '--files'],
    'prepare.py ../x --files=good.txt': ['../x'],
    'prepare.py a/b --files=good.txt': ['a/b'],
    'prepare.py x --files=none*.txt': ['none*.txt'],
    'prepare.py x --files=empty.txt': ['empty.txt'],
    'prepare.py x --files=blank.txt': ['blank.txt'],
    'prepare.py x --files=latin.txt': ['latin.txt', 'UTF-8'],
    'prepare.py x --files=later.jsonl': ['later.jsonl', 'line 201'],
    'prepare.py x --files=later.jsonl --max_documents=150 --val_fraction=1e-9': ['val_fraction'],
    'prepare.py x --files=good.txt --val_fraction=1': ['val_fraction'],
    'prepare.py x --files=good.txt --tokenizer=./none': ['none'],
    'prepare.py x --files=good.txt --tokenizer=bpe --vocab_size=100': ['vocab_size', '262'],
    'prepare.py x --files=good.txt --num_proc=-1': ['num_proc'],
    'prepare.py x --files=good.txt --max_documents=-1': ['max_documents'],
    'prepare.py x --files=good.txt --hub=owner/name': ['--files', '--hub'],
    'prepare.py x --hub=./none': ['none'],
}


@pytest.mark.parametrize('command', MISTAKES)
def test_mistakes_leave_nothing_behind(corpus, command):
    flags = '' if '--tokenizer' in command or '--files' not in command else ' --tokenizer=byte'
    env = dict(HF_HUB_OFFLINE='1', HF_HOME=str(corpus / 'home'))
    before = sorted(corpus.iterdir())
    one_line(command + flags, corpus, *MISTAKES[command], **env)
    assert not (corpus / 'data').exists() or not list((corpus / 'data').iterdir())
    assert set(corpus.iterdir()) - set(before) <= {corpus / 'data', corpus / 'home'}


def test_openwebtext_without_network_is_one_line(tmp_path):
    env = dict(
        HTTPS_PROXY='http://127.0.0.1:1', https_proxy='http://127.0.0.1:1', HF_HOME=str(tmp_path / 'home')
    )
    one_line('prepare.py openwebtext', tmp_path, 'Skylion007/openwebtext', '--files=GLOB', timeout=60, **env)
    assert not (tmp_path / 'data' / 'openwebtext').exists()


def test_a_data_directory_that_cannot_be_written(corpus):
    (corpus / 'data').write_text('a file where the directory should be')
    one_line('prepare.py x --files=good.txt --tokenizer=byte', corpus, 'data/x')


def snapshot(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_failing_run_leaves_the_earlier_data_and_a_good_one_replaces_it(corpus):
    run('prepare.py x --files=good.txt --tokenizer=char', corpus)
    before = snapshot(corpus / 'data/x')
    one_line('prepare.py x --files=later.jsonl --tokenizer=byte', corpus, 'line 201')
    one_line('prepare.py x --files=empty.txt --tokenizer=byte', corpus, 'empty.txt')
    assert snapshot(corpus / 'data/x') == before and whole(corpus / 'data/x')
    run('prepare.py x --files=later.jsonl --max_documents=30 --tokenizer=byte', corpus)
    check(corpus / 'data/x', [f'document {i}' for i in range(30)], 0.01)


# --- sudden ends --------------------------------------------------------------------------------


def start(words, cwd):
    return subprocess.Popen(
        [sys.executable, str(ROOT / words[0]), *words[1:]],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its workers can be told from others
    )


def wait_for(condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, 'waited in vain'
        time.sleep(0.01)


def session(process):
    """The live processes that a process of start() began, itself included."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(each.pid) == process.pid and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


@pytest.fixture
def interrupted(tmp_path):
    """interrupted(signal, to whom) -> (process, directory): a second run, stopped in the middle of its writing."""
    (tmp_path / 'good.txt').write_text('Once upon a time. ' * 200)
    run('prepare.py x --files=good.txt --tokenizer=char', tmp_path)
    with open(tmp_path / 'big.jsonl', 'w') as f:
        for i in range(30_000):
            f.write(json.dumps({'text': f'document {i} ' + 'and so on ' * 60}) + '\n')
    processes = []

    def interrupted(number, chosen):
        before = snapshot(tmp_path / 'data/x')
        process = start(
            ['prepare.py', 'x', '--files=big.jsonl', '--tokenizer=byte', '--num_proc=2'], tmp_path
        )
        processes.append(process)
        growing = tmp_path / 'data/x/.partial/train.bin'
        wait_for(lambda: growing.exists() and growing.stat().st_size > 1_000_000)
        for each in chosen(process):
            os.kill(each.pid, number)
        return process, tmp_path / 'data/x', before

    yield interrupted
    for process in processes:  # whatever a failed test leaves
        for each in session(process):
            each.kill()
        process.wait()


def test_killed_it_leaves_the_earlier_data_no_processes_and_no_obstacle(interrupted):
    process, directory, before = interrupted(signal.SIGKILL, lambda process: [process])
    process.wait()
    assert whole(directory)
    assert {name: (directory / name).read_bytes() for name in before} == before
    wait_for(lambda: not session(process), seconds=10)  # its workers see that nobody waits for them
    run('prepare.py x --files=good.txt --tokenizer=byte', directory.parent.parent)
    assert whole(directory) and not (directory / '.partial').exists()


def test_ctrl_c_is_one_line_and_leaves_the_earlier_data(interrupted):
    process, directory, before = interrupted(signal.SIGINT, session)  # a terminal sends it to all of them
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and err == 'error: stopped; nothing was kept\n'
    assert snapshot(directory) == before
    wait_for(lambda: not session(process), seconds=10)


def test_a_worker_killed_for_memory_is_one_line_and_leaves_the_earlier_data(interrupted):
    def largest_worker(process):
        others = [each for each in session(process) if each.pid != process.pid]
        return [max(others, key=lambda each: each.memory_info().rss)]

    process, directory, before = interrupted(signal.SIGKILL, largest_worker)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and err.startswith('error: ') and err.count('\n') == 1, err
    assert '--num_proc' in err
    assert snapshot(directory) == before
    wait_for(lambda: not session(process), seconds=10)


def test_dying_between_any_two_steps_of_publishing_leaves_no_meta_with_wrong_files(
    tmp_path, monkeypatch, capfd
):
    """The files of a byte data set go over those of a built-in vocabulary; the machine dies at each step in turn."""

    class Died(BaseException):
        pass

    replace, unlink = os.replace, Path.unlink
    for steps in range(20):
        final = tmp_path / 'data' / f'at{steps}'
        new, old = final / '.partial', dict(old=1)
        final.mkdir(parents=True)
        for name in ('train.bin', 'train.idx', 'val.bin', 'val.idx', 'tokenizer.txt'):
            (final / name).write_text('old ' + name)
        old['sha256'] = {path.name: prepare.sha256(path) for path in final.iterdir()}
        (final / 'meta.json').write_text(json.dumps(old))
        new.mkdir()
        for name in ('train.bin', 'train.idx', 'val.bin', 'val.idx', 'tokenizer.json'):
            (new / name).write_text('new ' + name)
        left = [steps]

        def counted(function, left=left):
            def call(*arguments, **keywords):
                if not left[0]:
                    raise Died
                left[0] -= 1
                return function(*arguments, **keywords)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, 'replace', counted(replace))
            patch.setattr(Path, 'unlink', counted(unlink))
            try:
                prepare.publish(new, final, {'new': 1})
                finished = True
            except Died:
                finished = False
        shutil.rmtree(new)
        if whole_meta := (final / 'meta.json').exists():
            assert whole(final)
        assert whole_meta or steps > 0  # before the first step the old data is there
        if finished:
            assert json.loads((final / 'meta.json').read_text())['new'] == 1
            assert {p.read_text()[:3] for p in final.iterdir() if p.name != 'meta.json'} == {'new'}
            return
    pytest.fail('publishing took more than 20 steps')
