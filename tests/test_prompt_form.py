"A run remembers how its prompts were made, and whoever asks its model does it in that form."
import json
import shutil

import pytest
import torch

from lmnotes.app.cli import main
from lmnotes.core import InputError, set_seed
from lmnotes.data.load import load_data
from lmnotes.data.rows.conversations import chat_example
from lmnotes.data.sources.prompt_form import PromptForm, model_prompt_form
from lmnotes.data.tokenizers import byte_tokenizer
from lmnotes.evaluation import eval_model
from lmnotes.evaluation.eval_model import EvalModel, choice_nll
from lmnotes.evaluation.evaluate import evaluate_model
from lmnotes.evaluation.generation_eval import task_score
from lmnotes.evaluation.row_prompts import row_prompt_ids
from lmnotes.evaluation.tasks.classification import score_classification
from lmnotes.evaluation.tasks.likelihood_tasks import load_choice_rows, score_choice
from lmnotes.files import read_json
from lmnotes.models import build_model
from lmnotes.models.lora import add_lora
from lmnotes.quantizers.packed_export import export_dense
from lmnotes.quantizers.packed_model import load_packed, pack
from lmnotes.reports.model_card import write_card
from lmnotes.reports.run_report import report_runs
from lmnotes.training.checkpoints import load_run, save_checkpoint, save_run
from lmnotes.training.learner import lm_learner
from lmnotes.training.train import train

COLOURS = dict(ana='red', bob='blue', cy='green', dee='gold')
TEMPLATE = '{question} likes the colour:'

def write_rows(folder, prompt, target):
    folder.mkdir()
    for split in ('train', 'validation', 'test'):
        rows = [{prompt: who, target: colour} for who,colour in COLOURS.items()]
        (folder/f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    return str(folder)

def tune(path, **options):
    "A learner whose model knows the answers to rows in one form of prompts"
    data = load_data(mode='sft', data_path=path, max_length=64, bs=4, packing=False, device='cpu', **options)
    set_seed(0)
    learn = lm_learner(build_model('standard', 'tiny', data.vocab_size, max_length=256), data, device='cpu')
    batch,opt = data.train.one_batch()[0],torch.optim.AdamW(learn.model.parameters(), 3e-3)
    for _ in range(60):
        loss = learn.model(**batch).loss
        loss.backward()
        opt.step()
        opt.zero_grad()
    assert loss.item() < .1
    return learn

@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
    "A model that was trained in a template, the folder of its rows, and that of the run"
    home = tmp_path_factory.mktemp('tuned')
    path = write_rows(home/'rows', 'question', 'answer')
    learn = tune(path, prompt_template=TEMPLATE)
    return learn, path, save_run(learn, home/'run')

def test_a_run_is_evaluated_in_the_form_it_was_trained_on(tuned):
    learn,path,run = tuned
    said = []
    options = dict(data_path=path, device='cpu', limit=None)
    score, = evaluate_model(run, 'generation', progress=said.append, **options)['tasks']
    other, = evaluate_model(run, 'generation', form=PromptForm(), output=run/'other.json', **options)['tasks']
    assert score['metrics']['chrf'] == 100 > other['metrics']['chrf'] + 30
    assert json.loads((run/'evaluation.json').read_text())['asked']['prompts']['template'] == TEMPLATE

def test_task_score_asks_in_the_form_the_model_was_trained_on(tuned):
    learn,path,run = tuned
    task,rows = learn.dls.task,learn.dls.rows['train']
    saved = build_model(str(run/'final')).eval()
    for model in (learn.model, saved):
        assert task_score(model, learn.dls.tokenizer, task, rows)['score'] == 1
    assert task_score(saved, learn.dls.tokenizer, task, rows, form=PromptForm())['score'] < 1

def test_own_columns_are_remembered(tmp_path):
    learn = tune(write_rows(tmp_path/'rows', 'who', 'colour'), prompt_column='who', target_column='colour')
    run = save_run(learn, tmp_path/'run')
    score, = evaluate_model(run, 'generation', data_path=tmp_path/'rows', device='cpu')['tasks']
    assert score['metrics']['chrf'] == 100

def test_every_folder_of_a_model_has_its_form(tuned, tmp_path):
    learn,_,run = tuned
    form = model_prompt_form(learn.model)
    assert (form.template, form.columns) == (TEMPLATE, ('question', 'answer'))
    save_checkpoint(learn, tmp_path/'step')
    packed = pack(str(run/'final'), tmp_path/'packed', quantize='ternary', verbose=False)
    export_dense(str(packed.path), tmp_path/'dense', verbose=False)
    save_run(load_run(run), tmp_path/'again')
    for folder in (run/'final', tmp_path/'step', tmp_path/'packed', tmp_path/'dense', tmp_path/'again/final'):
        assert PromptForm.load(folder) == form, folder
    assert model_prompt_form(load_packed(tmp_path/'packed')) == form

def test_adapters_have_the_form_and_so_has_what_they_are_merged_into(tuned, tmp_path):
    learn,path,run = tuned
    data = load_data(mode='sft', data_path=path, prompt_template='{question}?', max_length=64, bs=4, device='cpu')
    model = add_lora(build_model(str(run/'final')), verbose=False)
    assert model_prompt_form(model).template == TEMPLATE
    folder = save_run(lm_learner(model, data, device='cpu'), tmp_path/'lora')/'final'
    assert PromptForm.load(folder).template == '{question}?'
    assert model_prompt_form(model.merge_and_unload()).template == '{question}?'

def test_a_folder_without_the_file_is_asked_as_before(tuned, tmp_path):
    learn,path,_ = tuned
    folder = save_run(learn, tmp_path/'run')
    (folder/'final/prompts.json').unlink()
    plain = build_model(str(folder/'final')).eval()
    assert model_prompt_form(plain) is None
    task,rows = learn.dls.task,learn.dls.rows['train']
    one,two = (task_score(plain, learn.dls.tokenizer, task, rows, form=f) for f in (None, PromptForm()))
    assert one == two

def test_running_text_leaves_the_form_of_a_model(tuned):
    learn,_,run = tuned
    model = build_model(str(run/'final'))
    lm_learner(model, load_data('prose', max_length=32, limit=20, device='cpu'), device='cpu')
    assert model_prompt_form(model) == model_prompt_form(learn.model)

def test_a_damaged_file_is_one_line(tuned, tmp_path):
    learn,path,_ = tuned
    folder = save_run(learn, tmp_path/'run')
    (folder/'final/prompts.json').write_text('{"template": "{question"}')
    with pytest.raises(InputError, match='prompts.json: template cannot be read'):
        evaluate_model(folder, 'generation', data_path=path, device='cpu')

def test_generate_makes_prompts_as_training_did(tuned, capsys):
    _,path,run = tuned
    words = ['generate', '--model', str(run), '--device', 'cpu', '--temperature', '0', '--max_new_tokens', '8']
    assert main([*words, '--row', '{"question": "cy"}']) == 0
    assert capsys.readouterr().out.strip() == 'green'
    assert main([*words, '--file', f'{path}/test.jsonl']) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row['completion'].strip() for row in lines] == [*COLOURS.values()]

