"""Sources of randomness: the run's seed and a name determine every stream.

The order of data is stateless, so checkpoints need not save it. Each component has its own
``torch.Generator``; every checkpoint saves their states and the global state (for dropout).
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named stream; different names give unrelated streams."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one named stream."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Run a block (an initialisation) under its own seed, then restore the global stream."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive(seed, *names))
        yield


def permutation(count: int, seed: int, *names: str | int) -> Tensor:
    """The order of ``count`` samples in one named pass."""
    return torch.randperm(count, generator=generator(seed, *names))


def weighted_order(weight_N: Tensor, seed: int, *names: str | int) -> Tensor:
    """The order of one pass over n samples in which sample i occurs n w_i / sum(w) times.

    That number is rounded down or up at random (systematic sampling), so that the pass has n
    places; with equal weights it is ``permutation``.
    """
    count = len(weight_N)
    end_N = (weight_N.double() * (count / float(weight_N.double().sum()))).cumsum(0)
    end_N[-1] = count
    start = torch.rand((), generator=generator(seed, *names, "start"), dtype=torch.float64)
    until_N = (end_N + start).floor()
    times_N = until_N.diff(prepend=until_N.new_zeros(1)).long()
    place_N = torch.repeat_interleave(torch.arange(count), times_N)
    return place_N[permutation(count, seed, *names)]


def endless(count: int, start: int, length: int, seed: int, name: str) -> Tensor:
    """Indices ``start .. start + length`` of an endless shuffled stream over ``count`` samples.

    The stream is one permutation after another, so a position in it needs no state.
    """
    passes = range(start // count, (start + length - 1) // count + 1)
    stream = torch.cat([permutation(count, seed, name, number) for number in passes])
    offset = start - passes.start * count
    return stream[offset : offset + length]


def global_state() -> dict[str, Any]:
    """The state of every global generator, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, python_gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64))],
        "numpy_rest": [int(position), int(has_gauss), float(gauss)],
        # By way of NumPy, which reads a tuple several times as fast: steps ask for this.
        "python": [version, torch.from_numpy(np.array(words, dtype=np.int64)), python_gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
        state["cuda_current"] = torch.cuda.current_device()
    return state


def set_global_state(state: Mapping[str, Any]) -> None:
    """Restore what ``global_state`` returned."""
    torch.set_rng_state(state["torch"])
    name, keys = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *state["numpy_rest"]))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if "cuda" in state and torch.cuda.is_available():
        # A run may continue on a machine with fewer GPUs, or on another GPU.
        kept, current = list(state["cuda"]), state.get("cuda_current", 0)
        torch.cuda.set_rng_state_all(kept[: torch.cuda.device_count()])
        torch.cuda.set_rng_state(kept[current], torch.cuda.current_device())


def seed_everything(seed: int) -> None:
    """Seed the global generators, which only dropout and third-party code use."""
    random.seed(derive(seed, "python"))
    np.random.seed(derive(seed, "numpy") % 2**32)
    torch.manual_seed(derive(seed, "torch"))


def use_determinism(wanted: bool) -> None:
    """Use deterministic kernels in this process, or the fastest ones.

    Where torch has no deterministic kernel, it warns and uses the other one.
    """
    if wanted:
        # cuBLAS reads this on first use. Training and prediction must use the same value.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Filling new memory only helps code that reads uninitialised values, and it costs time.
    # cuDNN's benchmark chooses kernels by timing them. The gradient of its attention, which torch
    # prefers on some GPUs, is never deterministic, and torch excludes it only where it does not
    # just warn.
    _set_kernels(wanted, True, False, not wanted, wanted, not wanted)


@contextmanager
def determinism_kept() -> Iterator[None]:
    """Undo ``use_determinism`` at the end of the block."""
    before = _kernels()
    try:
        yield
    finally:
        _set_kernels(*before)


