"What users of fastai try first works, or fails with one line that says what to use"
import ctypes, json, subprocess, sys
import numpy as np, pandas as pd, pytest, timm, torch
from PIL import Image
from fastai.vision.all import (Callback, CategoryBlock, CrossEntropyLossFlat, DataBlock, ImageBlock, ImageDataLoaders, Learner, MultiCategoryBlock, PILImageBW,
                               ProgressCallback, RandomResizedCrop, ShortEpochCallback, RandomSplitter, RegressionBlock, Resize, accuracy, aug_transforms, get_image_files,
                               load_learner, noop, parent_label, vision_learner)
from gear_fastai.checkpoint import SaveBest, load_learner_from, load_network
from gear_fastai.dataset import split_dataset
from gear_fastai.inference import GearClassifier
from gear_fastai.learner import photo_learner, record_epochs, StopDiverged
from gear_fastai.loaders import PhotoBlock, dataloaders
from gear_fastai.photo import list_photos
from gear_fastai.recipes import train_model
from gear_fastai.sources import draw_sample
from gear_fastai.transfer import transfer_learner
from torchvision.models import resnet18

pytestmark = pytest.mark.filterwarnings('ignore')
LOADERS = dict(valid_pct=.3, seed=1, bs=8, num_workers=0)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Drawn photos in three classes as plain JPEGs"
    home = tmp_path_factory.mktemp('photos')
    for file in list_photos(draw_sample(home/'all', n=4)):
        if file.parent.name not in ('boots', 'rope', 'tents'): continue
        (home/'jpeg'/file.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(file).convert('RGB').save(home/'jpeg'/file.parent.name/f'{file.stem}.jpg')
    return home/'jpeg'


@pytest.fixture(scope='module')
def dls(photos): return dataloaders(photos, 48, 4, splits=split_dataset(photos, valid=.3, test=0))


def quiet(learn):
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn


def _table(photos):
    files = list(list_photos(photos))
    return pd.DataFrame(dict(name=[str(f.relative_to(photos)) for f in files], label=[f.parent.name for f in files]))


foreign = dict(
    crop=lambda p: ImageDataLoaders.from_folder(p, item_tfms=Resize(48), batch_tfms=aug_transforms(), **LOADERS),
    squish=lambda p: ImageDataLoaders.from_folder(p, item_tfms=Resize(48, 'squish'), **LOADERS),
    zeros=lambda p: ImageDataLoaders.from_folder(p, item_tfms=Resize(48, 'pad', 'zeros'), **LOADERS),
    border=lambda p: ImageDataLoaders.from_folder(p, item_tfms=Resize(48, 'pad', 'border'), **LOADERS),
    reflection=lambda p: ImageDataLoaders.from_folder(p, item_tfms=Resize(48, 'pad'), **LOADERS),
    table=lambda p: ImageDataLoaders.from_df(_table(p), p, item_tfms=Resize(48), **LOADERS),
    booleans=lambda p: ImageDataLoaders.from_path_func(p, get_image_files(p), lambda f: f.parent.name == 'boots', item_tfms=Resize(48), **LOADERS),
    photoblock=lambda p: DataBlock((PhotoBlock(48), CategoryBlock), get_items=get_image_files, get_y=parent_label).dataloaders(p, bs=8, num_workers=0),
)


@pytest.mark.parametrize('kind', foreign)
def test_foreign_loaders_are_saved_with_their_preprocessing(photos, tmp_path, kind):
    theirs = foreign[kind](photos)
    learn = quiet(photo_learner(theirs, 'gear_cnn_small'))
    learn.fit(1, 1e-3, cbs=SaveBest(tmp_path/'model'))
    files = [photos/p if isinstance(p, str) else p for p in (theirs.valid_ds.items.name if kind == 'table' else theirs.valid_ds.items)]
    batch = theirs.valid.one_batch()[0].as_subclass(torch.Tensor).cpu()
    with torch.no_grad(): logits = load_network(tmp_path/'model')(batch)
    classifier = GearClassifier(tmp_path/'model')
    for file, expected in zip(files, (logits/classifier.temperature).softmax(1)):
        assert list(classifier.predict(file).probabilities.values()) == pytest.approx(expected.tolist(), abs=2e-3)
    splits = pd.read_csv(tmp_path/'model/splits.csv')
    assert set(splits.split) == {'train', 'valid'} and len(splits) == 12
    assert load_learner_from(tmp_path/'model', theirs)


class NoEpoch(Callback):
    "Fail when training begins"
    def before_epoch(self): raise AssertionError('an epoch began')

blocks = dict(get_items=get_image_files, item_tfms=Resize(48), splitter=RandomSplitter(.3, seed=1))
refused = dict(
    presized=(lambda p: ImageDataLoaders.from_folder(p, item_tfms=Resize(64), batch_tfms=aug_transforms(size=48), **LOADERS), 'PhotoBlock'),
    random_crop=(lambda p: ImageDataLoaders.from_folder(p, item_tfms=RandomResizedCrop(48), **LOADERS), 'PhotoBlock'),
    oblong=(lambda p: ImageDataLoaders.from_folder(p, item_tfms=Resize((48, 64)), **LOADERS), 'square color photos'),
    gray=(lambda p: DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_y=parent_label, **blocks).dataloaders(p, bs=8, num_workers=0), 'square color photos'),
    several=(lambda p: DataBlock((ImageBlock, MultiCategoryBlock), get_y=lambda f: [f.parent.name], **blocks).dataloaders(p, bs=8, num_workers=0), 'one class for each'),
    numbers=(lambda p: DataBlock((ImageBlock, RegressionBlock), get_y=lambda f: float(len(f.name)), **blocks).dataloaders(p, bs=8, num_workers=0), 'one class for each'),
)


