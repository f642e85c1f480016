"Catalogues are scored completely: whatever dies, is damaged or is stopped, no photo is lost or scored twice."
import json, os, shutil, subprocess, sys, threading, time
from contextlib import contextmanager
from pathlib import Path

import pytest

ray = pytest.importorskip('ray')
pytest.importorskip('pyarrow')
import psutil, pyarrow as pa, pyarrow.parquet as pq

from gear_fastai import bulk
from gear_fastai.bulk import CatalogueError, GearStage, score_catalogue
from gear_fastai.inference import GearClassifier, default_model
from gear_fastai.model_folder import ModelError
from gear_fastai.photo import PhotoError
from gear_fastai.sources import draw_sample

ODD = os.fsdecode(b'photos/boots/caf\xe9.jpg')  # a name that is not UTF-8
READABLE = ODD.encode('utf-8', 'backslashreplace').decode()


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with photos, two of them unreadable, and two models; the working folder of all tests"
    before, home = os.getcwd(), tmp_path_factory.mktemp('bulk')
    os.chdir(home)
    photos = draw_sample('photos', n=2, seed=1)
    (photos/'boots/broken.jpg').write_bytes(b'not an image')
    (photos/'tents/empty.png').touch()
    (photos/'.hidden.png').touch()
    (photos/'axes/a #1.png').write_bytes(next(photos.rglob('*.jpeg')).read_bytes())
    shutil.copytree(default_model(), 'models/mine')
    shutil.copytree(default_model(), 'models/other')
    gear = json.loads(Path('models/other/gear.json').read_text())
    Path('models/other/gear.json').write_text(json.dumps(gear | dict(temperature=2.)))
    yield home
    os.chdir(before)


@pytest.fixture(scope='module')
def clf(home): return GearClassifier('models/mine')


@pytest.fixture(scope='module')
def local(home, clf): return {p.path: p.to_dict() for p in clf.predict_folder('photos')}


@pytest.fixture(scope='module')
def cluster(home):
    "Ray with two processors, which stays on for the tests that follow"
    with bulk._local_ray(ray, 2): yield


@pytest.fixture(scope='module')
def many(home, clf):
    "1,500 photos, which are links to the same few, and their predictions"
    photos = sorted(path.resolve() for path in Path('photos').rglob('*.jpeg'))
    Path('many').mkdir()
    for i in range(1500): os.symlink(photos[i % len(photos)], f'many/{i:05}.jpeg')
    return {p.path: p.to_dict() for p in clf.predict_folder('many')}


def predictions(out):
    "The predictions in a folder, by path; no path may be there twice"
    rows = [json.loads(line) for f in Path(out).glob('*.jsonl') for line in f.open()] or pq.read_table(out).to_pylist()
    assert len({row['path'] for row in rows}) == len(rows)
    return {row['path']: row | dict(probabilities=row['probabilities'] or {}) for row in rows}


def assert_same(got, expected, ignore=()):
    def without(rows): return {path: {k: v for k, v in row.items() if k not in ignore} for path, row in rows.items()}
    assert without(got) == without(expected)


def score(out, photos='photos', model='models/mine', **options): return score_catalogue(photos, out, model, **options)


# --- Ray starts for the call and stops after it

def test_same_predictions_as_here(home, local, capfd):
    shutil.copy(next(Path('photos').rglob('*.jpeg')), ODD)
    odd = GearClassifier('models/mine').predict(ODD).to_dict()
    try: done = score('scores', workers=1)
    finally: os.remove(ODD)
    assert not ray.is_initialized() and sorted(os.listdir('scores')) == ['_SUCCESS', 'part-00000.parquet']
    assert (done.photos, done.errors, done.before) == (len(local) + 1, 2, 0) and str(done) == f'scores: {len(local) + 1} photos, 2 could not be read'
    assert_same(predictions('scores'), local | {READABLE: odd | dict(path=READABLE)})
    assert capfd.readouterr().err == '', 'Ray is noisy'


def test_no_cluster_at_the_address(home, monkeypatch):
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:9')
    with pytest.raises(CatalogueError, match='RAY_ADDRESS=127.0.0.1:9: no cluster can be reached'): score('nowhere')


# --- sources

def test_stores_and_json(home, cluster, local):
    address = f'file://{home}/photos'
    score(f'file://{home}/stored', address, format='jsonl')
    stored = predictions('stored')
    assert_same(stored, {path.replace('photos', address, 1): row for path, row in local.items()}, ignore=('path', 'error'))
    assert sorted(os.path.basename(path) for path, row in stored.items() if row['error']) == ['broken.jpg', 'empty.png']


