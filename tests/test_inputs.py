"Inputs of `open_photo`: they are not changed, and their orientation and colors are right. Files that `list_photos` finds."
import io, os, random, resource, warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np, pillow_heif, pytest, torch
from PIL import Image, ImageOps, TiffImagePlugin

from gear_fastai.photo import FASTAI_RESIZES, FORMATS, PhotoError, describe_skipped, letterbox
from gear_fastai.photo import list_photos, open_photo, to_array, to_pixels, upright_size
from photo_files import *

upright = drawing()


def heic(im, **kw):
    pillow_heif.encode(im.mode, im.size, im.tobytes(), buf := io.BytesIO(), quality=90, **kw)
    return buf.getvalue()


# --- inputs are not changed

large = drawing((1600, 1200)).resize((1600, 1200))
FILES = dict(jpeg=encoded(large, 'jpeg'), exif=container(lying(large, 6), 'jpeg', exif([tag(0x112, SHORT, [6])])), png=encoded(large, 'png'),
             late_png=container(lying(large, 6), 'late png', exif([tag(0x112, SHORT, [6])])), webp=encoded(large, 'webp'), gif=encoded(large.quantize(8), 'gif'),
             frames=encoded(large.quantize(8), 'gif', save_all=True, append_images=[large.quantize(8).rotate(180)]*2),
             webp_frames=encoded(large, 'webp', save_all=True, append_images=[large.rotate(180)]*2), bmp=encoded(large, 'bmp'),
             tiff=encoded(large, 'tiff'), packed_tiff=encoded(lying(large, 6), 'tiff', compression='tiff_lzw', tiffinfo={0x112: 6}),
             pages=encoded(large, 'tiff', save_all=True, append_images=[large.rotate(180)]), avif=encoded(large, 'avif', speed=10), heic=heic(large),
             mpo=encoded(large, 'mpo', save_all=True, append_images=[large.rotate(180)]), profile=encoded(large, 'png', icc_profile=P3))


def state(im):
    "Everything of an image that a caller can see"
    fp = im.fp
    return im.size, im.mode, im.format, dict(im.info), list(im.tile), im.tell(), fp, fp and not fp.closed and fp.tell(), im._im is None


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('from_disk', [True, False])
def test_opened_image_is_not_changed(name, from_disk, tmp_path):
    if from_disk: (tmp_path/'photo').write_bytes(FILES[name])
    def opened(): return Image.open(tmp_path/'photo' if from_disk else io.BytesIO(FILES[name]))
    for frame in {0, getattr(opened(), 'n_frames', 1) - 1}:
        im, other = opened(), opened()
        im.seek(frame); other.seek(frame)
        before = state(im)
        wanted = to_array(im, 64)
        with ThreadPoolExecutor(4) as pool: assert all((x == wanted).all() for x in pool.map(lambda _: to_array(im, 64), range(8)))
        assert state(im) == before
        assert np.array_equal(im.crop((100, 100, 900, 700)), other.crop((100, 100, 900, 700)))
        assert im.getexif() == other.getexif() and im.size == other.size
        assert np.array_equal(to_array(im, 64), to_array(im.copy(), 64)) and state(im)[:3] == state(other)[:3]      # now that it is decoded
        assert np.abs(wanted.astype(int) - to_array(im, 64)).mean() < 2


def test_image_whose_file_is_closed_or_has_other_frames():
    "An image that cannot be opened again is decoded in place, as Pillow does"
    im = Image.open(io.BytesIO(FILES['webp_frames']))
    im.load(); im.seek(1)
    assert same(open_photo(im), large.rotate(180)) and im.tell() == 1
    with Image.open(io.BytesIO(FILES['png'])) as im: im.load()
    assert same(open_photo(im), large)
    with Image.open(io.BytesIO(FILES['png'])) as im: im.fp.close()
    with pytest.raises(PhotoError, match='unreadable'): open_photo(im)
    ppm = Image.open(io.BytesIO(encoded(large, 'ppm')))                         # a format that is not in FORMATS, but the caller could open it
    assert same(open_photo(ppm), large) and ppm.size == large.size


