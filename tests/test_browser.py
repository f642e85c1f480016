"The uploader in a browser: as Voilà's page, and in JupyterLab."
import contextlib, csv, json, os, shutil, socket, subprocess, sys, time, urllib.parse, urllib.request, warnings
from pathlib import Path

import pytest

root = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if not CHROMIUM:
    why = 'NO CHROMIUM FOUND: the uploader is not tested in a browser'
    if os.environ.get('GEAR_NEED_BROWSER'): pytest.fail(why, pytrace=False)
    warnings.warn(why)
    pytest.skip(why, allow_module_level=True)

from playwright.sync_api import sync_playwright

from gear_fastai import GearClassifier
from gear_fastai.app import serve
from gear_fastai.photo import list_photos
from gear_fastai.sources import draw_sample

FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
SHOTS = os.environ.get('GEAR_SCREENSHOTS')     # folder to keep screenshots in, for the docs


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Drawn photos, a few in each class; and the files that are none"
    home = tmp_path_factory.mktemp('photos')
    files = list(list_photos(draw_sample(home/'drawn', n=1, seed=9)))
    for name, raw in {'notes.jpg': b'just text', 'empty.jpg': b'', 'cut.jpg': files[0].read_bytes()[:1500]}.items(): (home/name).write_bytes(raw)
    with open(home/'huge.jpg', 'wb') as f: f.truncate(51_000_000)
    return files


@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    home = tmp_path_factory.mktemp('voila')
    with serve(models=home, save_to=home/'corrected', port=_free_port(), max_mb=10) as (url, server): yield dict(url=url, saved=lambda: home/'corrected')


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab with the widget's notebook, less the cell that exports"
    home = tmp_path_factory.mktemp('lab')
    nb = json.loads((root/'nbs/11_widget.ipynb').read_text(encoding='utf-8'))
    nb['cells'] = [dict(c, outputs=[]) if c['cell_type'] == 'code' else c for c in nb['cells'] if 'nbdev_export()' not in ''.join(c['source'])]
    with jupyterlab(home, nb) as url: yield dict(url=url, saved=lambda: next((home/'tmp').glob('*/data/corrected')))     # the notebook works in a temporary folder


@contextlib.contextmanager
def jupyterlab(home, nb):
    "JupyterLab in the folder `home` with the notebook `nb` as widget.ipynb"
    port = _free_port()
    (home/'widget.ipynb').write_text(json.dumps(nb))
    (home/'tmp').mkdir()
    with open(home/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--IdentityProvider.token=', f'--port={port}', '--LabApp.expose_app_in_browser=True',
                                   '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'], cwd=home, stdout=log, stderr=log, env=dict(os.environ, TMPDIR=str(home/'tmp')))
    try:
        url = f'http://127.0.0.1:{port}/'
        for _ in range(300):
            try: urllib.request.urlopen(url + 'api', timeout=2); break
            except OSError: time.sleep(.2)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def _free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def open_voila(browser, voila, **kw):
    page = browser.new_context(viewport=dict(width=1280, height=900), **kw).new_page()
    page.goto(voila['url'])
    page.locator('.gear-drop').wait_for(timeout=60_000)
    return page


@pytest.fixture(scope='module')
def lab_page(browser, lab):
    "The notebook, run, in JupyterLab"
    return run_in_lab(browser, lab['url'], '.gear-drop')


def run_in_lab(browser, url, selector):
    "Open widget.ipynb in JupyterLab, run it, and scroll to the widget"
    page = browser.new_context(viewport=dict(width=1280, height=900)).new_page()
    page.goto(url + 'lab/tree/widget.ipynb')
    page.locator('.jp-Notebook').wait_for(timeout=60_000)
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'", timeout=90_000)
    if page.locator('.jp-FileBrowser').is_visible(): page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("s => document.querySelector('.jp-OutputArea-output') || document.querySelector(s)", arg=selector, timeout=60_000)
    page.evaluate("() => document.querySelectorAll('.jp-WindowedPanel-outer').forEach(e => e.scrollTo(0, 0))")
    for _ in range(60):
        if page.locator(selector).count(): break
        page.mouse.move(640, 500); page.mouse.wheel(0, 400); page.wait_for_timeout(500)
    page.locator(selector).scroll_into_view_if_needed()
    return page


@pytest.fixture(params=['voila', 'lab'])
def place(request, browser):
    "A page with an empty uploader, where corrections go, and its name"
    where = request.getfixturevalue(request.param)
    if request.param == 'voila': page = open_voila(browser, where)
    else:
        page = request.getfixturevalue('lab_page')
        empty(page)
    yield page, where['saved'], request.param
    if request.param == 'voila': page.context.close()


