"The reviewer in a browser: as Voilà's page, and in JupyterLab."
import csv, os, shutil

import nbformat, pytest

from test_browser import SHOTS, _free_port, browser, jupyterlab, run_in_lab     # skips where there is no browser

from gear_fastai.app import serve_review
from gear_fastai.photo import list_photos
from gear_fastai.sources import draw_sample

STAGE = '.gear-stage'


@pytest.fixture
def folder(tmp_path):
    "Drawn photos in class folders, and six without a label"
    folder = draw_sample(tmp_path/'photos', n=1, seed=9)
    for i, file in enumerate(list(list_photos(folder))[:6]): shutil.move(file, folder/f'new{i}{file.suffix}')
    return folder


def open_page(browser, url, **kw):
    page = browser.new_context(**dict(viewport=dict(width=1280, height=900)) | kw).new_page()
    page.complaints = []
    page.on('pageerror', lambda e: page.complaints.append(str(e)))
    page.on('console', lambda m: page.complaints.append(m.text) if m.type == 'error' else None)
    page.goto(url)
    ready(page)
    return page


@pytest.fixture
def voila(folder):
    with serve_review(folder, models=folder.parent/'models', port=_free_port()) as (url, _): yield url


@pytest.fixture
def lab(folder):
    code = f"from gear_fastai.reviewer import GearReviewer\nreviewer = GearReviewer({str(folder)!r}, models={str(folder.parent/'models')!r})\nreviewer"
    kernel = dict(name='python3', display_name='python3', language='python')
    (home := folder.parent/'lab').mkdir()
    with jupyterlab(home, nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=dict(kernelspec=kernel))) as url: yield url


@pytest.fixture(params=['voila', 'lab'])
def page(request, browser):
    "The reviewer's page, with the focus on the photo"
    url = request.getfixturevalue(request.param)
    page = open_page(browser, url) if request.param == 'voila' else run_in_lab(browser, url, STAGE)
    ready(page)
    yield page
    page.context.close()


def ready(page):
    "Wait for the photo, and until it keeps the focus: JupyterLab takes it back while it settles"
    page.locator(f'{STAGE} img').wait_for(timeout=60_000)
    for _ in range(20):
        page.locator(STAGE).focus()
        page.wait_for_timeout(300)
        if page.evaluate("s => document.activeElement === document.querySelector(s)", STAGE): return
    raise AssertionError('the photo does not keep the focus')


def press(page, *keys):
    "Press keys and wait until Python has confirmed"
    for key in keys: page.keyboard.press(key)
    idle(page)


def idle(page): page.wait_for_function("() => document.querySelector('.gear-reviewer').getAttribute('aria-busy') === 'false'", timeout=60_000)
def name(page): return page.locator('.gear-about div').first.inner_text().split(',')[0]
def first_choice(page): return page.locator('.gear-choices button').first.locator('span').first.inner_text()
def status(page): return page.locator('.gear-status').inner_text()
def notice(page): return page.locator('.gear-notice').text_content()
def recent(page): return page.locator('.gear-recent li span:last-child').all_text_contents()
def click(page, text): page.locator('.gear-reviewer button', has_text=text).first.click(); idle(page)
def in_dialog(page, text): page.locator('.gear-dialog button', has_text=text).click(); idle(page)


def logged(folder):
    "File name → last decision in the log"
    decided = {}
    for row in csv.DictReader(open(folder/'labels.csv', newline='')): decided[os.path.basename(row['photo'])] = row['new']
    return {photo: label for photo, label in decided.items() if label}


def content(folder): return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob('*') if f.is_file() and not f.name.startswith('.')}


def test_decisions_by_key(page, folder):
    want = {}
    for key in ('Enter', '2', 'n', 'x'):
        choice = page.locator('.gear-choices button').nth(1).locator('span').first.inner_text() if key == '2' else first_choice(page)
        want[name(page)] = dict(n='_none', x='_excluded').get(key, choice)
        press(page, key)
        assert logged(folder) == want and status(page).startswith(f'{len(want)} decided'), notice(page)
    assert recent(page) == ['excluded', 'none of these', *list(want.values())[1::-1]]
    before = name(page)
    press(page, '+'); page.keyboard.type('skis'); page.keyboard.press('Escape')
    page.wait_for_function("() => !document.querySelector('.gear-dialog').open")
    assert logged(folder) == want
    press(page, '+'); page.keyboard.type('skis'); page.keyboard.press('Enter')
    page.wait_for_function("() => document.querySelector('.gear-recent').innerText.includes('skis')")
    assert logged(folder) == want | {before: 'skis'} and 'skis' in page.locator('.gear-classes').inner_text()
    press(page, 'u')
    assert logged(folder) == want and name(page) == before
    press(page, 'ArrowRight')
    after = name(page)
    press(page, 'ArrowLeft')
    assert after != name(page) == before and logged(folder) == want
    press(page, '/'); page.keyboard.type('ten'); press(page, 'Enter')
    assert logged(folder)[before] == 'tents'
    assert page.evaluate("s => document.activeElement === document.querySelector(s)", STAGE)
    page.keyboard.press('h'); page.keyboard.press('h')
    labels = page.locator('.gear-classes button').all_text_contents()
    assert len(labels) > 1 and all(label[0] == 'h' for label in labels)
    assert page.locator('.gear-classes [aria-current]').inner_text() == labels[1]
    now = name(page)
    press(page, 'Enter')
    assert logged(folder)[now] == labels[1] and not notice(page)