@pytest.mark.parametrize('kind', refused)
def test_foreign_loaders_that_inference_cannot_repeat_are_refused_before_training(photos, tmp_path, kind):
    make, message = refused[kind]
    theirs = make(photos)
    net = timm.create_model('gear_cnn_small', num_classes=theirs.c)
    learn = quiet(Learner(theirs, net, loss_func=CrossEntropyLossFlat()))
    with pytest.raises(ValueError, match=message) as e: learn.fit(1, cbs=[NoEpoch(), SaveBest(tmp_path/'model')])
    assert '\n' not in str(e.value) and not (tmp_path/'model').exists()


def test_transparent_photos_are_named(photos, tmp_path):
    for label in ('a', 'b'):
        for i in range(6):
            (tmp_path/label).mkdir(exist_ok=True)
            Image.new('RGBA', (60, 50), (9*i, 0, 0, 0)).save(tmp_path/label/f'{i}.png')
    theirs = ImageDataLoaders.from_folder(tmp_path, item_tfms=Resize(48), **LOADERS)
    with pytest.raises(ValueError, match='transparency'): quiet(photo_learner(theirs, 'gear_cnn_small')).fit(1, cbs=SaveBest(tmp_path/'model'))


def test_arrays_have_no_files(photos, tmp_path):
    files = get_image_files(photos)
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: np.array(Image.open(files[i])), get_y=lambda i: files[i].parent.name, item_tfms=Resize(48))
    theirs = block.dataloaders(list(range(len(files))), bs=8, num_workers=0)
    with pytest.raises(ValueError, match='are not files'): quiet(photo_learner(theirs, 'gear_cnn_small')).fit(1, cbs=SaveBest(tmp_path/'model'))


def test_networks_that_are_not_of_timm_are_refused_before_training(dls, tmp_path):
    learn = quiet(vision_learner(dls, resnet18, pretrained=False))
    with pytest.raises(ValueError, match='transfer_learner') as e: learn.fit(1, cbs=[NoEpoch(), SaveBest(tmp_path/'model')])
    assert '\n' not in str(e.value)
    with pytest.raises(ValueError, match='transfer_learner'): photo_learner(dls, 'resnet18')
    many = quiet(Learner(dls, timm.create_model('test_resnet'), loss_func=CrossEntropyLossFlat()))
    with pytest.raises(ValueError, match='1000 outputs'): many.fit(1, cbs=SaveBest(tmp_path/'model'))


def test_diverging_is_noticed_in_a_plain_learner(dls):
    learn = quiet(Learner(dls, timm.create_model('test_resnet', num_classes=dls.c), loss_func=CrossEntropyLossFlat(), cbs=StopDiverged()))
    with learn.no_bar(): learn.fit(1, 1e-3)
    with learn.no_bar(), pytest.raises(ValueError, match='training diverged'): learn.fit(2, 1e12)


