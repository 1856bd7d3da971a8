"""Learning rate: a number for every step.

Steps count from 0. A linear warm-up leads to the full rate; after it the rate
falls by a factor at each milestone, or along half a cosine.
"""

from __future__ import annotations

import math

from refinedet.spec.config import ScheduleConfig
from refinedet.spec.errors import SpecError


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """The learning rate of one step.

    Step ``s`` of the warm-up has ``warmup_rate + (rate - warmup_rate) * s / warmup_steps``;
    the first step after it has ``rate``. A milestone is the first step with the lowered
    rate. The cosine runs from the end of the warm-up to ``steps``, where it would
    reach ``final_rate``; the last step is one before that.

    Args:
        step: 0 to ``steps`` - 1.
    Raises:
        SpecError: a step outside the training.
    Source: multistep as in the authors' solvers; cosine: SGDR, arXiv:1608.03983,
        equation 5, without restarts.
    """
    if not 0 <= step < config.steps:
        raise SpecError(f"{step} is outside 0..{config.steps - 1}", key="step")
    if step < config.warmup_steps:
        rise = config.rate - config.warmup_rate
        return config.warmup_rate + rise * step / config.warmup_steps
    if config.kind == "multistep":
        return config.rate * config.factor ** sum(step >= m for m in config.milestones)
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    fall = config.rate - config.final_rate
    return config.final_rate + fall * (1 + math.cos(math.pi * done)) / 2
