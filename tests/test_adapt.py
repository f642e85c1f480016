"Adapting a saved model to new photos, classes and negatives, and training a probe, without torch."
import json, shutil, subprocess, sys

import numpy as np, pytest, torch
from PIL import Image

from gear_fastai import GearClassifier
from gear_fastai.adapt import _backbone, adapt_to_folder, photos_to_learn, train_probe
from gear_fastai.checkpoint import load_network
from gear_fastai.dataset import read_splits, split_dataset, write_splits
from gear_fastai.evaluation import evaluate
from gear_fastai.model_folder import ModelError, read_gear
from gear_fastai.photo import list_photos, normalize, to_pixels
from gear_fastai.recipes import train_model
from gear_fastai.sources import draw_sample


def noise(folder, n, seed=0):
    "Write `n` pictures of noise"
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder/f'{i}.png')
    return sorted(folder.iterdir())


@pytest.fixture(scope='module')
def data(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('adapt')/'gear', n=8)


@pytest.fixture(scope='module')
def new(data): return draw_sample(data.parent/'new', n=4, seed=9)


@pytest.fixture(scope='module')
def clf(data):
    "A probe that knows ten of the twelve classes"
    known = shutil.copytree(data, data.parent/'known')
    for label in ('axes', 'tents'): shutil.rmtree(known/label)
    return train_probe(known, data.parent/'probe', size=96)


@pytest.fixture(scope='module')
def cnn(data):
    train_model(data, 'gear_cnn_small', data.parent/'cnn', size=48, epochs=8, progress=False)
    return GearClassifier(data.parent/'cnn')


def photos_of(folder, *labels):
    files = [file for file in list_photos(folder) if not labels or file.parent.name in labels]
    return files, [file.parent.name for file in files]


def accuracy(clf, folder, *labels):
    files, truth = photos_of(folder, *labels)
    return np.mean([p.top1 == label for p, label in zip(clf.predict(files), truth)])


def test_new_classes_are_learned_and_old_ones_kept(clf, data, new):
    old = accuracy(clf, new, *clf.labels)
    better = clf.adapt(*photos_of(data, 'axes', 'tents'))
    assert better.labels == [*clf.labels, 'axes', 'tents'] and clf.labels == sorted(clf.labels)
    assert accuracy(better, new, 'axes', 'tents') >= .75
    assert accuracy(better, new, *clf.labels) >= old - .05


def test_a_saved_model_predicts_the_same_and_opens_in_timm(clf, data, new, tmp_path):
    better = clf.adapt(*photos_of(data, 'axes'))
    better.save(tmp_path/'better')
    saved, files = GearClassifier(tmp_path/'better'), list(list_photos(new))
    for p, q in zip(better.predict(files), saved.predict(files)):
        assert p.top1 == q.top1 and p.confidence == pytest.approx(q.confidence, abs=.02)
    network = load_network(tmp_path/'better')
    x = torch.from_numpy(normalize(np.stack([to_pixels(file, 96) for file in files]), saved.mean, saved.std))
    with torch.no_grad(): probs = torch.softmax(network(x)/saved.temperature, 1).numpy()
    assert np.allclose(probs, [list(p.probabilities.values()) for p in saved.predict(files)], atol=1e-3)
    card = (tmp_path/'better/README.md').read_text()
    assert '**Adapted** from `probe`' in card and '8 axes' in card
    splits = read_splits(tmp_path/'better')
    assert (splits.label == 'axes').sum() == 8 and splits.digest[splits.label == 'axes'].str.len().eq(32).all()
    assert read_gear(tmp_path/'better')['notes']['added'] == dict(axes=8)
    again = saved.adapt(*photos_of(data, 'tents'))               # a model that was adapted can be adapted
    again.save(tmp_path/'again')
    assert set(GearClassifier(tmp_path/'again').labels) == {*clf.labels, 'axes', 'tents'}
    with pytest.raises(ModelError, match='is saved already'): saved.save(tmp_path/'copy')


def test_a_custom_cnn_can_be_adapted(cnn, new, tmp_path):
    files, labels = photos_of(new)
    better = cnn.adapt(files, labels)
    assert np.mean([p.top1 == label for p, label in zip(better.predict(files), labels)]) > .9
    saved = GearClassifier(better.save(tmp_path/'better'))
    assert [p.top1 for p in saved.predict(files)] == [p.top1 for p in better.predict(files)]
    assert load_network(tmp_path/'better').num_classes == 12


