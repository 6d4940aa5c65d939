"""The constant that a residual join adds where a whole branch went: what the original's join asks for.

It is the regression of a layer without inputs: its bias alone is left. So the mean of what the join
lacks, as far as the activation behind lets it be seen.
"""

from __future__ import annotations

import numpy as np
import torch

from onnxprune.graph.joins import Target
from onnxprune.graph.plan import Plan, kept_indices
from onnxprune.graph.structure import Layer, ResidualBranch
from onnxprune.graph.weights import Constants
from onnxprune.profile.geometry import Geometry, choose_positions
from onnxprune.recover.clipped import fit_clipped
from onnxprune.recover.fit import Fit, fit_matrix
from onnxprune.recover.problem import ROWS, split
from onnxprune.recover.rows import Response, Rows
from onnxprune.recover.walker import Walker


def settle(
    branch: ResidualBranch,
    reader: Layer,
    target: Target,
    plan: Plan,
    constants: Constants,
    original: Walker,
    changed: Walker,
    generator: torch.Generator,
) -> Fit:
    """Fit the constant in the place of ``branch``, whose ``reader`` had that ``target``, and write it.

    ``constants`` are the pruned model's. The walkers stand in front of the join, and stay there. The
    constant stays as it was where the fit doesn't help.
    """
    assert target.shortcut is not None
    device, axes = changed.device, Geometry(reader.channel_axis, groups=1)
    channels = torch.from_numpy(np.flatnonzero(kept_indices(plan.keep, reader.out_units)))
    fit: list[Rows] = []
    held_out: list[Rows] = []
    size = min(original.batch_size([target.tensor]), changed.batch_size([target.shortcut]))
    streams = zip(
        changed.stream([target.shortcut], size), original.stream([target.tensor], size), strict=True
    )
    for (samples, actual), (_, true) in streams:
        shortcut, goal = actual[target.shortcut].to(device), true[target.tensor].to(device)
        chosen = choose_positions(axes.positions(shortcut.shape), changed.samples, ROWS[0], generator)
        added = axes.targets(shortcut, chosen).transpose(0, 1)
        wanted = axes.targets(goal, chosen, channels).transpose(0, 1)
        learning, held = split(Rows(added.new_ones(1, added.shape[1], 1), wanted, added), samples)
        fit.append(learning)
        held_out.append(held)
    old = constants.read(branch.tensor)
    before = torch.from_numpy(old.astype(np.float64).reshape(1, 1, -1)).to(device)
    zero = torch.zeros_like(before, dtype=torch.float32)
    response = Response(zero + 1, zero, zero > 0, target.clip)
    shape = (1, 1, old.size)
    result = fit_matrix(response.sums(fit, shape), response.sums(held_out, shape), before, constant=True)
    if target.clip.clips:
        result = fit_clipped(response, fit, held_out, before, result)
    if result.helps:
        constants.write(branch.tensor, result.matrix.cpu().numpy().reshape(old.shape))
    return result
