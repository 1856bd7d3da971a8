"""Data sets on the disk: what is written is read, and every fault is a finding, at once."""

import json
import shutil

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinedet.data.dataset import Dataset
from refinedet.data.findings import POLICY
from refinedet.data.formats.shapes import generate_shapes
from refinedet.data.formats.voc import CLASSES, read_voc
from refinedet.data.report import dataset_report
from refinedet.data.source import DataSource, read_dataset
from refinedet.errors import DataError, SettingsError, UsageError
from refinedet.settings import resolve
from refinedet.support.text import is_class_name

WIDTH, HEIGHT = 60, 40
BOMB = """<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>"""


def source_of(layout, root, **files):
    """A data set below ``root``; of ``files`` only what the layout reads, VOC's list "all"."""
    if layout == "voc":
        names = files.get("class_names", ())
        return DataSource("voc", root, split="all", class_names=names)
    return DataSource(layout, root, **files)


def write_image(path, width=WIDTH, height=HEIGHT):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


def xml(*objects, size=(WIDTH, HEIGHT)):
    rows = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1), difficult in objects
    )
    shown = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>other.jpg</filename>{shown}{rows}</annotation>"


def write_voc(root, split, images):
    """``images``: name to XML text, or None for no annotation."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{n}\n" for n in images))
    for name, text in images.items():
        write_image(root / "JPEGImages" / f"{name}.jpg")
        if text is not None:
            (root / "Annotations" / f"{name}.xml").write_text(text)


def kinds(dataset):
    return [(f.level, f.kind) for f in dataset.findings]


@pytest.fixture
def coco(tmp_path):
    """Two images and three objects in COCO's layout; gives the document and a reader."""
    write_image(tmp_path / "images/a.png")
    write_image(tmp_path / "images/b.png")
    document = {
        "images": [
            {"id": 9, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 4, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 90, "name": "late"}, {"id": 3, "name": "early"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 90, "bbox": [1, 2, 30, 20], "area": 5.5},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1},
            {"id": 3, "image_id": 4, "category_id": 3, "bbox": [5.5, 6, 7, 8.25]},
        ],
    }

    def read(classes=(), check=False):
        (tmp_path / "ground_truth.json").write_text(json.dumps(document))
        source = DataSource(
            "coco", tmp_path, annotations="ground_truth.json", images="images", class_names=classes
        )
        return read_dataset(source, check_images=check)

    return document, read


def test_coco_is_read_as_written(coco):
    dataset = coco[1]()
    assert dataset.class_names == ("early", "late")
    assert dataset.category_ids == (3, 90)
    assert [r.image_id for r in dataset.records] == [9, 4]
    first, second = dataset.records
    np.testing.assert_array_equal(first.boxes, [[1, 2, 31, 22], [0, 0, 60, 40]])
    assert first.labels.tolist() == [2, 1]
    assert first.crowd.tolist() == [False, True]
    assert first.areas.tolist() == [5.5, 2400]
    np.testing.assert_array_equal(second.boxes, [[5.5, 6, 12.5, 14.25]])
    assert dataset.findings == ()


def test_coco_classes_can_be_chosen_and_ordered(coco):
    dataset = coco[1](("late",))
    assert (dataset.class_names, dataset.category_ids) == (("late",), (90,))
    assert [r.labels.tolist() for r in dataset.records] == [[1], []]
    with pytest.raises(DataError, match="has no class 'never'"):
        coco[1](("never",))


@pytest.mark.parametrize(
    ("table", "change", "finding"),
    [
        ("annotations", {"bbox": [1, 2, float("nan"), 4]}, ("refuse", "non-finite box")),
        ("annotations", {"bbox": [1, 2, -3, 4]}, ("refuse", "crossed box")),
        ("annotations", {"bbox": [70, 2, 3, 4]}, ("refuse", "box outside")),
        ("annotations", {"bbox": [50, 2, 30, 4]}, ("skip", "box clipped")),
        ("annotations", {"bbox": [1, 2, 0, 4]}, ("skip", "zero-area box")),
        ("annotations", {"bbox": "wide"}, ("refuse", "malformed annotation")),
        ("annotations", {"bbox": [1, 2, 3]}, ("refuse", "malformed annotation")),
        ("annotations", {"iscrowd": 7}, ("refuse", "malformed annotation")),
        ("annotations", {"category_id": 5}, ("refuse", "unknown class")),
        ("annotations", {"image_id": 5}, ("refuse", "unknown image")),
        ("annotations", {"id": 3}, ("refuse", "duplicate id")),
        ("images", {"id": 4}, ("refuse", "duplicate id")),
        ("images", {"file_name": "../ground_truth.json"}, ("refuse", "path leaves the folder")),
        ("images", {"file_name": "/etc/hostname"}, ("refuse", "path leaves the folder")),
        ("images", {"file_name": "none.png"}, ("skip", "missing image")),
        ("images", {"width": "wide"}, ("refuse", "malformed annotation")),
        ("categories", {"name": "early"}, ("refuse", "duplicate id")),
        ("categories", {"name": "la\nte"}, ("refuse", "malformed annotation")),
        ("categories", {"name": "la\ud800te"}, ("refuse", "malformed annotation")),
    ],
)
def test_every_fault_of_coco_is_a_finding(coco, table, change, finding):
    document, read = coco
    document[table][0].update(change)
    dataset = read()
    assert finding in kinds(dataset)
    assert all("\n" not in str(f) for f in dataset.findings)
    assert table in str(dataset.findings[0]) or "ground_truth.json" in str(dataset.findings[0])
    if finding[0] == "refuse":
        with pytest.raises(DataError):
            dataset.require_usable()
    else:
        dataset.require_usable()


