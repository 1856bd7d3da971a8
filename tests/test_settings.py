"""Settings: layers in their order, strict keys and types, a YAML form that loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinedet.settings import Settings, SettingsError, differences, from_yaml, resolve, to_yaml
from refinedet.spec.config import PRESETS


def refused(message):
    return pytest.raises(SettingsError, match=message)


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_of_every_preset_loads_back_equal(name):
    settings = resolve(name, None, (), ("a", "b"))
    assert from_yaml(to_yaml(settings)) == settings
    assert settings.model.num_classes == 3


@given(
    rate=st.floats(1e-12, 1000),
    top=st.none() | st.integers(1, 10**6),
    sides=st.lists(st.floats(1, 1e6), min_size=4, max_size=4),
    names=st.lists(st.text(min_size=1), unique=True, max_size=3),
)
def test_yaml_loses_nothing(rate, top, sides, names):
    assignments = [
        f"model.schedule.rate={rate!r}",
        f"model.detection.top={'null' if top is None else top}",
        f"model.anchors.sides={sides}",
    ]
    settings = resolve(None, None, assignments, tuple(names))
    assert settings.model.schedule.rate == rate
    assert settings.model.detection.top == top
    assert settings.model.anchors.sides == tuple(sides)
    assert from_yaml(to_yaml(settings)) == settings


def test_layers_win_in_their_order(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: refinedet_eighth_128\nmodel: {schedule: {steps: 50, rate: 2e-3}}\n")
    assert resolve("refinedet_quarter_320", None, ()).model.schedule.steps == 600
    layered = resolve(None, file, ["model.schedule.steps=70"])
    assert layered.model.image_size == (128, 128)
    assert (layered.model.schedule.steps, layered.model.schedule.rate) == (70, 2e-3)
    assert resolve("refinedet_quarter_320", file, ()).model.image_size == (320, 320)
    assert resolve(None, None, ()).model == PRESETS["refinedet_vgg16_320"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.schedul.rate=1", r"unknown key model\.schedul; did you mean model\.schedule\?"),
        ("colour=1", "unknown key colour"),
        ("model.schedule.rate=fast", r"model\.schedule\.rate: wants float, got 'fast'"),
        ("model.schedule.rate=true", "wants float"),
        ("input.batch_size=1.5", r"input\.batch_size: wants int"),
        ("input.batch_size=0", r"input\.batch_size: wants 1 to"),
        ("input.workers=null", r"input\.workers: wants int"),
        ("input.augment.mirror=1.5", r"input\.augment\.mirror: wants 0 to 1"),
        ("input.augment.expand_ratio=.nan", r"expand_ratio: wants 1 to 16"),
        ("train.keep=0", r"train\.keep: wants a whole number from 1"),
        ("model=3", "model is a section"),
        ("model.image_size=320", r"model\.image_size: wants a list"),
        ("model.image_size=[320, x]", r"model\.image_size\[1\]: wants int"),
        ("model.image_size=[320, 300]", r"model\.image_size: wants multiples of 64"),
        ("model.num_classes=7", r"class_names: 1 names want model\.num_classes=2, got 7"),
        ("model.optimizer.clip_norm=-1", r"model\.optimizer\.clip_norm"),
        ("model.schedule.rate", "wants KEY=VALUE"),
        ("model.schedule.rate=[", "line 1"),
        ("model.schedule.rate=*a", "aliases are not read"),
        ("model.schedule.rate=!!python/object:os.system", "could not determine a constructor"),
    ],
)
def test_assignments_that_cannot_be_used_name_the_key(text, message):
    with refused(message) as caught:
        resolve(None, None, [text], ("a",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: {schedule: {rate: 1}}\nmodel: {}\n", "line 2: model stands twice"),
        (b"a: [\n", "line 2"),
        (b"- 1\n", "wants keys and values, got list"),
        (b"\xff\xfe", "not UTF-8|line 1"),
        (b"preset: nosuch\n", "no 'nosuch'; there are"),
        (b"modle: {}\n", "unknown key modle; did you mean model"),
        (b"#" * (2 << 20), "not a settings file"),
        (b"[" * 5000, "cannot be read|line"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with refused(message) as caught:
        resolve(None, file, ())
    assert "\n" not in str(caught.value)


def test_missing_and_empty_files(tmp_path):
    with refused("no.yaml: cannot read"):
        resolve(None, tmp_path / "no.yaml", ())
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert resolve(None, empty, ()) == Settings()


def test_class_names_are_distinct():
    with refused("distinct"):
        resolve(None, None, (), ("a", "a"))


def test_differences_name_the_keys():
    left = resolve(None, None, ["input.seed=1", "model.schedule.rate=0.5"])
    assert list(differences(Settings(), left)) == [
        ("model.schedule.rate", 1e-3, 0.5),
        ("input.seed", 0, 1),
    ]
