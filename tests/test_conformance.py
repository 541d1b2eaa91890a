"Every recipe, mixer and hub family passes the conformance checks; the numbers stand in a table at the end of the run"
import warnings

import pytest

from lmnotes.models.conformance import (
    conformance_checks,
    conformance_models,
    is_conformant,
    known_exceptions,
    run_conformance_check,
)

MODELS = conformance_models()

@pytest.mark.parametrize('name', MODELS)
def test_conformance(name, record_property):
    found = {}
    for n in conformance_checks:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found[n] = run_conformance_check(n, MODELS[name])
        record_property('contract', (name, n, found[n])) # also what came before a failure
    failed = {n: x for n,x in found.items() if not is_conformant(name, n, x)}
    assert not failed, f'{name} fails {failed}'

def test_no_exception_is_within_the_bound():
    for (name, n),(allowed, _) in known_exceptions.items():
        assert run_conformance_check(n, MODELS[name]) == allowed > conformance_checks[n].bound

def test_checks_of_causality_apply_to_all_but_encoders():
    assert {n for n in MODELS if run_conformance_check('append', MODELS[n]) is None} == {'encoder', 'tiny:bert'}