def test_image_in_memory_is_not_changed():
    with_exif = Image.open(io.BytesIO(FILES['exif']))
    with_exif.load()
    for im in (large, large.quantize(8), large.convert('CMYK'), large.convert('RGBA'), large.convert('L'), Image.new('I;16', (9, 9), 99), with_exif):
        kept, info = im.copy(), dict(im.info)
        got = open_photo(im, 64)
        assert im.size == kept.size and im.mode == kept.mode and im.info == info and np.array_equal(im, kept)
        got.paste('black', (0, 0, *got.size))                                   # the result is independent of the input
        assert np.array_equal(im, kept)


def test_orientation_is_applied_once():
    once = open_photo(container(lying(upright, 6), 'jpeg', exif([tag(0x112, SHORT, [6])])))
    assert once.info == {} and same(once, upright) and same(open_photo(once), upright) and same(open_photo(encoded(once, 'png')), upright)


def test_file_object_keeps_its_position(tmp_path):
    (tmp_path/'a.png').write_bytes(FILES['png'])
    with open(tmp_path/'a.png', 'rb') as f:
        for at in (0, 7, len(FILES['png'])):
            f.seek(at)
            assert same(open_photo(f), large) and f.tell() == at and not f.closed
        with ThreadPoolExecutor(4) as pool: assert all(same(im, large) for im in pool.map(open_photo, [f]*8))
        assert f.tell() == len(FILES['png'])
    f = io.BytesIO(b'not an image')
    f.seek(3)
    with pytest.raises(PhotoError): open_photo(f)
    assert f.tell() == 3

    class Stream:
        "Like a network stream: it can be read once"
        def read(self, n=-1): return FILES['png']
    class Response(Stream):
        "Like a response of urllib3: it has a position but cannot seek"
        def tell(self): return 0
        def seek(self, *_): raise io.UnsupportedOperation('seek')
    for stream in (Stream(), Response()): assert same(open_photo(stream), large)
    with open(tmp_path/'a.png', encoding='latin-1') as f, pytest.raises(PhotoError, match="mode 'rb'"): open_photo(f)


def test_arrays_and_buffers_are_not_changed():
    pixels = np.asarray(upright).copy()
    for form in (pixels, pixels[..., 0], pixels[::-1], pixels.astype(np.float32)/255, pixels[..., 0].astype(np.uint16)*257, pixels[..., 0] > 99,
                 np.dstack([pixels, np.full(pixels.shape[:2], 9, np.uint8)]), np.asfortranarray(pixels)):
        kept = form.copy()
        open_photo(form).paste('black', (0, 0, 9, 9))
        assert np.array_equal(form, kept) and form.flags.writeable
    for tensor in (torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(pixels[..., 0]).float()/255):
        kept = tensor.clone()
        open_photo(tensor).paste('black', (0, 0, 9, 9))
        assert torch.equal(tensor, kept)
    buffer = bytearray(FILES['png'])
    open_photo(memoryview(buffer)); open_photo(buffer)
    assert buffer == FILES['png']
    buffer.append(0)                                                            # the buffer is released


# --- orientation

OFF = dict(make=lambda o: tag(0x10f, RATIONAL, [(1, 1)], o), unit=lambda o: tag(0x128, ASCII, b'2\0'), resolution=lambda o: tag(0x11a, ASCII, b'72 dots\0'),
           digit=lambda o: tag(0x11a, ASCII, b'7\0'), zero=lambda o: tag(0x11a, RATIONAL, [(1, 0)], o), beyond=lambda o: tag(0x10f, ASCII, b'x'*9, count=99_999),
           huge=lambda o: tag(0x132, ASCII, b'x'*9, count=2**32 - 1), unknown=lambda o: (0x132, 77, 1, b'\1'), nothing=lambda o: tag(0x11a, RATIONAL, [], o),
           ifd=lambda o: tag(0x8769, LONG, [2**31], o), gps=lambda o: tag(0x8825, ASCII, b'north\0'), twice=lambda o: tag(0x128, SHORT, [2, 3, 4], o))
STORED = {'short': lambda v, o: tag(0x112, SHORT, [v], o), 'long': lambda v, o: tag(0x112, LONG, [v], o), 'byte': lambda v, o: tag(0x112, 1, [v], o),
          'rational': lambda v, o: tag(0x112, RATIONAL, [(v, 1)], o), 'signed': lambda v, o: tag(0x112, 8, [v], o), 'two': lambda v, o: tag(0x112, SHORT, [v, 0], o),
          'three': lambda v, o: tag(0x112, SHORT, [v, 0, 0], o), 'float': lambda v, o: tag(0x112, 11, [v], o), 'text': lambda v, o: tag(0x112, ASCII, b'%d\0' % v)}


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('off', OFF)
def test_malformed_exif_does_not_hide_the_orientation(off, order):
    for kind in KINDS:
        data = exif([OFF[off](order), tag(0x112, SHORT, [6], order)], order)
        assert same(open_photo(container(lying(upright, 6), kind, data)), upright), kind