def empty(page):
    "Clear the uploader's list"
    button = page.locator('.gear-bar button', has_text='Clear')
    if button.is_enabled(): button.click()
    page.wait_for_function("() => !document.querySelector('.gear-list li')")


def choose(page, files):
    page.locator('.gear-file').set_input_files([str(f) for f in files])


def finished(page, n, timeout=60_000):
    page.wait_for_function("n => document.querySelectorAll('.gear-list li').length === n && !document.querySelector('.gear-busy')", arg=n, timeout=timeout)


def focus(page, selector):
    "Focus an element and wait until it keeps the focus: JupyterLab takes it back while it settles"
    for _ in range(20):
        page.locator(selector).focus()
        page.wait_for_timeout(500)
        if page.evaluate("s => document.activeElement === document.querySelector(s)", selector): return
    raise AssertionError(f"{selector} does not keep the focus; it is on {page.evaluate('() => document.activeElement.outerHTML.slice(0, 200)')}")


def labels(page): return page.locator('.gear-label').all_text_contents()
def shown(p): return p.label or 'not sure'


def test_photos_are_labeled(place, photos):
    page, _, _ = place
    clf = GearClassifier()
    choose(page, photos[:1]); finished(page, 1)
    assert labels(page) == [shown(clf.predict(photos[0]))]
    choose(page, photos[1:]); finished(page, len(photos))
    assert labels(page) == [shown(p) for p in clf.predict(photos)]
    assert page.evaluate("() => [...document.querySelectorAll('.gear-thumb')].every(i => i.complete && Math.max(i.naturalWidth, i.naturalHeight) >= 200 && i.offsetHeight >= 200 && i.alt)")
    assert page.locator('.gear-list li').first.locator('.gear-class').count() == 3


def test_bad_files_have_their_own_message(place, photos):
    page, _, _ = place
    bad = [photos[0].parent.parent.parent/n for n in ('notes.jpg', 'empty.jpg', 'cut.jpg', 'huge.jpg')]
    choose(page, [*bad, photos[0]]); finished(page, len(bad) + 1)
    said = page.locator('.gear-failed .gear-result').all_text_contents()
    for text, why in zip(said, ('not an image', 'empty', 'unreadable', 'larger than')): assert why in text
    assert len(said) == len(bad) and len(labels(page)) == 1
    end = 'labeled' if GearClassifier().predict(photos[0]).label else 'not sure'
    assert page.locator('.gear-status').inner_text() == f'1 {end}, {len(bad)} not read'


def test_correct_a_label(place, photos):
    page, saved, _ = place
    choose(page, photos[:1]); finished(page, 1)
    for label, kept in (('tents', 'tents'), ('rope', 'rope')):
        page.locator('.gear-fix select').select_option(label)
        page.get_by_text(f'saved: corrected/{kept}/{photos[0].name}').wait_for()
        assert [f.relative_to(saved()).as_posix() for f in list_photos(saved())] == [f'{kept}/{photos[0].name}']
    assert (saved()/'rope'/photos[0].name).read_bytes() == photos[0].read_bytes()
    shutil.rmtree(saved())


def test_download_csv(place, photos, tmp_path):
    page, _, _ = place
    choose(page, [*photos[:2], photos[0].parent.parent.parent/'notes.jpg']); finished(page, 3)
    with page.expect_download() as got: page.locator('.gear-bar button', has_text='Download CSV').click()
    got.value.save_as(tmp_path/'p.csv')
    rows = list(csv.DictReader(open(tmp_path/'p.csv', newline='')))
    assert [r['label'] or 'not sure' for r in rows[:2]] == labels(page) and rows[2]['label'] == '' and 'not an image' in rows[2]['error'] and got.value.suggested_filename == 'predictions.csv'


def test_drop_and_keyboard(place, photos):
    page, _, _ = place
    data = page.evaluate_handle("bytes => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(bytes)], 'dropped.jpg')); return t }", list(photos[3].read_bytes()))
    page.locator('.gear-drop').dispatch_event('drop', dict(dataTransfer=data)); finished(page, 1)
    assert page.locator('.gear-name').inner_text() == 'dropped.jpg'
    choosers = []
    page.on('filechooser', lambda c: choosers.append(c))             # early: the browser takes a moment to hand its dialog over, and one that comes before is lost
    for _ in range(4):
        focus(page, '.gear-drop')
        page.keyboard.press('Enter')
        page.wait_for_timeout(3000)
        if choosers: break
    choosers[0].set_files(str(photos[0])); finished(page, 2)
    focus(page, '.gear-drop')
    seen = []
    for _ in range(10):
        page.keyboard.press('Tab')
        seen.append(page.evaluate("() => document.activeElement.textContent.slice(0, 12) || document.activeElement.tagName"))
    assert 'Download CSV' in seen and 'Clear' in seen and sum('Correct the' in s for s in seen) == sum('None of' in s for s in seen) == 2, seen


