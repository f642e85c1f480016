"Custom CNNs, timm backbones and linear probes: each works, or fails before training with an error in one line."
import http.server, shutil, subprocess, sys, threading, time, warnings
from unittest import mock

import numpy as np, pytest, timm, torch
from fastai.vision.all import Callback, SaveModelCallback, set_seed
from huggingface_hub import constants
from safetensors.torch import save_file
from gear_fastai.checkpoint import load_network, SaveBest
from gear_fastai.cnn import default_cfgs
from gear_fastai.dataset import split_dataset
from gear_fastai.export import save_classifier
from gear_fastai.inference import GearClassifier
from gear_fastai.loaders import dataloaders
from gear_fastai.model_folder import read_gear
from gear_fastai.probe import fit_ridge
from gear_fastai.sources import draw_sample
from gear_fastai.transfer import arch_name, check_network, create_backbone, has_dense_head, head_logits, head_parameters
from gear_fastai.transfer import set_head, split_parameters, transfer_learner, WeightsError, WiseFT

SMALL_DEIT = dict(embed_dim=48, depth=1, num_heads=3)
SMALL_COAT = dict(embed_dims=(32, 32, 32, 32), serial_depths=(2, 1, 1, 1), parallel_depth=0, num_heads=8)


@pytest.fixture(scope='module')
def sample(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('photos')/'gear', n=3)


@pytest.fixture(scope='module')
def dls(sample): return dataloaders(sample, size=64, bs=8, splits=split_dataset(sample, valid=.3, test=0))


@pytest.mark.parametrize('module', ['probe', 'calibration'])
def test_no_torch_is_imported(module):
    code = f'import sys, gear_fastai.{module}; assert not {{"torch", "fastai", "timm"}} & set(sys.modules)'
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


@pytest.mark.parametrize('name', default_cfgs)
def test_custom_cnns_have_the_interface_of_timm_models(name):
    size = timm.get_pretrained_cfg(name).input_size[-1]
    net = timm.create_model(name, num_classes=12).eval()
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        features = net.forward_head(net.forward_features(x), pre_logits=True)
        assert features.shape == (2, net.num_features)
        assert torch.equal(net(x), net.get_classifier()(features))
    net.reset_classifier(7)
    assert net(x).shape == (2, 7)


def test_the_large_cnn_has_the_same_resolution_after_its_stem():
    net, large = timm.create_model('gear_cnn'), timm.create_model('gear_cnn_large')
    x, larger = torch.zeros(1, 3, 96, 96), torch.zeros(1, 3, 160, 160)
    assert large.forward_features(larger).shape == net.forward_features(x).shape
    assert [len(stage) for stage in large.stages] == [len(net.stages[0]) + 1, *map(len, net.stages[1:])]


@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit'])
def test_fine_tune_keeps_the_first_half_unless_deep(dls, arch):
    learn = transfer_learner(dls, arch, pretrained=False)
    first, second, head = split_parameters(learn.model)
    assert not any(p.requires_grad for p in (*first, *second)) and all(p.requires_grad for p in head)
    for deep in (False, True):
        before, changed = [group[-1].detach().clone() for group in (first, second, head)], []
        def compare(_): changed.extend(not torch.equal(group[-1], old) for group, old in zip((first, second, head), before))
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, deep=deep, cbs=Callback(after_train=compare))
        assert changed == [deep, True, True]


def _copy(model): return {name: value.clone() for name, value in model.state_dict().items()}
def _equal(a, b): return all(torch.equal(value, b[name]) for name, value in a.items())