def test_places(home):
    address = f'file://{home}/photos'
    assert [name.replace(address, 'photos') for name in bulk._list_place(address)] == sorted(bulk._list_place('photos'))
    assert bulk._locate(f'{address}/axes/a #1.png').path == f'{home}/photos/axes/a #1.png'
    assert bulk._list_place(f'{address}/boots/broken.jpg') == [f'{address}/boots/broken.jpg']
    with pytest.raises(PhotoError, match='photos/gone: no such folder or file'): bulk._list_place(f'{address}/gone')
    with pytest.raises(CatalogueError, match='ftp://here: PyArrow cannot open this store'): bulk._list_place('ftp://here/photos')


def pack(file, paths, **options):
    Path(file).parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(dict(path=[str(p) for p in paths], bytes=[Path(p).read_bytes() for p in paths])), file, **options)


def test_parquet_and_own_pipeline(home, cluster, local):
    pack('packed/a.parquet', list(local)[:15], row_group_size=5)
    pack('packed/b.parquet', list(local)[15:])
    assert score('unpacked', 'packed', workers=1, shard_size=5).photos == len(local)
    assert len(list(Path('unpacked').glob('part-*'))) == 4
    assert_same(predictions('unpacked'), local, ignore=('error',))
    data = ray.data.read_parquet('packed').map_batches(GearStage, fn_constructor_args=(str(home/'models/mine'),), batch_size=16, compute=ray.data.ActorPoolStrategy(size=1))
    data.context.enable_progress_bars = False
    assert_same({row['path']: row | dict(probabilities={} if row['error'] else row['probabilities']) for row in data.take_all()}, local, ignore=('error',))


def test_names_in_parquet(home, cluster, local):
    raw = Path(next(iter(local))).read_bytes()
    pq.write_table(pa.table(dict(image=[raw, None, b'junk'])), 'plain.parquet')
    pq.write_table(pa.table(dict(image=[dict(bytes=raw, path='a.jpg')], label=[3])), 'hub.parquet')
    score('named', ['plain.parquet', 'hub.parquet'])
    assert {path: row['error'] is None for path, row in predictions('named').items()} == {'plain.parquet#0': True, 'plain.parquet#1': False, 'plain.parquet#2': False, 'a.jpg': True}


FIELDS = dict(photo=pa.binary(), id=pa.int64(), shot=pa.string())

@pytest.mark.parametrize('fields, asked, found', [
    (FIELDS, (None, None), ('photo', 'id')), (FIELDS, (None, 'shot'), ('photo', 'shot')), (dict(path=pa.binary()), (None, None), ('path', None)),
    (dict(image=pa.struct(dict(bytes=pa.binary(), path=pa.string())), label=pa.int64()), (None, None), ('image', None)),
    (FIELDS, ('picture', None), "no column 'picture'"), (FIELDS, ('shot', None), 'no columns of bytes among shot'), (dict(id=pa.int64()), (None, None), 'no columns of bytes among id'),
    (FIELDS | dict(thumb=pa.large_binary()), (None, None), '2 columns of bytes')])
def test_columns_of_parquet_files(fields, asked, found):
    if isinstance(found, tuple): assert bulk._find_columns('a.parquet', pa.schema(fields), *asked) == found
    else:
        with pytest.raises(CatalogueError, match=found): bulk._find_columns('a.parquet', pa.schema(fields), *asked)


def test_shards():
    files = [dict(file='list'), dict(file='a'), dict(file='damaged')]
    shards = bulk._cut(files, [[250]*3 + [13], [900, 20, 30], None], 1, 600)
    assert [(s['file'], s['groups'], s['rows']) for s in shards] == [
        ('list', [0], 250), ('list', [1], 250), ('list', [2], 250), ('list', [3], 13), ('a', [0], 900), ('a', [1, 2], 50), ('damaged', None, 0)]


# --- what may go wrong

def our_workers():
    "The processes of workers that are running"
    for p in psutil.Process().children(recursive=True):
        try:
            if (p.cmdline() or [''])[0].startswith('ray::') and 'MapWorker' in p.cmdline()[0]: yield p
        except psutil.NoSuchProcess: pass


@contextmanager
def killing(out, most):
    "Kill a worker (all of them, if `most` is large) each time that one has started to write a file, `most` times"
    stop, killed = threading.Event(), []
    def watch():
        seen = set()
        while len(killed) < most and not stop.wait(.02):
            new = set(Path(out, '_plan').glob('part-*')) - seen
            workers = list(our_workers()) if new else []
            if workers: seen |= new
            for p in workers[:1] if most < 5 else workers:
                p.kill()
                killed.append(p.pid)
    thread = threading.Thread(target=watch)
    thread.start()
    try: yield killed
    finally:
        stop.set()
        thread.join()