@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_widths_and_themes(browser, voila, photos, width, scheme):
    page = open_voila(browser, dict(voila, url=f"{voila['url']}?theme={scheme}"), color_scheme=scheme)
    page.set_viewport_size(dict(width=width, height=900))
    page.wait_for_load_state('networkidle')             # styles that come late would move the rows
    page.evaluate('() => document.fonts.ready')
    choose(page, [*photos[:5], photos[0].parent.parent.parent/'notes.jpg'])
    page.locator('.gear-list li').nth(5).wait_for()
    before = page.evaluate("() => [...document.querySelectorAll('.gear-list li')].map(l => l.offsetHeight)")
    finished(page, 6)
    assert page.evaluate("() => [...document.querySelectorAll('.gear-list li')].map(l => l.offsetHeight)") == before     # nothing jumps
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("() => getComputedStyle(document.querySelector('.gear-uploader')).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v < 100)")
    assert dark == (scheme == 'dark')
    if SHOTS: page.screenshot(path=f'{SHOTS}/page_{width}_{scheme}.png')
    page.context.close()


def test_lab_in_two_widths(lab_page, photos):
    page = lab_page
    for width in (1280, 390):
        page.set_viewport_size(dict(width=width, height=900))
        empty(page)
        choose(page, photos[:3]); finished(page, 3)
        assert page.evaluate("() => { const u = document.querySelector('.gear-uploader'); return u.scrollWidth <= u.clientWidth + 1 }")
        page.locator('.gear-drop').scroll_into_view_if_needed()
        if SHOTS:
            page.add_style_tag(content='.Toastify { display: none }')               # Jupyter's own questions
            page.screenshot(path=f'{SHOTS}/lab_{width}.png')
    page.set_viewport_size(dict(width=1280, height=900))


def test_windows_do_not_see_each_other(browser, voila, photos):
    one, other = open_voila(browser, voila), open_voila(browser, voila)
    choose(one, photos[:2]); choose(other, photos[5:6]); finished(one, 2); finished(other, 1)
    assert one.locator('.gear-name').all_text_contents() == [f.name for f in photos[:2]] and other.locator('.gear-name').all_text_contents() == [photos[5].name]
    for page in (one, other): page.context.close()


def test_many_photos(browser, voila, photos):
    page = open_voila(browser, voila)
    page.evaluate("() => { window.gap = 0; let last = performance.now(); const tick = t => { window.gap = Math.max(window.gap, t - last); last = t; requestAnimationFrame(tick) }; requestAnimationFrame(tick) }")
    began = time.perf_counter()
    choose(page, [photos[k % len(photos)] for k in range(200)]); finished(page, 200, 120_000)
    print(f"200 photos: {time.perf_counter() - began:.1f} s, longest pause of the page {page.evaluate('() => window.gap'):.0f} ms")
    assert len(labels(page)) == 200
    page.context.close()


def test_no_code_is_run_for_a_page(browser, voila, tmp_path):
    "Voilà passes on no request to run code, whoever makes it"
    page = open_voila(browser, voila)
    page.evaluate("""async path => {
        const id = JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId
        const ws = new WebSocket(`ws://${location.host}/api/kernels/${id}/channels?session_id=x`)
        await new Promise(r => ws.onopen = r)
        ws.send(JSON.stringify({channel: 'shell', parent_header: {}, metadata: {}, buffers: [], header: {msg_id: 'x', msg_type: 'execute_request', username: '', session: 'x', version: '5.3', date: new Date().toISOString()},
                                content: {code: `open(${JSON.stringify(path)}, 'w')`, silent: false, store_history: false, user_expressions: {}, allow_stdin: false, stop_on_error: true}}))
        await new Promise(r => setTimeout(r, 3000)) }""", str(tmp_path/'run'))
    assert not (tmp_path/'run').exists()
    page.context.close()


