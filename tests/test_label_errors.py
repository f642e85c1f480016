"Suspected label errors: rankings of drawn features and of folders with wrong labels, the report and the audit"
import numpy as np, pandas as pd, pytest

from gear_fastai.dataset import audit, DataError
from gear_fastai.evaluation import find_label_errors, rank_label_errors
from gear_fastai.report import _label_errors
from gear_fastai.sources import draw_sample
from fastcore.xml import to_xml

NAMES = np.array(['axes', 'boots', 'rope', 'tents'])


def drawn(n=160, size=2, n_classes=4, seed=0):
    "Features, classes and groups of `size` rows"
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n//size) % n_classes, size)
    return np.eye(n_classes, 48)[y] + rng.normal(size=(n, 48))*.12, y, np.arange(n)//size


def first(found, n): return set(found.score.sort_values(ascending=False, kind='stable').index[:n])


def test_wrong_labels_come_first():
    x, y, groups = drawn()
    wrong = [3, 40, 77]
    given = y.copy()
    given[wrong] = (given[wrong] + 1) % 4
    found = rank_label_errors(x, NAMES[given], groups)
    assert first(found, 3) == set(wrong)
    assert found.suggested[wrong].tolist() == NAMES[y[wrong]].tolist()
    assert found.likely.sum() == 3 and found.likely[wrong].all()


def test_correct_labels_are_not_likely_wrong():
    x, y, groups = drawn()
    found = rank_label_errors(x, NAMES[y], groups)
    assert not found.likely.any() and (found.score < 0).all()


def test_a_wrong_product_group_does_not_confirm_itself():
    x, y, groups = drawn(size=8)
    rng = np.random.default_rng(1)
    products = rng.normal(size=(groups.max() + 1, 48))*.25
    x = x + products[groups]                            # the colors of a product look alike
    given = np.where(groups == 5, (y + 1) % 4, y)
    together = rank_label_errors(x, NAMES[given], groups)
    alone = rank_label_errors(x, NAMES[given])
    of_group = groups == 5
    assert first(together, 8) == set(np.flatnonzero(of_group))
    assert together.score[of_group].min() > alone.score[of_group].min()


def test_other_photos_of_the_product_count():
    x, y, groups = drawn(size=4)
    given = y.copy()
    given[3] = (y[3] + 1) % 4
    alone = rank_label_errors(x, NAMES[given]).score
    found = rank_label_errors(x, NAMES[given], groups).score
    assert found[3] > alone[3] + .15
    assert np.abs(found - alone)[4:].max() < .05


def test_lengths_and_order_of_rows_do_not_matter():
    x, y, groups = drawn()
    y[3] = (y[3] + 1) % 4
    found = rank_label_errors(x, NAMES[y], groups)
    order = np.random.default_rng(0).permutation(len(y))
    other = rank_label_errors(3*x[order], NAMES[y[order]], groups[order])
    np.testing.assert_allclose(found.score[order], other.score, atol=1e-5)
    assert found.suggested[order].tolist() == other.suggested.tolist()


def test_negatives_and_classes_are_told_apart():
    x, y, groups = drawn()
    names = np.array(['axes', 'boots', 'rope', '_none'])
    given = y.copy()
    given[[2, 3]], given[[6, 7]] = 3, 0                 # boots among the negatives, a negative among the axes
    found = rank_label_errors(x, names[given], groups)
    assert first(found, 4) == {2, 3, 6, 7}
    assert found.suggested[[2, 6]].tolist() == ['boots', '_none']


def test_a_class_of_one_group_cannot_be_judged():
    x, y, groups = drawn(n=40, size=8, n_classes=4)     # five groups: only the first class has two
    found = rank_label_errors(x, NAMES[y], groups)
    assert found.score[y > 0].isna().all() and not found.likely.any()
    assert found.score[y == 0].notna().all()


def test_labels_may_be_a_series_and_features_half_precision():
    x, y, groups = drawn()
    labels = pd.Series(NAMES[y], index=np.arange(len(y)) + 7)
    found = rank_label_errors(x.astype(np.float16), labels, pd.Series(groups), pd.Series(['']*len(y)))
    assert found.index.tolist() == list(range(len(y))) and not found.likely.any()


@pytest.fixture(scope='module')
def messy(tmp_path_factory):
    "A drawn dataset with a photo in the wrong folder and an unreadable one"
    folder = draw_sample(tmp_path_factory.mktemp('messy')/'gear', n=6)
    min((folder/'boots').iterdir()).rename(folder/'tents/moved.jpeg')
    (folder/'rope/broken.jpeg').write_bytes(b'\xff\xd8 cut off')
    return folder


@pytest.fixture(scope='module')
def suspects(messy):
    with pytest.warns(UserWarning, match='1 unreadable photo'): return find_label_errors(messy)


def test_the_moved_photo_is_the_first_suspect(suspects):
    row = suspects.iloc[0]
    assert (row.path, row.label, row.suggested) == ('tents/moved.jpeg', 'tents', 'boots') and row.likely
    assert 'rope/broken.jpeg' not in set(suspects.path) and suspects.score.is_monotonic_decreasing


def test_the_report_shows_it(messy, suspects):
    page = to_xml(_label_errors(suspects, messy, 1))
    assert 'tents/moved.jpeg' in page and 'tents → boots' in page and page.count('<img') == 1
    gone = suspects.assign(path='gone.jpeg')
    assert '<img' not in to_xml(_label_errors(gone, messy, 1))


def test_the_audit_lists_it(messy, suspects):
    report = audit(messy)
    assert 'label errors' not in str(report) and report.to_dict()['label_errors'] is None
    report.label_errors = suspects[suspects.likely].drop(columns='likely').to_dict('records')
    assert 'tents/moved.jpeg: tents → boots' in str(report)
    report.label_errors = []
    assert 'suspected label errors: none' in str(report)


def test_a_folder_without_classes_is_an_error(tmp_path):
    with pytest.raises(DataError): find_label_errors(tmp_path)