def test_workers_that_die_are_replaced(cluster, many):
    with killing('survived', 3) as killed: score('survived', 'many')
    assert len(killed) == 3
    assert_same(predictions('survived'), many)
    assert sum(len(pq.read_table(f)) for f in Path('survived').glob('part-*')) == 1500


def test_deadly_shard_is_given_up(cluster, local, monkeypatch):
    monkeypatch.setattr(bulk, '_ATTEMPTS', 2)
    with killing('deadly', 99), pytest.raises(CatalogueError, match='2 workers died on it'): score('deadly')
    score('deadly', resume=True)
    assert_same(predictions('deadly'), local)


def test_killed_driver_is_resumed(cluster, many):
    code = "from gear_fastai.bulk import score_catalogue; score_catalogue('many', 'resumed', 'models/mine', workers=2)"
    driver = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    while not list(Path('resumed').glob('part-*')):
        assert driver.poll() is None
        time.sleep(.05)
    driver.kill()
    driver.wait()
    first = {f.name: f.stat().st_mtime_ns for f in Path('resumed').glob('part-*')}
    assert not Path('resumed/_SUCCESS').exists()
    with pytest.raises(CatalogueError, match='resumed: exists already'): score('resumed', 'many')
    for options, why in ((dict(photos='photos'), 'other photos'), (dict(threshold=1), 'was started with threshold'), (dict(model='models/other'), 'another model'), (dict(format='jsonl'), "format='parquet'")):
        with pytest.raises(CatalogueError, match=why): score('resumed', **dict(photos='many', resume=True) | options)
    done = score('resumed', 'many', resume=True)
    assert {name: Path('resumed', name).stat().st_mtime_ns for name in first} == first
    assert done.before >= len(first) and done.photos < 1500
    assert_same(predictions('resumed'), many)
    again = score('resumed', 'many', resume=True)
    assert (again.photos, again.before) == (0, len(list(Path('resumed').glob('part-*'))))


def test_damaged_parquet_is_named_and_resumed(cluster, local):
    "A damaged row group of one file, and another file without its end"
    files = ('damaged/a.parquet', 'damaged/b.parquet')
    pack(files[0], list(local)[:15], row_group_size=5)
    pack(files[1], list(local)[15:])
    whole = {f: Path(f).read_bytes() for f in files}
    at = pq.ParquetFile(files[0]).metadata.row_group(1).column(1).data_page_offset
    spoilt = bytearray(whole[files[0]])
    spoilt[at:at+8] = b'\xff'*8
    Path(files[0]).write_bytes(spoilt)
    Path(files[1]).write_bytes(whole[files[1]][:-100])
    with pytest.raises(CatalogueError) as e: score('mended', 'damaged', workers=1, shard_size=5)
    message = str(e.value)
    assert '\n' not in message and all(words in message for words in ('a.parquet, row groups 1: cannot be read', 'b.parquet: cannot be read', '2 of 4 shards failed'))
    assert_same(predictions('mended'), {path: local[path] for path in [*list(local)[:5], *list(local)[10:15]]}, ignore=('error',))
    for f, content in whole.items(): Path(f).write_bytes(content)
    score('mended', 'damaged', workers=1, shard_size=5, resume=True)
    assert_same(predictions('mended'), local, ignore=('error',))


def test_wrong_use(cluster, local):
    Path('a-file').touch()
    for folder in ('busy', 'other', 'none'): Path(folder).mkdir()
    for name in ('busy/_SUCCESS', 'other/x'): Path(name).touch()
    pack('given/a.parquet', list(local)[:1])
    for options, error, why in (
            (dict(out='busy'), CatalogueError, 'busy: exists already'), (dict(out='a-file'), CatalogueError, 'a-file: is a file'), (dict(out='a-file/x'), CatalogueError, 'a-file/x: cannot be'),
            (dict(out='other', resume=True), CatalogueError, 'not a scored catalogue'), (dict(photos='none'), PhotoError, 'none: no photos in it'), (dict(photos='gone'), PhotoError, 'gone: no such folder or file'), (dict(photos=[]), PhotoError, 'no photos in it'),
            (dict(photos='given', columns=('picture', None)), CatalogueError, "no column 'picture'"), (dict(model='gone'), ModelError, 'gone: no such model folder'),
            (dict(workers=0), ValueError, 'workers=0'), (dict(workers=99), CatalogueError, 'only 2 processors'), (dict(format='xml'), ValueError, "format='xml'"), (dict(shard_size=0), ValueError, 'shard_size=0')):
        with pytest.raises(error, match=why): score(**dict(out='wrong') | options)
