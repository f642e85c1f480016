"Measure how the exported code and the reference pages read: `python tests/style.py [NOTEBOOK…]`."
import ast, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LINE = 120
LIMITS = dict(median_function=265, p90_function=800, longest_function_lines=45, long_lines_percent=6,
              longest_line=MAX_LINE, definitions_per_cell=1.4, tuple_assignments_percent=6,
              numbers_per_1000_words=25)


def notebooks(): return sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))

def cells(notebook, kind):
    found = json.loads(Path(notebook).read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in found if c['cell_type'] == kind]

def exported(notebook):
    "Source of the cells that become a module, without their directives"
    return [re.sub(r'^#\|.*\n?', '', s, flags=re.M) for s in cells(notebook, 'code') if re.match(r'#\|\s*export', s)]

def functions(source):
    "Source of each function and method"
    tree = ast.parse(source)
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    return [ast.get_source_segment(source, n) for n in ast.walk(tree) if isinstance(n, kinds)]

def definitions(source): return sum(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in ast.parse(source).body)

def assignments(source):
    "Whether each assignment has a tuple on its left"
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assign)]
    return [any(isinstance(t, ast.Tuple) for t in n.targets) for n in found]

def words_and_numbers(prose):
    "Words and numbers of Markdown, without code and link targets"
    prose = re.sub(r'```.*?```|`[^`]*`|\]\([^)]*\)|https?://\S+', ' ', prose, flags=re.S)
    words = re.findall(r'\S*\w\S*', prose)
    return len(words), sum(bool(re.search(r'\d', w)) for w in words)

def percent(flags): return 100*sum(flags)/max(len(flags), 1)

def quantile(values, share): return sorted(values)[int(share*(len(values) - 1))] if values else 0

def measure(paths):
    "The figures of several notebooks together"
    sources = [s for p in paths for s in exported(p)]
    defined = [n for n in map(definitions, sources) if n]
    bodies = [f for s in sources for f in functions(s)]
    lines = [line for s in sources for line in s.splitlines() if line.strip()]
    prose = [words_and_numbers('\n'.join(cells(p, 'markdown'))) for p in paths]
    words, numbers = (sum(column) for column in zip(*prose))
    return dict(
        median_function=quantile([len(f) for f in bodies], .5),
        p90_function=quantile([len(f) for f in bodies], .9),
        longest_function_lines=max((len(f.splitlines()) for f in bodies), default=0),
        long_lines_percent=round(percent([len(line) > 100 for line in lines]), 1),
        longest_line=max(map(len, lines), default=0),
        definitions_per_cell=round(sum(defined)/max(len(defined), 1), 2),
        tuple_assignments_percent=round(percent([t for s in sources for t in assignments(s)]), 1),
        numbers_per_1000_words=round(1000*numbers/max(words, 1), 1),
        exported_lines=len(lines),
    )

def offenders(path):
    "The places behind the figures: functions and lines that are too long, and assignments to tuples"
    for source in exported(path):
        for f in functions(source):
            if len(f) > LIMITS['p90_function']: yield f'{len(f)} characters: {f.splitlines()[0]}'
        for line in source.splitlines():
            if len(line) > 100: yield f'{len(line)} characters in a line: {line.strip()}'
        for n in ast.walk(ast.parse(source)):
            if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Tuple): yield f'tuple: {ast.unparse(n)}'

def main():
    paths = [Path(p) for p in sys.argv[1:]] or notebooks()
    if len(paths) == 1: print(*offenders(paths[0]), '', sep='\n')
    else:
        for path in paths: print(path.stem, measure([path]))
    figures = measure(paths)
    for name, value in figures.items():
        limit = LIMITS.get(name)
        note = '' if limit is None else f'   limit {limit}' + ('   OVER' if value > limit else '')
        print(f'{name:26} {value:8}{note}')
    return int(any(figures[name] > limit for name, limit in LIMITS.items()))

if __name__ == '__main__': sys.exit(main())
