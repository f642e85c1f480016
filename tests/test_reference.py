"Rejection, nearest training photos, models of format 1 and the bundled weights."
import json, shutil

import numpy as np, onnx, pytest
from onnx import TensorProto, helper, numpy_helper

from gear_fastai.dataset import is_none, split_dataset
from gear_fastai.drawing import draw_photo
from gear_fastai.evaluation import evaluate
from gear_fastai.inference import GearClassifier
from gear_fastai.model_folder import REFERENCE, ModelError, _digest, read_gear, read_reference
from gear_fastai.recipes import train_model
from gear_fastai.sources import draw_sample
from gear_fastai.transfer import WeightsError, create_backbone

PROBE = dict(recipe='test_efficientnet', epochs=0, size=64, pretrained=False, progress=False)


def add_negatives(data, n, seed=0):
    "Write `n` pictures of stripes and noise to the dataset's `_none`"
    from PIL import Image
    rng = np.random.default_rng(seed)
    (data/'_none').mkdir(exist_ok=True)
    for i in range(n):
        stripes = np.repeat(rng.integers(0, 256, (8, 1, 3), np.uint8), 8, 0)
        pixels = np.tile(stripes, (1, 64, 1)) if i % 2 else rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(data/f'_none/{seed}-{i}.png')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    data = draw_sample(tmp_path_factory.mktemp('reference')/'gear', n=10)
    add_negatives(data, 60)
    return data


@pytest.fixture(scope='module')
def model(data):
    train_model(data, out=data.parent/'model', **PROBE)
    return data.parent/'model'


def test_negatives_are_rejected(data, model):
    ev = evaluate(model, data, 'test')
    assert ev.ood['all']['rejected'] > .8 and ev.ood['all']['auroc'] > .95 and ev.coverage > .85
    assert '_none' not in ev.per_class and '_none' not in GearClassifier(model).labels
    about = read_gear(model)
    assert about['data']['negatives'] == 60 and about['calibration']['which'] == 'left-out training'


def test_negatives_from_the_source_of_a_photo_are_used(data, tmp_path):
    "A group may be a website with photos of both kinds"
    splits = split_dataset(data)
    splits.loc[is_none(splits), 'group'] = splits.group[~is_none(splits) & (splits.split == 'train')].iloc[0]
    train_model(data, out=tmp_path/'model', split=splits, **PROBE)
    reference = GearClassifier(tmp_path/'model').reference
    assert (reference.labels < 0).sum() == (is_none(splits) & (splits.split == 'train')).sum() > 30


def test_the_nearest_training_photo_explains_a_prediction(data, model):
    splits = split_dataset(data)
    path = splits.path[(splits.split == 'train') & (splits.label == 'boots')].iloc[0]
    clf = GearClassifier(model)
    p = clf.predict(data/path)
    assert p.nearest.path == path and p.nearest.label == 'boots' and p.nearest.similarity > .99
    assert p.to_dict()['nearest']['path'] == path and p.score >= clf.threshold
    assert json.loads(json.dumps(p.to_dict()))['score'] == p.score


def test_too_few_negatives_are_named_and_left_out(tmp_path):
    data = draw_sample(tmp_path/'gear', n=6)
    add_negatives(data, 5)
    with pytest.warns(UserWarning, match='negatives are too few to learn from, 30 are needed'):
        train_model(data, out=tmp_path/'model', **PROBE)
    assert GearClassifier(tmp_path/'model').reference.weight is None


def test_a_custom_cnn_learns_from_negatives_too(data, tmp_path):
    train_model(data, 'gear_cnn_small', tmp_path/'model', epochs=1, size=48, progress=False)
    assert GearClassifier(tmp_path/'model').reference.weight.shape[0] == 13


def as_format_1(model, dest):
    "A copy of a model as older versions saved it: `model.onnx` computes the similarity"
    shutil.copytree(model, dest)
    reference = read_reference((dest/REFERENCE).read_bytes())
    (dest/REFERENCE).unlink()
    proto = onnx.load(dest/'model.onnx')
    photos = numpy_helper.from_array(reference.features[:reference.n_photos].T.copy(), 'reference')
    proto.graph.initializer.append(photos)
    proto.graph.node.extend([helper.make_node('LpNormalization', ['features'], ['unit'], axis=1),
                             helper.make_node('MatMul', ['unit', 'reference'], ['cosines']),
                             helper.make_node('ArgMax', ['cosines'], ['row'], axis=1, keepdims=1),
                             helper.make_node('GatherElements', ['cosines', 'row'], ['largest'], axis=1),
                             helper.make_node('Flatten', ['largest'], ['similarity_2d'], axis=1),
                             helper.make_node('Squeeze', ['similarity_2d', 'one'], ['similarity'])])
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), 'one'))
    del proto.graph.output[1]
    proto.graph.output.append(helper.make_tensor_value_info('similarity', TensorProto.FLOAT, ['n']))
    onnx.save(proto, dest/'model.onnx')
    about = json.loads((dest/'gear.json').read_text()) | dict(format=1, rejection_threshold=.5)
    del about['files'][REFERENCE]
    about['files']['model.onnx'] = _digest('model.onnx', (dest/'model.onnx').read_bytes())
    (dest/'gear.json').write_text(json.dumps(about))
    return dest


def test_models_of_format_1_can_be_used(data, model, tmp_path):
    old = GearClassifier(as_format_1(model, tmp_path/'old'))
    new = GearClassifier(model)
    photo = draw_photo('tents', seed=5)
    p = old.predict(photo)
    assert p.probabilities == pytest.approx(new.predict(photo).probabilities, abs=1e-5)
    assert p.similarity == p.score == pytest.approx(new.predict(photo).similarity, abs=1e-2) and p.nearest is None
    assert old.threshold == .5 and evaluate(tmp_path/'old', data, 'test').n > 0


def test_a_model_without_its_reference_is_refused(model, tmp_path):
    shutil.copytree(model, tmp_path/'model')
    (tmp_path/'model'/REFERENCE).unlink()
    with pytest.raises(ModelError, match='has no reference.safetensors'): GearClassifier(tmp_path/'model')


def test_missing_bundled_weights_are_named(monkeypatch):
    monkeypatch.setattr('gear_fastai.transfer.bundled_model', lambda: None)
    with pytest.raises(WeightsError, match='missing from this installation; reinstall gear_fastai, or give weights='):
        create_backbone('tf_efficientnet_lite0', 12)


def test_bundled_weights_leave_the_classifier_random():
    model = create_backbone('tf_efficientnet_lite0', 12)
    bundled = GearClassifier()
    assert model.num_classes == len(bundled.labels)
    from gear_fastai.checkpoint import load_network
    network = load_network(bundled.folder)
    assert (model.conv_stem.weight == network.conv_stem.weight).all()
    assert not (model.classifier.weight == network.classifier.weight).any()
