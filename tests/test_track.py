"Runs logged with TensorBoard, MLflow and Weights & Biases, and read back from local files."
import shutil, subprocess, sys, types
from pathlib import Path

import pandas as pd, pytest
from fastai.callback.core import Callback
from gear_fastai.recipes import get_recipe, train_model
from gear_fastai.sources import draw_sample
from gear_fastai.track import check_tracker, track_run

COLUMNS = ['train_loss', 'valid_loss', 'accuracy']
SCRATCH = get_recipe('gear_cnn_small', epochs=3, size=32)
PROBE = get_recipe('test_resnet', epochs=0, size=32, pretrained=False)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return draw_sample(tmp_path_factory.mktemp('photos')/'gear', n=6)


@pytest.fixture
def sample(drawn, tmp_path, monkeypatch):
    "Photos in `data/` of an empty current folder"
    monkeypatch.chdir(tmp_path)
    for name in ('MLFLOW_TRACKING_URI', 'WANDB_MODE', 'WANDB_PROJECT'): monkeypatch.delenv(name, raising=False)
    return Path(shutil.copytree(drawn, 'data'))


def tensorboard_runs():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return [EventAccumulator(str(folder)).Reload() for folder in sorted(Path('runs').iterdir())]


def read_tensorboard():
    "A table of the epochs and the texts of each run in `runs/`"
    for events in tensorboard_runs():
        tags = events.Tags()
        texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags['tensors']}
        table = pd.DataFrame({tag: [event.value for event in events.Scalars(tag)] for tag in tags['scalars']})
        yield table, {tag.removesuffix('/text_summary'): text for tag, text in texts.items()}


