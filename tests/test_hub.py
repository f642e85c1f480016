"A model and a Space pushed to a hub on this machine and used from there; errors in one line."
import json, shutil, subprocess, sys, time
from pathlib import Path

import pytest, timm, torch
from huggingface_hub import HfApi, ModelCard, SpaceCard
from hub_server import TOKEN, local_hub
from gear_fastai.checkpoint import load_network
from gear_fastai.drawing import draw_photo
from gear_fastai.export import save_classifier
from gear_fastai.hub import HubError, download_model, push_model, push_space, space_files
from gear_fastai.inference import GearClassifier, predict
from gear_fastai.loaders import dataloaders
from gear_fastai.dataset import split_dataset
from gear_fastai.model_folder import FILES, ModelError
from gear_fastai.sources import draw_sample
from gear_fastai.transfer import transfer_learner
from gear_fastai.widget import GearUploader


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    home = tmp_path_factory.mktemp('model')
    sample = draw_sample(home/'gear', n=3)
    dls = dataloaders(sample, size=64, bs=8, splits=split_dataset(sample, valid=.3, test=0))
    learn = transfer_learner(dls, 'test_resnet', pretrained=False)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(0)
    return save_classifier(learn, home/'mine')


@pytest.fixture
def model(original, tmp_path): return Path(shutil.copytree(original, tmp_path/'mine'))


@pytest.fixture
def hub(tmp_path):
    with local_hub(tmp_path/'cache') as hub: yield hub


def sent(hub):
    "What was uploaded: number of large files, number of commits"
    return (sum(path.startswith('/lfs/') for _, path in hub.requests), sum('/commit/' in path for _, path in hub.requests))


def test_a_pushed_model_is_opened_by_this_package_and_by_timm(hub, model):
    photo = draw_photo('boots', seed=3)
    assert push_model(model, 'me/gear', 'apache-2.0') == f'{hub.url}/me/gear'
    assert predict(photo, 'hf-hub:me/gear') == predict(photo, model)
    folder = download_model('me/gear')
    assert all((folder/name).read_bytes() == (model/name).read_bytes() for name in (*FILES, 'splits.csv', 'losses.png'))
    network = timm.create_model('hf-hub:me/gear', pretrained=True).eval()
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(network(x), load_network(model)(x))


def test_the_uploader_offers_a_model_of_the_hub(hub, model, tmp_path):
    push_model(model, 'me/gear', 'apache-2.0')
    uploader = GearUploader('hf-hub:me/gear', models=tmp_path/'none')
    assert uploader.models == [uploader.chosen] == ['me/gear'] and not uploader.notice


def test_the_card_on_the_hub(hub, model):
    text = (model/'README.md').read_text()
    push_model(model, 'me/gear', 'mit')
    card = ModelCard.load('me/gear')
    assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == ('mit', 'image-classification', 'timm')
    result, = card.data.eval_results
    accuracy = json.loads((model/'gear.json').read_text())['metrics']['accuracy']
    assert (result.metric_type, result.dataset_split) == ('accuracy', 'validation')
    assert result.metric_value == pytest.approx(accuracy, abs=1e-4)
    assert "GearClassifier('hf-hub:me/gear')" in card.text
    assert (model/'README.md').read_text() == text


def test_the_card_of_a_renamed_folder(hub, model):
    push_model(model.rename(model.with_name('better')), 'me/gear', 'mit')
    assert "GearClassifier('hf-hub:me/gear')" in ModelCard.load('me/gear').text


def test_words_and_license_that_you_added_to_the_card_are_kept(hub, model):
    card = ModelCard.load(model/'README.md')
    card.data.license = 'cc-by-4.0'
    card.text += '\nFor shops.\n'
    card.save(model/'README.md')
    push_model(model, 'me/gear')
    pushed = ModelCard.load('me/gear')
    assert pushed.data.license == 'cc-by-4.0' and 'For shops.' in pushed.text


def test_only_files_of_the_model_are_uploaded(hub, model):
    for name in ('notes.txt', '.env'): (model/name).write_text('private')
    push_model(model, 'me/gear', 'mit')
    assert not {'notes.txt', '.env'} & set(hub.repos['model', 'me/gear'].files)


