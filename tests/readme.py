"Render README.md and its pictures from nbs/index.ipynb: `python tests/readme.py [FOLDER]`."
import re, sys
from pathlib import Path

import nbformat, yaml
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent
IMAGES = 'nbs/images'


def alts(cell):
    "Alternative texts of the figures of a code cell"
    found = re.search(r'^#\|\s*fig-alt:(.+)', cell.source, flags=re.M)
    texts = yaml.safe_load(found[1]) if found else []
    return texts if isinstance(texts, list) else [texts]


def for_root(source):
    "Markdown of a page in nbs/ with links for a file beside nbs/"
    source = re.sub(r'\]\((?!\w+:|#)', '](nbs/', source)
    return source.replace('`CONTRIBUTING.md`', '[CONTRIBUTING](CONTRIBUTING.md)')       # not a page of the site


def prepare(cell):
    "Drop directives, hidden code and HTML that has a Markdown version"
    if cell.cell_type == 'markdown': cell.source = for_root(cell.source)
    if re.match(r'#\|\s*echo:\s*false', cell.source): cell.source = ''
    cell.source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        if 'text/markdown' in data: data.pop('text/html', None)


def rendered():
    "The text, and the pictures as {file name: bytes}"
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    nb.metadata['language_info'] = dict(name='python')
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*hide\b', c.source)]
    texts = iter([t for c in nb.cells if c.cell_type == 'code' for t in alts(c)])
    for c in nb.cells: prepare(c)
    text, resources = MarkdownExporter().from_notebook_node(nb, dict(output_files_dir=IMAGES, unique_key='readme'))
    text = text.replace('```python\n\n```\n', '')
    text = re.sub(r'!\[png\]', lambda m: f'![{next(texts)}]', text)
    return text.strip() + '\n', {Path(k).name: v for k, v in resources['outputs'].items()}


if __name__ == '__main__':
    dest = Path(sys.argv[1]) if len(sys.argv) > 1 else root
    text, images = rendered()
    (dest/IMAGES).mkdir(parents=True, exist_ok=True)
    for old in (dest/IMAGES).glob('readme_*'): old.unlink()
    for name, raw in images.items(): (dest/IMAGES/name).write_bytes(raw)
    (dest/'README.md').write_text(text, encoding='utf-8')
