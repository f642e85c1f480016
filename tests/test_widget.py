"Saved photos, corrections and messages of the uploader"
import csv, errno, io, os

import numpy as np, pytest
from PIL import Image

import gear_fastai.widget as widget
from gear_fastai.dataset import file_digest, read_splits
from gear_fastai.inference import GearClassifier, Prediction
from gear_fastai.photo import list_photos
from gear_fastai.sources import draw_sample
from gear_fastai.widget import GearUploader, save_photo


def picture(format='JPEG', size=(8, 8), **kwargs):
    Image.new('RGB', size, 'red').save(raw := io.BytesIO(), format, **kwargs)
    return raw.getvalue()


def files(folder): return sorted(f.relative_to(folder).as_posix() for f in folder.rglob('*') if f.is_file())


@pytest.mark.parametrize('why', [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
def test_photos_are_saved_without_hard_links(tmp_path, monkeypatch, why):
    def link(*args, **kwargs): raise OSError(why, os.strerror(why))
    monkeypatch.setattr(os, 'link', link)
    for want in ('a.jpg', 'a-1.jpg'): assert save_photo(picture(), 'a.jpg', 'axes', tmp_path).name == want
    assert files(tmp_path) == ['axes/a-1.jpg', 'axes/a.jpg'] and (tmp_path/'axes/a.jpg').read_bytes() == picture()


def test_photos_are_saved_on_shares_without_modes(tmp_path, monkeypatch):
    def chmod(*args, **kwargs): raise PermissionError(errno.EPERM, 'Operation not permitted')
    monkeypatch.setattr(os, 'chmod', chmod)
    assert save_photo(picture(), 'a.jpg', 'axes', tmp_path).is_file()


@pytest.mark.parametrize('step', ['write', 'replace'])
def test_a_photo_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch, step):
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    if step == 'replace': monkeypatch.setattr(os, 'replace', full)
    else: monkeypatch.setattr(widget, 'open', lambda *a: FullDisk(*a) if a[1] == 'wb' else open(*a), raising=False)
    with pytest.raises(OSError, match='No space'): save_photo(picture(), 'a.jpg', 'axes', tmp_path)
    assert files(tmp_path) == []


class FullDisk(io.FileIO):
    def write(self, raw):
        super().write(raw[:10])
        raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('name', ['ジャケット' * 60 + '.jpg', 'é' * 300, '🧗' * 90 + '.jpeg', 'x' * 300 + '.tiff', 'a.' + 'b' * 300])
def test_names_fit_into_255_bytes_with_a_counter(tmp_path, name):
    for _ in range(2): path = save_photo(picture(), name, 'axes', tmp_path)
    assert path.stem.endswith('-1') and len(os.fsencode(path.name)) <= 255


@pytest.mark.parametrize('name, want', [
    ('CON', '_CON.jpeg'), ('nul.jpg', '_nul.jpg'), ('com1.tar.jpg', '_com1.tar.jpg'), ('console.jpg', 'console.jpg'), ('a. .jpg', 'a.jpg'), ('photo.', 'photo.jpeg'),
    ('16:05:12.jpg', '16_05_12.jpg'), ('a<b>|"?*.jpg', 'a_b_____.jpg'), ('...', 'photo.jpeg'), ('. .jpg', 'photo.jpg'), ('C:\\photos\\a.jpg', 'a.jpg'), ('\x00\n', 'photo.jpeg')])
def test_names_can_be_stored_on_every_system(tmp_path, name, want):
    assert save_photo(picture(), name, 'axes', tmp_path).name == want


@pytest.mark.parametrize('label', ['', '.', '..', '.git', 'a/b', '/etc'])
def test_labels_that_are_no_folder_names_are_refused(tmp_path, label):
    with pytest.raises(ValueError, match='not a valid name for a class folder'): save_photo(picture(), 'a.jpg', label, tmp_path)


def test_only_pictures_are_saved(tmp_path):
    with pytest.raises(OSError): save_photo(b'no picture', 'a.jpg', 'axes', tmp_path)
    assert files(tmp_path) == []


def test_pictures_of_a_camera_with_a_preview_keep_a_suffix_that_is_listed(tmp_path):
    raw = picture('MPO', save_all=True, append_images=[Image.new('RGB', (4, 4))])
    assert save_photo(raw, 'photo', 'axes', tmp_path).suffix == '.jpeg'


# ---- corrections

class Page:
    "The page's side of an uploader"
    def __init__(self, uploader):
        self.uploader = uploader
        self.replies = []
        uploader.send = lambda message, buffers=None: self.replies.append(message)

    def say(self, **msg):
        self.uploader._receive(None, msg, [memoryview(msg.pop('raw'))] if 'raw' in msg else [])
        return self.replies[-1]

    def drop(self, id='a', label=None, name=None): return self.say(kind='part', id=id, name=name or f'{id}.jpg', label=label, first=True, last=True, raw=picture())

    def send_file(self, photo, id=None, label=None):
        return self.say(kind='part', id=id or photo.name, name=photo.name, label=label, first=True, last=True, raw=photo.read_bytes())

    def improve(self): self._wait(kind='improve')
    def save(self, name): self._wait(kind='save', name=name)

    def _wait(self, **msg):
        self.say(**msg)
        self.uploader._thread.join()

    def table(self): return list(csv.DictReader(io.StringIO(self.uploader.to_csv())))


@pytest.fixture
def page(tmp_path):
    page = Page(GearUploader(save_to=tmp_path/'corrected', models=tmp_path/'models'))
    page.drop()
    entry = page.uploader._entries['a']
    entry.prediction = Prediction('crampons', .9, {'crampons': .9, 'axes': .1}, 'a.jpg')
    entry.features = None                       # this prediction stays
    return page


def corrected(page): return files(page.uploader._fixed_folder or widget.Path(page.uploader.save_to))


def test_a_correction_is_everywhere(page):
    page.drop(label='axes')
    row, (p,) = page.table()[0], page.uploader.predictions
    assert (row['label'], row['top1'], row['corrected'], row['confidence']) == ('axes', 'crampons', 'corrected', '0.9')
    assert (p.label, p.predicted, p.correction, p.confidence) == ('axes', 'crampons', 'corrected', .9)
    assert str(p) == 'a.jpg: axes (corrected, predicted: crampons 90.0%)'
    known = page.say(kind='hello')['predictions'][0]
    assert (known['label'], known['predicted'], known['corrected'], known['path']) == ('axes', 'crampons', 'corrected', 'corrected/axes/a.jpg')


def test_undone_there_is_no_trace(page):
    before = page.table()
    page.drop(label='axes')
    assert page.say(kind='relabel', id='a', label='')['path'] is None
    assert page.table() == before and corrected(page) == [] and page.uploader.predictions[0].label == 'crampons'
    assert page.say(kind='relabel', id='a', label='')['error'] is None           # once more changes nothing


def test_undo_after_the_file_was_removed_by_hand(page, tmp_path):
    page.drop(label='axes')
    (tmp_path/'corrected/axes/a.jpg').unlink()
    assert page.say(kind='relabel', id='a', label='')['error'] is None and page.table()[0]['label'] == 'crampons'


def test_the_same_label_twice_is_one_file(page):
    for _ in range(2): page.drop(label='axes')
    assert corrected(page) == ['axes/a.jpg']


def test_a_rejected_photo_has_its_most_probable_class_in_the_table(page):
    page.uploader._entries['a'].prediction = Prediction(None, .6, {'axes': .6, 'tents': .4}, 'a.jpg')
    row = page.table()[0]
    assert (row['label'], row['top1'], row['corrected']) == ('', 'axes', '')
    page.drop(label='axes')
    row = page.table()[0]
    assert (row['label'], row['top1'], row['corrected']) == ('axes', 'axes', 'corrected')     # the model did not name it


def test_a_correction_that_cannot_be_saved_changes_nothing(page, monkeypatch):
    page.drop(label='axes')
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device', 'corrected/rope')
    with monkeypatch.context() as m:
        m.setattr(widget, 'save_photo', full)
        reply = page.drop(label='rope')
    assert reply['error'] == 'a.jpg: could not be saved (No space left on device: corrected/rope)' and reply['label'] == 'axes'
    assert page.table()[0]['label'] == 'axes' and corrected(page) == ['axes/a.jpg']


def test_a_file_that_cannot_be_removed_stays_the_correction(page, monkeypatch):
    page.drop(label='axes')
    def locked(path): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    with monkeypatch.context() as m:
        m.setattr(widget, '_remove', locked)
        for reply in (page.drop(label='rope'), page.say(kind='relabel', id='a', label='')):
            assert 'Permission denied' in reply['error'] and reply['label'] == 'axes'
    assert page.table()[0]['label'] == 'axes' and corrected(page) == ['axes/a.jpg']


def test_a_photo_that_was_cleared_is_not_saved(page):
    page.say(kind='clear')
    assert 'was cleared' in page.drop(label='axes')['error'] and not widget.Path(page.uploader.save_to).exists()


def test_a_page_without_the_photo_moves_the_saved_one(page):
    assert 'drop it again' in page.say(kind='relabel', id='a', label='rope')['error']
    page.drop(label='axes')
    assert page.say(kind='relabel', id='a', label='rope')['path'] == 'corrected/rope/a.jpg' and corrected(page) == ['rope/a.jpg']


def test_photos_of_two_windows_may_come_in_turns(page):
    raw = picture()
    for part, first in ((raw[:100], True), (raw[100:], False)):
        for id in ('b', 'c'): page.say(kind='part', id=id, name=f'{id}.jpg', first=first, last=not first, raw=part)
    assert [p.error for p in page.uploader.predictions[1:]] == [None, None]


def test_classes_called_like_columns_have_columns_of_their_own(page):
    names = ['path', 'label', 'confidence', 'top1', 'corrected', 'error', 'a,b', '$50']
    page.uploader._entries['a'].prediction = Prediction('error', .5, {name: .5 for name in names}, 'a.jpg')
    header, row = list(csv.reader(io.StringIO(page.uploader.to_csv())))[:2]
    assert len(set(header)) == len(header) == len(row)
    assert all(dict(zip(header, row))[name] == '0.5' for name in ('class path', 'class error', 'a,b', '$50'))


def test_probabilities_of_a_former_model_stay_in_the_table(page):
    page.uploader._entries['a'].prediction = Prediction('left', .8, {'left': .8, 'right': .2}, 'a.jpg')
    assert page.table()[0]['left'] == '0.8' and page.table()[0]['axes'] == ''


@pytest.mark.parametrize('label, why', [
    ('../up', 'not a valid name'), ('/etc', 'not a valid name'), ('.git', 'not a valid name'), ('a\nb', 'not a valid name'),
    ('_other', 'must not begin with "_"'), ('x'*300, 'could not be saved')])
def test_a_class_whose_name_is_not_valid_is_refused(page, label, why):
    assert why in page.drop(label=label)['error'] and corrected(page) == []


@pytest.mark.parametrize('said, label', [('_none', '_none'), ('ladders', 'ladders'), (' Ice axes ', 'Ice axes'), ('AXES', 'axes'), ('_NONE', '_none')])
def test_new_classes_and_none_of_these(page, said, label):
    reply = page.drop(label=said)
    assert (reply['label'], reply['path'], reply['corrected']) == (label, f'corrected/{label}/a.jpg', 'corrected')
    assert page.table()[0]['label'] == label and page.uploader.corrections == 1
    page.say(kind='relabel', id='a', label='')
    assert page.uploader.corrections == 0 and corrected(page) == []


def test_a_new_class_keeps_its_first_spelling(page):
    page.drop(label='Ladders')
    page.drop('b')
    assert page.drop('b', label='ladders')['label'] == 'Ladders'


def test_a_rejected_photo_of_none_of_the_classes_is_confirmed(page):
    page.uploader._entries['a'].prediction = Prediction(None, .6, {'axes': .6}, 'a.jpg')
    assert page.drop(label='_none')['corrected'] == 'confirmed'


def test_a_page_cannot_change_a_fixed_folder_or_the_size_limit(tmp_path):
    uploader = GearUploader(save_to=tmp_path/'kept', models=tmp_path, may_choose_folder=False, max_mb=.001)
    page = Page(uploader)
    uploader.set_trait('save_to', str(tmp_path/'elsewhere'))
    uploader.set_trait('may_choose_folder', True)
    uploader.set_trait('max_bytes', 10**9)
    page.drop()
    assert page.drop(label='axes')['path'] == 'kept/axes/a.jpg' and not (tmp_path/'elsewhere').exists()
    large = page.say(kind='part', id='b', name='b.jpg', first=True, last=True, raw=bytes(1001))
    assert 'larger than 0.001 MB' in large['error']


def test_bad_files_have_their_own_message_and_the_others_go_on(page):
    files = {'notes.jpg': b'text', 'empty.jpg': b'', 'cut.jpg': picture()[:300]}
    for name, raw in files.items():
        reply = page.say(kind='part', id=name, name=name, first=True, last=True, raw=raw)
        assert reply['error'].startswith(f'{name}: ') and reply['label'] is None
    assert page.say(kind='part', id='odd', name='odd.jpg', last=True, raw=picture())['error'] == 'odd.jpg: arrived incomplete; drop it again'
    assert page.drop('b')['error'] is None
    assert [p.path for p in page.uploader.predictions] == ['a.jpg', *files, 'odd.jpg', 'b.jpg'] and len(page.table()) == 6


def test_unfinished_photos_make_way_for_new_ones():
    parts = widget._Parts(max_bytes=5, max_photos=2)
    for id in 'abc': parts.add(id, [b'5'], True)
    with pytest.raises(widget.PhotoError, match='arrived incomplete'): parts.add('a', [b'5'], False)
    with pytest.raises(widget.PhotoError, match='arrived incomplete'): parts.add(None, [b'5'], True)


def test_models_that_are_not_there(page, tmp_path):
    assert 'no such model folder' in GearUploader(tmp_path/'gone', models=tmp_path).notice
    page.uploader.chosen = '../../elsewhere'
    assert 'no such model' in page.uploader.notice and page.uploader.notice in page.drop('b')['error']


def test_thumbnails_and_top_classes(page):
    assert len(page.drop('b')['top']) == 3
    raw = picture(size=(900, 600))
    page.say(kind='part', id='c', name='c.jpg', first=True, last=True, raw=raw)
    assert Image.open(io.BytesIO(page.uploader._entries['c'].thumbnail)).size == (320, 213)


def test_many_photos_are_known_in_several_messages(page):
    for i in range(250): page.uploader._entries[str(i)] = page.uploader._entries['a']
    page.replies.clear()
    page.say(kind='hello')
    assert [len(reply['predictions']) for reply in page.replies] == [100, 100, 51]


# ---- improve the model

@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return list(list_photos(draw_sample(tmp_path_factory.mktemp('drawn')/'new', n=1, seed=5)))


@pytest.fixture
def full(tmp_path, drawn):
    "A page with twelve drawn photos"
    page = Page(GearUploader(save_to=tmp_path/'corrected', models=tmp_path/'models'))
    for photo in drawn: page.send_file(photo)
    return page


def test_improve_learns_and_updates_the_others(full, drawn, tmp_path):
    classes = list(full.uploader.labels)
    for photo in drawn[:4]: full.send_file(photo, label='ladders')
    full.send_file(drawn[4], label='_none')
    before = {p.path: p for p in full.uploader.predictions}
    full.improve()
    assert full.uploader.improved == full.uploader.corrections == 5 and full.uploader.labels == [*classes, 'ladders']
    assert full.uploader.told.startswith('Improved with 5 corrected or confirmed photos: ')
    update = next(reply for reply in full.replies if reply['kind'] == 'update')
    assert len(update['predictions']) == 12 and update['predictions'][0]['label'] == 'ladders'
    after = {p.path: p for p in full.uploader.predictions}
    changed = [path for path in after if after[path].probabilities != before[path].probabilities]
    assert sorted(changed) == sorted(photo.name for photo in drawn[5:])
    assert full.send_file(drawn[0], id='again')['top'][0][0] == 'ladders'       # new photos too
    # saved, it is offered and works from its folder
    full.save('better')
    assert full.uploader.told == 'Saved: models/better' and 'better' in full.uploader.models
    saved = GearClassifier(tmp_path/'models/better')
    assert saved.labels == full.uploader.labels and saved.predict(drawn[0]).top1 == 'ladders'
    digests = set(read_splits(tmp_path/'models/better').digest)
    assert {file_digest(photo) for photo in drawn[:5]} <= digests               # `compare` refuses them
    full.uploader.chosen = 'better'
    assert full.uploader.improved == 0 and full.uploader.told == ''


class Fake:
    "A classifier that records what it is adapted to"
    reference = head = object()
    folder = widget.Path('fake')
    def __init__(self, labels=('axes', 'tents')): self.labels = list(labels)
    def features(self, photos): return np.ones((len(photos), 2), np.float32)
    def predict_features(self, features): return [Prediction(self.labels[-1], .9, {self.labels[-1]: .9}) for _ in features]
    def save(self, folder): widget.Path(folder).mkdir(parents=True)

    def adapt(self, photos, labels):
        if 'broken' in labels: raise ValueError('a.jpg and b.jpg: look the same but have different labels')
        new = Fake(dict.fromkeys([*self.labels, *(label for label in labels if label != '_none')]))
        new.seen = {photo.name: label for photo, label in zip(photos, labels)}
        return new


@pytest.fixture
def fake(page):
    page.uploader._base = page.uploader._classifier = Fake()
    page.uploader.labels = ['axes', 'tents']
    for id in 'abc': page.drop(id)
    return page


def said(page): return [p.label for p in page.uploader.predictions]


def test_each_improvement_starts_from_the_loaded_model(fake):
    fake.drop('a', label='ladders')
    fake.improve()
    assert said(fake) == ['ladders', 'ladders', 'ladders'] and fake.uploader.told.endswith('2 other labels changed.')
    fake.say(kind='relabel', id='a', label='')
    assert said(fake)[0] == 'ladders'                                           # of the improved model
    fake.drop('b', label='_none')
    fake.improve()
    assert fake.uploader._classifier.seen == {'b.jpg': '_none'} and said(fake) == ['tents', '_none', 'tents']
    fake.say(kind='relabel', id='b', label='')
    fake.improve()
    assert said(fake) == ['tents']*3 and fake.uploader.told == 'Without corrections, the model is gear again.'


def test_cleared_corrections_still_count(fake):
    fake.drop('a', label='ladders')
    fake.say(kind='clear')
    fake.drop('d')
    fake.drop('d', label='rope')
    assert fake.uploader.corrections == 2
    fake.improve()
    assert fake.uploader._classifier.seen == {'a.jpg': 'ladders', 'd.jpg': 'rope'} and fake.uploader.improved == 2


def test_a_deleted_correction_does_not_count(fake, tmp_path):
    for id in 'ab': fake.drop(id, label='ladders')
    (tmp_path/'corrected/ladders/a.jpg').unlink()
    fake.improve()
    assert fake.uploader._classifier.seen == {'b.jpg': 'ladders'} and fake.uploader.improved == 1


def test_corrections_made_with_another_model_count(fake):
    fake.drop('a', label='ladders')
    fake.uploader._base = fake.uploader._classifier = other = Fake(['left', 'right'])
    before = said(fake)[1:]
    fake.improve()
    assert fake.uploader._classifier.seen == {'a.jpg': 'ladders'} and other.labels == ['left', 'right']
    assert said(fake)[1:] == before                                             # they have no features of this model


def test_what_goes_wrong_is_told(fake, tmp_path):
    fake.drop('a', label='broken')
    fake.improve()
    assert fake.uploader.told == 'a.jpg and b.jpg: look the same but have different labels' and fake.uploader.working == ''
    fake.save('x')
    assert fake.uploader.told == 'improve the model before you save it'
    fake.drop('a', label='ladders')
    fake.improve()
    for name, why in {'': 'not a valid name', '../x': 'not a valid name', 'gear': 'name is taken', ' ok ': 'Saved: models/ok', 'ok': 'name is taken'}.items():
        fake.save(name)
        assert why in fake.uploader.told, name
    assert [f.name for f in (tmp_path/'models').iterdir()] == ['ok']


def test_one_task_at_a_time(fake):
    fake.drop('a', label='ladders')
    fake.uploader.working = 'saving'
    fake.say(kind='improve')
    assert fake.uploader.improved == 0 and not hasattr(fake.uploader, '_thread')


def test_a_model_that_cannot_be_improved_still_predicts(page, monkeypatch):
    def head(self): raise widget.ModelError('a model of format 1 has no reference features; train it again')
    monkeypatch.setattr(GearClassifier, 'head', property(head))
    uploader = GearUploader(save_to=page.uploader.save_to)
    assert not uploader.can_improve and uploader.predict(picture(), 'a.jpg').error is None
    with pytest.raises(widget.ModelError, match='cannot be improved'): uploader.improve()
