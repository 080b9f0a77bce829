"""Sphinx extension: code in the text that names something of the library leads to its entry."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

PACKAGE = "stackelberg_fused"
ENTRY = f"{PACKAGE}.StackelbergAdam"  # has the members that all three optimizers share
MENTION = re.compile(r"(?:(sf|stackelberg_fused|opt|optimizer)\.)?(\w+(?:\.\w+)?)(\(.*\))?", re.S)
TORCHS = ("add_param_group", "load_state_dict", "param_groups", "state_dict", "zero_grad")


def target_of(mention: str, known: set[str]) -> str | None:
    """Return the full name that a piece of code stands for, or None.

    Args:
        mention: as `sf.find_ratio(...)`, `StackelbergAdam`, `opt.last_step` or `ema_weights()`.
        known: full names that have an entry.
    """
    found = MENTION.fullmatch(mention)
    if found is None:
        return None
    owner, name, call = found.groups()
    if owner in ("opt", "optimizer"):
        names = [f"{ENTRY}.{name}"]
    elif owner:
        names = [f"{PACKAGE}.{name}"]
    elif "_" in name and name not in TORCHS:
        # no other class has these
        names = [f"{PACKAGE}.{name}", f"{ENTRY}.{name}"]
    else:
        # a word that is no name of a class may be any word, unless it is called
        names = [f"{PACKAGE}.{name}"] if name[:1].isupper() or call else []
    return next((name for name in names if name in known), None)


class LinkNames(SphinxPostTransform):
    """Makes links of literals."""

    default_priority = 5  # before references are resolved

    def run(self, **_: object) -> None:
        domain = self.env.domains["py"]
        assert isinstance(domain, PythonDomain)
        known = set(domain.objects)
        for literal in list(self.document.findall(nodes.literal)):
            full = target_of(literal.astext(), known)
            if full is None or _has_no_room(literal, full):
                continue
            entry = domain.objects[full]
            link = make_refnode(
                self.app.builder, self.env.docname, entry.docname, entry.node_id, literal.deepcopy()
            )
            literal.replace_self(link)


def _has_no_room(literal: nodes.literal, full: str) -> bool:
    """Tell whether it is a link already, a heading, or in the entry that it would lead to."""
    node = literal.parent
    while node is not None:
        if (
            isinstance(node, (nodes.reference, nodes.title))
            or type(node).__name__ == "pending_xref"
        ):
            return True
        signatures = node.children if type(node).__name__ == "desc" else []
        if any(full in one.get("ids", ()) for one in signatures if isinstance(one, nodes.Element)):
            return True
        node = node.parent
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True}