@pytest.mark.parametrize('stored', STORED)
def test_orientation_of_any_type(stored):
    for order in '<>':
        for value in range(1, 9):
            assert same(open_photo(container(lying(upright, value), 'jpeg', exif([STORED[stored](value, order)], order))), upright)
        for value in (0, 9, 200): assert same(open_photo(container(upright, 'jpeg', exif([STORED[stored](value, order)], order))), upright)


@pytest.mark.parametrize('data', [b'', b'II', b'Exif\0\0', b'Exif\0\0garbage', b'MM\0*\0\0\0\x08', b'II*\0\xff\xff\xff\xff', exif([tag(0x112, SHORT, [6])])[:18]])
def test_exif_that_is_cut_short_is_ignored(data):
    for kind in ('jpeg', 'webp', 'png', 'png text'): assert same(open_photo(container(upright, kind, data)), upright), kind


def test_orientation_in_other_places(tmp_path):
    for value in range(2, 9):
        turned = lying(upright, value)
        xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'.encode()
        for fmt in ('jpeg', 'webp', 'tiff'): assert same(open_photo(encoded(turned, fmt, **({'tiffinfo': {700: xmp}} if fmt == 'tiff' else {'xmp': xmp}))), upright), (fmt, value)
        assert same(open_photo(encoded(turned, 'jpeg', xmp=xmp.replace(b'"', b"'"))), upright)
        for packed in (None, 'tiff_lzw', 'jpeg', 'tiff_adobe_deflate'):
            assert same(open_photo(encoded(turned, 'tiff', compression=packed, tiffinfo={0x112: value})), upright), (packed, value)
        set_in_memory = turned.copy()
        set_in_memory.getexif()[0x112] = value
        assert same(open_photo(set_in_memory), upright)
        assert same(open_photo(heic(turned, exif=exif([tag(0x112, SHORT, [value])]))), upright)                     # its decoder rotates it already
        assert same(open_photo(encoded(turned, 'avif', exif=exif([tag(0x112, SHORT, [value])]))), upright)


def test_tiff_whose_other_tags_are_malformed():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x112] = 6
    raw = encoded(lying(upright, 6), 'tiff', tiffinfo=info, exif=None)
    assert same(open_photo(raw), upright) and upright_size(raw) == upright.size


def test_avif_with_malformed_exif():
    long = tag(0x10e, ASCII, b'x'*400)
    for value in (1, 6):
        good = encoded(lying(upright, value), 'avif', exif=exif([long, tag(0x112, SHORT, [value])]))
        data = exif([tag(0x10f, RATIONAL, [(1, 1)]), tag(0x112, SHORT, [8])], prefix=b'')       # the file's own rotation counts, not the one in EXIF
        assert same(open_photo(avif_with(good, data)), upright)


def test_heic_with_its_orientation_in_exif_only():
    "Some converters write no rotation into the file itself, so its decoder does not rotate it"
    for value in range(2, 9):
        note = Image.Exif()
        note[0x112] = value
        pillow_heif.from_pillow(lying(upright, value)).save(buf := io.BytesIO(), quality=90, exif=note)
        assert b'irot' not in buf.getvalue() and b'imir' not in buf.getvalue()
        assert same(open_photo(buf.getvalue()), upright) and upright_size(buf.getvalue()) == upright.size, value


def test_size_after_orientation():
    for value in range(1, 9):
        turned, note = lying(upright, value), exif([tag(0x112, SHORT, [value])])
        for raw in (*(container(turned, kind, note) for kind in KINDS), encoded(turned, 'tiff', tiffinfo={0x112: value}), heic(turned, exif=note), encoded(turned, 'avif', exif=note)):
            assert upright_size(raw) == upright.size


