"""What a run makes is scored at each evaluation, on the host."""

from __future__ import annotations

import dataclasses

import numpy as np
import toy

from jaxclone.train.loop import fit
from jaxclone.train.tracking import read_metrics


def test_the_judge_hears_the_copies_of_each_evaluation(toy_corpus, tmp_path):
    data = toy.config(toy_corpus, tmp_path).data
    run = toy.config(toy_corpus, tmp_path, valid=data, steps=4, eval_every=2, eval_batches=1)
    task = dataclasses.replace(
        toy.task(run),
        copies=lambda state, batch: (
            np.asarray(batch.waveform),
            np.asarray(batch.waveform) / 2,
            np.asarray(batch.length),
        ),
    )
    heard = []

    def judge(truth, copy, length):
        heard.append(truth)
        assert truth.shape == copy.shape == (8, 3200)
        assert length.shape == (8,)
        return {"likeness": float(np.mean(copy[truth != 0] / truth[truth != 0]))}

    fit(run, task, judge=judge)
    scores = {
        line["step"]: line["valid/likeness"]
        for line in read_metrics(tmp_path)
        if "valid/likeness" in line
    }
    assert scores == {2: 0.5, 4: 0.5}
    np.testing.assert_array_equal(*heard)  # always of the same recordings

    # A task that makes none, or nobody to judge: nothing is scored.
    for number, (other, who) in enumerate([(toy.task(run), judge), (task, None)]):
        folder = tmp_path / str(number)
        fit(dataclasses.replace(run, out=str(folder)), other, judge=who)
        assert not any("valid/likeness" in line for line in read_metrics(folder))
        assert any("valid/loss" in line for line in read_metrics(folder))
    assert len(heard) == 2
