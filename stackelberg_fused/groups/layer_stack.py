"""The stack of equal blocks that most of a model is: which of its parameters come before, in and after it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .detect_head import unwrapped
from .model_parameters import plain_name

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
    """

    path: str
    blocks: tuple[str, ...]
    earlier: frozenset[str]

    @property
    def after(self) -> int:
        """The depth of what comes after the last block."""
        return len(self.blocks) + 1

    def depth_of(self, name: str, module: nn.Module) -> int:
        """Return 0 for a parameter before the first block, 1, 2, ... for one in a block, else `after`.

        Args:
            module: that holds it.
        """
        inside = name.removeprefix(f"{self.path}.") if self.path else name
        if inside != name or not self.path:
            block = inside.partition(".")[0]
            if block in self.blocks:
                return 1 + self.blocks.index(block)
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            return 0  # some are made after the stack, as DeBERTa's relative positions
        holder, _, own = name.rpartition(".")[0].rpartition(".")
        is_late = own in LATE and holder == self.path.rpartition(".")[0]
        if is_late or name in LAST_PARAMETERS:
            return self.after
        return 0 if name in self.earlier else self.after


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
    whole = [pair for pair in outer if _elements(pair[1]) >= MOST * total]
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
    return LayerStack(plain_name(path), blocks, frozenset(map(plain_name, names[:first])))


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
