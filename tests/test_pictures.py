"What a run shows of itself: pictures, TensorBoard and the live monitor, also after it was killed"
import io
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from forked import Popen
from PIL import Image

from lmnotes.files import append_jsonl, read_json, read_jsonl
from lmnotes.training.monitor import metrics_history
from lmnotes.training.plots import *

N, EVERY = 60, 5 # steps of the run that is killed, and between its checkpoints

def history(n=120):
    rng = np.random.default_rng(0)
    h = dict(
        steps=list(range(1, n + 1)),
        **{
            k: rng.uniform(0.2, 0.8, n).tolist()
            for k in ('loss', 'accuracy', 'throughput', 'learning_rate')
        },
    )
    h['loss'][40:50] = [None]*10
    h['accuracy'][60] = None
    return h

SAMPLES = [
    dict(step=s, input=f'input {s}', output=f'output {s}', accuracy=None if s == 2 else s / 10)
    for s in range(1, 9)
]

@pytest.fixture(scope='module')
def page(): return draw_plots(history(), SAMPLES, [dict(step=60, loss=.5, accuracy=.4)], 'name')

def curves(fig):
    return {ax.get_label(): {line.get_gid(): line for line in ax.lines} for ax in fig.axes}

def test_all_seven_are_there(page):
    assert {ax.get_label() for ax in page.axes} - {'colours'} == {
        'loss',
        'accuracy',
        'throughput',
        'learning_rate',
        'loss against accuracy',
        'recent',
        'samples',
    }

@pytest.mark.parametrize('name', ['loss', 'accuracy', 'throughput', 'learning_rate'])
def test_what_is_drawn_is_the_history(page, name):
    h = history()
    line = curves(page)[name]['measured']
    np.testing.assert_array_equal(line.get_xdata(), h['steps'])
    # None becomes NaN: a gap, not a zero
    np.testing.assert_array_equal(line.get_ydata(), np.array(h[name], float))
    if name != 'learning_rate':
        mean = curves(page)[name]['average'].get_ydata()
        last = [v for v in h[name][-50:] if v is not None]
        assert mean[-1] == pytest.approx(np.mean(last))
        np.testing.assert_array_equal(np.isnan(mean), np.isnan(np.array(h[name], float)))

def test_pairs_are_drawn_where_both_were_measured(page):
    ax = next(a for a in page.axes if a.get_label() == 'loss against accuracy')
    h = history()
    pairs = [(a, l) for a, l in zip(h['accuracy'], h['loss']) if None not in (a, l)]
    np.testing.assert_allclose(ax.collections[0].get_offsets(), pairs)
    assert len(pairs) == 109

def test_the_table_shows_the_newest_texts_and_no_accuracy_as_none(page):
    texts = [t.get_text() for a in page.axes if a.get_label() == 'samples' for t in a.texts]
    assert {'output 8', 'output 5', 'input 6', '0.80'} <= set(texts) and 'output 4' not in texts
    assert '–' in [
        t.get_text()
        for a in draw_plots(history(), SAMPLES[:2]).axes
        if a.get_label() == 'samples'
        for t in a.texts
    ]

def test_no_panel_is_blank(page):
    pixels = np.asarray(Image.open(io.BytesIO(png_bytes(page))).convert('L'), float)
    height, width = pixels.shape
    for ax in page.axes:
        b = ax.get_position()
        inside = pixels[
            int((1 - b.y1) * height) : int((1 - b.y0) * height),
            int(b.x0 * width) : int(b.x1 * width),
        ]
        assert inside.std() > 3, f'{ax.get_label()} is blank'

def test_threads_draw_the_same_and_pyplot_sees_nothing():
    import matplotlib.pyplot as plt
    had, out = plt.get_fignums(), []
    threads = [
        threading.Thread(target=lambda: out.append(png_bytes(draw_plots(history(), SAMPLES))))
        for _ in range(3)
    ]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(out) == 3 and len(set(out)) == 1 and plt.get_fignums() == had

def test_a_long_run_is_drawn_thin_and_written_whole(tmp_path):
    n = 30_000
    rows = [
        dict(
            step=i,
            loss=5.0 if i == 17_777 else 1.0,
            accuracy=0.5,
            learning_rate=0.1,
            tokens_per_s=1e3,
        )
        for i in range(1, n + 1)
    ]
    append_jsonl(tmp_path/'metrics.jsonl', *rows)
    h = metrics_history(tmp_path)
    drawn = curves(draw_plots(h))['loss']['measured']
    assert (
        len(drawn.get_xdata()) <= 2010
        and drawn.get_ydata().max() == 5.0
        and drawn.get_xdata()[drawn.get_ydata().argmax()] == 17_777
    )
    write_plots(tmp_path)
    assert read_json(tmp_path/'viz/metrics_history.json') == h and len(h['loss']) == n

# a run that is killed

