from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import toy

from jaxclone.sharding.mesh import MeshConfig
from jaxclone.train.errors import Interrupted, RunError
from jaxclone.train.health import Watch
from jaxclone.train.loop import fit, run_folder
from jaxclone.train.task import RunConfig
from jaxclone.types import UserError


@pytest.fixture
def config(toy_corpus: Path, tmp_path: Path) -> RunConfig:
    return toy.config(toy_corpus, tmp_path / "run")


def lines(config: RunConfig) -> list[dict]:
    text = (run_folder(config) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def checkpoints(config: RunConfig) -> list[str]:
    return sorted(path.name for path in (run_folder(config) / "checkpoints").iterdir())


def test_the_folder_of_a_run(config: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(config, valid=config.data, eval_every=4, eval_batches=2)
    state, summary = fit(config, toy.task(config))
    assert int(state.step) == 6
    assert summary["steps"] == 6
    assert summary["resumed_from"] == 0
    assert summary["parameters"] == sum(x.size for x in toy.parameters(state).values())

    found = lines(config)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert all(b["seconds"] >= a["seconds"] for a, b in itertools.pairwise(found))
    steps = [line for line in found if "loss" in line]
    assert {"loss", "grad_norm", "learning_rate", "guess", "weight"} <= set(steps[0])
    for line in steps[1:]:  # the first one compiles
        assert line["audio_seconds_per_second"] > 0
        assert 0 <= line["data_wait_fraction"] <= 1
    assert np.allclose([line["learning_rate"] for line in steps[:3]], [1e-3, 2e-3, 3e-3])
    assert set(found[-1]) == {"step", "seconds", "valid/loss", "valid/guess"}
    assert summary["metrics"]["valid/loss"] == found[-1]["valid/loss"]
    assert summary["metrics"]["loss"] == found[-2]["loss"]

    folder = run_folder(config)
    assert (folder / "config.json").is_file()
    assert checkpoints(config) == ["4", "6"]
    for step in ("4", "6"):
        sound, rate = soundfile.read(folder / "media" / step / "voices" / "first.wav")
        assert (len(sound), rate) == (3200, 16_000)
        assert (folder / "media" / step / "kernel.png").read_bytes().startswith(b"\x89PNG")

    out, err = capfd.readouterr()
    assert out == ""
    assert "6/6" in err
    assert "s audio/s" in err
    assert "waiting for data" in err


def test_evaluation_takes_the_same_batches_each_time(config: RunConfig) -> None:
    config = dataclasses.replace(config, valid=config.data, eval_every=2, steps=4)
    task = toy.task(config)
    still = dataclasses.replace(
        task, step=lambda s, b: (s.replace(step=s.step + 1), task.step(s, b)[1])
    )
    fit(config, still)
    first, second = [line["valid/loss"] for line in lines(config) if "valid/loss" in line]
    assert first == second


def test_a_finished_run_is_not_run_again(config: RunConfig) -> None:
    first = fit(config, toy.task(config))
    before = lines(config)
    again = fit(config, toy.task(config))
    assert again.summary["compiles"] == 0
    assert again.summary["metrics"] == first.summary["metrics"]
    assert lines(config) == before
    for name, value in toy.parameters(first.state).items():
        np.testing.assert_array_equal(toy.parameters(again.state)[name], value)


def test_lines_after_the_checkpoint_are_forgotten(config: RunConfig) -> None:
    config = dataclasses.replace(config, steps=4)
    fit(config, toy.task(config))
    kept = lines(config)
    with (run_folder(config) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "seconds": 9.0, "loss": 1.0}\n{"step": 6, "sec')
    fit(dataclasses.replace(config, steps=5), toy.task(config))
    assert lines(config)[:-1] == kept
    assert lines(config)[-1]["step"] == 5
    assert lines(config)[-1]["seconds"] >= kept[-1]["seconds"]


def test_a_metric_that_is_not_finite_ends_the_run(config: RunConfig) -> None:
    message = r"^step 5: guess is nan; the last checkpoint is of step 4, in [^\n]*/checkpoints$"
    with pytest.raises(RunError, match=message):
        fit(config, toy.task(config, bad_step=5))
    assert checkpoints(config) == ["2", "4"]
    _, summary = fit(config, toy.task(config))
    assert summary["resumed_from"] == 4
    assert [line["step"] for line in lines(config)] == [1, 2, 3, 4, 5, 6]


def test_nothing_is_saved_of_a_step_that_is_not_finite(config: RunConfig) -> None:
    with pytest.raises(RunError, match=r"^step 2: guess is nan; nothing had been saved$"):
        fit(config, toy.task(config, bad_step=2))
    assert checkpoints(config) == []


def test_parameters_that_are_not_finite_are_not_saved(config: RunConfig) -> None:
    message = r"^step 2: model/params/Conv_0/bias is not finite; nothing had been saved$"
    with pytest.raises(RunError, match=message):
        fit(config, toy.task(config, bad_parameters=2))
    assert checkpoints(config) == []


def test_updates_without_a_finite_gradient_are_skipped(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    task = toy.task(config, bad_gradients=(2, 3, 5), max_skips=2)
    state, summary = fit(config, task)
    assert summary["compiles"] == 1
    found = lines(config)
    assert [line["skipped"] for line in found] == [0, 1, 1, 0, 1, 0]
    assert [line["skipped_steps"] for line in found] == [0, 1, 2, 2, 3, 3]
    assert ["grad_norm" in line for line in found] == [True, False, False, True, False, True]
    assert all(np.isfinite(x).all() for x in toy.parameters(state).values())
    assert caplog.messages[0].startswith("step 2: 1 updates so far were skipped")
    assert len(caplog.messages) == 3


def test_too_many_skipped_in_a_row_end_the_run(config: RunConfig) -> None:
    task = toy.task(config, bad_gradients=(3, 4, 5), max_skips=2)
    with pytest.raises(RunError, match=r"^step 5: grad_norm is nan; the last .* is of step 4"):
        fit(config, task)
    # The count is in the checkpoint: the run that continues has not got two more to spare.
    with pytest.raises(RunError, match=r"^step 5: grad_norm is nan; the last .* is of step 4"):
        fit(config, task)


def test_skipping_changes_no_finite_step(config: RunConfig) -> None:
    plain = fit(config, toy.task(config), run_dir=Path(config.out) / "plain").state
    ready = fit(config, toy.task(config, max_skips=3), run_dir=Path(config.out) / "ready").state
    # Two programs, which XLA may round otherwise; that nothing else differs, test_optim shows.
    for name, value in toy.parameters(plain).items():
        np.testing.assert_allclose(toy.parameters(ready)[name], value, atol=1e-7)


def test_collapse_is_told_once_with_what_to_try(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch("weight", 1e9, 2, "it is always low", "something else")
    fit(config, dataclasses.replace(toy.task(config), watches=(watch,)))
    (line,) = caplog.messages
    assert line == (
        "step 3: weight is 80, below 1e+09 since step 1: it is always low; try something else"
    )


def test_collapse_is_told_of_a_run_that_is_stopped_again_and_again(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch("weight", 1e9, 3, "it is always low", "something else")
    task = dataclasses.replace(toy.task(config), watches=(watch,))
    told = []
    for steps in (2, 5, 6):
        fit(dataclasses.replace(config, steps=steps), task)
        told.append(list(caplog.messages))
        caplog.clear()
    assert [len(lines) for lines in told] == [0, 1, 1]  # each start says it once
    assert told[1][0].startswith("step 4: weight is 80, below 1e+09 since step 1")


def test_an_evaluation_of_nothing_ends_the_run(config: RunConfig) -> None:
    config = dataclasses.replace(config, valid=config.data)
    nothing = {"loss": np.float32(0), "weight": np.float32(0)}
    task = dataclasses.replace(toy.task(config), evaluate=lambda state, batch: nothing)
    with pytest.raises(RunError, match="nothing in the validation split counts"):
        fit(config, task)


def test_an_evaluation_that_is_not_finite_ends_the_run(config: RunConfig) -> None:
    config = dataclasses.replace(config, valid=config.data)
    task = toy.task(config)
    task = dataclasses.replace(task, evaluate=lambda state, batch: {"loss": state.step / 0})
    message = r"^step 6: valid/loss is inf; the last checkpoint is of step 4"
    with pytest.raises(RunError, match=message):
        fit(config, task)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(config: RunConfig, number: signal.Signals) -> None:
    config = dataclasses.replace(
        config, valid=config.data, eval_every=2, eval_batches=1, checkpoint_every=0, steps=50
    )
    task = toy.task(config)

    def showcase(state, batch):
        if int(state.step) == 2:
            os.kill(os.getpid(), number)
        return {}

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"^stopped by a signal after step \d and saved") as stop:
        fit(config, dataclasses.replace(task, showcase=showcase))
    assert stop.value.exit_code == 75
    assert signal.getsignal(number) is before
    (saved,) = checkpoints(config)
    assert f"after step {saved} " in str(stop.value)
    short = dataclasses.replace(config, steps=int(saved) + 1)
    assert fit(short, task).summary["resumed_from"] == int(saved)


def test_a_long_time_since_the_last_save_is_a_reason_to_save(config: RunConfig) -> None:
    config = dataclasses.replace(config, checkpoint_every=0, checkpoint_minutes=0.0, keep=10)
    fit(config, toy.task(config))
    # The processes agree on it one step later, so it is every second step at the most.
    assert checkpoints(config) == ["2", "4", "6"]


def test_only_what_leaves_the_run_as_it_is_may_change(config: RunConfig) -> None:
    config = dataclasses.replace(config, steps=2)
    fit(config, toy.task(config))
    harmless = dataclasses.replace(
        config,
        steps=3,
        log_every=5,
        keep=7,
        microbatches=2,
        data=dataclasses.replace(config.data, prefetch=2),
    )
    assert fit(harmless, toy.task(harmless)).summary["resumed_from"] == 2
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, crop_seconds=0.4))
    with pytest.raises(UserError, match=r"^data\.crop_seconds is not what the run in .* was"):
        fit(other, toy.task(other))


def test_another_model_is_one_line(config: RunConfig) -> None:
    fit(dataclasses.replace(config, steps=2), toy.task(config))
    message = (
        r"^checkpoint .*/checkpoints/2 is of another model: model/opt_state/1/mu/Conv_0/bias is "
        r"\(16,\) there, \(8,\) here$"
    )
    with pytest.raises(UserError, match=message):
        fit(config, toy.task(config, width=8))


@pytest.mark.parametrize("folder", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_one_line(
    config: RunConfig, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / folder
    with pytest.raises(UserError, match=rf"^the run folder {path} cannot be written: [\w ]+$"):
        fit(config, toy.task(config), run_dir=path)


def test_batches_that_do_not_divide_are_one_line(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"^microbatches 3 does not divide data\.batch_size 8$"):
        dataclasses.replace(config, microbatches=3)


def test_a_mesh_that_does_not_fit_is_one_line(config: RunConfig) -> None:
    config = dataclasses.replace(config, mesh=MeshConfig(data=2))
    with pytest.raises(UserError, match="a mesh of data=2 x fsdp=1 x tensor=1 does not fit 1"):
        fit(config, toy.task(config))


def test_a_run_starts_from_pretrained_models(config: RunConfig) -> None:
    still = dataclasses.replace(config, steps=0)
    source = fit(still, toy.task(still), run_dir=Path(config.out) / "source").state
    given = jax.tree.map(lambda x: x + 1, source.model.params)
    state, _ = fit(still, toy.task(still), pretrained={"loudness": given})
    for name, value in toy.parameters(state).items():
        np.testing.assert_array_equal(value, toy.parameters(source)[name] + 1)


def test_pretrained_models_that_do_not_fit_are_one_line(config: RunConfig) -> None:
    narrow = fit(dataclasses.replace(config, steps=0), toy.task(config, width=8)).state
    message = (
        r"^the pretrained models do not fit this run: model/opt_state/1/mu/Conv_0/bias is \(8,\), "
        r"not \(16,\)$"
    )
    with pytest.raises(UserError, match=message):
        fit(
            config,
            toy.task(config),
            pretrained={"loudness": narrow.model.params},
            run_dir=Path(config.out) / "other",
        )


def test_as_a_command_it_is_stopped_and_started(config: RunConfig, toy_corpus: Path) -> None:
    command = [sys.executable, toy.__file__, "--data.corpus", str(toy_corpus)]
    command += ["--out", config.out, "--checkpoint_every", "0"]
    with subprocess.Popen(
        [*command, "--steps", "100000"], env=toy.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        toy.wait_for_step(run_folder(config), 20, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 75
    assert err.splitlines()[-1].startswith("stopped by a signal after step ")
    (saved,) = checkpoints(config)
    assert int(saved) >= 20
    assert [line["step"] for line in lines(config)] == list(range(1, int(saved) + 1))
