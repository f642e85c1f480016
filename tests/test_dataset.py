"Datasets in the layouts, tables and encodings that users have"
import multiprocessing, os, pickle, re, subprocess, sys, unicodedata, warnings, zipfile
from collections import Counter
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from click.testing import CliRunner
from PIL import Image
from gear_fastai.cli import main
from gear_fastai.dataset import audit, compare_manifest, DataError, earlier_splits, ensure_splits, file_digest, fold_splits, is_none, list_dataset
from gear_fastai.dataset import photo_domains, photo_source, product_id, read_splits, scan, shell_command, split_dataset, write_splits
from gear_fastai.drawing import CLASSES
from gear_fastai.loaders import dataloaders, photo_datablock
from gear_fastai.photo import describe_skipped
from gear_fastai.recipes import _fold_splits
from gear_fastai.sources import draw_sample, fetch, merge_datasets, read_class_map, unpack

SKIPPED_FILMS = describe_skipped(Counter({'.mov': 3}))

def photo(path, seed=None):
    "Write a small image, different for each seed"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(str(path))) if seed is None else seed)
    blocks = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    with open(path, 'wb') as f: blocks.resize((40, 40), Image.Resampling.NEAREST).save(f, 'PNG')

def classes(folder, names=('boots', 'tents'), n=8, start=0):
    "Class folders with `n` photos each"
    for i, name in enumerate(names):
        for k in range(n): photo(Path(folder)/name/f'{k}.png', seed=start + 1000*i + k)
    return Path(folder)

def with_warnings(f, *args, **kwargs):
    "Return the result of `f`, and its warnings as one text"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        result = f(*args, **kwargs)
    return result, '\n'.join(str(w.message) for w in caught if w.category is UserWarning)

def run(*args, code=0):
    "Output of a command that ends with `code`"
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, result.output
    assert 'Traceback' not in result.output
    return result.output

# folders that come split

@pytest.mark.parametrize('valid', ['valid', 'val', 'Validation', 'VAL'])
def test_split_folders_are_no_classes(tmp_path, valid):
    classes(tmp_path/'train', start=0), classes(tmp_path/valid, n=3, start=100), classes(tmp_path/'test', n=2, start=200)
    df, messages = with_warnings(list_dataset, tmp_path)
    assert set(df.label) == {'boots', 'tents'} and 'already' in messages
    splits = with_warnings(split_dataset, tmp_path)[0]
    assert splits.split.value_counts().to_dict() == dict(train=16, valid=6, test=4)
    assert all(s == dict(tr='train', va='valid', te='test')[p[:2].lower()] for p, s in zip(splits.path, splits.split))
    assert splits.path[splits.label == 'boots'].iloc[0].split('/')[1] == 'boots'

def test_an_unlabeled_test_folder_is_kept_aside(tmp_path):
    classes(tmp_path/'train'), classes(tmp_path/'valid', n=3, start=100)
    for k in range(5): photo(tmp_path/f'test/{k}.png', seed=500 + k)
    photo(tmp_path/'test/unknown/x.png', seed=600)
    df, messages = with_warnings(split_dataset, tmp_path)
    assert set(df.split) == {'train', 'valid'} and '6 photos outside class folders' in messages

def test_valid_is_taken_from_train_by_group(tmp_path):
    for c in ('boots', 'tents'):
        for k in range(10):
            for color in (1, 2): photo(tmp_path/f'train/{c}/{100+k}x{color}_zm.png', seed=hash((c, k, color)) % 10**6)
    classes(tmp_path/'test', n=4, start=10**7)
    df, messages = with_warnings(split_dataset, tmp_path)
    assert set(df.split) == {'train', 'valid', 'test'} and (df.groupby('group').split.nunique() == 1).all()
    assert (df.split[df.path.str.startswith('test/')] == 'test').all() and 'test' not in set(df.split[df.path.str.startswith('train/')])

def test_train_alone_is_split(tmp_path):
    classes(tmp_path/'train')
    assert set(with_warnings(split_dataset, tmp_path)[0].split) == {'train', 'valid', 'test'}

def test_a_given_split_that_leaks_is_kept_with_a_warning(tmp_path):
    classes(tmp_path/'train'), classes(tmp_path/'valid', n=3, start=100)
    photo(tmp_path/'valid/boots/copy.png', seed=0)                                   # a photo of train
    photo(tmp_path/'train/tents/77x1_zm.png', seed=700), photo(tmp_path/'valid/tents/77x2_zm.png', seed=701)
    df, messages = with_warnings(split_dataset, tmp_path)
    assert '2 photos of valid and test' in messages and 'show the same product' in messages
    assert df.split[df.path == 'valid/boots/copy.png'].item() == 'valid'

@pytest.mark.parametrize('folders', [['train', 'bus'], ['train', 'test'], ['train/steam', 'train/diesel', 'bus/city'], ['train', 'valid', 'car'],
                                     ['train/steam', 'train/diesel', 'bus/city', 'test/a']])
def test_a_class_may_be_called_train(tmp_path, folders):
    for i, f in enumerate(folders): classes(tmp_path, [f], n=4, start=10000*i)
    df, messages = with_warnings(list_dataset, tmp_path)
    assert set(df.label) == {f.split('/')[0] for f in folders}
    assert ('read as classes' in messages) == (len({'test', 'valid'} & set(df.label)) > 0)

def test_other_folders_beside_a_split_are_skipped(tmp_path):
    classes(tmp_path/'train'), classes(tmp_path/'test', n=3, start=100), classes(tmp_path, ['sample'], start=900)
    df, messages = with_warnings(list_dataset, tmp_path)
    assert set(df.label) == {'boots', 'tents'} and '8 photos outside class folders' in messages

def test_split_with_a_single_class_is_not_trained_as_train_and_test(tmp_path):
    classes(tmp_path/'train', ['boots']), classes(tmp_path/'test', ['boots'], start=100)
    with pytest.raises(DataError, match=r'only one class \(boots\)'): with_warnings(list_dataset, tmp_path)

