"Reviews that are killed, disturbed, applied and reverted lose nothing"
import errno, json, os, random, re, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gear_fastai.review as review
from gear_fastai.dataset import DataError, read_splits, split_dataset, write_splits
from gear_fastai.inference import GearClassifier
from gear_fastai.model_folder import ModelError
from gear_fastai.review import DecisionLog, ReviewSession, decisions_in, list_to_review
from gear_fastai.sources import draw_sample

SEED = int(os.environ.get('GEAR_SEED', 1))
KILLS = int(os.environ.get('GEAR_KILLS', 3))
ADAPTING = {  # tests that need an adapted model
            'test_new_classes_save_and_digest', 'test_test_photos_are_not_trained_on',
            'test_estimate_needs_random_photos_only', 'test_conflicting_near_duplicates_are_named'}
posix = pytest.mark.skipif(os.name == 'nt', reason='signals and modes of POSIX')
no_root = pytest.mark.skipif(hasattr(os, 'getuid') and os.getuid() == 0, reason='root may write everywhere')


@pytest.fixture(scope='session')
def sample(tmp_path_factory):
    "Twelve classes of three photos; two are loose"
    folder = draw_sample(tmp_path_factory.mktemp('review')/'gear', n=3, size=(64, 96))
    for i, file in enumerate(sorted((folder/'boots').iterdir())[:2]): file.rename(folder/f'loose-{i}.jpeg')
    return folder


@pytest.fixture(scope='session')
def clf(): return GearClassifier()


@pytest.fixture
def folder(sample, tmp_path): return Path(shutil.copytree(sample, tmp_path/'gear'))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings(action='ignore'): yield


@pytest.fixture(autouse=True)
def no_fit(request, monkeypatch):
    "Most tests do not need an adapted model"
    if request.node.name not in ADAPTING: monkeypatch.setattr(ReviewSession, '_adapted', lambda self, decided, x: self.base)


def state(folder):
    "All files but those of the session, with their times, and the folders"
    ours = ('labels.csv', '.review.lock')
    files = {f.relative_to(folder).as_posix(): (f.read_bytes(), f.stat().st_mtime_ns)
             for f in folder.rglob('*') if f.is_file() and f.name not in ours}
    return files, {f.relative_to(folder).as_posix(): f.stat().st_mtime_ns for f in folder.rglob('*') if f.is_dir()}


def same_state(folder, before):
    for now, then in zip(state(folder), before):
        assert now.keys() == then.keys()
        assert [path for path in now if now[path] != then[path]] == []


def decide_all(session, n, label=lambda item: item.label or 'boots'):
    for _ in range(n):
        item = session.current()
        session.decide(item.path, label(item))


# A reviewer in a process of its own. It decides at random; after each confirmed decision it says so.
REVIEWER = '''
import random, sys, warnings
import numpy as np
warnings.simplefilter('ignore')
from gear_fastai.inference import GearClassifier
from gear_fastai.review import ReviewSession
folder, seed, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
ReviewSession._adapt_once = lambda self: None
GearClassifier._rows_of = lambda self, photos: list(np.random.rand(len(photos), 1280).astype('float32'))
session = ReviewSession(folder, every=1000)
print('ready', len(session._log.rows), flush=True)
for i in range(n):
    path = rng.choice(sorted(session._row))
    label = rng.choice(['boots', 'axes', '_none', '_excluded', 'skis, touring'])
    if rng.random() < .1: path, label = session.undo(), ''
    else: session.decide(path, label)
    if path: print('done', path, label, sep='|', flush=True)
'''


@posix
def test_200_decisions_with_kills_lose_and_double_nothing(folder):
    rng = random.Random(SEED)
    n_kills = KILLS if 'GEAR_KILLS' in os.environ else 4
    rows = []
    for i in range(n_kills + 1):
        last = i == n_kills
        args = [sys.executable, '-c', REVIEWER, str(folder), str(rng.randrange(1000)), str(200 - len(rows) if last else 1000)]
        p = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline() == f'ready {len(rows)}\n'
        if not last:
            time.sleep(rng.uniform(0, .03))
            p.kill()
        confirmed = [tuple(line.rstrip('\n').split('|')[1:]) for line in p.stdout if line.endswith('\n')]
        p.wait()
        found = [(row['photo'], row['new']) for row in review._rows((folder/'labels.csv').read_bytes())]
        assert found[:len(rows) + len(confirmed)] == rows + confirmed
        assert len(found) - len(rows) - len(confirmed) in (0, 1)  # written, but killed before it was confirmed
        rows = found
    assert len(rows) >= 200
    with ReviewSession(folder, every=1000) as session:
        assert list(session.decided.items()) == list(dict(decisions_in(session._log.rows)).items())


