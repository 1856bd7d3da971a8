"""Folders at a URL: copied whole, copied once, and one line for everything that goes wrong."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from refinedet.errors import RemoteError, WriteError
from refinedet.models.run_copy import RunCopy
from refinedet.support import remote
from refinedet.support.remote import copy_data, open_store

CONTENTS = {"a.txt": b"one", "sub/b.txt": b"two two", "sub/deep/c.bin": bytes(range(256)) * 9}
CONTENTS["empty"] = b""
DOWN = "http://127.0.0.1:9"
"""Nobody listens there."""
OBS = "https://obs.cn-north-4.myhuaweicloud.com"


def local(folder):
    """All files of a folder, by name."""
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def make(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def copied(url, cache):
    """The copy's folder; how many files were copied to it now."""
    lines = []
    folder = copy_data(url, cache, lines.append)
    (line,) = lines
    assert line.startswith(f"{url}: ")
    return folder, int(line.split(", ")[-1].split()[0])


def refusal(call, *arguments, **options):
    """The line that it fails with."""
    with pytest.raises(RemoteError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Copies of data sets.


def test_a_copy_is_what_was_copied_and_is_made_once(place, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 100)  # the third file is asked for in 24 pieces
    place.write(**CONTENTS)
    folder, count = copied(place.url, tmp_path / "cache")
    assert folder == tmp_path / "cache" / place.root.lstrip("/")
    assert count == 4
    assert local(folder) == CONTENTS
    assert copied(place.url, tmp_path / "cache") == (folder, 0)


def test_what_changes_there_or_here_is_copied_again(place, tmp_path):
    place.write(**CONTENTS)
    folder, _ = copied(place.url, tmp_path)
    time.sleep(1.1)  # S3 tells whole seconds
    place.write(**{"a.txt": b"ONE", "new.txt": b"next"})
    assert copied(place.url, tmp_path) == (folder, 2)
    (folder / "a.txt").write_bytes(b"one")
    (folder / "new.txt").write_bytes(b"nex")
    (folder / "mine.txt").write_bytes(b"stays")
    assert copied(place.url, tmp_path) == (folder, 2)
    now = CONTENTS | {"a.txt": b"ONE", "new.txt": b"next", "mine.txt": b"stays"}
    assert local(folder) == now


def test_a_killed_copy_goes_on(server, bucket, tmp_path):
    """kill -9 while files are on their way; those that are there are whole, and not asked for."""
    contents = {f"{number:03d}.bin": bytes([number]) * 5000 for number in range(60)}
    bucket.write(**contents)
    program = "import sys, pathlib; from refinedet.support.remote import copy_data;"
    program += "copy_data(sys.argv[1], pathlib.Path(sys.argv[2]), print)"
    command = [sys.executable, "-P", "-c", program, bucket.url, str(tmp_path)]
    served = []

    def kill_at_the_twentieth(path):
        served.append(path)
        if len(served) == 20:
            process.send_signal(signal.SIGKILL)

    server.before = kill_at_the_twentieth
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.wait(60) == -signal.SIGKILL
    server.before = None
    folder = tmp_path / bucket.root
    there = {name for name in local(folder) if not name.startswith(".")}
    assert 0 < len(there) < 60
    for name in there:
        assert (folder / name).read_bytes() == contents[name]
    server.counts()
    assert copied(bucket.url, tmp_path) == (folder, 60 - len(there))
    assert server.counts() == {"GET": 1 + 60 - len(there)}  # the list, and what was missing
    assert {n: c for n, c in local(folder).items() if not n.startswith(".")} == contents


def test_failures_in_passing_are_waited_out(server, bucket, tmp_path):
    bucket.write(**CONTENTS)
    server.failures += [("GET", "503 Slow Down", "SlowDown"), ("GET", "500 Oh", "InternalError")]
    server.counts()
    folder, _ = copied(bucket.url, tmp_path)
    assert local(folder) == CONTENTS
    assert server.counts() == {"GET": 1 + 3 + 2}  # an empty file need not be asked for
    server.failures += [("PUT", "503 Slow Down", "SlowDown"), ("PUT", "500 Oh", "InternalError")]
    open_store(bucket.url).put(folder / "a.txt", "again.txt")
    assert bucket.read()["again.txt"] == b"one"


def test_a_server_that_is_down_is_one_line_in_bounded_time(server, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", DOWN)
    began = time.monotonic()
    message = refusal(copied, "s3://bucket/data", tmp_path)
    assert 0.5 < time.monotonic() - began < 30  # the waits: at most 15 s
    assert message.startswith("s3://bucket/data: ")
    assert DOWN in message
    assert message.endswith(f"check {remote.CHECK['s3']}")


def test_a_host_that_does_not_answer_is_one_line_in_bounded_time(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CONNECT", 0.2)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        place = full.getsockname()
        for _ in range(3):  # more than it has room for: the next ones wait
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(place)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{place[1]}")
        began = time.monotonic()
        assert "s3://bucket/data: " in refusal(copied, "s3://bucket/data", tmp_path)
        assert time.monotonic() - began < 10


def connections(listening):
    """How many connections wait to be accepted."""
    listening.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count


def test_a_server_that_is_silent_is_one_line_after_every_attempt(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE", 0.5)
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "s3://bucket/data: " in refusal(copied, "s3://bucket/data", tmp_path)
        assert connections(silent) == remote.ROUNDS


def test_a_server_that_stays_broken_is_one_line(server, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    bucket.write(**CONTENTS)
    server.failures += [("GET", "500 Oh", "InternalError")] * 2
    server.counts()
    assert "InternalError" in refusal(copied, bucket.url, tmp_path)
    assert server.counts() == {"GET": 2}
    assert local(tmp_path) == {}


def test_the_first_failure_ends_a_copy(server, bucket, tmp_path):
    bucket.write(**{f"{number}.bin": b"x" for number in range(200)})
    server.before = lambda path: server.failures.append(("GET", "403 No", "AccessDenied"))
    server.counts()
    assert "AccessDenied" in refusal(copied, bucket.url, tmp_path)
    assert server.counts()["GET"] < 100


def test_wrong_keys_and_absent_places_are_one_line(server, bucket, tmp_path, monkeypatch):
    message = refusal(copied, "s3://no-such-bucket/data", tmp_path)
    assert "s3://no-such-bucket/data: The specified bucket does not exist; check the URL" in message
    assert "bucket does not exist" in refusal(RunCopy, "s3://no-such/x", tmp_path, resume=False)
    url = bucket.url + "-of-others"
    assert refusal(copied, url, tmp_path) == f"{url}: no file there; check the URL"
    bucket.write(data=b"")
    assert "is a file; give the URL of its folder" in refusal(
        copied, bucket.url + "/data", tmp_path
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert "check the URL, AWS_ACCESS_KEY_ID" in refusal(copied, bucket.url, tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "locate credentials" in refusal(copied, bucket.url, tmp_path)
    assert local(tmp_path) == {}


def test_a_folder_of_another_name_is_not_copied(place, tmp_path):
    place.write(**CONTENTS)
    place.files.makedirs(place.root + "2", exist_ok=True)
    place.files.pipe_file(place.root + "2/no.txt", b"of another")
    folder, count = copied(place.url, tmp_path / "cache")
    assert count == 4
    assert local(folder) == CONTENTS


def test_marks_of_folders_are_no_files(server, bucket, tmp_path):
    """As consoles of S3 and OBS leave them: keys that end in a slash."""
    bucket.write(**CONTENTS)
    for key in ("some/folder/", "some/folder/sub/", "some/folder/none/"):
        server.hold(bucket.root.split("/")[0], key, b"")
    folder, count = copied(bucket.url, tmp_path)
    assert count == 4
    assert local(folder) == CONTENTS


def test_empty_folders_and_other_urls_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for url in (f"file://{tmp_path}/empty", f"file://{tmp_path}/absent"):
        assert refusal(copied, url, tmp_path) == f"{url}: no file there; check the URL"
    for url in ("ftp://host/data", "/data/coco", "", "s3://", "s3:///", "https://x/y"):
        message = refusal(copied, url, tmp_path)
        assert message.startswith(repr(url))
        assert "give file://, s3:// or obs://" in message
    assert "which cannot be a path in a folder" in refusal(copied, "s3://bucket/../x", tmp_path)


@pytest.mark.parametrize("key", ["../x", "sub/../../x", "/x", "a//b", "./x", "sub/..", "sub/\0"])
def test_no_key_leads_out_of_the_folder(server, bucket, tmp_path, key):
    bucket.write(**CONTENTS)
    server.hold(*bucket.root.split("/")[:1], f"some/folder/{key}", b"gotcha")
    message = refusal(copied, bucket.url, tmp_path / "cache")
    assert message.startswith(bucket.url)
    assert "rename it" in message
    assert local(tmp_path) == {}


def test_a_disk_that_is_full_or_no_folder_is_one_line(place, tmp_path, monkeypatch):
    place.write(**CONTENTS)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(WriteError, match="No space left on device; free some space"):
            copied(place.url, tmp_path / "cache")
    assert local(tmp_path / "cache") == {}
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError) as caught:
        copied(place.url, tmp_path / "file")
    assert caught.value.filename.startswith(str(tmp_path / "file"))


def test_a_file_that_shrinks_meanwhile_is_not_kept(place, tmp_path, monkeypatch):
    place.write(**CONTENTS)
    store = open_store(place.url)
    entries = store.entries()
    place.write(**{"sub/deep/c.bin": b"short"})
    with pytest.raises(RemoteError, match=r"c\.bin: changed during the copy; run again"):
        remote.copy_in(store, entries, tmp_path / "copy")
    assert "sub/deep/c.bin" not in local(tmp_path / "copy")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    program = "import sys; sys.modules['s3fs'] = None; import refinedet.support.remote as remote;"
    program += "remote.copy_data('file://' + sys.argv[1], remote.Path(sys.argv[2]), print);"
    program += "remote.open_store('s3://bucket/data')"
    make(tmp_path / "data", CONTENTS)
    command = [sys.executable, "-P", "-c", program, tmp_path / "data", tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "4 of them copied" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert "RemoteError: s3://bucket/data: Install s3fs" in last
    assert last.endswith("pip install 'refinedet[remote]'")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "pip install 'refinedet[remote]'" in refusal(open_store, "file:///data")


# OBS.


def test_obs_is_spoken_to_as_s3(server, bucket, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "moxing", None)
    bucket.write(**CONTENTS)
    url = bucket.url.replace("s3://", "obs://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert "no endpoint; set S3_ENDPOINT" in refusal(open_store, url)
    host = bucket.files.endpoint_url
    monkeypatch.setenv("S3_ENDPOINT", host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", host)
    folder, _ = copied(url, tmp_path)
    assert local(folder) == CONTENTS
    server.counts()
    open_store(url).put(folder / "a.txt", "out.txt")
    open_store(bucket.url).put(folder / "a.txt", "checked.txt")
    assert [checked for *_, checked in server.asked] == [False, True]
    assert bucket.read()["out.txt"] == b"one"
    # Of a host with a name, the bucket becomes a part; loopback has none to make it one of.
    for endpoint in (OBS, OBS.removeprefix("https://")):
        monkeypatch.setenv("S3_ENDPOINT", endpoint)
        address = open_store("obs://bucket/data")._files.url("bucket/data/x")
        assert address.startswith(OBS.replace("obs.", "bucket.obs.") + "/data/x?")


class Moxing:
    """What is used of moxing, as its manual has it: ``obs://`` is a folder of this machine."""

    def __init__(self, folder):
        self.folder = folder
        self.calls = []

    def at(self, url):
        return self.folder / url.removeprefix("obs://") if url.startswith("obs://") else Path(url)

    def exists(self, url):
        return self.at(url).exists()

    def list_directory(self, url, recursive=False):
        assert recursive
        return [p.relative_to(self.at(url)).as_posix() for p in self.at(url).rglob("*")]

    def stat(self, url):
        found = self.at(url).stat()
        is_directory = self.at(url).is_dir()
        return SimpleNamespace(
            length=found.st_size, mtime_nsec=found.st_mtime_ns, is_directory=is_directory
        )

    def copy(self, source, goal):
        self.calls.append(("copy", source, goal))
        self.at(goal).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.at(source), self.at(goal))

    def remove(self, url, recursive=True):
        assert not recursive
        self.calls.append(("remove", url))
        self.at(url).unlink()


def test_obs_goes_through_moxing_where_that_is(tmp_path, monkeypatch):
    stand_in = Moxing(tmp_path / "obs")
    monkeypatch.setitem(sys.modules, "moxing", SimpleNamespace(file=stand_in))
    make(tmp_path / "obs/bucket/data", CONTENTS)
    folder, count = copied("obs://bucket/data", tmp_path / "cache")
    assert count == 4
    assert local(folder) == CONTENTS
    assert {call[1] for call in stand_in.calls} == {f"obs://bucket/data/{n}" for n in CONTENTS}
    assert copied("obs://bucket/data", tmp_path / "cache") == (folder, 0)
    assert "no file there" in refusal(copied, "obs://bucket/none", tmp_path)

    run = tmp_path / "run"
    make(run, {"settings.yaml": b"s", "checkpoints/step-00000002.safetensors": b"2"})
    copy = RunCopy("obs://bucket/out", run, resume=False)
    copy.finish()
    (run / "checkpoints/step-00000002.safetensors").unlink()
    copy.finish()
    assert local(tmp_path / "obs/bucket/out") == {"settings.yaml": b"s"}
    assert stand_in.calls[-1][0] == "remove"

    stand_in.copy = lambda *_: 1 / 0
    (run / "log.txt").write_text("x")
    assert "out/log.txt: division by zero; check" in refusal(copy.finish)
    monkeypatch.setitem(sys.modules, "moxing", SimpleNamespace())  # PyPI's, which is another
    monkeypatch.delenv("S3_ENDPOINT", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert "no endpoint" in refusal(open_store, "obs://bucket/data")


# Copies of runs.

RUN = {
    "settings.yaml": b"settings",
    "metrics.jsonl": b"{}\n",
    "checkpoints/step-00000002.safetensors": b"2",
    "checkpoints/step-00000004.safetensors": b"4",
}
OTHERS = {"cache/images": b"many", "checkpoints/.step-00000006.ab.safetensors": b"draft"}


def test_a_run_is_copied_out_as_it_changes(place, tmp_path):
    run = tmp_path / "run"
    copy = RunCopy(place.url, run, resume=False)
    make(run, RUN | OTHERS)
    copy.save()
    assert place.read() == RUN
    foreign = {"checkpoints/step-00000001.safetensors": b"of another program"}
    place.write(**foreign)
    make(run, {"metrics.jsonl": b"{}\n{}\n", "checkpoints/step-00000006.safetensors": b"6"})
    (run / "checkpoints/step-00000002.safetensors").unlink()
    copy.save()
    assert place.read() == local_run(run) | foreign


def local_run(run):
    return {name: content for name, content in local(run).items() if name not in OTHERS}


def test_only_what_changed_is_sent_and_checkpoints_last(server, bucket, tmp_path):
    run = tmp_path / "run"
    make(run, RUN)
    copy = RunCopy(bucket.url, run, resume=False)
    server.counts()
    copy.save()
    sent = [path.removeprefix(f"/{bucket.root}/") for _, path, _ in server.asked]
    assert sent == ["metrics.jsonl", "settings.yaml", *sorted(RUN)[:2]]
    server.counts()
    copy.save()
    assert not server.counts()
    (run / "metrics.jsonl").write_bytes(b"[]\n")
    copy.finish()
    assert server.counts() == {"PUT": 1}


def test_a_run_there_is_refused_or_resumed(place, tmp_path):
    place.write(**RUN)
    message = refusal(RunCopy, place.url, tmp_path / "run", resume=False)
    assert message == f"{place.url}: holds a run; choose another URL, or resume the run"
    assert not (tmp_path / "run").exists()
    copy = RunCopy(place.url, tmp_path / "run", resume=True)
    assert local(tmp_path / "run") == RUN
    (tmp_path / "run/checkpoints/step-00000002.safetensors").unlink()
    copy.save()
    assert place.read() == local(tmp_path / "run")
    # The run of this machine is newer than its copy.
    make(tmp_path / "run", {"metrics.jsonl": b"newer"})
    RunCopy(place.url, tmp_path / "run", resume=True).finish()
    assert place.read()["metrics.jsonl"] == b"newer"


def test_a_run_copied_in_by_halves_is_no_run_yet(server, bucket, tmp_path):
    """Else the next ``--resume`` would begin at its first step."""
    bucket.write(**RUN)
    run = tmp_path / "run"

    def refuse_the_last(path):
        if path.endswith("4.safetensors"):
            server.failures.append(("GET", "403 No", "AccessDenied"))

    server.before = refuse_the_last
    refusal(RunCopy, bucket.url, run, resume=True)
    assert "settings.yaml" not in local(run)
    server.before = None
    server.failures.clear()
    RunCopy(bucket.url, run, resume=True)
    assert local(run) == RUN


def test_a_failed_copy_out_is_reported_and_repeated(server, bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    run = tmp_path / "run"
    make(run, RUN)
    copy = RunCopy(bucket.url, run, resume=False)
    failure = ("PUT", "403 No", "AccessDenied")
    server.failures.append(failure)
    copy.save()
    message = capsys.readouterr().out
    assert message.count("\n") == 1
    assert message.startswith(f"{bucket.url}/metrics.jsonl: ")
    assert "is tried again later" in message
    copy.save()
    assert bucket.read() == RUN
    (run / "metrics.jsonl").write_bytes(b"other")
    server.failures.append(failure)
    message = refusal(copy.finish)
    assert message.startswith(f"{bucket.url}/metrics.jsonl: ")
    assert f"The run in {run} is complete; resume it to copy it out" in message


def test_a_failed_writing_leaves_the_old_file(tmp_path, monkeypatch):
    place = tmp_path / "store"
    make(tmp_path / "run", {"settings.yaml": b"new"})
    make(place, {"settings.yaml": b"old"})
    copy = RunCopy(f"file://{place}", tmp_path / "run", resume=True)

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", broken)
    assert "Input/output error" in refusal(copy.finish)
    assert local(place) == {"settings.yaml": b"old"}
