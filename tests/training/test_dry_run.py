"""What a dry run says, what it refuses, and that it writes nothing."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import refused

from refinedet.backends.interface import Backend
from refinedet.errors import TrainingError
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.settings import resolve, to_yaml
from refinedet.spec.config import ScheduleConfig, replace
from refinedet.spec.network import initial_parameters
from refinedet.spec.presets import preset
from refinedet.training.dry_run import activation_bytes, describe, turning_points
from refinedet.training.preparation import prepare_datasets

SET = ["model.image_size=[64, 128]", "input.batch_size=4", "model.schedule.steps=30"]
SET += ["model.schedule.warmup_steps=10"]


class Still(Backend):
    """It has a name, and nothing to train with."""

    name = "still"

    def missing(self):
        return None


def settings_of(*more):
    return resolve("refinedet_eighth_128", None, [*SET, *more], ("a", "b"))


def everything(folder):
    """Each file below, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def command(noise, tmp_path, monkeypatch):
    """``train --dry-run`` on the noisy images, by a backend that cannot train."""
    monkeypatch.setattr("refinedet.backends.registry.find_backend", lambda *_: Still())
    rows = [f"{r.path.name} 2,3,30,40,{r.labels[0]}" for r in noise.records[:9]]
    (tmp_path / "list.txt").write_text("\n".join([*rows, noise.records[9].path.name]))
    return (
        *("train", "--dry-run", "--run", tmp_path / "run", "--layout", "text"),
        *("--annotations", tmp_path / "list.txt", "--classes", "a,b"),
        *("--images", tmp_path / "images", "--preset", "refinedet_eighth_128"),
        *(part for text in SET for part in ("--set", text)),
    )


def test_options_of_another_layout_are_refused(run, command, tmp_path):
    """The training set would be judged in the place of what was meant."""
    list_ = tmp_path / "list.txt"
    message = "--eval-annotations: layout text needs it, to evaluate"
    refused(run(*command, "--eval-images", tmp_path), message)
    refused(run(*command, "--eval-split", "test"), "--eval-split: is not read with layout text")
    refused(run(*command, "--split", "test"), "--split: is not read with layout text; leave it out")
    voc = ("train", "--run", tmp_path / "run", "--layout", "voc", "--root", tmp_path)
    refused(run(*voc, "--annotations", list_), "--annotations: is not read with layout voc")
    refused(
        run(*voc, "--split", "x", "--images", tmp_path), "--images: is not read with layout voc"
    )


def test_a_dry_run_tells_the_run_and_writes_nothing(run, command, tmp_path):
    before = everything(tmp_path)
    status, out, err = run(*command, "--eval-annotations", tmp_path / "list.txt")
    assert (status, err) == (0, "")
    assert everything(tmp_path) == before
    message = re.sub(r"[ \n]+", " ", out)
    # The tenth image has no object: 30 steps of 4 images are 120 / 9 epochs.
    assert "9 images with objects of 2 classes" in message
    assert "10 images, after the last step" in message
    assert "30, each of 4 images on one device (still): 13.33 epochs" in message
    assert "learning rate 0.001 after 0 steps 0.03 after 10 steps" in message
    assert "after 29 steps (the last step)" in message
    count = sum(p.size for p in initial_parameters(settings_of().model, 0).values())
    assert f"{count:,} with running statistics" in message


