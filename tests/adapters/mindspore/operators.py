"""Compile the training and the inference graph of a preset, and leave them as text.

    python operators.py FOLDER PRESET [KEY=VALUE ...]

MindSpore writes a graph as it is after all of its optimisations that know no device.
"""

import os
import sys
from pathlib import Path


def compiled(folder, name, assignments):
    os.environ["MS_DEV_SAVE_GRAPHS"] = "1"
    os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(folder)
    os.environ["MS_DEV_DUMP_IR_PASSES"] = "validate"

    import mindspore as ms
    import numpy as np

    from refinedet.adapters.mindspore.backend import MindSporeCPU
    from refinedet.settings import resolve
    from refinedet.spec.anchors import anchors
    from refinedet.spec.network import initial_parameters

    config = resolve(name, None, assignments).model
    parameters = initial_parameters(config, 0)
    n, slots, rows, (height, width) = 8, 16, len(anchors(config)), config.image_size
    batch = (
        np.zeros((n, 3, height, width), np.float32),
        np.zeros((n, slots, 4), np.float32),
        np.zeros((n, slots), np.int32),
        np.zeros((n, rows, 4), np.float32),
        np.zeros((n, rows), np.int32),
    )
    backend = MindSporeCPU()
    backend.trainer(config, parameters).run.compile(*map(ms.Tensor, batch))
    backend.network(config, parameters).scored.compile(ms.Tensor(batch[0]))


if __name__ == "__main__":
    compiled(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
