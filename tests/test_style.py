"Language, style and interfaces: the words of the glossary, short functions, options documented once, small outputs."
import importlib, importlib.util, json, re, sys
from pathlib import Path

import click, pytest

sys.path.insert(0, str(Path(__file__).parent))
import style
from test_docs import comments, exported, modules, own_parameters

ROOT = style.ROOT
NOTEBOOKS = sorted(f for f in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in f.parts)
FILES = [ROOT/name for name in ('README.md', 'CONTRIBUTING.md', 'Makefile', 'settings.ini', 'setup.py', 'data/README.md',
                                'models/README.md', 'models/gear/README.md', 'gear_fastai/__init__.py')]
FILES += [f for pattern in ('gear_fastai/*.js', 'gear_fastai/*.css', '.github/**/*.yml', '.github/pull*.md', 'nbs/*.yml')
          for f in sorted(ROOT.glob(pattern))]

# What to avoid, and what to write instead. A word ends at an underscore, so names of functions and columns are found too.
GLOSSARY = {
    r'by hand|hand[- _]?built': 'custom CNN, trained from scratch',
    r'in the box|make box': 'bundled model',
    r'head alone': 'linear probe',
    r'strengths?': 'alpha',
    r'wild': 'out-of-domain photos, `outdoor`',
    r'score_others|--others|(?<=[\'"])others(?=[\'"])|others=|(easy|hard|near|far)[- ]others': 'OOD images',
    r'(?<!not )(?<!make )(?<!makes )sure|not_sure': 'coverage; `rejected`, shown as "not sure"',
    r'guess(es|ed|ing)?': 'top1',
    r'near[- _]cop(y|ies)': 'near-duplicates',
    r'crossing': 'cross-class duplicates',
    r'kinship': 'product group',
    r'squar(ed|ing)|square(?=\()': 'letterbox',
    r'grounds?(?! truth)': 'background',
    r'pupils?|taught': 'student, teacher, distillation',
    r'answer(s|ed|ing)?': 'prediction',
    r'(train|training|test|valid|validation) sides?|(stays?|keeps?|joins?) (on )?(one|their|its) side': 'split',
    r'told by|hand(ed|s)? over|of which|that which': 'a shorter sentence',
    r'gear_cnn_160|cnn_learner|save_model|load_model|ridge_head|left_out_ridge|left_out_words|looked_at|parting|'
    r'note_test_use': 'the new name, see CHANGELOG.md',
    r'colour(s|ed|ing|ful)?|grey(s|scale)?|behaviours?|favour\w*|neighbours?|centre[ds]?|licences?|'
    r'labell(ed|ing)|modell(ed|ing)|analys(e|ed|es|ing)|artefacts?|'
    r'(categor|custom|general|initial|maxim|minim|normal|optim|organ|parallel|quant|random|recogn|regular|serial|'
    r'standard|summar|synchron|token|visual)is(e|ed|es|er|ers|ing|ation)': 'American spelling',
}
# Phrases with such a word that are right
EXCEPTIONS = {
    r'guess_type': 'of mimetypes in the standard library',
    r'squared (distance|difference|error|norm)s?': 'arithmetic',
    r'answers (this|two questions)': 'questions have answers',
    r'no answer from': 'another process does not reply',
    r"'strength' in notes|notes\.pop\('strength'\)": 'reads models of older versions',
    r"'licence'": 'a file name',
}


def pattern(words): return re.compile(rf'(?<![A-Za-z])(?:{words})(?![A-Za-z])', re.I)

PATTERNS = {pattern(words): term for words, term in GLOSSARY.items()}
RIGHT = re.compile('|'.join([r'https?://\S+', r'\]\([^)]*\)', *EXCEPTIONS]))      # and targets of links


def prose_and_code(notebook):
    "Lines that readers and users meet: Markdown, exported code, alternative texts of figures"
    for cell in read_cells(notebook):
        source = ''.join(cell['source'])
        shown = cell['cell_type'] == 'markdown' or re.match(r'#\|\s*export', source)
        for line in source.splitlines():
            if shown or 'fig-alt:' in line: yield f"cell {cell['id']}", line


def read_cells(notebook): return json.loads(notebook.read_text(encoding='utf-8'))['cells']


def numbered_lines(file):
    for i, line in enumerate(file.read_text(encoding='utf-8').splitlines(), 1): yield f'line {i}', line


def discouraged(lines):
    "A message for each discouraged word"
    for place, line in lines:
        line = RIGHT.sub('', line)
        for words, term in PATTERNS.items():
            for found in words.finditer(line): yield f'{place}: "{found[0]}" → {term}\n    {line.strip()[:150]}'


