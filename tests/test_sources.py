"""Where text comes from: every format yields the documents that went in, every fault is one line."""

import bz2
import gzip
import json
import os
import random
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import sources

TEXTS = ['First.\nSecond line, naïve — 日本.\n', 'tabs\tand "quotes"', '', ' \n', '🙂 last\u2028one\n\n']


@pytest.fixture
def refused(capfd):
    """refused(words, function, arguments...) -> the one line that the call ends with, which must hold the words."""

    def refused(words, function, *arguments):
        with pytest.raises(SystemExit) as end:
            list(function(*arguments))
        assert end.value.code == 2
        err = capfd.readouterr().err
        assert err.startswith('error: ') and err.count('\n') == 1, err
        for word in words:
            assert word in err, err
        return err

    return refused


def jsonl(texts, field='text', ascii=True):
    rows = [json.dumps({'id': i, field: text}, ensure_ascii=ascii) for i, text in enumerate(texts)]
    return ('\n'.join(rows) + '\n').encode()


def write_parquet(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)


# --- formats ----------------------------------------------------------------------

COMPRESS = {'': bytes, '.gz': gzip.compress, '.zst': zstandard.compress}


@pytest.mark.parametrize('ending', COMPRESS)
@pytest.mark.parametrize('name', ['a.txt', 'a.md', 'a.py', 'a.jsonl', 'unescaped.jsonl'])
def test_documents_come_out_as_they_went_in(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    if 'jsonl' in name:
        path.write_bytes(COMPRESS[ending](jsonl(TEXTS, ascii=name == 'a.jsonl')))
        assert list(sources.documents([str(path)])) == TEXTS
    else:
        path.write_bytes(COMPRESS[ending](''.join(TEXTS).encode()))
        assert list(sources.documents([str(path)])) == [''.join(TEXTS)]


@pytest.mark.parametrize('kind', [pyarrow.string(), pyarrow.large_string()])
def test_parquet_in_row_groups_leaves_missing_texts_out(tmp_path, kind):
    path = str(tmp_path / 'a.parquet')
    texts = [f'{i} {TEXTS[i % 5]}' for i in range(2500)]
    column = pyarrow.array([None, *texts, None], type=kind)
    write_parquet(path, {'body': column, 'n': list(range(2502))}, row_group_size=700)
    assert list(sources.documents([path], 'body')) == texts


def test_several_compressed_parts_in_one_file_are_all_read(tmp_path):
    for ending in ('.gz', '.zst'):
        path = tmp_path / f'a.jsonl{ending}'  # as `cat` of two shards leaves it
        path.write_bytes(COMPRESS[ending](jsonl(TEXTS)) + COMPRESS[ending](jsonl(TEXTS)))
        assert list(sources.documents([str(path)])) == TEXTS * 2, ending


@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl'])
def test_byte_order_mark_and_windows_line_ends(tmp_path, name):
    (tmp_path / name).write_bytes(
        b'\xef\xbb\xbf' + (b'one\r\ntwo' if name == 'a.txt' else b'\r\n{"text": "one\\ntwo"}\r\n\r\n')
    )
    assert list(sources.documents([str(tmp_path / name)])) == ['one\ntwo']


@given(st.text(st.sampled_from('ab é🙂\n'), max_size=200), st.integers(1, 20))
@settings(max_examples=200)
def test_a_long_text_is_cut_at_line_ends_and_loses_nothing(tmp_path_factory, text, longest):
    path = tmp_path_factory.getbasetemp() / 'long.txt'
    path.write_text(text, encoding='utf-8', newline='')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, 'LONGEST', longest)
        parts = list(sources.documents([str(path)]))
    assert ''.join(parts) == text
    parts = [part for part in parts if part]
    assert all(len(part) <= 2 * longest for part in parts)
    # but for lines longer than `longest` themselves
    assert all(part.endswith('\n') for part in parts[:-1]) or max(map(len, text.split('\n'))) >= longest


@pytest.mark.parametrize('name', ['a.txt', 'a.txt.gz', 'a.jsonl', 'a.jsonl.zst', 'a.parquet'])
def test_progress_adds_up_to_the_size_of_the_files(tmp_path, name):
    texts = [random.Random(i).randbytes(3000).hex() for i in range(40)]
    path = tmp_path / name
    if name.endswith('parquet'):
        write_parquet(path, {'text': texts})
    else:
        ending = sources.compression(name)
        path.write_bytes(COMPRESS[ending](jsonl(texts) if 'jsonl' in name else ''.join(texts).encode()))
    told = []
    read = ''.join(sources.documents([str(path)] * 2, done=told.append))
    assert read == ''.join(texts * 2)
    assert sum(told) == 2 * path.stat().st_size and min(told) >= 0


