"""What is wrong before anything starts is one line."""

import json
import socket
from pathlib import Path

import pytest

from refinedet.adapters.mindspore.launch import Job, target_of
from refinedet.adapters.mindspore.ranktable import read_rank_table

TRAIN = ["--", "train", "--run", "r"]


def write_table(path, *servers):
    """A rank table of machines with these (rank, device) pairs."""
    listed = [
        {
            "server_id": f"10.0.0.{i}",
            "device": [{"rank_id": str(r), "device_id": str(d)} for r, d in pairs],
        }
        for i, pairs in enumerate(servers)
    ]
    path.write_text(json.dumps({"version": "1.0", "server_list": listed}))
    return path


def refused(run, *arguments):
    status, out, err = run("launch", *arguments)
    assert status == 1, out
    assert err.startswith("refinedet: error: ")
    assert err.count("\n") == 1
    assert not Path("launch-logs").exists()
    return err.removeprefix("refinedet: error: ").rstrip()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "2", "--", "detect", "x"], "runs train or eval"),
        (["--ranks", "0", *TRAIN], "greater than or equal to 1"),
        (["--ranks", "2", *TRAIN, "--device-id", "1"], "a device of its own"),
        (["--ranks", "2", *TRAIN, "--device-id=1"], "a device of its own"),
        (
            ["--ranks", "2", *TRAIN, "--backend", "torch-cpu"],
            "torch-cpu cannot run several ranks; give --target cpu, gpu or ascend",
        ),
        (["--ranks", "2", *TRAIN, "--target=ascend310"], "ascend310 cannot run several ranks"),
        (["--ranks", "2", "--node-rank", "1", *TRAIN], "1 machines are 0 to 0"),
        (["--ranks", "3", "--nodes", "2", *TRAIN], "3 is not a multiple of the 2 machines"),
        (["--ranks", "2", "--nodes", "2", *TRAIN], "give the address of machine 0"),
        (["--ranks", "2", "--master-addr", "198.51.100.7", *TRAIN], "--master-port: 198.51"),
        (["--ranks", "2", "--master-addr", "", *TRAIN], "--master-addr: is empty"),
        (["--ranks", "2", "--rank-table-file", "no.json", *TRAIN], "No such file"),
    ],
)
def test_options(run, arguments, message):
    assert message in refused(run, *arguments)


def test_no_command_is_one_line(run):
    assert "command" in refused(run, "--ranks", "2").lower()


def test_an_occupied_port(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refused(run, "--ranks", "2", "--master-port", str(port), *TRAIN)
    assert message.startswith(f"--master-port: 127.0.0.1:{port}: Address already in use; choose")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rank table"),
        ("[]", "no rank table"),
        ('{"server_list": 3}', "no rank table"),
        ('{"server_list": [{"device": [{"rank_id": "x", "device_id": "0"}]}]}', "no rank table"),
        ('{"server_list": [{"device": [{"rank_id": "0", "device_id": "-1"}]}]}', "no rank table"),
        ('{"server_list": [{"device": [{"rank_id": 0.9, "device_id": 0}]}]}', "no rank table"),
        ('{"server_list": [{"device": [{"rank_id": false, "device_id": 0}]}]}', "no rank table"),
        ('{"server_list": [{"device": [{"rank_id": Infinity, "device_id": 0}]}]}', "no rank table"),
        (
            f'{{"server_list": [{{"device": [{{"rank_id": 0, "device_id": {10**30}}}]}}]}}',
            "no rank",
        ),
        pytest.param("[" * 100_000, "no rank table", id="deep"),
        ('{"server_list": [{"device": [{"rank_id": "1", "device_id": "0"}]}]}', "are not 0 to 0"),
    ],
)
def test_no_rank_table(run, tmp_path, content, message):
    (tmp_path / "hccl.json").write_text(content)
    assert message in refused(run, "--ranks", "1", "--rank-table-file", "hccl.json", *TRAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "8"], "has 4 devices for 8 ranks"),
        (["--ranks", "4"], "its machines have 2, 2 devices; 4 ranks need 4"),
    ],
)
def test_a_rank_table_of_other_ranks(run, tmp_path, options, message):
    write_table(tmp_path / "hccl.json", [(0, 4), (1, 5)], [(2, 6), (3, 7)])
    assert message in refused(run, *options, "--rank-table-file", "hccl.json", *TRAIN)


def test_a_rank_table_with_a_device_twice(run, tmp_path):
    write_table(tmp_path / "hccl.json", [(0, 4), (1, 4)])
    message = refused(run, "--ranks", "2", "--rank-table-file", "hccl.json", *TRAIN)
    assert "hccl.json: machine 0 has device 4 twice" in message


def test_a_rank_table_in_another_order(run, tmp_path):
    write_table(tmp_path / "hccl.json", [(2, 0), (3, 1)], [(0, 0), (1, 1)])
    options = ["--ranks", "4", "--nodes", "2", "--master-addr", "10.0.0.1", "--node-rank", "1"]
    message = refused(run, *options, "--rank-table-file", "hccl.json", *TRAIN)
    assert "machine 0 must have the ranks from 0 on" in message


def test_a_rank_table_tells_the_devices(tmp_path):
    path = write_table(tmp_path / "hccl.json", [(0, 4), (1, 5)], [(2, 6), (3, 7)])
    assert read_rank_table(path) == [{0: 4, 1: 5}, {2: 6, 3: 7}]


def test_what_msrun_is_told():
    """Pure functions of the options: the ranks of the second of two machines."""
    job = Job(
        ("train", "--run", "r"), 8, 2, 1, "10.0.0.1", 8118, Path("/t/hccl.json"), Path("logs")
    )
    assert job.ranks == range(4, 8)
    assert job.msrun(Path("/j/rank.py")) == [
        "--worker_num=8",
        "--local_worker_num=4",
        "--master_addr=10.0.0.1",
        "--master_port=8118",
        "--node_rank=1",
        "--log_dir=logs",
        "--join=True",
        "--rank_table_file=/t/hccl.json",
        "/j/rank.py",
        "train",
        "--run",
        "r",
    ]
    assert job.environment({}, Path("/j"))["OMP_NUM_THREADS"].isdigit()
    assert target_of(("train", "--backend", "mindspore-gpu")) == "gpu"
    caught = job.environment({"PATH": "/bin", "GLOG_v": "1"}, Path("/j"))
    assert (caught["PATH"], caught["GLOG_v"], caught["PYTHONUNBUFFERED"]) == ("/j:/bin", "1", "1")
    assert caught["REFINEDET_LAUNCH_FOLDER"] == "/j"
