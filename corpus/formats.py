"""How text is read: files of many formats, plain or compressed, local, of the hub or behind a URL -> documents.

A unit of work is a list of (path, start, stop), parts of files by their bytes. Documents are a function of the file
alone, whatever the parts; memory does not grow with a file, and nothing is kept on disk: files of the hub are read in
place, other URLs through a temporary file.
"""

import codecs
import contextlib
import csv
import functools
import http.client
import io
import itertools
import json
import lzma
import math
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from common import fail, need, reason

# bytes: a text file longer than this becomes several documents, so that memory stays bounded
LONGEST = 16 << 20
SLACK = 1 << 20  # bytes in which the line end to cut at is looked for
LONGEST_LINE = 256 << 20  # bytes of a .jsonl line; a longer one is taken for damage
LARGEST_JSON = 1 << 30  # bytes of a .json file that is one array or object: it is read at once
DEEPEST = 2000  # how deep an HTML page may be nested, which takes 0.1 s
PATIENCE = (1, 2, 4, 8, 16)  # seconds between the tries of what fails on the network


def documents(unit, text_field='text', damaged=None, done=lambda n: None):
    """Yield (place, document) of a piece of work: a str, or the whole row as a dict where text_field is ''.

    .jsonl .json .csv .parquet .arrow hold a document a row in `text_field`, .warc and .wet one a record, .html its main
    text, any other file is text. All but .parquet may be .gz .zst .xz .bz2.
    damaged: called with the place and fault of a row that cannot be read, which is then gone past; without it, as for a
    file that cannot be read to its end, the program ends with one line.
    done: called with the bytes of the input read since the last call.
    """
    for path, start, stop in unit:
        yield from part_documents(path, start, stop, text_field, damaged, done)


def part_documents(path, start, stop, text_field, damaged, done):
    name = os.path.basename(urllib.parse.urlsplit(path).path if is_url(path) else path)
    if start:  # which line of the file is not known, but which behind this byte
        name += f'+{start}'

    def bad(number, why):
        place = bad_place(path, start, number)
        if damaged is None:
            fail(f'{place}: {why}')
        damaged(place, why)

    with opened(path) as file:
        end = file.seek(0, io.SEEK_END) if stop is None else stop
        file.seek(0)
        stream = decompressed(file, path)
        reader = READERS.get(kind(path)[0], texts)
        told = start
        for number, document in reader(stream, path, start, stop or math.inf, text_field, bad):
            yield f'{name}:{number}', document
            position = min(file.tell(), end)
            if position > told:
                done(position - told)
                told = position
        done(end - told)


def bad_place(path, start, number):
    """'FILE:LINE' of a line by its number among those that begin behind byte `start`."""
    if not start:
        return f'{path}:{number}'
    if '://' in path:  # counting would download all that is before
        return f'{path}, line {number} behind byte {start:,}'
    return f'{path}:{lines_before(path, start) + number}'


@functools.lru_cache(1)
def lines_before(path, stop):
    """How many lines of a file begin before the first that begins at byte `stop` or behind it."""
    with open(path, 'rb') as file:
        blocks = iter(lambda: file.read(min(1 << 20, stop - 1 - file.tell())), b'')
        return sum(block.count(b'\n') for block in blocks) + 1


# --- files -------------------------------------------------------------------------


def splittable(path):
    ending, compressed = kind(path)
    whole = ending in READERS and ending not in ('.jsonl', '.parquet')
    return not (whole or compressed or is_wikitext(path) or is_url(path))


def kind(path):
    """(the ending that tells the format, the ending that tells the compression or '')."""
    if is_url(path):
        path = urllib.parse.urlsplit(path).path  # without a query
    inner, last = os.path.splitext(path.lower())
    return (os.path.splitext(inner)[1], last) if last in COMPRESSIONS else (last, '')


def is_url(path):
    return path.startswith(('http://', 'https://'))