def test_what_train_refuses_a_dry_run_refuses(run, command, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    (tmp_path / "bad.txt").write_text("0.png 30,3,2,40,1\n")
    before = everything(tmp_path)
    refused(run(*command, "--run", full), "is not empty")
    refused(run(*command, "--resume"), "no run to resume")
    refused(run(*command, "--run", full / "mine.txt" / "run"), "mine.txt")
    refused(run(*command, "--set", "model.colour=1"), "model.colour")
    refused(run(*command, "--eval-annotations", tmp_path / "bad.txt"), "bad.txt: line 1")
    refused(run(*command, "--backbone", tmp_path / "list.txt"), "list.txt")
    refused(run(*command, "--initial", tmp_path / "none"), "none: cannot read")
    refused(run(*command, "--annotations", tmp_path / "none"), "none")
    half = "model.optimizer.precision=float16"
    refused(run(*command, "--set", half), "still: trains in float32 only; set model.optimizer.prec")
    assert everything(tmp_path) == before


def test_an_unknown_backend_is_refused(run, command, monkeypatch):
    monkeypatch.undo()
    refused(run(*command, "--backend", "nosuch"), "no 'nosuch'")


def test_a_run_that_goes_on_is_told_from_where(noise, tmp_path):
    settings, folder = settings_of(), tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "settings.yaml").write_text(to_yaml(settings))
    parameters = initial_parameters(settings.model, 0)
    moving = {n: np.zeros_like(p) for n, p in parameters.items() if "moving" not in n}
    checkpoint = Checkpoint(settings, parameters, moving, 20)
    write_checkpoint(folder / "checkpoints" / "step-00000020.safetensors", checkpoint)
    before = everything(folder)
    message = describe(prepare_datasets(Still(), noise, None, settings, folder, resume=True))
    assert "20 of the steps are done" in message
    assert everything(folder) == before
    with pytest.raises(TrainingError, match="is not empty"):
        prepare_datasets(Still(), noise, None, settings, folder)


def test_the_schedule_is_told_where_it_turns():
    multistep = ScheduleConfig(steps=100, warmup_steps=5, milestones=(50, 80, 100))
    assert turning_points(multistep) == [0, 5, 50, 80, 99]
    cosine = ScheduleConfig(kind="cosine", steps=100, warmup_steps=20, milestones=())
    assert turning_points(cosine) == [0, 20, 40, 60, 80, 99]
    rising = ScheduleConfig(kind="cosine", steps=100, warmup_steps=100, milestones=())
    assert turning_points(rising) == [0, 99]
    assert turning_points(ScheduleConfig(steps=1, milestones=(1,))) == [0]


def vgg16_activations(size):
    """Numbers that the paper's VGG16 detector keeps for one square image, counted by hand.

    Of every convolution its sum, that with its bias, and after a ReLU; of the rest one each.
    """
    total, side = 0, size
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        total += 3 * count * channels * side**2
        side //= 2
        total += channels * side**2  # pooled
    total += (3 * 1024 + 3 * 1024 + 3 * 256) * side**2 + 3 * 512 * (side // 2) ** 2
    total += 512 * (size // 8) ** 2 + 512 * (size // 16) ** 2  # normalised
    for level, stride in enumerate((8, 16, 32, 64)):
        cells = (size // stride) ** 2
        # lateral1, lateral2, output: 8 with a ReLU after the sum; upsampled, its bias, the sum.
        total += 256 * cells * (9 if level == 3 else 12)
        heads = 3 * (4 + 2 + 4 + 81)
        total += 3 * heads * cells  # two a convolution, and once more as rows of anchors
    return total


def test_activations_are_those_of_the_layers():
    config = preset("refinedet_vgg16_320")
    parameters = initial_parameters(config, 0)
    actual = activation_bytes(config, parameters)
    assert actual == pytest.approx(4 * vgg16_activations(320), rel=0.01)
    wide = replace(config, image_size=(320, 640))
    assert activation_bytes(wide, parameters) == pytest.approx(2 * actual, rel=0.01)


def test_memory_and_disk_are_reckoned_as_said(noise, tmp_path, monkeypatch):
    settings = settings_of("train.keep=2")
    parameters = initial_parameters(settings.model, 0)
    held = sum(p.nbytes for p in parameters.values())
    trained = sum(p.nbytes for n, p in parameters.items() if "moving" not in n)
    monkeypatch.setattr("refinedet.training.dry_run.activation_bytes", lambda *_: 10**7)
    prepared = prepare_datasets(Still(), noise, None, settings, tmp_path / "run")
    message = describe(prepared)
    memory = (held + 2 * trained + 4 * 10**7) / 1e6
    assert f"at least {memory:.1f} MB" in message
    images = sum(r.path.stat().st_size for r in noise.records)
    disk = (3 * (held + trained) + images) / 1e6
    assert f"disk          {disk:.1f} MB: {images / 1e6:.1f} MB for the cache" in message
    assert "not enough" not in message
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5))
    assert "not enough" in describe(prepared)
