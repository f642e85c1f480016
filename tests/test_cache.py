"`PhotoCache` with damaged files, full disks, photos that change, and little memory."
import shutil, tracemalloc, warnings
from pathlib import Path

import numpy as np, pytest

from gear_fastai.cache import PhotoCache
from gear_fastai.drawing import CLASSES, draw_photo
from gear_fastai.photo import PhotoError, to_array


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path/f'{label}.jpeg' for label in CLASSES]
    for path in paths: draw_photo(path.stem, size=96).save(path)
    return paths


def expected(paths, size=64): return np.stack([to_array(path, size) for path in paths])


def messages(f, *args, **kwargs):
    "Return the result of `f` and the warnings it gives"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        return f(*args, **kwargs), [str(w.message) for w in caught]


def test_changed_and_missing_photos(photos, tmp_path):
    cache = PhotoCache(photos, 64, tmp_path/'cache')
    missing = to_array(photos[1], 64)
    shutil.copy(photos[5], photos[0])
    photos[1].unlink()
    first, second = messages(cache.refresh)[1], messages(cache.refresh)[1]
    assert [len(first), second] == [2, []]
    assert np.array_equal(cache.batch([0, 1, 5]), np.stack([to_array(photos[5], 64), missing, to_array(photos[5], 64)]))


def test_unreadable_photo_is_an_error_when_it_is_needed(photos, tmp_path):
    photos[1].write_bytes(b'not an image')
    for _ in range(2):  # the second time, the file of pixels exists
        cache = PhotoCache(photos, 64, tmp_path/'cache')
        with pytest.raises(PhotoError, match=f'{photos[1]}: not an image'): cache.batch([0, 1])
        assert np.array_equal(cache.batch([0]), expected(photos[:1]))


def test_damaged_file_is_replaced(photos, tmp_path):
    cache = PhotoCache(photos, 64, tmp_path/'cache')
    raw = cache.file.read_bytes()
    for damaged in (raw[:-1000], raw[:500] + bytes([raw[500] ^ 1]) + raw[501:], b''):
        cache.file.write_bytes(damaged)
        again, caught = messages(PhotoCache, photos, 64, tmp_path/'cache')
        assert np.array_equal(again.batch(range(len(photos))), expected(photos)) and len(caught) == bool(damaged)
    assert cache.file.read_bytes() == raw


def test_pixels_stay_in_memory_if_nothing_can_be_written(photos, tmp_path):
    (tmp_path/'a file').touch()
    cache, caught = messages(PhotoCache, photos, 64, tmp_path/'a file')
    assert np.array_equal(cache.batch([7]), expected(photos[7:8])) and 'cannot keep decoded photos there' in caught[0]


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_full_disk(photos, tmp_path):
    class FullDisk(PhotoCache):
        def _write(self):
            with open('/dev/full', 'wb', 0) as f: f.write(b'x')
    cache, caught = messages(FullDisk, photos, 64, tmp_path/'full')
    assert 'No space left' in caught[0] and np.array_equal(cache.batch([7]), expected(photos[7:8]))


def test_limit(photos, tmp_path):
    photo_bytes = 3*64*64
    cache = PhotoCache(photos, 64, tmp_path/'small', limit=5*photo_bytes)
    assert (cache.kept, len(cache.pixels)) == (5, 5)
    assert np.array_equal(cache.batch(range(10)), expected(photos[:10]))
    other = PhotoCache(photos[:4], 64, tmp_path/'small', limit=5*photo_bytes)
    assert list((tmp_path/'small').iterdir()) == [other.file]
    assert np.array_equal(cache.batch([2]), expected(photos[2:3]))  # its file is deleted but still open
    assert np.array_equal(PhotoCache(photos, 64, tmp_path/'none', limit=0).batch([7]), expected(photos[7:8]))


def test_memory_is_that_of_a_batch(photos, tmp_path):
    "All pixels together would take 29 MB"
    many = photos*16
    cache = PhotoCache(many, 224, tmp_path/'few', limit=2**20)
    tracemalloc.start()
    for i in range(0, len(many), 8): batch = cache.batch(range(i, i + 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 3*224*224*len(many) > 2.8e7 and peak < 1e7
    assert cache.file.stat().st_size <= 2**20 + 32 and 0 < cache.kept < 8
    assert np.array_equal(batch[-1], to_array(many[-1], 224))