@pytest.mark.parametrize('cut', range(1, 40, 3))
def test_a_torn_line_is_repaired(tmp_path, cut):
    log = DecisionLog(tmp_path/'labels.csv')
    for i in range(3): log.append(f'a, "{i}".jpg', None, 'boots', 'm')
    log.close()
    whole = log.file.read_bytes()
    log.file.write_bytes(whole[:-cut])
    log = DecisionLog(log.file)
    assert [row['photo'] for row in log.rows] == ['a, "0".jpg', 'a, "1".jpg']
    log.append('b.jpg', 'axes', 'boots', 'm')
    log.close()
    assert len(log.file.read_text().splitlines()) == 4 and log.file.read_text().startswith(','.join(review._COLUMNS))


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b'caf\xe9.jpg')
    log = DecisionLog(tmp_path/'labels.csv')
    log.append(name, None, 'boots', 'm')
    log.close()
    assert DecisionLog(log.file).rows[0]['photo'] == name


def test_another_file_is_no_log(tmp_path):
    (tmp_path/'labels.csv').write_text('path,label\na.jpg,boots\n')
    with pytest.raises(DataError, match='is not a log of decisions'): DecisionLog(tmp_path/'labels.csv')


def test_a_full_disk_does_not_count(folder, clf, monkeypatch):
    with ReviewSession(folder, clf) as session:
        decide_all(session, 2)
        before, item, write = session._log.file.read_bytes(), session.current(), os.write
        def full(fd, line):
            write(fd, line[:7])
            raise OSError(errno.ENOSPC, 'No space left on device')
        monkeypatch.setattr(os, 'write', full)
        with pytest.raises(OSError, match='No space left on device.*the decision does not count'): session.decide(item.path, 'boots')
        monkeypatch.undo()
        assert session._log.file.read_bytes() == before and session.current() == item
        assert session.progress()['decided'] == 2
        monkeypatch.setattr(os, 'write', lambda fd, line: write(fd, line[:7]))
        session.decide(item.path, 'boots')
        monkeypatch.undo()
        assert session._log.file.read_text().endswith(f',boots,{session.digest}\n')


def test_a_log_that_is_gone_does_not_count(folder, clf):
    with ReviewSession(folder, clf) as session:
        (folder/'labels.csv').unlink()
        with pytest.raises(DataError, match='was moved or deleted'): session.decide(session.current().path, 'boots')
        assert session.progress()['decided'] == 0


def test_apply_and_revert_restore_everything(folder, clf):
    write_splits(folder, split_dataset(folder))
    old = read_splits(folder)
    os.utime(folder/'splits.csv', (1e9, 1e9))
    labels = list_to_review(folder)
    new = dict(zip(sorted(p for p in labels if labels[p]), ['_none', '_excluded', 'skis', 'boots', 'tents']))
    with ReviewSession(folder, clf, every=1000) as session:
        before = state(folder)
        for path, label in {**new, 'loose-0.jpeg': 'boots', 'loose-1.jpeg': 'gloves'}.items(): session.decide(path, label)
        plan = session.moves()
        applied = session.apply()
        assert applied == dict(moved=len(plan), none=1, excluded=1) and not session.moves()
        assert all((folder/dest).is_file() and not (folder/src).exists() for src, dest in plan)
        table = read_splits(folder).set_index('path')
        for src, dest in plan:
            if dest.startswith('_excluded'): assert dest not in table.index and src not in table.index
            elif src in set(old.path): assert table.split[dest] == old.set_index('path').split[src]
            else: assert dest in table.index
        same = old[~old.path.isin(dict(plan))].set_index('path')
        assert (table.loc[same.index, ['label', 'split']] == same[['label', 'split']]).all().all()
        assert session.revert() == dict(moved=len(plan))
        same_state(folder, before)
        assert session.progress()['decided'] == 7
        with pytest.raises(DataError, match='nothing to revert'): session.revert()