def test_a_split_inside_a_zip(tmp_path):
    classes(tmp_path/'gear/train'), classes(tmp_path/'gear/valid', n=3, start=100)
    with zipfile.ZipFile(tmp_path/'gear.zip', 'w') as z:
        for p in (tmp_path/'gear').rglob('*.png'): z.write(p, p.relative_to(tmp_path))
        z.writestr('gear/README.md', 'hello'), z.writestr('README.txt', 'hello'), z.writestr('__MACOSX/gear/._a.png', 'x'), z.writestr('gear/a.mov', 'film')
    out = run('data', 'fetch', tmp_path/'new', '--url', tmp_path/'gear.zip')
    assert '22 photos unpacked' in out and describe_skipped(Counter({'.mov': 1})) in out and '.unfinished' not in out
    assert with_warnings(split_dataset, tmp_path/'new')[0].split.value_counts().to_dict() == dict(train=16, valid=6)

def test_product_and_source_do_not_name_the_split_folder():
    assert product_id('train/boots/12x1_zm.jpg') == product_id('test/boots/12x2_zm.jpg') and photo_source('train/boots/a.jpg') == ''
    assert photo_source('boots/ours/a.jpg') == 'ours'

# photos that come and go

def test_all_functions_report_new_and_gone_photos(tmp_path):
    folder = classes(tmp_path/'my $gear')
    splits = ensure_splits(folder)
    gone = splits.path[splits.split == 'train'].iloc[0]
    (folder/gone).unlink()
    photo(folder/'boots/new.png', 5000), photo(folder/'skis/a.png', 5001)
    (folder/'boots/broken.png').write_bytes(b'no picture')
    changes = compare_manifest(folder, splits)
    assert (changes.new, changes.gone, changes.classes) == (['boots/new.png', 'skis/a.png'], [gone], ['skis']) and changes
    way = shell_command('data', 'split', folder, '--add')
    assert "'" in way and way in str(changes) and gone in str(changes) and 'skis' in str(changes)
    kept, messages = with_warnings(ensure_splits, folder)
    assert way in messages and len(kept) == len(splits) - 1
    dls, messages = with_warnings(dataloaders, folder, 32)
    assert way in messages and len(dls.train_ds) == (splits.split == 'train').sum() - 1
    assert gone in with_warnings(dataloaders, folder, 32, splits=splits)[1]
    report = with_warnings(audit, folder)[0]
    assert report.gone == [gone] and way in str(report) and report.to_dict()['new'] == changes.new

def test_an_unchanged_folder_causes_no_warning(tmp_path):
    folder = classes(tmp_path/'gear')
    (folder/'boots/broken.png').write_bytes(b'no picture')
    splits = with_warnings(ensure_splits, folder)[0]
    assert not compare_manifest(folder, splits)
    assert with_warnings(ensure_splits, folder)[1] == ''

def test_a_folder_whose_photos_are_all_gone(tmp_path):
    folder = classes(tmp_path/'gear')
    ensure_splits(folder)
    for p in folder.rglob('*.png'): p.unlink()
    with pytest.raises(DataError, match='16 photos of splits.csv gone'): with_warnings(dataloaders, folder)

def test_add_keeps_all_that_was_assigned(tmp_path):
    folder = classes(tmp_path/'gear', n=10)
    for k in range(6): photo(folder/f'boots/{k+50}x1_zm.png', seed=6000 + k)
    run('data', 'split', folder)
    before = read_splits(folder)
    for k in range(6): photo(folder/f'boots/{k+50}x2_zm.png', seed=7000 + k)         # products it knows
    photo(folder/'tents/copy.png', seed=1003)                                         # and a picture
    classes(folder, ['skis'], n=9, start=8000)
    lost = before.path[(before.split == 'test') & ~before.path.str.contains('x1')].iloc[0]
    (folder/lost).unlink()
    out = run('data', 'split', folder, '--add')
    assert '1 test' in out and lost in out
    after = read_splits(folder)
    both = before.merge(after, on='path', suffixes=('', '_after'))
    assert len(both) == len(before) - 1 and (both.split == both.split_after).all() and (both.group == both.group_after).all()
    assert (after.groupby('group').split.nunique() == 1).all()
    side = dict(zip(after.path, after.split))
    assert all(side[f'boots/{k+50}x1_zm.png'] == side[f'boots/{k+50}x2_zm.png'] for k in range(6))
    assert side['tents/copy.png'] == side['tents/3.png']
    assert set(after.split[after.label == 'skis']) == {'train', 'valid', 'test'}
    assert set(before.path[before.split == 'test']) - {lost} <= set(after.path[after.split == 'test'])
    assert not with_warnings(compare_manifest, folder, after)[0]

def test_add_comes_near_the_fractions(tmp_path):
    folder = classes(tmp_path/'gear', n=4)
    before = with_warnings(split_dataset, folder)[0]
    classes(folder, n=60)
    after = with_warnings(split_dataset, folder, existing=before)[0]
    assert .1 < (after.split == 'test').mean() < .2 and .1 < (after.split == 'valid').mean() < .2

def test_add_and_force_exclude_one_another(tmp_path):
    assert 'choose one' in run('data', 'split', classes(tmp_path/'gear'), '--add', '--force', code=2)

def test_other_columns_survive_add(tmp_path):
    folder = classes(tmp_path/'gear')
    write_splits(folder, split_dataset(folder).assign(camera='phone'))
    photo(folder/'boots/new.png', 4000)
    run('data', 'split', folder, '--add')
    assert read_splits(folder).camera.value_counts().to_dict() == {'phone': 16, '': 1}

def test_add_to_a_folder_that_comes_split(tmp_path):
    classes(tmp_path/'train'), classes(tmp_path/'test', n=3, start=100)
    before = with_warnings(ensure_splits, tmp_path)[0]
    photo(tmp_path/'test/boots/new.png', 5000), photo(tmp_path/'train/boots/new.png', 5001)
    after = with_warnings(split_dataset, tmp_path, existing=before)[0]
    side = dict(zip(after.path, after.split))
    assert all(side[p] == s for p, s in zip(before.path, before.split))
    assert side['test/boots/new.png'] == 'test' and side['train/boots/new.png'] in ('train', 'valid')

