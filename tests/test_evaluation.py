"Evaluations of photos seen in training, of changed folders and of unusual class names; reports"
import dataclasses, json, os, re, shutil, subprocess, sys, warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest
from matplotlib.figure import Figure
from PIL import Image

from gear_fastai.dataset import DataError, file_digest, read_splits, split_dataset, write_splits
from gear_fastai.evaluation import evaluate, manifest_of, score_ood, seen_in_training
from gear_fastai.sources import merge_datasets
from gear_fastai.photo import list_photos
from gear_fastai.recipes import train_model
from gear_fastai.report import plot_reliability, show_occlusion, write_report
from gear_fastai.sources import draw_sample
from gear_fastai.inference import GearClassifier


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A drawn dataset and a model of one epoch, with file_digests in its manifest"
    home = tmp_path_factory.mktemp('trained')
    data = draw_sample(home/'gear', n=8)
    train_model(data, 'gear_cnn_small', home/'mine', epochs=1, progress=False)
    splits = read_splits(home/'mine')
    if 'digest' not in splits:
        splits['digest'] = [file_digest(data/p) if s != 'test' else '' for p, s in zip(splits.path, splits.split)]
        splits.to_csv(home/'mine/splits.csv', index=False)
    return home


@pytest.fixture
def home(trained, tmp_path):
    "A copy to change"
    shutil.copytree(trained, tmp_path/'copy')
    return tmp_path/'copy'


def scored(*args):
    "An evaluation and its warnings"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        ev = evaluate(*args)
    return ev, [str(w.message) for w in caught if 'gear_fastai' in w.filename]


def trained_on(home): return read_splits(home/'mine').query("split != 'test'")


def test_nothing_is_seen_in_the_models_own_test_split(home):
    ev, told = scored(home/'mine', home/'gear')
    assert (ev.seen_in_training, told) == (0, []) and f'trained on 0 of the {ev.n} photos' in str(ev)


def test_the_validation_split_is_not_seen(home):
    ev, told = scored(home/'mine', home/'gear', 'valid')
    assert (ev.seen_in_training, told) == (0, [])


def test_training_photos_are_found_after_another_split(home):
    write_splits(home/'gear', split_dataset(home/'gear', seed=5), force=True)
    test = read_splits(home/'gear').query("split == 'test'")
    ev, told = scored(home/'mine', home/'gear')
    assert ev.seen_in_training >= ev.trained_on == test.path.isin(trained_on(home).path).sum() > 0
    assert f'trained on {ev.trained_on} of the {ev.n} photos' in told[0] and f'trained on {ev.trained_on} of the {ev.n} photos' in str(ev)
    assert ev.to_dict()['seen_in_training'] == ev.seen_in_training


def test_training_photos_are_found_after_moves_and_renames(home):
    splits = read_splits(home/'mine')
    for k, (path, label) in enumerate(zip(splits.path, splits.label)):
        (home/'moved'/label).mkdir(parents=True, exist_ok=True)
        shutil.copy(home/'gear'/path, home/f'moved/{label}/{k}.jpg')
    ev, _ = scored(home/'mine', home/'moved', 'all')
    assert ev.trained_on == len(trained_on(home)) < ev.n


def test_training_photos_are_found_in_a_merged_dataset(home):
    merge_datasets([home/'gear', draw_sample(home/'other', n=2, seed=3)], home/'merged')
    ev, _ = scored(home/'mine', home/'merged', 'all')
    found = {file_digest(home/'merged'/p) for p in ev.predictions.path[ev.predictions.trained_on]}
    assert set(trained_on(home).digest) == found and ev.trained_on <= ev.seen_in_training < ev.n
    (home/'merged/splits.csv').unlink(missing_ok=True)
    write_splits(home/'merged', split_dataset(home/'merged', seed=5))
    ev, told = scored(home/'mine', home/'merged')
    assert ev.seen_in_training > 0 and any('was trained on' in t for t in told)


def table(paths, group, digest=None, split='train'):
    df = pd.DataFrame(dict(path=paths, label=[p.split('/')[0] for p in paths], group=group, split=split))
    return df if digest is None else df.assign(digest=digest)


