"Several processes train what one would have trained; they stop together, die honestly, and go on"
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lmnotes.benchmarks.bench_distributed import build_case, on_two_hosts, rank_failure_errors
from lmnotes.benchmarks.network_hosts import missing_for_hosts
from lmnotes.core import InputError, RunError
from lmnotes.training.distributed.data_parallel import full_state_dict, load_full_state_dict, unsharded
from lmnotes.training.distributed.equivalence import (
    make_small_learner,
    relative_difference,
    train_distributed,
    write_letters_dataset,
)
from lmnotes.training.distributed.launchers import launch, run_distributed, slurm_script
from lmnotes.training.distributed.process_groups import (
    barrier,
    check_ranks_agree,
    is_main,
    rank,
    run_on_main,
)

@pytest.fixture(scope='module')
def letters(tmp_path_factory): return write_letters_dataset(tmp_path_factory.mktemp('data')/'letters.jsonl')

def one(letters, name='standard', **kw): return train_distributed(**{**build_case(name, letters, accumulate=1), **kw})
def two(letters, name='standard', how='ddp', **kw):
    return run_distributed(train_distributed, 2, how=how, **{**build_case(name, letters, world=2), **kw})

# ---- the same model

@pytest.mark.parametrize('name', ['standard', 'reversible', 'hub', 'lora', 'moe', 'accumulation'])
def test_two_ranks_are_one_with_twice_the_rows(letters, name):
    a,(b,c) = one(letters, name),two(letters, name)
    assert (
        relative_difference(b, a, 'grads') < 1e-6
        and relative_difference(b, a) < 1e-5
        and relative_difference(c, b) == 0
    )
    counts = {(r['tokens'], r['supervised']) for r in (a, b, c)}
    (_,supervised), = counts # the same for all
    assert supervised > 0
    for x,y in zip(a['rows'], c['rows']):
        assert abs(x['loss'] - y['loss']) < 1e-5*x['loss'] and abs(x['norm'] - y['norm']) < 1e-4*x['norm']

@pytest.mark.parametrize('name', ['standard', 'reversible', 'hub', 'lora', 'moe', 'accumulation'])
def test_fsdp_is_ddp(letters, name):
    a,b = two(letters, name)[0],two(letters, name, 'fsdp')
    assert (
        relative_difference(b[0], a, 'grads') < 1e-6 and relative_difference(b[0], a) < 1e-5 and b[1]['weights'] == {}
    )
    assert b[0]['tokens'] == b[1]['tokens'] == a['tokens']

def test_the_check_would_notice(letters): # a rank that took the mean over its own tokens
    a = one(letters)
    assert (
        0.01
        < relative_difference(run_distributed(own_mean, 2, build_case('standard', letters, world=2))[0], a, 'grads')
        < 1
    )

def own_mean(case):
    from fastai.callback.core import Callback
    class Own(Callback):
        order,run_valid = 8,False # after Distributed (7), before Clip (12)
        def before_batch(self): self.learn.xb[0]['num_items_in_batch'] = self.learn.accumulate.here
        def before_step(self): self.learn.grad_scale = torch.tensor(1.)
    return train_distributed(**case, how='ddp', steps=1, cbs=[Own()])

def test_the_data_do_not_depend_on_the_number_of_ranks(letters):
    seen = run_distributed(batches, 2, dict(data_path=letters, mode='sft', packing=False, max_length=64, bs=4))
    dl = make_small_learner(data=dict(data_path=letters, mode='sft', packing=False, max_length=64, bs=8)).dls.train
    for k in range(5):
        rows = [r for s in seen for r in s[k]]
        assert rows == [[t for t in row.tolist() if t != -100] for row in dl.batch(k)[0]['shift_labels']]

def batches(data):
    learn = make_small_learner(data=data, how='ddp')
    return [
        [[t for t in row.tolist() if t != -100] for row in learn.dls.train.batch(k)[0]['shift_labels']]
        for k in range(5)
    ]

# ---- scores, states

def test_scores_are_those_of_one_process(letters):
    data = dict(data_path=letters, mode='sft', packing=False, max_length=64, bs=4)
    a = train_distributed(data=data, steps=1, lr=1e-12)['scores']
    for how in ('ddp', 'fsdp'):
        for r in run_distributed(train_distributed, 2, data=data, steps=1, lr=1e-12, how=how):
            assert (
                r['scores'].keys() == a.keys()
                and all(r['scores'][k] == a[k] for k in ('tokens', 'rows', 'all_rows'))
                and abs(r['scores']['standard_error']['loss'] - a['standard_error']['loss']) < 1e-5
                and abs(r['scores']['loss'] - a['loss']) < 1e-5
                and abs(r['scores']['accuracy'] - a['accuracy']) < 1e-6
            )

