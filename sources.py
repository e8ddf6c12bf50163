"""Where text comes from: named corpora, local files of many formats, data sets of the Hugging Face hub; and `clean`.

Everything here is a stream of documents, one str each: memory does not grow with the corpus and nothing is
copied to disk (but what a URL names). A text file is one document; a long one is cut into several at a line end.
"""

import glob
import gzip
import io
import itertools
import json
import os
import re
import sysconfig
import tempfile
import unicodedata
import urllib.parse
import urllib.request
import zlib

from config import fail, need, progress, reason

LONGEST = (
    1 << 24
)  # characters: a text file longer than this becomes several documents, so that memory stays bounded

SHAKESPEARE = 'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt'

# What `python prepare.py NAME` reads, and the settings it takes unless told otherwise. Repositories of the hub are
# those that hold plain data files: the older names of several need a loading script, which is code from a download.
SOURCES = {
    'python': dict(files='python', tokenizer='bpe', vocab_size=4096, val_fraction=0.1),
    'shakespeare': dict(files=SHAKESPEARE, tokenizer='gpt2', val_fraction=0.1),
    'shakespeare_char': dict(files=SHAKESPEARE, tokenizer='char', val_fraction=0.1),
    'openwebtext': dict(hub='Skylion007/openwebtext', tokenizer='gpt2', val_fraction=0.0005),
    'wikitext': dict(
        hub='Salesforce/wikitext', hub_config='wikitext-103-raw-v1', tokenizer='gpt2', val_fraction=0.01
    ),
    'wikipedia': dict(
        hub='wikimedia/wikipedia', hub_config='20231101.en', tokenizer='gpt2', val_fraction=0.001
    ),
    'tinystories': dict(hub='roneneldan/TinyStories', tokenizer='gpt2', val_fraction=0.01),
    'fineweb-edu': dict(
        hub='HuggingFaceFW/fineweb-edu', hub_config='sample-10BT', tokenizer='gpt2', val_fraction=0.0005
    ),
}


def local_files(pattern):
    """The files that a glob names, sorted; 'python' is the standard library that runs this; a URL is downloaded."""
    if pattern == 'python':
        return standard_library()
    if pattern.startswith(('http://', 'https://')):
        return [download(pattern)]
    if os.path.isfile(os.path.expanduser(pattern)):  # its name may hold [ or *
        return [os.path.expanduser(pattern)]
    found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    paths = [p for p in found if os.path.isfile(p)]
    if not paths:
        fail(
            f'no file matches {pattern!r}; quote a pattern so that the shell leaves it alone, ** goes into folders'
        )
    return paths


def standard_library():
    """Source files of the running Python's standard library: 700 of them, 12 MB, on every machine; without its tests."""
    root = sysconfig.get_paths()['stdlib']
    left_out = {'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'}
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - left_out)
        paths += [os.path.join(folder, name) for name in sorted(names) if name.endswith('.py')]
    if not paths:
        fail(f'this Python has no source files in {root}')
    return paths


def download(url):
    """Fetch a URL into a temporary file that goes when the program ends -> its path."""
    name = os.path.basename(urllib.parse.urlparse(url).path)  # its ending tells the format
    kept = tempfile.NamedTemporaryFile(suffix=name)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            with progress('downloading', int(response.headers.get('Content-Length', 0)), 'B') as bar:
                while block := response.read(1 << 20):
                    kept.write(block)
                    bar.update(len(block))
                if bar.total and bar.n < bar.total:
                    raise OSError(f'it broke off after {bar.n:,} of {bar.total:,} bytes')
    except OSError as e:  # URLError and time-outs are OSErrors
        fail(
            f'cannot download {url}: {reason(getattr(e, "reason", e))}; with the file at hand, use --files=PATH'
        )
    kept.flush()
    download.kept.append(kept)
    return kept.name


download.kept = []  # temporary files live as long as somebody holds them


def documents(paths, text_field='text', done=lambda n: None):
    """Yield every document of some files as a str; `done` is called with the bytes of the file read since the last call.

    .jsonl and .parquet hold a document a row in `text_field`; any other file is text. Each may be .gz or .zst.
    Ends the program with one line for a file that cannot be read, is not UTF-8, or has no such field.
    """
    for path in paths:
        inner = path[: -len(compressed)] if (compressed := compression(path)) else path
        reader = {'.jsonl': json_lines, '.parquet': parquet_rows}.get(os.path.splitext(inner)[1], long_text)
        try:
            with open(path, 'rb') as raw:
                told = 0
                for text in reader(decompressed(raw, compressed), path, text_field):
                    yield text
                    done(raw.tell() - told)
                    told = raw.tell()
                done(os.path.getsize(path) - told)
        except UnicodeDecodeError as e:
            fail(f'{path} is not UTF-8 text ({e.reason} near byte {e.start:,}); convert it or leave it out')
        except (OSError, EOFError, zlib.error) as e:
            fail(f'cannot read {path}: {reason(e)}')


