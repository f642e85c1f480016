"Print release and installed megabytes of a distribution with all that it requires: `python installed.py NAME`"
import json, re, sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

NVIDIA = re.compile(r'nvidia|cuda|triton', re.I)  # left out: these runs use no GPU


def needed(name, extra=''):
    "Requirements of a distribution that apply here"
    for text in distribution(name).requires or []:
        r = Requirement(text)
        if not r.marker or r.marker.evaluate(dict(extra=extra)): yield r


def closure(name, extras=()):
    "Names of a distribution and of all that it requires"
    found = {}
    todo = [(name, frozenset(extras))]
    while todo:
        name, extras = todo.pop()
        key = re.sub(r'[-_.]+', '-', name).lower()
        if NVIDIA.match(key) or key in found and extras <= found[key]: continue
        try: rows = [r for extra in {'', *extras} for r in needed(key, extra)]
        except PackageNotFoundError: continue
        found[key] = found.get(key, frozenset()) | extras
        todo += [(r.name, frozenset(r.extras)) for r in rows]
    return sorted(found)


def n_bytes(name):
    dist = distribution(name)
    files = [Path(dist.locate_file(f)) for f in dist.files or [] if not NVIDIA.search(str(f))]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == '__main__':
    names = sys.argv[1:]
    every = {member for name in names for member in closure(name)}
    releases = ', '.join(f'{name} {distribution(name).version}' for name in names)
    print(json.dumps(dict(release=releases, installed_mb=round(sum(map(n_bytes, every))/1e6))))