def test_apply_again(folder, clf):
    path = sorted(path for path, label in list_to_review(folder).items() if label)[0]
    with ReviewSession(folder, clf, every=1000) as session:
        before = state(folder)
        session.decide(path, '_excluded')
        session.apply()
        assert session.apply() == dict(moved=0, none=0, excluded=0)
        session.decide(f'_excluded/{path}', 'skis')
        assert session.apply()['moved'] == 1 and (folder/'skis'/Path(path).name).is_file()
        session.revert()
        session.revert()
        same_state(folder, before)


def test_revert_into_a_folder_that_was_deleted(folder, clf):
    moved = [path for path, label in list_to_review(folder).items() if label == 'axes']
    with ReviewSession(folder, clf, every=1000) as session:
        for path in moved: session.decide(path, 'boots')
        session.apply()
        (folder/'axes').rmdir()
        session.revert()
    assert all((folder/path).is_file() for path in moved)


def test_undo_withdraws_its_warning(folder, clf):
    with ReviewSession(folder, clf, every=1000) as session:
        session.decide('loose-0.jpeg', 'boots')
        session._warning = 'look almost identical'
        session.undo()
        assert session.progress()['warning'] is None


def test_the_lock_of_another_user(folder, clf, monkeypatch):
    real = os.open
    def refuse(file, *args):
        if str(file).endswith('.review.lock'): raise PermissionError(errno.EACCES, 'Permission denied')
        return real(file, *args)
    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(DataError, match='belongs to another user'): ReviewSession(folder, clf)


def test_the_nearest_photo_must_be_the_one_that_was_trained_on(folder, clf):
    path = sorted(path for path in list_to_review(folder) if path.startswith('axes/'))[0]
    near = review.Nearest(path, 'axes', 1.)
    with ReviewSession(folder, clf, every=1000) as session:
        assert session.file_of(near) is None                            # the model was trained on other photos
        x = session._features[[session._row[path]]]
        session.classifier = session.base.adapt(x, ['axes'], paths=[path])
        assert session.file_of(near) == folder/path
        session.classifier = session.base.adapt(-x, ['axes'], paths=[path])
        assert session.file_of(near) is None


def test_decisions_after_apply_survive_revert_and_resume(folder, clf):
    with ReviewSession(folder, clf, every=1000) as session:
        before = state(folder)
        session.decide('loose-0.jpeg', 'gloves')
        session.apply()
        assert session.current().n == 36
        session.decide('gloves/loose-0.jpeg', 'boots')
    with ReviewSession(folder, clf, every=1000) as session:
        assert session.decided == {'gloves/loose-0.jpeg': 'boots'}
        session.revert()
        same_state(folder, before)
        assert session.decided == {'loose-0.jpeg': 'boots'}
    with ReviewSession(folder, clf, every=1000) as session:
        assert session.decided == {'loose-0.jpeg': 'boots'}
        session.undo()
        assert session.decided == {'loose-0.jpeg': 'gloves'}


APPLY = '''
import os, signal, sys, warnings
warnings.simplefilter('ignore')
from gear_fastai.review import ReviewSession
folder, method, allowed = sys.argv[1], sys.argv[2], int(sys.argv[3])
session = ReviewSession(folder, every=1000)
def watch(event, about):
    global allowed
    if event not in ('os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.utime') or folder not in str(about[0]): return
    if not allowed: os.kill(os.getpid(), signal.SIGKILL)
    allowed -= 1
sys.addaudithook(watch)
getattr(session, method)()
os._exit(0)
'''


@posix
@pytest.mark.parametrize('method', ['apply', 'revert'])
def test_killed_between_any_two_changes_of_files(folder, clf, method):
    write_splits(folder, split_dataset(folder))
    with ReviewSession(folder, clf, every=1000) as session:
        before = state(folder)
        for path, label in [('loose-0.jpeg', 'skis'), ('loose-1.jpeg', '_excluded')]: session.decide(path, label)
    for allowed in range(0, 40, 1 if 'GEAR_KILLS' in os.environ else 4):
        if method == 'revert':
            with ReviewSession(folder, clf, every=1000) as session:
                if not session.applied: session.apply()
        code = subprocess.run([sys.executable, '-c', APPLY, str(folder), method, str(allowed)]).returncode
        with ReviewSession(folder, clf, every=1000) as session:
            assert len(session.decided) == 2 - session.applied  # an excluded photo is not listed any more
            if code == 0 and method == 'apply':
                assert session.applied and (folder/'skis/loose-0.jpeg').exists()
                session.revert()
            assert len(session.decided) == 2 - session.applied
            if not session.applied: same_state(folder, before)
            else: assert (folder/'skis/loose-0.jpeg').exists()
        if code == 0: return
    pytest.fail('never finished')