def test_nothing_is_asked_of_other_servers(browser, voila, photos):
    page = browser.new_context().new_page()
    asked, complaints = [], []
    page.on('request', lambda r: asked.append(r.url))
    page.on('websocket', lambda w: asked.append(w.url))
    page.on('console', lambda m: complaints.append(m.text) if m.type == 'error' else None)
    page.goto(voila['url'])
    page.locator('.gear-drop').wait_for(timeout=60_000)
    choose(page, photos[:2]); finished(page, 2)
    assert not complaints                                       # nothing was tried and stopped either
    page.goto(voila['url'] + 'nothing-here')
    hosts = {urllib.parse.urlsplit(url).hostname for url in asked if not url.startswith(('data:', 'blob:'))}
    assert hosts == {'127.0.0.1'}
    page.context.close()


def saved_files(saved): return [f.relative_to(saved()).as_posix() for f in list_photos(saved())]


def table(page, tmp_path):
    "The downloaded CSV"
    with page.expect_download() as got: page.locator('.gear-bar button', has_text='Download CSV').click()
    got.value.save_as(tmp_path/'p.csv')
    return list(csv.DictReader(open(tmp_path/'p.csv', newline='')))


def test_a_correction_is_in_bold_in_the_table_and_can_be_undone(place, photos, tmp_path):
    page, saved, _ = place
    choose(page, photos[:1]); finished(page, 1)
    model = labels(page)[0]
    top1 = GearClassifier().predict(photos[0]).top()[0][0]
    page.locator('.gear-fix select').select_option('tents')
    page.get_by_text('saved: corrected/tents').wait_for()
    assert labels(page) == ['tents'] and f'corrected, predicted: {model}' in page.locator('.gear-result').inner_text()
    row = table(page, tmp_path)[0]
    assert (row['label'], row['top1'], row['corrected']) == ('tents', top1, 'corrected')
    page.locator('.gear-fix select').select_option('')
    page.get_by_text('correction undone').wait_for()
    row = table(page, tmp_path)[0]
    assert labels(page) == [model] and row['label'] == (model if model != 'not sure' else '') and row['corrected'] == ''
    assert saved_files(saved) == []


def test_the_models_own_label_confirms_it(place, photos, tmp_path):
    page, saved, _ = place
    clf = GearClassifier()
    photo = next(f for f in photos if clf.predict(f).label)
    choose(page, [photo]); finished(page, 1)
    label = labels(page)[0]
    page.get_by_role('button', name='Right').click()
    page.get_by_text(f'saved: corrected/{label}').wait_for()
    assert page.locator('.gear-right').get_attribute('aria-pressed') == 'true' and page.locator('.gear-fix select').input_value() == label
    assert f'{label} confirmed' in page.locator('.gear-result').inner_text()
    assert table(page, tmp_path)[0]['corrected'] == 'confirmed'
    page.locator('.gear-undo').click()
    page.get_by_text('correction undone').wait_for()
    assert saved_files(saved) == []


def test_none_of_these_and_a_new_class(place, photos, tmp_path):
    page, saved, _ = place
    choose(page, photos[:2]); finished(page, 2)
    one, other = page.locator('.gear-list li').all()
    one.locator('.gear-none').click()
    one.get_by_text('saved: corrected/_none').wait_for()
    select = other.locator('select')
    select.select_option(label='New class…')
    page.keyboard.press('Escape')                               # back to the list
    assert select.evaluate('e => e === document.activeElement') and select.input_value() == ''
    select.select_option(label='New class…')
    page.keyboard.type('ladders'); page.keyboard.press('Enter')
    other.get_by_text('saved: corrected/ladders').wait_for()
    assert labels(page) == ['none of these', 'ladders'] and select.evaluate('e => e === document.activeElement')
    assert one.locator('option', has_text='ladders').count() == 1           # it can be chosen for the others
    assert [r['label'] for r in table(page, tmp_path)] == ['_none', 'ladders']
    assert saved_files(saved) == [f'_none/{photos[0].name}', f'ladders/{photos[1].name}']
    for row in (one, other):
        row.locator('.gear-undo').click()
        row.get_by_text('correction undone').wait_for()
    assert saved_files(saved) == [] and page.locator('.gear-undo:visible').count() == 0


def test_the_filter_shows_photos_that_were_rejected(place, photos):
    page, saved, _ = place
    choose(page, photos); finished(page, len(photos))
    n = labels(page).count('not sure')
    assert 0 < n < len(photos)
    button = page.locator('.gear-filter')
    assert button.inner_text() == f'Not sure only ({n})'
    button.click()
    assert page.locator('.gear-list li:visible').count() == n and button.get_attribute('aria-pressed') == 'true'
    first = page.locator('.gear-list li:visible').first
    first.locator('.gear-right').click()
    first.get_by_text('saved: ').wait_for()
    assert page.locator('.gear-list li:visible').count() == n   # so it can be undone
    button.click()
    assert page.locator('.gear-list li:visible').count() == len(photos)
    shutil.rmtree(saved())