def test_another_photo_of_the_same_name_is_not_seen(tmp_path):
    (tmp_path/'boots').mkdir()
    (tmp_path/'boots/1.jpg').write_bytes(b'another')
    assert not seen_in_training(table(['boots/1.jpg'], [0], ['0'*32]), tmp_path, table(['boots/1.jpg'], [0])).seen.any()


def test_variants_are_seen_where_the_models_own_split_tore_a_group(tmp_path):
    model = table(['boots/1.jpg', 'boots/2.jpg', 'boots/3.jpg'], [0, 0, 1], ['0'*32, '', ''], ['train', 'test', 'test'])
    assert seen_in_training(model, tmp_path, model[1:]).seen.tolist() == [True, False]


def test_a_group_of_the_manifest_tells_though_its_other_photos_are_not_scored(tmp_path):
    (tmp_path/'boots').mkdir()
    (tmp_path/'boots/a.jpg').write_bytes(b'trained on')
    manifest = table(['boots/a.jpg', 'boots/b.jpg', 'boots/c.jpg'], [4, 4, 5], split=['train', 'test', 'test'])
    model = table(['shoes/x.jpg'], [0], [file_digest(tmp_path/'boots/a.jpg')])
    assert seen_in_training(model, tmp_path, manifest[1:], manifest).seen.tolist() == [True, False]


def test_a_model_without_digests_is_compared_by_path_and_product(tmp_path):
    model = table(['boots/1.jpg', 'boots/777x1_zm.jpg'], [0, 1])
    found = table(['boots/1.jpg', 'boots/shop/777x2_zm.jpg', 'boots/2.jpg'], [0, 1, 2])
    assert seen_in_training(model, tmp_path, found).seen.tolist() == [True, True, False]


def test_a_model_that_does_not_know_its_training_photos_says_so(home):
    (home/'mine/splits.csv').unlink()
    ev, told = scored(home/'mine', home/'gear')
    assert ev.seen_in_training is None and 'not known' in ev.seen_words() and any('not known' in t for t in told)


def test_gone_and_new_photos_are_told_in_one_warning(home):
    test = read_splits(home/'gear').query("split == 'test'").path.tolist()
    (home/'gear'/test[0]).unlink()
    shutil.copy(home/'gear'/test[1], home/'gear/boots/new.jpg')
    ev, told = scored(home/'mine', home/'gear')
    assert ev.n == len(test) - 1 and not ev.unreadable
    assert len(told) == 1 and test[0] in told[0] and 'boots/new.jpg' in told[0]
    for path in test: (home/'gear'/path).unlink(missing_ok=True)
    with pytest.raises(DataError, match='all photos of this split are gone'): scored(home/'mine', home/'gear')


def test_one_class_can_be_scored_and_the_others_are_named(home):
    shutil.copytree(home/'gear/boots', home/'one/boots')
    ev, _ = scored(home/'mine', home/'one', 'all')
    assert ev.n == 8 and list(ev.per_class) == ['boots'] and 'no photos of: axes' in str(ev)


def test_photos_of_a_class_that_the_model_does_not_know(home):
    shutil.copytree(home/'gear/boots', home/'one/sandals')
    with pytest.raises(DataError, match='no class sandals.*--ood'): evaluate(home/'mine', home/'one', 'all')
    os.rename(home/'one/sandals', home/'one/_none')
    shutil.copytree(home/'gear/boots', home/'one/boots')
    ev, told = scored(home/'mine', home/'one', 'all')
    assert ev.n == 8 and list(ev.per_class) == ['boots'] and ev.ood['all']['n'] == 8 and list(ev.ood) == ['all']
    assert not any('_none' in t for t in told) and set(ev.predictions.label) == {'boots'} and 'OOD images' in str(ev)


def test_a_folder_without_a_manifest_is_told_of_all(home):
    other = draw_sample(home/'other folder', n=2, seed=3)
    with pytest.raises(DataError, match="split='all'.*'.*other folder'"): evaluate(home/'mine', other)
    (home/'gear/splits.csv').unlink()
    assert len(manifest_of(home/'gear', read_splits(home/'mine'))) == 96          # these are the model's photos


