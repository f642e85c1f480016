"Rapid prototyping of image classifiers with fastai. Light to import: what needs torch is loaded when first used."
import os as _os, sys as _sys, warnings as _warnings
from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError, version as _version


class _Missing:
    "Finds none of the modules that `gear_fastai_predict` leaves out, and says who has them"
    @staticmethod
    def find_spec(name, path=None, target=None):
        if not name.startswith(f'{__name__}.'): return
        raise ModuleNotFoundError(f'{name} needs the complete package: pip install gear_fastai', name=name)


try: __version__ = _version('gear_fastai')
except _PackageNotFoundError:
    __version__ = _version('gear_fastai_predict')
    _sys.meta_path.append(_Missing)

# Packages that report usage read these when they are imported, so they are set first.
# To switch reporting on, set the variable yourself, for example ORT_DISABLE_TELEMETRY=0.
_no_telemetry = dict(ORT_DISABLE_TELEMETRY='1', RAY_USAGE_STATS_ENABLED='0', HF_HUB_DISABLE_TELEMETRY='1',
                     MLFLOW_DISABLE_TELEMETRY='true', DO_NOT_TRACK='1')
for _name, _value in _no_telemetry.items(): _os.environ.setdefault(_name, _value)

_lazy = {'predict': 'inference', 'predict_folder': 'inference', 'GearClassifier': 'adapt', 'Prediction': 'inference',
         'PhotoError': 'photo', 'GearUploader': 'widget',
         'GearReviewer': 'reviewer', 'ReviewSession': 'review'}
__all__ = [*_lazy, '__version__']


def _drop_unknown_backend():
    "Ignore a MPLBACKEND that matplotlib does not know: with it, matplotlib and fastai can't be imported"
    name = _os.environ.get('MPLBACKEND', 'agg')
    if name.lower() == 'agg' or name.startswith('module://'): return
    del _os.environ['MPLBACKEND']
    import matplotlib
    try: matplotlib.rcParams['backend'] = name
    except ValueError: _warnings.warn(f'MPLBACKEND={name}: matplotlib has no such backend; it is ignored')
    else: _os.environ['MPLBACKEND'] = name


_drop_unknown_backend()


def __getattr__(name):
    if name not in _lazy: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f'.{_lazy[name]}', __name__), name)


def __dir__(): return sorted([*globals(), *_lazy])