def test_pushed_again_only_changes_are_sent(hub, model):
    push_model(model, 'me/gear', 'mit')
    assert sent(hub) == (4, 1)                                  # weights, ONNX, reference, plot
    push_model(model, 'me/gear', 'mit')
    assert sent(hub) == (4, 1)
    push_model(model, 'me/gear', 'apache-2.0')
    assert sent(hub) == (4, 2)
    first, second = hub.repos['model', 'me/gear'].commits[1:]
    assert [name for name in second if first[name] != second[name]] == ['README.md']


@pytest.mark.parametrize('lost', ['/commit/', '/lfs/'])
def test_an_interrupted_upload_leaves_the_old_model(hub, model, original, lost, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)    # between the attempts
    push_model(model, 'me/gear', 'mit')
    before = hub.repos['model', 'me/gear'].files
    (model/'losses.png').write_bytes(b'another')
    hub.lost = lost
    with pytest.raises(HubError, match='me/gear: .*cannot be used now') as refused: push_model(model, 'me/gear', 'mit')
    assert '\n' not in str(refused.value)
    assert hub.repos['model', 'me/gear'].files == before
    hub.lost = None
    push_model(model, 'me/gear', 'mit')
    assert hub.repos['model', 'me/gear'].files['losses.png']['content'] == b'another'


def test_private(hub, model, monkeypatch):
    push_model(model, 'me/secret', 'mit', private=True)
    assert hub.repos['model', 'me/secret'].private
    push_model(model, 'me/public', 'mit')
    with pytest.raises(HubError, match='exists and is public'): push_model(model, 'me/public', 'mit', private=True)
    monkeypatch.setenv('HF_TOKEN', 'hf_other')
    with pytest.raises(HubError, match='you may not read it'): download_model('me/secret')


def check_refused(function, error, words):
    with pytest.raises(error, match=words) as refused: function()
    assert '\n' not in str(refused.value) and TOKEN not in str(refused.value)


@pytest.mark.parametrize('token', ['hf_wrong', ''])
def test_no_valid_token(hub, model, token, monkeypatch, tmp_path):
    monkeypatch.setenv('HF_TOKEN', token)
    monkeypatch.setattr('huggingface_hub.constants.HF_TOKEN_PATH', str(tmp_path/'none'))
    check_refused(lambda: push_model(model, 'me/gear', 'mit'), HubError, 'me/gear: .*hf auth login.*HF_TOKEN')
    assert not hub.repos


def test_mistakes_have_one_line(hub, model):
    check_refused(lambda: push_model(model, 'gear', 'mit'), HubError, "such as 'me/gear'")
    check_refused(lambda: push_model(model, 'me/my gear', 'mit'), HubError, 'me/my gear')
    check_refused(lambda: push_model(model, 'you/gear', 'mit'), HubError, 'you/gear: your token may not write there')
    check_refused(lambda: push_model(model, 'me/gear'), HubError, 'names no license')
    check_refused(lambda: push_model(model.parent, 'me/gear', 'mit'), ModelError, 'not a saved model')
    card = (model/'README.md').read_text()
    (model/'README.md').unlink()
    check_refused(lambda: push_model(model, 'me/gear', 'mit'), HubError, 'has no README.md; save the model again')
    (model/'README.md').write_text(card)
    check_refused(lambda: download_model('me/none'), HubError, 'no such repository')
    check_refused(lambda: GearClassifier('hf-hub:me/none'), HubError, 'no such repository')
    (model/'model.onnx').write_bytes(b'cut off')
    check_refused(lambda: push_model(model, 'me/gear', 'mit'), ModelError, 'not the file that was saved')
    assert not hub.repos


def test_a_repository_that_is_no_model(hub):
    HfApi().create_repo('me/other')
    check_refused(lambda: download_model('me/other'), HubError, 'me/other: not a model folder of gear_fastai')


