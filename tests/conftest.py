"Say at the very end if the browser tests were skipped."
import os
from pathlib import Path


def skipped_browser(reporter):
    "Why the tests in test_browser.py were skipped, or None"
    for report in reporter.stats.get('skipped', []):
        if 'test_browser' in report.nodeid and 'CHROMIUM' in str(report.longrepr):
            return f'NOTE: the browser tests were skipped ({report.longrepr[2].removeprefix("Skipped: ")})'


def pytest_unconfigure(config):
    "Print the notice as the last line, or leave it in the file GEAR_NOTICE for `make test` to print last"
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    notice = reporter and skipped_browser(reporter)
    if not notice: return
    if file := os.environ.get('GEAR_NOTICE'): Path(file).write_text(f'{notice}\n')
    else: print(notice)