# files that are not photos, and those of this package

def test_files_that_are_not_photos_are_counted(tmp_path):
    folder = classes(tmp_path/'gear')
    for k in range(3): (folder/f'boots/{k}.mov').write_bytes(b'film')
    photo(folder/'loose.png', 4000)
    for f in (list_dataset, scan, split_dataset):
        messages = with_warnings(f, folder)[1]
        assert SKIPPED_FILMS in messages and '1 photo outside class folders' in messages and 'loose.png' in messages
    report = audit(folder)
    assert report.skipped == {'.mov': 3} and SKIPPED_FILMS in str(report)
    with_warnings(ensure_splits, folder)
    assert SKIPPED_FILMS in with_warnings(dataloaders, folder, 32)[1]

def test_our_own_output_is_no_class(tmp_path):
    folder = classes(tmp_path/'gear')
    for name in ('models/mine/gear.json', 'test-scores.csv', 'labels.csv', 'report.html', 'boots/labels.csv'):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text('{}')
    for name in ('models/mine/losses.png', 'data/corrected/boots/a.png', 'data/sample/tents/a.png', '@eaDir/a.png', '#recycle/b.png', '$RECYCLE.BIN/c.png',
                 '__MACOSX/d.png', '.ipynb_checkpoints/e.png', '_none/f.png', 'boots/@eaDir/g.png'): photo(folder/name)
    df, messages = with_warnings(list_dataset, folder)
    assert len(df) == 17 and set(df.label) == {'boots', 'tents', '_none'}
    assert messages.splitlines() == [
        f'{folder}: skipped 2 photos saved by this package (data/corrected/boots/a.png, data/sample/tents/a.png)']

def test_an_empty_class_is_reported(tmp_path):
    folder = classes(tmp_path/'gear')
    (folder/'skis').mkdir()
    assert 'no photos in skis' in with_warnings(list_dataset, folder)[1]

# names

def test_folders_that_differ_in_unicode_form_are_one_class(tmp_path):
    for form, start in (('NFC', 0), ('NFD', 100)): classes(tmp_path, [unicodedata.normalize(form, 'vélo')], start=start)
    classes(tmp_path, ['tents_2', '自転車', "it's $5"], start=20000)
    if len(list(tmp_path.iterdir())) < 5: pytest.skip('the file system joins them itself')
    df, messages = with_warnings(split_dataset, tmp_path)
    assert df.label.value_counts().to_dict() == {'vélo': 16, 'tents_2': 8, '自転車': 8, "it's $5": 8} and messages == ''
    assert all((tmp_path/p).is_file() for p in df.path)
    write_splits(tmp_path, df)
    assert not compare_manifest(tmp_path, read_splits(tmp_path))
    assert len(with_warnings(dataloaders, tmp_path, 32)[0].vocab) == 4

def test_a_manifest_in_another_unicode_form(tmp_path):
    classes(tmp_path, [unicodedata.normalize('NFD', 'vélo'), 'tents'])
    splits = split_dataset(tmp_path)
    splits.assign(path=[unicodedata.normalize('NFC', p) for p in splits.path]).to_csv(tmp_path/'splits.csv', index=False)
    assert read_splits(tmp_path).path.tolist() == splits.path.tolist() and not compare_manifest(tmp_path, read_splits(tmp_path))

def test_a_table_in_the_encoding_of_excel(tmp_path):
    classes(tmp_path, ['Strümpfe', 'Hüte'])
    splits = split_dataset(tmp_path)
    (tmp_path/'splits.csv').write_bytes(splits.to_csv(index=False, sep=';').encode('cp1252'))
    assert read_splits(tmp_path).path.tolist() == splits.path.tolist() and set(read_splits(tmp_path).label) == {'Strümpfe', 'Hüte'}

@pytest.mark.skipif(sys.platform in ('win32', 'darwin'), reason='file names are Unicode')
def test_names_that_are_not_utf8(tmp_path, capsys):
    folder = classes(tmp_path/'gear')
    photo(os.fsdecode(bytes(folder/'boots') + b'/caf\xe9.jpeg'), 4000)
    (folder/'boots').rename(os.fsdecode(bytes(folder) + b'/b\xf6ts'))
    out = run('data', 'split', folder)
    splits = read_splits(folder)
    assert set(splits.label) == {'böts', 'tents'} and all((folder/p).is_file() for p in splits.path) and len(splits) == 17
    assert not with_warnings(compare_manifest, folder, splits)[0]
    photo(os.fsdecode(bytes(folder/'tents') + b'/\xff.jpeg'), 4000), photo(os.fsdecode(bytes(folder/'tents') + b'/\xfe.jpeg'), 4000)
    assert splits.path.map(product_id).is_unique and set(splits.path.map(photo_source)) == {''}
    report = with_warnings(audit, folder)[0]
    print(report), print(compare_manifest(folder, splits))
    str(report).encode()
    run('data', 'audit', folder)
    assert len(read_splits(folder)) == len(splits) and '2 photos' in str(compare_manifest(folder, splits))
    run('data', 'split', folder, '--add')
    dls = with_warnings(dataloaders, folder, 32, bs=4)[0]
    for _ in dls.train: pass
    for _ in dls.valid: pass
    merged = with_warnings(merge_datasets, [folder, classes(tmp_path/'other', start=9999)], tmp_path/'out')[0]
    assert len(merged) == 19 + 16 and len(read_splits(tmp_path/'out')) == 19 + 16

def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path)), monkeypatch.setenv('USERPROFILE', str(tmp_path))
    classes(tmp_path/'gear'), classes(tmp_path/'other', start=5000)
    run('data', 'split', '~/gear'), run('data', 'audit', '~/gear')
    assert len(read_splits('~/gear')) == 16
    assert len(dataloaders('~/gear', 32).train_ds)
    merge_datasets(['~/gear', '~/other'], '~/both')
    assert (tmp_path/'both/splits.csv').is_file()
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for p in (tmp_path/'gear').rglob('*.png'): z.write(p, p.relative_to(tmp_path))
    assert fetch('~/new', '~/a.zip') == tmp_path/'new'

