"Build gear_fastai_predict: the modules of `../gear_fastai` that predict, and the bundled model."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here.parent/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
package = cfg['lib_name']
model = f'{package}.models.gear'
bounded = {re.match(r'[\w-]+', r)[0]: r for r in cfg['requirements'].split()}

setup(
    name=cfg['predict_name'],
    version=cfg['version'],
    description=cfg['predict_description'],
    long_description=(here.parent/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license=cfg['license'],
    keywords=cfg['keywords'],
    py_modules=[f'{package}.{name}' for name in cfg['predict_modules'].split()],
    packages=[model],
    package_dir={package: f'../{package}', model: '../models/gear'},
    package_data={model: ['*']},
    python_requires=f">={cfg['min_python']}",
    install_requires=[bounded.get(r, r) for r in cfg['predict_requirements'].split()],
    extras_require=dict(service=cfg['service_requirements'].split()),
    entry_points=dict(console_scripts=cfg['console_scripts'].split()),
)
