"The 156 names that notebooks use most, of every package, and those of fastai: `from lmnotes.all import *`"
from fastai.basics import *
from fastai.callback.progress import *
from fastai.callback.schedule import *

from lmnotes.core import (
    env_info,
    format_count,
    InputError,
    parse_count,
    pick_device,
    Registry,
    RunError,
    seed_for,
)
from lmnotes.dtypes import pick_dtype
from lmnotes.files import find_checkpoint, model_folder, new_run_folder, read_json, read_jsonl, write_json
from lmnotes.plugins import import_plugins
from lmnotes.data.bin_packing import pack_sequences
from lmnotes.data.builtin import builtin_sources
from lmnotes.data.catalog import catalog, Dataset, find_dataset, register_dataset
from lmnotes.data.classification.data import label_data
from lmnotes.data.contamination import find_contamination
from lmnotes.data.contamination_fingerprint import load_fingerprint, overlap, training_fingerprint
from lmnotes.data.dataloader import LMData
from lmnotes.data.dataset_splits import load_rows
from lmnotes.data.load import load_data
from lmnotes.data.mixtures.data import mixture_data
from lmnotes.data.sft import task_data
from lmnotes.data.sft_examples import encode_rows, render_loss_mask
from lmnotes.data.shards.data import shard_data
from lmnotes.data.shards.tokenize import tokenize_dataset
from lmnotes.data.shards.validate import validate_shards
from lmnotes.data.sources.files import Rows
from lmnotes.data.streaming.data import stream_data
from lmnotes.data.token_encoding import bits_per_byte
from lmnotes.data.tokenizers import bpe_tokenizer, byte_tokenizer, get_tokenizer
from lmnotes.models.architectures.midpoint import MidpointBlock
from lmnotes.models.architectures.moe import MoE
from lmnotes.models.architectures.recurrent import Recurrent
from lmnotes.models.architectures.resonance import AssociativeResonance, Resonance
from lmnotes.models.architectures.reversible import ReversibleBlock
from lmnotes.models.attention import Attention, make_attention_mask
from lmnotes.models.blocks import residuals
from lmnotes.models.build import build_model, count_parameters, model_sizes, models
from lmnotes.models.causality import causality_findings, check_causal
from lmnotes.models.chunked_loss import head_cross_entropy
from lmnotes.models.config import LMConfig, rewrites
from lmnotes.models.conformance import check_conformance, conformance_table
from lmnotes.models.decoder import LM
from lmnotes.models.flops_and_memory import activation_bytes, model_flops, parameter_kinds
from lmnotes.models.generation import generate, generate_batch
from lmnotes.models.hf.hf_load import hub_model
from lmnotes.models.layers import ffns, mixers, norms
from lmnotes.models.lora import add_lora, load_lora, merge_lora
from lmnotes.models.model_zoo import models_table
from lmnotes.models.planted_leaks import planted_leaks
from lmnotes.models.task_heads import add_task_head
from lmnotes.quantizers.bit_allocation import allocate_bits, QuantConfig, QuantizedModel
from lmnotes.quantizers.packed_export import export_dense
from lmnotes.quantizers.packed_layers import stored_bytes
from lmnotes.quantizers.packed_model import is_packed, load_packed, pack
from lmnotes.quantizers.quantization import quantize, quantizers
from lmnotes.quantizers.size_report import bytes_by_kind, size_table
from lmnotes.quantizers.ste import straight_through
from lmnotes.quantizers.ternary import ternarize, TernaryLinear
from lmnotes.sharing.patterns import sharing_patterns
from lmnotes.sharing.shared_codes import shared_quantized_layers
from lmnotes.sharing.sharing_report import (
    measure_model_cost,
    model_cost_table,
    safetensors_header_bytes,
    unique_storage_bytes,
    weight_file_bytes,
)
from lmnotes.sharing.strategies import sharing_strategies
from lmnotes.sharing.weight_sharing import parse_sharing, share
from lmnotes.evaluation.evaluate import evaluate_model
from lmnotes.evaluation.item_files import read_items, rescore_items
from lmnotes.evaluation.memory import peak_memory, saved_bytes
from lmnotes.evaluation.metric_names import register_metric
from lmnotes.evaluation.metrics import evaluate_lm, lm_metrics, LMScores
from lmnotes.evaluation.speed import decoding_speed, training_speed
from lmnotes.evaluation.scores import Scores
from lmnotes.evaluation.task_suite import eval_tasks, evaluate_tasks, register_task
from lmnotes.training.checkpoints import Checkpoints, load_run, save_run
from lmnotes.training.distributed.data_parallel import Distributed
from lmnotes.training.interface.fastai_methods import predictions_table
from lmnotes.training.learner import lm_learner, LMLearner
from lmnotes.training.learner_metrics import evaluate
from lmnotes.training.optimizers import optimizers
from lmnotes.training.options import TrainOptions
from lmnotes.training.precision import MixedPrecisionCallback
from lmnotes.training.schedules import Schedule, schedules
from lmnotes.training.train import train
from lmnotes.rl.grpo import grpo
from lmnotes.rl.reward_models import train_reward_model
from lmnotes.rl.rewards import compute_reward, correctness
from lmnotes.rl.rl_evaluation import held_out_scores
from lmnotes.comparison.comparison import compare, compare_models, rerun
from lmnotes.comparison.result import Comparison
from lmnotes.comparison.ladder import ladder
from lmnotes.comparison.ledger import confirm, read_ledger
from lmnotes.comparison.statistics.differences import score_difference
from lmnotes.comparison.statistics.factorial import factorial_effects
from lmnotes.comparison.statistics.further_seeds import more_seeds
from lmnotes.comparison.statistics.paired import paired_difference
from lmnotes.comparison.statistics.verdicts import judge, verdict
from lmnotes.reports.comparison_report import write_report
from lmnotes.reports.glance import interval_chart_svg, table_text
from lmnotes.reports.model_card import model_card
from lmnotes.reports.run_report import report_runs
from lmnotes.benchmarks.bench import run_benches
from lmnotes.app.live_monitor import live
from lmnotes.app.mask_viewer import mask_viewer
from lmnotes.app.model_builder import model_builder
from lmnotes.app.run_explorer import RunExplorer
