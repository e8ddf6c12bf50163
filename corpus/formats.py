"""Formats: files of text, plain or compressed, local, on the Hugging Face hub or behind a URL -> documents.

A unit of work is a list of (path, start, stop): files, or ranges of their bytes. The documents of a file do not depend
on how it is cut into ranges. Memory does not grow with a file, and nothing stays on disk: hub files are read in place,
other URLs through a temporary file.
"""

import codecs
import contextlib
import csv
import functools
import io
import itertools
import json
import lzma
import math
import os
import re
import tempfile
import time
import urllib.parse

from common import fail, need, reason

MAX_TEXT = 16 << 20  # bytes: a longer text file becomes several documents, so that memory stays bounded
CUT_WINDOW = 1 << 20  # bytes in which to look for the line end to cut at
MAX_LINE = 256 << 20  # bytes of a .jsonl line; a longer one is damage
MAX_DEPTH = 2000  # nested elements of an HTML page, which take 0.1 s
BACKOFF = 1  # seconds until a network request is repeated; they double each time
BUSY = (408, 429, 500, 502, 503, 504)  # HTTP statuses after which it is repeated
# mistakes in the code, which show their traceback
CODE_ERRORS = (AssertionError, AttributeError, LookupError, NameError, TypeError)


class Fault(str):
    """What a reader yields in place of a document that cannot be read: the reason."""


def documents(unit, text_field='text', damaged=None, done=lambda n: None):
    """Yield (place, document) of a unit of work: a str, or the whole row as a dict if text_field is ''.

    .jsonl .json .csv .parquet .arrow hold a document a row in `text_field`, .warc and .wet one a record, .html its main
    text; any other file is text. All but .parquet may be .gz .zst .xz .bz2.
    damaged: called with the place and fault of a row that cannot be read, which is then skipped; without it, and if a
    file cannot be read to its end, the program ends with one line.
    done: called with the bytes of the input read since the last call.
    """
    for path, start, stop in unit:
        name = os.path.basename(urllib.parse.urlsplit(path).path if is_url(path) else path)
        if start:  # the line in the file is unknown, the line after this byte is not
            name += f'+{start}'
        with open_input(path) as file:
            end = file.seek(0, io.SEEK_END) if stop is None else stop
            file.seek(0)
            stream = decompress(file, path)
            rows = READERS.get(suffixes(path)[0], texts)(stream, start, stop or math.inf, text_field)
            reported = start
            for number, document in articles(rows) if text_field and is_wikitext(path) else rows:
                if isinstance(document, Fault):
                    place = f'{path}, line {number} after byte {start:,}'
                    if not start or '://' not in path:  # where counting would download everything before
                        place = f'{path}:{lines_before(path, start) + number}'
                    if not damaged:
                        fail(f'{place}: {document}')
                    damaged(place, document)
                else:
                    yield f'{name}:{number}', document
                position = min(file.tell(), end)
                if position > reported:
                    done(position - reported)
                    reported = position
            done(end - reported)


@functools.lru_cache(1)
def lines_before(path, start):
    """How many lines of a file begin before the first line of the range that begins at byte `start`."""
    if not start:
        return 0
    with open(path, 'rb') as file:
        blocks = iter(lambda: file.read(min(1 << 20, start - 1 - file.tell())), b'')
        return sum(block.count(b'\n') for block in blocks) + 1


# --- files -------------------------------------------------------------------------


def splittable(path):
    """Whether a file can be read from the middle."""
    suffix, compression = suffixes(path)
    ranged = suffix in ('.jsonl', '.parquet') or suffix not in READERS
    return ranged and not (compression or is_wikitext(path) or is_url(path))


def suffixes(path):
    """(the suffix that tells the format, the suffix that tells the compression or '')."""
    if is_url(path):
        path = urllib.parse.urlsplit(path).path  # without a query
    inner, last = os.path.splitext(path.lower())
    return (os.path.splitext(inner)[1], last) if last in COMPRESSIONS else (last, '')


def is_url(path):
    return path.startswith(('http://', 'https://'))


def is_wikitext(path):
    """Wikitext's rows are lines of articles, so that its files are not cut."""
    return suffixes(path)[0] == '.parquet' and re.search(r'(^|/)wikitext[@/]', path)