def test_own_text_is_named_by_its_file(tmp_path):
    (tmp_path/'tale.txt').write_text('Once upon a time there was a hen. It sang.\n'*40, encoding='utf-8')
    run = train(data_path=str(tmp_path/'tale.txt'), output_dir=str(tmp_path/'run'), max_steps=2, max_length=32,
                device='cpu', quiet=True)
    report_runs([run.path])
    write_card(run.path)
    for name in ('final/README.md', 'report.md', 'report.html', 'report.tex', 'report.json', 'summary.json'):
        text = (run.path/name).read_text(encoding='utf-8')
        assert 'prose' not in text, name
    events = b''.join(f.read_bytes() for f in (run.path/'tensorboard').glob('events*'))
    assert b'tale.txt' in events
    assert b'prose' not in events

def test_a_length_that_cuts_is_a_warning_above_the_plan(tmp_path):
    rows = [dict(question=f'{i}?', answer='long '*40) for i in range(20)]
    (tmp_path/'own.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    plan = train(data_path=str(tmp_path/'own.jsonl'), dry_run=True, device='cpu', quiet=True)
    assert next(iter(plan)) == 'warning'
    length = plan['warning'].partition('--max_length ')[2].split()[0]
    assert '19 of 19 answers' in plan['warning']
    assert 'warning' not in train(data_path=str(tmp_path/'own.jsonl'), dry_run=True, device='cpu', quiet=True,
                                  max_length=int(length))

def test_a_chat_form_is_asked_as_a_chat(tmp_path):
    tok = byte_tokenizer()
    tok.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}" \
                        "{% if add_generation_prompt %}<assistant>{% endif %}"
    tok.save_pretrained(tmp_path/'tok')
    path = write_rows(tmp_path/'rows', 'question', 'answer')
    chat = dict(chat_template=True, system_prompt='Be brief.')
    learn = tune(path, tokenizer=str(tmp_path/'tok'), **chat)
    run = save_run(learn, tmp_path/'run')
    assert PromptForm.load(run/'final').system_prompt == 'Be brief.'
    score, = evaluate_model(run, 'generation', data_path=path, device='cpu')['tasks']
    assert score['metrics']['chrf'] == 100
    words = ['generate', '--model', str(run), '--device', 'cpu', '--temperature', '0', '--max_new_tokens', '8']
    ids = row_prompt_ids(learn.dls.tokenizer, PromptForm.load(run/'final'), dict(question='cy'))
    assert learn.dls.tokenizer.decode(ids).startswith('<system>Be brief.')
    assert main([*words, '--row', '{"question": "cy"}']) == 0

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}" \
       "{% if add_generation_prompt %}<assistant>{% endif %}"

