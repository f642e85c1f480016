"The peers benchmark in short: its harness on stub scripts, without the peers; its image sets; its tables"
import ast, os, random, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT/'nbs/benchmarks/peers'
sys.path.insert(0, str(FOLDER))
import bench_peers, image_sets
from bench_peers import Contestant

STUB = '''
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
sys.path.insert(0, {folder!r})
from contract import main

def color(file): return np.asarray(Image.open(file).convert('RGB').resize((size, size))).mean((0, 1))
size = 8
def train(data, out, curve, model, size, epochs, seed, weights):
    if model == 'broken': raise SystemExit('no such network')
    classes = sorted(Path(data, 'train').iterdir())
    means = {{folder.name: np.mean([color(f) for f in folder.iterdir()], 0).tolist() for folder in classes}}
    for epoch in range(epochs): curve.add(epoch/10)
    Path(out).write_text(json.dumps(means))

def load(model):
    means = json.loads(Path(model).read_text())
    nearest = lambda file: min(means, key=lambda label: abs(color(file) - means[label]).sum())
    return lambda files: [(label, label, .9) for label in map(nearest, files)]

if __name__ == '__main__': main(train, load)
'''


@pytest.fixture
def stubs(tmp_path, monkeypatch, capsys):
    "Two contestants whose script is a stub, in this environment"
    for name in ('GEAR_DATA', 'GEAR_OUTDOOR', 'GEAR_OOD', 'GEAR_WEIGHTS'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(bench_peers, 'two_cores', lambda: None)
    monkeypatch.setattr(bench_peers, 'PERIOD', .05)
    script = tmp_path/'stub_run.py'
    script.write_text(STUB.format(folder=str(FOLDER)))
    with capsys.disabled(): print('\nNOTE: the peers are not installed here; the harness runs on stub scripts')
    def stub(name, library, network='stub'):
        return Contestant(name, library, 'packaging', str(script), 'scratch', network, 8, 2, '2', 'nothing', 'none')
    return [stub('ours, stub', 'gear_fastai'), stub('stub', 'packaging'), stub('broken', 'packaging', 'broken')]


def test_harness_measures_and_goes_on(stubs, tmp_path, capsys):
    bench_peers.bench_catalogue(stubs, tmp_path, short=True)
    table = pd.read_csv(tmp_path/'peers.csv')
    assert table.contestant.tolist() == ['ours, stub', 'stub'] and table.ours.tolist() == [True, False]
    measured = table[['seconds', 'peak_mb', 'cold_s', 'warm_ms', 'photos_per_s', 'lines', 'installed_mb']]
    assert (measured.drop(columns='installed_mb') > 0).all(axis=None)
    assert (table.seconds < 20).all() and (table.peak_mb < 2000).all()
    assert table.accuracy.between(0, 1).all() and (table.label_correct == table.accuracy).all()
    assert table.release.str.startswith('packaging ').all()
    assert 'broken: failed: stub_run.py: no such network' in capsys.readouterr().err
    curves = pd.read_csv(tmp_path/'peers_curves.csv')
    assert curves.groupby('contestant').accuracy.last().tolist() == [0, 0]  # one epoch in short
    assert curves.seconds.between(0, 20).all()


def test_harness_on_image_sets(stubs, tmp_path, monkeypatch):
    monkeypatch.setattr(image_sets, 'SOURCES', dict(shapes=image_sets.draw_shapes))
    bench_peers.bench_sets(stubs[1:], tmp_path, short=True)
    row = pd.read_csv(tmp_path/'peers_datasets.csv').iloc[0]
    assert (row.dataset, row.contestant, row.n_train) == ('shapes', 'stub', 24)
    assert set(row.index) >= {'test', 'test-background', 'test-blur', 'test-lighting', 'test-noise'}


def test_rows_are_replaced(tmp_path):
    file = tmp_path/'table.csv'
    for name, value in (('a', 1), ('b', 2), ('a', 3)):
        bench_peers.merge_rows(file, pd.DataFrame([dict(name=name, value=value)]), ['name'])
    assert pd.read_csv(file).to_dict('list') == dict(name=['b', 'a'], value=[2, 3])


def test_score_counts_rejections():
    rows = pd.DataFrame(dict(label=['a', None, 'b', 'b'], top1=['a', 'a', 'b', 'b'], confidence=[1., 1, 1, 1]))
    metrics = bench_peers.score(rows, np.array(['a', 'a', 'a', 'b']))
    assert metrics == dict(accuracy=.75, label_correct=.5, calibration_error=.25)


def test_unknown_contestant(capsys):
    with pytest.raises(SystemExit): bench_peers.main(['--only', 'nobody'])
    assert '--only: choose from ours, linear probe' in capsys.readouterr().err


def test_budget(capsys):
    first, second = bench_peers.CONTESTANTS[:2]
    assert list(bench_peers.before(None, [first, second])) == [first, second]
    assert not list(bench_peers.before(0, [first])) and 'left out' in capsys.readouterr().err


def pixels(folder): return {str(f.relative_to(folder)): np.asarray(Image.open(f)) for f in folder.rglob('*.png')}


@pytest.mark.parametrize('source', image_sets.SOURCES)
def test_image_set(source, tmp_path):
    data = image_sets.make_dataset(source, tmp_path, n=2)
    train, test = pixels(data/'train'), pixels(data/'test')
    label, image = next(image_sets.SOURCES[source](6, random.Random(42)))
    assert (train[f'{label}/0000.png'] == np.asarray(image)).all()
    classes = {Path(name).parent.name for name in train}
    assert len(train) == len(test) == 2*len(classes)
    assert not {x.tobytes() for x in train.values()} & {x.tobytes() for x in test.values()}
    folders = bench_peers.tests_of(data)
    assert len(folders) == 1 + len(image_sets.shifts_of(source)) >= 4
    for folder in folders[1:]:
        moved = pixels(folder)
        assert moved.keys() == test.keys()
        assert np.mean([(moved[name] != image).mean() for name, image in test.items()]) > .1, folder.name


def test_new_background_keeps_the_object():
    image = Image.new('RGB', (96, 96), 'white')
    image.paste((200, 0, 0), (30, 30, 60, 60))
    moved = np.asarray(image_sets.new_background(image, random.Random(0)))
    assert (moved[30:60, 30:60] == (200, 0, 0)).all() and (moved[:30] < 250).all()


def functions(script):
    tree = ast.parse((FOLDER/script).read_text(encoding='utf-8'))
    return {node.name: [arg.arg for arg in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize('script', sorted({c.script for c in bench_peers.CONTESTANTS}))
def test_scripts_share_one_contract(script):
    found = functions(script)
    assert found['train'] == ['data', 'out', 'curve', 'model', 'size', 'epochs', 'seed', 'weights']
    assert found['load'] == ['model']
    assert bench_peers.code_lines(script) > 5


@pytest.mark.parametrize('file', sorted(FOLDER.glob('requirements*.txt')), ids=lambda f: f.name)
def test_environments_are_locked(file):
    lines = [line for line in file.read_text().splitlines() if not line.startswith('#')]
    assert len(lines) > 50 and all('==' in line for line in lines)


def test_ours_trains_and_predicts(tmp_path, monkeypatch):
    "The script of gear_fastai itself, on a drawn set"
    data = image_sets.make_dataset('shapes', tmp_path/'shapes', n=4)
    ours = next(c for c in bench_peers.CONTESTANTS if c.name == 'ours, gear_cnn_small')
    monkeypatch.setattr(bench_peers, 'python_of', lambda contestant: sys.executable)
    run = bench_peers.run_timed(bench_peers.training(ours, data, tmp_path/'model', None, 32, 1), tmp_path)
    assert len(run.rows[-1]['curve']) == 1
    files = bench_peers.image_files(data/'test')
    rows, speed = bench_peers.predict(ours, tmp_path/'model', files, tmp_path, warm=2)
    assert len(rows) == len(files) and rows.top1.isin(os.listdir(data/'test')).all()
    assert speed['warm_ms'] > 0 and speed['photos_per_s'] > 0