def any_exif(rng):
    "Malformed EXIF data, its orientation, and whether it is cut short"
    order, value = rng.choice('<>'), rng.randint(1, 8)
    tags = [rng.choice(list(OFF.values()))(order) for _ in range(rng.randint(0, 4))]
    for _ in range(rng.randint(0, 3)):
        kind = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
        n = rng.choice([0, 1, 1, 1, 2, 5])
        numbers = [(rng.randint(0, 9), rng.randint(0, 3)) if len(FORMAT[kind]) == 2 else rng.randint(0, 100) for _ in range(n)]
        tags.append(tag(rng.choice([0x10f, 0x110, 0x11a, 0x11b, 0x128, 0x131, 0x132, 0x213, 0x8298, 0x8769, 0x8825, 700, 34675]), kind, b'a'*n if kind == 2 else numbers, order))
    has_orientation = rng.random() < .8
    if has_orientation: tags.insert(rng.randint(0, len(tags)), rng.choice(list(STORED.values()))(value, order))
    data = exif(tags, order, rng.choice([b'Exif\0\0', b'Exif\0\0', b'Exif\0\0Exif\0\0']))
    cut = rng.random() < .15
    return data[:rng.randint(6, len(data))] if cut else data, value if has_orientation else 1, cut


def test_fuzzed_exif_never_refuses_a_photo_and_keeps_its_orientation():
    "Set GEAR_FUZZ=28000 to test that many files"
    rng, seen = random.Random(25), Counter()
    for k in range(int(os.environ.get('GEAR_FUZZ', 1200))):
        data, value, cut = any_exif(rng)
        kind = rng.choice(KINDS)
        stored = lying(upright, value)
        raw = container(stored, kind, data)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')                                     # Pillow's, of what is malformed
            got, pillow = open_photo(raw), _as_pillow(raw)                      # refuses nothing, not even what Pillow does
        if isinstance(pillow, str): seen[f'Pillow {pillow}'] += 1
        else: seen['Pillow turned it right' if same(pillow, upright) else 'Pillow did not turn it'] += 1
        assert same(got, upright) or cut and same(got, stored) and not (value > 1 and not isinstance(pillow, str) and same(pillow, upright)), (k, kind, value, data)
        seen['not turned, since its note is cut off'] += not same(got, upright)
        seen['files'] += 1
    print(dict(seen))


def _as_pillow(raw):
    "Open a file with Pillow alone"
    try:
        im = Image.open(io.BytesIO(raw))
        im.load()
    except Exception: return 'refused to open it'
    try: return ImageOps.exif_transpose(im).convert('RGB')
    except Exception: return 'refused to turn it'


# --- colors

def test_icc_profiles_become_srgb():
    for fmt in ('png', 'jpeg', 'webp', 'tiff', 'avif'):
        got = open_photo(encoded(Image.new('RGB', (16, 16), (100, 200, 100)), fmt, icc_profile=P3, quality=95) if fmt != 'tiff' else
                         encoded(Image.new('RGB', (16, 16), (100, 200, 100)), 'tiff', icc_profile=P3)).getpixel((8, 8))
        assert np.abs(np.subtract(got, (45, 203, 86))).max() < 6, (fmt, got)
    assert open_photo(encoded(Image.new('L', (9, 9), 128), 'png', icc_profile=GRAY_LINEAR)).getpixel((4, 4)) == (188, 188, 188)
    assert open_photo(encoded(Image.new('LA', (9, 9), (128, 0)), 'png', icc_profile=GRAY_LINEAR)).getpixel((4, 4)) == (255, 255, 255)
    assert open_photo(encoded(Image.new('CMYK', (9, 9), (255, 0, 0, 0)), 'tiff', icc_profile=CMYK)).getpixel((4, 4)) == (198, 198, 198)
    in_memory = Image.new('RGB', (9, 9), (100, 200, 100))
    in_memory.info['icc_profile'] = P3
    assert np.abs(np.subtract(open_photo(in_memory).getpixel((4, 4)), (45, 203, 86))).max() < 6
    assert in_memory.getpixel((4, 4)) == (100, 200, 100) and in_memory.info['icc_profile'] == P3


def test_other_profiles_change_nothing():
    "sRGB itself, broken profiles, and profiles for other modes"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    for profile in (SRGB, b'garbage', SRGB[:200], b'', GRAY_LINEAR, CMYK): assert np.array_equal(open_photo(encoded(Image.fromarray(pixels), 'png', icc_profile=profile)), pixels)
    transparent = Image.new('RGBA', (9, 9), (0, 0, 0, 0))
    assert open_photo(encoded(transparent, 'png', icc_profile=P3)).getpixel((4, 4)) == (255, 255, 255)
    assert open_photo(encoded(Image.new('L', (9, 9), 77), 'png', icc_profile=SRGB)).getpixel((4, 4)) == (77, 77, 77)


