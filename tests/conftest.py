"What several files of tests use, and what the tests measured, printed when they are done"
import gc
import subprocess

import pytest

LONGEST = '''training distributed commands causality comparison rl sandbox suite trust streams models messages arms
conformance scoring memory_check labels fuzz metrics sharing big_text bench reports hub auto_length kills plugins
prompt_form decoding escaping resonance data bitpacking project pictures shards named_columns option_changes ui
structure'''.split() # that take minutes begin first, so that none is left to one worker at the end

def pytest_collection_modifyitems(items):
    place = {f'test_{name}': i for i,name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))

def pytest_collection_finish():
    gc.freeze() # what the files of tests import stays, and looking for garbage in it is a tenth of a training run

@pytest.fixture
def forked_workers(monkeypatch):
    "Processes of the library that start Python are forks of one that has imported it: see `forked`"
    import forked
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(subprocess, 'Popen', forked.Popen)

def pytest_terminal_summary(terminalreporter):
    results = {}
    for r in [*terminalreporter.stats.get('passed', []), *terminalreporter.stats.get('failed', [])]:
        for key,value in getattr(r, 'user_properties', []):
            if key == 'contract': results.setdefault(value[0], {})[value[1]] = value[2]
    if not results: return
    from rich.console import Console

    from lmnotes.models.conformance import conformance_checks, conformance_table
    whole = {k: {n: r.get(n) for n in conformance_checks} for k,r in sorted(results.items())}
    Console(width=110).print(conformance_table(whole))
