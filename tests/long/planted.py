"""Plant copies, junk and evaluation texts among real files of this machine, prepare them, and print what was found.

    python tests/planted.py                     # 200 MB, some minutes
    python tests/planted.py --megabytes=20 --keep=FOLDER

Of 100 documents 55 are real and unlike each other, 20 are exact copies of these, 20 near copies, 5 junk; a few hold evaluation
texts. prepare.py reads them as a user has it read, and what it leaves is read back from its token files. What is true is
found without its code, from exact sets of 5-grams of words. Needs tiktoken's GPT-2 vocabulary (the network or
TIKTOKEN_CACHE_DIR).
"""

import gzip
import itertools
import json
import os
import random
import re
import sys
import sysconfig
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
import tokenizer  # noqa: E402
from bench.data import HERE  # noqa: E402
from bench.measure import run_measuring_memory  # noqa: E402
from configurator import configure, fail  # noqa: E402

# -----------------------------------------------------------------------------
megabytes = 200  # of text, about
changed = 0.03  # share of its words that a near copy has others for
contaminated = 50  # documents with an evaluation text in them
val_fraction = 0.05  # of prepare.py: five times its own, to try the split harder
keep = ''  # a folder to leave everything in
# -----------------------------------------------------------------------------

SHARES = (20 / 55, 20 / 55, 5 / 55)  # exact copies, near copies and junk beside real documents
WORDS, CHARACTERS = 100, 50_000  # of a real document: at least, at most
JUNK = ('spam', 'one line', 'binary')
# Jaccard: of two real documents at most, of a validation and a training document too much
ALIKE, LEAKED = (0.3, 0.5)
PRESETS = ('web', 'code')  # for documentation, for source
RUN = 13  # words that a contaminated document shares with an evaluation text, at least
DOCUMENTATION = ('.rst', '.md', '.txt')
SOURCE = ('.py', '.pyi', '.c', '.h', *(f'.{n}' for n in range(1, 9)))  # the last are manual pages

IDEOGRAPHS = '\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff'
LETTER = rf'[^\W{IDEOGRAPHS}]'
WORD = re.compile(rf"{LETTER}+(?:['.’]{LETTER}+)*|[{IDEOGRAPHS}]")
NUMBERS = {}  # of each word ever seen
PLAIN = re.compile(r'[A-Z][^{}<>_=|`\\@#*/()\[\]]{60,}[.!?]')
CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f]')


