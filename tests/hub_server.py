"A small Hugging Face Hub on this machine: repositories, LFS uploads, commits and downloads, without Xet."
import base64, hashlib, http.server, json, re, socket, threading
from contextlib import contextmanager, suppress
from unittest import mock

from huggingface_hub import constants

TOKEN = 'hf_local'
USER = 'me'


def git_oid(content): return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


class Repo:
    "The commits of one repository; each commit holds all of its files"
    def __init__(self, private, sdk=None):
        self.private = private
        self.sdk = sdk
        self.commits = [{}]

    @property
    def files(self): return self.commits[-1]

    @property
    def sha(self): return self.sha_of(len(self.commits) - 1)

    def sha_of(self, number): return hashlib.sha1(f'{id(self)}-{number}'.encode()).hexdigest()

    def at(self, revision):
        "The files of `revision`: a branch or a commit"
        shas = [self.sha_of(i) for i in range(len(self.commits))]
        return self.commits[shas.index(revision)] if revision in shas else self.files


class Hub(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.repos = {}         # (type, 'me/name') → Repo
        self.blobs = {}         # SHA-256 → content of large files
        self.requests = []      # (method, path)
        self.sockets = []
        self.lost = None        # regular expression: a request that matches it gets status 500

    @property
    def url(self): return f'http://127.0.0.1:{self.server_port}'

    def get_request(self):
        accepted = super().get_request()
        self.sockets.append(accepted[0])
        return accepted

    def end(self):
        "Stop, and end the connections that clients keep open"
        self.shutdown()
        self.server_close()
        for connection in self.sockets:
            with suppress(OSError): connection.shutdown(socket.SHUT_RDWR)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def body(self):
        if 'chunked' in self.headers.get('Transfer-Encoding', ''): return b''.join(self.chunks())
        return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, content=b'', status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers['Content-Type'] = 'application/json'
        self.send_response(status)
        for name, value in dict({'Content-Length': len(content)}, **headers).items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(content)

    def refuse(self, status, message, code=''):
        self.answer(dict(error=message), status, X_Error_Message=message, X_Error_Code=code)

    def handle_request(self):
        body = self.body()
        path = self.path.split('?')[0]
        self.server.requests.append((self.command, path))
        if self.server.lost and re.search(self.server.lost, path): return self.refuse(500, 'lost')
        for method, pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split(): return function(self, body, **found.groupdict())
        self.refuse(404, 'no such page')

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    @property
    def token(self): return self.headers.get('Authorization', '').removeprefix('Bearer ')

    def may_write(self):
        if self.token == TOKEN: return True
        self.refuse(401, 'Invalid username or password.')

    def repo(self, type, id):
        "The repository, if the token may read it"
        repo = self.server.repos.get(((type or 'models').removesuffix('s'), id))
        if repo and (self.token == TOKEN or not repo.private): return repo
        self.refuse(404 if self.token == TOKEN else 401, 'Repository not found', 'RepoNotFound')

    def create(self, body):
        if not self.may_write(): return
        wanted = json.loads(body)
        owner = wanted.get('organization') or USER
        if owner != USER: return self.refuse(403, f"You don't have the rights to create a model under the namespace \"{owner}\"")
        type, id = wanted.get('type') or 'model', f"{owner}/{wanted['name']}"
        exists = (type, id) in self.server.repos
        private = wanted.get('private') or wanted.get('visibility') == 'private'
        if not exists: self.server.repos[type, id] = Repo(private, wanted.get('sdk'))
        prefix = '' if type == 'model' else f'{type}s/'
        self.answer(dict(url=f'{self.server.url}/{prefix}{id}', id=id, name=id), 409 if exists else 200)

    def validate(self, body): self.answer(dict(warnings=[], errors=[]))

    def preupload(self, body, type, id, revision):
        if not (self.may_write() and (repo := self.repo(type, id))): return
        large = 'safetensors', 'onnx', 'png'
        self.answer(dict(files=[dict(
            path=file['path'], shouldIgnore=False, uploadMode='lfs' if file['path'].endswith(large) else 'regular',
            oid=self.oid(repo.files.get(file['path']))) for file in json.loads(body)['files']]))

    def oid(self, entry): return entry and (entry['sha256'] if entry['lfs'] else git_oid(entry['content']))

    def lfs_batch(self, body, type, id):
        if not (self.may_write() and self.repo(type, id)): return
        objects = json.loads(body)['objects']
        for wanted in objects:
            if wanted['oid'] in self.server.blobs: continue
            wanted['actions'] = dict(upload=dict(href=f"{self.server.url}/lfs/{wanted['oid']}"))
        self.answer(dict(transfer='basic', objects=objects))

    def lfs_put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid: return self.refuse(400, 'wrong digest')
        self.server.blobs[oid] = body
        self.answer()

    def commit(self, body, type, id, revision):
        if not (self.may_write() and (repo := self.repo(type, id))): return
        files = dict(repo.files)
        for line in map(json.loads, body.splitlines()):
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = dict(content=base64.b64decode(value['content']), lfs=False)
            if line['key'] == 'lfsFile':
                files[value['path']] = dict(content=self.server.blobs[value['oid']], lfs=True, sha256=value['oid'])
        repo.commits.append(files)
        self.answer(dict(success=True, commitOid=repo.sha, commitUrl=f'{self.server.url}/{id}/commit/{repo.sha}'))

    def info(self, body, type, id, revision='main'):
        if repo := self.repo(type, id):
            self.answer(dict(id=id, sha=repo.sha, private=repo.private, siblings=[dict(rfilename=name) for name in repo.files]))

    def tree(self, body, type, id, revision):
        if repo := self.repo(type, id): self.answer([self.entry(*file) for file in repo.at(revision).items()])

    def entry(self, path, file):
        size = len(file['content'])
        lfs = dict(lfs=dict(oid=file['sha256'], size=size, pointerSize=134)) if file['lfs'] else {}
        return dict(type='file', path=path, size=size, oid=git_oid(file['content']), **lfs)

    def resolve(self, body, id, revision, path, type='models'):
        if not (repo := self.repo(type, id)): return
        file = repo.at(revision).get(path)
        if file is None: return self.refuse(404, 'Entry not found', 'EntryNotFound')
        self.answer(file['content'], ETag=f'"{self.oid(file)}"', X_Repo_Commit=repo.sha, X_Linked_Size=len(file['content']))


REPO = r'(?P<id>[\w.-]+/[\w.-]+)'
API = rf'/api/(?P<type>models|spaces)/{REPO}'
TYPE = r'/(?P<type>spaces(?=/))?/?'
REVISION = r'(?P<revision>[\w.-]+)'
ROUTES = [
    ('POST', r'/api/repos/create', Handler.create),
    ('POST', r'/api/validate-yaml', Handler.validate),
    ('POST', rf'{API}/preupload/{REVISION}', Handler.preupload),
    ('POST', rf'{API}/commit/{REVISION}', Handler.commit),
    ('POST', rf'{TYPE}{REPO}\.git/info/lfs/objects/batch', Handler.lfs_batch),
    ('PUT', r'/lfs/(?P<oid>\w+)', Handler.lfs_put),
    ('GET', rf'{API}/revision/{REVISION}', Handler.info),
    ('GET', API, Handler.info),
    ('GET', rf'{API}/tree/{REVISION}', Handler.tree),
    ('GET HEAD', rf'{TYPE}{REPO}/resolve/{REVISION}/(?P<path>.+)', Handler.resolve),
]


@contextmanager
def local_hub(cache, token=TOKEN):
    "Serve a hub, and make it the one that `huggingface_hub` uses, with its own cache and without Xet"
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    template = hub.url + '/{repo_id}/resolve/{revision}/{filename}'
    settings = dict(ENDPOINT=hub.url, HUGGINGFACE_CO_URL_TEMPLATE=template, HF_HUB_CACHE=str(cache), HF_HUB_DISABLE_XET=True)
    known = {name: value for name, value in settings.items() if hasattr(constants, name)}   # the first versions had no Xet
    with mock.patch.multiple(constants, **known), mock.patch.dict('os.environ', HF_TOKEN=token):
        try: yield hub
        finally: hub.end()
