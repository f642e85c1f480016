"The site without Quarto: pages, links, alternative texts, sidebar, workflows."
import os, re, shutil, subprocess, sys
from pathlib import Path

import nbformat, pytest, yaml
from nbconvert import HTMLExporter
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tests'))
from readme import alts

notebooks = sorted(f for f in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in f.parts)
texts = [root/f for f in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'data/README.md', 'models/README.md',
                          'models/gear/README.md')]
settings = [*(root/'nbs').glob('*.yml'), *(root/'.github').rglob('*.yml')]
html = HTMLExporter()
named = dict(ids=lambda f: f.relative_to(root).as_posix())
PROCESS = """
import sys
from pathlib import Path
from fastcore.nbio import read_nb, write_nb
from nbdev.processors import FilterDefaults
for f in map(Path, sys.argv[2:]):
    page = FilterDefaults().nb_proc(read_nb(f))
    page.process()
    write_nb(page.nb, Path(sys.argv[1])/f.name)
"""


def markdown(file):
    "Markdown of a file, without code"
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.ipynb':
        text = '\n\n'.join(c.source for c in nbformat.reads(text, 4).cells if c.cell_type == 'markdown')
    return re.sub(r'^```.*?^```|`[^`\n]*`', '', text, flags=re.M | re.S)


def anchors(file):
    return {re.sub(r'[^\w\s-]', '', h.lower()).strip().replace(' ', '-') for h in re.findall(r'^#+ +(.+)$', markdown(file), re.M)}


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    "The notebooks as nbdev passes them to Quarto: exported cells become their documentation"
    to = tmp_path_factory.mktemp('pages')
    subprocess.run([sys.executable, '-W', 'ignore', '-c', PROCESS, to, *notebooks], cwd=root, check=True)
    return to


@pytest.mark.parametrize('file', notebooks, **named)
def test_notebook_converts(pages, file):
    page = nbformat.read(pages/file.name, 4)
    shown = [c for c in page.cells if 'show_doc(' in c.source]
    is_module = any(re.search(r'^#\| default_exp', c.source, re.M) for c in nbformat.read(file, 4).cells)
    assert all(c.outputs for c in shown) and bool(shown) == is_module
    assert page.cells[0].cell_type == 'raw' and 'title:' in page.cells[0].source, 'no H1'
    for c in page.cells: c.metadata.pop('execution', None)      # nbdev's timings, which nbformat refuses
    assert len(html.from_notebook_node(page)[0]) > 1000


@pytest.mark.parametrize('file', notebooks + texts, **named)
def test_links_resolve(file):
    home = root/'nbs' if root/'nbs' in file.parents else root
    for link in re.findall(r'\]\(([^)\s]+)[^)]*\)|(?:href|src)="([^"]+)"', markdown(file)):
        path, _, anchor = (link[0] or link[1]).partition('#')
        if re.match(r'\w+:', path): continue
        target = (file.parent/path).resolve() if path else file
        assert target.exists() and home in target.parents, f'{path}: not found, or outside of {home.name}/'
        assert not anchor or anchor in anchors(target), f'{path}#{anchor}: no such heading'


@pytest.mark.parametrize('file', notebooks + texts, **named)
def test_pictures_have_alt_text(file):
    text = markdown(file)
    assert all(alt.strip() and alt != 'png' for alt in re.findall(r'!\[([^\]]*)\]\(', text)), 'a picture without alt text'
    cells = nbformat.read(file, 4).cells if file.suffix == '.ipynb' else []
    outputs = [o.get('data', {}) for c in cells for o in c.get('outputs', [])]
    tags = re.findall(r'<img\b[^>]*>', '\n'.join([text, *(o['text/html'] for o in outputs if 'text/html' in o)]))
    assert all(re.search(r'\balt="[^"]+"', tag) for tag in tags), '<img> without alt text'
    for c in cells:
        n = sum(any(mime.startswith('image/') for mime in o.get('data', {})) for o in c.get('outputs', []))
        given = len(list(filter(None, alts(c)))) if n else 0
        assert n == given, f'{n} picture(s), give as many texts with `#| fig-alt: "…"`:\n{c.source[:200]}'


def test_every_notebook_is_in_the_sidebar():
    def files(entry):
        if isinstance(entry, str): return [entry]
        return sum(map(files, entry if isinstance(entry, list) else entry['contents']), [])
    listed = files(yaml.safe_load((root/'nbs/sidebar.yml').read_text())['website']['sidebar']['contents'])
    assert sorted(listed) == [f.relative_to(root/'nbs').as_posix() for f in notebooks]
    navbar = yaml.safe_load((root/'nbs/_quarto.yml').read_text())['website']['navbar']['left']
    assert {entry['href'] for entry in navbar} <= set(listed)


def test_nbdev_writes_the_settings_that_are_here(tmp_path, monkeypatch):
    (tmp_path/'nbs').mkdir()
    shutil.copy(root/'pyproject.toml', tmp_path)
    monkeypatch.chdir(tmp_path)
    refresh_quarto_yml()
    assert (tmp_path/'nbs/nbdev.yml').read_text() == (root/'nbs/nbdev.yml').read_text()


def test_docs_workflow_tells_nbdev_where_the_site_is(tmp_path):
    for name in ('pyproject.toml', 'settings.ini'): shutil.copy(root/name, tmp_path)
    steps = yaml.safe_load((root/'.github/workflows/docs.yml').read_text())['jobs']['build']['steps']
    step, = [s for s in steps if 'pyproject.toml' in s.get('run', '')]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = dict(os.environ, PATH=path, GITHUB_REPOSITORY='someone/fork')
    subprocess.run(['bash', '-ec', step['run']], cwd=tmp_path, env=env, check=True)
    cfg = get_config(tmp_path)
    assert cfg.git_url == 'https://github.com/someone/fork'
    assert cfg.doc_host + cfg.doc_baseurl == 'https://someone.github.io/fork'
    assert cfg.lib_name == 'gear_fastai' and cfg.description


@pytest.mark.parametrize('file', settings, **named)
def test_settings_parse_and_actions_are_pinned(file):
    text = file.read_text(encoding='utf-8')
    yaml.safe_load(text)
    for action in re.findall(r'\buses: *(.+)', text): assert re.fullmatch(r'[\w./-]+@[0-9a-f]{40}  # v[\d.]+', action), action