# checks of tables

def table(**columns): return pd.DataFrame(dict(path=['boots/0.png', 'tents/0.png'], label=['boots', 'tents'], group=[0, 1], split=['train', 'valid']) | columns)

@pytest.mark.parametrize('columns, why', [
    (dict(path=['boots/0.png', 'boots/0.png']), 'is listed twice'), (dict(path=['boots/0.png', './boots/0.png']), 'is listed twice'),
    (dict(path=['/a/boots/0.png', 'tents/0.png']), 'must be relative'), (dict(path=['C:\\boots\\0.png', 'tents\\0.png']), 'must be relative'),
    (dict(path=['../boots/0.png', 'tents/0.png']), 'must be relative'), (dict(path=['', 'tents/0.png']), 'has no path'),
    (dict(label=['', 'tents']), 'boots/0.png has no label'), (dict(label=['  ', 'tents']), 'boots/0.png has no label'),
    (dict(split=['train', 'holdout']), "split 'holdout'"), (dict(split=['train', '']), 'have no split yet'), (dict(group=['', '1']), 'have no group yet')])
def test_tables_are_refused_when_read_and_when_written(tmp_path, columns, why):
    with pytest.raises(DataError, match=why): write_splits(tmp_path, table(**columns))
    assert not list(tmp_path.iterdir())
    table(**columns).to_csv(tmp_path/'splits.csv', index=False)
    with pytest.raises(DataError, match=why) as e: read_splits(tmp_path)
    assert '\n' not in str(e.value) and 'splits.csv' in str(e.value)

@pytest.mark.parametrize('text', [
    '\ufeffpath,label,group,split\nboots/0.png,boots,0,train\ntents/0.png,tents,1,valid\n',                          # byte order mark
    'path;label;group;split\r\nboots\\0.png;boots;0;train\r\ntents\\0.png;tents;1;valid\r\n',                        # Excel on Windows
    'path\tlabel\tgroup\tsplit\nboots/0.png\tboots\t0\ttrain\ntents/0.png\ttents\t1\tvalid\n',
    'path, label, group, split\nboots/0.png, boots, 0, train\ntents/0.png, tents, 1, valid\n',                       # a space after each comma
    'Path,Label ,GROUP,Split\n./boots/0.png,boots,0.0,Train\ntents//0.png,tents,1.0,val\n\n',
    ',path,label,group,split\n0,boots/0.png,boots,0,train\n1,tents/0.png,tents,1,valid\n',                           # pandas' index
    'Unnamed: 0,split,path,group,label\n0,train,boots/0.png,a,boots\n1,validation,tents/0.png,b,tents\n',
    'path,label,group,split,,\nboots/0.png,boots,0,train,,\ntents/0.png,tents,1,valid,,\n,,,,,\n',                   # empty cells
    'path,label,group,split\rboots/0.png,boots,0,train\rtents/0.png,tents,1,valid\r'])
def test_harmless_habits_of_tables(tmp_path, text):
    (tmp_path/'splits.csv').write_bytes(text.encode())
    pd.testing.assert_frame_equal(read_splits(tmp_path)[['path', 'label', 'group', 'split']], table(), check_dtype=False)

@pytest.mark.parametrize('content, why', [
    (b'', 'has no column'), (b'\x00\x01\x02', 'splits.csv'), ('path,label\n'.encode(), 'lists no photos'), ('path,label,group,split\na,b.png,boots,0,train\n'.encode(), 'has 5 values'),
    ('path,label\na.png,boots\n'.encode('utf-16'), 'not a table'), (b'image,class\na.png,boots\n', 'has no column path, label'), (b'path,path,label\na,b,c\n', "two columns 'path'")])
def test_what_is_no_table(tmp_path, content, why):
    (tmp_path/'splits.csv').write_bytes(content)
    with pytest.raises(DataError, match=why) as e: read_splits(tmp_path)
    assert '\n' not in str(e.value) and 'splits.csv' in str(e.value)

def test_labels_from_a_table_without_class_folders(tmp_path):
    classes(tmp_path, ['images'], n=16), photo(tmp_path/'images/unlabeled.png', 4000), photo(tmp_path/'0.png', 5000)
    rows = [f'images/{k}.png,{["boots", "tents"][k % 2]}' for k in range(16)] + ['0.png,boots']
    (tmp_path/'splits.csv').write_text('\n'.join(['path,label', *rows]))
    with pytest.raises(DataError, match='complete it with: gear-fastai data split'): read_splits(tmp_path)
    df, messages = with_warnings(list_dataset, tmp_path)
    assert df.label.value_counts().to_dict() == dict(boots=9, tents=8) and 'images/unlabeled.png' in messages
    assert 'unlabeled.png' in run('data', 'split', tmp_path)
    splits = read_splits(tmp_path)
    assert splits.label.value_counts().to_dict() == dict(boots=9, tents=8) and set(splits.split) == {'train', 'valid', 'test'}
    run('data', 'split', tmp_path, '--force', '--seed', '7')
    assert set(read_splits(tmp_path).label) == {'boots', 'tents'}
    assert sorted(with_warnings(dataloaders, tmp_path, 32)[0].vocab) == ['boots', 'tents']

def test_a_split_from_a_table_without_groups_is_completed(tmp_path):
    folder = classes(tmp_path/'gear')
    given = split_dataset(folder, seed=3)
    given[['path', 'label', 'split']].to_csv(folder/'splits.csv', index=False)
    assert ensure_splits(folder).split.tolist() == given.split.tolist()
    assert read_splits(folder).split.tolist() == given.split.tolist()

@pytest.mark.parametrize('valid, test', [(.98, .01), (.01, .98), (.5, .49), (.98, 0)])
def test_something_is_always_left_to_train_on(tmp_path, valid, test):
    splits = with_warnings(split_dataset, classes(tmp_path/'gear'), valid=valid, test=test)[0]
    assert set(splits.label[splits.split == 'train']) == {'boots', 'tents'}
    assert set(splits.label[splits.split == 'valid']) == {'boots', 'tents'}

