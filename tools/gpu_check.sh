#!/bin/sh
# Test and measure on a GPU what a CPU cannot show. Eight minutes at most; the figures go to gpu_check.json.
# Tried without a GPU by: LMNOTES_TEST_DEVICE=cpu tools/gpu_check.sh --quick
set -u
export LMNOTES_TEST_DEVICE="${LMNOTES_TEST_DEVICE:-cuda}"
benches='step seeds head reversible resonance ternary decode precision'
size='--size small'
case "$*" in *--quick*) size= ;; esac
failed=0
timeout 150 python -m pytest -m gpu tests/test_gpu.py || failed=1
# shellcheck disable=SC2086 # words, one by one
timeout 240 lmnotes bench $benches --device "$LMNOTES_TEST_DEVICE" --json gpu_check.json "$@" || failed=1
# shellcheck disable=SC2086
timeout 90 lmnotes bench grpo $size --device "$LMNOTES_TEST_DEVICE" --json gpu_check_grpo.json "$@" || failed=1
exit $failed
