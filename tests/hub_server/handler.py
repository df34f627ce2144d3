"""Request handlers. Status codes, headers and bodies are those that the client relies on."""
from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .faults import Fault, corrupted
from .repos import MAIN, Repo, pointer
from .server import MAX_REQUESTS, HubServer, Request, User

MAX_BODY = 256 << 20
MAX_REGULAR = 10 << 20
LFS_SUFFIXES = ('.safetensors', '.png', '.bin', '.pt', '.pkl')

NAME = r'(?P<name>[\w.-]+/[\w.-]+)'
ROUTES = [
    ('whoami', 'GET', r'/api/whoami-v2'),
    ('create', 'POST', r'/api/repos/create'),
    ('validate', 'POST', r'/api/validate-yaml'),
    ('preupload', 'POST', rf'/api/models/{NAME}/preupload/(?P<revision>.+)'),
    ('commit', 'POST', rf'/api/models/{NAME}/commit/(?P<revision>.+)'),
    ('tag', 'POST', rf'/api/models/{NAME}/tag/(?P<revision>.+)'),
    ('refs', 'GET', rf'/api/models/{NAME}/refs'),
    ('info', 'GET', rf'/api/models/{NAME}(/revision/(?P<revision>.+))?'),
    ('batch', 'POST', rf'/{NAME}\.git/info/lfs/objects/batch'),
    ('upload', 'PUT', r'/lfs/(?P<oid>[0-9a-f]{64})'),
    ('verify', 'POST', r'/lfs/verify'),
    ('download', 'GET', r'/lfs/(?P<oid>[0-9a-f]{64})'),
    ('resolve', 'HEAD', rf'/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)'),
    ('resolve', 'GET', rf'/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)'),
]


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {'error': message, **body}


