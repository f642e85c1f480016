"Saved photos, corrections and messages of the uploader"
import csv, errno, io, os

import pytest
from PIL import Image

import gear_fastai.widget as widget
from gear_fastai.inference import Prediction
from gear_fastai.widget import GearUploader, save_photo


def picture(format='JPEG', **kwargs):
    Image.new('RGB', (8, 8), 'red').save(raw := io.BytesIO(), format, **kwargs)
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
    def table(self): return list(csv.DictReader(io.StringIO(self.uploader.to_csv())))


@pytest.fixture
def page(tmp_path):
    page = Page(GearUploader(save_to=tmp_path/'corrected', models=tmp_path/'models'))
    page.drop()
    page.uploader._entries['a'].prediction = Prediction('crampons', .9, {'crampons': .9, 'axes': .1}, 'a.jpg')
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


def test_an_unknown_class_is_refused(page):
    assert 'no such class' in page.drop(label='../up')['error'] and not widget.Path(page.uploader.save_to).exists()


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
    assert max(Image.open(io.BytesIO(page.uploader._entries['b'].thumbnail)).size) <= 144