SCRIPT = '''
import sys, time, torch
from pathlib import Path
from fastai.callback.core import Callback, CancelValidException
from lmnotes.files import append_jsonl, read_json
from lmnotes.data.load import load_data
from lmnotes.models.build import build_model
from lmnotes.training.learner import lm_learner
from lmnotes.training.checkpoints import Checkpoints, load_checkpoint
from lmnotes.files import find_checkpoint, steps_in
from lmnotes.training.monitor import Monitor, truncate_log
from lmnotes.training.interface.plot_schedule import TrainingPlots
from lmnotes.training.trackers import TensorBoard, tracker_facts

run,n,every,pause = Path(sys.argv[1]),int(sys.argv[2]),int(sys.argv[3]),float(sys.argv[4])
data = load_data('arithmetic', max_length=32, bs=2, limit=200); torch.manual_seed(0); data.train.n_batches = n
model = build_model('standard', size='tiny', dim=16, n_layer=1, n_head=2, vocab_size=data.vocab_size)

class Told(Callback): # scores and texts, as a run has them
    order,run_valid = 55,False
    def after_step(self):
        time.sleep(pause); step = self.learn.step
        if step % 10 == 0:
            append_jsonl(run/'evals.jsonl', dict(step=step, loss=9.))
            append_jsonl(run/'samples.jsonl', dict(step=step, input='a', output=str(step)))
    def before_validate(self): raise CancelValidException()

learn = lm_learner(model, data, lr=1e-3)
if steps_in(run/'checkpoints'):
    load_checkpoint(learn, find_checkpoint(run))
    for log in ('metrics', 'evals', 'samples'): truncate_log(run/f'{log}.jsonl', learn.step)
learn.add_cbs([Monitor(run/'metrics.jsonl', 4), Told(), TensorBoard(run, tracker_facts(learn, 2*32*n))])
learn.add_cbs([Checkpoints(run/'checkpoints', every), TrainingPlots(run, 10)])
with learn.no_bar(), learn.no_logging(): learn.fit(1)
'''

def start(run, pause):
    return Popen(
        [sys.executable, '-c', SCRIPT, str(run), str(N), str(EVERY), str(pause)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1'),
    )

@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    "A run that was killed in the middle and resumed, and what a live monitor beside it said"
    from lmnotes.app.live_monitor import LiveMonitor
    run = tmp_path_factory.mktemp('run')/'mine'
    said = []
    m = LiveMonitor(run)
    said.append(m.line.value)
    run.mkdir()
    p = start(run, .03)
    until = time.time() + 120
    while p.poll() is None and time.time() < until and len(read_jsonl(run/'metrics.jsonl')) < 24:
        time.sleep(.02)
        m.refresh(draw=False)
        said.append(m.line.value)
    if p.poll() is not None: raise AssertionError(p.stderr.read())
    p.send_signal(signal.SIGKILL)
    p.wait()
    reached = read_jsonl(run/'metrics.jsonl')[-1]['step']
    p = start(run, 0)
    assert p.wait(120) == 0, p.stderr.read()
    m.refresh()
    said.append(m.line.value)
    return run, reached, said

def test_resumed_run_has_each_step_once_on_its_pictures(killed):
    run, reached, _ = killed
    h = read_json(run/'viz/metrics_history.json')
    assert 24 <= reached < N and h['steps'] == list(range(1, N + 1)) and h == metrics_history(run)
    assert [s['step'] for s in read_json(run/'viz/text_samples.json', list)] == list(range(10, N + 1, 10))
    assert (run / 'viz/training_step_000010.png').exists() and (
        run / f'viz/training_step_{N:06d}.png'
    ).read_bytes() == (run / 'viz/training_latest.png').read_bytes()
    assert not list(run.rglob('*.tmp'))

def test_tensorboard_holds_every_scalar_and_text_once(killed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = killed[0]
    rows = read_jsonl(run/'metrics.jsonl')
    acc = EventAccumulator(
        str(run / 'tensorboard'),
        size_guidance=dict(scalars=0, tensors=0),
        purge_orphaned_data=False,
    ).Reload() # doubles would be seen
    for tag in ('loss', 'accuracy', 'learning_rate', 'grad_norm', 'tokens_per_s', 'tokens'):
        got = acc.Scalars(f'train/{tag}')
        assert [e.step for e in got] == list(range(1, N + 1)), tag
        np.testing.assert_allclose([e.value for e in got], [r[tag] for r in rows], rtol=1e-6)
    assert [e.step for e in acc.Scalars('eval/loss')] == list(range(10, N + 1, 10))
    facts = {
        t: (e.step, e.value)
        for t in (
            'budget/tokens',
            'model/parameters',
            'model/trainable_parameters',
            'model/trainable_percent',
        )
        for e in acc.Scalars(t)
    }
    assert (
        facts['budget/tokens'] == (0, 2 * 32 * N)
        and facts['model/trainable_percent'] == (0, 100.0)
        and facts['model/parameters'] == facts['model/trainable_parameters']
    )
    texts = {
        t: acc.Tensors(t)[0].tensor_proto.string_val[0].decode() for t in acc.Tags()['tensors']
    }
    assert {t.split('/')[0] for t in texts} == {
        'configuration',
        'attention',
        'device',
        'datasets',
    } and all(texts.values())
    assert (
        texts['attention/text_summary'] == 'sdpa'
        and 'embedded/arithmetic' in texts['datasets/text_summary']
        and texts['device/text_summary'].startswith('cpu')
    )

def test_the_monitor_beside_it_saw_it_all(killed):
    run, _, said = killed
    assert 'waiting: there is no folder' in said[0] and any(
        'no step in its metrics.jsonl yet' in s for s in said
    )
    assert (
        any('training · step' in s for s in said[:-1])
        and f'step {N} ' in said[-1]
        and 'not JSON' not in ' '.join(said)
    )