SECOND = '''
import sys
from gear_fastai.review import ReviewSession
try: ReviewSession(sys.argv[1])
except ValueError as e: print(e)
'''


def test_a_second_reviewer_is_refused_and_a_stale_lock_taken_over(folder, clf):
    with ReviewSession(folder, clf):
        said = subprocess.run([sys.executable, '-W', 'ignore', '-c', SECOND, str(folder)], capture_output=True, text=True)
        assert re.search(f'is being reviewed by process {os.getpid()} on .*; close that session first', said.stdout)
        with pytest.raises(DataError, match='by this process'): ReviewSession(folder, clf)
    assert not (folder/'.review.lock').exists()
    (folder/'.review.lock').write_text('999999 elsewhere\n')
    ReviewSession(folder, clf).close()


def test_unreadable_photos_are_counted(folder, clf):
    (folder/'bad.jpg').write_bytes(b'no photo')
    (folder/'boots/empty.jpg').touch()
    with ReviewSession(folder, clf) as session:
        progress = session.progress()
        assert progress['unreadable'] == 2 and progress['n'] == 36
        with pytest.raises(DataError, match='not a photo of this review'): session.decide('bad.jpg', 'boots')


def test_an_empty_folder_and_nothing_left(tmp_path, clf):
    with ReviewSession(tmp_path, clf) as session:
        assert session.current() is None and session.upcoming() is None and session.undo() is None
        assert session.progress()['n'] == 0 and session.go(1) is None
        with pytest.raises(DataError, match='no photos to compare'): session.compare()


def test_the_folder_changes(folder, clf):
    with ReviewSession(folder, clf) as session:
        first = session.current()
        first.file.unlink()
        assert session.current().path != first.path
        assert session.gone == [first.path] and session.progress()['gone'] == 1 and session.progress()['n'] == 35
        with pytest.raises(DataError, match='the file is gone'): session.decide(first.path, 'boots')
        shutil.copy(folder/'loose-0.jpeg', folder/'new.jpeg')
        assert session.refresh() == 1 and session.progress()['n'] == 36


@posix
@no_root
def test_read_only_dataset_for_users(folder, clf, tmp_path): read_only(folder, clf, tmp_path)


def test_read_only_dataset(folder, clf, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode, real=os.access, **kw: real(path, mode, **kw) and not (Path(path) == folder and mode & os.W_OK))
    read_only(folder, clf, tmp_path, chmod=False)


def read_only(folder, clf, tmp_path, chmod=True):
    if chmod: folder.chmod(0o555)
    try:
        with pytest.raises(DataError, match='cannot be written; choose another log with log=') as e: ReviewSession(folder, clf)
        assert '\n' not in str(e.value)
        before = state(folder)
        with ReviewSession(folder, clf, log=tmp_path/'mine.csv') as session:
            decide_all(session, 1)
            with pytest.raises(DataError, match='cannot be written; make it writable'): session.apply()
        assert len(DecisionLog(tmp_path/'mine.csv').rows) == 1 and state(folder) == before
        assert not list(folder.glob('.review*')) and not list(tmp_path.glob('.review*'))
    finally: folder.chmod(0o755)


def test_conflicting_near_duplicates_are_named(folder, clf):
    shutil.copy(folder/'loose-0.jpeg', folder/'copy.jpeg')
    with ReviewSession(folder, clf, every=1000) as session:
        session.decide('loose-0.jpeg', 'boots')
        with pytest.warns(UserWarning, match=r'copy.jpeg \(gloves\) and loose-0.jpeg \(boots\) look almost identical'):
            session.decide('copy.jpeg', 'gloves')
        assert 'almost identical' in session.progress()['warning']
        session.adapt(wait=True)    # the later decision counts
        assert session.progress()['error'] is None and session._trained == {'copy.jpeg'}
        session.decide('copy.jpeg', 'boots')
        assert session.progress()['warning'] is None