def test_the_use_of_the_test_split_is_announced(home):
    ev, _ = scored(home/'mine', home/'gear')
    assert ev.noted == str(home/'gear/test-scores.csv') and Path(ev.noted).is_file() and ev.noted in str(ev)
    assert scored(home/'mine', home/'gear', 'all')[0].noted is None


def test_accuracy_says_that_it_counts_rejected_photos(home):
    ev, _ = scored(home/'mine', home/'gear')
    labeled = ~ev.predictions.rejected
    assert 'rejected photos included' in str(ev) and 'coverage' in str(ev)
    assert ev.coverage == labeled.mean()
    assert not labeled.any() or ev.selective_accuracy == (ev.predictions.label == ev.predictions.top1)[labeled].mean()


def test_only_wrong_predictions_are_most_wrong(home):
    ev, _ = scored(home/'mine', home/'gear', 'all')
    wrong = ev.top_losses(len(ev.predictions))
    assert (wrong.label != wrong.top1).all() and len(wrong) == round((1 - ev.accuracy)*ev.n)
    right = dataclasses.replace(ev, accuracy=1., predictions=ev.predictions.assign(top1=ev.predictions.label))
    text = write_report(right, GearClassifier(home/'mine'), home/'gear', home/'report.html').read_text()
    assert 'the most probable class is right for all' in text


def test_class_names_are_drawn_as_they_are(home):
    ev, _ = scored(home/'mine', home/'gear')
    odd = dataclasses.replace(ev, labels=['$50_to_$100', '$\\frac{', '靴', 'ジャケット', 'a_b^c', *ev.labels[5:]])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        fig = Figure(layout='constrained')
        ax = odd.plot_confusion(fig.subplots())
        fig.savefig(os.devnull, format='png')
    assert [t.get_text() for t in ax.get_xticklabels()][:2] == ['$50_to_$100', '$\\frac{']
    assert len(told) <= 1 and all('no installed font' in str(w.message) for w in told)


