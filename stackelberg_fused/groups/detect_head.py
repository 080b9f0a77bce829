"""The head of a model that nobody named: its last layers, found by what libraries call them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

log = logging.getLogger("stackelberg_fused")

# Last layers by their usual names (transformers, torchvision, timm, and plain habit).
USUAL_HEADS = (
    "lm_head",
    "lm_heads",
    "lm_loss",
    "embed_out",
    "cls",
    "predictions",
    "score",
    "classifier",
    "classification_head",
    "cls_classifier",
    "qa_outputs",
    "qa_classifier",
    "vocab_projector",
    "generator_lm_head",
    "discriminator_predictions",
    "output_projection",
    "logits_proj",
    "pred_layer",
    "proj_out",
    "decode_head",
    "mask_head",
    "class_predictor",
    "ctc_head",
    "fc",
    "head",
    "heads",
    "output_layer",
    "output",
    "out",
    "readout",
    "policy_head",
    "value_head",
    "v_head",
)
# Layers that never are the only head of a model: they join the one beside them.
COMPANIONS = (
    "multiple_choice_head",
    "seq_relationship",
    "sop_classifier",
    "distillation_classifier",
    "head_dist",
    "auxiliary_head",
    "aux_classifier",
    "AuxLogits",
    "aux1",
    "aux2",
)


def candidates(model: nn.Module) -> str:
    """The last layers with parameters, for messages."""
    leaves = [
        name for name, module in model.named_modules() if name and not list(module.children())
    ]
    with_params = [n for n in leaves if list(model.get_submodule(n).parameters(recurse=False))]
    return ", ".join(map(repr, with_params[-8:])) or "none: the model has no layers with parameters"


def unwrapped(model: nn.Module) -> tuple[str, nn.Module]:
    """The model inside of wrappers, and its path: "" for one that is not wrapped, else with a dot at its end.

    A wrapper has all its parameters in one child: `DistributedDataParallel`, `DataParallel`, a compiled module, FSDP, a
    module of Lightning with one network. PEFT's may hold trained prompts beside the model, but says where that is.
    """
    path = ""
    while True:
        inner = _inside(model)
        if inner is None:
            return path, model
        path += f"{inner}."
        model = model.get_submodule(inner)


def _inside(model: nn.Module) -> str | None:
    """The path of the model in a wrapper; None in what is none."""
    children = _children(model)
    get_base = getattr(model, "get_base_model", None)  # of PEFT
    if "base_model" in children and callable(get_base):
        base = get_base()
        paths = [name for name, module in model.named_modules() if name and module is base]
        if paths:
            return paths[0]
    if len(children) != 1 or any(True for _ in model.parameters(recurse=False)):
        return None
    ((name, child),) = children.items()
    is_layer = not any(True for _ in child.children())
    return None if is_layer or name in USUAL_HEADS else name


def _children(model: nn.Module) -> dict[str, nn.Module]:
    """Direct children with parameters."""
    return {
        name: child
        for name, child in model.named_children()
        if any(True for _ in child.parameters())
    }


def detect_head(model: nn.Module) -> list[str]:
    """Names of the modules and parameters that are the last layers of a model, which may be wrapped.

    A model of transformers says which of its children is the backbone: the head is all else. Elsewhere the head is
    `get_output_embeddings()`, where the model has it, or the direct child with a usual name, and their companions.

    Raises:
        ValueError: nothing was found, or several that could each be meant; lists the candidates.
    """
    path, core = unwrapped(model)
    found = list(dict.fromkeys(_heads_of(core)))
    if not found:
        raise _not_detected(model, "no usual name")
    log.info("head: %s, by name", ", ".join(map(repr, found)))
    return [f"{path}{name}" for name in found]


def _not_detected(model: nn.Module, why: str) -> ValueError:
    return ValueError(
        f"the head (last layer) could not be detected ({why}); pass head= a name, a module, a list of either, or a "
        f"predicate. Last layers with parameters: {candidates(model)}"
    )


def _heads_of(model: nn.Module) -> list[str]:
    beside = _beside_backbone(model)
    if beside:
        return beside
    children = _children(model)
    companions = [name for name in COMPANIONS if name in children]
    # one list for each child: the child itself, or what a model of transformers has that is a part of this one
    parts = {
        **{name: [name] for name in USUAL_HEADS if name in children},
        **{
            name: [f"{name}.{inner}" for inner in _beside_backbone(child)]
            for name, child in children.items()
            if name not in USUAL_HEADS
        },
    }
    is_of_transformers = hasattr(model, "base_model_prefix")
    embeddings = _path_told(model, "get_output_embeddings")
    if embeddings is not None:
        around = _companions_around(model, embeddings)
        others = (
            head
            for name, heads in parts.items()
            if name != embeddings.partition(".")[0] and (is_of_transformers or heads == [name])
            for head in heads
        )
        return [embeddings, *around, *others, *companions]
    found = [heads for heads in parts.values() if heads]
    flat = [head for heads in found for head in heads]
    # a model of transformers that is made of several has all of their heads
    if len(found) > 1 and not is_of_transformers:
        raise _not_detected(model, f"{', '.join(map(repr, flat))} all have a usual name")
    return [*flat, *companions] if flat else []


def _beside_backbone(model: nn.Module) -> list[str]:
    """Names of what a model of transformers has beside its backbone; none where it has no such thing."""
    children = _children(model)
    backbone = getattr(model, "base_model_prefix", None)
    if not isinstance(backbone, str) or backbone not in children:
        return []
    inputs = _path_told(model, "get_input_embeddings")
    if inputs is not None and inputs.partition(".")[0] != backbone:
        return []  # it is a backbone itself, whose blocks have that name (DINOv3)
    own = [name for name, _ in model.named_parameters(recurse=False)]
    return [*own, *(name for name in children if name != backbone)]


def _path_told(model: nn.Module, method: str) -> str | None:
    """The path of the layer that a method of a model of transformers returns, if the model says."""
    getter = getattr(model, method, None)
    try:
        layer = getter() if callable(getter) else None
    except (NotImplementedError, AttributeError):
        return None
    paths = (name for name, module in model.named_modules() if name and module is layer)
    return next(paths, None)


def _companions_around(model: nn.Module, path: str) -> Iterator[str]:
    """Companions of a layer in the modules that hold it, from the outside in."""
    holders = path.split(".")[:-1]
    for depth in range(1, len(holders) + 1):
        holder = ".".join(holders[:depth])
        for name in _children(model.get_submodule(holder)):
            if name in COMPANIONS:
                yield f"{holder}.{name}"
