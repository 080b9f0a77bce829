"""The stack of equal blocks that most of a model is: which of its parameters come before, in and after it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from .detect_head import unwrapped
from .layer_evidence import (
    Side,
    go_along,
    is_surely_early,
    known_outputs,
    side_by_name,
    side_by_shape,
)
from .model_parameters import plain_name
from .purpose import EMBEDDINGS, Purpose

# direct neighbours of a stack that are applied after it, though some models make them before
LATE = (
    *("ln_f", "norm_f", "ln_post", "final_norm", "final_layer_norm", "final_layernorm"),
    *("post_layernorm", "fc_norm", "project_out"),
)
LAST_PARAMETERS = ("proj", "text_projection")  # of the model itself: open_clip's
MOST = 0.9  # of the elements of all stacks that the one holds which is the model's


@dataclass(frozen=True)
class LayerStack:
    """A list of blocks in a model.

    Attributes:
        path: its name.
        blocks: names of its blocks, first to last.
        earlier: names of parameters that the model lists before those of the stack.
        modules: of the model, by name.
        shapes: what `side_by_shape` says of modules, by their names, as far as it was asked.
    """

    path: str
    blocks: tuple[str, ...]
    earlier: frozenset[str]
    modules: dict[str, nn.Module]
    shapes: dict[str, Side | None] = field(default_factory=dict)

    @property
    def after(self) -> int:
        """The depth of what comes after the last block."""
        return len(self.blocks) + 1

    def depth_of(self, name: str, module: nn.Module, purpose: Purpose) -> int:
        """Return 0 for a parameter before the first block, 1, 2, ... for one in a block, else `after`.

        Args:
            module: that holds it.
            purpose: of the parameter.

        Raises:
            ValueError: it is made before the blocks, and may be of a last layer all the same.
        """
        inside = name.removeprefix(f"{self.path}.") if self.path else name
        if inside != name or not self.path:
            block = inside.partition(".")[0]
            if block in self.blocks:
                return 1 + self.blocks.index(block)
        along = self._block_of(name)
        if along is not None:
            return 1 + along
        if isinstance(module, EMBEDDINGS):
            return 0  # some are made after the stack, as DeBERTa's relative positions
        holder, _, own = name.rpartition(".")[0].rpartition(".")
        is_late = own in LATE and holder == self._holder
        if is_late or name in LAST_PARAMETERS or self._side(name, purpose) == "after":
            return self.after
        return 0

    def _side(self, name: str, purpose: Purpose) -> Side:
        """The side of the stack that a parameter is on: that on which it was made, unless there is evidence."""
        common, parts = self._beside(name)
        if name not in self.earlier:
            return "before" if len(parts) > 1 and is_surely_early(parts[0]) else "after"
        side = side_by_name(parts[:1])
        if side is None and purpose == "embedding":
            return "before"
        path = ".".join([*common, parts[0]])
        unit = self.modules.get(path)
        if side is None and unit is not None:
            side = self._by_shape(path, unit) or side_by_name(parts[1:-1])
        # a norm, or a token: of all that was seen in libraries such were made where they are applied
        has_matrix = unit is not None and any(p.dim() > 1 for p in unit.parameters())
        if side is None and purpose == "vector" and not has_matrix:
            return "before"
        if side is None:
            layer = name.rpartition(".")[0] or name
            raise ValueError(
                f"it cannot be known whether {layer!r} comes before the blocks {self.path!r} or after them: it was "
                "made before them, and neither its name nor its shape tells. Pass head= its name if it is a last "
                "layer, or layers= names from the embeddings to the head"
            )
        return side

    def _by_shape(self, path: str, unit: nn.Module) -> Side | None:
        if path not in self.shapes:
            first, last = (self.modules[f"{self.path}.{self.blocks[end]}"] for end in (0, -1))
            self.shapes[path] = side_by_shape(unit, first, last, known_outputs(self.modules))
        return self.shapes[path]

    def _block_of(self, name: str) -> int | None:
        """The number of the block that something goes with: part of a list beside the blocks, one for each of them."""
        common, parts = self._beside(name)
        if len(parts) < 3 or parts[1] not in self.blocks or ".".join(common) != self._holder:
            return None
        beside = self.modules[".".join([*common, parts[0]])]
        is_list = isinstance(beside, (nn.ModuleList, nn.ModuleDict))
        names = tuple(child for child, _ in beside.named_children())
        if not is_list or names != self.blocks or side_by_name(parts[:1]) == "after":
            return None
        blocks = [self.modules[f"{self.path}.{block}"] for block in self.blocks]
        return self.blocks.index(parts[1]) if go_along([*beside.children()], blocks) else None

    @property
    def _holder(self) -> str:
        return self.path.rpartition(".")[0]

    def _beside(self, name: str) -> tuple[list[str], list[str]]:
        """The parts of a name that are those of the stack's too, and the others."""
        parts, own = name.split("."), self.path.split(".")
        count = 0
        while count < min(len(parts) - 1, len(own)) and parts[count] == own[count]:
            count += 1
        return parts[:count], parts[count:]


def find_stack(model: nn.Module) -> LayerStack:
    """Return the stack of a model.

    A stack is a container with at least two blocks of one class, none of which is a plain layer. Of several, as
    those of an encoder and a decoder, or of the stages of a convolutional network, none is the model's.

    Raises:
        ValueError: there is none, or there are several; lists them.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)) and _is_stack(module)
    ]
    # a stack inside of a block is none of the model's
    outer = [
        (name, module)
        for name, module in found
        if not any(name != other and _is_inside(name, other) for other, _ in found)
    ]
    total = sum(_elements(module) for _, module in outer)
    whole = [pair for pair in outer if _elements(pair[1]) >= MOST * max(total, 1)]
    if len(whole) != 1:
        counts = [(name, len(list(module.children()))) for name, module in outer]
        listing = ", ".join(f"{name!r} ({count} blocks)" for name, count in counts) or "none"
        raise ValueError(
            "the layers of the model are not recognised: no single stack of equal blocks holds most of it. Pass "
            "layers= names from the embeddings to the head, or a function of a parameter's name. "
            f"Stacks: {listing}"
        )
    ((path, stack),) = whole
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    first = next(i for i, name in enumerate(names) if _is_inside(name, path))
    blocks = tuple(name for name, _ in stack.named_children())
    modules = {plain_name(name): module for name, module in model.named_modules()}
    return LayerStack(plain_name(path), blocks, frozenset(map(plain_name, names[:first])), modules)


def _is_inside(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _is_stack(module: nn.Module) -> bool:
    blocks = list(module.children())
    has_layers = all(any(True for _ in block.children()) for block in blocks)
    return len(blocks) >= 2 and has_layers and _are_alike(blocks)


def _are_alike(blocks: list[nn.Module]) -> bool:
    """Tell whether blocks are of one class, inside of what wraps each of them (FSDP1, torch.compile)."""
    return 1 in (len({*map(type, blocks)}), len({type(unwrapped(block)[1]) for block in blocks}))


def _elements(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