def read_mlflow():
    "A table of the epochs and the run, for each run in `mlflow.db`"
    import mlflow
    client = mlflow.MlflowClient()
    for run in reversed(client.search_runs(['0'])):
        rows = {name: [metric.value for metric in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
        yield pd.DataFrame(rows), run


def check_same(table, model):
    history = pd.read_csv(Path(model)/'history.csv')
    pd.testing.assert_frame_equal(table[COLUMNS], history[COLUMNS], rtol=1e-4)


@pytest.fixture
def mlflow(sample):
    mlflow = pytest.importorskip('mlflow', reason='MLflow is not installed: pip install gear_fastai[track]')
    pytest.importorskip('sqlalchemy', reason='MLflow has no local store: pip install gear_fastai[track]')
    mlflow.set_tracking_uri(f'sqlite:///{Path.cwd()}/mlflow.db')        # it keeps the first current folder as its default
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.fixture
def tensorboard(sample):
    return pytest.importorskip('tensorboard', reason='TensorBoard is not installed: pip install gear_fastai[track]')


def test_tensorboard(sample, tensorboard):
    train_model(sample, SCRATCH, 'models/mine', progress=False, track='tensorboard')
    (table, texts), = read_tensorboard()
    check_same(table, 'models/mine')
    assert '- lr: 0.01' in texts['settings'] and '- seed: 42' in texts['settings']
    assert texts['model'] == str(Path('models/mine').absolute())


def test_mlflow(sample, mlflow):
    train_model(sample, SCRATCH, 'models/mine', progress=False, track='mlflow')
    (table, run), = read_mlflow()
    check_same(table, 'models/mine')
    assert (run.info.run_name, run.info.status) == ('mine', 'FINISHED')
    assert (run.data.params['lr'], run.data.params['seed'], run.data.params['arch']) == ('0.01', '42', 'gear_cnn_small')
    assert run.data.tags['model'] == str(Path('models/mine').absolute())
    assert mlflow.active_run() is None


def test_a_linear_probe_and_fine_tuning(sample, mlflow, tensorboard):
    train_model(sample, PROBE, 'models/probe', progress=False, track='mlflow')
    train_model(sample, PROBE, 'models/tuned', progress=False, track='tensorboard', epochs=2)
    (probe, _), = read_mlflow()
    (tuned, _), = read_tensorboard()
    assert (len(probe), len(tuned)) == (1, 3)
    check_same(probe, 'models/probe')
    check_same(tuned, 'models/tuned')


class Interrupt(Callback):
    order = 99
    def before_batch(self):
        if self.training and self.epoch == 1: raise KeyboardInterrupt


def test_an_interrupted_run_has_failed_and_a_resumed_one_is_complete(sample, mlflow):
    with pytest.raises(KeyboardInterrupt):
        train_model(sample, SCRATCH, 'models/mine', progress=False, track='mlflow', cbs=[Interrupt()])
    train_model(sample, SCRATCH, 'models/mine', progress=False, track='mlflow', resume=True)
    (first, failed), (whole, finished) = read_mlflow()
    assert (failed.info.status, len(first), finished.info.status) == ('FAILED', 1, 'FINISHED')
    check_same(whole, 'models/mine')


def test_tracking_does_not_change_the_training(sample, mlflow):
    for name, track in (('plain', None), ('tracked', 'mlflow')):
        train_model(sample, SCRATCH, f'models/{name}', progress=False, track=track)
    tables = [pd.read_csv(f'models/{name}/history.csv')[COLUMNS] for name in ('plain', 'tracked')]
    pd.testing.assert_frame_equal(*tables)


def test_within_a_run_of_your_own(sample, mlflow):
    with mlflow.start_run(run_name='all') as outer:
        train_model(sample, PROBE, 'models/probe', progress=False, track='mlflow')
        assert mlflow.active_run().info.run_id == outer.info.run_id
    assert sorted(run.info.run_name for _, run in read_mlflow()) == ['all', 'probe']


def test_the_callback_of_fastai_logs_the_batches_of_a_backbone(sample, tensorboard):
    from fastai.callback.tensorboard import TensorBoardCallback
    batches = TensorBoardCallback('runs/batches', trace_model=False, log_preds=False)
    train_model(sample, PROBE, 'models/tuned', progress=False, track='tensorboard', cbs=[batches], epochs=1, bs=8)
    by_batch, by_epoch = tensorboard_runs()
    assert by_batch.Tags()['scalars'] and len(by_batch.Scalars('lr_0')) > len(by_epoch.Scalars('train_loss')) == 2


class Wandb(types.ModuleType):
    "A stand-in for the package `wandb`"
    def __init__(self):
        super().__init__('wandb')
        self.rows = {}
        self.config = self

    def init(self, project, name, config, reinit):
        self.begun = project, name, config['seed'], reinit
        return self

    def log(self, values, step): self.rows[step] = values
    def update(self, values): self.notes = values
    def finish(self, exit_code): self.exit_code = exit_code


def test_wandb_is_offline_by_default(sample, monkeypatch):
    import importlib.machinery, os
    wandb = Wandb()
    wandb.__spec__ = importlib.machinery.ModuleSpec('wandb', None, origin='stub')
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    train_model(sample, SCRATCH, 'models/mine', progress=False, track='wandb')
    assert os.environ.pop('WANDB_MODE') == 'offline'
    assert (wandb.begun, wandb.exit_code) == (('gear_fastai', 'mine', 42, 'create_new'), 0)
    check_same(pd.DataFrame(wandb.rows.values()), 'models/mine')
    assert wandb.notes == dict(model=str(Path('models/mine').absolute()))


def test_a_store_that_cannot_be_used(sample, mlflow):
    mlflow.set_tracking_uri('nosuch://store')
    with pytest.raises(ValueError, match=r"^track='mlflow': cannot begin a run \(.*nosuch") as refused:
        train_model(sample, PROBE, 'models/probe', progress=False, track='mlflow')
    assert '\n' not in str(refused.value)


def test_a_missing_package_is_named_before_anything_is_written(sample, monkeypatch):
    monkeypatch.setattr('gear_fastai.track.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"^track='wandb': not installed; pip install wandb$"):
        train_model(sample, SCRATCH, 'models/mine', progress=False, track='wandb')
    assert not Path('models').exists() and not (sample/'splits.csv').exists()


def test_a_folder_of_runs_is_not_the_package(sample):
    Path('nosuchtracker').mkdir()
    code = 'from gear_fastai import track; track._TRACKERS["nosuchtracker"] = None; track.check_tracker("nosuchtracker")'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert 'not installed' in done.stderr.splitlines()[-1]


def test_an_unknown_tracker():
    with pytest.raises(ValueError, match='choose from tensorboard, mlflow, wandb'): check_tracker('excel')
    with pytest.raises(ValueError, match='choose from'):
        with track_run('excel', 'mine', {}): pass


def test_the_train_command(sample, tensorboard):
    from click.testing import CliRunner
    from gear_fastai.cli import main
    args = 'train data --arch tf_efficientnet_lite0 --epochs 0 --size 64 --out models/probe --track'.split()
    done = CliRunner().invoke(main, [*args, 'tensorboard'])
    assert done.exit_code == 0, done.output
    (table, texts), = read_tensorboard()
    assert len(table) == 1 and texts['model'] == str(Path('models/probe').absolute())
    assert CliRunner().invoke(main, [*args, 'excel']).exit_code == 2
