"""What to do when memory runs out, and how failures of a device are told.

A step that ran out of memory is taken again with half the samples at once, from the state before
it. Its loss and gradient stay those of the whole batch.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _NormBase

from xmodal import randomness
from xmodal.engine.session import RunSession
from xmodal.errors import MachineError


class OutOfMemory(MachineError):
    """Memory ran out, and fewer samples at once would not help. The state is as before the step."""


ADVICE = (
    "Ways out: activation_checkpointing=true, precision=bf16, a smaller backbone, or a device with "
    "more memory"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device, or of the machine, is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _USED_UP)


_USED_UP = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""What torch says of the CPU, of what CUDA itself needs (graphs), and of cuBLAS and cuDNN."""


@contextmanager
def without_retry(what: str) -> Iterator[None]:
    """A block that may have done half of its work when memory runs out, which ends the run."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(f"out of memory in {what}. {ADVICE}") from error


@contextmanager
def device_errors() -> Iterator[None]:
    """A block in which a failure of the device becomes a MachineError of one line.

    A kernel that finds its arguments wrong (a device-side assertion) is no failure of the device.
    """
    try:
        yield
    except MachineError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MachineError(f"out of memory: {_first_line(error)}. {ADVICE}") from error
        if isinstance(error, torch.AcceleratorError) and "device-side assert" not in str(error):
            raise MachineError(f"the device failed: {_first_line(error)}") from error
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def free() -> None:
    """Give back what no tensor holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Before:
    """The state before a step, to return to: random streams, and buffers that steps change.

    The weights need none of it: a step changes them last. To copy the streams of numpy and Python
    takes longer than all others, and hardly a component draws from them, so they are copied at
    every step only if the first one drew from them.
    """

    def __init__(self, session: RunSession) -> None:
        self._session = session
        self._buffers = list(session.model.buffers())
        self._versions = [buffer._version for buffer in self._buffers]
        # Running statistics are changed by kernels that do not count it.
        norms = (m for m in session.model.modules() if isinstance(m, _NormBase))
        self._uncounted = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
        self._moving = list(range(len(self._buffers)))
        self._outer = randomness.global_state()
        self._steps, self._all = 0, True
        self.remember()

    def remember(self) -> None:
        """Here one may return to."""
        session = self._session
        if self._steps == 1:
            self._all = not self._still()
        if self._steps:
            # Most buffers are tables that never change: to copy them at every step would take time.
            known = enumerate(zip(self._buffers, self._versions, strict=True))
            self._moving = [
                number
                for number, (buffer, version) in known
                if buffer._version != version or id(buffer) in self._uncounted
            ]
        if self._all and self._steps:
            self._outer = randomness.global_state()
        self._values = [(n, self._buffers[n].clone()) for n in self._moving]
        self._own = {name: g.get_state() for name, g in session.generators.items()}
        self._torch = torch.get_rng_state()
        on_gpu = session.device.type == "cuda"
        self._gpu = torch.cuda.get_rng_state(session.device) if on_gpu else None
        self._steps += 1

    def _still(self) -> bool:
        """Whether the streams of numpy and Python are as they were when they were copied."""
        now = randomness.global_state()
        return all(_text(now[name]) == _text(self._outer[name]) for name in _HOST)

    @torch.no_grad()
    def restore(self) -> None:
        """Return."""
        session = self._session
        for number, value in self._values:
            self._buffers[number].copy_(value)
        outer = self._outer if self._all else randomness.global_state()
        session.set_random_state(self._own, {**outer, "torch": self._torch})
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, session.device)
        for parameter in session.model.parameters():
            parameter.grad = None


_HOST = ("numpy", "numpy_rest", "python")


def _text(state: list[object]) -> str:
    return repr([part.tolist() if isinstance(part, torch.Tensor) else part for part in state])


def _check_alone(session: RunSession) -> None:
    """Raise OutOfMemory where memory may suffice for the run alone, which is to be what it is."""
    if session.shared:
        raise OutOfMemory("out of memory beside other runs in the same process")


def fewer_at_once(session: RunSession) -> None:
    """Let the session fetch half as many samples at once, and say so.

    Raises OutOfMemory where it fetches one at a time already, where the stage decides itself, or
    where other runs share the memory.
    """
    _check_alone(session)
    before = session.at_once
    if before <= 1:
        number = "one sample at a time" if before else "a step whose size the stage decides"
        raise OutOfMemory(f"out of memory with {number}. {ADVICE}")
    session.most_at_once = (before + 1) // 2
    session.note(
        f"out of memory with {before} samples at once: {session.most_at_once} from now on, in "
        "micro-batches of the same batch. Loss and gradient differ by rounding only, except for "
        "what is drawn or measured for each micro-batch: mixing weights, drop-out, BatchNorm"
    )
    free()


def smaller_evaluation(session: RunSession) -> None:
    """Let the session evaluate half as many samples at once.

    Raises OutOfMemory at one, or where other runs share the memory.
    """
    _check_alone(session)
    before = session.evaluation_batch
    if before <= 1 or session.world > 1:
        raise OutOfMemory(f"out of memory in evaluation with {before} samples at once. {ADVICE}")
    session.evaluation_batch = (before + 1) // 2
    session.note(
        f"out of memory in evaluation with {before} samples at once: {session.evaluation_batch} "
        "from now on; scores differ by rounding only"
    )
    free()
