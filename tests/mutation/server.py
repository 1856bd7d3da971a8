"""The tests of one mutant after another, without starting Python and pytest for each.

``serve`` imports what no mutant changes, and forks for every mutant; ``ask`` is
cosmic-ray's test command: 0 if all tests pass, 1 if one fails.
"""

import os
import signal
import socket
import sys
import traceback

OPTIONS = (
    *("-x", "-q", "-p", "no:cacheprovider", "-p", "no:refinedet-conformance"),
    *("-W", "ignore:Module already imported so cannot be rewritten"),
)


def serve(address: str, seconds: str, *groups: str) -> None:
    """Run groups of tests, one after the other, for everyone who asks."""
    import resource

    import hypothesis.extra.numpy
    import numpy.testing  # noqa: F401
    import pytest

    assert "refinedet.spec" not in sys.modules
    # A counterexample kills as it is. The profile of the tests inherits this.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutation", phases=phases)
    hypothesis.settings.load_profile("mutation")

    def run() -> int:
        signal.alarm(int(seconds))  # a mutant that never ends is killed
        resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # and one without measure
        return int(any(pytest.main([*OPTIONS, *group.split()]) for group in groups))

    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    while True:
        link, _ = server.accept()
        with link:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    status = run()
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            link.send(bytes([status != 0]))


def ask(address: str) -> int:
    """The answer of the server."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        failed = link.recv(1)[0]
    print("killed" if failed else "survived")
    return failed


if __name__ == "__main__":
    sys.exit({"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:]))