def test_colors_do_not_depend_on_when_they_are_converted():
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    raw = encoded(smooth, 'png', icc_profile=P3)
    assert np.abs(to_array(raw, 64).astype(int) - np.asarray(letterbox(open_photo(raw), 64))).max() <= 2


def test_lab_tiff():
    assert np.abs(np.subtract(open_photo(encoded(Image.new('LAB', (9, 9), (255, 128, 128)), 'tiff')).getpixel((4, 4)), 255)).max() < 4


# --- other forms and problems

png = encoded(upright, 'png')


@pytest.fixture
def public():
    "A folder that any user may read; pytest's own folders belong to one user"
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def without_root():
    "Run as a user without special rights"
    if os.getuid() == 0: os.seteuid(65534)
    try: yield
    finally: os.seteuid(os.getuid())


def test_transparency_becomes_white_in_every_mode():
    transparent = Image.new('RGBA', upright.size)  # black under the transparency
    transparent.paste(upright.crop((8, 8, 16, 16)), (8, 8))
    for mode in ('RGBA', 'LA', 'PA'):
        raw = encoded(transparent.convert(mode), 'tiff' if mode == 'PA' else 'png')
        assert open_photo(raw).getpixel((0, 0)) == (255, 255, 255), mode
    assert open_photo(encoded(transparent.quantize(4), 'png')).getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_images_are_scaled():
    gray16 = np.full((8, 8), 32896, np.uint16)
    forms = (gray16, encoded(Image.fromarray(gray16), 'png'), encoded(Image.fromarray(gray16), 'tiff'),
             Image.fromarray(gray16.astype(np.int32)), np.full((8, 8), 128/255))
    for form in forms: assert open_photo(form).getpixel((4, 4)) == (128, 128, 128)


def test_cmyk_without_a_profile():
    teal = Image.new('RGB', (16, 16), (0, 128, 128)).convert('CMYK')
    assert np.abs(np.subtract(open_photo(encoded(teal, 'jpeg')).getpixel((8, 8)), (0, 128, 128))).max() < 6


