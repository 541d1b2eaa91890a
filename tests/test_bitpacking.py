"Packed models keep their bits, their logits and their memory, and every mistake costs one line"
import os
import subprocess
import sys

import pytest
import torch
from forked import run as run_forked

from lmnotes.core import InputError, RunError
from lmnotes.models import build_model
from lmnotes.models.hf.hf_load import find_model, hub_model
from lmnotes.quantizers import kernels
from lmnotes.quantizers.bit_allocation import QuantConfig, QuantizedModel
from lmnotes.quantizers.bitpacking import layout_levels, layouts, pack_codes, pack_matrix, packed_bytes, unpack_codes
from lmnotes.quantizers.packed_export import export_dense, packed_file_sizes
from lmnotes.quantizers.packed_file import read_packed, read_packed_header, tensor_offsets
from lmnotes.quantizers.packed_layers import stored_bytes
from lmnotes.quantizers.packed_model import is_packed, load_packed, pack
from lmnotes.quantizers.quantization import quantize
from lmnotes.quantizers.size_report import bytes_by_kind
from lmnotes.sharing.sharing_report import safetensors_header_bytes

IDS = torch.randint(256, (1, 12), generator=torch.Generator().manual_seed(0))

def run(*words):
    env = os.environ | dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    return run_forked([sys.executable, '-m', 'lmnotes', *map(str, words)], env=env, capture_output=True, text=True)

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "A ternary model as training leaves it, and packed"
    d = tmp_path_factory.mktemp('packed')
    torch.manual_seed(0)
    from lmnotes.data.tokenizers import get_tokenizer
    model = build_model('standard+ternary:all:act8').eval()
    model.save_pretrained(d/'full')
    get_tokenizer('bytes').save_pretrained(d/'full')
    pack(d/'full', d/'packed', verbose=False)
    return d, model

# ---- bytes

@pytest.mark.parametrize('layout', list(layouts))
def test_codes_come_back_in_every_shape(layout):
    g = torch.Generator().manual_seed(0)
    for shape in [(n, m) for n in (1, 4, 5, 8, 39, 40, 41) for m in (1, 7, 64)]:
        u = torch.randint(layout_levels(layout), shape, generator=g)
        b = pack_codes(u, layout)
        assert len(b) == packed_bytes(layout, shape) and torch.equal(unpack_codes(b, layout, shape), u.to(torch.uint8))

def test_base3_wastes_at_most_four_codes():
    for shape in [(1, 1), (7, 3), (64, 64), (101, 13)]:
        assert packed_bytes('base3', shape) == -(-shape[0]*shape[1]//5)

@pytest.mark.parametrize('name', [
    'standard+ternary', 'gpt+int3:all', 'standard+binary:all:row', 'reversible+share:alternate:lora-2+codebook:3',
    'tiny:gpt2+int2', 'tiny:t5+bits:1.58:embeddings',
])
def test_reported_sizes_are_those_of_the_file(name, tmp_path):
    model = build_model(name)
    made = pack(model, tmp_path/'p', verbose=False)
    in_file = sum(end - start for start,end in tensor_offsets(tmp_path/'p'/'model.safetensors').values())
    assert stored_bytes(model) == bytes_by_kind(model)['all']['now'] == in_file < made.file_bytes
    per_kind = packed_file_sizes(model, tmp_path/'p')
    assert made.file_bytes - in_file == per_kind['header']
    now = {k: v['now'] for k,v in bytes_by_kind(model).items() if k not in ('all', 'other')}
    assert now.items() <= per_kind.items()

def test_a_compression_ratio_is_that_of_the_file(tmp_path):
    q = QuantizedModel(build_model('standard'), QuantConfig())
    n = sum(p.numel() for p in q.model.parameters())
    made = pack(q.model, tmp_path/'p', verbose=False)
    header = safetensors_header_bytes(made.path/'model.safetensors')
    assert q.compression_ratio() == 4*n/q.stored_bytes() and q.stored_bytes() + header == made.file_bytes

def test_packing_that_changes_the_model_leaves_nothing(tmp_path, monkeypatch):
    def other(m, layout): # another scale than the model computes with
        parts = [pack_matrix(c, layout) for c in m.quantized_weight().row_parts]
        for p in parts: p.scale = p.scale*2
        return parts
    monkeypatch.setattr('lmnotes.quantizers.packed_layers.pack_layer', other)
    with pytest.raises(RunError, match='packing gives another model'):
        pack(build_model('standard+ternary'), tmp_path/'p', verbose=False)
    assert not list(tmp_path.iterdir())

def test_two_threads_and_one_agree_to_the_bit():
    lin = quantize(torch.nn.Sequential(torch.nn.Linear(512, 2003)), 'ternary:act8', verbose=False)[0].eval()
    p = pack_matrix(lin.quantized_weight())
    x = torch.randn(1, 512, generator=torch.Generator().manual_seed(1))
    was = torch.get_num_threads()
    try:
        y = []
        for n in (1, 3):
            torch.set_num_threads(n)
            y.append((kernels.packed_product(p, x, 8), kernels.packed_product(p, x)))
    finally:
        torch.set_num_threads(was)
    assert torch.equal(y[0][0], y[1][0]) and torch.equal(y[0][1], y[1][1])

def test_without_numba_torch_does_the_same(saved, monkeypatch):
    d, model = saved
    monkeypatch.setitem(sys.modules, 'numba', None)
    kernels.available_kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="pip install 'lmnotes\\[quant\\]'"), torch.no_grad():
            z = load_packed(d/'packed')(IDS).logits
        with torch.no_grad():
            assert (z - model(IDS).logits).abs().max() < 1e-5
    finally:
        kernels.available_kernels.cache_clear()