@pytest.mark.parametrize('first,then', [('fsdp', 'ddp'), ('ddp', None), (None, 'fsdp')])
def test_a_run_goes_on_with_another_number_of_ranks(letters, tmp_path, first, then):
    def go(how, **kw): return one(letters, **kw) if how is None else two(letters, how=how, **kw)[0]
    go(first, steps=2, folder=str(tmp_path))
    b = go(then, steps=4, folder=str(tmp_path))
    assert len(b['rows']) == 2 and relative_difference(b, one(letters, steps=4)) < 1e-5

def test_split_weights_are_saved_sampled_and_loaded_whole(letters, tmp_path):
    out = run_distributed(save_and_sample, 2, letters, str(tmp_path))
    from lmnotes.models import build_model
    m = build_model(str(tmp_path/'saved'))
    m.eval()
    assert type(m).__name__ == 'LM' and m.config.architectures == ['LM'] and m.head.weight is m.embed.weight
    assert out[1] is None and out[0] == words(m)

def words(m):
    with torch.no_grad():
        return m.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False)[0].tolist()

def save_and_sample(letters, folder):
    learn = make_small_learner(**build_case('standard', letters, world=2), how='fsdp')
    learn.dls.train.n_batches = 2
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    state,_ = full_state_dict(learn)
    # which takes from it what it has written
    run_on_main(lambda: learn.model.save_pretrained(f'{folder}/saved', state_dict=dict(state)))
    with unsharded(learn) as m:
        said = words(m.eval()) if is_main() else None # the other waits
    learn.dls.train.n_batches = 1
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)                 # and training goes on
    import torch.distributed as dist
    told = [state]
    dist.broadcast_object_list(told)
    load_full_state_dict(learn, told[0]) # back to what was saved
    same = [torch.equal(a, b) for a,b in zip(full_state_dict(learn)[0].values(), state.values()) if a is not None]
    assert all(same) and bool(same) == is_main()
    return said

# ---- of one mind

def test_all_stop_after_the_same_step(letters):
    a,b = two(letters, steps=5, stop=(0, 2))
    assert (
        a['steps'] == b['steps'] == 3
        and a['stopping'] == 'a signal'
        and 'another rank' in b['stopping']
        and relative_difference(a, b) == 0
    )

def test_what_fails_on_rank_0_fails_on_all():
    for r in run_distributed(try_things, 2):
        assert r == [
            'made by 0',
            'InputError: no such folder',
            'RunError: rank 1 has data 1 and rank 0 has 0; start every rank with the same '
            'options, files and versions',
        ]

def try_things():
    out = [run_on_main(lambda: f'made by {rank()}')]
    def fail(): raise InputError('no such folder')
    for f in (lambda: run_on_main(fail), lambda: check_ranks_agree(data=rank())):
        try:
            f()
        except (InputError, RunError) as e:
            out.append(f'{type(e).__name__}: {e}')
    barrier()
    return out

def test_a_loss_scaler_sees_the_infinity_of_another_rank():
    assert run_distributed(scaled, 2) == [[(False, True), (True, False)]]*2

def scaled(): # (found one, made a step), without and with an infinity on rank 1
    from torch.distributed.fsdp import fully_shard
    torch.manual_seed(0)
    m = torch.nn.Linear(8, 8)
    fully_shard(m)
    out = []
    opt,scaler = torch.optim.AdamW(m.parameters(), 1e-2, fused=True),torch.amp.GradScaler('cpu')
    for bad in (False, True):
        scaler.scale(m(torch.ones(2, 8)).sum()).backward()
        if bad and rank() == 1: m.weight.grad.to_local()[0,0] = float('inf')
        scaler.unscale_(opt)
        found = any(v.item() for v in scaler._per_optimizer_states[id(opt)]['found_inf_per_device'].values())
        before = m.weight.to_local().clone()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        out.append((found, not torch.equal(before, m.weight.to_local())))
    return out

def test_muon_steps_on_split_weights(letters): # in 16 bits inside, so closer than that it cannot be
    a,b = two(letters, optimizer='muon')[0],two(letters, how='fsdp', optimizer='muon')[0]
    assert relative_difference(b, a) < 5e-3

