"Photos like those of phones, cameras and programs: malformed EXIF data, ICC profiles."
import io, struct
from itertools import product

import numpy as np
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

RATIONAL, SHORT, LONG, ASCII = 5, 3, 4, 2
FORMAT = {1: 'B', 2: 's', 3: 'H', 4: 'L', 5: 'LL', 6: 'b', 7: 'B', 8: 'h', 9: 'l', 10: 'll', 11: 'f', 12: 'd', 13: 'L'}
LYING = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}


def drawing(size=(32, 48)):
    "A photo whose orientation is visible: each quarter has another color"
    im = Image.new('RGB', size, 'white')
    w, h = size
    ImageDraw.Draw(im).rectangle((0, 0, w//2 - 1, h//2 - 1), fill='red')
    ImageDraw.Draw(im).rectangle((w//2, 0, w, h//2 - 1), fill='green')
    ImageDraw.Draw(im).rectangle((0, h//2, w//2 - 1, h), fill='blue')
    return im


def lying(im, orientation):
    "`im` as stored by a camera with that orientation"
    return im if LYING[orientation] is None else im.transpose(LYING[orientation])


def same(im, other):
    "Check whether two photos are the same, apart from compression"
    return im.size == other.size and np.abs(np.asarray(im.convert('RGB')).astype(int) - np.asarray(other)).mean() < 24


def tag(code, kind, values, order='<', count=None):
    "An EXIF tag: (code, type, count, bytes)"
    if kind == ASCII: raw = values
    else: raw = b''.join(struct.pack(order + FORMAT[kind], *(v if isinstance(v, tuple) else (v,))) for v in values)
    return code, kind, len(values) if count is None else count, raw


def exif(tags, order='<', prefix=b'Exif\0\0'):
    "EXIF data with these tags, in this order"
    table, rest, at = b'', b'', 8 + 2 + 12*len(tags) + 4
    for code, kind, count, raw in tags:
        if len(raw) <= 4: value = raw.ljust(4, b'\0')
        else:
            value = struct.pack(order + 'L', at + len(rest))
            rest += raw
        table += struct.pack(order + 'HHL', code, kind, count) + value
    head = b'II*\0' if order == '<' else b'MM\0*'
    return prefix + head + struct.pack(order + 'LH', 8, len(tags)) + table + b'\0\0\0\0' + rest


def png_chunk(name, data):
    import zlib
    return struct.pack('>L', len(data)) + name + data + struct.pack('>L', zlib.crc32(name + data))


def png_with(png, name, data, late=False):
    "A PNG with one more chunk, before or after the pixels"
    at = png.index(b'IEND') - 4 if late else 33
    return png[:at] + png_chunk(name, data) + png[at:]


def encoded(im, fmt, **options):
    im.save(buf := io.BytesIO(), fmt, **options)
    return buf.getvalue()


def avif_with(avif, data):
    "An AVIF whose EXIF data is replaced by `data`, which must not be longer"
    from PIL import _avif
    old = _avif.AvifDecoder(avif, 'auto', 1).get_info()[4].removeprefix(b'Exif\0\0')
    assert avif.count(old) == 1 and len(data) <= len(old)
    return avif.replace(old, data.ljust(len(old), b'\0'))


def container(im, kind, data):
    "`im` as a file with the raw EXIF data `data`"
    if kind == 'jpeg': return encoded(im, 'jpeg', exif=data, quality=90)
    if kind == 'camera jpeg':                                               # without JFIF, so Pillow reads the resolution from EXIF
        raw = encoded(im, 'jpeg', exif=data, quality=90)
        return raw[:2] + raw[2 + 2 + struct.unpack('>H', raw[4:6])[0]:] if raw[2:4] == b'\xff\xe0' else raw
    if kind == 'webp': return encoded(im, 'webp', exif=data, quality=90)
    bare = data.removeprefix(b'Exif\0\0')
    if kind == 'png': return png_with(encoded(im, 'png'), b'eXIf', bare)
    if kind == 'late png': return png_with(encoded(im, 'png'), b'eXIf', bare, late=True)
    if kind == 'png text':
        info = PngImagePlugin.PngInfo()
        info.add_text('Raw profile type exif', f'\nexif\n{len(data):8}\n' + '\n'.join(data.hex()[i:i+72] for i in range(0, 2*len(data), 72)) + '\n', zip=True)
        return encoded(im, 'png', pnginfo=info)
    raise ValueError(kind)


KINDS = ('jpeg', 'camera jpeg', 'webp', 'png', 'late png', 'png text')


def with_tag(profile, name, data):
    "An ICC profile with other data in one of its tags"
    n, = struct.unpack_from('>L', profile, 128)
    tags = {}
    for k in range(n):
        key, at, size = struct.unpack_from('>4sLL', profile, 132 + 12*k)
        tags[key] = profile[at:at + size]
    tags[name] = data
    return icc(profile[:128], tags)


def icc(header, tags):
    "An ICC profile from a header and tags"
    table, rest, at = b'', b'', 132 + 12*len(tags)
    for key, data in tags.items():
        data = data.ljust(-(-len(data)//4)*4, b'\0')
        table += struct.pack('>4sLL', key, at + len(rest), len(data))
        rest += data
    return struct.pack('>L', at + len(rest)) + header[4:128] + struct.pack('>L', len(tags)) + table + rest


def _xyz(*v): return b'XYZ \0\0\0\0' + struct.pack('>3l', *(round(x*65536) for x in v))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
P3 = SRGB                                                                   # Display P3, the color space of iPhones
for _name, _value in ((b'rXYZ', (.51512, .2412, -.00105)), (b'gXYZ', (.29198, .69225, .04189)), (b'bXYZ', (.1571, .06657, .78407))):
    P3 = with_tag(P3, _name, _xyz(*_value))
GRAY_LINEAR = icc(SRGB[:16] + b'GRAY' + SRGB[20:128], {b'wtpt': _xyz(.9642, 1, .8249), b'kTRC': b'curv\0\0\0\0\0\0\0\0'})
_lut = bytes(v for c, m, y, k in product((0, 1), repeat=4) for v in (round(255*(1 - k)*(1 - .2*(c + m + y))), 128, 128))
CMYK = icc(SRGB[:12] + b'prtrCMYKLab ' + SRGB[24:128], {b'wtpt': _xyz(.9642, 1, .8249), b'A2B0': b'mft1\0\0\0\0\x04\x03\x02\0' + struct.pack(
    '>9l', *(65536*v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))) + bytes(range(256))*4 + _lut + bytes(range(256))*3})