def test_fine_tuning_that_fails_leaves_the_probe(dls, tmp_path):
    learn = transfer_learner(dls, 'test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(0)
        probe = _copy(learn.model)
        learn.fine_tune(2, 10., cbs=[SaveBest(tmp_path/'best'), SaveModelCallback(fname='fastai')])
    history = learn.recorder.to_frame()
    assert history.train_loss[2] > 2*history.valid_loss[2] and learn.mix == 0
    assert history.valid_loss.values == pytest.approx(history.valid_loss[0], rel=.01)
    assert _equal(_copy(learn.model), probe)
    assert save_classifier(learn, tmp_path/'now').exists() and read_gear(tmp_path/'now')['metrics']['epoch'] == 0
    assert read_gear(tmp_path/'best')['files']['model.safetensors'] == read_gear(tmp_path/'now')['files']['model.safetensors']


@pytest.fixture(scope='module')
def easy(tmp_path_factory):
    "Loaders that a small network learns from in an epoch"
    home = tmp_path_factory.mktemp('easy')
    draw_sample(home/'all', n=60)
    for label in ('boots', 'rope'): shutil.copytree(home/'all'/label, home/'two'/label)
    return dataloaders(home/'two', size=64, bs=8, splits=split_dataset(home/'two', valid=.3, test=0))


def test_callbacks_and_history_see_the_interpolated_weights(easy, tmp_path):
    set_seed(1, reproducible=True)
    easy.train.rng.seed(1)
    learn = transfer_learner(easy, 'test_resnet', pretrained=False)
    learn.path, trained = tmp_path, []
    learn.fit_head()
    for param in head_parameters(learn.model): param.data.neg_()    # a head that any training improves
    learn.recorder.history, learn.recorder.current = [], None
    norms = _copy(learn.model)
    note = Callback(after_train=lambda cb: trained.append(_copy(cb.model)))
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(3, 1e-2, freeze_epochs=0, cbs=[note, SaveBest(tmp_path/'best'), SaveModelCallback(fname='fastai')])
    row = learn.recorder.history[learn.recorder.current]
    assert learn.mix > 0 and row['valid_loss'] == learn.recorder.to_frame().valid_loss.min()
    assert read_gear(tmp_path/'best')['metrics']['epoch'] == row['epoch']
    kept = _copy(learn.model)
    assert _equal(_copy(load_network(tmp_path/'best')), kept)
    assert _equal(torch.load(tmp_path/'models/fastai.pth', weights_only=True), kept)
    assert not _equal(trained[row['epoch']], kept)
    running = [name for name in norms if 'running' in name]
    assert running and all(torch.equal(norms[name], model[name]) for name in running for model in (*trained, kept))
    with learn.no_bar(), learn.no_logging():
        assert learn.validate()[0] == pytest.approx(row['valid_loss'], rel=1e-3)
        learn.fit_one_cycle(1)
    assert learn.mix is None and learn.recorder.current == 3


def test_interpolation_does_not_change_the_training(easy):
    def train(wise):
        set_seed(1, reproducible=True)
        easy.train.rng.seed(1)
        learn, trained = transfer_learner(easy, 'test_resnet', pretrained=False), []
        note = Callback(after_train=lambda cb: trained.append(_copy(cb.model)))
        learn.fit_head()
        learn.freeze_to(1)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-3, cbs=[note, *wise])
        return trained
    assert all(map(_equal, train([WiseFT()]), train([])))


def test_unknown_arguments_of_a_custom_cnn():
    with pytest.raises(TypeError, match='width'): timm.create_model('gear_cnn', width=(8, 16))


def test_names_of_weights():
    assert arch_name('resnet18.a1_in1k') == 'resnet18.a1_in1k'
    with pytest.raises(ValueError, match="'resnet18.nope': timm has no such weights; it has: .*resnet18.a1_in1k"): arch_name('resnet18.nope')


def test_outputs_of_a_probe_are_kept_until_the_weights_change(dls):
    learn = transfer_learner(dls, 'test_resnet', pretrained=False)
    assert learn.probe_outputs is None
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(0)
        features, left_out = learn.probe_outputs
        assert len(features) == len(left_out) == len(dls.train_ds)
        learn.fine_tune(1, base_lr=10)
        assert learn.mix == 0 and torch.equal(learn.probe_outputs[1], left_out)
        learn.fit_one_cycle(1)
    assert learn.probe_outputs is None


@pytest.mark.parametrize('base_lr', [10, 1e-2])
def test_a_probe_that_fine_tune_keeps_is_saved_as_one(easy, tmp_path, base_lr):
    set_seed(1, reproducible=True)
    easy.train.rng.seed(1)
    learn = transfer_learner(easy, 'test_resnet', pretrained=False)
    learn.fit_head()
    save_classifier(learn, tmp_path/'probe')
    if base_lr < 1:
        for param in head_parameters(learn.model): param.data.neg_()        # a head that any training improves
        learn.recorder.history, learn.recorder.current = [], None
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, base_lr, freeze_epochs=0, cbs=SaveBest(tmp_path/'tuned'))
    probe, tuned = (read_gear(tmp_path/name) for name in ('probe', 'tuned'))
    if base_lr == 10: assert tuned['calibration'] == probe['calibration']
    else: assert tuned['calibration']['which'] == 'validation'


def test_the_head_of_two_classes_is_fitted(tmp_path):
    draw_sample(tmp_path/'all', n=8)
    for label in ('boots', 'tents'): shutil.copytree(tmp_path/'all'/label, tmp_path/'two'/label)
    dls = dataloaders(tmp_path/'two', size=64, bs=4, splits=split_dataset(tmp_path/'two', valid=.3, test=0))
    learn = transfer_learner(dls, 'test_resnet', pretrained=False)
    learn.fit_head()
    assert learn.recorder.history[0]['train_loss'] < 1


@pytest.mark.parametrize('arch, args', [
    ('deit_tiny_distilled_patch16_224', SMALL_DEIT),    # a tuple of classifiers
    ('test_vit4', {}),                                  # root mean square normalization, which torch's exporter lacks
    ('coat_lite_tiny', SMALL_COAT),                     # two parts share weights
    ('efficientvim_m1', dict(embed_dim=(32, 48, 64), depths=(1, 1, 1))),   # the classifier is not linear in the features
])
def test_trained_saved_and_used(dls, tmp_path, arch, args):
    learn = transfer_learner(dls, arch, pretrained=False, model_args=args)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        learn.fine_tune(1, cbs=SaveBest(tmp_path/'model'))
    assert len(learn.recorder.history) == 2
    assert any('not linear' in str(w.message) for w in caught) == (arch == 'efficientvim_m1')
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
    with pytest.raises(ValueError, match='test_resnet: not supported, saving fails') as refused: check_network(net, 64)
    assert '\n' not in str(refused.value) and 'IR graph' not in capfd.readouterr().out


