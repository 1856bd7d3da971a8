"""What the tests of several rooms share; needs pytest alone."""


def refused(result, message):
    """Assert that a command ended with status 1 and one error line that contains ``message``.

    Args:
        result: status, standard output and standard error, as the fixture ``run`` gives them.
    """
    status, _, err = result
    assert status == 1, result
    assert err.startswith("refinedet: error: "), err
    assert err.count("\n") == 1, err
    assert message in err
