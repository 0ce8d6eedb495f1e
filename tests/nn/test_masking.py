"""Span masks and negatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.nn.masking import MaskingConfig, mask_spans, sample_negatives
from jaxclone.types import UserError

PUBLISHED = MaskingConfig()


def keys(n, seed=0):
    return rng.per_example(rng.root(seed), jnp.arange(n))


def simulate(length, config, trials, seed=0):
    """Frames under spans as the published code draws them, before it evens them out."""
    random = np.random.default_rng(seed)
    total = 0
    for _ in range(trials):
        spans = max(int(config.start_probability * length + random.random()), config.min_spans)
        starts = random.choice(length - config.span + 1, spans, replace=False)
        total += len({start + i for start in starts for i in range(config.span)})
    return total / trials


@pytest.mark.parametrize("length", [30, 100, 499])
def test_as_many_frames_as_the_published_process_masks(length):
    masked = mask_spans(keys(2), jnp.full(2, length), length, PUBLISHED)
    np.testing.assert_allclose(masked.mask.sum(1), simulate(length, PUBLISHED, 2000), atol=0.8)


def test_about_half_of_ten_seconds():
    masked = mask_spans(keys(1), jnp.array([499]), 499, PUBLISHED)
    assert masked.mask.mean() == pytest.approx(0.49, abs=0.01)


def test_every_frame_as_often_as_in_the_published_process():
    length, trials = 60, 4000
    masked = mask_spans(keys(trials), jnp.full(trials, length), length, PUBLISHED)
    often = np.asarray(masked.mask.mean(0))
    np.testing.assert_allclose(often[10:-10], often[10:-10].mean(), atol=0.04)
    assert often[0] < often[5] < often[10]  # fewer spans can cover the ends


def test_whole_spans_but_for_the_last():
    masked = mask_spans(keys(50), jnp.full(50, 200), 200, PUBLISHED)
    for row in np.asarray(masked.mask).astype(int):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        runs = edges[1::2] - edges[::2]
        # The last span is cut at its end: at most one run is short, and not by joining two.
        assert (runs < PUBLISHED.span).sum() <= 1


def test_depends_on_key_and_length_alone():
    length = jnp.array([80, 43, 12])
    narrow = mask_spans(keys(3), length, 80, PUBLISHED)
    wide = jax.jit(mask_spans, static_argnums=(2, 3))(keys(3), length, 200, PUBLISHED)
    np.testing.assert_array_equal(narrow.mask, wide.mask[:, :80])
    assert not wide.mask[:, 80:].any()
    turned = mask_spans(keys(3)[::-1], length[::-1], 80, PUBLISHED)
    np.testing.assert_array_equal(narrow.mask, turned.mask[::-1])


@pytest.mark.parametrize("length", [0, 1, 2, 3, 9, 10, 11, 25])
def test_short_utterances(length):
    masked = mask_spans(keys(1), jnp.array([length]), 64, PUBLISHED)
    count = int(masked.mask.sum())
    assert not masked.mask[0, length:].any()
    assert count == 0 if length < 3 else 2 <= count < length


def test_list_holds_the_mask():
    masked = mask_spans(keys(3), jnp.array([100, 40, 2]), 100, PUBLISHED)
    for mask, index, valid in zip(masked.mask, masked.index, masked.valid):
        np.testing.assert_array_equal(np.flatnonzero(mask), index[valid])


def test_list_of_all_frames_tells_which_are_hidden():
    length = jnp.array([100, 40, 2])
    masked = mask_spans(keys(3), length, 100, PUBLISHED)
    np.testing.assert_array_equal(masked.hidden, masked.valid)
    everything = masked.all_compared(length)
    np.testing.assert_array_equal(everything.mask, masked.mask)
    np.testing.assert_array_equal(everything.hidden, masked.mask)
    for index, valid, n in zip(everything.index, everything.valid, length):
        np.testing.assert_array_equal(index[valid], np.arange(n))


def test_negatives_are_other_masked_frames_drawn_evenly():
    valid = jnp.arange(12) < jnp.array([12, 7, 0])[:, None]
    negatives = np.asarray(sample_negatives(keys(3), valid, 5000))
    for example, n in enumerate((12, 7)):
        for place in range(n):
            drawn = np.bincount(negatives[example, place], minlength=12)
            assert drawn[place] == 0
            assert (drawn[n:] == 0).all()
            others = np.delete(drawn[:n], place) / 5000
            np.testing.assert_allclose(others, 1 / (n - 1), atol=0.03)
    assert (negatives[2] == 0).all()


def test_negatives_do_not_depend_on_padding():
    valid = jnp.arange(20) < jnp.array([9, 6])[:, None]
    short = sample_negatives(keys(2), valid[:, :9], 4)
    np.testing.assert_array_equal(short, sample_negatives(keys(2), valid, 4)[:, :9])


def test_bad_probability():
    with pytest.raises(
        UserError, match=r"0 < start_probability < 1 and span >= 1, got 0\.65 and 0"
    ):
        MaskingConfig(start_probability=0.65, span=0)
