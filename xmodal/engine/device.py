"""The names of devices, and which of them this machine has.

A name is checked before anything is loaded, because a run on the wrong device is worse than one
that does not start. GPUs have the numbers that torch gives to those the process can see.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from xmodal.errors import UsageError
from xmodal.recipe.recipe import well_formed


def here() -> list[str]:
    """The devices of this machine."""
    names = ["cpu"]
    if torch.backends.mps.is_available():
        names.append("mps")
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return names


def checked(name: str) -> torch.device:
    """The device a name means; ``auto`` is a GPU where there is one.

    Raises UsageError, listing the devices of this machine, if it is none of them.
    """
    try:
        well_formed(name)
    except ValueError as error:
        raise UsageError(f"device: {error}") from None
    known = here()
    if name == "auto":
        name = next((gpu for gpu in ("cuda", "mps") if gpu in known), "cpu")
    if name not in known:
        raise UsageError(
            f"device: there is no '{name}' here; choose auto or one of {', '.join(known)}"
        )
    return torch.device(name)


def or_cpu(name: str, note: Callable[[str], None]) -> str:
    """``name``, or the CPU with a note where this machine has no such device.

    For models that are used on another machine than they were trained on.
    """
    try:
        checked(name)
    except UsageError:
        note(f"there is no device '{name}' here; the model is used on the CPU")
        return "cpu"
    return name


def current(name: str) -> AbstractContextManager[object]:
    """A block in which ``cuda`` means the GPU whose number is in the name.

    Raises UsageError, as ``checked`` does, if a number is none of this machine's.
    """
    return torch.cuda.device(checked(name)) if name.startswith("cuda:") else nullcontext()
