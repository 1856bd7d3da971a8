"""What the detectors are made of is documented by MindSpore for Ascend, for GPU and for CPU.

Neither device is here. So the graphs of training and of inference are compiled at full size, and
every primitive in them is looked up in the documentation of the installed MindSpore: the line
below "Supported Platforms" of its own text, or of the function to which that refers. Gradients
are not documented for themselves; they stand by what they are the gradients of.
"""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mindspore import ops
from mindspore.ops import auto_generate, operations
from mindspore.ops.operations import _grad_ops

CASES = (
    ("refinedet_vgg16_320", "model.optimizer.precision=float16"),
    ("refinedet_vgg16_320",),
    ("modelzoo_vgg16_320",),
    ("refinedet_resnet101_320",),
    ("modelzoo_resnet101_320",),
)
"""Presets, and what is set in them. Every kind of layer, loss and update is in one of them; the
presets for 512x512 have the same layers."""
DEVICES = ("Ascend", "GPU", "CPU")
STRUCTURE = {
    "Load": "reads a parameter in its order; computes nothing",
    "MakeTuple": "bundles values; computes nothing",
    "Switch": "chooses between two graphs, on the host",
    "TensorMove": "copies a tensor before a parameter is written; MindSpore puts it in itself",
    "TupleGetItem": "takes a value from a bundle; computes nothing",
    "UpdateState": "keeps side effects in their order; computes nothing",
}
"""Parts of every graph of MindSpore's, documented for no device."""
STANDS_BY = {
    "BatchNormGrad": "BatchNorm",
    "BiasAddGrad": "BiasAdd",
    "Conv2DBackpropFilter": "Conv2D",
    "Conv2DBackpropInput": "Conv2D",
    "Divs": "Div",  # by a number
    "GatherDGradV2": "GatherD",
    "LogSoftmaxGrad": "LogSoftmax",
    "MaxPoolGrad": "MaxPool",
    "Muls": "Mul",  # by a number
    "ReLU6Grad": "ReLU6",
    "ReluGrad": "ReLU",
    "SplitWithSize": "Split",  # into pieces whose sizes are given
    "SqrtGrad": "Sqrt",
    "ZerosLikeExt": "Select",  # only in its gradient; for itself documented for Ascend alone
}
"""What MindSpore makes of documented primitives by itself, and of which."""


def platforms(text):
    """The devices that a documentation names; None if it says nothing of them."""
    found = re.search(r"Supported Platforms:\s*\n\s*(.*)", text or "")
    return found and tuple(re.findall(r"``(\w+)``", found[1]))


def documented(name):
    """The devices for which MindSpore documents a primitive; empty if for none."""
    for place in (ops, operations, auto_generate, _grad_ops):
        if hasattr(place, name):
            text = getattr(place, name).__doc__ or ""
            break
    else:
        return ()
    if (own := platforms(text)) is not None:
        return own
    function = re.search(r"Refer to :func:`mindspore\.ops\.(\w+)`", text)
    for place in (ops, auto_generate):
        if function and (found := platforms(getattr(place, function[1], None).__doc__)):
            return found
    return ()


def primitives(graph):
    """The names of all primitives in a graph, as MindSpore writes it."""
    found = re.findall(r"^ +%\d+\([^)]*\) = (?:PrimFunc_)?(\w+)\(", graph, re.M)
    return set(found) - {"call"}  # another graph, with its own primitives


def compiled(case, folder):
    """The primitives of a case's training and of its inference."""
    script = Path(__file__).with_name("operators.py")
    made = subprocess.run(
        [sys.executable, str(script), str(folder), *case], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-2000:]
    graphs = sorted(folder.glob("*_validate_*.ir"))
    assert len(graphs) == 2
    found = [primitives(graph.read_text()) for graph in graphs]
    shutil.rmtree(folder)  # tens of megabytes
    return found


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Training's and inference's primitives by case."""
    folders = [tmp_path_factory.mktemp("graphs") for _ in CASES]
    with ThreadPoolExecutor(2) as pool:  # each compiles in a process of its own, on one core
        return dict(zip(CASES, pool.map(compiled, CASES, folders), strict=True))


def test_every_primitive_is_documented_for_every_device(everything):
    for case, (training, inference) in everything.items():
        assert {"Conv2D", "Conv2DBackpropFilter", "ApplyMomentum", "MaxPoolGrad"} <= training
        assert {"Conv2D", "MaxPool", "Exp"} <= inference
        for name in sorted((training | inference) - set(STRUCTURE)):
            judged = STANDS_BY.get(name, name)
            assert set(DEVICES) <= set(documented(judged)), f"{case}: {name}"


def test_no_exception_is_without_need(everything):
    seen = set.union(*(one | other for one, other in everything.values()))
    assert set(STRUCTURE) | set(STANDS_BY) <= seen
    for name in (*STRUCTURE, *STANDS_BY):
        assert not set(DEVICES) <= set(documented(name)), name


def test_the_documentation_is_read_rightly():
    assert documented("ReLU") == documented("BatchNorm") == DEVICES  # by reference; by itself
    assert documented("ZerosLikeExt") == ("Ascend",)
    assert documented("MaxPoolGrad") == documented("Nonsense") == ()
    graph = "  %1(CNode_2) = PrimFunc_Mul(%0, %a) {x}\n  %2(y) = call(%g)\n    %3(z) = Conv2D(%1)\n"
    assert primitives(graph) == {"Mul", "Conv2D"}