def test_improves_while_deciding(page):
    for _ in range(5): press(page, 'Enter')
    page.locator('.gear-status', has_text='predictions updated').wait_for(timeout=60_000)
    assert not notice(page)


def test_apply_and_revert(page, folder):
    for _ in range(3): press(page, 'n')
    before = content(folder)
    click(page, 'Apply to dataset'); in_dialog(page, 'Cancel')
    assert content(folder) == before
    click(page, 'Apply to dataset'); in_dialog(page, 'Apply')
    revert = page.locator('.gear-reviewer button', has_text='Revert')
    revert.wait_for()
    assert len(list(list_photos(folder/'_none'))) == 3, notice(page)
    press(page, 'n')
    click(page, 'Apply to dataset'); in_dialog(page, 'Apply')
    page.locator('.gear-status', has_text='photos moved: 1').wait_for()
    for _ in range(2):
        click(page, 'Revert')
        page.locator('.gear-status', has_text='moved back').wait_for()
    revert.wait_for(state='hidden')
    assert {f: raw for f, raw in content(folder).items() if f != 'labels.csv'} == {f: raw for f, raw in before.items() if f != 'labels.csv'}


def test_save_and_compare(page, folder):
    for _ in range(3): press(page, 'Enter')
    click(page, 'Save model')
    page.locator('.gear-dialog input').fill('improved'); in_dialog(page, 'Save')
    page.locator('.gear-status', has_text='saved').wait_for(timeout=60_000)
    assert (folder.parent/'models/improved/gear.json').is_file()
    click(page, 'Compare')
    page.wait_for_function("() => document.querySelector('.gear-card').innerText || document.querySelector('.gear-notice').innerText", timeout=60_000)


def test_all_photos_decided(browser, voila):
    page = open_page(browser, voila)
    for _ in range(12): press(page, 'Enter')
    assert page.locator(STAGE).inner_text() == 'All photos are decided.' and not page.locator('.gear-panel').is_visible()
    page.wait_for_function("() => document.querySelectorAll('.gear-recent img').length === 12", timeout=60_000)
    click(page, 'Compare')
    assert 'Accuracy on' in page.locator('.gear-card').inner_text() and not page.complaints and not notice(page)
    press(page, 'ArrowLeft')
    assert page.locator('.gear-decided').is_visible()
    page.context.close()


def test_a_page_that_is_opened_again_continues(browser, voila, folder):
    page = open_page(browser, voila)
    press(page, 'Enter', ); press(page, 'n')
    want = logged(folder)
    page.reload(); ready(page)
    assert status(page).startswith('2 decided') and logged(folder) == want and len(recent(page)) == 2
    press(page, 'u')
    assert len(logged(folder)) == 1
    other = browser.new_context().new_page()            # a second reviewer waits
    other.goto(voila)
    other.wait_for_function("() => document.querySelector('.gear-notice')?.textContent", timeout=60_000)
    page.close(run_before_unload=True)
    other.locator(f'{STAGE} img').wait_for(timeout=60_000)
    assert status(other).startswith('1 decided') and not notice(other)
    other.context.close()


@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_widths_and_themes(browser, voila, width, scheme):
    page = open_page(browser, f'{voila}?theme={scheme}', viewport=dict(width=width, height=900), color_scheme=scheme)
    for key in ('Enter', 'n', 'x'): press(page, key)
    box = page.locator(f'{STAGE} img').bounding_box()
    assert box['width'] > .8*min(width, 700) and box['y'] + box['height'] < 900
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("() => getComputedStyle(document.querySelector('.gear-reviewer')).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v < 100)")
    assert dark == (scheme == 'dark') and not page.complaints
    if SHOTS: page.screenshot(path=f'{SHOTS}/reviewer_{width}_{scheme}.png')
    click(page, 'New class')
    box = page.locator('.gear-dialog').bounding_box()
    assert box['x'] >= 0 and box['x'] + box['width'] <= width
    page.context.close()


def test_controls_have_names_and_the_next_photo_is_there(browser, voila):
    page = open_page(browser, voila)
    unnamed = page.evaluate("""() => [...document.querySelectorAll('.gear-reviewer :is(button, input, [role=group], dialog[open])')]
        .filter(e => !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML)""")
    assert not unnamed
    for kind in ('alert', 'status'): assert page.locator(f'.gear-reviewer [role={kind}]').count() == 1
    page.wait_for_timeout(1500)
    page.evaluate("() => { window.empty = 0; new MutationObserver(() => { if (!document.querySelector('.gear-stage img')) window.empty++ }).observe(document.querySelector('.gear-stage'), { childList: true }) }")
    press(page, 'Enter')
    page.wait_for_timeout(500)
    assert page.evaluate('() => window.empty') == 0
    page.context.close()