def test_the_model_is_improved_and_saved(place, photos):
    page, saved, where = place
    choose(page, photos[:6]); finished(page, 6)
    name = f'from-{where}'
    improve = page.locator('.gear-improve')
    for row in page.locator('.gear-list li').all()[:3]:
        row.locator('.gear-none').click()
        row.get_by_text('saved: corrected/_none').wait_for()
    assert 'Improve the model with' in improve.inner_text() and not page.locator('.gear-save-model').is_visible()
    before = page.locator('.gear-result').all_inner_texts()
    improve.click()
    page.locator('.gear-told', has_text='Improved with 3 corrected or confirmed photos').wait_for(timeout=90_000)
    after = page.locator('.gear-result').all_inner_texts()
    assert before[:3] == after[:3] and all(a != b for a, b in zip(after[3:], before[3:]))
    page.locator('.gear-model-name').fill(name)
    page.locator('.gear-model-name').press('Enter')
    page.locator('.gear-told', has_text=f'/{name}').wait_for(timeout=90_000)
    assert page.locator('.gear-picker').is_visible() and name in page.locator('.gear-picker').inner_text()
    folder = next(saved().parent.parent.glob(f'**/{name}'))
    assert shown(GearClassifier(folder).predict(photos[5])) == labels(page)[5]
    shutil.rmtree(saved())


def test_the_last_of_quick_corrections_counts(place, photos, tmp_path):
    page, saved, _ = place
    choose(page, photos[:2]); finished(page, 2)
    one, other = page.locator('.gear-fix select').all()
    for label in ('tents', 'rope', 'axes'): one.select_option(label)
    for label in ('tents', '', 'boots'): other.select_option(label)
    for row, label in zip(page.locator('.gear-list li').all(), ('axes', 'boots')): row.get_by_text(f'saved: corrected/{label}').wait_for()
    assert labels(page) == ['axes', 'boots'] == [r['label'] for r in table(page, tmp_path)]
    assert saved_files(saved) == [f'axes/{photos[0].name}', f'boots/{photos[1].name}']
    shutil.rmtree(saved())


def test_a_correction_that_cannot_be_saved_changes_nothing(place, photos, tmp_path):
    page, saved, _ = place
    choose(page, photos[:1]); finished(page, 1)
    page.locator('.gear-fix select').select_option('tents')
    page.get_by_text('saved: corrected/tents').wait_for()
    (saved()/'rope').touch()                                    # a file where the class folder would be
    page.locator('.gear-fix select').select_option('rope')
    page.locator('.gear-saved', has_text='could not be saved').wait_for()
    assert labels(page) == ['tents'] and page.locator('.gear-fix select').input_value() == 'tents'
    assert table(page, tmp_path)[0]['label'] == 'tents' and saved_files(saved) == [f'tents/{photos[0].name}']
    shutil.rmtree(saved())


def test_a_second_window_shows_corrections_and_can_undo_them(lab_page, lab, browser, photos, tmp_path):
    empty(lab_page)
    choose(lab_page, photos[:2]); finished(lab_page, 2)
    lab_page.locator('.gear-fix select').nth(0).select_option('tents')
    lab_page.get_by_text('saved: corrected/tents').wait_for()
    lab_page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page = browser.new_context(viewport=dict(width=1280, height=900)).new_page()
    page.goto(lab['url'] + 'lab/workspaces/second/tree/widget.ipynb')
    page.locator('.jp-Notebook').wait_for(timeout=60_000)
    for _ in range(60):
        if page.locator('.gear-list li').count(): break
        page.mouse.move(640, 500); page.mouse.wheel(0, 400); page.wait_for_timeout(500)
    finished(page, 2)
    assert labels(page) == labels(lab_page) and labels(page)[0] == 'tents'
    page.locator('.gear-undo').nth(0).click()
    for window in (page, lab_page): window.get_by_text('correction undone').wait_for()
    assert labels(page) == labels(lab_page) and saved_files(lab['saved']) == []
    page.context.close()


def test_python_restarted_under_the_uploader(lab_page, photos):
    page = lab_page
    empty(page)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()")
    page.wait_for_timeout(3000)
    choose(page, photos[:1])
    page.get_by_text('run this cell again').wait_for(timeout=40_000)
