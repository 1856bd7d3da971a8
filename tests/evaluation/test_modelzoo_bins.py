"""The model zoo's result files: the same metrics as an ordinary evaluation, or one line."""

import functools
import json

import cv2
import numpy as np
import pytest
from helpers import refused

from refinedet.backends.reference import SpecNetwork
from refinedet.data.augment import normaliser, resize_only
from refinedet.inference.postprocessing import postprocess
from refinedet.inference.predictor import in_pixels
from refinedet.models.checkpoint import Checkpoint, write_checkpoint
from refinedet.settings import resolve
from refinedet.spec.network import initial_parameters

PRESET = "modelzoo_eighth_128"
SETTINGS = resolve(PRESET, None, (), ("a", "b"))


def confident():
    """Parameters that find objects of both classes, here and there."""
    parameters = initial_parameters(SETTINGS.model, 0)
    rng = np.random.default_rng(0)
    for name in parameters:
        if name.startswith("odm.") and "logits" in name and name.endswith("bias"):
            parameters[name] = rng.normal(-1, 1, parameters[name].shape).astype(np.float32)
        elif name.startswith("odm.") and "logits" in name and name.endswith("weight"):
            parameters[name] = parameters[name] * np.float32(20)
    return parameters


PARAMETERS = confident()


def write_as_the_zoo_does(folder, path, boxes, scores):
    """Its WriteResult, in src/utils.cc: the name ends at its first dot."""
    name = path.name.split(".")[0]
    clipped = boxes.clip(0, 1)[:, [1, 0, 3, 2]]  # y_min, x_min, y_max, x_max
    (folder / f"{name}_0.bin").write_bytes(clipped.astype("<f4").tobytes())
    (folder / f"{name}_1.bin").write_bytes(scores.astype("<f4").tobytes())