def test_an_unknown_backend_is_named_and_ignored():
    script = "from gear_fastai.plots import subplots; subplots()[0].savefig('/dev/null', format='png')"
    for backend in ('nonsense', 'module://no_such_backend'):
        done = subprocess.run([sys.executable, '-c', script], env=os.environ | dict(MPLBACKEND=backend), capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr.count('Warning') == 1 and backend.removeprefix('module://') in done.stderr, done.stderr


def test_a_report_needs_no_backend(home, monkeypatch):
    def figure(**kwargs): raise ImportError("no module named 'tkinter'")
    monkeypatch.setattr('matplotlib.pyplot.figure', figure)
    ev, _ = scored(home/'mine', home/'gear')
    assert write_report(ev, GearClassifier(home/'mine'), home/'gear', home/'report.html').stat().st_size > 10_000
    with pytest.warns(UserWarning, match='tkinter'): plot_reliability(ev).figure.savefig(home/'r.png')


def test_a_dataset_without_a_manifest_is_scored_with_the_models(home):
    before, _ = scored(home/'mine', home/'gear')
    (home/'gear/splits.csv').unlink()
    assert scored(home/'mine', home/'gear') == (dataclasses.replace(before, noted=None), [])


def test_unreadable_photos_are_listed_and_not_scored(home):
    other = draw_sample(home/'other', n=2, seed=3)
    (other/'boots/bad.jpg').write_bytes(b'x')
    ev, _ = scored(home/'mine', other, 'all')
    assert (ev.n, list(ev.unreadable), len(ev.predictions)) == (24, ['boots/bad.jpg'], 24)
    assert 'not read: boots/bad.jpg' in str(ev)
    for photo in list_photos(other): photo.write_bytes(b'x')
    with pytest.raises(DataError, match='none of the 25 photos could be read'): evaluate(home/'mine', other, 'all')


def test_metrics_agree_with_each_other_and_are_plain_json(home):
    ev, _ = scored(home/'mine', home/'gear')
    assert np.sum(ev.confusion) == ev.n and np.trace(ev.confusion) == round(ev.accuracy*ev.n)
    assert ev.macro_f1 == pytest.approx(np.mean([row['f1'] for row in ev.per_class.values()]))
    assert ev.macro_f1_ci95[0] <= ev.macro_f1 <= ev.macro_f1_ci95[1] and (ev.per_domain, ev.ood) == ({}, {})
    assert {'n', 'accuracy', 'accuracy_ci95', 'macro_f1', 'per_class', 'coverage', 'selective_accuracy'} <= set(ev.to_dict())
    assert json.loads(json.dumps(ev.to_dict()))['per_class'] == ev.per_class


def add_none(folder, kinds=('far', 'near'), n=8):
    "Noise in `_none/<kind>`"
    for k, kind in enumerate(kinds):
        (folder/'_none'/kind).mkdir(parents=True)
        for i in range(n):
            pixels = np.random.default_rng(100*k + i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder/f'_none/{kind}/{i}.png')


def test_ood_images_of_the_scored_split(home):
    before, _ = scored(home/'mine', home/'gear')
    add_none(home/'gear')
    ev, told = scored(home/'mine', home/'gear')
    assert (ev.ood, told) == ({}, [])                              # an older manifest does not list them
    write_splits(home/'gear', split_dataset(home/'gear', existing=read_splits(home/'gear')), force=True)
    ev, told = scored(home/'mine', home/'gear')
    assert (ev.n, ev.accuracy, ev.per_class, ev.confusion) == (before.n, before.accuracy, before.per_class, before.confusion)
    splits = read_splits(home/'gear')
    assert ev.ood['all']['n'] == sum((splits.label == '_none') & (splits.split == 'test')) > 0
    all_photos, _ = scored(home/'mine', home/'gear', 'all')
    assert {kind: row['n'] for kind, row in all_photos.ood.items()} == dict(far=8, near=8, all=16)
    assert all(0 <= row['auroc'] <= 1 and 0 <= row['rejected'] <= 1 for row in all_photos.ood.values())
    assert json.loads(json.dumps(all_photos.to_dict()))['ood'] == all_photos.ood
    (home/'gear/_none/far/0.png').write_bytes(b'x')
    assert scored(home/'mine', home/'gear', 'all')[0].ood['far']['n'] == 7


def test_a_none_folder_alone_cannot_be_scored(home):
    add_none(home/'alone')
    with pytest.raises(DataError, match='a _none folder alone'): evaluate(home/'mine', home/'alone', 'all')
    shutil.copytree(home/'gear/boots', home/'alone/boots')
    for photo in list_photos(home/'alone/boots'): photo.write_bytes(b'x')
    with pytest.raises(DataError, match='none of the 8 photos could be read'): evaluate(home/'mine', home/'alone', 'all')


def test_domains_are_compared(home):
    merge_datasets([draw_sample(home/'shop', n=2, seed=3), one_class(home, 'outdoor')], home/'merged')
    ev, _ = scored(home/'mine', home/'merged', 'all')
    assert {domain: row['n'] for domain, row in ev.per_domain.items()} == dict(shop=24, outdoor=2)
    for domain, row in ev.per_domain.items():
        part = ev.predictions[ev.predictions.domain == domain]
        assert row['accuracy'] == (part.label == part.top1).mean() and row['coverage'] == 1 - part.rejected.mean()
        assert {'selective_accuracy', 'calibration_error'} <= set(row)
    assert 'outdoor' in str(ev) and json.loads(json.dumps(ev.to_dict()))['per_domain'] == ev.per_domain
    splits = split_dataset(home/'merged')
    write_splits(home/'merged', splits.assign(domain=['a' if 'outdoor' in path else 'b' for path in splits.path]))
    assert set(scored(home/'mine', home/'merged', 'all')[0].per_domain) == {'a', 'b'}
    assert 'Per domain' in write_report(ev, GearClassifier(home/'mine'), home/'merged', home/'r.html').read_text()


def one_class(home, name):
    "A dataset with photos of one class"
    boots = draw_sample(home/'more', n=2, seed=5)/'boots'
    shutil.copytree(boots, home/name/'boots')
    return home/name


def test_risk_falls_with_coverage_if_the_score_is_right(home):
    ev, _ = scored(home/'mine', home/'gear', 'all')
    correct = ev.predictions.label == ev.predictions.top1
    perfect = dataclasses.replace(ev, predictions=ev.predictions.assign(score=correct.astype(float)))
    curve = perfect.risk_coverage()
    assert len(curve) == ev.n and curve.risk.is_monotonic_increasing and curve.risk.iloc[-1] == pytest.approx(1 - ev.accuracy)
    no_score = dataclasses.replace(ev, predictions=ev.predictions.assign(score=np.nan))
    by_confidence = ev.predictions.sort_values('confidence', ascending=False).iloc[0]
    assert no_score.risk_coverage().risk.iloc[0] == float(by_confidence.label != by_confidence.top1)
    assert no_score.plot_risk_coverage(Figure().subplots()).get_ylabel() == 'risk'


# ---- reports

def report(home, ev, **kwargs):
    return write_report(ev, GearClassifier(home/'mine'), home/'gear', home/'report.html', **kwargs).read_text()


def test_names_are_escaped_in_a_report(home):
    ev, _ = scored(home/'mine', home/'gear')
    hostile = '<script>alert("\'1\'")</script>&'
    labels = [hostile, '$a_b$', *ev.labels[2:]]
    rename = dict(zip(ev.labels, labels))
    per_class = {rename[label]: row for label, row in ev.per_class.items()}
    predictions = ev.predictions.replace(dict(label=rename, top1=rename))
    odd = dataclasses.replace(ev, labels=labels, per_class=per_class, predictions=predictions,
                              unreadable={'boots/\udce9.jpg': hostile}, ood={hostile: dict(n=1, auroc=.5, rejected=0.)},
                              per_domain={hostile: dict(n=1, accuracy=1., coverage=0., selective_accuracy=None, calibration_error=.1)})
    text = report(home, odd)
    assert '<script' not in text and '&lt;script&gt;' in text and '$a_b$' in text and r'boots/\udce9.jpg' in text


def test_a_report_needs_no_other_file(home):
    ev, _ = scored(home/'mine', home/'gear')
    text = report(home, ev, n_errors=2, splits=read_splits(home/'mine'))
    assert 'lang="en"' in text and 'prefers-color-scheme: dark' in text
    assert '<link' not in text and not re.search(r'url\((?!#)', text)
    assert text.count('src=') == text.count('src="data:image/jpeg;base64,') == text.count('alt="') == 6


def test_a_report_with_every_photo_rejected_or_gone(home):
    ev, _ = scored(home/'mine', home/'gear')
    shutil.rmtree(home/'gear/boots')
    none = dataclasses.replace(ev, coverage=0., selective_accuracy=None, predictions=ev.predictions.assign(rejected=True))
    text = report(home, none)
    assert 'not sure about any' in text and 'Selective accuracy' not in text


def test_images_that_cannot_be_compared(home):
    ev, _ = scored(home/'mine', home/'gear')
    clf = GearClassifier(home/'mine')
    (home/'empty').mkdir()
    with pytest.raises(DataError, match='no readable images'): score_ood(clf, home/'empty', ev)
    assert score_ood(clf, home/'gear/boots', ev).index.tolist() == ['all']


def test_occlusion_maps_are_shown_beside_the_photos(home):
    ev, _ = scored(home/'mine', home/'gear')
    fig = show_occlusion(GearClassifier(home/'mine'), ev.predictions.head(2), home/'gear', cols=2)
    assert [ax.images[0].get_array().shape for ax in fig.axes] == [(240, 480, 3)]*2


def test_the_nearest_training_photo_is_shown(home, monkeypatch):
    ev, _ = scored(home/'mine', home/'gear')
    predict = GearClassifier.predict

    def with_nearest(self, photo):
        p = predict(self, photo)
        nearest = SimpleNamespace(path='../outside.png' if outside else ev.predictions.path[0], label='<b>', similarity=.5)
        object.__setattr__(p, 'nearest', nearest)
        return p
    monkeypatch.setattr(GearClassifier, 'predict', with_nearest)
    outside = False
    text = report(home, ev, n_errors=2)
    assert text.count('src=') == 6 and text.count('looks like') == 4 and '(&lt;b&gt;)' in text
    outside = True
    Image.new('RGB', (40, 40)).save(home/'outside.png')
    text = report(home, ev, n_errors=2)
    assert text.count('src=') == 4 and text.count('looks like outside.png') == 2
