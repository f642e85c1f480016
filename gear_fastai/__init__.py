"Rapid prototyping of image classifiers with fastai. Light to import: what needs torch is loaded when first used."
from importlib import import_module as _import_module
from importlib.metadata import version as _version

__version__ = _version('gear_fastai')

_lazy = {'predict': 'inference', 'predict_folder': 'inference', 'GearClassifier': 'inference', 'Prediction': 'inference',
         'PhotoError': 'photo', 'GearUploader': 'widget'}
__all__ = [*_lazy, '__version__']


def __getattr__(name):
    if name not in _lazy: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f'.{_lazy[name]}', __name__), name)


def __dir__(): return sorted([*globals(), *_lazy])
