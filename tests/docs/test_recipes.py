"""The recipes of ``docs/recipes``: their numbers are the sources', and their commands run."""

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from refinedet.data.formats.coco import COCO_CLASSES
from refinedet.settings import Settings, resolve
from refinedet.spec.config import replace
from refinedet.spec.network import parameter_table
from refinedet.spec.presets import preset

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "recipes.md").read_text()
FOLDER = DOCS / "recipes"

AUTHORS = {
    # sfzhang15/RefineDet, examples/refinedet/VGG16_*.py: SGD 0.9, decay 5e-4 of weights, biases
    # at twice the rate without decay, 32 images over four GPUs, no warm-up.
    "model.optimizer.momentum": 0.9,
    "model.optimizer.weight_decay": 5e-4,
    "model.optimizer.decay_all": False,
    "model.optimizer.bias_rate": 2.0,
    "model.optimizer.clip_norm": None,
    "model.optimizer.precision": "float32",
    "model.optimizer.loss_scale": None,
    "model.schedule.kind": "multistep",
    "model.schedule.rate": 1e-3,
    "model.schedule.warmup_steps": 0,
    "model.schedule.factor": 0.1,
    "input.batch_size": 32,
    # The same, train_transform_param: each with probability 0.5, canvas of up to 4 sides.
    "input.augment.distort": 0.5,
    "input.augment.expand": 0.5,
    "input.augment.expand_ratio": 4.0,
    "input.augment.crop": True,
    "input.augment.mirror": 0.5,
    "input.augment.flip": 0.0,
}
RECIPES = {
    "modelzoo-coco": (
        "modelzoo_vgg16_320",
        {
            # Model zoo, research/cv/RefineDet, README and scripts: 8 devices of 32 images, 500
            # epochs of 458 steps, from 0.001 to 0.05 in two of them, then a cosine to 5e-5.
            "input.batch_size": 8 * 32,
            "model.schedule.kind": "cosine",
            "model.schedule.steps": 500 * 458,
            "model.schedule.rate": 0.05,
            "model.schedule.warmup_steps": 2 * 458,
            "model.schedule.warmup_rate": 0.001,
            "model.schedule.milestones": (),
            "model.schedule.final_rate": 5e-5,
            "model.optimizer.momentum": 0.9,
            "model.optimizer.weight_decay": 1.5e-4,
            "model.optimizer.decay_all": True,
            "model.optimizer.bias_rate": 1.0,
            "model.optimizer.precision": "float32",  # float16 on its Ascend
            "model.optimizer.loss_scale": None,  # 1; 1024, as there, with float16
            # Its dataset.py: whole or cropped, turned with probability 0.5, no larger canvas.
            "input.augment.expand": 0.0,
            "input.augment.crop": True,
            "input.augment.mirror": 0.5,
            "input.augment.flip": 0.0,
        },
    ),
    "paper-coco": (
        "refinedet_vgg16_320",
        AUTHORS
        | {"model.schedule.steps": 400_000, "model.schedule.milestones": (280_000, 360_000)},
    ),
    "paper-voc07": (
        "refinedet_vgg16_320",
        AUTHORS | {"model.schedule.steps": 120_000, "model.schedule.milestones": (80_000, 100_000)},
    ),
    "paper-voc12": (
        "refinedet_vgg16_320",
        AUTHORS
        | {"model.schedule.steps": 240_000, "model.schedule.milestones": (160_000, 200_000)},
    ),
    "paper-coco-voc07": (
        "refinedet_vgg16_320",
        # finetune_VGG16_VOC2007_320.py: the rate, and times 0.2 at 80,000; stepvalue has 120,000
        # too, where it ends.
        AUTHORS
        | {
            "model.schedule.steps": 120_000,
            "model.schedule.rate": 5e-5,
            "model.schedule.milestones": (80_000, 120_000),
            "model.schedule.factor": 0.2,
        },
    ),
    "paper-coco-voc12": (
        "refinedet_vgg16_320",
        # finetune_VGG16_VOC2012_320.py, likewise.
        AUTHORS
        | {
            "model.schedule.steps": 160_000,
            "model.schedule.rate": 5e-5,
            "model.schedule.milestones": (120_000, 160_000),
            "model.schedule.factor": 0.2,
        },
    ),
}


def value(settings: Settings, key: str):
    section = settings
    for name in key.split("."):
        section = getattr(section, name)
    return section


