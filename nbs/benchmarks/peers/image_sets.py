"Small labeled image sets, drawn or cut from files that packages ship, each with shifted test sets"
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 96  # pixels


def random_color(rng, low=0, high=255): return tuple(rng.randint(low, high) for _ in range(3))


# Sources: yield (label, image), `n` of each class; the seed decides which

def draw_gear(n, rng):
    "Products drawn by gear_fastai"
    from gear_fastai.drawing import CLASSES, draw_photo
    for label in CLASSES:
        for _ in range(n): yield label, draw_photo(label, rng.getrandbits(32), size=SIDE)


def polygon(corners, inner=1):
    "Points of a regular polygon with radius 1, or of a star"
    angles = np.arange(2*corners)*np.pi/corners
    radii = np.where(np.arange(2*corners) % 2, inner, 1)
    points = np.column_stack([np.sin(angles), -np.cos(angles)])*radii[:, None]
    return points if inner < 1 else points[::2]


SHAPES = dict(circle=polygon(40), triangle=polygon(3), rectangle=polygon(4), pentagon=polygon(5),
              star=polygon(5, .45), cross=polygon(4, .3))


def draw_shape(label, rng):
    "A rotated shape in one color on white"
    angle = rng.uniform(-.3, .3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.array([rng.uniform(.4, .6), rng.uniform(.4, .6)])
    points = (SHAPES[label] @ turn*rng.uniform(.2, .35) + center)*4*SIDE
    image = Image.new('RGB', (4*SIDE, 4*SIDE), 'white')
    ImageDraw.Draw(image).polygon([tuple(point) for point in points], random_color(rng, 0, 200))
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def draw_shapes(n, rng):
    for label in SHAPES:
        for _ in range(n): yield label, draw_shape(label, rng)


FONTS = ('DejaVuSans', 'DejaVuSerif', 'DejaVuSansMono', 'DejaVuSans-Bold', 'STIXGeneral', 'STIXGeneralItalic')


def draw_letter(letter, rng):
    "A letter in a font that Matplotlib ships"
    from matplotlib import get_data_path
    file = Path(get_data_path(), 'fonts/ttf', f'{rng.choice(FONTS)}.ttf')
    font = ImageFont.truetype(file, rng.randint(50, 75))
    image = Image.new('RGB', (SIDE, SIDE), 'white')
    place = (SIDE/2 + rng.randint(-8, 8), SIDE/2 + rng.randint(-8, 8))
    ImageDraw.Draw(image).text(place, letter, random_color(rng, 0, 160), font, anchor='mm')
    return image.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, fillcolor='white')


def draw_letters(n, rng):
    for letter in 'ABEGKMQRSZ':
        for _ in range(n): yield letter, draw_letter(letter, rng)


def show_digits(n, rng):
    "Handwritten digits of scikit-learn: 8 × 8 pixels, dark on white"
    from sklearn.datasets import load_digits
    digits = load_digits()
    for label in range(10):
        for i in rng.sample(list(np.flatnonzero(digits.target == label)), n):
            pixels = (255 - digits.images[i]*255/16).astype(np.uint8)
            yield str(label), Image.fromarray(pixels).convert('RGB').resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def scenes():
    "Photos that scikit-learn and Matplotlib ship, cut into regions that look different"
    from matplotlib import get_data_path
    from sklearn.datasets import load_sample_images
    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    portrait = Image.open(Path(get_data_path(), 'sample_data/grace_hopper.jpg')).convert('RGB')
    sky = china.crop((0, 0, 640, 130))
    temple = china.crop((0, 130, 640, 427))
    return dict(sky=sky, temple=temple, flower=flower, portrait=portrait)


def cut_patches(n, rng):
    "Patches of `scenes`, from left to right, so that the test patches come from another part of the picture"
    for label, image in scenes().items():
        for i in range(n):
            side = rng.randint(48, 110)
            x = (image.width - side)*i//n
            y = rng.randint(0, image.height - side)
            yield label, image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


SOURCES = dict(gear=draw_gear, shapes=draw_shapes, letters=draw_letters, digits=show_digits, patches=cut_patches)


# Shifts: image → image as another photographer would take it

def new_background(image, rng):
    "Replace white by a two-colored pattern"
    tile = np.random.default_rng(rng.getrandbits(32)).random((6, 6, 1))
    two = np.array([random_color(rng, 60, 200), random_color(rng, 60, 200)])
    pattern = Image.fromarray((tile*two[0] + (1 - tile)*two[1]).astype(np.uint8))
    pattern = pattern.resize(image.size, Image.Resampling.BICUBIC)
    darkness = 255 - np.asarray(image).min(axis=2)
    mask = Image.fromarray((darkness.astype(float)*4).clip(0, 255).astype(np.uint8))
    return Image.composite(image, pattern, mask)


def blur(image, rng): return image.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 3)))


def relight(image, rng):
    "Darken one side and add a color cast"
    ramp = np.linspace(rng.uniform(.3, .6), 1, image.width)[None, :, None]
    cast = np.array([rng.uniform(.6, 1) for _ in range(3)])
    return Image.fromarray((np.asarray(image)*ramp*cast).clip(0, 255).astype(np.uint8))


def add_noise(image, rng):
    "The noise and coarse pixels of a small camera"
    small = image.resize((SIDE//2, SIDE//2), Image.Resampling.BOX)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 25, (SIDE//2, SIDE//2, 3))
    noisy = Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))
    return noisy.resize(image.size, Image.Resampling.NEAREST)


SHIFTS = dict(background=new_background, blur=blur, lighting=relight, noise=add_noise)


def shifts_of(source): return {k: v for k, v in SHIFTS.items() if (source, k) != ('patches', 'background')}


def save_images(folder, pairs):
    "Write each image as a PNG file in the folder of its class"
    for i, (label, image) in enumerate(pairs):
        Path(folder, label).mkdir(parents=True, exist_ok=True)
        image.save(Path(folder, label, f'{i:04}.png'))


def shifted(pairs, shift, seed):
    rng = random.Random(seed)
    for label, image in pairs: yield label, shift(image, rng)


def make_dataset(source, dest, n=20, seed=42):
    "Write `train`, `valid` and `test` with class folders, and a shifted copy of `test` per shift"
    counts = dict(train=n, valid=max(n//4, 2), test=max(n//2, 2))
    pairs = list(SOURCES[source](sum(counts.values()), random.Random(seed)))
    of_class = {}
    for label, image in pairs: of_class.setdefault(label, []).append((label, image))
    first = 0
    for split, count in counts.items():
        part = [pair for rows in of_class.values() for pair in rows[first:first + count]]
        save_images(Path(dest, split), part)
        first += count
    for name, shift in shifts_of(source).items():
        save_images(Path(dest, f'test-{name}'), shifted(part, shift, seed))
    return Path(dest)