def test_candidates_begin_the_answer_of_a_chat(monkeypatch):
    tok,seen = byte_tokenizer(),[]
    tok.chat_template = CHAT
    def nll(model, prompt, answers):
        seen.extend((prompt, answer) for answer in answers)
        return [float(len(answer)) for answer in answers]
    monkeypatch.setattr(eval_model, 'answer_nll', nll)
    model = build_model('standard', 'tiny', len(tok), dim=16, n_layer=1, n_head=2, max_length=2048)
    for name,score in (('opinions', score_classification), ('reading', score_choice)):
        ds,rows = load_choice_rows(name, None, 2, 0)
        for form in (PromptForm(), PromptForm(chat_template=True, system_prompt='Be brief.')):
            seen.clear()
            score(EvalModel(model, tok, form=form), ds, rows)
            before,answers = tok.decode(seen[0][0]),[tok.decode(a) for _,a in seen]
            if not form.chat_template: assert '<user>' not in before
            else:
                asked = ds.prompt(rows[0]).strip()
                assert before == f'<system>Be brief.\n<user>{asked}\n<assistant>'
                assert answers[0] == answers[0].strip() and ds.target(rows[0]).strip() in answers

def test_candidates_are_scored_as_the_answers_that_were_learnt():
    tok = byte_tokenizer()
    tok.chat_template = CHAT
    model = build_model('standard', 'tiny', len(tok), dim=16, n_layer=1, n_head=2, max_length=256)
    asked,answer = [dict(role='user', content='2+2?')],dict(role='assistant', content='four')
    (nll,), = choice_nll(model, tok, [asked], [[' four']])
    e = chat_example(tok, [*asked, answer])
    first = int(e['loss'].argmax())
    assert tok.decode(e['ids'][first:first + 4]) == 'four'
    with torch.no_grad(): logits = model(torch.as_tensor(e['ids'], dtype=torch.long)[None]).logits[0]
    scores = torch.log_softmax(logits.double(), -1)[torch.arange(first - 1, first + 3), e['ids'][first:first + 4]]
    assert nll == pytest.approx(-scores.sum().item(), rel=1e-5)

def test_sft_from_a_tuned_run_keeps_its_form_and_says_so(tuned, tmp_path):
    _,path,run = tuned
    options = dict(model=str(run), mode='sft', data_path=path, device='cpu', max_steps=1, max_length=64, batch_size=2,
                   quiet=True, plots=False)
    kept = train(output_dir=str(tmp_path/'kept'), **options)
    assert PromptForm.load(kept.path/'final') == PromptForm.load(run/'final')
    assert read_json(kept.path/'args.json')['options']['prompt_template'] == TEMPLATE
    plan = train(prompt_template='{question}?', dry_run=True, **options)
    assert f"overrules what prompts.json says: template {TEMPLATE!r}" in str(plan['note'])
    other = write_rows(tmp_path/'other', 'prompt', 'completion') # has no column `question`
    changed = train(output_dir=str(tmp_path/'changed'), **options | dict(data_path=other))
    assert read_json(changed.path/'args.json')['options']['prompt_template'] is None
    assert PromptForm.load(changed.path/'final').template is None

def test_a_resumed_run_keeps_the_form_that_it_inherited(tuned, tmp_path):
    _,path,run = tuned
    options = dict(model=str(run), mode='sft', data_path=path, device='cpu', max_length=64, batch_size=2, quiet=True,
                   plots=False, max_steps=2, save_steps=1, lr_scheduler_type='constant')
    whole = train(output_dir=str(tmp_path/'run'), **options)
    ends = {f: (whole.path/'final'/f).read_bytes() for f in ('prompts.json', 'model.safetensors')}
    for name in ('final', 'checkpoints/step_000002'): shutil.rmtree(whole.path/name)
    (whole.path/'summary.json').unlink()
    again = train(resume=str(whole.path), quiet=True)
    assert PromptForm.load(again.path/'final').template == TEMPLATE
    assert {f: (again.path/'final'/f).read_bytes() for f in ends} == ends

def test_a_mixture_is_asked_in_the_prompts_of_its_datasets(tuned, tmp_path):
    _,_,run = tuned
    mixed = train(model=str(run), datasets=['arithmetic', 'recall'], device='cpu', max_steps=1, max_length=64, limit=20,
                  batch_size=2, quiet=True, plots=False, output_dir=str(tmp_path/'run'))
    assert PromptForm.load(mixed.path/'final') == PromptForm()
