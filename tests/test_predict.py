"Predictions for real inputs: file names, consoles, working folders, threads, and models that cannot be used."
import copy, csv, io, json, math, multiprocessing, os, pickle, shutil, subprocess, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np, onnxruntime, pandas as pd, pytest, torch
from click.testing import CliRunner
from PIL import Image

from gear_fastai.cache import PhotoCache, cache_folder
from gear_fastai.cli import main
from gear_fastai.model_folder import ModelError
from gear_fastai.inference import GearClassifier, Prediction, classifier, default_model, predict, predict_folder, show_predictions, write_csv
from gear_fastai.photo import PhotoError, normalize, open_photo, to_array, to_pixels
from photo_files import drawing, encoded

clf = GearClassifier()
raw = encoded(drawing((300, 200)), 'jpeg')
BYTES, CHINESE = os.fsdecode(b'caf\xe9.jpeg'), '登山靴.jpg'


@pytest.fixture
def inbox(tmp_path):
    "A folder with a space in its name, photos with names that few consoles can print, and files that are not photos"
    folder = tmp_path/'my photos'
    folder.mkdir()
    for name in (BYTES, CHINESE, 'plain.jpg'): (folder/name).write_bytes(raw)
    for name in ('a.mov', 'b.mov', 'c.pdf', 'notes.txt'): (folder/name).write_bytes(b'x')
    return folder


# --- inputs

def test_collections_and_file_objects(inbox):
    paths = sorted(inbox.glob('*.jp*g'))
    expected = [p.label for p in clf.predict(paths)]
    for empty in ([], (), iter([]), pd.Series(dtype=object)): assert clf.predict(empty) == []
    for many in (tuple(paths), iter(paths), pd.Series(paths)): assert [p.label for p in clf.predict(many)] == expected
    with open(paths[0], 'rb') as f: assert clf.predict(f).label == expected[0]             # one photo, though a file can be iterated
    mixed = clf.predict([paths[0], open_photo(paths[1]), raw, np.array(open_photo(paths[2])), b'broken', inbox/'gone.jpg', None])
    assert [p.label for p in mixed] == [expected[0], expected[1], expected[0], expected[2], None, None, None]
    assert [bool(p.error) for p in mixed] == [False]*4 + [True]*3


def test_batches_agree_with_torch(inbox):
    from gear_fastai.checkpoint import load_network
    paths = sorted(inbox.glob('*.jp*g'))
    x = torch.from_numpy(normalize(np.stack([to_pixels(path, clf.size) for path in paths]), clf.mean, clf.std))
    expected = torch.softmax(load_network(clf.folder)(x)/clf.temperature, 1).detach().numpy()
    assert np.allclose([list(p.probabilities.values()) for p in clf.predict(paths)], expected, atol=1e-4)


def test_predictions_keep_no_photos(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    image = Image.fromarray(noise)
    from fastai.vision.core import TensorImage
    tensor = torch.from_numpy(noise).permute(2, 0, 1)
    for src in (noise, image, encoded(image, 'png'), io.BytesIO(encoded(image, 'jpeg')), tensor, TensorImage(tensor)):
        p = clf.predict(src)
        assert len(pickle.dumps(p)) < 60_000 and max(open_photo(p.photo).size) == 224 and '<img' in p._repr_html_()
        assert len(pickle.dumps(clf.predict([src])[0])) < 60_000
    assert clf.predict(['gone.jpg', None])[1].photo is None
    assert (clf.predict(noise).probabilities == pickle.loads(pickle.dumps(clf.predict(noise))).probabilities)
    tiny = clf.predict(np.zeros((1, 3, 3), np.uint8))
    assert open_photo(tiny.photo).size == (3, 1)


def test_files_and_models_are_found_after_chdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(default_model(), 'models/mine')
    Path('a.png').write_bytes(encoded(drawing(), 'png'))
    mine, p = GearClassifier('models/mine'), predict('a.png', 'models/mine')
    assert repr(mine).startswith("GearClassifier('models/mine')") and p.path == 'a.png'
    sent = pickle.dumps((mine, p))
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    assert '<img' in p._repr_html_() and show_predictions([p]).axes[0].images
    for again in (copy.copy(mine), copy.deepcopy(mine), pickle.loads(sent)[0]): assert again.predict('../a.png').probabilities == p.probabilities
    assert pickle.loads(sent)[1] == p and classifier(mine.folder).folder == mine.folder


def test_unlike_photos_are_rejected():
    fractal = Image.effect_mandelbrot((300, 300), (-2, -1.5, 1, 1.5), 100)
    rejected = clf.predict(fractal)
    accepted = GearClassifier(threshold=-math.inf).predict(fractal)
    assert rejected.label is None and rejected.score < clf.threshold
    assert accepted.label == rejected.top1 in clf.labels and accepted.probabilities == rejected.probabilities
    assert GearClassifier(threshold=math.inf).predict(raw).label is None


# --- threads, processes, devices

@pytest.mark.parametrize('threads', [0, 1, 3])
def test_threads_get_the_same(inbox, threads):
    paths = sorted(inbox.glob('*.jp*g'))
    alone = clf.predict(paths)
    shared = GearClassifier(threads=threads)
    def predict_both(i): return shared.predict(paths), shared.predict(paths[i % 3])
    with ThreadPoolExecutor(12) as pool: together = list(pool.map(predict_both, range(30)))
    for i, (many, one) in enumerate(together):
        for p, expected in zip([*many, one], [*alone, alone[i % 3]], strict=True):
            assert (p.path, p.label) == (expected.path, expected.label)
            assert np.allclose(list(p.probabilities.values()), list(expected.probabilities.values()), atol=1e-5)


def test_other_processes(inbox):
    "A classifier can be pickled, and works in a forked process, where an open session would hang"
    expected = clf.predict(inbox/CHINESE)
    assert pickle.loads(pickle.dumps(clf)).predict(inbox/CHINESE) == expected
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)                     # Python's, about forking with threads
        with multiprocessing.get_context('fork').Pool(2) as pool: forked = pool.map_async(clf.predict, [inbox/CHINESE]*2).get(timeout=60)
    assert [p.label for p in forked] == [expected.label]*2


