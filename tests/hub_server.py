"""A Hugging Face hub on this machine: its addresses, answers and headers, for data sets that lie in a directory.

with hub(directory) as url:  # directory/OWNER/NAME/README.md, directory/OWNER/NAME/data/train.parquet, ...
    run(..., HF_ENDPOINT=url)  # huggingface_hub reads it once, when it is imported: so in another process
"""

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# README.md of HuggingFaceFW/fineweb-edu as far as a reader of its files needs it
FINEWEB_EDU = """---
license: odc-by
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
"""


@contextlib.contextmanager
def hub(directory, flaky=False, gated=()):
    """Serve the data sets of a directory -> the server's address, with `requests`: [(method, path, Range or ''), ...].

    flaky: each kind of request is answered 500 the first time. gated: data sets that nobody has been let in to.
    """
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.directory, server.gated, server.requests = Path(directory), gated, []
    server.answered_500 = set() if flaky else None  # kinds of requests
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    url = Address(f'http://127.0.0.1:{server.server_port}')
    url.requests = server.requests
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()


class Address(str):
    pass


def revision(repository):
    """What stands for the commit: it changes with any name or byte of the files."""
    digest = hashlib.sha1()
    for path in sorted(repository.rglob('*')):
        digest.update(str(path.relative_to(repository)).encode())
        digest.update(path.read_bytes() if path.is_file() else b'')
    return digest.hexdigest()


def entry(repository, path):
    """A file or folder as the hub's tree lists it."""
    name = path.relative_to(repository).as_posix()
    oid = hashlib.sha1(name.encode()).hexdigest()
    if path.is_dir():
        return {'type': 'directory', 'oid': oid, 'size': 0, 'path': name}
    return {'type': 'file', 'oid': oid, 'size': path.stat().st_size, 'path': name}


class Hub(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        length = int(self.headers.get('Content-Length', 0))
        self.form = urllib.parse.parse_qs(self.rfile.read(length).decode() + '&' + url.query)
        self.server.requests.append((self.command, path, self.headers.get('Range', '')))
        # /api/datasets/OWNER/NAME[/KIND/REVISION[/PATH]] and /datasets/OWNER/NAME/resolve/REVISION/PATH
        match = re.fullmatch(r'(/api)?/datasets/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+))?(?:/(.*))?)?', path)
        if not match or not (self.server.directory / match[2]).is_dir():
            return self.refuse(404, 'RepoNotFound', 'Repository not found')
        api, name, kind, asked, inside = match.groups()
        request = (self.command, kind, 'Range' in self.headers)
        if self.server.answered_500 is not None and request not in self.server.answered_500:
            self.server.answered_500.add(request)
            return self.answer(500, b'the hub is not well')
        repository = self.server.directory / name
        self.sha = revision(repository)
        if kind and asked not in (self.sha, 'main'):
            return self.refuse(404, 'RevisionNotFound', f'Invalid rev id: {asked}')
        if api and kind in (None, 'revision'):
            return self.answer_json(self.info(name, repository))
        if name in self.server.gated:
            return self.refuse(401, 'GatedRepo', f'Access to dataset {name} is restricted.')
        if api and kind == 'tree':
            return self.tree(repository, repository / (inside or ''))
        if api and kind == 'paths-info':
            paths = [repository / p for p in self.form['paths']]
            return self.answer_json([entry(repository, p) for p in paths if p.exists()])
        if not api and kind == 'resolve':
            return self.file(repository / inside)
        return self.refuse(404, '', 'no such address')

    do_HEAD = do_POST = do_GET

    def info(self, name, repository):
        files = sorted(path for path in repository.rglob('*') if path.is_file())
        return {
            '_id': self.sha[:24],
            'id': name,
            'author': name.split('/')[0],
            'sha': self.sha,
            'private': False,
            'gated': 'auto' if name in self.server.gated else False,
            'disabled': False,
            'tags': [],
            'downloads': 0,
            'likes': 0,
            'siblings': [{'rfilename': path.relative_to(repository).as_posix()} for path in files],
        }

    def tree(self, repository, folder):
        if not folder.is_dir():
            return self.refuse(404, 'EntryNotFound', f'{folder.name} does not exist')
        recursive = self.form.get('recursive', ['false'])[0].lower() in ('true', '1')
        paths = sorted(folder.rglob('*') if recursive else folder.iterdir())
        # a page holds two entries, so that whoever reads the first alone is found out
        begin = int(self.form.get('cursor', ['0'])[0])
        headers = {}
        if begin + 2 < len(paths):
            query = urllib.parse.urlencode({'recursive': recursive, 'cursor': begin + 2})
            here = f'http://{self.headers["Host"]}{self.path.split("?")[0]}?{query}'
            headers['Link'] = f'<{here}>; rel="next"'
        return self.answer_json([entry(repository, path) for path in paths[begin : begin + 2]], headers)

    def file(self, path):
        if not path.is_file():
            return self.refuse(404, 'EntryNotFound', f'{path.name} does not exist')
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {'ETag': etag, 'X-Repo-Commit': self.sha, 'Accept-Ranges': 'bytes'}
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if not asked:
            return self.answer(200, data, headers)
        begin, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers['Content-Range'] = f'bytes {begin}-{end}/{len(data)}'
        return self.answer(206, data[begin : end + 1], headers)

    def refuse(self, status, code, message):
        body = json.dumps({'error': message}).encode()
        return self.answer(status, body, {'X-Error-Code': code, 'X-Error-Message': message})

    def answer_json(self, content, headers=()):
        return self.answer(
            200, json.dumps(content).encode(), {'Content-Type': 'application/json', **dict(headers)}
        )

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def log_message(self, *words):
        pass
