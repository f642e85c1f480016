"Read the package metadata from `settings.ini`."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {name: cfg[f'{name}_requirements'].split() for name in ('app', 'ray', 'many', 'track')}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license=cfg['license'],
    keywords=cfg['keywords'],
    packages=[cfg['lib_name'], f"{cfg['lib_name']}.models.gear"],
    package_dir={f"{cfg['lib_name']}.models.gear": 'models/gear'},   # the bundled model
    package_data={cfg['lib_name']: ['*.js', '*.css'], f"{cfg['lib_name']}.models.gear": ['*']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require=extras | dict(dev=sum(extras.values(), cfg['dev_requirements'].split())),
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