@pytest.mark.parametrize('valid, test', [(0, .1), (1, 0), (.5, .5), (.6, .6), (-.1, .1), (float('nan'), .1), (.1, float('nan'))])
def test_fractions_that_leave_nothing(tmp_path, valid, test):
    with pytest.raises(DataError, match='leave some for train'): split_dataset(classes(tmp_path/'gear'), valid=valid, test=test)

def test_a_class_of_a_single_product_group(tmp_path):
    folder = classes(tmp_path/'gear', ['tents'])
    for k in range(6): photo(folder/f'boots/12x{k}_zm.png', 4000 + k)
    df, messages = with_warnings(split_dataset, folder)
    assert 'product groups of boots for the valid split' in messages and "split method 'random'" in messages
    assert set(df.split[df.label == 'boots']) == {'train'}
    with pytest.raises(DataError, match='boots: 6 photos in one product group'): fold_splits(df)
    for p in (folder/'tents').iterdir(): p.unlink()
    for k in range(6): photo(folder/f'tents/13x{k}_zm.png', 4100 + k)
    with pytest.raises(DataError, match='product groups for the valid split'): with_warnings(split_dataset, folder)

def test_folds_of_small_classes(tmp_path):
    splits = with_warnings(split_dataset, classes(tmp_path/'gear'))[0]
    one = pd.concat([splits, pd.DataFrame([dict(path='skis/a.png', label='skis', group=99, split='train')])], ignore_index=True)
    with pytest.raises(DataError, match='skis: 1 photo in one'): fold_splits(one)
    with pytest.raises(DataError, match='choose 2 to 8'): fold_splits(splits, 20)
    with pytest.raises(DataError, match='choose 2 to 8'): fold_splits(splits, 1)
    three = pd.concat([splits, pd.DataFrame(dict(path=[f'skis/{k}.png' for k in range(3)], label='skis', group=[90, 91, 92], split='train'))], ignore_index=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for fold in fold_splits(three, 5): assert set(fold.split) == {'train', 'valid', 'test'} and set(fold.label[fold.split == 'train']) == {'boots', 'tents', 'skis'}

# merging

def test_merge_keeps_splits(tmp_path):
    a, b = classes(tmp_path/'a', n=10), classes(tmp_path/'b', n=10, start=5000)
    sides = {f: ensure_splits(f, seed=s) for f, s in ((a, 1), (b, 2))}
    with_warnings(merge_datasets, [a, b], tmp_path/'out')
    merged = read_splits(tmp_path/'out')
    side = dict(zip(merged.path, merged.split))
    for f, df in sides.items(): assert all(side[f'{label}/{f.name}/{Path(p).name}'] == s for p, label, s in zip(df.path, df.label, df.split))
    assert merged.group.nunique() == sum(df.group.nunique() for df in sides.values())

def test_merge_of_contradicting_splits(tmp_path):
    a, b = classes(tmp_path/'a', n=10), classes(tmp_path/'b', n=10)                   # the same photos
    ensure_splits(a, seed=1), ensure_splits(b, seed=2)
    messages = with_warnings(merge_datasets, [a, b], tmp_path/'out')[1]
    merged = read_splits(tmp_path/'out')
    assert (merged.groupby('group').split.nunique() == 1).all() and 'moved to the split' in messages and f'{tmp_path}/out: ' in messages
    train = {Path(p).parts[0] + Path(p).name for f in (a, b) for p in read_splits(f).query("split == 'train'").path}
    assert train == {Path(p).parts[0] + Path(p).name for p in merged.path[merged.split == 'train']}

def test_merge_of_a_folder_that_comes_split(tmp_path):
    classes(tmp_path/'a/train'), classes(tmp_path/'a/valid', n=3, start=100), classes(tmp_path/'b', n=6, start=5000)
    with_warnings(merge_datasets, [tmp_path/'a', tmp_path/'b'], tmp_path/'out')
    merged = read_splits(tmp_path/'out')
    assert len(merged) == 16 + 6 + 12 and set(merged.label) == {'boots', 'tents'} and set(merged.path.map(photo_source)) == {'a', 'b'}
    assert (merged[merged.path.str.contains('/a/')].split == 'valid').sum() == 6

def test_class_maps_as_excel_writes_them(tmp_path):
    (tmp_path/'names.csv').write_bytes('\ufefffrom;to\r\nfootwear;boots\r\nlamps;\r\n'.encode())
    assert read_class_map(tmp_path/'names.csv') == dict(footwear='boots', lamps=None)

# pictures of none of the classes

def with_none(folder, n=12, **kwargs):
    "A dataset with `n` pictures in `_none/far`"
    classes(folder, n=12, **kwargs), classes(folder/'_none', ['far'], n=n, start=90_000)
    return folder

def test_none_is_split_but_no_class(tmp_path):
    folder = with_none(tmp_path/'gear')
    splits, messages = with_warnings(ensure_splits, folder)
    assert messages == '' and is_none(splits).sum() == 12 and set(splits.split[is_none(splits)]) == {'train', 'valid', 'test'}
    assert set(read_splits(folder).label) == {'boots', 'tents', '_none'} and not compare_manifest(folder, splits)
    assert set(photo_domains(splits)) == {'', 'far'}
    report = audit(folder)
    assert report.counts['_none'] == 12 and '24 photos in 2 classes: boots 12' in str(report) and '12 of none of the classes' in str(report)
    dls, messages = with_warnings(dataloaders, folder, 32)
    assert messages == '' and list(dls.vocab) == ['boots', 'tents'] and len(dls.splits) == 36
    assert not any('_none' in path.parts for path in [*dls.train_ds.items, *dls.valid_ds.items])
    loaders = photo_datablock(dls.splits, folder, 32).dataloaders(sorted(folder.rglob('*.png')), bs=4, num_workers=0)
    assert len(loaders.train_ds) == len(dls.train_ds) and '12 of none' in run('data', 'audit', folder)

def test_none_changes_no_split_or_fold_of_a_class(tmp_path):
    plain = split_dataset(classes(tmp_path/'gear', n=12))
    splits = split_dataset(with_none(tmp_path/'gear', n=3))
    known = splits[~is_none(splits)].reset_index(drop=True)
    assert known[['path', 'split']].equals(plain[['path', 'split']])
    for fold, other in zip(fold_splits(splits, 4), fold_splits(plain, 4), strict=True):
        assert fold.split[~is_none(fold)].tolist() == other.split.tolist() and set(fold.split) == {'train', 'valid', 'test'}
    assert sum((fold.split[is_none(fold)] == 'test').sum() for fold in fold_splits(splits, 4)) == 3

@pytest.mark.parametrize('use', [list_dataset, audit, split_dataset, dataloaders, ensure_splits])
def test_a_none_folder_alone(tmp_path, use):
    classes(tmp_path, ['_none'])
    with pytest.raises(DataError, match='a _none folder alone'): with_warnings(use, tmp_path)
    classes(tmp_path, ['boots'], start=50)
    with pytest.raises(DataError, match=r'only one class \(boots\)'): with_warnings(use, tmp_path)

def test_none_is_added_to_an_older_manifest_on_request(tmp_path):
    folder = classes(tmp_path/'gear', n=12)
    before = ensure_splits(folder)
    with_none(folder)
    splits, messages = with_warnings(ensure_splits, folder)
    assert messages == '' and splits.split.tolist() == before.split.tolist() and not compare_manifest(folder, before) and audit(folder).new == []
    assert '_none' not in with_warnings(dataloaders, folder, 32)[0].vocab
    run('data', 'split', folder, '--add')
    after = read_splits(folder)
    assert after[~is_none(after)].split.tolist() == before.split.tolist() and is_none(after).sum() == 12
    photo(folder/'_none/near/new.png', 99_000)
    assert compare_manifest(folder, after).new == ['_none/near/new.png'] and compare_manifest(folder, after).classes == []

def test_one_picture_of_none_of_the_classes(tmp_path):
    splits, messages = with_warnings(split_dataset, with_none(tmp_path/'gear', n=1))
    assert messages == '' and splits.split[is_none(splits)].tolist() == ['train']
    for fold in fold_splits(splits, 3): assert set(fold.split[~is_none(fold)]) == {'train', 'valid', 'test'}

def test_near_duplicates_of_gear_in_none(tmp_path):
    folder = with_none(tmp_path/'gear')
    for k in range(4): Image.open(folder/f'boots/{k}.png').resize((80, 80), Image.Resampling.NEAREST).save(folder/f'_none/copy{k}.webp', lossless=True)
    splits, messages = with_warnings(split_dataset, folder)
    assert messages == (f'{folder}: 4 photos in _none look almost identical to photos of a class '
                        '(_none/copy0.webp, _none/copy1.webp, _none/copy2.webp and 1 more); remove them from one of the two')
    rows = splits.set_index('path')
    for k in range(4):
        assert rows.group[f'_none/copy{k}.webp'] == rows.group[f'boots/{k}.png']
        assert rows.split[f'_none/copy{k}.webp'] == rows.split[f'boots/{k}.png']
    crossing = [set(pair) for pair in audit(folder).cross_class_duplicates]
    assert all({f'_none/copy{k}.webp', f'boots/{k}.png'} in crossing for k in range(4)) and len(crossing) == 4
    assert 'look almost identical' in run('data', 'split', folder)

def test_none_in_a_folder_that_comes_split(tmp_path):
    inside, beside = tmp_path/'inside', tmp_path/'beside'
    for folder in (inside, beside): classes(folder/'train'), classes(folder/'test', n=3, start=100)
    classes(inside/'train', ['_none'], n=9, start=9000), classes(inside/'test', ['_none'], n=2, start=9100), classes(beside, ['_none'], n=12, start=9000)
    splits = with_warnings(split_dataset, inside)[0]
    assert (splits.path[is_none(splits) & (splits.split == 'test')].str.startswith('test/')).all() and is_none(splits).sum() == 11
    splits = with_warnings(split_dataset, beside)[0]
    assert set(splits.split[is_none(splits)]) == {'train', 'valid', 'test'}
    assert (splits.split[splits.path.str.startswith('test/')] == 'test').all() and set(splits.label) == {'boots', 'tents', '_none'}

def test_merge_onto_none(tmp_path):
    gear, others, outdoor = classes(tmp_path/'gear'), classes(tmp_path/'none', ['far', 'near'], n=4, start=5000), classes(tmp_path/'outdoor', ['boots'], start=7000)
    classes(gear, ['_none'], n=3, start=8000)
    made = merge_datasets([gear, others, outdoor], tmp_path/'out', dict(far='_none', near='_none'))
    assert made.label.value_counts().to_dict() == dict(boots=16, tents=8, _none=11)
    domains = photo_domains(made.drop(columns='source'))
    assert set(domains[is_none(made)]) == {'gear', 'none/far', 'none/near'} and set(domains[~is_none(made)]) == {'gear', 'outdoor'}
    with pytest.raises(DataError, match='fewer than two classes remain'): merge_datasets([gear, others], tmp_path/'no', dict(boots=None, far='_none', near='_none'))
    classes(tmp_path/'alone', ['_none'])
    assert merge_datasets([gear, tmp_path/'alone'], tmp_path/'with').label.value_counts()['_none'] == 11

# archives

@pytest.mark.parametrize('damage', ['cut', 'flip', 'text', 'empty', 'encrypted', 'folder', 'gone', 'clash'])
def test_errors_of_archives_name_the_archive(tmp_path, damage):
    archive = tmp_path/'gear.zip'
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as z:
        if damage != 'empty': z.writestr('boots/a.png', os.urandom(3000)), z.writestr('tents/b.png', bytes(3000))
        if damage == 'clash': z.writestr('boots/a.png/c.png', b'x')
        z.writestr('readme.txt', 'x')
    raw = bytearray(archive.read_bytes())
    if damage == 'cut': archive.write_bytes(raw[:1000])
    if damage == 'flip': archive.write_bytes(raw[:100] + bytes(200) + raw[300:])
    if damage == 'text': archive.write_text('hello')
    if damage == 'encrypted':
        raw[6] |= 1
        raw[raw.index(b'PK\x01\x02') + 8] |= 1
        archive.write_bytes(raw)
    if damage in ('folder', 'gone'): archive.unlink()
    if damage == 'folder': archive.mkdir()
    out = run('data', 'fetch', tmp_path/'new', '--url', archive, code=1)
    assert len(out.splitlines()) == 1 and str(archive) in out and '.unfinished' not in out and 'new/' not in out
    assert not (tmp_path/'new').exists() and not list(tmp_path.glob('.unfinished*'))

def test_errors_of_writing_name_what_was_asked_for(tmp_path, monkeypatch):
    a, b = classes(tmp_path/'a'), classes(tmp_path/'b', start=5000)
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for p in a.rglob('*.png'): z.write(p, p.relative_to(a))
    def full(*args, **kwargs): raise OSError(28, 'No space left on device', str(args))
    with monkeypatch.context() as m:
        m.setattr('zipfile.ZipFile.extract', full)
        assert run('data', 'fetch', tmp_path/'new', '--url', tmp_path/'a.zip', code=1) == f'Error: {tmp_path}/a.zip: could not be unpacked (No space left on device)\n'
    with monkeypatch.context() as m:
        m.setattr('tempfile.mkdtemp', full)
        for command in (('fetch', tmp_path/'new', '--url', tmp_path/'a.zip'), ('merge', tmp_path/'new', a, b)):
            assert run('data', *command, code=1) == f'Error: {tmp_path}/new: No space left on device\n'
    with monkeypatch.context() as m:
        m.setattr('os.link', full), m.setattr('shutil.copyfile', full)
        assert run('data', 'merge', tmp_path/'new', a, b, code=1) == f'Error: {tmp_path}/new: No space left on device\n'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'a.zip', 'b']