def test_near_duplicates_are_not_asked_in_a_row(folder, clf):
    for i in range(3): shutil.copy(folder/'loose-0.jpeg', folder/f'copy-{i}.jpeg')
    with ReviewSession(folder, clf) as session:
        session._values |= {path: (1.9, 'label?') for path in ('loose-0.jpeg', 'copy-0.jpeg', 'copy-1.jpeg', 'copy-2.jpeg')}
        shown = [session.current().path]
        for _ in range(3): shown.append(session.go(1).path)
        assert sum('copy' in path or path == 'loose-0.jpeg' for path in shown) == 1


def test_new_classes_save_and_digest(folder, clf, tmp_path):
    with ReviewSession(folder, clf, every=1000) as session:
        first = session.digest
        session.decide('loose-0.jpeg', 'Ski poles')
        assert session.labels[-1] == 'Ski poles'
        session.decide('loose-1.jpeg', 'BOOTS')
        assert session.decided['loose-1.jpeg'] == 'boots'
        for bad in ('', ' ', 'a/b', '..', '.hidden', '_mine', 'a\nb', None):
            with pytest.raises(DataError, match='not a valid name of a class'): session.decide('loose-1.jpeg', bad)
        saved = GearClassifier(session.save(tmp_path/'better'))
        assert saved.labels[-1] == 'Ski poles' and len(saved.labels) == 13
        assert saved.predict(folder/'loose-0.jpeg').top1 == 'Ski poles'
        assert session.digest != first and session._log.rows[0]['model'] == first
        table = read_splits(tmp_path/'better')
        assert len(table.digest[table.path == 'loose-0.jpeg'].iloc[0]) == 32
        session.undo()
        session.adapt(wait=True)
        session.undo()
        session.adapt(wait=True)
        assert session.digest == first and session.classifier is session.base


def test_test_photos_are_not_trained_on(folder, clf):
    write_splits(folder, split_dataset(folder))
    test = set(read_splits(folder).query('split == "test"').path)
    with ReviewSession(folder, clf, every=1000) as session:
        for path in [*sorted(test), 'axes/nothing']:
            if path in session._row: session.decide(path, session._old[path])
        decide_all(session, 3)
        found = session.compare()
        assert not session._trained & test and found['photos'] == 'test split' and found['n'] == len(test)
        assert found['ci95'][0] <= found['difference'] <= found['ci95'][1]


def test_estimate_needs_random_photos_only(folder, clf):
    with ReviewSession(folder, clf, every=1000) as session:
        assert session.estimate() is None
        order = review.random_order(session._row)
        session.decide(order[1], 'boots')
        assert session.estimate() is None
        session.decide(order[0], session._predictions[order[0]].top1)
        assert session.estimate()['n'] == 2
        session.decide(order[1], '_none')
        assert session.estimate()['n'] == 1 and session.estimate()['accuracy'] == 1
    with ReviewSession(folder, clf, every=1000) as session:
        session.adapt(wait=True)
        assert session.estimate()['n'] == 1


def test_uncertainty_falls_with_the_margin(folder, clf):
    with ReviewSession(folder, clf, every=1000) as session:
        paths = [path for path in session._row if path.startswith('loose')]
        shares = [(.5, .5), (.5, .1), (.9, .1)]
        found = []
        for share in shares:
            p = review.replace(session._predictions[paths[0]], probabilities=dict(zip(clf.labels, share)))
            session._predictions[paths[0]] = p
            found.append(session._uncertainty(paths[0]))
        assert np.allclose(found, [1, .6, .2])
        assert all(0 <= session._uncertainty(path) <= 1 for path in session._row)


def test_arrows_skip_and_come_back(folder, clf):
    with ReviewSession(folder, clf, every=1000) as session:
        a = session.current().path
        assert session.upcoming().path == session.go(1).path != a
        session.decide(session.current().path, 'boots')
        assert session.go(-1).path != a and session.go(-1).path == a
        session.decide(a, 'axes')
        assert session.current().path not in session.decided
        while item := session.current(): session.decide(item.path, 'boots')
        progress = session.progress()
        assert progress['remaining'] == 0 and progress['decided'] == progress['n'] == 36
        assert session.go(-1).decided == 'boots' and session.go(1) is None


def test_a_failed_adaptation_is_reported(folder, clf, monkeypatch):
    with ReviewSession(folder, clf, every=2) as session:
        monkeypatch.setattr(session, '_adapted', lambda decided, x: 1/0)
        decide_all(session, 2)
        session.adapt(wait=True)
        assert session.progress()['error'] == 'division by zero'
        with pytest.raises(ModelError, match='could not be adapted: division by zero'): session.save(folder/'m')
        monkeypatch.undo()
        session.adapt(wait=True)
        assert session.progress()['error'] is None and session.version == 1