def test_errors_name_the_problem(public):
    (public/'empty.jpg').touch()
    (public/'notes.jpg').write_text('not an image')
    (public/'cut.png').write_bytes(png[:len(png)//2])
    (public/'dangling.jpg').symlink_to('nowhere')
    (public/'locked.jpg').write_bytes(png)
    (public/'locked.jpg').chmod(0)
    problems = {'gone.jpg': 'no such file', 'empty.jpg': 'the file is empty', 'notes.jpg': 'not an image',
                'cut.png': 'unreadable', '.': 'is a folder', 'dangling.jpg': 'a link to a file that is gone'}
    for name, problem in problems.items():
        with pytest.raises(PhotoError, match=problem): open_photo(public/name)
    with without_root(), pytest.raises(PhotoError, match='locked.jpg: no permission to read it'):
        open_photo(public/'locked.jpg')
    for bad, problem in ((b'', 'not an image'), (None, 'pass a path'), (42, 'pass a path'), ('http://x.org/a.jpg', 'is a URL'),
                         (np.zeros((0, 4)), 'pass'), (np.zeros((3, 9, 9)), 'pass'), (np.full((4, 4), 7.), r'must lie in \[0, 1\]'),
                         (np.full((4, 4), np.nan), 'floats'), (np.zeros((4, 4), int), 'uint8')):
        with pytest.raises(PhotoError, match=problem): open_photo(bad)


@pytest.mark.parametrize('side', [11_000, 40_000])
@pytest.mark.filterwarnings('ignore')
def test_decompression_bombs_are_refused(side):
    with pytest.raises(PhotoError, match='too large'): open_photo(encoded(Image.new('1', (side, side)), 'png'))


def test_sizes_and_colors_of_resized_photos():
    for shape in ((1, 900), (900, 1), (64, 64), (3, 2)): assert letterbox(Image.new('RGB', shape), 64).size == (64, 64)
    wide = Image.fromarray(np.arange(30*80*3, dtype=np.uint32).reshape(30, 80, 3).astype(np.uint8))
    for method in FASTAI_RESIZES: assert to_pixels(wide, 32, method).shape == (32, 32, 3)
    assert (to_pixels(wide, 32) == to_array(wide, 32)).all()
    assert (to_pixels(wide, 32, 'pad zeros')[0] == 0).all() and (to_pixels(wide, 32)[0] == 255).all()


def test_reduced_scale_looks_like_full_scale():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    raw = encoded(Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC), 'jpeg', quality=92)
    full = np.asarray(letterbox(open_photo(raw), 128)).astype(int)
    assert open_photo(raw, 128).size < (1000, 1000)
    assert np.abs(full - to_array(raw, 128)).mean() < 1


def test_folders_with_links_and_locked_folders(public):
    for name in ('b.PNG', 'a.jpeg', 'notes.txt', '._a.jpeg', 'sub/c.webp', '.git/d.png', '@eaDir/e.jpg'):
        (public/name).parent.mkdir(exist_ok=True)
        (public/name).touch()
    os.symlink(public, public/'sub/round')
    assert [p.name for p in list_photos(public)] == ['a.jpeg', 'b.PNG', 'c.webp']
    assert [p.name for p in list_photos(public, {'.txt'})] == ['notes.txt']
    (public/'sub').chmod(0)
    with without_root():
        assert [p.name for p in list_photos(public)] == ['sub', 'a.jpeg', 'b.PNG']
        with pytest.raises(PhotoError, match='sub: no permission to read this folder'): open_photo(public/'sub')
    with pytest.raises(PhotoError, match='no such folder'): list(list_photos('not/there'))


# --- damaged files are read or refused, and never crash the process or take much memory

def whole_files():
    "One file of each format and several modes"
    im = drawing((60, 100))
    transparent = Image.new('RGBA', im.size)
    transparent.paste(im.crop((8, 8, 40, 60)), (8, 8))
    gray16 = Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80))
    frames = dict(save_all=True, append_images=[im.transpose(Image.Transpose.ROTATE_180)]*2)
    note = exif([tag(0x112, SHORT, [6])])
    return [encoded(im, 'jpeg'), encoded(im, 'jpeg', progressive=True), encoded(im.convert('CMYK'), 'jpeg'),
            encoded(im.convert('L'), 'jpeg', exif=note), encoded(im, 'png'), encoded(transparent, 'png'),
            encoded(transparent.quantize(9), 'png'), encoded(gray16, 'png'), encoded(im, 'gif', **frames),
            encoded(im, 'webp'), encoded(transparent, 'webp', lossless=True, **frames), encoded(im, 'bmp'),
            encoded(im, 'avif'), encoded(im, 'tiff', compression='tiff_lzw'), encoded(im, 'tiff', compression='jpeg'),
            heic(im), encoded(transparent, 'tiff', compression='tiff_adobe_deflate', **frames)]


def damaged(raw, rng):
    "Return a copy of a file with one to ten random changes"
    raw = bytearray(raw)
    for _ in range(rng.randint(1, 10)):
        at, n = rng.randrange(len(raw)), rng.choice((1, 1, 1, 4, 40))
        match rng.randrange(6):
            case 0: del raw[at:at+n]
            case 1: raw[at:at] = raw[at:at+n]
            case 2: raw[at:at+n] = rng.choice((b'\0', b'\xff', b'\x7f'))*n
            case 3: del raw[at if rng.random() < .2 else -1:]
            case _: raw[at] ^= 1 << rng.randrange(8)
        if not raw: raw += b'x'
    return bytes(raw)


def read_damaged(n, seed):
    "Return how many of `n` damaged files were read and refused"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)                        # libtiff reports all damage there
    statm = Path('/proc/self/statm')
    if statm.exists():
        used = int(statm.read_text().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30),)*2)
    rng, whole, results = random.Random(seed), whole_files(), Counter()
    for i in range(n):
        try: results['read'] += to_array(damaged(whole[i % len(whole)], rng), 64).shape == (64, 64, 3)
        except PhotoError as e:
            results['refused'] += 1
            assert '\n' not in str(e) and str(e).startswith('<'), e
    return results


def test_damaged_files():
    whole = whole_files()
    assert {Image.open(io.BytesIO(raw)).format for raw in whole} == set(FORMATS)
    for raw in whole: assert to_array(raw, 64).shape == (64, 64, 3)
    with ProcessPoolExecutor(1, mp_context=get_context('fork')) as pool: results = pool.submit(read_damaged, 6000, 0).result(timeout=300)
    assert sum(results.values()) == 6000 and min(results.values()) > 500, results


# --- what is a photo in a folder

