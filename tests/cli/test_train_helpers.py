"""Runs that need models which they do not train."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxclone.adapt.enroll import AdaptConfig
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.train import pretrained_models
from jaxclone.export.bundle import Bundle
from jaxclone.train.task import RunConfig, Task
from jaxclone.types import UserError

ENCODER, VOCODER = AudioSpec(fmin=20.0), AudioSpec(fmin=40.0)  # any config does
TASK = Task(
    init=lambda key, pretrained: None,
    step=lambda state, batch: (None, {}),
    evaluate=lambda state, batch: {},
    models=lambda state: {},
    model_configs={"vocoder": VOCODER},
    helpers={"encoder": ENCODER, "adapter": None},
)


@pytest.fixture
def start(monkeypatch):
    """The models that a run named "tuned" begins with, its bundles holding these configs."""

    def start(**configs):
        models = {name: {"kernel": np.zeros(1)} for name in configs}
        monkeypatch.setattr(
            "jaxclone.cli.train.load_bundle", lambda *_: Bundle(models, configs, AudioSpec())
        )
        init_from = ("some/bundle",) if configs else ()
        return pretrained_models(RunConfig(name="tuned", init_from=init_from), TASK)

    return start


def test_helpers_come_from_the_bundles(start):
    assert set(start(encoder=ENCODER)) == {"encoder"}
    assert set(start(encoder=ENCODER, vocoder=VOCODER, speaker=ENCODER)) == {"encoder", "vocoder"}


def test_a_helper_of_any_config_is_taken_as_it_is(start):
    for adapter in (AdaptConfig(), AdaptConfig(steps=9)):
        assert set(start(encoder=ENCODER, adapter=adapter)) == {"encoder", "adapter"}


def test_without_its_helper_a_run_does_not_start(start):
    with pytest.raises(UserError) as error:
        start()
    assert str(error.value) == (
        "tuned uses a trained encoder: name bundles that hold them with --init-from"
    )
    with pytest.raises(UserError) as error:
        start(vocoder=VOCODER, adapter=AdaptConfig())
    assert str(error.value) == (
        "--init-from some/bundle lacks the encoder that tuned uses: name another bundle beside it"
    )


def test_a_helper_of_another_config_is_named(start):
    with pytest.raises(UserError, match=r"its encoder is another model than .*: n_mels differ"):
        start(encoder=dataclasses.replace(ENCODER, n_mels=40))