# ---- folders

def test_a_packed_folder_is_a_model_anywhere(saved):
    d, model = saved
    assert find_model(d/'packed')[0] == 'packed' and is_packed(d/'packed') and not is_packed(d/'full')
    again = build_model(str(d/'packed'))
    with torch.no_grad():
        assert (again(IDS).logits - model(IDS).logits).abs().max() < 1e-5
    assert not any(p.dim() == 2 for p in again.parameters()) and not again.training
    matrices, _, _ = read_packed(d/'packed'/'model.safetensors')
    assert all(p.layout == 'base3' for p in matrices.values())

def test_header_says_what_lies_there(saved):
    head = read_packed_header(saved[0]/'packed'/'model.safetensors')
    assert head['version'] == 2 and head['shared'] and all(m['kind'] == 'ternary' for m in head['matrices'].values())

@pytest.mark.parametrize('family', ['llama', 't5'])
def test_a_hub_model_is_shared_quantized_packed_loaded_and_generates(family, tmp_path):
    torch.manual_seed(0)
    model = hub_model(f'tiny:{family}').eval()
    from lmnotes.sharing import share
    quantize(
        share(model, 'layers' if family == 'llama' else 'encoder-decoder', verbose=False),
        'ternary:all',
        verbose=False,
    )
    made = pack(model, tmp_path/'p', verbose=False)
    again = build_model(str(tmp_path/'p'))
    text = [m.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (model, again)]
    assert torch.equal(*text) and made.file_bytes == os.path.getsize(tmp_path/'p'/'model.safetensors')

def test_export_is_plain(saved, tmp_path):
    d, model = saved
    export_dense(d/'packed', tmp_path/'plain', verbose=False)
    plain = build_model(str(tmp_path/'plain'))
    assert type(plain.blocks[0].mixer.part.q_proj) is torch.nn.Linear and plain.config.rewrites == []
    packed = model.blocks[0].mixer.part.q_proj.quantized_weight().dequantize()
    assert torch.equal(plain.blocks[0].mixer.part.q_proj.weight, packed)

# ---- mistakes

def test_every_flipped_byte_is_noticed(saved, tmp_path):
    import shutil
    shutil.copytree(saved[0]/'packed', tmp_path/'p')
    f = tmp_path/'p'/'model.safetensors'
    whole = f.read_bytes()
    for at in (0, 9, len(whole)//2, len(whole) - 1):
        f.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at+1:])
        with pytest.raises(InputError):
            load_packed(tmp_path/'p')
    for cut in (0, 7, 50, len(whole) - 1):
        f.write_bytes(whole[:cut])
        with pytest.raises(InputError, match='cut short'):
            load_packed(tmp_path/'p')

def test_a_packed_model_does_not_learn(saved):
    model = load_packed(saved[0]/'packed')
    with pytest.raises(InputError, match='no weights to learn with'):
        model.train()
    with pytest.raises(InputError, match='packed already'):
        pack(model, saved[0]/'again')
    with pytest.raises(InputError, match='this model is packed'):
        quantize(model, 'int4:head')
    assert not (saved[0]/'again').exists()

# ---- the command

def test_the_command_packs_and_the_others_take_it(saved, tmp_path):
    d, _ = saved
    done = run('pack', d/'full', '--output_path', tmp_path/'p', '--layout', '2bit')
    assert done.returncode == 0, done.stderr
    assert 'times smaller' in done.stdout and 'norms' in done.stdout
    text = run('generate', '--model', tmp_path/'p', '--prompt', 'ab', '--max_new_tokens', 4)
    assert text.returncode == 0 and text.stdout.startswith('ab'), text.stderr

@pytest.mark.parametrize('words,said', [
    (['FULL', '--output_path', 'PACKED'], 'is there already'),
    (['PACKED', '--output_path', 'NEW'], 'is packed already'),
    (['FULL'], '--output_path is missing'),
    (['PLAIN', '--output_path', 'NEW'], 'add --quantize'),
    (['FULL', '--output_path', 'NEW', '--layout', 'base4'], "did you mean 'base3'?"),
    (['NOWHERE', '--output_path', 'NEW'], 'there is no folder'),
])
def test_wrong_words_cost_one_line(saved, tmp_path, words, said, capsys):
    from lmnotes.app.cli import main
    d, _ = saved
    if not (d/'plain').exists(): build_model('standard').save_pretrained(d/'plain')
    where = dict(FULL=d/'full', PACKED=d/'packed', PLAIN=d/'plain', NEW=tmp_path/'new', NOWHERE=tmp_path/'nowhere')
    code = main(['pack', *(str(where.get(w, w)) for w in words)])
    err = capsys.readouterr().err
    last = err.splitlines()[-1] # a loading bar may stand before it
    assert (
        code == 2
        and last.startswith('lmnotes: ')
        and said in last
        and 'Traceback' not in err
        and not (tmp_path / 'new').exists()
    )

@pytest.mark.skipif('numba' not in kernels.available_kernels(), reason='numba is not installed')
def test_importing_the_package_does_not_import_numba():
    read = "import sys; from lmnotes.quantizers.quantization import quantizers; quantizers.names()"
    assert subprocess.run([sys.executable, '-c', f"{read}; assert 'numba' not in sys.modules"]).returncode == 0