def holds_rows(path):
    return kind(path)[0] in ('.jsonl', '.json', '.csv', '.parquet', '.arrow')


def is_wikitext(path):
    """Wikitext's rows are lines of articles, so a file of it has to be read as a whole."""
    return kind(path)[0] == '.parquet' and re.search(r'(^|/)wikitext[@/]', path)


def hub_system():
    """The hub's file system. It tries again by itself what fails on the network, and would tell of each time."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()
    return HfFileSystem()


def patiently(function, *arguments, **options):
    """Call it again while the hub answers that it is busy or not well."""
    for seconds in PATIENCE[:3]:
        try:
            return function(*arguments, **options)
        except OSError as e:
            if getattr(getattr(e, 'response', None), 'status_code', 0) not in (429, 500, 502, 503, 504):
                raise
            time.sleep(seconds)
    return function(*arguments, **options)


@contextlib.contextmanager
def opened(path):
    """A file, wherever it is, as a stream of bytes with seek; what goes wrong while it is read ends the program."""
    try:
        if path.startswith('hf://'):  # in place, by ranges
            file = io.BufferedReader(hub_system().open(path, block_size=4 << 20), 1 << 20)
        elif is_url(path):
            file = download(path)
        else:
            file = open(path, 'rb', buffering=1 << 20)
        with file:
            yield file
    except UnicodeDecodeError as e:
        fail(f'{path} is not UTF-8 text ({e.reason} near byte {e.start:,}); convert it or leave it out')
    except Exception as e:  # the system's, and those of each library that reads a format
        fail(f'cannot read {path}: {reason(e)}')


def download(url):
    """Fetch a URL into a temporary file -> that file. A connection that breaks off is taken up where it was."""
    file, version, tries, furthest = tempfile.TemporaryFile(), '', 0, 0
    while True:
        try:
            have = file.seek(0, io.SEEK_END)
            asked = {'Range': f'bytes={have}-', 'If-Range': version} if have and version else {}
            with urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=60) as response:
                if response.status != 206:  # all of it: it cannot do otherwise, or the file has changed
                    have = file.seek(0)
                    file.truncate()
                elif not response.headers['Content-Range'].startswith(f'bytes {have}-'):
                    raise OSError('the server sends another part than was asked for')
                tag = response.headers['ETag'] or ''  # W/"..." says too little
                version = tag if tag.startswith('"') else response.headers['Last-Modified']
                length = response.headers['Content-Length']
                while block := response.read(1 << 20):
                    file.write(block)
                if not (response.chunked or length and file.tell() == have + int(length)):
                    raise OSError(f'it breaks off after {file.tell():,} bytes')
            file.seek(0)
            return file
        except (OSError, http.client.HTTPException) as e:
            tries = 1 if file.tell() > furthest else tries + 1
            furthest = max(furthest, file.tell())
            final = isinstance(e, urllib.error.HTTPError) and e.code < 500 and e.code not in (408, 429)
            if final or tries > len(PATIENCE):
                file.close()
                why = reason(getattr(e, 'reason', e))
                fail(f'cannot download {url}: {why}; with the file at hand, use --files=PATH')
            time.sleep(PATIENCE[tries - 1])


COMPRESSIONS = {'.gz': 'gzip', '.zst': 'zstd', '.bz2': 'bz2', '.xz': 'xz'}


def decompressed(file, path):
    """What a stream holds under its compression. An archive that ends early raises, one put together of several is read on."""
    compression = COMPRESSIONS.get(kind(path)[1])
    if not compression:
        return file
    if not file.read(1):
        raise EOFError('it is empty, which no archive is')
    file.seek(0)
    raw = Xz(file) if compression == 'xz' else need('pyarrow').CompressedInputStream(file, compression)
    return io.BufferedReader(raw, 1 << 20)


class Xz(io.RawIOBase):
    """A decompressed .xz file. lzma.LZMAFile would take what it cannot read behind a first part for the end."""

    def __init__(self, file):
        self.file, self.part = file, lzma.LZMADecompressor()

    def readable(self):
        return True

    def readinto(self, out):
        data = b''
        while not data:
            packed = b''
            if self.part.eof:  # another may follow, behind zeros
                packed = (self.part.unused_data or self.file.read(1 << 16)).lstrip(b'\0')
                if not packed and not self.file.peek(1):
                    return 0
                self.part = lzma.LZMADecompressor()
            elif self.part.needs_input:
                packed = self.file.read(1 << 16)
                if not packed:
                    raise EOFError('it is cut short')
            data = self.part.decompress(packed, len(out))
        out[: len(data)] = data
        return len(data)


# --- formats --------------------------------------------------------------------
# Each reader takes (stream, path, start, stop, text_field, bad) and yields (number, document); `bad(number, why)` is
# called for what is gone past. All but texts, json_lines and parquet_rows always get the whole file.


def texts(stream, path, start, stop, text_field, bad):
    """Text, cut behind the first line end within SLACK after each multiple of LONGEST, or there if there is none.

    The texts of a range are those whose multiple lies in it.
    """
    begin = -(-start // LONGEST) * LONGEST
    if begin >= stop:
        return
    if begin:
        stream.seek(begin)
    block = stream.read(LONGEST)
    cut = head(block) if begin else 0
    while True:
        following = stream.read(LONGEST if begin + LONGEST < stop else SLACK)
        try:
            text = (block[cut:] + following[: head(following)]).decode('utf-8' if begin else 'utf-8-sig')
        except UnicodeDecodeError as e:
            e.start += begin + cut
            raise
        if text or not begin:
            yield begin // LONGEST + 1, text
        begin += LONGEST
        if not following or begin >= stop:
            return
        block, cut = following, head(following)


def head(block):
    """How many of the first bytes of a block belong to the text before."""
    line = block.find(b'\n', 0, SLACK) + 1
    return line or len(block[:3]) - len(block[:3].lstrip(bytes(range(0x80, 0xC0))))  # the rest of a character


def html_page(stream, path, start, stop, text_field, bad):
    try:
        yield 1, main_text(stream.read())
    except ValueError as e:
        bad(1, reason(e))


def main_text(page, charset=None):
    """The main text of an HTML page, without what surrounds it; page in bytes, charset as its sender says."""
    need('resiliparse')
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    encoding = map_encoding_to_html5(charset or '', fallback_utf8=False)
    html = bytes_to_str(page, encoding or detect_encoding(page, from_html_meta=True))
    if (nested := depth(html)) > DEEPEST:
        raise ValueError(f'<div> in <div>, {nested:,} deep')
    return extract_plain_text(html, main_content=True)


def depth(html):
    """How deep those elements are nested for which the library's time grows with the square of it."""
    html = html.lower()
    if html.count('<div') + html.count('<article') <= DEEPEST:
        return 0
    steps = (-1 if tag[0][1] == '/' else 1 for tag in re.finditer(r'</?(?:div|article)\b', html))
    return max(itertools.accumulate(steps))


