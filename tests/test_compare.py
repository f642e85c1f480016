"Two models on the same photos: figures, classes that only one of them has, photos seen in training, the page"
import json, shutil, warnings

import numpy as np, pandas as pd, pytest

import gear_fastai.adapt
from gear_fastai.compare import compare_models, Comparison, mcnemar, paired_ci, write_comparison, _summary
from gear_fastai.dataset import DataError, file_digest, read_splits, write_splits
from gear_fastai.evaluation import evaluate
from gear_fastai.inference import GearClassifier
from gear_fastai.model_folder import ModelError
from gear_fastai.recipes import train_model
from gear_fastai.sources import draw_sample


def table(rows):
    "A table of predictions from (true class, old label, new label); '?axes' is a rejected photo, perhaps axes"
    columns = dict(path=[], label=[], group=[], domain=[], old=[], old_top1=[], new=[], new_top1=[])
    for i, (truth, old, new) in enumerate(rows):
        values = dict(path=f'{truth}/{i}.jpg', label=truth, group=i, domain='outdoor' if i % 2 else 'catalog')
        for model, said in dict(old=old, new=new).items():
            values |= {model: None if said[0] == '?' else said, f'{model}_top1': said.lstrip('?')}
        for name, value in values.items(): columns[name].append(value)
    return pd.DataFrame(columns).assign(old_confidence=.9, new_confidence=.8)


def compared(rows, old=('axes', 'boots'), new=('axes', 'boots')):
    from gear_fastai.compare import _change
    photos = table(rows)
    photos['change'] = _change(photos)
    return Comparison('old', 'new', 'gear', 'test split', unreadable={}, photos=photos, **_summary(photos, old, new))


ROWS = [('axes', 'axes', 'axes'), ('axes', 'boots', 'axes'), ('boots', '?boots', 'boots'), ('boots', 'boots', '?axes')]


def test_figures():
    found = compared(ROWS)
    shares = {name: (figure['old'], figure['new']) for name, figure in found.metrics.items()}
    assert shares == dict(accuracy=(.75, .75), correct_label=(.5, .75), coverage=(.75, .75))
    assert (found.newly_right, found.newly_wrong, found.p_value) == (1, 1, 1)
    assert found.photos.change.tolist() == ['', 'better', 'better', 'worse']
    assert found.per_class['boots']['correct_label']['difference'] == 0
    assert set(found.per_domain) == {'catalog', 'outdoor'}
    assert 'does not clearly differ' in found.verdict()


def test_none_of_the_classes():
    found = compared(ROWS + [('_none', 'axes', '?axes'), ('_none', '?axes', '?axes')])
    assert found.n == 4 and set(found.per_class) == {'axes', 'boots'}
    rejected = found.metrics['rejected']
    assert (rejected['n'], rejected['old'], rejected['new']) == (2, .5, 1)
    assert found.photos.change.tolist()[-2:] == ['better', '']


def test_a_class_that_the_old_model_lacks():
    found = compared(ROWS + [('rope', 'axes', 'rope'), ('rope', '?axes', 'rope')], new=('axes', 'boots', 'rope'))
    assert found.only_new == ['rope'] and found.only_old == []
    assert found.per_class['rope']['accuracy']['old'] == 0 and found.per_class['rope']['accuracy']['new'] == 1
    assert found.metrics['shared_accuracy']['n'] == 4 and found.metrics['accuracy']['n'] == 6
    assert 'rope: old lacks this class' in str(found) and 'accuracy on classes of both' in found._repr_html_()


def test_it_is_json():
    found = compared(ROWS)
    stored = json.loads(json.dumps(found.to_dict()))
    assert [p['change'] for p in stored['photos']] == ['better', 'better', 'worse']
    assert stored['photos'][-1]['new'] is None and stored['metrics']['accuracy']['ci95']


@pytest.mark.parametrize('better, worse, groups', [(0, 0, 40), (6, 2, 40), (6, 2, 4)])
def test_an_interval_holds_its_difference(better, worse, groups):
    old = np.arange(40) >= better
    new = np.arange(40) < 40 - worse
    low, high = paired_ci(old, new, np.arange(40) % groups)
    assert -1 <= low < (better - worse)/40 < high <= 1


@pytest.mark.parametrize('gain, loss', [(.02, .02), (.1, .02), (.2, .1)])
@pytest.mark.parametrize('size', [1, 5])
def test_the_interval_covers_the_true_difference(gain, loss, size):
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        change = rng.choice([1, -1, 0], 60, p=[gain, loss, 1 - gain - loss]).repeat(size)     # of whole groups
        low, high = paired_ci(change < 0, change > 0, np.arange(60).repeat(size), draws=400, seed=seed)
        held += low <= gain - loss <= high
    assert held/200 > .91


def test_mcnemar_is_symmetric():
    assert mcnemar(9, 1) == mcnemar(1, 9) == pytest.approx(.0215, abs=1e-4)


# ---- saved models

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp('trained')
    data = draw_sample(home/'gear', n=8)
    for name, seed in (('old', 1), ('new', 2)):
        train_model(data, 'gear_cnn_small', home/name, epochs=1, seed=seed, progress=False)
    return home