def compression(path):
    return next((ending for ending in ('.gz', '.zst') if path.endswith(ending)), '')


def decompressed(raw, compressed):
    if compressed == '.gz':
        return gzip.GzipFile(fileobj=raw)
    if compressed == '.zst':
        pyarrow = need('pyarrow')
        return io.BufferedReader(pyarrow.CompressedInputStream(raw, 'zstd'))
    return raw


def long_text(stream, path, text_field):
    text = io.TextIOWrapper(stream, encoding='utf-8-sig')  # also drops a byte order mark
    block = text.read(LONGEST)
    while len(block) == LONGEST:
        yield block + text.readline(LONGEST)
        block = text.read(LONGEST)
    yield block


def json_lines(stream, path, text_field):
    place = 0
    for number, line in enumerate(stream, 1):  # lines of bytes, so that an error can name its place
        try:
            text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
        except UnicodeDecodeError as e:
            e.start += place
            raise
        place += len(line)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as e:
            fail(f'{path}, line {number}: not JSON: {e}')
        if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
            fail(f'{path}, line {number}: no text in the field {text_field!r}; name it with --text_field')
        yield row[text_field]


def parquet_rows(stream, path, text_field):
    pyarrow, parquet = need('pyarrow'), need('pyarrow.parquet')
    try:
        file = parquet.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            fail(
                f'{path} has no field {text_field!r}, only {", ".join(file.schema_arrow.names)}; use --text_field'
            )
        kind = str(file.schema_arrow.field(text_field).type)
        if kind not in ('string', 'large_string'):
            fail(f'{path} holds {kind} in the field {text_field!r}, not text; name another with --text_field')
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except pyarrow.ArrowException as e:
        fail(f'cannot read {path}: {e}')


def hub_revision(hub):
    """The commit that a data set of the hub stands at, so that a run can name what it read; 'local' for a directory."""
    if os.path.isdir(hub):
        return 'local'
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(hub, timeout=30).sha
    except Exception as e:  # the hub's errors and the network's
        fail(
            f'cannot reach the data set {hub} on the Hugging Face hub: {reason(e)}; local text: --files=GLOB'
        )


def hub_documents(hub, hub_config, split, revision, text_field, done):
    """Yield the documents of a data set of the hub, or of a local directory laid out like one, as they arrive.

    `done` is called with 1 for each.
    """
    load_dataset = need('datasets').load_dataset
    where = f'{hub} {hub_config}'.strip()
    try:
        pinned = {} if revision == 'local' else {'revision': revision}
        rows = iter(load_dataset(hub, hub_config or None, split=split, streaming=True, **pinned))
        first = next(rows, {text_field: ''})
    except Exception as e:  # datasets raises what its many readers raise
        fail(f'cannot read the data set {where}: {reason(e)}')
    if text_field not in first or not isinstance(first[text_field], str | None):
        fail(
            f'the data set {where} has no text in the field {text_field!r}, only {", ".join(first)}; use --text_field'
        )
    texts = (row[text_field] for row in itertools.chain([first], rows) if row[text_field])
    try:
        for text in articles(texts) if hub.endswith('/wikitext') else texts:
            yield text
            done(1)
    except Exception as e:
        fail(f'cannot read the data set {where}: {reason(e)}')


def articles(lines):
    """Wikitext holds a line a row: join them into articles, each of which begins with ` = Title = `."""
    article = []
    for line in lines:
        if re.fullmatch(r' = [^=](.*[^=])? = \n', line) and article:
            yield ''.join(article)
            article = []
        article.append(line)
    if article:
        yield ''.join(article)


# C0 and C1 control characters but tab and line end, and lone surrogates (JSON can hold them, UTF-8 cannot)
CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]')


def clean(text, counts):
    """Line ends made \\n, control characters removed, Unicode NFC; what changed is added to `counts`."""
    if '\r' in text:
        text = text.replace('\r\n', '\n').replace('\r', '\n')
    text, removed = CONTROL.subn('', text)
    counts['control characters removed'] += removed
    if not text.isascii() and not unicodedata.is_normalized('NFC', text):
        text = unicodedata.normalize('NFC', text)
        counts['documents changed by NFC'] += 1
    return text