@contextlib.contextmanager
def open_input(path):
    """Open a local file, hub file or URL as a seekable stream of bytes; an error while it is read ends the program."""
    try:
        if path.startswith('hf://'):  # read in place, by ranges
            file = io.BufferedReader(hub_filesystem().open(path, block_size=4 << 20), 1 << 20)
        else:
            file = download(path) if is_url(path) else open(path, 'rb', buffering=1 << 20)
        with file:
            yield file
    except UnicodeDecodeError as e:
        fail(f'{path} is not UTF-8 text ({e.reason} near byte {e.start:,}); convert it or leave it out')
    except CODE_ERRORS:
        raise
    except Exception as e:  # of the system, the network, and each library that reads a format
        advice = '; with the file at hand, use --files=PATH' if is_url(path) else ''
        fail(f'cannot read {path}: {reason(e)}{advice}')


def hub_filesystem():
    """The hub's file system, which repeats failed requests; without a warning each time."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()
    return HfFileSystem()


def retry(function, *arguments, **options):
    """Call a function again, up to five times, while the server is busy or the connection fails."""
    for tries in range(5):
        try:
            return function(*arguments, **options)
        except OSError as e:
            status = getattr(getattr(e, 'response', None), 'status_code', 0)
            if status not in BUSY and not isinstance(e, ConnectionResetError):
                raise
            time.sleep(BACKOFF * 2**tries)
    return function(*arguments, **options)


def download(url):
    """Download a URL into a temporary file, which is returned. A transfer that breaks off is resumed where it ended."""
    import requests
    from urllib3.exceptions import HTTPError

    file, version, furthest = tempfile.TemporaryFile(), '', 0

    def transfer():
        nonlocal version, furthest
        size = file.seek(0, io.SEEK_END)
        resume = {'Range': f'bytes={size}-', 'If-Range': version} if size and version else {}
        headers = {'Accept-Encoding': 'identity'} | resume  # the bytes of the file itself
        try:
            with requests.get(url, headers=headers, stream=True, timeout=60) as response:
                response.raise_for_status()
                if response.status_code != 206:  # the server cannot resume, or the file has changed
                    file.seek(0)
                    file.truncate()
                tag = response.headers.get('ETag', '')  # W/"..." does not promise equal bytes
                version = tag if tag.startswith('"') else response.headers.get('Last-Modified', '')
                for block in response.raw.stream(1 << 20, decode_content=False):
                    file.write(block)
        except (requests.ConnectionError, requests.Timeout, HTTPError) as e:
            if file.tell() > furthest:
                furthest = file.tell()
                return transfer()
            raise ConnectionResetError(e) from e

    retry(transfer)
    file.seek(0)
    return file


COMPRESSIONS = {'.gz': 'gzip', '.zst': 'zstd', '.bz2': 'bz2', '.xz': 'xz'}


def decompress(file, path):
    """A stream of what a file holds. A truncated archive raises, several in one file are read one after the other."""
    compression = COMPRESSIONS.get(suffixes(path)[1])
    if not compression:
        return file
    if not file.peek(1):
        raise EOFError('it is empty, which no archive is')
    if compression == 'xz':
        raw = lzma.LZMAFile(file)
        raw._buffer.raw._trailing_error = ()  # what it cannot read after a first archive is damage, not the end
    else:
        raw = need('pyarrow').CompressedInputStream(file, compression)
    return io.BufferedReader(raw, 1 << 20)


# --- formats --------------------------------------------------------------------
# A reader takes (stream, start, stop, text_field) and yields (number, document or Fault). Only texts, json_lines and
# parquet_rows get ranges, the others whole files.


def texts(stream, start, stop, text_field):
    """Text, cut after the first line end within CUT_WINDOW of each multiple of MAX_TEXT, or there if there is none.

    A range holds the texts whose multiple lies in it.
    """
    begin = -(-start // MAX_TEXT) * MAX_TEXT
    if begin >= stop:
        return
    if begin:
        stream.seek(begin)
    block = stream.read(MAX_TEXT)
    cut = cut_at(block) if begin else 0
    while True:
        following = stream.read(MAX_TEXT if begin + MAX_TEXT < stop else CUT_WINDOW)
        try:
            text = (block[cut:] + following[: cut_at(following)]).decode('utf-8' if begin else 'utf-8-sig')
        except UnicodeDecodeError as e:
            e.start += begin + cut
            raise
        if text or not begin:
            yield begin // MAX_TEXT + 1, text
        begin += MAX_TEXT
        if not following or begin >= stop:
            return
        block, cut = following, cut_at(following)


def cut_at(block):
    """How many of the first bytes of a block belong to the text before."""
    line = block.find(b'\n', 0, CUT_WINDOW) + 1
    return line or len(block[:3]) - len(block[:3].lstrip(bytes(range(0x80, 0xC0))))  # the rest of a character


def html_page(stream, start, stop, text_field):
    yield 1, main_text(stream.read())


def main_text(page, charset=None):
    """The main text of an HTML page without navigation and footers; page in bytes, charset as its sender says."""
    need('resiliparse')
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    encoding = map_encoding_to_html5(charset or '', fallback_utf8=False)
    html = bytes_to_str(page, encoding or detect_encoding(page, from_html_meta=True))
    lower = html.lower()
    # the time that the library takes grows with the square of their depth
    if lower.count('<div') + lower.count('<article') > MAX_DEPTH:
        steps = (-1 if tag[0][1] == '/' else 1 for tag in re.finditer(r'</?(?:div|article)\b', lower))
        if (depth := max(itertools.accumulate(steps))) > MAX_DEPTH:
            return Fault(f'<div> in <div>, {depth:,} deep')
    return extract_plain_text(html, main_content=True)


def json_lines(stream, start, stop, text_field):
    """A row per line; a range holds the lines that begin in it."""
    position = start
    if start:  # the line that reaches into the range belongs to the one before
        stream.seek(start - 1)
        position += rest_of_line(stream, stop - start + 1) - 1
    return json_rows(lines(stream, position, stop), text_field)


def json_file(stream, start, stop, text_field):
    """An array of rows, or one row, or a row per line, which many data sets of the hub have under this suffix."""
    first = stream.readline(MAX_LINE).removeprefix(codecs.BOM_UTF8)
    if first.startswith(b'{') and first.rstrip().endswith(b'}'):
        return json_rows(itertools.chain([first], lines(stream, len(first), stop)), text_field)
    rows = json.loads((first + stream.read()).decode())
    rows = rows if isinstance(rows, list) else [rows]
    return enumerate((row_document(row, text_field) for row in rows), 1)


def lines(stream, position, stop):
    """Yield the lines that begin before byte `stop`; None for a line that is too long to hold."""
    while position < stop and (line := stream.readline(MAX_LINE)):
        position += len(line)
        if position == len(line):  # the file's first
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) == MAX_LINE and not line.endswith(b'\n'):
            position += rest_of_line(stream, math.inf)
            line = None
        yield line


def rest_of_line(stream, limit):
    """Read to the end of the line, but not far beyond `limit` bytes -> how many bytes."""
    length = 0
    while length < limit and (block := stream.readline(1 << 20)):
        length += len(block)
        if block.endswith(b'\n'):
            break
    return length


def json_rows(lines, text_field):
    for number, line in enumerate(lines, 1):
        if line is None:
            yield number, Fault(f'a line of more than {MAX_LINE:,} bytes')
        elif not line.isspace():
            try:
                yield number, row_document(json.loads(line.decode()), text_field)
            except UnicodeDecodeError as e:
                yield number, Fault(f'not UTF-8 ({e.reason} at byte {e.start + 1:,} of the line)')
            except (ValueError, RecursionError) as e:
                yield number, Fault(f'not JSON: {reason(e)}')


def row_document(row, text_field):
    """The document of a row of JSON, or its Fault."""
    document = row.get(text_field) if text_field and isinstance(row, dict) else row
    if isinstance(row, dict) and isinstance(document, str if text_field else dict):
        return document
    missing = f'no text in the field {text_field!r}; name it with --text_field'
    return Fault(missing if text_field else 'no object')


def csv_rows(stream, start, stop, text_field):
    csv.field_size_limit(MAX_LINE)  # the library's own is 128 KiB
    # strict, so that a quote never closed is an error
    table = csv.reader(codecs.iterdecode(stream, 'utf-8-sig'), strict=True)
    try:
        columns = next(table, [])
        check_field(text_field, columns)
        for row in filter(None, table):  # without blank lines
            if len(row) != len(columns):
                document = Fault(f'{len(row)} fields where the first line names {len(columns)}')
            elif text_field:
                document = row[columns.index(text_field)]
            else:
                document = dict(zip(columns, row, strict=True))
            yield table.line_num, document
    except UnicodeDecodeError as e:
        raise ValueError(f'line {table.line_num + 1} is not UTF-8 text ({e.reason})') from e


def check_field(text_field, columns):
    """ValueError unless the field is one of the columns that hold text."""
    if text_field and text_field not in columns:
        found = f'only in {", ".join(columns)}; name one with --text_field'
        raise ValueError(f'it has no text in the field {text_field!r}, {found}')


def text_columns(schema):
    return [field.name for field in schema if str(field.type) in ('string', 'large_string', 'string_view')]


def parquet_rows(stream, start, stop, text_field):
    """The rows of those row groups whose first byte lies in the range."""
    need('pyarrow')
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(stream, page_checksum_verification=True)
    check_field(text_field, text_columns(file.schema_arrow))
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    columns = [group.column(0) for group in groups]
    begins = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    number = 1 + sum(group.num_rows for group, begin in zip(groups, begins, strict=True) if begin < start)
    chosen = [i for i, begin in enumerate(begins) if start <= begin < stop]
    # few rows at a time, for they can be books
    batches = file.iter_batches(128, chosen, [text_field] if text_field else None, use_threads=False)
    return batch_rows(batches, number, text_field)


def batch_rows(batches, number, text_field):
    """Yield (number, document) of each row that has one; the first row has the number given."""
    for batch in batches:
        rows = batch.column(text_field).to_pylist() if text_field else batch.to_pylist()
        yield from ((i, document) for i, document in enumerate(rows, number) if document is not None)
        number += len(rows)


def articles(lines):
    """Wikitext has a line per row: join them into articles, each of which begins with ` = Title = `."""
    first, article = 1, []
    for number, line in lines:
        if re.fullmatch(r' = [^=](.*[^=])? = \n', line) and ''.join(article).strip():
            yield first, ''.join(article)
            first, article = number, []
        article.append(line)
    if article:
        yield first, ''.join(article)


def arrow_rows(stream, start, stop, text_field):
    """A stream of record batches; a file of them is a stream between two marks."""
    is_file = stream.peek(8)[:8] == b'ARROW1\0\0'
    if is_file:
        stream.read(8)
    batches = need('pyarrow').ipc.open_stream(stream)
    check_field(text_field, text_columns(batches.schema))
    yield from batch_rows(batches, 1, text_field)
    if is_file and not stream.read().endswith(b'ARROW1'):
        raise EOFError('it is truncated')


def web_pages(stream, start, stop, text_field):
    """The main text of every HTML page in the responses of a .warc, as a crawler received them."""
    need('fastwarc')
    from fastwarc.warc import WarcRecord

    for number, content in warc_records(stream, b'response'):
        answer = WarcRecord()  # which decodes what the sender compressed
        answer.is_http = True
        answer.set_bytes_content(content)
        try:
            answer.parse_http(auto_decode='all')
            if answer.http_headers.status_code == 200 and 'html' in (answer.http_content_type or ''):
                yield number, main_text(answer.reader.read(), answer.http_charset)
        except (OSError, ValueError) as e:  # compressed badly by its sender
            yield number, Fault(reason(e))


def web_texts(stream, start, stop, text_field):
    """The texts of a .wet, which Common Crawl extracted from the pages."""
    for number, content in warc_records(stream, b'conversion'):
        try:
            yield number, content.decode()
        except UnicodeDecodeError as e:
            yield number, Fault(f'not UTF-8 ({e.reason} at byte {e.start + 1:,} of the record)')


def warc_records(stream, record_type):
    """Yield (number, content in bytes) of the records of one type (ISO 28500): a version, headers, content."""
    number = 0
    for line in iter(stream.readline, b''):
        if line.isspace():  # between records
            continue
        number += 1
        fields = iter(lambda: stream.readline().strip().lower(), b'')
        headers = dict(field.partition(b':')[::2] for field in fields)
        length = headers.get(b'content-length', b'').strip()
        if not line.startswith(b'WARC/') or not length.isdigit():
            raise ValueError(f'record {number} is damaged')
        content = stream.read(int(length))
        if len(content) < int(length):
            raise EOFError('it is truncated')
        if headers.get(b'warc-type', b'').strip() == record_type:
            yield number, content


READERS = {  # any other suffix is text
    '.html': html_page,
    '.htm': html_page,
    '.jsonl': json_lines,
    '.json': json_file,
    '.csv': csv_rows,
    '.parquet': parquet_rows,
    '.arrow': arrow_rows,
    '.warc': web_pages,
    '.wet': web_texts,
}