def test_photos_are_recognized_by_suffix_or_content(tmp_path):
    raw = dict(jpeg=FILES['jpeg'], png=FILES['png'], gif=FILES['gif'], webp=FILES['webp'], bmp=FILES['bmp'], tiff=FILES['tiff'], avif=FILES['avif'], heic=FILES['heic'])
    photos = {f'plain_{k}': v for k, v in raw.items()} | {f'{k}.JPG_large': v for k, v in raw.items()} | {
        'a.jpe': raw['jpeg'], 'a.HEIC': raw['heic'], 'a.heif': raw['heic'], 'a.hif': raw['heic'], 'a.jpg?w=500': raw['jpeg'], 'a.2024': raw['png'], 'broken.jpg': b'', 'jpg': raw['jpeg']}
    for name, content in photos.items(): (tmp_path/name).write_bytes(content)
    others = {'a.mov': 2, 'b.mp4': 1, 'c.pdf': 1, 'd': 1, 'e.jp2': 1, 'f.NEF': 1, 'g.jpg.part': 1, 'h.zip': 1}
    for name in others: (tmp_path/name).write_bytes(b'BM, a text' if name == 'd' else raw['tiff'] if name == 'f.NEF' else b'\0\0\0\x14ftypqt  ')
    (tmp_path/'b.MOV').write_bytes(b'')
    for name in ('Thumbs.db', 'desktop.ini', 'README', 'LICENSE', 'splits.csv', 'test-scores.csv', 'gear.txt', 'a.json', 'a.aae', '.hidden', '._a.jpg'): (tmp_path/name).write_bytes(b'x')
    os.mkfifo(tmp_path/'pipe')
    skipped = Counter()
    assert {p.name for p in list_photos(tmp_path, skipped=skipped)} == set(photos)
    assert skipped == {'.mov': 2, '.mp4': 1, '.pdf': 1, '(no suffix)': 2, '.jp2': 1, '.nef': 1, '.part': 1, '.zip': 1}
    assert describe_skipped(skipped).startswith('skipped: 2 (no suffix), 2 .mov, 1 .')
    for name, content in photos.items():
        if content: open_photo(tmp_path/name)
    assert describe_skipped(Counter({f'.s{k:02}': 1 for k in range(12)})).endswith(', 1 .s07, 4 others')


def test_folders_of_programs_and_our_own_are_skipped(tmp_path):
    "... unless they are named"
    for folder in ('@eaDir', '#recycle', '$RECYCLE.BIN', 'System Volume Information', '__MACOSX', '.ipynb_checkpoints', 'lost+found', 'models/mine', 'models/mine.cv/grouped-5/fold-0', 'scores',
                   'scores2', 'class', 'class/train', 'spark'):
        (tmp_path/folder).mkdir(parents=True)
        (tmp_path/folder/'a.png').write_bytes(FILES['png'])
    for name in ('models/mine/gear.json', 'models/mine.cv/grouped-5/fold-0/gear.json', 'scores/_SUCCESS'): (tmp_path/name).write_text('{}')
    (tmp_path/'scores2/_plan').mkdir()
    (tmp_path/'scores2/_plan/plan.json').write_text('{}')
    (tmp_path/'spark/_SUCCESS').touch()
    (tmp_path/'models/demo-predictions.png').write_bytes(FILES['png'])
    skipped = Counter()
    assert [p.relative_to(tmp_path).as_posix() for p in list_photos(tmp_path, skipped=skipped)] == ['class/a.png', 'class/train/a.png', 'spark/a.png']
    assert not skipped
    assert [p.name for p in list_photos(tmp_path/'models/mine')] == [p.name for p in list_photos(tmp_path/'@eaDir')] == ['a.png']


def test_home_folder_and_names_that_are_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    folder = tmp_path/'my photos'
    folder.mkdir()
    odd = os.fsdecode(b'caf\xe9.jpeg')
    (folder/odd).write_bytes(FILES['jpeg'])
    (folder/'no suffix \udce9').write_bytes(FILES['jpeg'])
    assert [p.name for p in list_photos('~/my photos')] == [odd, 'no suffix \udce9']
    assert same(open_photo(f'~/my photos/{odd}'), large)
    with pytest.raises(PhotoError, match='^~/gone.jpg: no such file'): open_photo('~/gone.jpg')
    with pytest.raises(PhotoError, match='^~/gone: no such folder'): list(list_photos('~/gone'))