def commands(program):
    """The commands of the page, joined where a line goes on."""
    joined = PAGE.replace("\\\n", " ")
    return [
        shlex.split(line.strip())[1:]
        for line in joined.splitlines()
        if line.startswith(f"    refinedet {program} ")
    ]


def recipe_of(command):
    return Path(command[command.index("--settings") + 1]).stem


def test_every_file_is_a_recipe_and_has_a_command():
    files = sorted(path.stem for path in FOLDER.iterdir())
    assert files == sorted(RECIPES)
    assert sorted({recipe_of(command) for command in commands("train")}) == files


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_numbers_of_its_source(name):
    preset_name, facts = RECIPES[name]
    settings = resolve(None, FOLDER / f"{name}.yaml", ())
    assert {key: value(settings, key) for key in facts} == facts
    # Nothing else of the detector is changed.
    expected = preset(preset_name)
    assert (
        replace(settings.model, schedule=expected.schedule, optimizer=expected.optimizer)
        == expected
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_does_not_depend_on_the_preset(name):
    """Every number is written in its file: another preset changes none of them."""
    facts = RECIPES[name][1]
    settings = resolve("refinedet_eighth_128", FOLDER / f"{name}.yaml", ())
    assert {key: value(settings, key) for key in facts} == facts


def draw_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    image = np.full((40, 60, 3), 90, np.uint8)
    for name in names:
        cv2.imwrite(str(folder / f"{name}.jpg"), image)


def write_coco(root, split, first):
    ids = [first, first + 1]
    draw_images(root / split, [f"{i:012d}" for i in ids])
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 60, "height": 40} for i in ids]
    objects = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400,
         "iscrowd": 0}
        for i in ids
    ]  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(COCO_CLASSES, start=1)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def write_voc(root, split, name):
    draw_images(root / "JPEGImages", [name])
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n")
    (root / f"Annotations/{name}.xml").write_text(
        "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax>"
        "<ymax>30</ymax></bndbox></object></annotation>"
    )


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """A folder that has all that the page's commands name: tiny data, weights of full size."""
    root = tmp_path_factory.mktemp("recipes")
    (root / "docs").symlink_to(DOCS)
    write_coco(root / "coco", "train2017", 1)
    write_coco(root / "coco", "val2017", 11)
    for year, split in (("2007", "trainval"), ("2007", "test"), ("2012", "trainval")):
        write_voc(root / f"VOCdevkit/VOC{year}", split, f"{year}_{split}")
    table = parameter_table(preset("refinedet_vgg16_320"))
    zeros = {p.name: np.zeros(p.shape, np.float32) for p in table}
    save_file(zeros, root / "coco.safetensors")
    trunk = {
        name: zero
        for name, zero in zeros.items()
        if re.match(r"backbone\.(conv[1-5]|fc)", name) and "l2" not in name
    }
    save_file(trunk, root / "VGG_ILSVRC_16_layers_fc_reduced.caffemodel")
    return root


@pytest.mark.parametrize("command", commands("train"), ids=recipe_of)
def test_the_commands_of_the_page_would_run(run, data_folder, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in data_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    if "--initial" in command:  # what the recipe for COCO has left
        checkpoint = tmp_path / command[command.index("--initial") + 1]
        checkpoint.parent.mkdir(parents=True)
        checkpoint.symlink_to(data_folder / "coco.safetensors")
    before = sorted([*tmp_path.rglob("*"), *data_folder.rglob("*")])
    status, out, err = run(*command, "--dry-run")
    assert (status, err) == (0, ""), err
    assert sorted([*tmp_path.rglob("*"), *data_folder.rglob("*")]) == before
    facts = RECIPES[recipe_of(command)][1]
    steps, batch = facts["model.schedule.steps"], facts["input.batch_size"]
    assert f"{steps:,}, each of {batch} images on one device" in out
    if "--backbone" in command:
        assert "30 of 36 tensors of the backbone" in out
    if "--initial" in command:
        assert "90 of 98 tensors of the detector" in out


def test_both_families_train_on_blood_cells_by_one_file():
    """What ``docs/families.md`` compares differs in what the families differ in."""
    file = DOCS / "bccd-families.yaml"
    paper, zoo = (
        resolve(f"{family}_eighth_128", file, (), ("a", "b"))
        for family in ("refinedet", "modelzoo")
    )
    assert paper.input == zoo.input
    assert paper.train == zoo.train
    assert paper.model.schedule == zoo.model.schedule
    assert paper.model.anchors == replace(zoo.model, anchors={"refined": True}).anchors
    assert file.name in (DOCS / "families.md").read_text()