_UNFIXED = re.compile(
    r"(?P<name>[^\n]+?) (does not have a deterministic implementation"
    r"|defaults to a non-deterministic algorithm)|not deterministic because it uses CuBLAS"
)


class Kernels:
    """A block with deterministic kernels, or with the fastest ones; it may be entered repeatedly.

    ``note`` is told, once, what torch has no deterministic kernel for, in place of its warning.
    """

    def __init__(self, deterministic: bool, note: Callable[[str], None]) -> None:
        self._deterministic, self._note = deterministic, note
        self._told: set[Any] = set()
        self._left = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(determinism_kept())
            use_determinism(self._deterministic)
            if self._deterministic:
                stack.enter_context(self._explaining())
                if torch.cuda.is_available():  # it would cost CPUs time, for nothing
                    stack.enter_context(FixedAttention())
            self._left = stack.pop_all()

    def __exit__(self, *raised: Any) -> None:
        self._left.__exit__(*raised)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn torch's warnings about kernels that are not deterministic into a note for each."""
        always = torch.is_warn_always_enabled()
        with warnings.catch_warnings():
            show = warnings.showwarning
            warnings.filterwarnings("always", f".*({_UNFIXED.pattern})", UserWarning)

            def explain(message: Warning | str, kind: type[Warning], *place: Any) -> None:
                found = _UNFIXED.search(str(message))
                # Entering the block makes Python forget which warnings it has shown.
                key = found["name"] if found else (str(message), kind, *place[:2])
                if key in self._told:
                    return
                self._told.add(key)
                if found is None:
                    show(message, kind, *place)
                else:
                    self._note(
                        f"{key or 'a matrix product (cuBLAS)'}: torch has no deterministic kernel "
                        "for it here; repeats of the run may differ in the last digits"
                    )

            warnings.showwarning = explain  # type: ignore[assignment]
            # Some are given once a process, and several runs may share it.
            torch.set_warn_always(True)
            try:
                yield
            finally:
                torch.set_warn_always(always)


def within(
    block: AbstractContextManager[Any], work: Generator[None, None, T]
) -> Generator[None, None, T]:
    """``work``, whose turns run inside of ``block``: it is left at every pause.

    What is raised at a pause is raised in ``work``.
    """
    raised: Exception | None = None
    try:
        while True:
            with block:
                try:
                    next(work) if raised is None else work.throw(raised)
                except StopIteration as done:
                    result: T = done.value
                    return result
            try:
                yield
            except Exception as error:
                raised = error
            else:
                raised = None
    finally:
        with block:
            work.close()


def _kernels() -> tuple[bool, bool, bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
    )


def _set_kernels(
    deterministic: bool,
    warns: bool,
    fills: bool,
    by_time: bool,
    fixed_convolutions: bool,
    cudnn_attention: bool,
) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=warns)
    torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = by_time
    torch.backends.cudnn.deterministic = fixed_convolutions
    torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)


class FixedAttention(TorchFunctionMode):
    """A block in which the gradient of attention is deterministic.

    Torch's fused kernels on CUDA add it in a fixed order only where it forbids all others
    (``warn_only=False``); where it only warns, they do not. So it forbids during their backward.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention:
            node = _attention(out.grad_fn)
            if node is not None:
                node.register_prehook(lambda gradients: _forbid(True))
                node.register_hook(lambda inputs, outputs: _forbid(False))
        return out


def _attention(node: Any) -> Any:
    """The node of a fused attention kernel at, or just behind, ``node``; None if there is none."""
    for _ in range(4):  # what cuts off a padding may come after it
        if node is None or "ScaledDotProduct" in node.name():
            return node
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def _forbid(wanted: bool) -> None:
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(True, warn_only=not wanted)


@contextmanager
def state_kept() -> Iterator[None]:
    """Restore every global generator and torch's determinism at the end of the block."""
    state = global_state()
    try:
        with determinism_kept():
            yield
    finally:
        set_global_state(state)
