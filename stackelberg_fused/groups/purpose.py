"""What a parameter is for: a table of embeddings, a matrix, or a vector (biases, scales, rates of state spaces).

The one judgement of `kinds` and `decay_by_module`. It follows what is published:

- Tables count as embeddings, also positions, tokens and relative biases that are parameters of a model itself: minGPT
  and timm decay none of them (`no_weight_decay` of its ViT, Swin, LeViT, ...).
- What has one dimension counts as a vector, LayerScale's gamma too: nanoGPT, BEiT, ConvNeXt, timm
  (`param_groups_weight_decay`). So does one dimension among others of size 1, as RWKV has it (`p.squeeze()`), unless
  it is a weight.
- A_log and its like (Mamba, VMamba, S4, RWKV) are applied element by element: Mamba marks A_log and D
  `_no_weight_decay`.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..memory.flattened import original_shapes
from .model_parameters import ModelParameter, own_name
from .split import is_no_decay

Purpose = Literal["embedding", "matrix", "vector"]

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# of tables that are no module: pos_embed, cls_token, position_embedding_table; relative_position_bias_table, rel_pos_h,
# attention_biases, position_bias; patch_pos, positional_encoding; probe and latents of attention that pools
_TABLE = re.compile(
    r"(^|_)((emb|embed|embedding|token)s?\d*(_table)?|latents?|probe)$"
    r"|(^|_)(pos|positions?|positional)(_(?!proj|net|mlp|bias_[uv]$)|$)"
    r"|^(attention_biases|relative_attention_bias|rel_height|rel_width)$"
)
# with two dimensions, too; an "A" alone may be a matrix of low rank
_STATE_SPACE = re.compile(r"^(A_logs?|log_A|log_A_real|A_imag|time_decay|time_first|time_faaaa)$")
_WEIGHT = re.compile(
    r"(^|_)weights?(_orig|_v)?$"
)  # also of the older spectral_norm and weight_norm
# in_proj_bias, bias_ih_l0; also one for each head or expert: r_w_bias, gate_up_proj_bias
_BIAS = re.compile(r"(^|_)bias(es)?(_|$)|bias$")


def purposes(one: ModelParameter) -> list[Purpose]:
    """Return what a parameter is for in each of the modules that hold it: more than one for tied weights."""
    return [
        _purpose(one, name, module) for name, module in zip(one.names, one.modules, strict=True)
    ]


def is_bias(name: str) -> bool:
    """Tell by its name whether a parameter is a bias, and no table of relative ones."""
    own = own_name(name)
    return _BIAS.search(own) is not None and _TABLE.search(own) is None


def _purpose(one: ModelParameter, name: str, module: nn.Module) -> Purpose:
    is_magnitude = _is_magnitude(one, name, module)
    own = [own_name(name)]
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)):
        own.append(own_name(name.rpartition(".")[0]))
    is_table = isinstance(module, EMBEDDINGS) or any(map(_TABLE.search, own))
    if is_table and not is_magnitude:
        return "embedding"
    if is_no_decay(one.param) or is_magnitude or is_bias(name) or _is_added(one, own[0], module):
        return "vector"
    is_line = not any(map(_WEIGHT.search, own)) and _is_line(one.param)
    return "vector" if is_line or any(map(_STATE_SPACE.search, own)) else "matrix"


def _is_line(param: nn.Parameter) -> bool:
    """Tell whether there is one dimension at most besides those of size 1."""
    shapes = original_shapes(param) or (param.shape,)
    return all(sum(size != 1 for size in shape) <= 1 for shape in shapes)


def _is_added(one: ModelParameter, own: str, module: nn.Module) -> bool:
    """Tell whether this is the b1 of a w1 that has one dimension more, as experts have them."""
    if not own.startswith("b"):
        return False
    weights = (getattr(module, first + own[1:], None) for first in "wW")
    shape = one.param.shape
    return any(
        isinstance(w, Tensor) and w.dim() == len(shape) + 1 and w.shape[0] == shape[0]
        for w in weights
    )


def _is_magnitude(one: ModelParameter, name: str, module: nn.Module) -> bool:
    """Tell whether this is the length that `weight_norm` multiplies a direction with."""
    path, _, last = name.rpartition(".")
    if last != "original0" or not is_parametrized(module):
        return False
    parts = module.get_submodule(".".join(path.split(".")[-2:]))
    return hasattr(parts, "original1") and _is_line(one.param)