def json_lines(stream, path, start, stop, text_field, bad):
    """A row a line; those of a range begin in it."""
    position = start
    if start:  # the line that reaches into the range belongs to the one before
        stream.seek(start - 1)
        position = start - 1 + rest_of_line(stream, stop - start + 1)
    yield from json_rows(numbered_lines(stream, position, stop), text_field, bad)


def json_file(stream, path, start, stop, text_field, bad):
    """An array of rows, or one row, or a row a line, as many a data set of the hub has it under this name."""
    first = stream.readline(LONGEST_LINE).removeprefix(codecs.BOM_UTF8)
    if is_object(first):
        rest = ((number + 1, line) for number, line in numbered_lines(stream, len(first), stop))
        yield from json_rows(itertools.chain([(1, first)], rest), text_field, bad)
        return
    text = first + stream.read(LARGEST_JSON)
    if len(text) > LARGEST_JSON:
        raise ValueError(
            f'it is read at once and has more than {LARGEST_JSON:,} bytes: make it .jsonl, a row a line'
        )
    rows = json.loads(text.decode())
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield from checked(row, number, text_field, bad)


def is_object(line):
    try:
        return line.startswith(b'{') and isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):
        return False


def numbered_lines(stream, position, stop):
    """Yield (number, line) of the lines that begin before byte `stop`; None for a line that is too long to hold."""
    number = 0
    while position < stop and (line := stream.readline(LONGEST_LINE)):
        number += 1
        position += len(line)
        if position == len(line):  # the file's first
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) == LONGEST_LINE and not line.endswith(b'\n'):
            position += rest_of_line(stream, math.inf)
            line = None
        yield number, line