@functools.cache
def outputs(png):
    """The network's boxes and scores of an image file; the noisy ones are always the same."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    small = resize_only(np.ascontiguousarray(image), SETTINGS.model.image_size)
    network = SpecNetwork(SETTINGS.model, PARAMETERS)
    boxes, scores = network.scored_boxes(normaliser(SETTINGS.model.image)(small)[None])
    return boxes[0], scores[0]


@pytest.fixture
def results(noise, tmp_path):
    """A folder of result files for the noisy images."""
    folder = tmp_path / "result_Files"
    folder.mkdir()
    for record in noise.records:
        write_as_the_zoo_does(folder, record.path, *outputs(record.path.read_bytes()))
    return folder


@pytest.fixture
def data(noise, tmp_path):
    """Options for the noisy images, in COCO's layout; one of them has a crowd.

    The ground truth is half of what the network finds, moved a little.
    """
    images, annotations = [], []
    for record in noise.records:
        scored = outputs(record.path.read_bytes())
        one = in_pixels(postprocess(*scored, SETTINGS.model.detection, (48, 80)), (48, 80))
        about = {"id": record.image_id, "file_name": record.path.name}
        images.append(about | {"width": 80, "height": 48})
        for box, label in list(zip(one.boxes.tolist(), one.labels.tolist(), strict=True))[::2]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": label,
                    "bbox": [box[0] + 1, box[1] + 1, box[2] - box[0], box[3] - box[1]],
                    "iscrowd": int(record.image_id == 3),
                }
            )
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "ground_truth.json").write_text(json.dumps(document))
    images = noise.records[0].path.parent
    return (
        *("--layout", "coco", "--annotations", tmp_path / "ground_truth.json"),
        *("--images", images),
    )


@pytest.mark.parametrize("protocol", [None, "modelzoo"])
def test_metrics_are_those_of_an_ordinary_evaluation(run, results, data, tmp_path, protocol):
    weights = tmp_path / "weights.safetensors"
    write_checkpoint(weights, Checkpoint(SETTINGS, PARAMETERS, None, 0))
    outcomes, chosen = [], ("--protocol", protocol) if protocol else ()
    for number, given in enumerate(
        (
            ("--model", weights, "--backend", "spec"),
            ("--results-bin", results, "--preset", PRESET),
        )
    ):
        output = tmp_path / str(number)
        status, out, err = run("eval", *given, *data, *chosen, "--output", output)
        assert (status, err) == (0, ""), err
        metrics = json.loads((output / "evaluation.json").read_text())
        rows = json.loads((output / "results.json").read_text())
        assert {p.name for p in output.iterdir()} == {
            *("results.json", "evaluation.json", "evaluation.txt", "detections.png")
        }
        outcomes.append((out, metrics, rows))
    assert outcomes[0] == outcomes[1]
    assert 0 < outcomes[0][1]["AP50"] < 1
    assert len({row["category_id"] for row in outcomes[0][2]}) == 2


def test_a_protocol_decides_which_boxes_count(run, results, data, tmp_path):
    """The paper's suppression is stricter than the zoo's, which the preset has."""
    outcomes = []
    for chosen in ((), ("--protocol", "paper")):
        command = ("eval", "--results-bin", results, "--preset", PRESET, *data, *chosen)
        assert run(*command, "--output", tmp_path / "out")[0] == 0
        outcomes.append(json.loads((tmp_path / "out/results.json").read_text()))
    assert outcomes[0] != outcomes[1]


def test_images_that_do_not_count_need_no_files(run, results, data):
    for path in results.glob("2_*"):  # of image id 3, which has a crowd
        path.unlink()
    command = ("eval", "--results-bin", results, "--preset", PRESET, *data)
    assert run(*command, "--protocol", "modelzoo")[0] == 0
    refused(run(*command), f"{results}/2_0.bin: cannot read: No such file")


@pytest.mark.parametrize("kind", [0, 1])
def test_damaged_files_are_errors(run, results, data, kind):
    path = results / f"4_{kind}.bin"
    whole = path.read_bytes()
    command = ("eval", "--results-bin", results, "--preset", PRESET, *data)
    columns = (4, 3)[kind]
    rows = len(whole) // 4 // columns
    for content in (whole[:-1], whole[:-4], whole + b"0000"):
        path.write_bytes(content)
        refused(
            run(*command),
            f"{path}: has {len(content)} bytes, {rows} x {columns} numbers of 4 bytes are "
            f"expected; is {PRESET} the detector, with 2 classes?",
        )
    path.write_bytes(b"")
    refused(run(*command), f"{path}: empty file")
    for value in (np.nan, np.inf):
        numbers = np.frombuffer(whole, "<f4").copy()
        numbers[columns * 7 + 2] = value
        path.write_bytes(numbers.tobytes())
        refused(run(*command), f"{path}: row 7 holds a number that is not finite")
    path.unlink()
    refused(run(*command), f"{path}: cannot read: No such file or directory")
    path.mkdir()
    refused(run(*command), f"{path}: cannot read: not a file")


def test_crossed_corners_are_an_error(run, results, data):
    path = results / "0_0.bin"
    numbers = np.frombuffer(path.read_bytes(), "<f4").reshape(-1, 4).copy()
    numbers[3] = (0.5, 0.1, 0.4, 0.2)
    path.write_bytes(numbers.tobytes())
    refused(
        run("eval", "--results-bin", results, "--preset", PRESET, *data),
        f"{path}: boxes: row 3 ",
    )


@pytest.mark.parametrize("change", [lambda s: -s, lambda s: s * 1.01 + 0.1, lambda s: 8 * s - 4])
def test_numbers_that_are_not_scores_are_an_error(run, results, data, change):
    path = results / "2_1.bin"
    scores = np.frombuffer(path.read_bytes(), "<f4").reshape(-1, 3).copy()
    scores[5] = 0.995
    path.write_bytes(scores.tobytes())
    assert run("eval", "--results-bin", results, "--preset", PRESET, *data)[0] == 0
    scores[5] = change(scores[5])
    path.write_bytes(scores.tobytes())
    refused(
        run("eval", "--results-bin", results, "--preset", PRESET, *data),
        f"{path}: row 5 holds a number that is not from 0 to 1; scores are expected",
    )


def test_scores_may_be_rounded_as_float16_is(run, results, data):
    path = results / "2_1.bin"
    scores = np.frombuffer(path.read_bytes(), "<f4").copy()
    scores[5:7] = 1.0009, -0.0009
    path.write_bytes(scores.tobytes())
    assert run("eval", "--results-bin", results, "--preset", PRESET, *data)[0] == 0


@pytest.mark.parametrize("change", [lambda b: b * 320, lambda b: b - 1.2])
def test_boxes_that_are_not_fractions_are_an_error(run, results, data, change):
    path = results / "2_0.bin"
    boxes = np.frombuffer(path.read_bytes(), "<f4")
    path.write_bytes(change(boxes).astype("<f4").tobytes())
    refused(
        run("eval", "--results-bin", results, "--preset", PRESET, *data),
        "boxes are outside the image; fractions of it are expected, not pixels",
    )


def test_boxes_may_reach_out_of_the_image(run, results, data):
    for path in results.glob("*_0.bin"):
        boxes = np.frombuffer(path.read_bytes(), "<f4").reshape(-1, 4).copy()
        boxes += np.array([-0.3, -0.3, 0.3, 0.3], "f4")
        boxes[::3] += 3
        path.write_bytes(boxes.tobytes())
    assert run("eval", "--results-bin", results, "--preset", PRESET, *data)[0] == 0


def test_an_output_that_is_a_file_is_an_error_before_the_work(run, results, data, tmp_path):
    (tmp_path / "out").touch()
    for path in results.iterdir():
        path.unlink()
    refused(
        run(
            *("eval", "--results-bin", results, "--preset", PRESET, *data),
            *("--output", tmp_path / "out"),
        ),
        f"--output: {tmp_path}/out is a file; choose a folder",
    )


def test_images_with_files_of_one_name_are_an_error(run, results, data, noise, tmp_path):
    folder = noise.records[0].path.parent
    (folder / "0.png").rename(folder / "1.b.png")
    ground_truth = tmp_path / "ground_truth.json"
    ground_truth.write_text(ground_truth.read_text().replace('"0.png"', '"1.b.png"'))
    refused(
        run("eval", "--results-bin", results, "--preset", PRESET, *data),
        f"{results}: 1.b.png and 1.png share the files 1_0.bin and 1_1.bin; keep the images in ",
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--model", "x"), "--results-bin: is evaluated alone; leave out --model"),
        (("--results", "x.json"), "--results-bin: is evaluated alone; leave out --results"),
        (
            ("--protocol", "caffe-coco"),
            "--protocol: caffe-coco fuses detections of several views; .bin",
        ),
        (("--backend", "onnxruntime"), "--backend: is not read with --results-bin"),
        (("--target", "ascend310"), "--backend: is not read with --results-bin"),
        (("--streams", "2"), "--backend: is not read with --results-bin"),
        (("--resume", "--output", "x"), "--resume: is not read with --results-bin"),
        (("--preset", "nosuch"), "no 'nosuch'; there are refinedet_vgg16_320"),
    ],
)
def test_contradicting_options_are_an_error(run, results, data, given, message):
    refused(run("eval", "--results-bin", results, *data, *given), message)


def test_a_preset_is_for_results_bin(run, data):
    refused(
        run("eval", "--model", "x", "--preset", PRESET, *data), "--preset: is not read with --model"
    )


def test_a_missing_folder_is_an_error(run, data, tmp_path):
    refused(run("eval", "--results-bin", tmp_path / "no", *data), f"{tmp_path}/no: no such folder")