def test_images_are_decoded_on_request(coco, tmp_path):
    data = (tmp_path / "images/a.png").read_bytes()
    (tmp_path / "images/a.png").write_bytes(data[:-20])
    write_image(tmp_path / "images/b.png", 50, 40)
    assert coco[1]().findings == ()
    dataset = coco[1](check=True)
    assert kinds(dataset) == [("skip", "unreadable image"), ("refuse", "size disagrees")]
    assert "unreadable image: 1" in dataset_report(dataset)


@settings(max_examples=150, deadline=None)
@given(
    base=st.sampled_from(["coco", "voc"]),
    position=st.floats(0, 1, exclude_max=True),
    inserted=st.binary(max_size=4),
    cut=st.integers(0, 30),
)
def test_damaged_annotations_give_findings_or_one_line(
    tmp_path_factory, base, position, inserted, cut
):
    folder = tmp_path_factory.mktemp("damaged")
    write_voc(folder, "all", {"a": xml(("cat", (1, 1, 20, 30), 0))})
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "ground_truth.json").write_text(json.dumps(document))
    file = folder / ("ground_truth.json" if base == "coco" else "Annotations/a.xml")
    data = file.read_bytes()
    start = int(position * len(data))
    file.write_bytes(data[:start] + inserted + data[start + cut :])
    source = source_of(base, folder, annotations="ground_truth.json", images="JPEGImages")
    try:
        dataset = read_dataset(source)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        for record in dataset.records:
            assert np.isfinite(record.boxes).all()
            assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
    shutil.rmtree(folder)


def test_voc_is_read_as_written_and_years_are_joined(tmp_path):
    objects = [("dog", (1, 2, 30, 40), 0), ("cat", (3, 4, 60, 20), 1)]
    write_voc(tmp_path / "VOC2007", "trainval", {"000001": xml(*objects)})
    write_voc(tmp_path / "VOC2012", "trainval", {"2008_1": xml(("person", (5, 5, 9, 9), 0))})
    dataset = read_voc(tmp_path, "2007:trainval,2012:trainval")
    assert dataset.class_names == CLASSES
    assert [r.path.name for r in dataset.records] == ["000001.jpg", "2008_1.jpg"]
    first = dataset.records[0]
    np.testing.assert_array_equal(first.boxes, [[1, 2, 30, 40], [3, 4, 60, 20]])
    assert [CLASSES[label - 1] for label in first.labels] == ["dog", "cat"]
    assert first.difficult.tolist() == [False, True]
    assert dataset.findings == ()
    with pytest.raises(DataError, match=r"no such list; there are trainval"):
        read_voc(tmp_path, "2007:test")
    with pytest.raises(DataError, match="no such list"):
        read_voc(tmp_path, "2010:trainval")