class Handler(BaseHTTPRequestHandler):
    """Handler of a connection; the server sets `hub` in a subclass."""

    hub: ClassVar[HubServer]
    protocol_version = 'HTTP/1.1'
    timeout = 30
    kind = 'unknown'
    fault = Fault()

    def do(self) -> None:
        """Route a request, apply its fault, and answer."""
        path = urlsplit(self.path).path
        self.query = parse_qs(urlsplit(self.path).query)
        for kind, method, pattern in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                self.kind, groups = kind, {key: unquote(value) for key, value in match.groupdict().items() if value}
                break
        else:
            self.kind, groups = 'unknown', {}
        self.fault = self.hub.faults.take(self.kind)
        time.sleep(self.fault.delay)
        try:
            self.body = self.read_body()
            if self.fault.drop:
                self.hang_up()
            elif self.fault.status is not None:
                self.answer(self.fault.status, {'error': 'injected'}, self.fault.headers)
            elif self.kind == 'unknown':
                raise RefusedError(404, f'no route {self.command} {path}')
            elif (new := self.hub.moved.get(groups.get('name', ''))) is not None:
                self.answer(307, b'', {'Location': self.path.replace(groups['name'], new, 1)})
            else:
                getattr(self, f'on_{self.kind}')(**groups)
        except RefusedError as error:
            headers = {'X-Error-Message': str(error)} | ({'X-Error-Code': error.code} if error.code else {})
            self.answer(error.status, error.body, headers)

    do_GET = do_POST = do_PUT = do_HEAD = do

    # --- accounts

    @property
    def user(self) -> User | None:
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        if token and token not in self.hub.tokens:
            raise RefusedError(401, 'Invalid credentials in Authorization header')
        return self.hub.tokens.get(token)

    def repo(self, name: str) -> Repo:
        """Repository visible to the user; private ones of other users are not found."""
        repo, user = self.hub.repos.get(name), self.user
        if repo is None or (repo.private and (user is None or user.name != name.split('/')[0])):
            raise RefusedError(404 if user else 401, 'Repository not found', 'RepoNotFound')
        return repo

    def writable(self, name: str) -> Repo:
        repo, user = self.repo(name), self.user
        proposes = self.query.get('create_pr') == ['1']
        if user is None or user.role != 'write' or (user.name != name.split('/')[0] and not proposes):
            raise RefusedError(403, f"You don't have the rights to write to {name}")
        return repo

    def resolved(self, repo: Repo, revision: str) -> str:
        commit = repo.resolve(revision)
        if commit is None:
            raise RefusedError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return commit

    # --- the API

    def on_whoami(self) -> None:
        if (user := self.user) is None:
            raise RefusedError(401, 'Invalid username or password.')
        token = {'displayName': 'test', 'role': user.role}
        self.answer(200, {'type': 'user', 'name': user.name, 'auth': {'type': 'access_token', 'accessToken': token}})

    def on_create(self) -> None:
        asked, user = json.loads(self.body), self.user
        if user is None:
            raise RefusedError(401, 'Invalid username or password.')
        name = f'{asked.get("organization") or user.name}/{asked["name"]}'
        if user.role != 'write' or name.split('/')[0] != user.name:
            raise RefusedError(403, f"You don't have the rights to create a model under {name.split('/')[0]}")
        if name in self.hub.repos:
            raise RefusedError(409, 'You already created this model repo', url=f'{self.hub.url}/{name}')
        self.hub.create(name, private=bool(asked.get('private')) or asked.get('visibility') == 'private')
        self.answer(200, {'url': f'{self.hub.url}/{name}', 'name': name, 'id': name})

    def on_validate(self) -> None:
        match = re.match(r'---\n(.*?)\n---\n', json.loads(self.body)['content'], re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error:
            raise RefusedError(400, 'invalid YAML', errors=[{'message': str(error)}]) from error
        wrong = [f'"{key}" is required' for key in ('license',) if not metadata.get(key)]
        if wrong:
            raise RefusedError(400, 'invalid card', errors=[{'message': message} for message in wrong])
        self.answer(200, {'errors': [], 'warnings': []})

    def on_info(self, name: str, revision: str = 'main') -> None:
        repo = self.repo(name)
        commit = self.resolved(repo, revision)
        siblings = []
        for path, file in repo.files(commit).items():
            lfs = {'sha256': file.sha256, 'size': file.size, 'pointerSize': 130}
            siblings.append({'rfilename': path, 'size': file.size, 'blobId': file.blob}
                            | ({'lfs': lfs} if file.sha256 else {}))
        self.answer(200, {'id': name, '_id': name, 'sha': commit, 'private': repo.private, 'gated': repo.gated,
                          'siblings': siblings, 'tags': [], 'downloads': 0, 'likes': 0})

    def on_refs(self, name: str) -> None:
        repo = self.repo(name)
        heads, tags = (
            [{'name': ref, 'ref': f'refs/{kind}/{ref}', 'targetCommit': commit} for ref, commit in found.items()]
            for kind, found in (('heads', repo.refs('heads')), ('tags', repo.refs('tags')))
        )
        self.answer(200, {'branches': heads, 'converts': [], 'tags': tags})

    def on_preupload(self, name: str, revision: str) -> None:
        repo = self.writable(name)
        present = repo.files(self.resolved(repo, revision))
        files = []
        for asked in json.loads(self.body)['files']:
            lfs = asked['path'].endswith(LFS_SUFFIXES) or asked['size'] > MAX_REGULAR
            known = present.get(asked['path'])
            files.append({'path': asked['path'], 'uploadMode': 'lfs' if lfs else 'regular', 'shouldIgnore': False}
                         | ({'oid': known.sha256 or known.blob} if known else {}))
        self.answer(200, {'files': files})

    def on_batch(self, name: str) -> None:
        if self.user is None:
            raise RefusedError(401, 'Invalid username or password.')
        objects = []
        for asked in json.loads(self.body)['objects']:
            entry: dict[str, Any] = {'oid': asked['oid'], 'size': asked['size']}
            if asked['size'] > self.hub.max_lfs_size:
                entry['error'] = {'code': 413, 'message': f'file larger than {self.hub.max_lfs_size} bytes'}
            elif not self.hub.lfs.has(asked['oid'], asked['size']):
                entry['actions'] = {
                    'upload': {'href': f'{self.hub.url}/lfs/{asked["oid"]}', 'header': {}},
                    'verify': {'href': f'{self.hub.url}/lfs/verify', 'header': {}},
                }
            objects.append(entry)
        self.answer(200, {'transfer': 'basic', 'objects': objects}, {'Content-Type': 'application/vnd.git-lfs+json'})

    def on_upload(self, oid: str) -> None:
        self.hub.lfs.put(oid, corrupted(self.body) if self.fault.corrupt else self.body)
        self.answer(200, b'')

    def on_verify(self) -> None:
        asked = json.loads(self.body)
        if not self.hub.lfs.has(asked['oid'], asked['size']) or not self.hub.lfs.intact(asked['oid']):
            (self.hub.lfs.folder / asked['oid']).unlink(missing_ok=True)
            raise RefusedError(422, 'the uploaded content does not have this checksum')
        self.answer(200, {})

    def on_commit(self, name: str, revision: str) -> None:
        repo = self.writable(name)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]['value']
        changes: dict[str, bytes | None] = {}
        for line in lines[1:]:
            value = line['value']
            if line['key'] == 'file':
                changes[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                if not self.hub.lfs.has(value['oid'], value['size']):
                    raise RefusedError(400, f'{value["path"]} was not uploaded')
                changes[value['path']] = pointer(value['oid'], value['size'])
            elif line['key'] == 'deletedFile':
                changes[value['path']] = None
            else:
                raise RefusedError(400, f'unknown operation {line["key"]}')
        with self.hub.lock:
            head = self.resolved(repo, revision)
            parent = header.get('parentCommit', head)
            answer = {'success': True, 'hookOutput': ''}
            if self.query.get('create_pr') == ['1']:
                repo.pull_requests += 1
                ref = f'refs/pr/{repo.pull_requests}'
                answer['pullRequestUrl'] = f'{self.hub.url}/{name}/discussions/{repo.pull_requests}'
            elif parent != head:
                raise RefusedError(412, 'A commit has happened since. Please refresh and try again.')
            else:
                ref = MAIN if revision == 'main' else f'refs/heads/{revision}'
            commit = repo.commit(changes, header['summary'], parent, ref)
        self.answer(200, answer | {'commitOid': commit, 'commitUrl': f'{self.hub.url}/{name}/commit/{commit}'})

    def on_tag(self, name: str, revision: str) -> None:
        repo, tag = self.writable(name), json.loads(self.body)['tag']
        if tag in repo.refs('tags'):
            raise RefusedError(409, f'tag {tag} exists')
        repo.git('update-ref', f'refs/tags/{tag}', self.resolved(repo, revision))
        self.answer(200, {})

    # --- files

    def on_resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        user = self.user
        if repo.gated and (user is None or user.name != name.split('/')[0]):
            raise RefusedError(403 if user else 401, f'Access to model {name} is restricted', 'GatedRepo')
        commit = self.resolved(repo, revision)
        file = repo.files(commit).get(path)
        if file is None:
            raise RefusedError(404, 'Entry not found', 'EntryNotFound')
        headers = {'X-Repo-Commit': commit, 'ETag': f'"{file.sha256 or file.blob}"'}
        if file.sha256 is None:
            self.answer(200, repo.read(file.blob), headers)
        else:
            headers |= {'X-Linked-Etag': f'"{file.sha256}"', 'X-Linked-Size': str(file.size)}
            self.answer(302, b'', headers | {'Location': f'{self.hub.store_url}/lfs/{file.sha256}'})

    def on_download(self, oid: str) -> None:
        content = self.hub.lfs.get(oid)
        if match := re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', '')):
            start = int(match[1])
            where = f'bytes {start}-{len(content) - 1}/{len(content)}'
            self.answer(206, content[start:], {'Content-Range': where})
        else:
            self.answer(200, content, {'Accept-Ranges': 'bytes'})

    # --- the wire

    def read_body(self) -> bytes:
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            chunks, total = [], 0
            while size := int(self.rfile.readline(100), 16):
                total += size
                if total > MAX_BODY:
                    raise RefusedError(413, 'request too large')
                chunks.append(self.rfile.read(size))
                self.rfile.readline(10)
            self.rfile.readline(10)
            return b''.join(chunks)
        length = int(self.headers.get('Content-Length') or 0)
        if length > MAX_BODY:
            self.close_connection = True
            raise RefusedError(413, 'request too large')
        return self.rfile.read(length)

    def answer(self, status: int, body: bytes | Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        if self.fault.lose or len(self.hub.requests) >= MAX_REQUESTS:
            self.hang_up()
            return
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.fault.corrupt and self.command == 'GET':
            content = corrupted(content)
        self.hub.requests.append(Request(self.kind, self.command, self.path, status))
        self.send_response(status)
        usual = {} if isinstance(body, bytes) else {'Content-Type': 'application/json'}
        for key, value in {**usual, **(headers or {}), 'Content-Length': str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content[:len(content) // 2] if self.fault.cut else content)
            self.close_connection = self.close_connection or self.fault.cut

    def hang_up(self) -> None:
        self.hub.requests.append(Request(self.kind, self.command, self.path, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: `HubServer.requests` has all requests."""
