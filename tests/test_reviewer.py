"Messages of the reviewer, and what a manipulated page can do"
import errno, os, shutil

import pytest

from gear_fastai.inference import default_model
from gear_fastai.photo import list_photos
from gear_fastai.review import ReviewSession
from gear_fastai.reviewer import _shown, GearReviewer
from gear_fastai.sources import draw_sample


class Page:
    "The page's side of a reviewer"
    def __init__(self, reviewer):
        self.reviewer = reviewer
        self.replies = []
        self.pictures = {}
        reviewer.send = self.receive

    def receive(self, message, buffers=None):
        if message['kind'] == 'picture': self.pictures[message['key']] = buffers[0]
        else: self.replies.append(message)

    def say(self, kind, **message):
        self.reviewer._receive(None, dict(message, kind=kind), [])
        return self.replies[-1]

    def decide(self, label): return self.say('decide', path=self.say('hello')['item']['path'], label=label)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = draw_sample(tmp_path_factory.mktemp('drawn')/'photos', n=1, seed=9)
    files = list(list_photos(folder))
    for file in files[6:]: file.unlink()
    for i, file in enumerate(files[:3]): file.rename(folder/f'new{i}{file.suffix}')
    return folder


@pytest.fixture
def page(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path/'photos')
    page = Page(GearReviewer(tmp_path/'photos', models=tmp_path/'models'))
    yield page
    page.reviewer.close_session()


def test_the_state_has_all_that_is_shown(page):
    state = page.say('hello')
    assert state['progress']['text'].startswith('0 decided, 6 remaining') and 'error' not in state
    assert len(state['item']['top']) == 5 and state['item']['reason'][0].isupper() and not state['recent']
    page.say('look', keys=state['pictures'])
    assert set(page.pictures) == set(state['pictures']) and all(raw[:2] == b'\xff\xd8' for raw in page.pictures.values())
    photos = [key for key in state['pictures'] if key.startswith('photo')]
    assert len(photos) == 2 and photos[0] == f"photo {state['item']['path']}"


def test_the_next_photo_was_sent_in_advance(page):
    state = page.say('hello')
    following = [key for key in state['pictures'] if key.startswith('photo')][1]
    assert f"photo {page.decide('_none')['item']['path']}" == following


def test_the_present_label_is_among_the_choices(page):
    item = page.reviewer.session.current()
    labels = page.reviewer.session.labels
    rare = min(item.top, key=lambda pair: pair[1])[0]
    shown = _shown(type(item)(**dict(vars(item), label=rare)), labels, {})
    assert shown['top'][4] == (rare, dict(item.top)[rare]) and len(shown['top']) == 5
    assert len(_shown(type(item)(**dict(vars(item), label='_none')), labels, {})['top']) == 5


def test_decisions_and_undo(page):
    page.decide('tents')
    state = page.decide('_excluded')
    assert [r['label'] for r in state['recent']] == ['_excluded', 'tents'] and state['progress']['decided'] == 2
    state = page.say('undo')
    assert [r['label'] for r in state['recent']] == ['tents'] and state['item']['decided'] is None
    back = page.say('go', step=-99)
    assert back['item']['decided'] == 'tents'
    assert 'skis' in page.decide('skis')['labels']


def test_all_decided(page):
    for _ in range(6): state = page.decide('_none')
    assert state['item'] is None and state['progress']['remaining'] == 0
    assert page.say('decide', path='', label='tents')['error'] and page.say('undo')['item']


def test_a_decision_that_cannot_be_logged_is_not_shown(page, monkeypatch):
    page.say('hello')
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device', 'labels.csv')
    monkeypatch.setattr(page.reviewer.session._log, 'append', full)
    state = page.decide('tents')
    assert state['error'] == 'labels.csv: No space left on device' and state['progress']['decided'] == 0 and not state['recent']


def test_apply_and_revert(page, tmp_path):
    for _ in range(2): page.decide('_none')
    before = {f.relative_to(tmp_path).as_posix(): f.read_bytes() for f in list_photos(tmp_path/'photos')}
    assert '2 to _none' in page.say('plan')['plan']
    state = page.say('apply')
    assert state['applied'] and state['note'] == 'photos moved: 2' and len(list(list_photos(tmp_path/'photos/_none'))) == 2
    state = page.say('revert')
    assert not state['applied'] and state['progress']['decided'] == 2
    assert {f.relative_to(tmp_path).as_posix(): f.read_bytes() for f in list_photos(tmp_path/'photos')} == before
    assert 'nothing to revert' in page.say('revert')['error']


@pytest.mark.parametrize('message', [
    dict(kind='decide', path='../photos/new0.jpeg', label='tents'), dict(kind='decide', path='/etc/passwd', label='tents'),
    dict(kind='decide', path='new0.jpeg', label='../up'), dict(kind='decide', path=['x'], label={}), dict(kind='decide'),
    dict(kind='go', step='x'), dict(kind='save', name='../up'), dict(kind='save', name='.hidden'), dict(kind='save', name=''), dict(kind='save', name=None),
    dict(kind='hello', extra=1)])
def test_a_manipulated_page_changes_nothing(page, tmp_path, message):
    page.say('hello')
    before = sorted(tmp_path.rglob('*'))
    state = page.say(**message)
    assert state['error'] and state['progress']['decided'] == 0 and sorted(tmp_path.rglob('*')) == before


def test_a_page_gets_no_other_files(page):
    page.say('hello')
    for keys in (['photo /etc/passwd'], ['photo ../secret.jpg'], ['x'], [1]): page.say('look', keys=keys)
    assert not page.pictures
    page.say('receive')
    page.say('_save', name='x')
    assert not (page.reviewer._models/'x').exists()


def test_a_model_is_not_replaced(page):
    (page.reviewer._models/'better').mkdir(parents=True)
    assert page.say('save', name='better')['error'] == 'better: already there; choose another name'


def test_why_there_is_no_review_is_shown_and_asked_again(page, tmp_path):
    assert 'no such' in Page(GearReviewer(tmp_path/'gone')).say('hello')['error']
    assert 'no such model folder' in Page(GearReviewer(tmp_path/'photos', tmp_path/'gone')).say('hello')['error']
    session = ReviewSession(tmp_path/'photos')
    waiting = Page(page.reviewer)
    state = waiting.say('hello')
    assert 'is being reviewed' in state['error'] and 'progress' not in state
    session.close()
    assert waiting.say('hello')['item']


def test_the_widget_that_was_used_last_has_the_session(page, tmp_path):
    page.decide('tents')
    other = Page(GearReviewer(tmp_path/'photos'))
    assert other.say('hello')['progress']['decided'] == 1
    assert page.decide('tents')['progress']['decided'] == 2 and other.say('hello')['progress']['decided'] == 2
    other.reviewer.close_session()


def test_asking_for_progress_opens_no_session(page):
    page.say('hello')
    page.reviewer.close_session()
    n = len(page.replies)
    page.say('poll')
    assert len(page.replies) == n and page.reviewer._session.closed


def test_a_photo_that_was_deleted_is_skipped(page, tmp_path):
    state = page.say('hello')
    os.remove(tmp_path/'photos'/state['item']['path'])
    page.say('look', keys=state['pictures'][:1])
    assert list(page.pictures.values()) == [b'']
    after = page.decide('tents')
    assert after['item']['path'] != state['item']['path']


def test_the_bundled_model_is_the_default(page): assert page.reviewer.session.base.folder == default_model().resolve()
