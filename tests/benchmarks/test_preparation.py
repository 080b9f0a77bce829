"""Preparation of contestants: gradients between steps."""

from __future__ import annotations

import dataclasses

import torch
from bench_rows import TINY, TRAINING_STEP, TRAINING_STEP_CONTESTANTS, TRIO
from stackelberg_fused.benchmarks.preparation import PreparedContestant, gradient_sets


def test_new_gradients_are_other_objects_at_other_addresses():
    workload = dataclasses.replace(TINY, new_gradients=True)
    start = workload.tensors("cpu", 1, 1.0)
    prepared = PreparedContestant.build(TRIO[0], workload, start)
    action = prepared.action("cpu", *gradient_sets(workload, "cpu", 1))
    seen = []
    for _ in range(2):
        action.setup()
        seen.append([(id(p.grad), p.grad.data_ptr()) for p in prepared.params])
    assert not set(seen[0]) & set(seen[1])


def test_gradients_of_a_training_step_are_cleared_and_filled_before_each():
    for contestant in TRAINING_STEP_CONTESTANTS:
        start = TRAINING_STEP.tensors("cpu", 1, 1.0)
        prepared = PreparedContestant.build(contestant, TRAINING_STEP, start)
        (grads,) = gradient_sets(TRAINING_STEP, "cpu", 1)
        action = prepared.action("cpu", grads)
        stays = contestant.name.endswith("flattened")
        places = [p.grad.data_ptr() for p in prepared.params]
        for _ in range(2):
            action.setup()
            given = [p.grad for p in prepared.params]
            assert [g.data_ptr() for g in given] == places
            assert all(map(torch.equal, given, grads))
            action.call()
            for p, own in zip(prepared.params, given, strict=True):
                assert (p.grad is own and not own.any()) if stays else p.grad is None
