"""How much of speech a representation tells: a linear probe for the phones of a corpus.

A logistic regression from frozen features to the phone at each frame, trained on some voices and
sentences and scored on others. The score is a yardstick, to be read beside those of the same
network before any training and of mel cepstra, which is why all are taken here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from data_pipelines.corpus import Corpus, Phones
from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.export.bundle import Bundle
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.sharding.rules import unbox
from jaxclone.types import Array, Tree, UserError, require_positive

# Waveforms in one call of an encoder.
_BATCH = 8
# Examples in one update of a probe.
_ROWS = 512
# Marks of IPA that say how a phone is stressed, not which it is.
_STRESS = "ˈˌ"

# (f32[b, t] waveforms, i32[b] lengths) -> [layers, b, frames, d] features
Features = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How a probe is trained.

    Attributes:
        recordings: of each side, training and test, at the most; drawn at random.
        frames: of each side at the most, drawn at random from those.
        updates: of training, each on 512 frames drawn at random.
        learning_rate: of Adam on standardised features, falling to 0.
        weight_decay: times the learning rate.
        seed: of all that is drawn.
    """

    recordings: int = 240
    frames: int = 24_000
    updates: int = 1500
    learning_rate: float = 1e-2
    weight_decay: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "recordings", "frames", "updates", "learning_rate")
        require_positive(self, "weight_decay", or_zero=True)


class Frames(NamedTuple):
    """Frames with their phones.

    Attributes:
        features: f32[layers, n, d].
        phones: of each frame.
    """

    features: Float[np.ndarray, "layers n d"]
    phones: list[str]


def frame_phones(phones: Phones, n_frames: int, hop_length: int, centre: float) -> list[str | None]:
    """The phone in the middle of each frame; None between phones.

    Args:
        phones: (symbol, first sample, last sample + 1), in order.
        n_frames: how many frames there are.
        hop_length: samples from one frame to the next.
        centre: the sample in the middle of frame 0.

    >>> frame_phones([("a", 0, 320), ("b", 400, 960)], 4, 320, 160.0)
    ['a', 'b', 'b', None]
    """
    middles = centre + hop_length * np.arange(n_frames)
    starts = np.array([start for _, start, _ in phones])
    places = np.searchsorted(starts, middles, side="right") - 1
    return [
        phones[place][0] if place >= 0 and middle < phones[place][2] else None
        for place, middle in zip(places, middles)
    ]


def encoder_features(config: Wav2Vec2Config, params: Tree) -> Features:
    """All hidden states of an encoder, from the input of its first layer to the last's output."""
    network = Wav2Vec2Encoder(config)

    @jax.jit
    def run(waveform: Array, length: Array) -> Array:
        return network.apply({"params": params}, waveform, length).layers

    return run


def untrained(config: Wav2Vec2Config, seed: int) -> Tree:
    """The parameters of an encoder before any training."""
    samples = 2 * config.receptive_field + config.hop_length
    waveform, length = jnp.zeros((1, samples)), jnp.array([samples])
    init = jax.jit(Wav2Vec2Encoder(config).init)
    return unbox(init(rng.root(seed), waveform, length)["params"])


def mfcc_features(spec: AudioSpec) -> Features:
    """13 mel cepstra and their first and second differences over 9 frames, one frame a hop."""
    import librosa

    def run(waveform: Array, length: Array) -> Array:
        rows = []
        for samples in np.asarray(waveform):
            cepstra = librosa.feature.mfcc(
                y=samples,
                sr=spec.sample_rate,
                n_mfcc=13,
                n_fft=spec.n_fft,
                hop_length=spec.hop_length,
                # Frame i in the middle of its hop, as everywhere else.
                center=False,
            )
            cepstra = np.concatenate(
                [cepstra, *(librosa.feature.delta(cepstra, order=order) for order in (1, 2))]
            )
            rows.append(cepstra.T)
        return np.stack(rows)[None]

    pad = (spec.n_fft - spec.hop_length) // 2
    return lambda waveform, length: run(
        np.pad(np.asarray(waveform), ((0, 0), (pad, spec.n_fft - spec.hop_length - pad))), length
    )


