"Every recipe, mixer and hub family keeps the contract; the numbers stand in a table at the end of the run"
import warnings

import pytest

import lmnotes.models
from lmnotes.models.conformance import check_clause, clauses, contract_models, excused, is_kept

MODELS = contract_models()

@pytest.mark.parametrize('name', MODELS)
def test_contract(name, record_property):
    found = {}
    for n in clauses:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found[n] = check_clause(n, MODELS[name])
        record_property('contract', (name, n, found[n])) # also what came before a failure
    broken = {n: x for n,x in found.items() if not is_kept(name, n, x)}
    assert not broken, f'{name} breaks {broken}'

def test_nothing_is_excused_that_keeps_its_promise():
    for (name, n),(allowed, _) in excused.items():
        assert check_clause(n, MODELS[name]) == allowed > clauses[n].bound

def test_a_clause_that_does_not_apply_is_an_encoders():
    assert {n for n in MODELS if check_clause('append', MODELS[n]) is None} == {'encoder', 'tiny:bert'}