def keys(data):
    "All keys of nested dictionaries"
    if isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from keys(value)
    elif isinstance(data, list):
        for value in data: yield from keys(value)


named = dict(ids=lambda f: f.relative_to(ROOT).as_posix())


@pytest.mark.parametrize('file', NOTEBOOKS + FILES, **named)
def test_words(file):
    found = list(discouraged(prose_and_code(file) if file.suffix == '.ipynb' else numbered_lines(file)))
    assert not found, '\n' + '\n'.join(found)


def test_words_of_columns_and_keys():
    columns = [(f.name, f.read_text(encoding='utf-8').split('\n')[0]) for f in sorted((ROOT/'nbs').rglob('*.csv'))]
    stored = [('gear.json', key) for key in keys(json.loads((ROOT/'models/gear/gear.json').read_text(encoding='utf-8')))]
    found = list(discouraged(columns + stored))
    assert not found, '\n' + '\n'.join(found)


def test_discouraged_words_are_found():
    lines = ['a hand-built network', 'df.near_copies', "row['others']", 'the model is sure', 'normalised colour', 'ground=0.5']
    assert len(list(discouraged(enumerate(lines)))) == 7
    fine = ['a custom CNN', 'and the others', 'not sure, make sure', 'a square image', 'normalized color', 'the background']
    assert not list(discouraged(enumerate(fine)))


def test_limits():
    figures = style.measure(style.notebooks())
    over = {name: figures[name] for name, limit in style.LIMITS.items() if figures[name] > limit}
    assert not over, 'see `python tests/style.py`'


LARGE_OUTPUTS = {}      # notebook: why its outputs may be larger than 1 MB


@pytest.mark.parametrize('file', NOTEBOOKS, **named)
def test_outputs_are_small(file):
    size = len(json.dumps([c.get('outputs', []) for c in read_cells(file)], ensure_ascii=False).encode())
    assert size < 1_000_000 or file.relative_to(ROOT/'nbs').as_posix() in LARGE_OUTPUTS, f'{size/1e6:.1f} MB'


def star_modules():
    "The modules that `from gear_fastai.all import *` brings"
    source = (ROOT/'gear_fastai/all.py').read_text()
    return re.findall(r'^from \.(\w+) import \*', source, re.M)


def test_no_name_shadows_fastai():
    import fastai.vision.all as fastai
    shadowed = [f'{module}.{name}' for module in star_modules()
                for name in importlib.import_module(f'gear_fastai.{module}').__all__ if name in vars(fastai)]
    assert not shadowed


@pytest.mark.parametrize('module', [m for m in modules if m != 'cli'])
def test_at_most_ten_parameters(module):
    "Commands and dataclasses may have more: a dataclass is how options that belong together travel"
    counts = {name: len(own_parameters(getattr(o, 'callback', o))) for name, o in exported(module)
              if not hasattr(o, '__dataclass_fields__')}
    assert not {name: n for name, n in counts.items() if n > 10}


# Options that are not a parameter of one documented function
DIRECT_OPTIONS = {
    ('audit', 'as_json'), ('evaluate', 'as_json'), ('predict', 'as_json'), ('predict', 'as_csv'), ('predict', 'engine'),
    ('compare', 'as_json'), ('push', 'space'),
    ('demo', 'folder'), ('demo', 'models'), ('demo', 'n'), ('demo', 'epochs'), ('main', 'version'),
}


def options(command): return [p for p in command.params if isinstance(p, click.Option)]


def commands(group):
    for command in group.commands.values():
        if isinstance(command, click.Group): yield from commands(command)
        else: yield command


def documented(source):
    "The docment of `module:function.parameter`"
    module, _, path = source.removeprefix('?').partition(':')
    function, _, name = path.partition('.')
    return comments(getattr(importlib.import_module(f'gear_fastai.{module}'), function))[name]


@pytest.fixture(scope='module')
def fresh_cli():
    "The module as it is before a command has read its options"
    from gear_fastai import cli
    spec = importlib.util.spec_from_file_location('gear_fastai._fresh_cli', cli.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_of_options_is_written_once(fresh_cli):
    def words(text): return text.replace('`', '').rstrip('.').lower().split()
    main = fresh_cli.main
    direct = {(c.name, o.name) for c in commands(main) for o in options(c)} | {('main', o.name) for o in options(main)}
    assert direct == DIRECT_OPTIONS
    for command in commands(main):
        sources = dict(getattr(command, 'sources', {}))
        command.get_help(click.Context(command))
        help = {o.name: o.help for o in command.get_params(click.Context(command)) if isinstance(o, click.Option)}
        assert all(help.values())
        for name, source in sources.items(): assert words(help[name]) == words(documented(source)), f'{command.name} --{name}'
