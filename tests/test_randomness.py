"""Which kernels a run uses, and what it says about those that are not deterministic."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator

import pytest
import torch
from torch.nn import functional

from xmodal.randomness import FixedAttention, Kernels, determinism_kept, use_determinism, within

Settings = tuple[bool, bool, bool, bool, bool]
FIXED: Settings = (True, True, False, True, False)
FASTEST: Settings = (False, True, True, False, True)


def settings() -> Settings:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    with determinism_kept():
        yield


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize(("wanted", "inside"), [(True, FIXED), (False, FASTEST)])
def test_the_settings_hold_inside_and_those_of_before_outside(
    outside: bool, wanted: bool, inside: Settings
) -> None:
    use_determinism(outside)
    before, block = settings(), Kernels(wanted, print)
    for _ in range(2):
        with block:
            assert settings() == inside
        assert settings() == before
    with pytest.raises(KeyError), block:
        raise KeyError
    assert settings() == before


def test_work_that_pauses_leaves_the_block_meanwhile() -> None:
    """Runs that take turns may want different kernels."""
    use_determinism(False)
    seen = []

    def work() -> Generator[None, None, str]:
        try:
            for _ in range(2):
                seen.append(settings())
                yield
            return "done"
        finally:
            seen.append(settings())

    whole = within(Kernels(True, print), work())
    next(whole)
    assert settings() == FASTEST
    next(whole)
    with pytest.raises(StopIteration) as end:
        next(whole)
    assert end.value.value == "done"
    assert seen == [FIXED] * 3
    ended = within(Kernels(True, print), work())
    next(ended)
    ended.close()
    assert seen[3:] == [FIXED] * 2
    broken = within(Kernels(True, print), work())
    next(broken)
    with pytest.raises(ValueError, match="told at a pause"):
        broken.throw(ValueError("told at a pause"))
    assert seen[5:] == [FIXED] * 2
    assert settings() == FASTEST


def unfixed() -> None:
    """An operation that torch warns of, on CPUs too."""
    torch.zeros(3).put_(torch.tensor([0, 1]), torch.ones(2))


def test_a_kernel_that_is_not_deterministic_is_a_note_not_a_warning() -> None:
    notes: list[str] = []
    block = Kernels(True, notes.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with block:
                unfixed()
                unfixed()
    (note,) = notes
    assert note.startswith("put_: torch has no deterministic kernel")
    assert "repeats of the run may differ in the last digits" in note
    # The next run in the process is told, too; one that wants the fastest kernels is not.
    with Kernels(True, notes.append):
        unfixed()
    with Kernels(False, notes.append):
        unfixed()
    assert notes == [note] * 2


def test_other_warnings_are_shown_once() -> None:
    block = Kernels(True, print)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for _ in range(3):
            with block:
                warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(w.message) for w in shown] == ["something else"]


@pytest.mark.parametrize("padded", [False, True])
def test_torch_forbids_other_kernels_only_while_attention_goes_back(padded: bool) -> None:
    seen: list[bool] = []

    def look(*given: object) -> None:
        seen.append(torch.is_deterministic_algorithms_warn_only_enabled())

    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    with Kernels(True, print), FixedAttention():
        wide = [functional.pad(t, (0, 8)) if padded else t for t in (q, k, v)]
        out = functional.scaled_dot_product_attention(*wide)[..., :8]
        node = out.grad_fn
        while node is not None and "ScaledDotProduct" not in node.name():
            node = node.next_functions[0][0]
        assert node is not None
        node.register_prehook(look)  # the last before the kernel
        q.register_hook(look)
        look()
        out.sum().backward()
        look()
    assert seen == [True, False, True, True]