def rest_of_line(stream, most):
    """Read up to the line's end, but not far beyond `most` bytes -> how many it was."""
    length = 0
    while length < most and (part := stream.readline(SLACK)):
        length += len(part)
        if part.endswith(b'\n'):
            break
    return length


def json_rows(lines, text_field, bad):
    for number, line in lines:
        if line is None:
            bad(number, f'a line of more than {LONGEST_LINE:,} bytes')
        elif not line.isspace():
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as e:
                bad(number, f'not UTF-8 ({e.reason} at byte {e.start + 1:,} of the line)')
            except (ValueError, RecursionError) as e:
                bad(number, f'not JSON: {reason(e)}')
            else:
                yield from checked(row, number, text_field, bad)


def checked(row, number, text_field, bad):
    """A row of JSON as one (number, document); as none if it is not what it should be."""
    if isinstance(row, dict) and not text_field:
        yield number, row
    elif isinstance(row, dict) and isinstance(row.get(text_field), str):
        yield number, row[text_field]
    else:
        bad(
            number,
            f'no text in the field {text_field!r}; name it with --text_field' if text_field else 'no object',
        )


def csv_rows(stream, path, start, stop, text_field, bad):
    csv.field_size_limit(LONGEST_LINE)  # the library's own is 128 KiB
    table = csv.reader(decoded(stream), strict=True)  # so that a quote never closed is an error
    columns = next(table, [])
    check_column(path, columns, text_field)
    for row in table:
        if len(row) == len(columns):
            yield (
                table.line_num,
                row[columns.index(text_field)] if text_field else dict(zip(columns, row, strict=True)),
            )
        elif row:  # not a blank line
            bad(table.line_num, f'{len(row)} fields where the first line names {len(columns)}')


def decoded(stream):
    """The lines of a stream as str; an error names its place in the whole."""
    position = 0
    for line in stream:
        try:
            yield line.decode('utf-8' if position else 'utf-8-sig')
        except UnicodeDecodeError as e:
            e.start += position
            raise
        position += len(line)


def check_column(path, columns, text_field):
    if text_field and text_field not in columns:
        fail(f'{path} has no field {text_field!r}, only {", ".join(columns)}; name one with --text_field')


def parquet_rows(stream, path, start, stop, text_field, bad):
    """The rows of those row groups whose first byte lies in the range."""
    need('pyarrow')
    file = need('pyarrow.parquet').ParquetFile(stream, page_checksum_verification=True)
    check_arrow(path, file.schema_arrow, text_field)
    rows = rows_of_groups(file, start, stop, text_field)
    yield from articles(rows) if text_field and is_wikitext(path) else rows


def rows_of_groups(file, start, stop, text_field):
    number = 1
    for group in range(file.num_row_groups):
        first = file.metadata.row_group(group).column(0)
        if start <= (first.dictionary_page_offset or first.data_page_offset) < stop:
            columns = [text_field] if text_field else None
            # few rows at a time, for they can be books
            batches = file.iter_batches(128, row_groups=[group], columns=columns, use_threads=False)
            yield from rows_of_batches(batches, number, text_field)
        number += file.metadata.row_group(group).num_rows