def collect(
    corpus: Corpus,
    records: Sequence[int],
    features: Features,
    hop_length: int,
    centre: float,
    config: ProbeConfig,
) -> Frames:
    """Features and phones of frames of recordings.

    Args:
        corpus: where they are.
        records: which; the same records give the same frames for all features of one hop.
        features: of a batch of waveforms.
        hop_length: samples between two frames.
        centre: the sample in the middle of the first frame.
        config: how many frames to take.

    Raises:
        UserError: none of the recordings has phones.
    """
    size = int(corpus.n_samples[list(records)].max())
    chosen: list[np.ndarray] = []
    phones: list[str] = []
    draw = np.random.default_rng(config.seed)
    labelled = [
        int(corpus.n_samples[record]) // hop_length for record in records
    ]  # an upper bound: pauses have none
    share = min(1.0, config.frames / max(1, sum(labelled)))
    for first in range(0, len(records), _BATCH):
        examples = [corpus[record] for record in records[first : first + _BATCH]]
        waveform = np.zeros((_BATCH, size), np.float32)
        length = np.zeros(_BATCH, np.int32)
        for row, example in enumerate(examples):
            length[row] = len(example["waveform"])
            waveform[row, : length[row]] = example["waveform"]
        found = np.asarray(features(waveform, length), np.float32)
        for row, example in enumerate(examples):
            if not example["phones"]:
                continue
            n_frames = min(int(length[row]) // hop_length, found.shape[2])
            symbols = frame_phones(example["phones"], n_frames, hop_length, centre)
            kept = [
                frame
                for frame, lucky in enumerate(draw.random(n_frames) < share)
                if lucky and symbols[frame] is not None
            ]
            chosen.append(found[:, row, kept])
            phones += [str(symbols[frame]).strip(_STRESS) for frame in kept]
    if not phones:
        raise UserError(
            f"{corpus.folder} has no phones to probe for: build it of recordings with a "
            "`.phones.json` beside each, as the embedded corpus has them"
        )
    return Frames(np.concatenate(chosen, 1), phones)


def fit_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    classes: int,
    config: ProbeConfig,
) -> Callable[[Float[np.ndarray, "m d"]], Int[np.ndarray, " m"]]:
    """Trains a logistic regression; the result gives the class of each row."""
    mean, scale = features.mean(0), features.std(0) + 1e-5
    x, y = jnp.asarray((features - mean) / scale), jnp.asarray(labels)
    tx = optax.adamw(
        optax.linear_schedule(config.learning_rate, 0.0, config.updates),
        weight_decay=config.weight_decay,
    )
    params = {"kernel": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}

    def loss_fn(params: Tree, x: Array, y: Array) -> Array:
        logits = x @ params["kernel"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def train(params: Tree, keys: Array) -> Tree:
        def update(carry: Tree, key: Array) -> tuple[Tree, None]:
            params, opt_state = carry
            rows = jax.random.randint(key, (_ROWS,), 0, len(x))
            grads = jax.grad(loss_fn)(params, x[rows], y[rows])
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), keys)
        return params

    keys = jax.random.split(rng.root(config.seed), config.updates)
    params = jax.device_get(train(params, keys))

    def predict(features: Float[np.ndarray, "m d"]) -> Int[np.ndarray, " m"]:
        return ((features - mean) / scale @ params["kernel"] + params["bias"]).argmax(-1)

    return predict


def accuracies(train: Frames, test: Frames, config: ProbeConfig) -> list[float]:
    """Of the probe of each layer, on the test frames.

    A frame whose phone is not among the training frames counts as wrong.
    """
    symbols = sorted(set(train.phones))
    index = {symbol: place for place, symbol in enumerate(symbols)}
    labels = np.array([index[symbol] for symbol in train.phones])
    truth = np.array([index.get(symbol, -1) for symbol in test.phones])
    return [
        float((fit_probe(x, labels, len(symbols), config)(y) == truth).mean())
        for x, y in zip(train.features, test.features)
    ]


def evaluate_probe(
    bundle: Bundle, corpus: Corpus, splits: tuple[str, str], config: ProbeConfig
) -> dict[str, Any]:
    """The probes of an encoder, of the same one untrained, and of mel cepstra.

    Args:
        bundle: with an encoder.
        corpus: recordings with phones.
        splits: what the probes are trained on, and other voices and sentences to score them on.
        config: of the probes.

    Returns:
        "model", "untrained" (accuracy by layer; layer 0 is the input of the first), "mfcc", "best"
        (the highest of each, over layers), "chance" (of the most frequent phone), and the numbers
        of phones, frames and voices.

    Raises:
        UserError: the bundle has no encoder, a voice is on both sides, or there are no phones.
    """
    encoder = bundle.configs.get("encoder")
    if encoder is None:
        raise UserError(f"the bundle holds {', '.join(bundle.models)}, and no encoder to probe")
    sides = _records(corpus, splits, config)
    hop = encoder.hop_length
    centre = hop / 2 if encoder.mel else encoder.receptive_field / 2 - encoder.padding
    spec = corpus.spec
    kinds = {
        "model": (encoder_features(encoder, bundle.models["encoder"]), hop, centre),
        "untrained": (encoder_features(encoder, untrained(encoder, config.seed)), hop, centre),
        "mfcc": (mfcc_features(spec), spec.hop_length, spec.hop_length / 2),
    }
    scores: dict[str, Any] = {}
    for name, (features, hop, centre) in kinds.items():
        train, test = (collect(corpus, side, features, hop, centre, config) for side in sides)
        scores[name] = accuracies(train, test, config)
    counts = {symbol: test.phones.count(symbol) for symbol in set(test.phones)}
    frequent = max(sorted(set(train.phones)), key=train.phones.count)
    return {
        "best": {name: max(scores[name]) for name in kinds},
        **scores,
        "chance": counts.get(frequent, 0) / len(test.phones),
        "phones": len(set(train.phones)),
        "frames": {"train": len(train.phones), "test": len(test.phones)},
        "voices": {
            name: len({corpus.table[record].speaker for record in side})
            for name, side in zip(("train", "test"), sides)
        },
    }


def _records(
    corpus: Corpus, splits: tuple[str, str], config: ProbeConfig
) -> tuple[list[int], list[int]]:
    """The recordings of both sides: in the languages that both have, of different voices."""
    both = [corpus.indices(split) for split in splits]
    languages = set.intersection(*({corpus.table[i].language for i in side} for side in both))
    kept = [[int(i) for i in side if corpus.table[i].language in languages] for side in both]
    shared = set.intersection(*({corpus.table[i].speaker for i in side} - {""} for side in kept))
    if shared:
        raise UserError(
            f"{min(shared)} speaks in {splits[0]} and in {splits[1]}: a probe is scored on voices "
            "that it was not trained on"
        )
    if not all(kept):
        raise UserError(f"{splits[0]} and {splits[1]} have no language in common")
    draw = np.random.default_rng(config.seed)
    train, test = (sorted(draw.permutation(side)[: config.recordings].tolist()) for side in kept)
    return train, test