def test_an_epoch_that_ends_early(dls):
    learn = quiet(record_epochs(Learner(dls, timm.create_model('test_resnet', num_classes=dls.c), loss_func=CrossEntropyLossFlat())))
    with learn.no_bar(): learn.fit(1, 1e-3, cbs=[StopDiverged(), ShortEpochCallback(.5)])
    assert np.isfinite(learn.recorder.history[-1]['train_loss'])


def test_a_network_of_timm_in_fastais_learner(dls, tmp_path):
    learn = quiet(Learner(dls, timm.create_model('test_resnet', num_classes=dls.c), loss_func=CrossEntropyLossFlat(), metrics=accuracy))
    learn.fit(2, 1e-3, cbs=SaveBest(tmp_path/'model'))
    assert len(pd.read_csv(tmp_path/'model/history.csv')) == 2
    about = json.loads((tmp_path/'model/gear.json').read_text())
    assert about['preprocessing']['mean'] == [0, 0, 0]                     # nothing normalized the photos


def test_names_and_functions_of_architectures(dls):
    with pytest.raises(ValueError, match=r"use transfer_learner\(dls, 'resnet18'\)"): photo_learner(dls, resnet18)
    with pytest.raises(ValueError, match='gear_cnn_small'): photo_learner(dls, 'gear_cnn_smal')


def test_export_and_load_learner(dls, tmp_path):
    for learn in (photo_learner(dls, 'gear_cnn_small', path=tmp_path), transfer_learner(dls, 'test_resnet', pretrained=False, path=tmp_path)):
        learn.export('export.pkl')
        again = load_learner(tmp_path/'export.pkl')
        with again.no_bar(): assert again.predict(dls.valid_ds.items[0])[0] in dls.vocab


def test_files_in_place_of_model_folders(dls, tmp_path):
    for name, way in (('export.pkl', 'load_learner'), ('weights.pth', 'learn.load')):
        (tmp_path/name).touch()
        with pytest.raises(ValueError, match=way): load_network(tmp_path/name)
        with pytest.raises(ValueError, match=way): load_learner_from(tmp_path/name, dls)


def test_lr_find(dls, tmp_path):
    learn = quiet(transfer_learner(dls, 'test_resnet', pretrained=False, path=tmp_path))
    learn.fine_tune(0)
    assert learn.lr_find(show_plot=False, num_it=40).valley > 0
    again = quiet(photo_learner(dls, 'gear_cnn_small', path=tmp_path, cbs=SaveBest(tmp_path/'model')))
    again.lr_find(show_plot=False, num_it=40)
    assert not (tmp_path/'model').exists()
    before = [p.detach().clone() for p in again.model.parameters()]
    again.lr_find(show_plot=False, num_it=40)
    assert all(torch.equal(p, old) for p, old in zip(again.model.parameters(), before))         # with Muon, too


def test_diverged_training_names_the_learning_rate(dls, photos, tmp_path):
    with pytest.raises(ValueError, match='training diverged in epoch 0.* at learning rate') as e:
        train_model(photos, 'gear_cnn_small', tmp_path/'model', epochs=2, lr=1e12, size=32, progress=False, split=dls.splits)
    assert '\n' not in str(e.value) and not (tmp_path/'model').exists()

    class Raise(Callback):
        "A learning rate that is too high from the second epoch on"
        def before_batch(self):
            if self.epoch: self.opt.set_hypers(lr=1e20)
    learn = quiet(transfer_learner(dls, 'test_resnet', pretrained=False))
    with pytest.raises(ValueError, match='diverged'): learn.fit(4, 1e-4, cbs=[Raise(), SaveBest(tmp_path/'kept')])
    assert json.loads((tmp_path/'kept/gear.json').read_text())['metrics']['epoch'] == 0        # the best earlier epoch


PAGES = """
import resource
from fastai.vision.all import *
from gear_fastai.learner import KeepMemory
net = nn.Sequential(ConvLayer(3, 32), nn.MaxPool2d(2), ConvLayer(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))
photos = DataLoader(list(zip(torch.randn(64, 3, 96, 96), torch.randint(12, (64,)))), bs=32, num_workers=0)
for cbs in (None, None, KeepMemory()):                                          # the first run allocates more than later ones
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    learn = Learner(DataLoaders(photos, photos), net, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit(4)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != 'linux' or not hasattr(ctypes.CDLL(None), 'mallopt'), reason='needs glibc')
def test_keep_memory_reuses_pages():
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', PAGES], check=True, capture_output=True, text=True).stdout
    _, usual, kept = map(int, out.split())
    assert kept < usual/2