def test_an_archive_with_a_manifest(tmp_path):
    classes(tmp_path/'gear/photos', ['a'], n=12)
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for p in (tmp_path/'gear').rglob('*.png'): z.write(p, p.relative_to(tmp_path))
        z.writestr('gear/splits.csv', '\n'.join(['path,label'] + [f'photos/a/{k}.png,{["boots", "tents"][k % 2]}' for k in range(12)]))
    folder = fetch(tmp_path/'new', tmp_path/'a.zip')
    assert list_dataset(folder).label.value_counts().to_dict() == dict(boots=6, tents=6) and len(ensure_splits(folder)) == 12

def test_a_table_of_the_callers_needs_no_groups(tmp_path):
    folder = classes(tmp_path/'gear')
    splits = split_dataset(folder)
    dls = dataloaders(folder, 32, splits=splits[['path', 'label', 'split']])
    assert dls.splits.split.tolist() == splits.split.tolist() and not (folder/'splits.csv').exists()

def test_archives_made_on_windows(tmp_path):
    classes(tmp_path/'gear')
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for p in (tmp_path/'gear').rglob('*.png'): z.writestr(str(p.relative_to(tmp_path)).replace('/', '\\'), p.read_bytes())
    assert len(list_dataset(unpack(tmp_path/'a.zip', tmp_path/'new'))) == 16