def test_negatives_are_rejected_afterwards(clf, data, tmp_path):
    files = noise(tmp_path/'noise', 60)
    better = clf.adapt(files[:40], [None]*40)
    assert better.reference.n_photos == clf.reference.n_photos and (better.reference.labels < 0).sum() == 40
    assert np.mean([p.label is None for p in better.predict(files[40:])]) > .9
    assert np.mean([p.label is not None for p in better.predict(photos_of(data, *clf.labels)[0])]) > .9
    assert clf.adapt(files[:40], ['_none']*40).threshold == better.threshold


def test_a_correction_replaces_the_training_photo(clf, data, tmp_path):
    file = data.parent/'known'/clf.reference.paths[0]
    old = clf.labels[clf.reference.labels[0]]
    other = next(label for label in clf.labels if label != old)
    better = clf.adapt([file], [other])
    assert len(better.reference.labels) == len(clf.reference.labels)
    assert better.predict(file).nearest.label == other
    better.save(tmp_path/'better')
    assert clf.reference.paths[0] not in set(read_splits(tmp_path/'better').path)


def test_features_give_the_same_as_photos(clf, data):
    files, labels = photos_of(data, 'axes')
    features = clf.features(files)
    a, b = clf.adapt(files, labels), clf.adapt(features, labels, paths=[f'axes/new/{file.name}' for file in files])
    assert np.allclose(a.head[0], b.head[0], atol=1e-4) and a.reference.paths == b.reference.paths
    assert [p.label for p in a.predict_features(features)] == [p.label for p in a.predict(files)]


def test_an_adapted_classifier_can_be_pickled(clf, data):
    import pickle
    better = clf.adapt(*photos_of(data, 'axes'))
    file = next(list_photos(data))
    assert pickle.loads(pickle.dumps(better)).predict(file) == better.predict(file)


def test_bad_photos(clf):
    with pytest.raises(ValueError, match='no photos to learn from'): clf.adapt([], [])
    with pytest.raises(ValueError, match='1 photos, 0 labels'): clf.adapt(['x.jpg'], [])
    with pytest.warns(UserWarning, match='left out'), pytest.raises(ValueError, match='no photos to learn from'):
        clf.adapt([b'no image'], ['boots'])


@pytest.mark.parametrize('label', [0, 1, float('nan'), '', ['boots']])
def test_labels_must_be_names(clf, data, label):
    with pytest.raises(ValueError, match='not a label; pass the name of a class'): clf.adapt([next(list_photos(data))], [label])


def test_each_photo_gets_a_path_of_its_own(clf, tmp_path):
    rng = np.random.default_rng(0)
    first, second, third = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    twice = clf.adapt([first], ['boots']).adapt([second, third], ['boots', 'boots'])
    twice.save(tmp_path/'twice')
    paths = [path for path in read_splits(tmp_path/'twice').path if path.startswith('boots/new/')]
    assert len(paths) == 3 and set(paths) <= set(GearClassifier(tmp_path/'twice').reference.paths)
    again = clf.adapt([first], ['boots']).adapt([first], ['rope'])          # corrected: one photo, one row
    again.save(tmp_path/'again')
    assert [path for path in read_splits(tmp_path/'again').path if '/new/' in path] == ['rope/new/photo-0']
    assert again.added == dict(rope=1)


def test_added_photos_have_groups_and_a_domain_of_their_own(clf, new, tmp_path):
    clf.adapt(list(list_photos(new))[:3], ['boots']*3, domain='outdoor').save(tmp_path/'better')
    splits = read_splits(tmp_path/'better')
    added = splits.path.str.contains('/outdoor/')
    assert added.sum() == 3 and set(splits.domain[added]) == {'outdoor'}
    assert 'outdoor' not in set(splits.domain[~added])
    assert not set(splits.group[added]) & set(splits.group[~added])


def test_the_rejection_rate_is_kept(clf, data, tmp_path):
    few = draw_sample(tmp_path/'few', n=2)
    with pytest.warns(UserWarning, match='too few to calibrate'):
        small = train_probe(few, tmp_path/'small', size=96, reject_rate=.1)
    better = small.adapt(*photos_of(data))
    assert better.gear['calibration']['rejection_rate'] == .1


