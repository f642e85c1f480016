"Files and model folders are written completely or not at all, and damaged ones are named."
import errno, json, os
from concurrent.futures import ThreadPoolExecutor

import pytest

from gear_fastai.files import atomic_write, disk_errors
from gear_fastai.model_folder import (FILES, FORMAT, ModelError, atomic_folder, clear_leftovers, file_digests, keep_model,
                                      read_checked, read_gear, read_model, restore_replaced)

GEAR = dict(format=FORMAT, labels=['boots', 'tents'], preprocessing=dict(size=96, mean=[.5]*3, std=[.25]*3), temperature=1.)


def write_model(folder, **more):
    with atomic_folder(folder) as tmp:
        for name in FILES: (tmp/name).write_text(json.dumps(dict(label_names=GEAR['labels'], **more), indent=1))
        (tmp/'gear.json').write_text(json.dumps(GEAR | dict(files=file_digests(tmp), **more), indent=1))
    return folder


def raise_full_disk(): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def raise_as_safetensors(): raise RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)')

def raise_as_torch():
    try: raise_full_disk()
    finally: raise RuntimeError('unexpected pos 704 vs 598')

FULL = pytest.mark.parametrize('write', [raise_full_disk, raise_as_safetensors, raise_as_torch])


# --- one file

@FULL
def test_full_disk_keeps_the_file(tmp_path, write):
    (tmp_path/'a.csv').write_text('old')
    with pytest.raises(OSError) as e:
        with atomic_write(tmp_path/'a.csv') as tmp:
            tmp.write_text('ne')
            write()
    assert (e.value.errno, e.value.filename) == (errno.ENOSPC, str(tmp_path/'a.csv'))
    assert e.value.strerror == 'could not be written (No space left on device); the previous file is kept'
    assert os.listdir(tmp_path) == ['a.csv'] and (tmp_path/'a.csv').read_text() == 'old'


def test_errors_name_the_target(tmp_path):
    (tmp_path/'folder').mkdir()
    for path, error in ((tmp_path/'gone/a.csv', FileNotFoundError), (tmp_path/'folder', IsADirectoryError)):
        with pytest.raises(error) as e:
            with atomic_write(path) as tmp: tmp.write_text('x')
        assert e.value.filename == str(path)
    with pytest.raises(FileNotFoundError, match='other.txt'):
        with atomic_write(tmp_path/'a.csv') as tmp:
            tmp.touch()
            (tmp_path/'other.txt').read_text()
    assert os.listdir(tmp_path) == ['folder']


def test_other_errors_pass_through(tmp_path):
    for error in (ValueError('x'), OSError(errno.ENOENT, 'gone', 'b')):
        with pytest.raises(type(error)) as e:
            with disk_errors(tmp_path, 'kept'): raise error
        assert e.value is error


# --- a model folder

@FULL
def test_full_disk_keeps_the_model(tmp_path, write):
    write_model(tmp_path/'a')
    with pytest.raises(OSError) as e:
        with atomic_folder(tmp_path/'a'): write()
    assert e.value.filename == str(tmp_path/'a')
    assert e.value.strerror == 'could not be written (No space left on device); the previous model is kept'
    assert os.listdir(tmp_path) == ['a'] and read_gear(tmp_path/'a')


def test_leftovers_are_cleared(tmp_path):
    write_model(tmp_path/'a')
    write_model(tmp_path/'a.b')
    leftovers = ('.a.tmp/half', '.a.old/gear.json', 'a.checkpoint.tmp', '.a.checkpoint.7.tmp', 'a/.history.csv.7.tmp')
    others = ('.a.b.tmp', '.a.b.checkpoint.7.tmp', 'a.checkpoint')
    (tmp_path/'a/.git').mkdir()
    for name in (*leftovers, *others):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).touch()
    clear_leftovers(tmp_path/'a')
    assert sorted(os.listdir(tmp_path)) == sorted(['a', 'a.b', *others]) and sorted(os.listdir(tmp_path/'a')) == sorted(['.git', *FILES])


def test_a_link_to_a_model_is_replaced_again_and_again(tmp_path):
    write_model(tmp_path/'disk')
    (tmp_path/'a').symlink_to(tmp_path/'disk')
    for i in range(2): write_model(tmp_path/'a', notes=i)
    clear_leftovers(tmp_path/'a')
    assert sorted(os.listdir(tmp_path)) == ['a', 'disk'] and not (tmp_path/'a').is_symlink()
    assert read_gear(tmp_path/'a')['notes'] == 1 and 'notes' not in read_gear(tmp_path/'disk')