@pytest.mark.parametrize('use', [list_dataset, audit, split_dataset, dataloaders, ensure_splits, read_splits])
def test_an_archive_in_the_place_of_a_folder(tmp_path, use):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('boots/a.png', b'x')
    with pytest.raises(DataError, match='is a zip archive; unpack it first: gear-fastai data fetch'): use(tmp_path/'a.zip')

# loaders

def test_loaders_split_as_training_does(tmp_path):
    folder = classes(tmp_path/'gear')
    dls = dataloaders(folder, 32)
    pd.testing.assert_frame_equal(dls.splits, read_splits(folder), check_dtype=False)
    other = photo_datablock(dls.splits, folder, 32).dataloaders(folder, bs=4, num_workers=0)
    assert other.train_ds.items == dls.train_ds.items and other.valid_ds.items == dls.valid_ds.items
    all_photos = sorted(folder.rglob('*.png'))                                        # fastai users give all of them
    other = photo_datablock(dls.splits, folder, 32).dataloaders(all_photos, bs=4, num_workers=0)
    assert len(other.train_ds) + len(other.valid_ds) == (dls.splits.split != 'test').sum()

def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    folder = classes(tmp_path/'gear')
    def refuse(*args): raise PermissionError(13, 'Permission denied', str(args[1]))
    monkeypatch.setattr(os, 'replace', refuse)
    splits, messages = with_warnings(ensure_splits, folder)
    assert len(splits) == 16 and 'kept in memory' in messages and not list(folder.glob('*splits*')) and not list(folder.glob('.splits*'))
    assert str(folder/'splits.csv') in run('data', 'split', folder, code=1)

def test_workers_that_start_anew(tmp_path, monkeypatch):
    folder = classes(tmp_path/'gear', n=4)
    plain = dataloaders(folder, 32, bs=4)
    monkeypatch.setattr('fastai.data.load._FakeLoader.multiprocessing_context', multiprocessing.get_context('spawn'))
    workers = dataloaders(folder, 32, bs=4, num_workers=1)
    for a, b in zip(plain.valid, workers.valid, strict=True): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

def test_all_of_the_loaders_can_be_pickled(tmp_path):
    dls = with_warnings(dataloaders, classes(tmp_path/'gear', n=4), 32)[0]
    again = pickle.loads(pickle.dumps(dls))
    assert again.vocab == dls.vocab and len(again.train_ds) == len(dls.train_ds)

def test_file_digest_is_that_of_scan(tmp_path):
    folder = classes(tmp_path/'gear', n=2)
    seen = scan(folder)
    assert [file_digest(folder/p) for p in seen.path] == seen.digest.tolist()


