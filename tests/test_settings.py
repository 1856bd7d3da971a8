"""Settings: the order of layers, strict keys and types, a YAML form that loses nothing."""

import pytest
from helpers import raises_line
from hypothesis import example, given
from hypothesis import strategies as st

from refinedet.errors import SettingsError, UsageError
from refinedet.settings import (
    PRESET_DEFAULTS,
    AugmentSettings,
    InputSettings,
    Settings,
    TrainSettings,
    differences,
    from_yaml,
    resolve,
    to_yaml,
)
from refinedet.spec.config import NetworkConfig
from refinedet.spec.presets import PRESETS


def refused(pattern):
    """The block raises a ``SettingsError`` of one line in which the pattern occurs."""
    return raises_line(SettingsError, match=pattern)


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_of_every_preset_loads_back_equal(name):
    settings = resolve(name, None, (), ("a", "b"))
    assert from_yaml(to_yaml(settings)) == settings
    assert settings.model.num_classes == 3


def test_only_presets_have_defaults():
    assert PRESET_DEFAULTS.keys() <= PRESETS.keys()


# YAML 1.1, YAML 1.2 or both would read these as something else than a string.
ODD_NAMES = ["1e5", "no", "null", "~", "010", "09", "1:30", "2001-01-01", "<<", "=", "*a", "!b"]
NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1)


@given(
    rate=st.floats(1e-12, 1000),
    top=st.none() | st.integers(1, 10**6),
    sides=st.lists(st.floats(1, 1e6), min_size=4, max_size=4),
    names=st.lists(NAMES.filter(str.strip), unique=True, max_size=3),
)
@example(rate=1e-05, top=None, sides=[1e6] * 4, names=ODD_NAMES)
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model.network.blocks=[1, 1, 1, 1]",
            "model.network.blocks: is not read with backbone vgg16; leave it out",
        ),
        (
            "input.augment={expand: 0, expand_ratio: 2}",
            "input.augment.expand_ratio: is not read with expand 0.0; leave it out",
        ),
    ],
)
def test_a_field_that_is_not_read_is_refused(tmp_path, text, message):
    with raises_line(SettingsError, message):
        resolve(None, None, [text])
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("=", ": "))
    with raises_line(SettingsError, f"{file}: {message}") as caught:
        resolve(None, file, [])
    assert (caught.value.path, caught.value.key) == (file, message.partition(":")[0])


def test_every_field_that_is_not_read_is_refused():
    with refused("expand_ratio: is not read with expand 0; leave it out"):
        AugmentSettings(expand=0, expand_ratio=2.0)
    assert AugmentSettings(expand=0, expand_ratio=4.0) == AugmentSettings(expand=0)


def test_what_a_preset_sets_gives_way_where_it_is_not_read():
    assert PRESETS["modelzoo_resnet101_320"].network.bottleneck_stride == "3x3"
    settings = resolve("modelzoo_resnet101_320", None, ["model.network.backbone=vgg16"])
    assert settings.model.network.bottleneck_stride == NetworkConfig().bottleneck_stride
    assert settings.model.network.head_momentum == 0.97
    settings = resolve("refinedet_eighth_128", None, ["model.schedule.kind=multistep"])
    assert settings.model.schedule.rate == PRESETS["refinedet_eighth_128"].schedule.rate
    for preset_name in PRESETS:
        for text in ("schedule.kind=cosine", "loss.classes=softmax", "network.l2_scales=null"):
            resolve(preset_name, None, [f"model.{text}"])