@pytest.mark.parametrize("again", ["a.png", "./a.png", "sub//../a.png", "link.png"])
@pytest.mark.parametrize("layout", ["coco", "text", "voc"])
def test_an_image_under_two_names_is_found_and_not_counted_twice(tmp_path, layout, again):
    folder = tmp_path / ("JPEGImages" if layout == "voc" else "")
    write_image(folder / "a.png")
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to("a.png")
    images = [{"file_name": name, "width": WIDTH, "height": HEIGHT} for name in ("a.png", again)]
    document = {
        "images": [{"id": i, **image} for i, image in enumerate(images, start=1)],
        "annotations": [{"image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "ground_truth.json").write_text(json.dumps(document))
    (tmp_path / "list.txt").write_text(f"a.png\n{again} 1,2,3,4,1\n")
    if layout == "voc":
        stems = ("a", again.removesuffix(".png"))
        (tmp_path / "Annotations/sub").mkdir(parents=True)
        for stem in stems:
            (tmp_path / f"Annotations/{stem}.xml").write_text(xml())
        (tmp_path / "ImageSets/Main").mkdir(parents=True)
        (tmp_path / "ImageSets/Main/all.txt").write_text("\n".join(stems))
    dataset = read_dataset(
        source_of(
            layout,
            tmp_path,
            annotations="list.txt" if layout == "text" else "ground_truth.json",
            class_names=("cat",),
        )
    )
    assert len(dataset) == 1
    kind = "path leaves the folder" if ".." in again else "duplicate id"
    assert kinds(dataset) == [("refuse", kind)]
    first, second = ("images[0]", "images[1]") if layout == "coco" else ("line 1", "line 2")
    assert dataset.findings[0].where.key == second
    assert kind != "duplicate id" or f"{first}; list each image once" in str(dataset.findings[0])


def test_an_image_in_two_voc_lists_is_not_counted_twice(tmp_path):
    write_voc(tmp_path, "all", {"a": xml(("cat", (1, 1, 9, 9), 0))})
    dataset = read_voc(tmp_path, "all,all")
    assert len(dataset) == 1
    assert kinds(dataset) == [("refuse", "duplicate id")]


def test_voc_with_classes_of_its_own(tmp_path):
    write_voc(tmp_path, "all", {"a": xml(("zebra", (1, 1, 9, 9), 0), ("ant", (2, 2, 9, 9), 0))})
    assert read_voc(tmp_path, "all").class_names == ("ant", "zebra")
    chosen = read_voc(tmp_path, "all", ("zebra",))
    assert kinds(chosen) == [("refuse", "unknown class")]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (BOMB, ("refuse", "malformed annotation")),
        ("<annotation>", ("refuse", "malformed annotation")),
        ("", ("refuse", "malformed annotation")),
        (
            "<annotation><object><name>a</name></object></annotation>",
            ("refuse", "malformed annotation"),
        ),
        (xml(("", (1, 1, 2, 2), 0)), ("refuse", "malformed annotation")),
        (xml(("a&#10;b", (1, 1, 2, 2), 0)), ("refuse", "malformed annotation")),
        (xml(("a\u0085b", (1, 1, 2, 2), 0)), ("refuse", "malformed annotation")),
        (xml(("a", (1, 1, 2, 2), "maybe")), ("refuse", "malformed annotation")),
        (xml(("a", (1, 1, "1_0", 2), 0)), ("refuse", "malformed annotation")),
        (xml(("a", (1, 1, "\u0663\u0664", 2), 0)), ("refuse", "malformed annotation")),
        (xml(("a", (1, 1, 9, 9), 0), size=("6_0", HEIGHT)), ("refuse", "malformed annotation")),
        (xml(("a", (1, 1, 9, 9), 0), size=(WIDTH, "high")), ("refuse", "malformed annotation")),
        (xml(("a", (1, 1, "nan", 2), 0)), ("refuse", "non-finite box")),
        (xml(("a", (5, 1, 2, 2), 0)), ("refuse", "crossed box")),
        (xml(("a", (5, 5, 5, 5), 0)), ("skip", "zero-area box")),
        (xml(("a", (1, 1, 2, 2), 0), size=(10, 10)), ("refuse", "size disagrees")),
        (None, ("skip", "missing annotation")),
    ],
)
def test_every_fault_of_voc_is_a_finding(tmp_path, text, finding):
    write_voc(tmp_path, "all", {"good": xml(("a", (1, 1, 9, 9), 0)), "bad": text})
    dataset = read_voc(tmp_path, "all")
    assert kinds(dataset) == [finding]
    assert "bad" in str(dataset.findings[0])


def test_text_list_is_read_as_the_model_zoo_documents_it(tmp_path):
    write_image(tmp_path / "train/1.jpg")
    lines = ["# mine", "train/1.jpg 0,5,40,39,2 35,8,59,20.5,1", ""]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    dataset = read_dataset(
        DataSource("text", tmp_path, annotations="list.txt", class_names=("a", "b"))
    )
    record = dataset.records[0]
    np.testing.assert_array_equal(record.boxes, [[0, 5, 40, 39], [35, 8, 59, 20.5]])
    assert record.labels.tolist() == [2, 1]
    assert (record.width, record.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("a.png 1,2,3", ("refuse", "malformed annotation")),
        ("a.png 1,2,3,4,x", ("refuse", "malformed annotation")),
        ("a.png 1,2,1_0,4,1", ("refuse", "malformed annotation")),
        ("a.png 1,2,3,4,0_1", ("refuse", "malformed annotation")),
        ("a.png 1,2,\u0663,4,1", ("refuse", "malformed annotation")),
        ("a.png 1,2,3,4,\uff11", ("refuse", "malformed annotation")),
        ("a.png 1,2,3,4,0", ("refuse", "unknown class")),
        ("a.png 1,2,3,4,3", ("refuse", "unknown class")),
        ("a.png 1,2,inf,4,1", ("refuse", "non-finite box")),
        ("a.png 9,2,3,4,1", ("refuse", "crossed box")),
        ("../a.png 1,2,3,4,1", ("refuse", "path leaves the folder")),
        ("b.png 1,2,3,4,1", ("skip", "missing image")),
        ("list.txt 1,2,3,4,1", ("skip", "unreadable image")),
    ],
)
def test_every_fault_of_a_text_list_names_its_line(tmp_path, line, finding):
    write_image(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text(f"\n{line}\n")
    dataset = read_dataset(
        DataSource("text", tmp_path, annotations="list.txt", class_names=("a", "b"))
    )
    assert kinds(dataset) == [finding]
    if finding[1] != "unreadable image":
        assert "list.txt: line 2" in str(dataset.findings[0])


@pytest.mark.parametrize("layout", ["coco", "voc", "text"])
@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1bb", "a\u2028b", "\ud800"])
def test_chosen_classes_are_names_of_one_line(coco, tmp_path, layout, name):
    coco[1]()
    write_voc(tmp_path, "all", {"a": xml()})
    source = source_of(
        layout, tmp_path, annotations="ground_truth.json", class_names=("early", name)
    )
    with pytest.raises(UsageError, match=r"^class_names: .* is not a name of one line$"):
        read_dataset(source)


@given(st.one_of(st.text(max_size=3), st.characters(min_codepoint=0, max_codepoint=0x3000)))
def test_readers_and_settings_take_the_same_class_names(name):
    try:
        resolve("refinedet_eighth_128", None, (), (name,))
        taken = True
    except SettingsError:
        taken = False
    assert is_class_name(name) == taken


def test_options_that_are_missing_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"^root: "):
        read_dataset(DataSource("voc", split="x"))
    with pytest.raises(UsageError, match=r"^split: "):
        read_dataset(DataSource("voc", tmp_path))
    with pytest.raises(UsageError, match=r"^annotations: "):
        read_dataset(DataSource("coco", tmp_path))
    with pytest.raises(UsageError, match=r"^class_names: "):
        read_dataset(DataSource("text", tmp_path, annotations="list.txt"))