def test_class_names_are_plain_text_in_fastai_plots(tmp_path):
    "A dollar sign would begin a formula"
    import matplotlib.pyplot as plt
    dls = dataloaders(classes(tmp_path, ('$50_to_$100', '$100_{')), size=32, bs=4)
    dls.show_batch()
    plt.gcf().canvas.draw()
    assert {ax.get_title() for ax in plt.gcf().axes} <= {'$50_to_$100', '$100_{', ''}
    plt.close()


def test_splits_inside_class_folders_are_reported(tmp_path):
    "boots/train and boots/test: the classes are right, but the split is not the given one"
    for name in ('boots', 'tents'):
        for side in ('train', 'test'): classes(tmp_path/name, (side,), n=4, start=10*len(name) + len(side))
    df, messages = with_warnings(list_dataset, tmp_path)
    assert set(df.label) == {'boots', 'tents'} and 'not used as a split' in messages and 'train/boots' in messages
    _, messages = with_warnings(list_dataset, classes(tmp_path/'plain'))
    assert 'split' not in messages


# copies and links

def test_links_and_many_copies(tmp_path):
    "However many copies there are, the report is short"
    folder = classes(tmp_path/'gear', n=3)
    originals = list(folder.rglob('*.png'))
    for path in originals:
        for k in range(30): path.with_name(f'{k}-{path.name}').symlink_to(path)
    (folder/'boots/broken.png').symlink_to(folder/'gone.png')
    report = audit(folder)
    assert list(report.unreadable) == ['boots/broken.png'] and report.near_duplicates == []
    assert sum(map(len, report.exact_duplicates)) == 31*len(originals)
    lines = str(report).splitlines()
    assert len(lines) < 25 and all(len(line) < 600 for line in lines)

def test_a_dataset_without_readable_photos(tmp_path):
    for name in ('boots', 'tents'):
        (tmp_path/name).mkdir()
        (tmp_path/name/'a.jpg').write_bytes(b'not an image')
    assert len(audit(tmp_path).unreadable) == 2
    with pytest.raises(DataError, match='fewer than two classes'): with_warnings(split_dataset, tmp_path)

# the sample set

def test_sample_set(tmp_path):
    (tmp_path/'gear').mkdir()                                                         # an empty folder may exist
    files = sorted(p for p in draw_sample(tmp_path/'gear', n=6).rglob('*') if p.is_file())
    assert Counter(p.parent.name for p in files) == dict.fromkeys(CLASSES, 6)
    assert all(re.fullmatch(r'\d{8}(x\d{7})?_zm\.(jpeg|png)', p.name) for p in files)
    images = [Image.open(p) for p in files]
    transparent = [im for im in images if im.mode == 'RGBA']
    assert len(transparent) == 4 and all(max(im.convert('RGB').getpixel((0, 0))) < 12 for im in transparent)
    assert len({im.size for im in images}) > 60

def test_a_sample_set_is_complete_or_not_there(tmp_path):
    with pytest.raises(ValueError, match='at least 1'): draw_sample(tmp_path/'none', n=0)
    with pytest.raises(ValueError): draw_sample(tmp_path/'none', n=1, size=(40, 32))   # fails while drawing
    assert not list(tmp_path.iterdir())

# what can't be merged or loaded

def test_what_cannot_be_merged(tmp_path):
    (tmp_path/'map.csv').write_text('from,to\na,b\na,c\n')
    with pytest.raises(DataError, match="'a' is listed twice"): read_class_map(tmp_path/'map.csv')
    (tmp_path/'map.csv').write_text('old,new\na,b\n')
    with pytest.raises(DataError, match="needs columns 'from' and 'to'"): read_class_map(tmp_path/'map.csv')
    folder, other = classes(tmp_path/'gear'), classes(tmp_path/'other', start=5000)
    with pytest.raises(DataError, match='at least two datasets'): merge_datasets([folder], tmp_path/'out')
    with pytest.raises(DataError, match="can't be a folder"): merge_datasets([folder, other], tmp_path/'out', dict(boots='a/b'))
    assert not (tmp_path/'out').exists()

def test_splits_of_another_folder(tmp_path):
    folder = classes(tmp_path/'gear')
    splits = split_dataset(folder)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(DataError, match='are missing'): dataloaders(folder, splits=splits.assign(path='x/' + splits.path))

def test_dataset_and_sources_do_not_load_torch():
    code = "import sys, gear_fastai.dataset, gear_fastai.sources; print({'torch', 'fastai'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == 'set()'


def test_a_manifest_without_splits_keeps_those_of_the_folder(tmp_path):
    for split, seed in (('train', 0), ('test', 1)): draw_sample(tmp_path/'gear'/split, n=4, seed=seed)
    listed = list_dataset(tmp_path/'gear')
    listed[['path', 'label']].to_csv(tmp_path/'gear/splits.csv', index=False)
    splits = split_dataset(tmp_path/'gear', existing=earlier_splits(tmp_path/'gear', add=True))
    assert splits.split[splits.path.str.startswith('test/')].eq('test').all()
    assert not splits.split[splits.path.str.startswith('train/')].eq('test').any()


def test_a_class_folder_that_begins_with_a_space(tmp_path):
    sample = draw_sample(tmp_path/'gear', n=4)
    (sample/'boots').rename(sample/' boots')
    write_splits(sample, split_dataset(sample))
    assert read_splits(sample).path.str.startswith(' boots/').sum() == 4


def test_folds_keep_the_groups_of_the_manifest(tmp_path):
    sample = draw_sample(tmp_path/'gear', n=6)
    photos = list_dataset(sample)[['path', 'label']]
    photos['group'] = pd.factorize(photos.label)[0]*3 + photos.groupby('label').cumcount() % 3
    photos.to_csv(sample/'splits.csv', index=False)
    group = dict(zip(photos.path, photos.group))
    for table in _fold_splits(sample, 3, 42, grouped=True):
        groups = table.path.map(group)
        tested = table.split == 'test'
        assert tested.any() and not set(groups[tested]) & set(groups[~tested])