@pytest.fixture
def home(trained, tmp_path):
    shutil.copytree(trained, tmp_path/'copy')
    return tmp_path/'copy'


def compare(home, *args, **kwargs): return compare_models(home/'old', home/'new', home/'gear', *args, **kwargs)


def test_models_of_one_split(home):
    found = compare(home)
    test = read_splits(home/'gear').query("split == 'test'")
    assert (found.old, found.new, found.n, found.how) == ('old', 'new', len(test), 'test split')
    assert sorted(found.photos.path) == sorted(test.path)
    assert len(pd.read_csv(home/'gear/test-scores.csv')) == 2
    assert compare(home, 'valid').how == 'valid split' and len(pd.read_csv(home/'gear/test-scores.csv')) == 2


def test_a_model_is_as_good_as_itself(home):
    found = compare_models(home/'old', home/'old', home/'gear')
    assert all(figure['difference'] == 0 for figure in found.metrics.values())
    assert len(found.better) == len(found.worse) == 0 and found.p_value == 1


@pytest.mark.parametrize('model', ['old', 'new'])
def test_photos_that_one_model_was_trained_on_are_refused(home, model):
    test = read_splits(home/'gear').query("split == 'test'").path.iloc[:2]
    splits = read_splits(home/model)
    digests = [file_digest(home/'gear'/path) for path in test]
    extra = pd.DataFrame(dict(path=['corrected/a.jpg', 'corrected/b.jpg'], label='axes', group=[9001, 9002],
                              split='train', digest=digests))
    pd.concat([splits, extra]).to_csv(home/model/'splits.csv', index=False)
    with pytest.raises(DataError) as e: compare(home)
    text = str(e.value)
    assert f'{model} was trained on 2 of these' in text and test.iloc[0] in text and '\n' not in text
    assert f'gear-fastai data split {home/"gear"} --add' in text


def test_a_model_that_was_adapted_to_test_photos_is_refused(home):
    test = read_splits(home/'gear').query("split == 'test'")
    better = GearClassifier(home/'old').adapt([home/'gear'/path for path in test.path[:2]], ['axes', '_none'])
    better.save(home/'better')
    with pytest.raises(DataError, match='better was trained on 2 of these'):
        compare_models(home/'old', home/'better', home/'gear')


@pytest.mark.parametrize('score', [evaluate, lambda model, folder: compare_models(model, model, folder)])
def test_an_adapted_model_must_be_saved(home, score):
    photo = next((home/'gear').glob('axes/*'))
    better = GearClassifier(home/'old').adapt([photo], ['axes'])
    with pytest.raises(ModelError, match='old: was adapted but not saved'): score(better, home/'gear')


def test_all_photos_include_training_photos(home):
    with pytest.raises(DataError, match='--split test'): compare(home, 'all')


def test_variants_of_training_photos_are_a_warning(home):
    splits = read_splits(home/'new')
    test = splits.index[splits.split == 'test'][0]
    splits.loc[test, 'group'] = splits.group[splits.split == 'train'].iloc[0]
    splits.loc[test, 'digest'] = file_digest(home/'gear'/splits.path[test])
    splits.to_csv(home/'new/splits.csv', index=False)
    with pytest.warns(UserWarning, match='new was trained on variants of'): compare(home)


def test_a_model_without_a_manifest_is_a_warning(home):
    (home/'new/splits.csv').unlink()
    with pytest.warns(UserWarning, match='not known which photos it was trained on'): compare(home)


def test_a_third_model_on_the_test_split_is_a_warning(home):
    compare(home)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compare(home)
    log = pd.read_csv(home/'gear/test-scores.csv')
    log.loc[2] = [log.splits[0], 'third', '']
    log.to_csv(home/'gear/test-scores.csv', index=False)
    with pytest.warns(UserWarning, match='1 other model was scored'): compare(home)


def test_an_unknown_class_and_an_unreadable_photo(home):
    test = read_splits(home/'gear').query("split == 'test'").path.iloc[0]
    (home/'gear'/test).write_text('no photo')
    found = compare(home)
    assert list(found.unreadable) == [test] and f'not read: {test}' in str(found)
    splits = read_splits(home/'gear')
    splits.loc[splits.label == 'boots', 'label'] = 'sandals'
    write_splits(home/'gear', splits, force=True)
    with pytest.raises(DataError, match='neither model has the class sandals'): compare(home)


def test_the_page(home, tmp_path):
    train_model(home/'gear', 'gear_cnn_small', home/'later', epochs=6, progress=False)
    found = compare_models(home/'later', home/'old', home/'gear')
    assert len(found.worse)
    gone = home/'gear'/found.worse.path[0]
    gone.unlink()
    text = write_comparison(found, tmp_path/'out/page.html', n_photos=3).read_text()
    assert text.count('<figure') == min(3, len(found.worse)) - 1 + min(3, len(found.better))
    assert 'http' not in text.replace('http://www.w3.org', '') and found.verdict() in text
