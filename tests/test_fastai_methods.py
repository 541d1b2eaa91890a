"What fastai's users call works on an encoder-decoder and on a model that fills gaps, or says in one line why not"
import contextlib
import io
import subprocess
import sys
import warnings

import pytest
from fastai.learner import load_learner

from lmnotes.core import InputError
from lmnotes.data.sources.prompt_form import model_prompt_form
from lmnotes.training.checkpoints import load_run, save_run
from lmnotes.training.interface import fastai_methods  # noqa: F401 methods of every learner
from lmnotes.training.options import TrainOptions
from lmnotes.training.planning.prepare import prepare_job

kinds = dict(
    pairs=dict(model='tiny:t5', dataset='recall', mode='sft'),
    gaps=dict(model='tiny:bert', task='mlm', dataset='recall', mode='pretrain'),
)
asked = dict(pairs='k1 v2', gaps='the <mask> of')

@pytest.fixture(scope='module', params=kinds)
def learner(request):
    o = TrainOptions(**kinds[request.param], max_length=32, limit=20, batch_size=4, device='cpu', dry_run=True)
    learn = prepare_job(o).learn
    learn.dls.train.n_batches = 2
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return request.param,learn

def test_what_is_shown(learner):
    kind,learn = learner
    with contextlib.redirect_stdout(io.StringIO()):
        learn.dls.show_batch(max_n=2)
        learn.show_results(max_n=2)
    assert 'parameters' in str(learn.summary())
    if kind == 'pairs': return
    with pytest.raises(InputError, match='mark gaps'): learn.predict('no gap')

def test_what_is_predicted(learner):
    kind,learn = learner
    preds,targets,losses = learn.get_preds(dl=learn.dls.valid.sampled(4), with_loss=True)
    assert preds.shape[:2] == targets.shape and len(losses) == 4 and losses.isfinite().all()
    assert isinstance(learn.predict(asked[kind], max_new_tokens=4), str)

def test_a_rate_is_found(learner):
    _,learn = learner
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): found = learn.lr_find(num_it=6, show_plot=False)
    assert 0 < found.valley < 10 and all((a == b).all() for a,b in zip(before, learn.model.parameters(), strict=True))

def test_what_was_kept_predicts_the_same(learner, tmp_path):
    kind,learn = learner
    expected = learn.predict(asked[kind], max_new_tokens=4)
    learn.path = tmp_path
    learn.export('learner.pkl')
    with warnings.catch_warnings(action='ignore'): again = load_learner(tmp_path/'learner.pkl')
    assert again.predict(asked[kind], max_new_tokens=4) == expected
    assert model_prompt_form(again.model) == model_prompt_form(learn.model)
    assert load_run(save_run(learn, tmp_path/'run')).predict(asked[kind], max_new_tokens=4) == expected


def test_a_run_loaded_from_the_package_itself_has_them():
    program = """if True:
        from lmnotes import load_run
        from lmnotes.training.learner import LMLearner
        print(LMLearner.get_preds.__module__)
    """
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.stdout.strip() == 'lmnotes.training.interface.fastai_methods', done.stderr[-2000:]
