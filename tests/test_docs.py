"Documentation: exported names have docstrings, parameters have docments, and nbdev can show them."
import importlib, inspect, json, pkgutil
from pathlib import Path

import click, pytest
from click.testing import CliRunner
from fastai.callback.core import event
from fastcore.docments import docments
from nbdev.showdoc import show_doc
from timm.models import EfficientNet

import gear_fastai
from gear_fastai._modidx import d
from gear_fastai.cli import main

root = Path(__file__).parent.parent
modules = [m.name for m in pkgutil.iter_modules(gear_fastai.__path__) if m.name != 'all' and m.name[0] != '_']
PROTOCOL = {*vars(event), *dir(EfficientNet), 'encodes', 'decodes'}    # callbacks of fastai, methods of timm models
USUAL = {'ax', 'seed', 'learn', 'dls', 'clf', 'ev', 'num_classes', 'in_chans', 'pretrained'}     # the same everywhere


def plain(o): return getattr(o, '__func__', None) or getattr(o, 'fget', None) or o


def exported(module):
    "(name, object) of the functions and classes in `__all__`, their public methods, and the methods patched into other classes"
    mod = importlib.import_module(f'gear_fastai.{module}')
    for name in mod.__all__:
        if callable(getattr(mod, name)): yield name, getattr(mod, name)
    for name in (n.removeprefix(f'gear_fastai.{module}.') for n in d['syms'][f'gear_fastai.{module}']):
        cls, _, method = name.partition('.')
        if not method or cls[0] == '_' or method[0] == '_' or method in PROTOCOL: continue
        cls = getattr(mod, cls)
        theirs = [base for base in cls.__mro__[1:] if not base.__module__.startswith('gear_fastai')]
        if any(method in vars(base) for base in theirs): continue       # documented there
        yield name, plain(inspect.getattr_static(cls, method))


def own_parameters(o):
    "Names of the parameters that `o` itself declares, without `self`"
    if hasattr(o, '__dataclass_fields__'): return set(o.__dataclass_fields__) & set(inspect.get_annotations(o))
    function = vars(o).get('__init__', lambda: 0) if inspect.isclass(o) else o
    code = getattr(inspect.unwrap(function), '__code__', None)
    return set(code.co_varnames[:code.co_argcount + code.co_kwonlyargcount]) - {'self'} if code else set()


def comments(o):
    "The docment of each parameter; dataclasses inherit them"
    merged = {}
    for f in getattr(o, '__mro__', [o])[::-1]:
        if f is o or hasattr(f, '__dataclass_fields__'): merged |= {k: v for k, v in docments(f).items() if v}
    return merged


@pytest.mark.parametrize('module', modules)
def test_documented(module):
    missing = []
    for name, o in exported(module):
        if isinstance(o, click.Command):
            o.get_help(click.Context(o, **main.context_settings))      # options get their help when it is shown
            if not o.help: missing.append(name)
            missing += [f'{name} {p.name}' for p in o.params if isinstance(p, click.Option) and not p.help]
            continue
        if not inspect.getdoc(o) or inspect.isclass(o) and not o.__doc__: missing.append(name)
        documented = comments(o)
        page = show_doc(o, name=name)._repr_markdown_()
        missing += [f'{name}({p})' for p in own_parameters(o) - USUAL if p not in documented]
        assert name in page and (inspect.getdoc(o) or '').split('\n')[0] in page.replace('\\', ''), name
    assert not missing, f'no docstring, docment or help: {missing}'


def test_page_of_the_command_shows_its_help():
    "nbdev does not document click commands, so the notebook prints their help"
    cells = json.loads((root/'nbs/12_cli.ipynb').read_text(encoding='utf-8'))['cells']
    printed = ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))
    commands = [[], *([n] for n in main.commands if n != 'data'), *(['data', n] for n in main.commands['data'].commands)]
    for args in commands:
        help = CliRunner().invoke(main, [*args, '--help'], prog_name='gear-fastai').output
        assert help in printed, f'{args}: run nbs/12_cli.ipynb again and save its outputs'
