"Render README.md and its pictures from nbs/index.ipynb, into the project or, with an argument, into another folder."
import re, sys
from pathlib import Path

import nbformat, yaml
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent
IMAGES = 'nbs/images'


def alts(cell):
    "The alt texts that a code cell gives its figures"
    found = re.search(r'^#\|\s*fig-alt:(.+)', cell.source, flags=re.M)
    texts = yaml.safe_load(found[1]) if found else []
    return texts if isinstance(texts, list) else [texts]


def for_root(source):
    "Markdown of a page in nbs/ for a file beside nbs/: its links start there"
    source = re.sub(r'\]\((?!\w+:|#)', '](nbs/', source)
    return source.replace('`CONTRIBUTING.md`', '[CONTRIBUTING](CONTRIBUTING.md)')       # is no page of the site


def rendered():
    "(text, {file name: bytes})"
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    nb.metadata['language_info'] = dict(name='python')
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*hide\b', c.source)]
    texts = iter([t for c in nb.cells if c.cell_type == 'code' for t in alts(c)])
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = for_root(c.source)
        if re.match(r'#\|\s*echo:\s*false', c.source): c.source = ''
        c.source = re.sub(r'^#\|.*\n', '', c.source, flags=re.M)
        for o in c.get('outputs', []):
            if 'text/html' in o.get('data', {}) and 'text/markdown' in o['data']: del o['data']['text/html']
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