def test_whatever_else_is_in_a_model_folder_is_kept(tmp_path):
    write_model(tmp_path/'a')
    (tmp_path/'a/plots').mkdir()
    (tmp_path/'a/plots/b.txt').write_text('mine')
    (tmp_path/'a/plots/b.txt').chmod(0o444)
    with pytest.warns(UserWarning, match='it is kept as'): keep_model(tmp_path/'a', tmp_path/'a.1')
    assert (tmp_path/'a.1/plots/b.txt').read_text() == 'mine'


def test_only_a_saved_model_is_replaced(tmp_path):
    (tmp_path/'empty').mkdir()
    write_model(tmp_path/'empty')
    (tmp_path/'letters').mkdir()
    (tmp_path/'letters/dear.txt').touch()
    (tmp_path/'file').touch()
    for name in ('letters', 'file'):
        with pytest.raises(ModelError, match='is not a saved model'):
            with atomic_folder(tmp_path/name): pass
    assert (tmp_path/'letters/dear.txt').exists() and (tmp_path/'file').exists()


def test_interrupted_replacement_is_undone(tmp_path):
    write_model(tmp_path/'a').rename(tmp_path/'.a.old')
    assert read_gear(tmp_path/'a') and os.listdir(tmp_path) == ['a']
    (tmp_path/'.b.old').mkdir()
    restore_replaced(tmp_path/'b')
    assert not (tmp_path/'b').exists()


def test_reader_never_sees_two_models(tmp_path):
    "One thread replaces the model a hundred times while another one reads it"
    def read():
        gear, content = read_model(tmp_path/'a', 'model.onnx')
        assert json.loads(content)['turn'] == gear['turn']
        return gear['turn']
    write_model(tmp_path/'a', turn=0)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(lambda: [write_model(tmp_path/'a', turn=i) for i in range(100)])
        seen = {read()}
        while not writer.done(): seen.add(read())
    writer.result()
    assert len(seen) > 1


# --- reading

def test_line_endings_of_json_do_not_count(tmp_path):
    folder = write_model(tmp_path/'a')
    gear = read_gear(folder)
    for name in FILES[:2]: (folder/name).write_bytes((folder/name).read_bytes().replace(b'\n', b'\r\n'))
    assert read_gear(folder) == gear
    assert read_checked(folder, 'model.onnx', gear) == (folder/'model.onnx').read_bytes()
    (folder/'model.onnx').write_text('damaged')
    with pytest.raises(ModelError, match='not the file that was saved'): read_checked(folder, 'model.onnx', gear)


PREPROCESSING = [None, dict(size=0), dict(size=96, mean=[.5], std=[1, 1, 1]), dict(size=96, mean=[True]*3, std=[1, 1, 1]),
                 dict(size=96, mean=[.5]*3, std=[1, 1, 0])]
WRONG = [(dict(format='one'), 'format'), (dict(format=99), 'newer gear_fastai'), (dict(labels=[]), 'labels'), (dict(labels=['a', 'a']), 'labels'),
         (dict(labels=['tents', 'boots']), 'not those of config.json'), (dict(temperature=0), 'temperature'), (dict(temperature='warm'), 'temperature'),
         (dict(temperature=float('nan')), 'temperature'), (dict(files=None), 'digests'), *((dict(preprocessing=p), 'preprocessing') for p in PREPROCESSING)]

@pytest.mark.parametrize('text, problem', [('{"form', 'damaged'), ('[]', 'format'), ('['*100_000, 'damaged'), *((json.dumps(GEAR | change), why) for change, why in WRONG)])
def test_wrong_gear_json_is_named(tmp_path, text, problem):
    folder = write_model(tmp_path/'a')
    about = json.loads((folder/'gear.json').read_text())
    try: about = about | json.loads(text)
    except (ValueError, TypeError, RecursionError): pass
    else: text = json.dumps(about)
    (folder/'gear.json').write_text(text)
    with pytest.raises(ModelError, match=problem) as e: read_gear(folder)
    assert str(e.value).startswith(str(folder)) and '\n' not in str(e.value)


def test_incomplete_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match='no such model folder'): read_gear(tmp_path/'gone')
    folder = write_model(tmp_path/'a')
    (folder/'model.onnx').unlink()
    with pytest.raises(ModelError, match='it has no model.onnx'): read_gear(folder)