def test_wrong_options():
    for options, why in ((dict(threads=-1), 'threads=-1'), (dict(threshold=math.nan), 'threshold=nan'), (dict(device='tpu'), "choose 'cpu' or 'cuda'")):
        with pytest.raises(ValueError, match=why): GearClassifier(**options)


def test_gpu_is_used_or_missed():
    if 'CUDAExecutionProvider' in onnxruntime.get_available_providers(): assert GearClassifier(device='cuda').predict(raw).label == clf.predict(raw).label
    else:
        with pytest.raises(ModelError, match='onnxruntime-gpu'): GearClassifier(device='cuda')


def test_stream_takes_only_what_it_needs():
    requested = []
    def endless():
        while True:
            requested.append(1)
            yield raw
    assert next(clf.stream(endless(), bs=4)).label == clf.predict(raw).label
    assert len(requested) <= 4*(2*os.cpu_count() + 1)


# --- models that cannot be used

def flip_bit(f):
    content = bytearray(f.read_bytes())
    content[len(content)//2] ^= 1
    f.write_bytes(content)

def edit(**changes): return lambda f: f.write_text(json.dumps(json.loads(f.read_text()) | changes))

@pytest.mark.parametrize('name, change, why', [
    ('model.onnx', flip_bit, 'not the file that was saved'), ('model.onnx', Path.unlink, 'it has no model.onnx'), ('gear.json', edit(format=3), 'newer gear_fastai'),
    ('gear.json', edit(labels=clf.labels[::-1]), 'not those of config.json'), ('gear.json', edit(temperature=-1), 'not a positive number'),
    ('gear.json', lambda f: f.write_text('{'), 'damaged')])
def test_damaged_model_is_refused(tmp_path, name, change, why):
    shutil.copytree(clf.folder, tmp_path/'mine')
    change(tmp_path/'mine'/name)
    with pytest.raises(ModelError, match=why): GearClassifier(tmp_path/'mine')


def test_what_is_no_model_is_told_in_one_line(tmp_path):
    from fastai.vision.all import DataLoaders, Learner, nn
    learn = Learner(DataLoaders([], []), nn.Linear(1, 1), loss_func=nn.MSELoss())
    (tmp_path/'export.pkl').write_bytes(b'x')
    shutil.copytree(default_model(), tmp_path/'mine')
    for model, why in ((learn, 'Learner: save it with save_classifier'), (learn.model, 'Linear: save it with'), (tmp_path/'export.pkl', 'save_classifier'), ('gone.pth', 'not a model folder'),
                       (tmp_path/'mine/model.onnx', 'pass its folder'), (tmp_path/'mine/gear.json', 'pass its folder'), (dict(), 'dict: pass the folder'), (tmp_path, 'holds several models .mine.; choose one'), ('resnet18', '^resnet18: no such model folder')):
        for ask in (lambda: predict(raw, model), lambda: GearClassifier(model), lambda: next(predict_folder(tmp_path, model))):
            with pytest.raises(ModelError, match=why) as e: ask()
            assert '\n' not in str(e.value)


def test_images_are_named_beside_fastai():
    "fastai gives each PIL image a shape, as arrays have"
    import fastai.vision.core
    with Image.open(io.BytesIO(raw)) as im: pass
    with pytest.raises(PhotoError, match='^<JpegImageFile>: '): open_photo(im)


# --- names

def test_home_folder(inbox, tmp_path, monkeypatch):
    shutil.copytree(default_model(), tmp_path/'models/mine')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert GearClassifier('~/models/mine').folder == tmp_path/'models/mine'
    assert predict('~/my photos/plain.jpg', '~/models/mine').error is None
    monkeypatch.setenv('GEAR_FASTAI_MODEL', '~/models/mine')
    assert default_model() == tmp_path/'models/mine' and predict(raw).path is None
    monkeypatch.setenv('GEAR_FASTAI_CACHE', '~/decoded')
    assert cache_folder() == tmp_path/'decoded'
    assert CliRunner().invoke(main, ['predict', '~/my photos', '--model', '~/models/mine']).output.count('%') == 3


def test_cache_takes_any_name(inbox, tmp_path):
    paths = [inbox/BYTES, inbox/CHINESE]
    print(*predict(paths), file=io.TextIOWrapper(io.BytesIO(), 'utf-8'))
    for _ in range(2): assert np.array_equal(PhotoCache(paths, 32, tmp_path/'cache').batch([0, 1]), np.stack([to_array(raw, 32)]*2))


def test_folder_tells_what_is_left_out(inbox):
    with pytest.warns(UserWarning, match=r'my photos: .*2 \.mov, 1 \.pdf$'): assert len(list(predict_folder(inbox))) == 3
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert all(p.error is None for p in predict(sorted(inbox.glob('*.jp*g'))))


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii', 'utf-8'])
def test_any_console(inbox, encoding):
    "Redirected output; tables and JSON are always UTF-8"
    def run(*args):
        done = subprocess.run([sys.executable, '-m', 'gear_fastai.cli', 'predict', *args], capture_output=True, env=os.environ | dict(PYTHONIOENCODING=encoding))
        assert done.returncode == 0 and b'2 .mov, 1 .pdf' in done.stderr, done.stderr
        return done.stdout
    (inbox/'broken 靴.jpg').write_bytes(b'x')
    assert len(run(inbox).splitlines()) == 4
    rows = list(csv.DictReader(io.StringIO(run(inbox, '--csv').decode('utf-8'), newline='')))
    assert {Path(r['path']).name for r in rows} == {'caf\\udce9.jpeg', CHINESE, 'plain.jpg', 'broken 靴.jpg'}
    if encoding == 'cp1252': assert {Path(json.loads(l)['path']).name for l in run(inbox, '--json').splitlines()} == {BYTES, CHINESE, 'plain.jpg', 'broken 靴.jpg'}


def test_summary_of_the_command(tmp_path):
    (tmp_path/'broken.jpg').write_bytes(b'x')
    said = CliRunner().invoke(main, ['predict', str(tmp_path/'broken.jpg')])
    assert said.exit_code == 1 and '1 of 1 could not be read' in said.output
    (tmp_path/'inbox').mkdir()
    (tmp_path/'inbox/a.mov').write_bytes(b'x')
    said = CliRunner().invoke(main, ['predict', str(tmp_path/'inbox')])
    assert said.exit_code == 1 and said.output.strip() == f"Error: {tmp_path/'inbox'}: no photos in it; skipped: 1 .mov"


# --- class names

def test_classes_may_be_called_as_columns(tmp_path):
    labels = ['path', 'label', 'confidence', 'error', 'top1', 'class error', 'boots', 'caf\udce9']
    p = Prediction(None, .5, dict.fromkeys(labels, .125), 'a.jpg')
    with open(tmp_path/'a.csv', 'w', newline='', encoding='utf-8') as f: write_csv([p, Prediction(path=BYTES, error=f'{BYTES}: gone')], f, labels)
    with open(tmp_path/'a.csv', newline='', encoding='utf-8') as f: rows = list(csv.reader(f))
    assert len(set(rows[0])) == len(rows[0]) == 4 + 8 + 1
    assert rows[0][:4] + rows[0][-1:] == ['path', 'label', 'confidence', 'top1', 'error'] and rows[1][:4] == ['a.jpg', '', '0.5', 'path']
    assert rows[2][0] == 'caf\\udce9.jpeg'


def test_titles_of_any_class_name():
    names = ['$50_to_$100', 'a^2_{x', r'\alpha', 'Größe', 'сапоги', '登山靴', 'caf\udce9']
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        fig = show_predictions([Prediction(n, .9, {n: .9}, photo=raw) for n in names], truth=names[1:] + names[:1])
        fig.savefig(io.BytesIO())
    assert fig.axes[0].get_title() == '$50_to_$100\n90%, true: a^2_{x' and not fig.axes[0].title.get_parse_math()
    assert len(said) <= 1, [str(w.message) for w in said]                       # of fonts that are missing here, once


def test_figure_is_drawn_once():
    "As the last line of a notebook's cell, in the middle of one, and when it is looked at again"
    from execnb.shell import CaptureShell
    from matplotlib import pyplot
    pyplot.close('all')                                                         # those of other tests
    shell = CaptureShell()
    def images(code): return sum('image/png' in o.get('data', {}) for o in shell.run(code))
    assert images(f'%matplotlib inline\nfrom gear_fastai.inference import Prediction, show_predictions\nps = [Prediction("boots", .9, photo={encoded(drawing(), "png")!r})]') == 0
    for code in ('show_predictions(ps)', 'fig = show_predictions(ps)', 'fig', 'show_predictions(ps)\n1', 'import matplotlib.pyplot as plt\nfig = show_predictions(ps)\nplt.show()'):
        assert images(code) == 1, code
    assert images('import io, pickle\nfig.savefig(buf := io.BytesIO())\nassert buf.tell() and pickle.dumps(fig)') == 0


def test_photo_that_is_gone_leaves_an_empty_place(tmp_path):
    (tmp_path/'a.png').write_bytes(raw)
    p = predict(tmp_path/'a.png')
    (tmp_path/'a.png').unlink()
    fig = show_predictions([p])
    assert not fig.axes[0].images and 'img' not in p._repr_html_()


# --- whole catalogues

def test_catalogue_tells_what_is_left_out_and_keeps_names(inbox):
    pytest.importorskip('pyarrow')
    from gear_fastai.bulk import CatalogueError, GearStage, _list_photos
    with pytest.raises(CatalogueError, match='not UTF-8'): _list_photos([f'file://{inbox}'], str(inbox))       # PyArrow can't list it
    for place in (str(inbox), f'file://{inbox}'):
        with pytest.warns(UserWarning, match=r'2 \.mov, 1 \.pdf$'): lists, _ = _list_photos([place], str(inbox))
        Path(lists[0]).unlink()
        (inbox/BYTES).unlink(missing_ok=True)
    (inbox/'@eaDir').mkdir()
    (inbox/'@eaDir/a.jpg').write_bytes(raw)
    with pytest.warns(UserWarning): assert len(pq_rows(_list_photos([f'file://{inbox}'], str(inbox))[0][0])) == 2
    rows = list(GearStage().predictions([('first', raw), ('second', b'x'), (str(inbox/CHINESE), None)]))
    assert [row['path'] for row in rows] == ['first', 'second', str(inbox/CHINESE)] and rows[1]['error']


def pq_rows(file):
    import pyarrow.parquet as pq
    return pq.read_table(file).to_pylist()


def test_home_folder_in_all_paths(tmp_path, monkeypatch):
    "A quoted `~` reaches the commands as it is"
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    def run(*args):
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, result.output
        return result.output
    run('data', 'sample', '~/my photos', '-n', '4')
    run('data', 'split', '~/my photos')
    told = run('train', '~/my photos', '--arch', 'gear_cnn_small', '--epochs', '1', '--size', '32', '--out', '~/my models/a')
    assert "evaluate '" + str(tmp_path/'my models/a') + "' '~/my photos'" in told
    run('evaluate', '~/my models/a', '~/my photos', '--split', 'valid', '--html', '~/report.html')
    run('predict', '~/my photos/boots', '--model', '~/my models/a')
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith('.')) == ['my models', 'my photos', 'report.html']


@pytest.mark.parametrize('setting, args', [('pretrained', ['--no-pretrained']), ('views', ['--views', '2']), ('alpha', ['--alpha', '1']),
                                           ('patience', ['--arch', 'test_vit', '--epochs', '0', '--patience', '1'])])
def test_options_that_would_do_nothing_are_wrong_usage(tmp_path, setting, args):
    result = CliRunner().invoke(main, ['train', str(tmp_path), *args])
    assert result.exit_code == 2 and setting in result.output.splitlines()[-1], result.output