def test_checking_changes_nothing():
    net = timm.create_model('test_resnet', num_classes=3)
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    check_network(net, 64)
    assert net.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_that_returns_two_outputs_is_refused():
    net = timm.create_model('test_resnet', num_classes=3)
    net.forward = lambda x: (torch.zeros(len(x), 3), torch.zeros(len(x), 3))
    with pytest.raises(ValueError, match='test_resnet: not supported, inference fails'): check_network(net, 64)


def test_names():
    from torchvision.models import resnet18
    assert arch_name(resnet18) == 'resnet18'
    with pytest.raises(ValueError, match='nearest: resnet18'): arch_name('resnet_18')
    with pytest.raises(ValueError, match='nearest: .*mobilenetv2_100'): arch_name('mobilenetv2_10.ra_in1k')


def _log_loss(logits, y):
    "Mean cross-entropy"
    return torch.nn.functional.cross_entropy(torch.as_tensor(logits), torch.as_tensor(y))


def test_left_out_logits_are_no_better_than_chance_on_noise():
    "A mean over all photos would reveal the label of the one that is left out"
    rng = np.random.default_rng(0)
    y = np.arange(48) % 12
    left_out = fit_ridge(rng.normal(size=(48, 96)), y, 12, groups=y)[2]         # each class is one group
    assert (left_out.argmax(1) == y).mean() < .2
    assert _log_loss(left_out, y) > 2


def test_few_separable_photos_give_a_head_of_moderate_scale():
    y = np.arange(24) % 3
    x = np.eye(3)[y] + .01*np.random.default_rng(0).normal(size=(24, 3))
    weight, bias, left_out = fit_ridge(x, y, 3, np.arange(24))
    one_wrong = np.append(1 - min(y[0], 1), y[1:])
    assert .005 < _log_loss(left_out, y) < .2
    assert _log_loss(x @ weight.T + bias, one_wrong) < 1


def test_features_that_hardly_vary_do_not_count():
    y = np.arange(24) % 3
    x = np.hstack([np.eye(3)[y], 1 + 1e-7*np.random.default_rng(0).normal(size=(24, 3))])
    weight = fit_ridge(x, y, 3, np.arange(24), alphas=(1.,))[0]
    assert np.abs(weight[:, 3:]).max() < np.abs(weight[:, :3]).max()


class Pickled:
    "A pickle that would run code"
    def __reduce__(self): return print, ('this pickle was run',)


def test_pickled_weights_are_not_run(tmp_path, capsys):
    torch.save(Pickled(), tmp_path/'pickled.pth')
    with pytest.raises(WeightsError, match='could not be loaded'): create_backbone('test_resnet', 12, weights=tmp_path/'pickled.pth')
    assert 'this pickle was run' not in capsys.readouterr().out


@pytest.fixture
def hub(tmp_path):
    "A hub on a local port that serves one weights file; its URL, the requests it got, and a function that ends it"
    donor = timm.create_model('test_resnet', num_classes=1000)
    save_file(donor.state_dict(), tmp_path/'model.safetensors')
    content = (tmp_path/'model.safetensors').read_bytes()
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            found = self.path.endswith('model.safetensors')
            requests.append((self.command, found))
            self.send_response(200 if found or self.path == '/' else 404)
            headers = {'ETag': '"1"', 'X-Repo-Commit': '0'*40, 'Content-Length': len(content) if found else 0}
            for name, value in headers.items(): self.send_header(name, str(value))
            self.end_headers()
        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(content)
        def log_message(self, *args): pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    def end():
        server.shutdown()
        server.server_close()
    return f'http://127.0.0.1:{server.server_port}', requests, end, donor


def _from_hub(url, cache):
    "A backbone with weights of another hub, kept in another cache"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    with mock.patch.multiple(constants, ENDPOINT=url, HUGGINGFACE_CO_URL_TEMPLATE=template, HF_HUB_CACHE=str(cache)):
        return create_backbone('test_resnet', 12)


def test_weights_come_from_the_hub_once_and_a_missing_hub_is_reported_at_once(hub, tmp_path):
    url, requests, end, donor = hub
    assert torch.equal(_from_hub(url, tmp_path/'cache').conv1[0].weight, donor.conv1[0].weight)
    assert ('GET', True) in requests
    end()
    assert torch.equal(_from_hub(url, tmp_path/'cache').conv1[0].weight, donor.conv1[0].weight)
    started = time.perf_counter()
    with pytest.raises(WeightsError, match=r'cannot be reached .*--weights FILE'): _from_hub(url, tmp_path/'empty')
    assert time.perf_counter() - started < 10                                   # not after a minute of retries
