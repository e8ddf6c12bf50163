"""Where text comes from: every format yields the documents that went in, however it is cut; every fault is one line."""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import zstandard
from conftest import ROOT
from hub_server import FINEWEB_EDU, hub
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus import formats, sources

TEXTS = ['First.\nSecond line, naïve — 日本.\n', 'tabs\tand "quotes"', '', ' \n', '🙂 last\u2028one\r\n\n']
COMPRESS = {
    '': bytes,
    '.gz': gzip.compress,
    # a checksum, as the zstd program writes it: without one a changed byte can go unnoticed
    '.zst': lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    '.xz': lzma.compress,
    '.bz2': bz2.compress,
}


def read(path, text_field='text', target=16 << 20, **options):
    """The documents of a file that is cut into units of about `target` bytes."""
    parts = sources.units([(str(path), os.path.getsize(path))], target)
    return [text for unit in parts for _, text in formats.documents(unit, text_field, **options)]


@pytest.fixture
def refused(capfd):
    """refused(words, function, arguments...) -> the one line that the call ends with, which must hold the words."""

    def refused(words, function, *arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            list(function(*arguments))
        assert end.value.code == 2
        err = capfd.readouterr().err
        assert err.startswith('error: ') and err.count('\n') == 1, err
        for word in words:
            assert word in err, err
        return err

    return refused


def jsonl(texts, field='text', ascii=True, end='\n'):
    rows = [json.dumps({'id': i, field: text}, ensure_ascii=ascii) for i, text in enumerate(texts)]
    return (end.join(rows) + end).encode()


def write_parquet(path, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)


# --- formats ----------------------------------------------------------------------


def arrow(texts, new):
    table = pyarrow.table({'text': pyarrow.array(texts, pyarrow.string())})
    sink = pyarrow.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def comma_separated(texts):
    out = io.BytesIO()
    texts = [text.replace('\0', '') for text in texts]  # Python 3.10's reader refuses it
    pyarrow.csv.write_csv(pyarrow.table({'text': pyarrow.array(texts, pyarrow.string())}), out)
    return out.getvalue()


WRITE = {
    'a.jsonl': jsonl,
    'unescaped.jsonl': partial(jsonl, ascii=False),
    'array.json': lambda texts: json.dumps([{'text': text} for text in texts], indent=1).encode(),
    'lines.json': jsonl,
    'a.csv': comma_separated,
    'stream.arrow': partial(arrow, new=pyarrow.ipc.new_stream),
    'file.arrow': partial(arrow, new=pyarrow.ipc.new_file),
}


@pytest.mark.parametrize('ending', COMPRESS)
@pytest.mark.parametrize('name', WRITE)
@given(st.lists(st.text(st.characters(exclude_categories=['Cs'])), min_size=1, max_size=5))
@settings(max_examples=15)
def test_rows_come_out_as_they_went_in(tmp_path_factory, name, ending, texts):
    path = tmp_path_factory.getbasetemp() / (name + ending)
    for these in (texts, TEXTS):
        path.write_bytes(COMPRESS[ending](WRITE[name](these)))
        assert read(path) == [t.replace('\0', '') if name == 'a.csv' else t for t in these]


@pytest.mark.parametrize('ending', COMPRESS)
@pytest.mark.parametrize('name', ['a.txt', 'A.MD', 'a.py', 'a.rst', 'no_ending'])
def test_text_comes_out_as_it_went_in(tmp_path, name, ending):
    path = tmp_path / (name + ending)
    for text in ('', ''.join(TEXTS), '^' * 1_000_000, '\0' * 1000):
        path.write_bytes(COMPRESS[ending](text.encode()))
        assert read(path) == [text]


@pytest.mark.parametrize('kind', [pyarrow.string(), pyarrow.large_string()])
def test_parquet_in_row_groups_leaves_missing_texts_out(tmp_path, kind):
    path = str(tmp_path / 'a.parquet')
    texts = [f'{i} {TEXTS[i % 5]}' for i in range(2500)]
    column = pyarrow.array([None, *texts, None], type=kind)
    write_parquet(path, {'body': column, 'n': list(range(2502))}, row_group_size=700)
    assert read(path, 'body') == texts


@pytest.mark.parametrize('name', ['a.jsonl', 'array.json', 'one.json', 'a.csv', 'a.parquet', 'a.arrow'])
def test_whole_rows_where_no_field_is_named(tmp_path, name):
    rows = [{'prompt': 'Who?', 'answer': 'A, "B"\n'}, {'prompt': 'é', 'answer': ''}]
    path = tmp_path / name
    if name == 'a.csv':
        with open(path, 'w', newline='', encoding='utf-8') as f:
            table = csv.DictWriter(f, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif name == 'a.parquet':
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name == 'a.arrow':
        with pyarrow.ipc.new_stream(path, (table := pyarrow.Table.from_pylist(rows)).schema) as writer:
            writer.write_table(table)
    elif name == 'one.json':
        rows = rows[:1]
        path.write_text(json.dumps(rows[0], indent=1))
    else:
        path.write_text('\n'.join(map(json.dumps, rows)) if name == 'a.jsonl' else json.dumps(rows))
    assert read(path, '') == rows


def test_several_compressed_parts_in_one_file_are_all_read(tmp_path):
    for ending in set(COMPRESS) - {''}:
        path = tmp_path / f'a.jsonl{ending}'  # as `cat` of two shards leaves it
        path.write_bytes(COMPRESS[ending](jsonl(TEXTS)) + COMPRESS[ending](jsonl(TEXTS)))
        assert read(path) == TEXTS * 2, ending


@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl', 'a.json', 'a.csv'])
def test_byte_order_mark_and_windows_line_ends(tmp_path, name):
    content = {
        'a.txt': b'one\r\ntwo',
        'a.jsonl': b'\r\n{"text": "one\\r\\ntwo"}\r\n\r\n',
        'a.json': b'{"text": "one\\r\\ntwo"}\r\n',
        'a.csv': b'text,n\r\n"one\r\ntwo",1\r\n',
    }[name]
    if name != 'a.jsonl':  # whose first line is blank
        content = b'\xef\xbb\xbf' + content
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == ['one\r\ntwo']


def test_half_a_surrogate_pair_in_json_is_no_fault(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude42", "n": NaN}\n')
    assert read(tmp_path / 'a.jsonl') == ['a\ud83d b', '🙂']


PAGE = """<html><head><meta charset="{}"><title>T</title></head><body><nav><a href="/">Home</a> <a href="/b">Blog</a></nav>
<main><article><h1>Über uns</h1><p>Wir sind ein kleines Café in Köln, nicht weit vom Dom, und öffnen um acht.</p></article>
</main><footer>© Impressum</footer></body></html>"""


@pytest.mark.parametrize('charset', ['utf-8', 'iso-8859-1', 'utf-16'])
@pytest.mark.parametrize('name', ['a.html', 'a.htm.gz'])
def test_a_page_gives_its_main_text_in_any_charset(tmp_path, name, charset):
    path = tmp_path / name
    path.write_bytes(COMPRESS[formats.suffixes(name)[1]](PAGE.format(charset).encode(charset)))
    (text,) = read(path)
    assert 'Über uns' in text and 'Café in Köln' in text and 'Home' not in text and 'Impressum' not in text


def test_a_page_that_would_take_hours_is_skipped(tmp_path):
    for page in (b'<div>' * 100_000, b'<DIV><article>' * 50_000 + b'</article></div>' * 50_000):
        (tmp_path / 'a.html').write_bytes(page)
        bad = []
        assert read(tmp_path / 'a.html', damaged=lambda *what, bad=bad: bad.append(what)) == []
        assert bad == [(f'{tmp_path}/a.html:1', '<div> in <div>, 100,000 deep')]
    (tmp_path / 'a.html').write_text('<div><p>Many, but not deep.</p></div>' * 5000)
    assert read(tmp_path / 'a.html')[0].count('Many') == 5000


def warc(*records):
    """Records as the standard has them (ISO 28500): (type, block) each."""
    out = b''
    for number, (kind, block) in enumerate(records):
        head = f'WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nContent-Type: '
        head += 'text/plain' if kind == 'conversion' else f'application/http; msgtype={kind}'
        head += f'\r\nWARC-Date: 2025-01-01T00:00:00Z\r\nContent-Length: {len(block)}\r\n\r\n'
        out += head.encode() + block + b'\r\n\r\n'
    return out


def response(page, status=200, **headers):
    lines = [
        f'HTTP/1.1 {status} X',
        *(f'{name.replace("_", "-")}: {value}' for name, value in headers.items()),
    ]
    return 'response', '\r\n'.join([*lines, '', '']).encode() + page


CRAWL = [
    ('warcinfo', b'software: test\r\n'),
    ('request', b'GET / HTTP/1.1\r\nHost: a\r\n\r\n'),
    response(PAGE.format('').encode('iso-8859-1'), Content_Type='text/html; charset=ISO-8859-1'),
    response(gzip.compress(PAGE.format('utf-8').encode()), Content_Type='text/html', Content_Encoding='gzip'),
    response(b'{"a": 1}', Content_Type='application/json'),
    response(PAGE.encode(), 404, Content_Type='text/html'),
]


@pytest.mark.parametrize('ending', ['', '.gz', '.zst'])
def test_a_crawl_gives_the_main_text_of_its_pages(tmp_path, ending):
    path = tmp_path / f'a.warc{ending}'
    path.write_bytes(b''.join(COMPRESS[ending](warc(record)) for record in CRAWL))
    found = list(formats.documents([(str(path), 0, None)]))
    assert [place for place, _ in found] == [f'a.warc{ending}:3', f'a.warc{ending}:4']
    for _, text in found:
        assert 'Café in Köln' in text and 'Impressum' not in text
    path = tmp_path / f'a.warc.wet{ending}'
    path.write_bytes(
        b''.join(COMPRESS[ending](warc(r)) for r in [CRAWL[0], *(('conversion', t.encode()) for t in TEXTS)])
    )
    assert read(path) == TEXTS


def test_a_page_its_sender_compressed_badly_is_skipped(tmp_path):
    broken = response(b'no gzip at all', Content_Type='text/html', Content_Encoding='gzip')
    (tmp_path / 'a.warc').write_bytes(warc(CRAWL[2], broken, CRAWL[3]))
    bad = []
    assert len(read(tmp_path / 'a.warc', damaged=lambda place, why: bad.append(place))) == 2
    assert bad == [f'{tmp_path}/a.warc:2']


def test_a_crawl_cut_short_anywhere_is_refused(tmp_path, refused):
    whole = warc(*CRAWL[:4])
    # but between two, where it is a shorter crawl: a record ends with four bytes of no content
    borders = {len(warc(*CRAWL[:n])) - back for n in range(1, 5) for back in range(5)}
    for cut in range(1, len(whole), 7):
        if cut not in borders:
            (tmp_path / 'a.warc').write_bytes(whole[:cut])
            refused(['a.warc'], read, tmp_path / 'a.warc')


def test_wikitext_rows_are_joined_into_articles(tmp_path):
    articles = [
        ' = Valkyria Chronicles III = \n \n A game . \n \n = = Plot = = \n \n It takes place in 1 = 2 . \n',
        ' = M = \n A film of 1931 . \n = = = Sound = = = \n A whistle . \n',
        ' = Last = \n A line . \n',
    ]
    rows = [row for article in articles for row in ['', *article.splitlines(keepends=True), '']]
    (tmp_path / 'wikitext').mkdir()
    write_parquet(tmp_path / 'wikitext' / 'train.parquet', {'text': rows}, row_group_size=4)
    assert read(tmp_path / 'wikitext' / 'train.parquet', target=50) == articles
    (inputs, _) = sources.find_files('', str(tmp_path / 'wikitext'))
    assert [text for unit in sources.units(inputs) for _, text in formats.documents(unit)] == articles


@pytest.mark.parametrize(
    'name', ['a.txt', 'a.txt.gz', 'a.jsonl', 'a.jsonl.zst', 'a.parquet', 'a.csv', 'a.json']
)
@pytest.mark.parametrize('target', [10_000, 16 << 20])
def test_progress_adds_up_to_the_size_of_the_files(tmp_path, name, target):
    texts = [random.Random(i).randbytes(3000).hex() for i in range(40)]
    path = tmp_path / name
    if name.endswith('parquet'):
        write_parquet(path, {'text': texts}, row_group_size=7)
    else:
        ending = formats.suffixes(name)[1]
        content = {'.jsonl': jsonl, '.json': jsonl, '.csv': comma_separated}.get(formats.suffixes(name)[0])
        path.write_bytes(COMPRESS[ending](content(texts) if content else ''.join(texts).encode()))
    reported = []
    documents = read(path, done=reported.append, target=target)
    assert ''.join(documents) == ''.join(texts)
    assert sum(reported) == path.stat().st_size and min(reported) >= 0


# --- units --------------------------------------------------------------------------


def test_small_files_are_put_together_large_ones_cut_others_not():
    inputs = [
        ('a.txt', 6),
        ('b.md', 3),
        ('c.txt.gz', 4),
        ('d.jsonl', 25),
        ('e.json', 30),
        ('f.txt', 0),
        ('g.txt', 10),
    ]
    inputs += [
        ('hf://datasets/A/B@c/h.parquet', 0),
        ('http://a/i.jsonl', 0),
        ('hf://datasets/A/B@c/j.parquet', 11),
    ]
    assert sources.units(inputs, 10) == [
        [('a.txt', 0, None), ('b.md', 0, None)],
        [('c.txt.gz', 0, None)],
        [('d.jsonl', 0, 10)],
        [('d.jsonl', 10, 20)],
        [('d.jsonl', 20, 25)],
        [('e.json', 0, None)],
        [('f.txt', 0, None), ('g.txt', 0, None)],
        [('hf://datasets/A/B@c/h.parquet', 0, None)],
        [('http://a/i.jsonl', 0, None)],
        [('hf://datasets/A/B@c/j.parquet', 0, 10)],
        [('hf://datasets/A/B@c/j.parquet', 10, 11)],
    ]
    assert sources.units([]) == []


@given(
    st.lists(st.sampled_from(['a', 'é', '日', '🙂', '\n', '\r\n', 'long ' * 4]), max_size=60).map(''.join),
    st.integers(4, 20),  # a character is of up to 4 bytes
    st.integers(4, 20),
)
@settings(max_examples=200)
def test_a_long_text_is_cut_at_line_ends_and_loses_nothing(tmp_path_factory, text, longest, slack):
    path = tmp_path_factory.getbasetemp() / 'long.txt'
    path.write_text(text, encoding='utf-8', newline='')
    slack = min(slack, longest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, 'MAX_TEXT', longest)
        patch.setattr(formats, 'CUT_WINDOW', slack)
        whole = read(path)
        for target in (1, 7, longest, 2 * longest + 1):
            assert read(path, target=target) == whole
        path.with_suffix('.txt.gz').write_bytes(gzip.compress(text.encode()))
        assert read(path.with_suffix('.txt.gz')) == whole
    assert ''.join(whole) == text
    place = 0
    for part in whole[:-1]:
        place += len(part.encode())
        # behind a line end, or where none is near
        near = text.encode()[place // longest * longest :][:slack]
        assert part.endswith('\n') or b'\n' not in near and place % longest < 4, whole


@given(
    st.lists(st.sampled_from(['', 'a', 'é日🙂' * 3, 'x' * 40, 'bad', 'marked', 'line\nend\r']), max_size=12),
    st.sampled_from(['\n', '\r\n']),
    st.booleans(),
    st.integers(1, 60),
)
@settings(max_examples=200)
def test_lines_do_not_depend_on_where_a_file_is_cut(tmp_path_factory, texts, end, final, target):
    path = tmp_path_factory.getbasetemp() / 'lines.jsonl'
    special = {'': '', 'bad': '{"text": ', 'marked': '\ufeff{"text": "marked"}'}  # a byte order mark
    lines = [special.get(text, json.dumps({'text': text}, ensure_ascii=False)) for text in texts]
    path.write_bytes((end.join(lines) + end * final).encode())
    expected_bad = [i for i, t in enumerate(texts) if t == 'bad' or t == 'marked' and i > 0]
    expected = [text for i, text in enumerate(texts) if text and i not in expected_bad]
    bad = []
    formats.lines_before.cache_clear()  # of another file of this name
    assert read(path, target=target, damaged=lambda place, why: bad.append((place, why[:8]))) == expected
    assert bad == [(f'{path}:{i + 1}', 'not JSON') for i in expected_bad]


def test_row_groups_do_not_depend_on_where_a_file_is_cut(tmp_path):
    texts = [random.Random(i).randbytes(i % 90).hex() for i in range(1000)]
    for compression, dictionary in itertools.product(['none', 'zstd'], [True, False]):
        options = dict(row_group_size=37, compression=compression, use_dictionary=dictionary)
        write_parquet(tmp_path / 'a.parquet', {'n': list(range(1000)), 'text': texts}, **options)
        for target in (1024, 5000, 1 << 24):
            assert read(tmp_path / 'a.parquet', target=target) == texts


def test_places_name_the_line_or_row(tmp_path):
    (tmp_path / 'a b.jsonl').write_bytes(b'\n' + jsonl(['x', 'y']))
    (tmp_path / 'c.txt').write_text('z')
    write_parquet(tmp_path / 'd.parquet', {'text': list('abcdef')}, row_group_size=2)
    unit = [(f'{tmp_path}/{name}', 0, None) for name in ('a b.jsonl', 'c.txt', 'd.parquet')]
    assert [place for place, _ in formats.documents(unit)] == [
        *('a b.jsonl:2', 'a b.jsonl:3', 'c.txt:1'),
        *(f'd.parquet:{i}' for i in range(1, 7)),
    ]


@pytest.mark.parametrize('name', ['nul.txt', 'line.jsonl'])
def test_memory_stays_bounded_whatever_is_in_a_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(formats, 'MAX_TEXT', 1 << 20)
    monkeypatch.setattr(formats, 'MAX_LINE', 1 << 20)
    path, size = tmp_path / name, 60 << 20
    with open(path, 'wb') as f:
        f.truncate(size)
        f.seek(size)
        f.write(b'\n{"text": "the next line"}\n')
    bad, length, last = [], 0, ''
    tracemalloc.start()
    try:
        for unit in sources.units([(str(path), path.stat().st_size)], 7 << 20):
            for _, last in formats.documents(unit, damaged=lambda place, why: bad.append(place)):
                length += len(last)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20
    if name == 'nul.txt':
        assert length == path.stat().st_size
    else:
        assert last == 'the next line' and bad == [f'{path}:1']


# --- faults -------------------------------------------------------------------------


def damaged(data):
    """The data with every thousandth byte changed."""
    return bytes(b ^ 0xFF if i % 1000 == 500 else b for i, b in enumerate(data))


@pytest.mark.parametrize('ending', sorted(set(COMPRESS) - {''}))
@pytest.mark.parametrize(
    'fault', ['truncated', 'a byte short', 'empty', 'damaged', 'other format', 'garbage behind']
)
def test_a_bad_archive_is_refused_and_never_read_in_part_only(tmp_path, refused, ending, fault):
    text = Path(json.decoder.__file__).read_bytes() + random.Random(1).randbytes(100_000).hex().encode()
    whole = COMPRESS[ending](text)
    path = tmp_path / f'a.txt{ending}'
    path.write_bytes(
        {
            'truncated': whole[: len(whole) // 2],
            'a byte short': whole[:-1],
            'empty': b'',
            'damaged': damaged(whole),
            'other format': COMPRESS['.gz' if ending == '.bz2' else '.bz2'](text),
            'garbage behind': whole + b'garbage' * 10,
        }[fault]
    )
    refused([str(path)], read, path)


@pytest.mark.parametrize(
    'name, content, words',
    [
        ('a.txt', 'naïve'.encode('latin-1'), ['UTF-8']),
        ('a.txt', b'cut in a character: \xe6\x97', ['UTF-8']),
        ('a.jsonl', b'{"text": "na\xefve"}\n', [':1', 'UTF-8']),
        ('a.jsonl', b'{"text": "a"}\n\n{"text": \n', [':3', 'JSON']),
        ('a.jsonl', b'{"text": "a"}\n{"txt": "a"}\n', [':2', "'text'", '--text_field']),
        ('a.jsonl', b'{"text": 1}\n', [':1', "'text'"]),
        ('a.jsonl', b'["text"]\n', [':1']),
        ('a.jsonl', b'[' * 100_000, [':1', 'JSON']),
        ('a.json', b'[{"text": "a"}, {"text": "b"', []),
        ('a.json', b'[{"text": "a"}, {"txt": "b"}]', [':2', "'text'"]),
        ('a.json', b'[{"text": "na\xefve"}]', ['UTF-8']),
        ('a.csv', b'text,n\n"a,1\n', []),
        ('a.csv', b'text,n\na,1\nb\n', [':3', '1 fields']),
        ('a.csv', b'text,n\na,1\nna\xefve,2\n', ['UTF-8']),
        ('a.csv', b'body,n\na,1\n', ["'text'", 'body, n', '--text_field']),
        ('a.parquet', b'PAR1 no parquet', []),
        ('a.parquet', b'', []),
        ('a.arrow', b'', []),
        ('a.arrow', arrow(TEXTS, pyarrow.ipc.new_stream)[:-100], []),
        ('a.arrow', arrow(TEXTS, pyarrow.ipc.new_file)[:-100], []),
        ('a.warc', b'<html>', []),
    ],
)
def test_a_bad_file_is_refused(tmp_path, refused, name, content, words):
    (tmp_path / name).write_bytes(content)
    refused([name, *words], read, tmp_path / name)


def test_bad_lines_are_counted_named_and_skipped(tmp_path):
    good = jsonl(['one', 'two', 'three']).splitlines(keepends=True)
    faults = [
        b'{"text": \n',
        b'{"text": "na\xefve"}\n',
        b'{"txt": "a"}\n',
        b'[1]\n',
        b'\0' * 100 + b'\n',
        b'null\n',
    ]
    lines = [good[0], *faults, good[1], b'{"text": "a"} {}\n', good[2], b'{"text": "half a l']
    for ending in COMPRESS:
        path, bad = tmp_path / f'a.jsonl{ending}', []
        path.write_bytes(COMPRESS[ending](b''.join(lines)))
        assert read(path, damaged=lambda *what, bad=bad: bad.append(what)) == ['one', 'two', 'three']
        assert [place for place, _ in bad] == [f'{path}:{i}' for i in (2, 3, 4, 5, 6, 7, 9, 11)]
        assert 'UTF-8' in bad[1][1] and "'text'" in bad[2][1]


@pytest.mark.parametrize('name', ['a.txt', 'a.txt.gz', 'a.csv'])
def test_bytes_that_are_no_utf8_are_found_where_they_are(tmp_path, refused, name):
    path = tmp_path / name
    path.write_bytes(COMPRESS[formats.suffixes(name)[1]](b'text\n' + b'x\n' * 61_725 + b'\n\xff"}\n'))
    refused(['line 61728' if name == 'a.csv' else 'byte 123,456'], read, path)


def test_parquet_without_the_field_or_with_numbers_in_it(tmp_path, refused):
    path = str(tmp_path / 'a.parquet')
    write_parquet(path, {'body': ['a'], 'text': [1]})
    refused(["'content'", 'body', '--text_field'], read, path, 'content')
    refused(["'text'", '--text_field'], read, path, 'text')


def test_parquet_cut_short_or_damaged_in_a_page(tmp_path, refused):
    path = tmp_path / 'a.parquet'
    texts = [random.Random(i).randbytes(100).hex() for i in range(1000)]
    write_parquet(path, {'text': texts}, compression='none', use_dictionary=False, write_page_checksum=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    refused(['a.parquet'], read, path)
    path.write_bytes(whole.replace(texts[500].encode(), texts[501].encode()))
    refused(['a.parquet'], read, path)


def test_a_file_that_goes_away(tmp_path, refused):
    refused(['gone.txt', 'No such file'], formats.documents, [(str(tmp_path / 'gone.txt'), 0, None)])


# --- which files --------------------------------------------------------------------


def names(inputs, root):
    return [os.path.relpath(path, root) for path, _ in inputs]


def test_globs_go_into_folders_are_sorted_and_name_files_only(tmp_path, refused):
    for path in (
        'b.txt',
        'a.txt',
        'sub/c.txt',
        'sub/deep/d.txt',
        'sub/e.md',
        'folder.txt/f.md',
        '.hidden/g.txt',
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    inputs, origin = sources.find_files(f'{tmp_path}/**/*.txt')
    assert names(inputs, tmp_path) == ['a.txt', 'b.txt', 'sub/c.txt', 'sub/deep/d.txt']
    assert [size for _, size in inputs] == [5, 5, 9, 14]
    assert origin == {'files': f'{tmp_path}/**/*.txt', 'count': 4}
    assert names(sources.find_files(f'{tmp_path}/sub/**')[0], tmp_path) == [
        'sub/c.txt',
        'sub/deep/d.txt',
        'sub/e.md',
    ]
    assert names(sources.find_files(f'{tmp_path}/*/**/d*/**/*.txt')[0], tmp_path) == ['sub/deep/d.txt']
    refused(['*.rst', 'no file'], sources.find_files, f'{tmp_path}/*.rst')
    refused(['no file'], sources.find_files, str(tmp_path / 'sub'))
    refused(['s3://a/b.txt'], sources.find_files, 's3://a/b.txt')


def test_a_glob_of_this_folder(tmp_path, monkeypatch):
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'a.txt').write_text('a')
    monkeypatch.chdir(tmp_path)
    assert (
        names(sources.find_files('**/*.txt')[0], '.')
        == names(sources.find_files('sub/*')[0], '.')
        == ['sub/a.txt']
    )


def test_links_neither_hang_nor_give_a_file_twice(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'real' / 'a.txt').write_text('a')
    for i in range(5):  # each doubles the ways that a walk through links could go
        (tmp_path / 'real' / f'loop{i}').symlink_to(tmp_path)
    (tmp_path / 'again').symlink_to(tmp_path / 'real')
    (tmp_path / 'another name.txt').symlink_to(tmp_path / 'real' / 'a.txt')
    (tmp_path / 'nowhere.txt').symlink_to(tmp_path / 'gone')
    (tmp_path / 'itself.txt').symlink_to(tmp_path / 'itself.txt')
    assert len(sources.find_files(f'{tmp_path}/**/*.txt')[0]) == 1
    assert len(sources.find_files(f'{tmp_path}/*/*.txt')[0]) == 1  # where it is named, a link is followed
    assert names(sources.find_files(f'{tmp_path}/again/*.txt')[0], tmp_path) == ['again/a.txt']


def test_a_file_whose_name_looks_like_a_pattern_is_found_by_its_name(tmp_path):
    path = tmp_path / 'my notes [1]' / 'a * b.txt'
    path.parent.mkdir()
    path.write_text('some text')
    inputs, _ = sources.find_files(str(path))
    assert inputs == [(str(path), 9)]
    assert [list(formats.documents(unit)) for unit in sources.units(inputs)] == [
        [('a * b.txt:1', 'some text')]
    ]
    assert sources.find_files(f'{tmp_path}/**/*.txt')[0] == inputs


def test_the_home_directory_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.txt').write_text('a')
    assert sources.find_files('~/*.txt')[0] == [(str(tmp_path / 'a.txt'), 1)]


def test_the_standard_library_comes_without_its_tests_and_packages():
    inputs, origin = sources.find_files('python')
    paths = [path for path, _ in inputs]
    assert json.__file__ in paths and json.decoder.__file__ in paths and len(paths) > 300
    assert origin == {'files': 'python', 'count': len(paths)} and paths == sorted(paths)
    assert not [p for p in paths if {'test', 'tests', 'site-packages', '__pycache__'} & set(p.split(os.sep))]
    texts = [text for unit in sources.units(inputs) for _, text in formats.documents(unit)]
    assert len(texts) == len(paths) and sum(map(len, texts)) > 5e6  # all of it is UTF-8


@pytest.mark.parametrize('name', ['wet.paths', 'wet.paths.gz'])
def test_a_listing_of_paths(tmp_path, refused, name):
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'b.txt').write_text('bb')
    lines = [
        'crawl-data/CC-MAIN-2025-05/a.warc.wet.gz',
        'https://a.org/c.txt?x',
        'sub/b.txt',
        str(tmp_path / 'sub/b.txt'),
    ]
    listing = tmp_path / name
    listing.write_bytes(COMPRESS[formats.suffixes(name)[1]]('\n'.join([*lines, '']).encode()))
    inputs, origin = sources.find_files(str(listing))
    assert inputs == [
        (f'{tmp_path}/sub/b.txt', 2),
        ('https://a.org/c.txt?x', 0),
        ('https://data.commoncrawl.org/crawl-data/CC-MAIN-2025-05/a.warc.wet.gz', 0),
    ]
    assert origin == {'files': str(listing), 'count': 3}
    (tmp_path / 'sub' / 'b.txt').unlink()
    refused(['b.txt', 'No such file'], sources.find_files, str(listing))
    listing.write_bytes(COMPRESS[formats.suffixes(name)[1]](b'\n'))
    refused([name, 'nothing'], sources.find_files, str(listing))


def test_every_named_source_is_complete_and_in_the_table():
    for name, source in sources.SOURCES.items():
        assert bool(source.get('files')) != bool(source.get('hub')), name
        assert source['clean'] in ('none', 'basic', 'web', 'code') and source['dedup'] in (
            'near',
            'exact',
            'none',
        )
        assert 0 < source['val_fraction'] < 1 and source['tokenizer'] in ('gpt2', 'bpe', 'char')
        (line,) = [line for line in sources.listing().splitlines() if line.split()[0] == name]
        for key in ('licence', 'size', 'about', 'hub', 'hub_config', 'files'):
            assert source.get(key, '') in line
    assert len(sources.listing().splitlines()) == len(sources.SOURCES) + 1


# --- the network ----------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch):
    """served(handler) starts an HTTP server of this machine -> its address."""
    servers = []
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(formats, 'BACKOFF', 0.01)

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


def fetched(url):
    """The documents of a URL."""
    inputs, _ = sources.find_files(url)
    return [text for unit in sources.units(inputs) for _, text in formats.documents(unit)]


@pytest.mark.parametrize('query', ['', '?download=true'])
@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl.gz'])
def test_a_url_is_downloaded_and_read_by_its_ending(tmp_path, served, name, query):
    content = jsonl(TEXTS) if 'jsonl' in name else ''.join(TEXTS).encode()
    (tmp_path / name).write_bytes(COMPRESS[formats.suffixes(name)[1]](content))
    address = served(partial(Quiet, directory=str(tmp_path)))
    assert ''.join(fetched(f'{address}/{name}{query}')) == ''.join(TEXTS)


def test_a_listing_at_a_url_names_files_of_its_host(tmp_path, served):
    (tmp_path / 'crawl-data').mkdir()
    (tmp_path / 'crawl-data' / 'a.warc.wet.gz').write_bytes(
        gzip.compress(warc(('conversion', b'from the web')))
    )
    (tmp_path / 'crawl-data' / 'wet.paths.gz').write_bytes(gzip.compress(b'crawl-data/a.warc.wet.gz\n'))
    address = served(partial(Quiet, directory=str(tmp_path)))
    assert fetched(f'{address}/crawl-data/wet.paths.gz') == ['from the web']


def test_a_url_that_is_not_there_or_refuses(tmp_path, served, refused):
    address = served(partial(Quiet, directory=str(tmp_path)))
    refused([address, 'not found', '--files=PATH'], fetched, f'{address}/none.txt')
    refused(['refused', '--files=PATH'], fetched, 'http://127.0.0.1:1/none.txt')


class Unreliable(BaseHTTPRequestHandler):
    """Sends at most 1000 bytes at a time, but honours Range if it is whole; a new version of the file after `changes`."""

    content, honours, requests, changes, chunked = b'', True, [], 0, False

    def do_GET(self):
        self.requests.append(self.headers.get('Range'))
        version = '"one"' if not self.changes or len(self.requests) <= self.changes else '"two"'
        content = self.content if version == '"one"' else self.content.swapcase()
        begin = 0
        if self.honours and self.headers.get('Range') and self.headers.get('If-Range') == version:
            begin = int(self.headers['Range'][6:-1])
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {begin}-{len(content) - 1}/{len(content)}')
        else:
            self.send_response(200)
        self.send_header('ETag', version)
        self.send_header('Content-Length', str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin : begin + 1000])

    def log_message(self, *words):
        pass


def test_a_download_that_breaks_off_is_taken_up_where_it_was(served):
    text = random.Random(1).randbytes(2400).hex()
    handler = type('Handler', (Unreliable,), dict(content=text.encode(), requests=[]))
    assert fetched(f'{served(handler)}/a.txt') == [text]
    assert handler.requests == [None, 'bytes=1000-', 'bytes=2000-', 'bytes=3000-', 'bytes=4000-']


def test_a_file_that_changes_during_the_download_is_not_put_together_of_both(served):
    text = 'Abc ' * 1200
    handler = type('Handler', (Unreliable,), dict(content=text.encode(), requests=[], changes=3))
    assert fetched(f'{served(handler)}/a.txt') == [text.swapcase()]


def test_a_download_that_never_completes_is_not_taken_for_the_whole(served, refused):
    handler = type('Handler', (Unreliable,), dict(content=b'x' * 1500, requests=[], honours=False))
    address = served(handler)
    refused([address, '1000 bytes read', '500 more'], fetched, f'{address}/a.txt')
    assert 3 < len(handler.requests) < 10


def test_a_server_that_is_not_well_is_asked_again(tmp_path, served, refused):
    asked = []

    class Unwell(Quiet):
        def do_GET(self):
            asked.append(self.path)
            if asked.count(self.path) == 1 or 'never' in self.path:
                self.send_error(500, 'not well')
            else:
                super().do_GET()

    (tmp_path / 'a.txt').write_text('some text')
    address = served(partial(Unwell, directory=str(tmp_path)))
    assert fetched(f'{address}/a.txt') == ['some text']
    refused([address, 'not well'], fetched, f'{address}/never.txt')
    refused([address, 'not found'], fetched, f'{address}/gone.txt')
    assert asked.count('/gone.txt') == 2  # a file that is not there is not asked for again


# --- the hub, by a directory laid out like one of its data sets ---------------------


def hub_texts(folder, split='train', field='text', config=''):
    inputs, origin = sources.find_files('', str(folder), config, split)
    assert origin == {'hub': str(folder), 'config': config, 'split': split, 'revision': 'local'}
    assert all(size == os.path.getsize(path) for path, size in inputs)
    return [text for unit in sources.units(inputs) for _, text in formats.documents(unit, field)]


def test_splits_of_a_local_directory(tmp_path):
    (tmp_path / 'data').mkdir()
    for i in range(12):
        (tmp_path / 'data' / f'train-{i:05d}.jsonl').write_bytes(jsonl([f'train {i}']))
    (tmp_path / 'data' / 'test.jsonl.gz').write_bytes(gzip.compress(jsonl(['test'])))
    assert hub_texts(tmp_path) == [f'train {i}' for i in range(12)]
    assert hub_texts(tmp_path, 'test') == ['test']


def test_faults_of_a_local_directory(tmp_path, refused):
    (tmp_path / 'stories' / 'data').mkdir(parents=True)
    (tmp_path / 'stories' / 'data' / 'train.jsonl').write_bytes(jsonl(TEXTS))
    stories = str(tmp_path / 'stories')
    refused(
        [stories, "'validation'", 'train', '--hub_split'], sources.find_files, '', stories, '', 'validation'
    )
    refused([stories, 'german', 'default'], sources.find_files, '', stories, 'german')
    (tmp_path / 'empty').mkdir()
    refused([str(tmp_path / 'empty')], sources.find_files, '', str(tmp_path / 'empty'))


READ = """
import json, sys
from corpus import formats, sources
formats.BACKOFF = 0.1
bad = lambda place, why: None
for case in json.loads(sys.argv[1]):
    try:
        inputs, origin = sources.find_files('', *case)
        texts = [text for unit in sources.units(inputs, 20_000) for _, text in formats.documents(unit, 'text', bad)]
        print(json.dumps([inputs, origin, texts]))
    except SystemExit as e:
        print(json.dumps(e.code))
"""


def from_hub(url, tmp_path, *cases, **env):
    """What reading data sets of a hub gives, in a process of its own -> ([(inputs, origin, texts) or exit code, ...], stderr)."""
    env |= {
        'HF_ENDPOINT': url,
        'HF_HOME': str(tmp_path / 'home'),
        'no_proxy': '127.0.0.1',
        'PYTHONPATH': str(ROOT),
    }
    command = [sys.executable, '-c', READ, json.dumps(cases)]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.splitlines()


@pytest.fixture(scope='module')
def hub_reads(tmp_path_factory):
    """Data sets of a hub, HuggingFaceFW/fineweb-edu as it is there but smaller, read in one process, for it imports much."""
    tmp_path = tmp_path_factory.mktemp('hub')
    directory = tmp_path / 'hub'
    fineweb_edu, many, lines = (
        directory / name for name in ('HuggingFaceFW/fineweb-edu', 'a/many', 'a/lines')
    )
    for folder in (fineweb_edu, many):
        (folder / 'sample' / '10BT').mkdir(parents=True)
        (folder / 'data' / 'CC-MAIN-2013-20').mkdir(parents=True)
        other = {'text': ['of another config']}
        write_parquet(folder / 'data' / 'CC-MAIN-2013-20' / 'train-00000.parquet', other)
    (fineweb_edu / 'README.md').write_text(FINEWEB_EDU)
    texts = [random.Random(i).randbytes(50).hex() + ' naïve' for i in range(900)]
    for i in range(3):
        rows = {'text': texts[300 * i : 300 * (i + 1)], 'id': list(range(300))}
        path = fineweb_edu / 'sample' / '10BT' / f'{i:03d}_00000.parquet'
        write_parquet(path, rows, row_group_size=100)
    (many / 'README.md').write_text(FINEWEB_EDU.replace('default', 'sample-100BT'))
    write_parquet(many / 'sample' / '10BT' / '0.parquet', {'text': TEXTS})
    lines.mkdir()
    (lines / 'train-0.jsonl').write_bytes(jsonl(texts) + b'{"text": ')
    (lines / 'train-1.jsonl.zst').write_bytes(COMPRESS['.zst'](jsonl(texts)))
    (directory / 'bigcode' / 'the-stack').mkdir(parents=True)
    (directory / 'bigcode' / 'the-stack' / 'train.jsonl').write_bytes(jsonl(TEXTS))
    with hub(directory, flaky=True, gated=['bigcode/the-stack']) as url:
        done, err = from_hub(
            url, tmp_path, ['HuggingFaceFW/fineweb-edu', 'sample-10BT'], ['a/lines'], *NOT_THERE
        )
    return fineweb_edu, texts, url.requests, done, err


NOT_THERE = {  # and the words of the line that says so
    ('HuggingFaceFW/fineweb-edu', 'sample-1BT'): ['sample-1BT', 'default', 'sample-10BT'],
    ('HuggingFaceFW/fineweb-edu', 'sample-10BT', 'test'): ["'test'", 'train'],
    ('a/many',): ['sample-100BT', 'sample-10BT'],
    ('no/body',): ['no/body', 'HF_TOKEN'],
    ('bigcode/the-stack',): ['bigcode/the-stack', 'gated'],
}


def test_a_data_set_is_read_from_a_hub_that_is_not_well_in_place_and_its_revision_pinned(hub_reads):
    local, texts, requests, ((inputs, origin, found), (_, _, lines), *_), _ = hub_reads
    assert found == texts and lines == texts * 2
    assert len(origin['revision']) == 40 and set(origin) == {'hub', 'config', 'split', 'revision'}
    base = f'hf://datasets/HuggingFaceFW/fineweb-edu@{origin["revision"]}/sample/10BT'
    paths = sorted((local / 'sample' / '10BT').iterdir())
    assert inputs == [[f'{base}/{path.name}', path.stat().st_size] for path in paths]
    gets = [request for request in requests if request[0] == 'GET' and request[1].endswith('.parquet')]
    assert gets and all(ranged for _, _, ranged in gets)


def test_what_the_hub_does_not_have_is_one_line(hub_reads):
    *_, done, err = hub_reads
    assert done[2:] == [2] * len(NOT_THERE)
    for line, words in zip(err, NOT_THERE.values(), strict=True):
        assert line.startswith('error: ') and all(word in line for word in words), line


def test_no_network_is_one_line_and_soon(tmp_path):
    began = time.time()
    codes, err = from_hub('http://127.0.0.1:1', tmp_path, ['HuggingFaceFW/fineweb-edu', 'sample-10BT'])
    assert codes == [2] and len(err) == 1 and 'HuggingFaceFW/fineweb-edu' in err[0] and 'refused' in err[0]
    assert time.time() - began < 30
