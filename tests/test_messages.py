"A run says what happens in it, on the terminal and in its log; a test run is short whatever was asked for"
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from lmnotes.files import read_json, read_jsonl
from lmnotes.training.build import model_facts
from lmnotes.training.interface.short_runs import run_work, test_run_budget as budget
from lmnotes.training.options import TrainOptions
from lmnotes.training.train import train

tiny = dict(
    dim=32, n_layer=1, n_head=2, max_length=32, dataset='arithmetic', mode='pretrain', limit=300, batch_size=4,
    eval_max_batches=4, device='cpu',
)


def events(path):
    "Name -> sentences of the log of a run"
    out = {}
    for line in (Path(path)/'logs/training.log').read_text(encoding='utf-8').splitlines():
        if line[:4].isdigit():
            name,_,text = line[20:].strip().partition('  ')
            out.setdefault(name, []).append(text)
    return out


def test_early_stopping_and_the_kept_step_are_said(tmp_path, capsys):
    wild = dict(learning_rate=0.3, lr_scheduler_type='constant', warmup_ratio=0., eval_steps=2)
    run = train(
        **tiny, **wild, max_steps=60, early_stopping_patience=2, load_best_model_at_end=True, save_steps=2,
        output_dir=str(tmp_path/'a'),
    )
    said,out,rows = events(run.path),capsys.readouterr().out,read_jsonl(run.path/'evals.jsonl')
    assert [int(t.split()[1][:-1]) for t in said['eval']] == [r['step'] for r in rows] # each, once, as it came
    assert said['stop'][0].startswith('early stopping: 2 evaluations without a better loss')
    best = min(rows, key=lambda r: r['loss'])['step']
    assert said['kept'][0].startswith(f'step {best} of {rows[-1]["step"]}, the best')
    for name in ('eval', 'stop', 'kept', 'plots', 'result'):
        assert said[name][-1] in out


def test_shares_of_a_mixture_are_said_as_asked_and_as_drawn(tmp_path, capsys):
    mix = {k: v for k,v in tiny.items() if k not in ('dataset', 'mode')}
    mix |= dict(datasets=('prose', 'arithmetic'), mixture_rates=(0.75, 0.25), eval_generate=0)
    run = train(**mix, max_steps=4, output_dir=str(tmp_path/'m'))
    drawn = run.summary['realised']
    line = events(run.path)['mixture'][0]
    for name,share in drawn.items():
        assert f'{name} {share["asked"]:.1%}' in line and f'{name} {share["examples"]:.1%}' in line
    assert 'embedded/prose 75.0%, embedded/arithmetic 25.0% of examples' in capsys.readouterr().out # in the plan


def test_a_signal_leaves_a_fresh_picture_and_a_line(tmp_path):
    path = tmp_path/'s'
    def stop():
        for _ in range(600):
            if (path/'metrics.jsonl').exists(): break
            time.sleep(.05)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(RuntimeError, match='SIGTERM'):
        train(**tiny, quiet=True, max_steps=5000, viz_interval=10**6, logging_steps=1, output_dir=str(path))
    step = read_json(path/'summary.json')['steps']
    assert read_json(path/'viz/metrics_history.json')['steps'][-1] == step and (path/'viz/training_latest.png').exists()
    assert events(path)['stop'] == [f'SIGTERM; step {step} of 5000 was the last']
    assert len(events(path)['train']) >= step - 1 # `logging_steps` says how often


def test_a_resumed_run_says_from_where(tmp_path):
    run = train(**tiny, quiet=True, max_steps=6, save_steps=2, output_dir=str(tmp_path/'r'))
    for name in ('final', 'checkpoints/step_000006'):
        if (run.path/name).exists(): os.rename(run.path/name, tmp_path/Path(name).name)
    (run.path/'summary.json').unlink()
    (run.path/'checkpoints/latest').write_text('step_000004\n', encoding='utf-8')
    train(quiet=True, resume=str(run.path))
    assert events(run.path)['resume'][0].startswith('from step 4 of 6, ')


@pytest.mark.parametrize('more', [
    dict(gradient_accumulation_steps=32), dict(dim=1024, n_layer=24), dict(eval_steps=1, eval_max_batches=10**6),
    dict(viz_interval=1, display_samples_every=1),
], ids=lambda m: next(iter(m)))
def test_the_work_of_a_test_run_is_within_its_budget(more, tmp_path, monkeypatch):
    "Count tokens that go through the model, and not seconds"
    seen = [0]
    count = lambda model, args, kwargs: seen.__setitem__(0, seen[0] + kwargs.get('input_ids', torch.zeros(0)).numel())
    handle = []
    from lmnotes.training import train as module
    made = module.model_from_options
    def counted(*args):
        model = made(*args)
        handle.append(model.register_forward_pre_hook(count, with_kwargs=True))
        return model
    monkeypatch.setattr(module, 'model_from_options', counted)
    run = train(**more, quiet=True, test=True, device='cpu', limit=200, output_dir=str(tmp_path/'t'))
    o = TrainOptions(**{k: tuple(v) if isinstance(v, list) else v for k,v in run_options(run).items()})
    n = model_facts(run.model).parameters
    assert run_work(o, model_facts(run.model)) <= budget
    assert 2*n*seen[0] + 4*n*run.summary['tokens'] <= 1.5*budget # with probes of memory and causality
    line = events(run.path)
    assert 'train' in line and run.summary['steps'] <= 40


def run_options(run):
    "Options of a run, as it used them"
    return read_json(run.path/'args.json')['options']