def test_an_assignment_has_an_equals_sign():
    with raises_line(UsageError, "assignments: expected KEY=VALUE, got 'model.schedule.rate'"):
        resolve(None, None, ["model.schedule.rate"])


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
        ("model.schedul.rate=1", r"unknown key 'model\.schedul\.rate'; .* model\.schedule\.rate"),
        ("schedule.steps=1", r"did you mean model\.schedule\.steps\?"),
        ("warmup_steps=1", r"did you mean model\.schedule\.warmup_steps\?"),
        ("colour=1", "unknown key 'colour'"),
        ("input.seed.low=1", r"unknown key 'input\.seed\.low'"),
        ("=3", "unknown key ''"),
        (
            "model.schedule.rate=fast",
            r"^model\.schedule\.rate: expected a number, got 'fast'$",
        ),
        ("model.schedule.rate=true", "expected a number, got True"),
        ("model.schedule.rate=1" + "0" * 400, "got inf"),
        ("input.seed=" + "9" * 5000, "expected a whole number"),
        ("class_names=[" + "a" * 5000 + ", 1]", "class_names.1.: expected a string"),
        ("input.batch_size=1.5", r"input\.batch_size: expected a whole number"),
        ("input.batch_size=true", r"input\.batch_size: expected a whole number"),
        ("input.batch_size=0", r"^input\.batch_size: expected a whole number, 1 to"),
        ("input.workers=null", r"input\.workers: expected a whole number"),
        ("input.workers=", r"input\.workers: expected a whole number"),
        ("input.seed=1:30", "got '1:30'"),
        ("input.augment.mirror=1.5", r"input\.augment\.mirror: expected a number, 0 to 1"),
        ("input.augment.expand_ratio=.nan", r"expand_ratio: expected a number, 1 to 16"),
        ("input.augment.crop=1", r"input\.augment\.crop: expected true or false"),
        ("train.keep=0", r"^train\.keep: expected a whole number, 1 to"),
        ("model=3", "^model: is a section, expected keys and values"),
        ("model.image_size=320", r"model\.image_size: expected a list"),
        ("model.image_size=[320, x]", r"model\.image_size\[1\]: expected a whole number"),
        ("model.image_size=[320, 300]", r"model\.image_size: expected multiples of 64"),
        ("model.num_classes=7", r"class_names: expected model\.num_classes=2 with 1 names, got 7"),
        ("model.optimizer.clip_norm=-1", r"model\.optimizer\.clip_norm"),
        ("model.schedule.rate=[", "^model.schedule.rate: expected the node content"),
        ("model.schedule.rate=*a", "aliases are not read"),
        ("model.schedule.rate=!!python/object:os.system", "tags and aliases are not read"),
        ("class_names=[b]", r"the data set has \('a',\), the settings have \('b',\)"),
    ],
)
def test_assignments_that_cannot_be_used_name_the_key(text, message):
    unknown = "unknown key" in message or "did you mean" in message
    with raises_line(UsageError if unknown else SettingsError, match=message):
        resolve(None, None, [text], ("a",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: {schedule: {rate: 1}}\nmodel: {}\n", "line 2: 'model' is set twice"),
        (b"input: {seed: 1}\ninput.seed: 2\n", r"mine\.yaml: input\.seed: is set twice"),
        (b"model:\n  schedule:\n    rate: fast\n", r"mine\.yaml: model\.schedule\.rate: expected"),
        (b"model: {schedule: {steps: 0}}\n", r"mine\.yaml: model\.schedule\.steps: expected"),
        (b"preset: [a]\n", r"preset: expected a name, got \['a'\]"),
        (b"? [a]\n: 1\n", "line 1: a key is not a string"),
        (b"a: &x [1]\nb: [*x, *x]\n", "line 2: tags and aliases are not read"),
        (b"model: !!bool foo\n", "line 1: tags and aliases are not read"),
        (b"a\x00: 1\n", "special characters"),
        (b'"a\\nb": 1\n', "unknown key"),
        (b"a: [\n", "line 2"),
        (b"- 1\n", "expected keys and values, got list"),
        (b"\xff\xfe", "not UTF-8|line 1"),
        (b"preset: nosuch\n", "no 'nosuch'; there are"),
        (b"modle: {}\n", "unknown key 'modle'; did you mean model"),
        (b"#" * (2 << 20), "not a settings file"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with refused(message):
        resolve(None, file, ())


def test_missing_and_empty_files(tmp_path):
    with refused("no.yaml: cannot read"):
        resolve(None, tmp_path / "no.yaml", ())
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert resolve(None, empty, ()) == Settings()
    empty.write_text("model:\ninput: {}\n# nothing\n")
    assert resolve(None, empty, ()) == Settings()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "a"), "distinct"),
        (("",), "not empty"),
        ((" ",), "not empty"),
        (("a\nb",), "one line"),
        (("\ud800",), "one line"),
    ],
)
def test_class_names_that_cannot_be_used(names, message):
    with refused(message):
        resolve(None, None, (), names)


def test_a_shown_preset_can_be_trained_on_any_data_set(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(resolve("refinedet_quarter_320", None, ())))
    settings = resolve(None, file, (), ("a", "b"))
    assert settings == resolve("refinedet_quarter_320", None, (), ("a", "b"))


def test_settings_of_another_data_set_are_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(resolve(None, None, (), ("a", "b"))))
    with refused("the data set has"):
        resolve(None, file, (), ("b", "a"))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (AugmentSettings, "flip", "0.5"),
        (AugmentSettings, "distort", -0.1),
        (AugmentSettings, "mirror", True),
        (AugmentSettings, "crop", 1),
        (InputSettings, "batch_size", 1.0),
        (InputSettings, "seed", 2**32),
        (InputSettings, "max_objects", -1),
        (TrainSettings, "keep", True),
        (TrainSettings, "checkpoint_every", 0),
        (TrainSettings, "evaluate_every", None),
    ],
)
def test_ranges_are_checked_on_construction(kind, field, value):
    with refused(rf"\.{field}: expected .*, got {value!r}"):
        kind(**{field: value})


def test_numbers_in_every_spelling():
    for text, rate in (("1e-3", 1e-3), ("1.5e2", 150.0), (".5", 0.5), ("1", 1.0), ("+2E+1", 20.0)):
        settings = resolve(None, None, [f"model.schedule.rate={text}"])
        assert settings.model.schedule.rate == rate
        assert type(settings.model.schedule.rate) is float
    assert resolve(None, None, ["input.seed=010"]).input.seed == 10


def test_differences_name_the_keys():
    left = resolve(None, None, ["input.seed=1", "model.schedule.rate=0.5"])
    assert list(differences(Settings(), left)) == [
        ("model.schedule.rate", 1e-3, 0.5),
        ("input.seed", 0, 1),
    ]