def test_a_changed_manifest_is_not_overwritten(folder, clf):
    write_splits(folder, split_dataset(folder))
    with ReviewSession(folder, clf, every=1000) as session:
        session.decide('loose-0.jpeg', 'boots')
        session.apply()
        (folder/'splits.csv').write_text((folder/'splits.csv').read_text() + '\n')
        with pytest.raises(DataError, match='was changed after the photos were moved'): session.revert()
        (folder/'.review.json').unlink()            # as the message says
        with pytest.raises(DataError, match='nothing to revert'): session.revert()


def test_a_failed_apply_changes_nothing(folder, clf, monkeypatch):
    with ReviewSession(folder, clf, every=1000) as session:
        for path in ('loose-0.jpeg', 'loose-1.jpeg'): session.decide(path, 'skis')
        before, rename = state(folder), os.rename
        def fail(src, dest):
            if Path(dest).name == 'loose-1.jpeg' and Path(dest).parent.name == 'skis': raise OSError(errno.ENOSPC, 'No space left on device')
            rename(src, dest)
        monkeypatch.setattr(os, 'rename', fail)
        with pytest.raises(OSError, match='No space'): session.apply()
        same_state(folder, before)
        assert not session.applied


def test_names_that_are_taken(folder, clf):
    shutil.copy(folder/'loose-0.jpeg', folder/'gloves/loose-0.jpeg')
    with ReviewSession(folder, clf, every=1000) as session:
        before = state(folder)
        session.decide('loose-0.jpeg', 'gloves')
        assert session.moves() == [('loose-0.jpeg', 'gloves/loose-0-1.jpeg')]
        session.apply()
        session.revert()
        same_state(folder, before)


def test_labels_in_a_manifest(tmp_path, sample, clf):
    "Photos that a manifest labels stay where they are"
    paths = []
    for i, file in enumerate(sorted(sample.glob('*/*.jpeg'))):
        (tmp_path/'images').mkdir(exist_ok=True)
        shutil.copy(file, tmp_path/f'images/{i}.jpeg')
        paths.append((f'images/{i}.jpeg', file.parent.name))
    pd.DataFrame(paths, columns=['path', 'label']).to_csv(tmp_path/'splits.csv', index=False)
    with ReviewSession(tmp_path, clf, every=1000) as session:
        before = state(tmp_path)
        assert session._old['images/0.jpeg'] == 'axes'
        session.decide('images/0.jpeg', 'boots')
        assert session.moves() == [] and session.apply()['moved'] == 0
        table = read_splits(tmp_path).set_index('path')
        assert table.label['images/0.jpeg'] == 'boots' and (tmp_path/'images/0.jpeg').exists()
        session.revert()
        assert state(tmp_path) == before


def test_a_dataset_that_comes_split(tmp_path, sample, clf):
    for side in ('train', 'test'): shutil.copytree(sample, tmp_path/side, ignore=shutil.ignore_patterns('loose*'))
    shutil.copy(sample/'loose-0.jpeg', tmp_path/'new.jpeg')
    with ReviewSession(tmp_path, clf, every=1000) as session:
        path = next(path for path in session._row if path.startswith('test/axes/'))
        session.decide(path, 'boots')
        session.decide('new.jpeg', 'gloves')
        assert dict(session.moves()) == {path: path.replace('axes', 'boots'), 'new.jpeg': 'train/gloves/new.jpeg'}
        session.decide('new.jpeg', '_none')
        assert session.apply() == dict(moved=2, none=1, excluded=0)


def test_a_model_of_format_1(folder, tmp_path):
    from gear_fastai.files import bundled_model
    old = Path(shutil.copytree(bundled_model(), tmp_path/'old'))
    gear = json.loads((old/'gear.json').read_text())
    (old/'gear.json').write_text(json.dumps(gear | dict(format=1)))
    (old/'reference.safetensors').unlink()
    with pytest.raises(ModelError, match='format 1') as e: ReviewSession(folder, old)
    assert '\n' not in str(e.value) and not (folder/'.review.lock').exists()


def test_torch_is_not_needed():
    code = "import sys, gear_fastai.review; assert not {'torch', 'fastai', 'sklearn.linear_model'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)