def test_unreadable_photos_are_left_out_with_a_warning(clf, data, tmp_path):
    files, labels = photos_of(data, 'axes')
    (tmp_path/'bad.jpg').write_bytes(b'no image')
    with pytest.warns(UserWarning, match='bad.jpg.*left out'): better = clf.adapt([*files, tmp_path/'bad.jpg'], [*labels, 'axes'])
    assert better.added == dict(axes=len(files))


def test_conflicting_labels_are_an_error(clf, data):
    file = next(list_photos(data))
    with pytest.raises(ValueError, match='look the same but have different labels; keep one'): clf.adapt([file, file], ['boots', 'rope'])


def test_a_model_of_format_1_cannot_be_adapted(clf, data, tmp_path):
    old = shutil.copytree(clf.folder, tmp_path/'old')
    about = json.loads((old/'gear.json').read_text()) | dict(format=1)
    (old/'gear.json').write_text(json.dumps(about))
    with pytest.raises(ModelError, match='format 1.*train it again'): GearClassifier(old).adapt(*photos_of(data, 'axes'))


def test_learning_from_a_folder_leaves_its_test_photos_out(clf, data, new, tmp_path):
    folder = shutil.copytree(new, tmp_path/'new')
    noise(folder/'_none', 3)
    assert set(photos_to_learn(folder).label) >= {'_none', 'axes'}
    splits = split_dataset(folder)
    write_splits(folder, splits)
    learned = photos_to_learn(folder)
    assert not set(learned.path) & set(splits.path[splits.split == 'test']) and len(learned) == (splits.split != 'test').sum()
    better = adapt_to_folder(clf.folder, folder, tmp_path/'better')
    assert evaluate(tmp_path/'better', folder).seen_in_training in (0, None) and sum(better.added.values()) == len(learned)
    (tmp_path/'one/axes').mkdir(parents=True)
    shutil.copy(photos_of(new, 'axes')[0][0], tmp_path/'one/axes')
    assert adapt_to_folder(clf.folder, tmp_path/'one', tmp_path/'better').labels[-1] == 'axes'      # a single photo


def test_the_probe_is_that_of_fine_tune(data, tmp_path):
    "ONNX Runtime computes the features that torch computes"
    splits = split_dataset(data)
    fast = train_probe(data, tmp_path/'fast', size=96, split=splits)
    train_model(data, 'tf_efficientnet_lite0', tmp_path/'slow', split=splits, epochs=0, size=96, progress=False)
    slow = GearClassifier(tmp_path/'slow')
    files = photos_of(data)[0]
    for p, q in zip(fast.predict(files), slow.predict(files)):
        assert p.confidence == pytest.approx(q.confidence, abs=.03)
        assert p.similarity == pytest.approx(q.similarity, abs=.01)
    assert {file.name for file in fast.folder.iterdir()} == {file.name for file in slow.folder.iterdir()}
    assert fast.threshold == pytest.approx(slow.threshold, abs=.01)


def test_sizes_and_models_that_are_there(data, tmp_path):
    with pytest.raises(ValueError, match='multiple of 32'): _backbone(100)
    train_probe(data, tmp_path/'probe', size=64)
    with pytest.warns(UserWarning, match='kept as .*probe.1'): train_probe(data, tmp_path/'probe', size=64)
    (tmp_path/'other').mkdir()
    (tmp_path/'other/file').touch()
    with pytest.raises(ModelError, match='not a saved model'): train_probe(data, tmp_path/'other', size=64)


def test_no_torch(data, new, tmp_path):
    script = f'''
import sys
from gear_fastai.cli import main
try: main(['train', {str(data)!r}, '--arch', 'tf_efficientnet_lite0', '--epochs', '0', '--size', '64', '--out', {str(tmp_path/'probe')!r}])
except SystemExit as e: assert not e.code, e.code
try: main(['adapt', {str(tmp_path/'probe')!r}, {str(new)!r}, '--out', {str(tmp_path/'better')!r}])
except SystemExit as e: assert not e.code, e.code
from gear_fastai import predict
predict({str(next(list_photos(new)))!r}, model={str(tmp_path/'better')!r})
assert not {{'torch', 'fastai', 'timm'}} & set(sys.modules), sorted(sys.modules)
'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'learned' in done.stdout and 'compare' in done.stdout