# --- faults -------------------------------------------------------------------------


def damaged(data):
    """The data with every thousandth byte changed."""
    return bytes(b ^ 0xFF if i % 1000 == 500 else b for i, b in enumerate(data))


@pytest.mark.parametrize('ending', ['.gz', '.zst'])
@pytest.mark.parametrize('fault', ['truncated', 'damaged', 'another format', 'trailing garbage'])
def test_a_bad_archive_is_refused_and_never_read_in_part_only(tmp_path, refused, ending, fault):
    text = Path(json.decoder.__file__).read_bytes() + random.Random(1).randbytes(100_000).hex().encode()
    # a checksum, as the zstd program writes it: without one a changed byte can go unnoticed
    whole = {'.gz': gzip.compress, '.zst': zstandard.ZstdCompressor(write_checksum=True).compress}[ending](
        text
    )
    path = tmp_path / f'a.txt{ending}'
    path.write_bytes(
        {
            'truncated': whole[: len(whole) // 2],
            'damaged': damaged(whole),
            'another format': bz2.compress(text),
            'trailing garbage': whole + b'garbage' * 10,
        }[fault]
    )
    refused([str(path)], sources.documents, [str(path)])


@pytest.mark.parametrize(
    'name, content, words',
    [
        ('a.txt', 'naïve'.encode('latin-1'), ['UTF-8']),
        ('a.txt', b'cut in a character: \xe6\x97', ['UTF-8']),
        ('a.jsonl', b'{"text": "na\xefve"}\n', ['UTF-8']),
        ('a.jsonl', b'{"text": "a"}\n\n{"text": \n', ['line 3', 'JSON']),
        ('a.jsonl', b'{"text": "a"}\n{"txt": "a"}\n', ['line 2', "'text'", '--text_field']),
        ('a.jsonl', b'{"text": 1}\n', ['line 1', "'text'"]),
        ('a.jsonl', b'["text"]\n', ['line 1']),
        ('a.parquet', b'PAR1 no parquet', []),
        ('a.parquet', b'', []),
    ],
)
def test_a_bad_file_is_refused(tmp_path, refused, name, content, words):
    (tmp_path / name).write_bytes(content)
    refused([name, *words], sources.documents, [str(tmp_path / name)])


@pytest.mark.parametrize('name', ['a.txt', 'a.txt.gz', 'a.jsonl'])
def test_bytes_that_are_no_utf8_are_found_where_they_are(tmp_path, refused, name):
    begin = b'{"text": "' if 'jsonl' in name else b''
    path = tmp_path / name
    path.write_bytes(COMPRESS[sources.compression(name)](begin + b'x' * (123_456 - len(begin)) + b'\xff"}\n'))
    refused(['123,456'], sources.documents, [str(path)])


def test_parquet_without_the_field_or_with_numbers_in_it(tmp_path, refused):
    path = str(tmp_path / 'a.parquet')
    write_parquet(path, {'body': ['a'], 'text': [1]})
    refused(["'content'", 'body', '--text_field'], sources.documents, [path], 'content')
    refused(["'text'", '--text_field'], sources.documents, [path], 'text')


def test_a_file_that_goes_away(tmp_path, refused):
    refused(['gone.txt', 'No such file'], sources.documents, [str(tmp_path / 'gone.txt')])


# --- which files --------------------------------------------------------------------


def test_globs_go_into_folders_are_sorted_and_name_files_only(tmp_path, refused):
    for path in ('b.txt', 'a.txt', 'sub/c.txt', 'sub/deep/d.txt', 'sub/e.md', 'folder.txt/f.md'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    names = [os.path.relpath(p, tmp_path) for p in sources.local_files(f'{tmp_path}/**/*.txt')]
    assert names == ['a.txt', 'b.txt', 'sub/c.txt', 'sub/deep/d.txt']
    refused(['*.rst', 'no file'], sources.local_files, f'{tmp_path}/*.rst')
    refused(['no file'], sources.local_files, str(tmp_path / 'sub'))


def test_a_file_whose_name_looks_like_a_pattern_is_found_by_its_name(tmp_path):
    path = str(tmp_path / 'notes [1].txt')
    open(path, 'w').close()
    assert sources.local_files(path) == [path]


def test_the_home_directory_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.txt').write_text('a')
    assert sources.local_files('~/*.txt') == [str(tmp_path / 'a.txt')]


def test_the_standard_library_comes_without_its_tests_and_packages():
    paths = sources.local_files('python')
    assert json.__file__ in paths and json.decoder.__file__ in paths and len(paths) > 300
    assert not [p for p in paths if {'test', 'tests', 'site-packages', '__pycache__'} & set(p.split(os.sep))]
    assert sum(len(text) for text in sources.documents(paths)) > 5e6  # all of it is UTF-8


# --- the network ----------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch):
    """served(handler) starts an HTTP server of this machine -> its address."""
    servers = []
    monkeypatch.setenv('no_proxy', '127.0.0.1')

    def served(handler):
        servers.append(ThreadingHTTPServer(('127.0.0.1', 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=[0.01], daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}'

    yield served
    for server in servers:
        server.shutdown()
        server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.mark.parametrize('query', ['', '?download=true'])
@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl.gz'])
def test_a_url_is_downloaded_and_read_by_its_ending(tmp_path, served, name, query):
    content = jsonl(TEXTS) if 'jsonl' in name else ''.join(TEXTS).encode()
    (tmp_path / name).write_bytes(COMPRESS[sources.compression(name)](content))
    address = served(partial(Quiet, directory=str(tmp_path)))
    paths = sources.local_files(f'{address}/{name}{query}')
    assert ''.join(sources.documents(paths)) == ''.join(TEXTS)


def test_a_url_that_is_not_there_or_refuses(tmp_path, served, refused):
    address = served(partial(Quiet, directory=str(tmp_path)))
    refused([address, 'not found', '--files=PATH'], sources.local_files, f'{address}/none.txt')
    refused(['refused', '--files=PATH'], sources.local_files, 'http://127.0.0.1:1/none.txt')


def test_a_download_that_breaks_off_is_not_taken_for_the_whole(served, refused):
    class BreaksOff(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            self.wfile.write(b'x' * 500)

        def log_message(self, *words):
            pass

    address = served(BreaksOff)
    refused([address], sources.local_files, f'{address}/a.txt')


# --- the hub, by a directory laid out like one of its data sets ---------------------


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A directory with two splits: train.jsonl and test.parquet."""
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    folder = tmp_path / 'stories'
    (folder / 'data').mkdir(parents=True)
    (folder / 'data' / 'train.jsonl').write_bytes(jsonl([*TEXTS, 'train']))
    return str(folder)


def hub(folder, split='train', field='text', config='', done=lambda n: None):
    return sources.hub_documents(folder, config, split, sources.hub_revision(folder), field, done)


def test_hub_documents_stream_from_jsonl_without_the_empty_ones(data_set):
    done = []
    assert list(hub(data_set, done=done.append)) == [text for text in [*TEXTS, 'train'] if text]
    assert sum(done) == 5


def test_hub_documents_of_a_split_in_parquet(tmp_path):
    (tmp_path / 'stories').mkdir()
    write_parquet(tmp_path / 'stories' / 'train.parquet', {'body': ['a', 'b']})
    write_parquet(tmp_path / 'stories' / 'test.parquet', {'body': [None, 'c', '', 'd']})
    assert list(hub(str(tmp_path / 'stories'), 'train', 'body')) == ['a', 'b']
    assert list(hub(str(tmp_path / 'stories'), 'test', 'body')) == ['c', 'd']


def test_hub_faults(data_set, refused, tmp_path):
    refused([data_set, "'body'", 'id, text', '--text_field'], hub, data_set, 'train', 'body')
    refused([data_set], hub, data_set, 'validation')
    refused([data_set, 'german'], hub, data_set, 'train', 'text', 'german')
    (tmp_path / 'empty').mkdir()
    refused([str(tmp_path / 'empty')], hub, str(tmp_path / 'empty'))


def test_a_hub_file_damaged_behind_its_first_row(tmp_path, refused):
    rows = jsonl([f'{i} ' * 1000 for i in range(5000)])
    (tmp_path / 'train.jsonl.gz').write_bytes(gzip.compress(rows)[:-50])
    refused([str(tmp_path)], hub, str(tmp_path))


def test_wikitext_rows_are_joined_into_articles(tmp_path):
    articles = [
        ' = Valkyria Chronicles III = \n \n A game . \n \n = = Plot = = \n \n It takes place in 1 = 2 . \n',
        ' = M = \n A film of 1931 . \n = = = Sound = = = \n A whistle . \n',
        ' = Last = \n A line . \n',
    ]
    rows = [row for article in articles for row in ['', *article.splitlines(keepends=True), '']]
    (tmp_path / 'wikitext').mkdir()
    write_parquet(tmp_path / 'wikitext' / 'train.parquet', {'text': rows})
    assert list(hub(str(tmp_path / 'wikitext'))) == articles