# ---- death

@pytest.mark.parametrize('how', ['ddp', 'fsdp'])
def test_started_again_it_ends_with_the_same_weights(letters, tmp_path, how):
    calm = two(letters, how=how, steps=4)[0]
    again = two(letters, how=how, steps=4, die=(1, 2), folder=str(tmp_path), restarts=1)[0]
    assert len(again['rows']) == 2 and relative_difference(again, calm) == 0
    with pytest.raises(RunError, match='lost contact|exit code -9'):
        two(letters, how=how, die=(1, 1))

def test_torchrun_ends_or_restarts_a_job_whose_rank_is_killed(letters, tmp_path, forked_workers):
    assert rank_failure_errors(letters, tmp_path/'x') == dict(killed_is_error=1., restart_error=0.)

def test_leaving_does_not_wait_for_a_thread_that_waits_for_us():
    program = """if True:
        import torch
        import torch.distributed as dist
        from lmnotes.training.distributed.process_groups import leave_process_group
        for _ in range(200): # left with `destroy_process_group` alone, 3 of 3 tries hung within 60
            dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
            parallel = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
            dist.all_reduce(torch.zeros(()))
            leave_process_group()
            del parallel
        print('left')
    """
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=200)
    assert done.stdout == 'left\n', done.stderr[-2000:]

def test_two_hosts(letters, tmp_path):
    if why := missing_for_hosts(): pytest.skip(why)
    case = build_case('standard', letters, world=2)
    # as two ranks of one host, to the last bit
    assert relative_difference(on_two_hosts(dict(case, how='ddp', steps=3), tmp_path), two(letters)[0]) == 0
    assert (
        not missing_for_hosts()
        and f'lm{os.getpid()}' not in subprocess.run(['ip', 'netns', 'list'], capture_output=True, text=True).stdout
    )

def test_launch_passes_the_exit_code_on(capfd, forked_workers):
    assert launch(['bench', 'no-such-bench'], nproc=2) == 2
    assert "unknown bench 'no-such-bench'" in capfd.readouterr().err
    with pytest.raises(InputError, match='at least two GPUs'):
        launch(['train'], nproc=1)

# ---- clusters

def test_the_slurm_script_is_one(tmp_path):
    text = slurm_script(
        ['train', '--model', 'gpt2', '--prompt_template', "it's {prompt}", '--output_dir', '/a b/run'],
        nodes=3,
        gpus_per_node=4,
        hours=1.5,
        extra=['--partition=gpu'],
    )
    assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    heads = [l for l in text.splitlines() if l.startswith('#SBATCH')]
    assert (
        text.startswith('#!/bin/bash\n#SBATCH')
        and '#SBATCH --nodes=3' in heads
        and '#SBATCH --time=01:30:00' in heads
        and '#SBATCH --partition=gpu' in heads
        and '#SBATCH --requeue' in heads
    )

def test_the_slurm_script_saves_and_queues_up_again(tmp_path): # with stand-ins for what a cluster has
    def tool(name, body):
        (tmp_path/name).write_text(f'#!/bin/bash\n{body}\n', encoding='utf-8')
        (tmp_path/name).chmod(0o755)
    tool('scontrol', 'if [ "$1" = show ]; then echo host7; else echo "$@" >> $LOG; fi')
    tool('srun', 'shift; exec "$@"')
    tool(
        'torchrun',
        'echo "$@" >> $LOG; trap "echo saved >> $LOG; exit 1" TERM; touch $LOG.ready; while '
        'true; do sleep 0.05; done',
    )
    log = tmp_path/'log'
    env = dict(
        os.environ,
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        LOG=str(log),
        SLURM_JOB_NODELIST='host[7-9]',
        SLURM_JOB_ID='42',
        SLURM_NNODES='2',
    )
    p = subprocess.Popen(['bash', '-c', slurm_script(['train', '--output_dir', '/a b/run'])], env=env)
    for _ in range(200):
        if (tmp_path/'log.ready').exists(): break
        time.sleep(0.05)
    p.send_signal(signal.SIGTERM)
    assert p.wait(20) == 0
    first,*rest = log.read_text(encoding='utf-8').splitlines()
    assert (
        '--rdzv_endpoint=host7:29500' in first
        and '--rdzv_id=42-0' in first
        and first.endswith('-m lmnotes train --output_dir /a b/run --multi_gpu')
        and rest == ['saved', 'requeue 42']
    )
