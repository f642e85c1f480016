"Architectures of timm either work or are refused in one line before training"
import warnings

import numpy as np, pytest, timm, torch
from fastcore.all import Path
from gear_fastai.dataset import dataloaders, split_dataset
from gear_fastai.inference import GearClassifier
from gear_fastai.export import SaveBest
from gear_fastai.sources import draw_sample
from gear_fastai.transfer import _fit_ridge, arch_name, check_network, create_backbone, has_dense_head, head_logits, head_parameters, set_head, transfer_learner

SMALL_DEIT = dict(embed_dim=48, depth=1, num_heads=3)
SMALL_COAT = dict(embed_dims=(32, 32, 32, 32), serial_depths=(2, 1, 1, 1), parallel_depth=0, num_heads=8)


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    sample = draw_sample(tmp_path_factory.mktemp('photos')/'gear', n=3)
    return dataloaders(sample, size=64, bs=8, splits=split_dataset(sample, valid=.3, test=0))


@pytest.mark.parametrize('arch, args', [
    ('deit_tiny_distilled_patch16_224', SMALL_DEIT),    # a tuple of classifiers
    ('test_vit4', {}),                                  # root mean square normalization, which torch's exporter lacks
    ('coat_lite_tiny', SMALL_COAT),                     # two parts share weights
    ('efficientvim_m1', dict(embed_dim=(32, 48, 64), depths=(1, 1, 1))),   # the classifier is no dense layer on pooled features
])
def test_trained_saved_and_used(dls, tmp_path, arch, args):
    learn = transfer_learner(dls, arch, pretrained=False, model_args=args)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        learn.fine_tune(1, cbs=SaveBest(tmp_path/'model'))
    assert len(learn.recorder.history) == 2
    assert any('not linear' in str(w.message) for w in told) == (arch == 'efficientvim_m1')
    assert GearClassifier(tmp_path/'model').predict(dls.valid_ds.items[0]).confidence > 0


def test_head_of_a_distilled_network_is_linear():
    net = create_backbone('deit_tiny_distilled_patch16_224', 3, pretrained=False, size=32, model_args=SMALL_DEIT)
    x = torch.randn(4, 3, 32, 32)
    assert has_dense_head(net, x)
    assert len(head_parameters(net)) == 4
    weight, bias = torch.randn(3, 48), torch.randn(3)
    set_head(net, weight, bias)
    features = net.forward_head(net.forward_features(x), pre_logits=True)
    assert torch.allclose(net.eval()(x), features @ weight.T + bias, atol=1e-4)
    assert torch.allclose(head_logits(net, features), net(x), atol=1e-4)


def test_a_size_that_fits_is_named():
    with pytest.raises(ValueError, match='nearest size that fits is 240') as refused:
        create_backbone('crossvit_tiny_240', 3, pretrained=False, size=64)
    assert '\n' not in str(refused.value)


def test_operators_that_onnx_lacks_are_refused_in_one_line(capfd):
    net = timm.create_model('test_resnet', num_classes=3)
    features = net.forward_features
    net.forward_features = lambda x: features(x + torch.linalg.eigvals(x[:, :, :3, :3]).real.sum())
    with pytest.raises(ValueError, match="test_resnet: can't be used here, save") as refused: check_network(net, 64)
    assert '\n' not in str(refused.value) and 'IR graph' not in capfd.readouterr().out


def test_trying_out_changes_nothing():
    net = timm.create_model('test_resnet', num_classes=3)
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    check_network(net, 64)
    assert net.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_that_answers_nonsense_is_refused():
    net = timm.create_model('test_resnet', num_classes=3)
    net.forward = lambda x: (torch.zeros(len(x), 3), torch.zeros(len(x), 3))
    with pytest.raises(ValueError, match="test_resnet: can't be used here, run"): check_network(net, 64)


def test_names():
    from torchvision.models import resnet18
    assert arch_name(resnet18) == 'resnet18'
    with pytest.raises(ValueError, match='nearest: resnet18'): arch_name('resnet_18')
    with pytest.raises(ValueError, match='nearest: .*mobilenetv2_100'): arch_name('mobilenetv2_10.ra_in1k')


def test_left_out_logits_are_no_better_than_chance_on_noise():
    "The mean over all photos would tell of the one that is left out"
    rng = np.random.default_rng(0)
    y, groups = torch.arange(48) % 12, np.arange(48) % 12                   # each class one group, and noise for features
    x = torch.from_numpy(rng.normal(size=(48, 96)))
    left_out = _fit_ridge(x, y, 12, groups, (.1, .3, 1., 3.))[2]
    assert (left_out.argmax(1) == y).float().mean() < .2
    assert torch.nn.functional.cross_entropy(left_out, y) > 2


def test_few_separable_photos_give_a_head_of_moderate_scale():
    y = torch.arange(24) % 3
    x = torch.eye(3, dtype=torch.float64)[y] + .01*torch.randn(24, 3, dtype=torch.float64)
    weight, bias, left_out = _fit_ridge(x, y, 3, np.arange(24), (.1, .3, 1., 3.))
    one_wrong = torch.nn.functional.cross_entropy(x @ weight.T + bias, torch.cat([1 - y[:1].clamp(max=1), y[1:]]))
    assert .005 < torch.nn.functional.cross_entropy(left_out, y) < .2
    assert one_wrong < 1


def test_features_that_hardly_vary_do_not_count():
    y = torch.arange(24) % 3
    x = torch.cat([torch.eye(3, dtype=torch.float64)[y], 1 + 1e-7*torch.randn(24, 3, dtype=torch.float64)], 1)
    weight = _fit_ridge(x, y, 3, np.arange(24), (1.,))[0]
    assert weight[:, 3:].abs().max() < weight[:, :3].abs().max()