def test_generated_shapes_repeat_themselves(tmp_path):
    first = generate_shapes(6, (64, 96), 1, tmp_path / "a")
    again = generate_shapes(6, (64, 96), 1, tmp_path / "b")
    other = generate_shapes(6, (64, 96), 2, tmp_path / "b")
    assert first.class_names == ("ring", "square", "triangle")
    assert first.findings == ()
    for left, right in zip(first.records, again.records, strict=True):
        np.testing.assert_array_equal(left.boxes, right.boxes)
        assert len(left.labels) >= 1
    assert any(
        not np.array_equal(left.boxes, right.boxes)
        for left, right in zip(first.records, other.records, strict=True)
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/keep.txt").write_text("x")
    with pytest.raises(DataError, match="holds other files"):
        generate_shapes(1, (64, 64), 0, tmp_path / "mine")
    (tmp_path / "mine/annotations.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="holds other files"):
        generate_shapes(1, (64, 64), 0, tmp_path / "mine")
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["annotations.json", "keep.txt"]
    for count, size, seed in ((0, (64, 64), 0), (1, (64, 31), 0), (1, (64, 64), -1)):
        with pytest.raises(UsageError, match="generated shapes need"):
            generate_shapes(count, size, seed, tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "mine"]


def test_real_photographs_have_their_two_bad_boxes(shared_data):
    trainval = read_voc(shared_data / "bccd", "trainval")
    test = read_voc(shared_data / "bccd", "test")
    assert (len(trainval), len(test)) == (292, 72)
    assert trainval.class_names == ("Platelets", "RBC", "WBC")
    bad = [f for f in trainval.findings if f.kind == "zero-area box"]
    assert ["BloodImage_00338" in str(bad[0]), "BloodImage_00343" in str(bad[1])] == [True, True]
    assert sum(len(r.labels) for d in (trainval, test) for r in d.records) == 4888 - 2


def test_every_kind_of_finding_has_a_policy():
    assert set(POLICY.values()) == {"refuse", "skip"}
    assert Dataset("empty", ("a",), []).refusals() == []
    with pytest.raises(DataError, match="no usable image"):
        Dataset("empty", ("a",), []).require_usable()