def rows_of_batches(batches, number, text_field):
    """(number, document) of each row that has one; the first row bears the number given."""
    for batch in batches:
        column = batch.column(text_field).to_pylist() if text_field else batch.to_pylist()
        yield from ((i, document) for i, document in enumerate(column, number) if document is not None)
        number += len(column)


def articles(lines):
    """Wikitext holds a line a row: join them into articles, each of which begins with ` = Title = `."""
    first, article = 1, []
    for number, line in lines:
        if re.fullmatch(r' = [^=](.*[^=])? = \n', line) and ''.join(article).strip():
            yield first, ''.join(article)
            first, article = number, []
        article.append(line)
    if article:
        yield first, ''.join(article)


def arrow_rows(stream, path, start, stop, text_field, bad):
    """A stream of record batches; a file of them is one between two marks."""
    file = stream.peek(8)[:8] == b'ARROW1\0\0'
    if file:
        stream.read(8)
    batches = need('pyarrow').ipc.open_stream(stream)
    check_arrow(path, batches.schema, text_field)
    yield from rows_of_batches(batches, 1, text_field)
    if file and not stream.read().endswith(b'ARROW1'):
        raise EOFError('it is cut short')


def check_arrow(path, schema, text_field):
    check_column(path, schema.names, text_field)
    if text_field and str(schema.field(text_field).type) not in ('string', 'large_string', 'string_view'):
        kind = schema.field(text_field).type
        fail(f'{path} holds {kind} in the field {text_field!r}, not text; name another with --text_field')


def web_pages(stream, path, start, stop, text_field, bad):
    """The main text of every HTML page in the responses of a .warc, as a crawler received them."""
    for number, content in warc_records(stream, 'response'):
        try:
            answer = http_answer(content)
            if answer.http_headers.status_code == 200 and 'html' in (answer.http_content_type or ''):
                yield number, main_text(answer.reader.read(), answer.http_charset)
        except (OSError, ValueError) as e:  # compressed badly by its sender, nested too deep
            bad(number, reason(e))


def http_answer(content):
    """What a web server sent, in bytes, as a record whose reader gives the page."""
    from fastwarc.warc import WarcRecord

    record = WarcRecord()
    record.is_http = True
    record.set_bytes_content(content)
    record.parse_http(auto_decode='all')
    return record


def web_texts(stream, path, start, stop, text_field, bad):
    """The texts of a .wet, which Common Crawl took from the pages."""
    for number, content in warc_records(stream, 'conversion'):
        try:
            yield number, content.decode()
        except UnicodeDecodeError as e:
            bad(number, f'not UTF-8 ({e.reason} at byte {e.start + 1:,} of the record)')


def warc_records(stream, wanted):
    """Yield (number, content in bytes) of the records of one type.

    The library takes a file that ends within a record for whole: this does not.
    """
    need('fastwarc')
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    counted = Counted(stream)
    for number, record in enumerate(ArchiveIterator(counted, parse_http=False, stream_detect=False), 1):
        content = record.reader.read()
        if len(content) < record.content_length:
            raise EOFError('it is cut short')
        if record.record_type == getattr(WarcRecordType, wanted):
            yield number, content
    if counted.last != b'\r\n\r\n':  # what every record ends with
        raise EOFError('it is cut short')


class Counted:
    """A stream that knows where it is, as the library wants it and decompressed ones do not, and what it gave last."""

    def __init__(self, stream):
        self.stream, self.position, self.last = stream, 0, b''

    def read(self, size=-1):
        data = self.stream.read(size)
        self.position += len(data)
        self.last = (self.last + data[-4:])[-4:]
        return data

    def tell(self):
        return self.position


READERS = {  # any other is text
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
