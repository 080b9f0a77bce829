"""What users call: public names, and the methods and properties of public classes that are the library's own."""

from __future__ import annotations

import inspect
from typing import Any

import stackelberg_fused as sf

PUBLIC = {name: getattr(sf, name) for name in sf.__all__ if name != "__version__"}
# of torch's protocols, or what the library asks of a constraint set: nobody calls them
NOT_FOR_USERS = {
    *("found_inf", "grad_scale", "profile_hook_step"),
    *("bounds", "check_dtype", "largest", "packed", "size", "smallest"),
}


def members(cls: type) -> dict[str, tuple[type, Any]]:
    """Return, by name, the class that defines a method or a property, and what it defines; none of torch's own."""
    found = {}
    for name in dir(cls):
        if name.startswith("_") or name in NOT_FOR_USERS:
            continue
        member = inspect.getattr_static(cls, name)
        # torch also writes `step` into the class of the first optimizer that is made
        owner = next(c for c in reversed(cls.__mro__) if vars(c).get(name) is member)
        is_shown = callable(member) or isinstance(member, (property, staticmethod))
        if is_shown and owner.__module__.startswith("stackelberg_fused"):
            found[name] = owner, member
    return found
