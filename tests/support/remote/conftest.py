"""An S3 server on loopback, which counts requests and fails on demand."""

import itertools
import threading
from collections import Counter

import fsspec
import pytest
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEY = "the-key"
BUCKETS = (f"bucket-{number}" for number in itertools.count())
"""A new one for each test: the server keeps them all."""
ERROR = "<Error><Code>{0}</Code><Message>{0}, as the test expected it</Message></Error>"


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        """Nothing."""


class Server:
    """A WSGI application: moto's S3, and a plan of failures before it."""

    def __init__(self):
        self.s3 = DomainDispatcherApplication(create_backend_app)
        self.asked = []
        """Method, path, and whether Amazon's newer checksums were used."""
        self.failures = []
        """The next answers: (method, status, code); each is given once."""
        self.before = None
        """Is called with the path of each file that is asked for."""
        self.changing = threading.Lock()

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self.before and method == "GET" and path.count("/") > 2:
            self.before(path)
        with self.changing:
            self.asked.append((method, path, "HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM" in environ))
            failure = next((f for f in self.failures if f[0] == method), None)
            if failure:
                self.failures.remove(failure)
        if KEY not in environ.get("HTTP_AUTHORIZATION", ""):
            failure = (method, "403 Forbidden", "InvalidAccessKeyId")
        if failure:
            start_response(failure[1], [("Content-Type", "application/xml")])
            return [ERROR.format(failure[2]).encode()]
        return self.s3(environ, start_response)

    def hold(self, bucket, key, content):
        """Put an object there whose key no client would send as it is."""
        get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, content)

    def counts(self):
        """How many requests of each method came since the last call."""
        with self.changing:
            counted = Counter(method for method, *_ in self.asked)
            self.asked.clear()
        return counted


@pytest.fixture(scope="session")
def application():
    return Server()


@pytest.fixture(scope="session")
def endpoint(application):
    with make_server("127.0.0.1", 0, application, True, request_handler=Quiet) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


@pytest.fixture
def server(application, endpoint, monkeypatch, tmp_path):
    """The server; the environment has its address and a key."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "dummy")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("S3_ENDPOINT", raising=False)
    application.failures.clear()
    application.before = None
    application.counts()
    return application


class Place:
    """A folder at a URL, as another program sees it: fsspec's own client."""

    def __init__(self, url, endpoint):
        self.url = url
        kind = url.partition("://")[0]
        where = {"endpoint_url": endpoint, "use_listings_cache": False} if kind == "s3" else {}
        self.files = fsspec.filesystem(kind, skip_instance_cache=True, **where)
        self.root = self.files._strip_protocol(url)

    def write(self, **contents):
        """Put files there: NAME=BYTES."""
        for name, content in contents.items():
            path = f"{self.root}/{name}"
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(path, content)

    def read(self):
        """All that is there, by name."""
        found = self.files.find(self.root)
        return {name.removeprefix(self.root + "/"): self.files.cat_file(name) for name in found}


@pytest.fixture
def bucket(server, endpoint):
    """A folder in a new bucket."""
    place = Place(f"s3://{next(BUCKETS)}/some/folder", endpoint)
    place.files.mkdir(place.root.partition("/")[0])
    server.counts()
    return place


@pytest.fixture(params=["s3", "file"])
def place(request, tmp_path, endpoint):
    """A folder, in a bucket or on this machine."""
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return Place(f"file://{tmp_path}/store/some/folder", endpoint)