def main():
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(keep or temporary).resolve()
        real = real_documents(draw, 0.55 * megabytes * 1e6)
        held_out, real = real[: len(real) // 20], real[len(real) // 20 :]
        planted, evals = plant(draw, real, held_out)
        write_corpus(draw, work / 'corpus', planted)
        (work / 'evals.jsonl').write_text('\n'.join(json.dumps({'question': q}) for q in evals))
        flags = [f'--decontaminate={work}/evals.jsonl', f'--val_fraction={val_fraction}']
        told, kept = prepare(work, 'planted', '**/*', '--clean=basic', '--dedup=near', *flags)
        judge_copies(planted, told, kept)
        judge_split(told, kept)
        for preset in PRESETS:
            told, kept = prepare(work, preset, f'{preset}/**/*', f'--clean={preset}', '--dedup=none')
            judge_junk(planted, preset, told, kept)


# --- real documents -------------------------------------------------------------


def words(text):
    return WORD.findall(text.lower())


def grams(found, n):
    """The set of runs of n words (of all words where they are fewer), as a sorted array of 64-bit hashes."""
    numbers = np.array([NUMBERS.setdefault(word, len(NUMBERS)) for word in found], np.uint64)
    n = min(n, len(numbers))
    runs = np.zeros(len(numbers) - n + 1, np.uint64)
    for i in range(n):
        runs = (runs + numbers[i : i + len(runs)]) * np.uint64(0x9E3779B97F4A7C15)
    return np.unique(runs)


def jaccard(a, b):
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def real_documents(draw, size):
    """[(preset, text), ...] of about `size` bytes: files of this machine, none like another.

    A file is left out if more than ALIKE of its 5-grams occur in those before, all together. Where they occur is
    looked up by 28 bits of their hashes: what falls together there by chance leaves out a few files more.
    """
    seen, documents, total = np.zeros(1 << 28, bool), [], 0
    paths = draw.sample(paths := machine_files(), len(paths))
    for path in sorted(paths, key=is_source):  # documentation, which is rarer, first
        text = content(path) if is_source(path) else prose(content(path))
        if len(found := words(text)) < WORDS or len(text) > CHARACTERS:
            continue
        places = grams(found, 5) >> np.uint64(36)
        if seen[places].mean() > ALIKE:
            continue
        seen[places] = True
        documents.append((PRESETS[is_source(path)], text))
        total += len(text.encode())
        if total > size:
            return draw.sample(documents, len(documents))
    fail(f'this machine has {total / 1e6:.0f} MB of such text: try --megabytes={total * 1.8e-6:.0f}')


def machine_files():
    """Sources and documentation of installed packages, and manual pages."""
    roots = [sysconfig.get_paths()[name] for name in ('stdlib', 'purelib')]
    roots += ['/usr/include', '/usr/share/doc', '/usr/share/man']
    found = {str(path) for root in roots for path in Path(root).rglob('*') if path.is_file()}
    return sorted(path for path in found if path.removesuffix('.gz').endswith(DOCUMENTATION + SOURCE))


def is_source(path):
    """Whether a file is no documentation in English; of manual pages only those are."""
    return not ('/man/man' in path or path.removesuffix('.gz').endswith(DOCUMENTATION))


def content(path):
    """The text of a file; '' if it is none, or has control or broken characters, which cleaning would change."""
    try:
        text = (gzip.open if path.endswith('.gz') else open)(path, 'rb').read().decode()
    except (OSError, UnicodeDecodeError):
        return ''
    return '' if CONTROL.search(text) or re.search('[Â-ô][\x80-¿€-™]', text) else text


def prose(text):
    """The paragraphs that are plain sentences, a line each and none twice, as an extractor gives the pages of the web."""
    text = re.sub(r'^\..*', '', text, flags=re.MULTILINE)  # the markup of manual pages
    paragraphs = [' '.join(part.split()) for part in re.split(r'\n\s*\n', text)]
    return '\n'.join(dict.fromkeys(part for part in paragraphs if PLAIN.fullmatch(part)))


# --- what is planted ------------------------------------------------------------


def plant(draw, real, held_out):
    """{kind: [(preset, true text, text as planted), ...]}, and the evaluation texts. The copies are of the real ones, what
    is broken or contaminated is not among them, and junk is made of what is held out.
    """
    copies, near, junk = (round(len(real) * share) for share in SHARES)
    evals, others = evaluation_texts(draw, real, held_out[0::2]), held_out[1::2]
    spoiled, real = real[:contaminated], real[contaminated:]
    foreign = [each for each in real if len(each[1].encode()) - len(each[1]) > 20][: junk // 4]
    real = [(*each, each[1]) for each in real if each not in foreign]
    lines = [draw_run(draw, others, draw.randint(3, 40)) for _ in range(junk // 4)]
    planted = dict(
        real=real,
        copies=draw.choices(real, k=copies),
        near=[(preset, text, reworded(draw, text, others)) for preset, text, _ in real[:near]],
        contaminated=[(p, text, with_evaluation(draw, text, draw.choice(evals))) for p, text in spoiled],
        mojibake=[('mojibake', text, misread(text)) for _, text in foreign],
        spam=[('web', '', spam(draw, others)) for _ in range(junk // 4)],
        binary=[*zip(itertools.cycle(PRESETS), itertools.repeat(''), binaries(draw, junk // 4))],
    )
    return planted | {'one line': [('web', '', ' '.join(line) + '.') for line in lines]}, evals


def evaluation_texts(draw, real, held_out):
    """Questions that share no run of words with a real document: licences and the like are everywhere."""
    evals = [' '.join(draw_run(draw, held_out, 30)) for _ in range(4 * contaminated)]
    runs = [grams(words(question), RUN) for question in evals]
    known = np.unique(np.concatenate(runs))
    common = np.concatenate([np.intersect1d(grams(words(text), RUN), known) for _, text in real])
    return [question for question, own in zip(evals, runs, strict=True) if not np.isin(own, common).any()]


def draw_run(draw, held_out, length):
    """Some words in a row, as they stand in a document that is not in the corpus."""
    while True:
        found = draw.choice(held_out)[1].split()
        start = draw.randrange(len(found))
        run = found[start : start + length]
        if len(words(' '.join(run))) >= length:
            return run


def with_evaluation(draw, text, question):
    """The text with 13 words or more of a question between two of its lines, in other case and with other commas."""
    lines, found = text.split('\n'), words(question)
    length = draw.randint(RUN, len(found))
    start = draw.randrange(len(found) - length + 1)
    run = ', '.join(found[start : start + length])
    lines.insert(draw.randrange(len(lines) + 1), draw.choice((run, run.upper())))
    return '\n'.join(lines)


def reworded(draw, text, held_out):
    """The text with some of its words replaced by words of another."""
    spans = [match.span() for match in WORD.finditer(text)]
    others, pieces, end = words(draw.choice(held_out)[1]), [], 0
    for start, stop in sorted(draw.sample(spans, max(1, round(changed * len(spans))))):
        pieces += [text[end:start], draw.choice(others)]
        end = stop
    return ''.join(pieces) + text[end:]


def misread(text):
    """The text as it looks when its UTF-8 is read as Windows-1252, and bytes that this lacks as Latin-1, as browsers do."""
    return ''.join(bytes([byte]).decode('cp1252', 'ignore') or chr(byte) for byte in text.encode())


def spam(draw, held_out):
    """A phrase again and again, a heap of keywords, or the same few lines over and over."""
    kind, offer = draw.randrange(3), ' '.join(draw_run(draw, held_out, 4))
    if kind == 0:
        return f'{offer} ' * draw.randint(30, 300)
    if kind == 1:
        found = words(draw.choice(held_out)[1])
        return ', '.join(draw.choices(found, k=draw.randint(100, 500)))
    lines = [f'{offer} for {draw.randint(1, 999)} dollars or {draw.randint(1, 999)} euros!' for _ in range(5)]
    return '\n'.join(draw.choices(lines, k=draw.randint(15, 100)))


def binaries(draw, count):
    """Pieces of compiled files, read as Latin-1."""
    found, root = [], Path(sysconfig.get_paths()['stdlib'])
    paths = sorted([*root.rglob('*.so'), *root.rglob('*.pyc')])
    while len(found) < count:
        with open(draw.choice(paths), 'rb') as file:
            file.seek(draw.randrange(os.path.getsize(file.name)))
            piece = file.read(draw.randint(500, 20_000))
        if len(set(piece)) > 64:  # no table of zeros
            found.append(piece.decode('latin-1'))
    return found


# --- the corpus and what became of it -------------------------------------------


def write_corpus(draw, folder, planted):
    """Every document in one of four formats, in any order; a folder for each preset, one for mojibake."""
    documents = [(preset, text) for kind in planted.values() for preset, _, text in kind]
    draw.shuffle(documents)
    for preset in (*PRESETS, 'mojibake'):
        texts, here = [text for own, text in documents if own == preset], folder / preset
        (here / 'texts').mkdir(parents=True)
        for number, text in enumerate(texts[0::4]):
            (here / 'texts' / f'{number}.txt').write_text(text, newline='')
        for opened, name, part in ((open, 'rows.jsonl', 1), (gzip.open, 'rows.jsonl.gz', 2)):
            with opened(here / name, 'wt') as file:
                file.writelines(json.dumps({'text': text}) + '\n' for text in texts[part::4])
        table = pyarrow.table({'text': texts[3::4]})
        pyarrow.parquet.write_table(table, here / 'rows.parquet', row_group_size=500)
    print(f'{len(documents):,} documents, {sum(len(text.encode()) for _, text in documents) / 1e6:.0f} MB')


def prepare(work, name, files, *flags):
    """Run prepare.py -> (its report.json, {split: the texts in its token files})."""
    command = [HERE / 'prepare.py', name, f'--files={work}/corpus/{files}', '--tokenizer=gpt2', *flags]
    peak = run_measuring_memory(command, work)
    folder = work / 'data' / name
    told = json.loads((folder / 'report.json').read_text())
    rate = told['bytes'] / 1e6 / told['wall_seconds']
    print(f'\nprepare.py {" ".join(flags)}: {rate:.1f} MB/s, {peak / 1e6:,.0f} MB at its peak')
    print('  read', told['documents'], {rule: gone['documents'] for rule, gone in told['dropped'].items()})
    return told, {split: list(read_texts(folder, split)) for split in ('train', 'val')}


def read_texts(folder, split):
    vocabulary = tokenizer.load(str(folder))
    tokens = np.fromfile(folder / f'{split}.bin', vocabulary.dtype)
    begin = 0
    for end in np.fromfile(folder / f'{split}.idx', '<u8').tolist():
        yield vocabulary.decode(tokens[begin : end - 1])
        begin = end


def key(text):
    """What tidying leaves of a text: all but blanks, Unicode composed."""
    return hash(''.join(unicodedata.normalize('NFC', text).split()))


# --- the judgement --------------------------------------------------------------


HEADINGS = ''.join(f' {word:>9}' for word in 'planted reported found precision recall expected'.split())


def row(what, planted, found, reported='', expected=''):
    """Print of how many planted how many were found, as the texts left tell, and as many report.json has."""
    precision = '' if reported == '' else found / max(reported, 1)
    columns = planted, reported, found, precision, found / max(planted, 1), expected
    print(f'  {what:20}' + ''.join(f' {c:9.2%}' if isinstance(c, float) else f' {c:>9}' for c in columns))


def judge_copies(planted, told, kept):
    stays = Counter(map(key, kept['train'] + kept['val']))
    dropped = Counter({rule: gone['documents'] for rule, gone in told['dropped'].items()})
    print(f'  {"":20}{HEADINGS}')
    copies = Counter(key(text) for _, _, text in planted['copies'])
    found = sum(count - max(stays[text] - 1, 0) for text, count in copies.items())
    row('exact copies', copies.total(), found, dropped['exact duplicate'], 1.0)

    pairs = [(text, copy) for _, text, copy in planted['near']]
    likeness = np.array([jaccard(grams(words(a), 5), grams(words(b), 5)) for a, b in pairs])
    met = np.array([not (stays[key(a)] and stays[key(b)]) for a, b in pairs])
    meeting = 1 - (1 - likeness**8) ** 14  # 14 bands of 8 rows
    row('near copies', len(met), met.sum(), dropped['near duplicate'], meeting.mean())
    for tenth in np.unique(tenths := np.floor(likeness * 10)):
        which = tenths == tenth
        row(f'  of {tenth / 10} and more', which.sum(), met[which].sum(), expected=meeting[which].mean())

    found = sum(not stays[key(text)] for _, _, text in planted['contaminated'])
    row('contaminated', len(planted['contaminated']), found, dropped['contaminated'], 1.0)
    found = sum(stays[key(text)] > 0 for _, text, _ in planted['mojibake'])
    row('mojibake made whole', len(planted['mojibake']), found)

    copy_of = dict(pairs)
    groups = [{key(text), key(copy_of.get(text, text))} for _, text, _ in planted['real']]
    lost = sum(not any(stays[text] for text in group) for group in groups)
    print(f'  {lost:,} of {len(groups):,} real documents were changed, or have gone with all their copies')


def judge_split(told, kept):
    """Compare every validation document with every training document that it shares a 5-gram with."""
    held = [grams(words(text), 5) for text in kept['val']]
    sizes, hashes = np.array([len(each) for each in held]), np.concatenate(held)
    order, closest = np.argsort(hashes), np.zeros(len(held))
    hashes, owners = hashes[order], np.repeat(np.arange(len(held)), sizes)[order]
    for text in kept['train']:
        ours = grams(words(text), 5)
        left, right = np.searchsorted(hashes, ours), np.searchsorted(hashes, ours, 'right')
        found = [owners[left[i] : right[i]] for i in np.flatnonzero(left < right)]
        both = np.bincount(np.concatenate(found), minlength=len(held)) if found else 0
        closest = np.maximum(closest, both / (len(ours) + sizes - both))
    print(
        f'  of {len(held):,} validation documents {np.sum(closest >= LEAKED)} have a near copy in training; the most alike'
        f' have a Jaccard of {closest.max():.2f}; {told["moved_to_training"]:,} more were moved to training'
    )


def judge_junk(planted, preset, told, kept):
    """A document that stays is of the kind that most of its lines are of: rules take lines away."""
    kind_of, count = {}, Counter()
    for kind, documents in planted.items():
        kind = kind if kind in JUNK else 'real'
        for text in (text for own, _, text in documents if own == preset):
            count[kind] += 1
            kind_of |= dict.fromkeys(map(str.strip, text.splitlines()), kind)
    gone = Counter(count)
    for text in kept['train'] + kept['val']:
        kinds = Counter(kind_of.get(line.strip(), 'binary') for line in text.splitlines())
        gone[kinds.most_common(1)[0][0]] -= 1
    print(f'  {"":20}{HEADINGS}')
    for kind in JUNK:
        row(kind, count[kind], gone[kind])
    dropped = sum(each['documents'] for each in told['dropped'].values())
    row('junk', sum(count[kind] for kind in JUNK), sum(gone[kind] for kind in JUNK), dropped)
    print(f'  {gone["real"]:,} of {count["real"]:,} real documents dropped')


if __name__ == '__main__':
    configure(globals())
    main()
