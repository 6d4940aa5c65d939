"""Einsum: channels on an axis meet those of every operand whose axis has the same letter."""

from __future__ import annotations

from onnxprune.graph.equation import Equation, parse_equation
from onnxprune.graph.labels import Labels, other_axes
from onnxprune.graph.ops.context import Context
from onnxprune.graph.ops.elementwise import meet
from onnxprune.graph.ops.registry import NoRule, rule

_WHY = "it mixes what is not split alike"


@rule("Einsum", since=12)
def einsum(ctx: Context) -> None:
    """Merge what meets on each letter; a constant operand takes the labels of the letters that it shares.

    With one constant operand, channels that are summed over end there, and atoms start on the first
    letter that the constant brings into the result. Channels on another letter pass.
    """
    count = len(ctx.node.input)
    equation = parse_equation(ctx.attribute("equation", ""), [len(ctx.shape(i)) for i in range(count)])
    if equation is None:
        raise NoRule("it takes a diagonal")
    moving = [index for index in range(count) if not ctx.is_constant(index)]
    constant = [index for index in range(count) if ctx.is_constant(index)]
    ids: dict[str, Labels] = {}
    for index in moving:
        for letter, labels in _by_letter(ctx, index, equation).items():
            ids[letter] = meet(ctx, ids[letter], labels) if letter in ids else labels
    carried = {letter for letter, labels in ids.items() if labels.varying}
    if len(moving) == 1 and len(constant) == 1 and not carried & set(equation.result):
        _start(ctx, equation, moving[0], constant[0], ids)
    for index in constant:
        for axis, letter in enumerate(equation.operands[index]):
            if letter in ids and ids[letter].shape[0] == ctx.shape(index)[axis]:
                ctx.bind_axis(index, axis, ids[letter].full().copy())
    ctx.emit(0, _result(ctx, equation, ids))


def _by_letter(ctx: Context, index: int, equation: Equation) -> dict[str, Labels]:
    """Labels (dim,) for each letter of an operand; they change along one letter at most.

    Where they change along several, whole indices of a letter that counts products go (heads).
    """
    labels, letters = ctx.labels(index), equation.operands[index]
    if len(labels.varying) > 1:
        kept = min(labels.varying, key=lambda axis: _preference(equation, letters[axis]))
        labels = ctx.uniform(labels, other_axes(len(letters), [kept]), _WHY)
    return {
        letter: Labels.along((labels.shape[axis],), 0, labels.core.reshape(-1))
        if axis in labels.varying
        else Labels.data((labels.shape[axis],))
        for axis, letter in enumerate(letters)
    }


def _preference(equation: Equation, letter: str) -> tuple[bool, bool]:
    everywhere = letter in equation.result and all(letter in operand for operand in equation.operands)
    return not everywhere, letter in equation.result


def _start(ctx: Context, equation: Equation, data: int, weight: int, ids: dict[str, Labels]) -> None:
    """Start atoms on the first letter that the weight brings, and record the layer."""
    mine, given = equation.operands[weight], equation.operands[data]
    sizes = dict(zip(mine, ctx.shape(weight), strict=True))
    brought = [letter for letter in mine if letter not in given and letter in equation.result]
    met = {letter for letter in mine if letter in given and ids[letter].shape[0] == sizes[letter]}
    summed = [letter for letter in mine if letter in met and letter not in equation.result]
    if not brought or not summed:
        return
    start = max(brought, key=lambda letter: sizes[letter] > 1)
    end = max(summed, key=lambda letter: len(ids[letter].varying))
    size = sizes[start]
    outgoing = ctx.atoms.fresh(size, removable=True)
    ids[start] = Labels.along((size,), 0, outgoing)
    ctx.add_layer(
        data=data,
        weight=weight,
        bias=None,
        weight_axes=(mine.index(end), mine.index(start)),
        channel_axis=given.index(end),
        groups=1,
        ids=(ids[end].full().copy(), outgoing),
    )


def _result(ctx: Context, equation: Equation, ids: dict[str, Labels]) -> Labels:
    """What the letters of the result carry, where several do: nothing that can go."""
    shape = ctx.out_shape()
    labels = Labels.data(shape)
    first = True
    for axis, letter in enumerate(equation.result):
        part = ids.get(letter)
        if part is None or not part.varying:
            continue
        view = tuple(size if position == axis else 1 for position, size in enumerate(shape))
        along = Labels(view, part.core.reshape(view))
        labels = along if first else meet(ctx, labels, along)
        first = False
    return Labels(shape, labels.core)