def test_without_the_hub(hub, model):
    push_model(model, 'me/gear', 'mit')
    folder = download_model('me/gear')
    hub.end()
    assert download_model('me/gear') == folder
    started = time.perf_counter()
    check_refused(lambda: push_model(model, 'me/gear', 'mit'), HubError, 'me/gear: the hub cannot be used now')
    check_refused(lambda: download_model('me/new'), HubError, 'me/new: the hub cannot be used now')
    assert time.perf_counter() - started < 20


def write_space(folder, files):
    for name, content in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


def test_a_pushed_space(hub, model):
    assert push_space(model, 'me/gear') == f'{hub.url}/spaces/me/gear'
    space = hub.repos['space', 'me/gear']
    assert space.sdk == 'gradio'
    local = write_space(model.parent/'space', space_files(model))
    assert {p.relative_to(local).as_posix() for p in local.rglob('*') if p.is_file()} == set(space.files)
    card = SpaceCard.load(local/'README.md').data
    assert (card.sdk, card.app_file, card.python_version) == ('gradio', 'app.py', '.'.join(map(str, sys.version_info[:2])))
    assert not any(name in space.files['requirements.txt']['content'].decode() for name in ('torch', 'fastai', 'timm'))
    push_space(model, 'me/gear')
    assert len(space.commits) == 2                              # the second push changed nothing


RUN = '''
import sys
import app, gear_fastai.inference
from pathlib import Path
assert Path(gear_fastai.inference.__file__).parent.parent == Path('.').resolve()
assert not {'torch', 'fastai', 'timm'} & set(sys.modules)
print(app.classify(sys.argv[1])[0], max(app.classify(sys.argv[1])[1].values()))
for wrong in (None, 'README.md'):
    try: app.classify(wrong)
    except app.gr.Error as e: print(e)
'''
STUB = '''
class Error(Exception): pass
Image = Textbox = Label = Interface = lambda *args, **kwargs: None
'''


def run_space(model, tmp_path):
    "What the app of a Space prints in a process that has only its files, in a folder with a stub of Gradio"
    space = write_space(tmp_path/'space', space_files(model))
    draw_photo('boots', seed=3).save(tmp_path/'boots.png')
    command = [sys.executable, '-c', RUN, tmp_path/'boots.png']
    (space/'gradio.py').write_text(STUB)
    done = subprocess.run(command, cwd=space, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


def test_the_app_of_the_space_predicts_with_its_own_files(model, tmp_path):
    printed = run_space(model, tmp_path)
    p = predict(tmp_path/'boots.png', model)
    assert printed[0] == f"{p.label or f'not sure, perhaps {p.top1}'} {p.confidence}"
    assert printed[1:] == ['Choose a photo first', 'This file cannot be read as a photo']


def command(*args):
    "Run the command; return its exit status, and its output or its error"
    from click.testing import CliRunner
    from gear_fastai.cli import main
    done = CliRunner().invoke(main, list(map(str, args)))
    return done.exit_code, done.stdout or done.stderr


def test_the_push_command(hub, model, tmp_path):
    assert command('push', model, 'me/gear', '--license', 'mit', '--private', '--space') == (
        0, f'model: {hub.url}/me/gear\nspace: {hub.url}/spaces/me/gear\n')
    assert all(hub.repos[kind, 'me/gear'].private for kind in ('model', 'space'))
    draw_photo('boots', seed=3).save(tmp_path/'boots.png')
    code, printed = command('predict', tmp_path/'boots.png', '--model', 'hf-hub:me/gear', '--json')
    assert code == 0 and predict(tmp_path/'boots.png', model).confidence == json.loads(printed.splitlines()[-1])['confidence']
    sample = draw_sample(tmp_path/'gear', n=3, seed=9)
    code, printed = command('evaluate', 'hf-hub:me/gear', sample, '--split', 'all', '--json')
    assert code == 0 and json.loads(printed.splitlines()[-1])['n'] == 36
    code, printed = command('push', model, 'you/gear', '--license', 'mit')
    assert code == 1 and printed.startswith('Error: you/gear: your token may not write there') and printed.count('\n') == 1
