"""Which device a model runs on: asked for, or found, without noise and without silent fallback."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from typing import TYPE_CHECKING, Final, Literal, cast

import onnxruntime as ort

from onnxprune.errors import UsageError

if TYPE_CHECKING:
    import torch

Provider = Literal["cpu", "cuda"]
ProviderChoice = Literal["auto", "cpu", "cuda"]

NO_CUDA_HINT: Final = "use --provider cpu, or auto, which takes a GPU where one works"


def execution_providers(
    provider: Provider, *, exact: bool = True
) -> list[str | tuple[str, dict[str, int | str]]]:
    """What onnxruntime is asked for, first choice first; a GPU by its index.

    ``exact`` computes in full single precision, by algorithms that are not chosen by timing: for values that
    fits aim at, not for what is timed as its users run it.
    """
    if provider == "cpu":
        return ["CPUExecutionProvider"]
    options: dict[str, int | str] = {"device_id": cuda_index()}
    if exact:
        # Timing every algorithm for every new shape costs more than it gains, and picks by chance.
        options |= {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def cuda_index() -> int:
    """Which of the visible GPUs is this process's: the first, or the one that torchrun gives it."""
    return int(os.environ.get("LOCAL_RANK") or 0) % max(1, cuda_devices())


def cuda_devices() -> int:
    """Number of CUDA devices that the driver shows to this process; 0 without driver or device.

    The driver is asked directly: asking onnxruntime for CUDA on a machine without a device prints
    errors, and importing torch for this question takes seconds.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return max(count.value, 0)


def cuda_obstacle() -> str:
    """Why CUDA can't be used here, or an empty string where nothing stands in the way."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "the installed onnxruntime has no CUDA support"
    if cuda_devices() == 0:
        return "no CUDA device is visible"
    return ""


def choose_provider(choice: str) -> Provider:
    """The provider for ``choice`` (auto, cpu or cuda).

    Raises UsageError for an unknown name, and for ``cuda`` where CUDA can't work.
    """
    if choice not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown provider '{choice}'", hint="choose auto, cpu or cuda")
    if choice == "cpu":
        return "cpu"
    obstacle = cuda_obstacle()
    if not obstacle:
        _preload_cuda_libraries()
        return "cuda"
    if choice == "cuda":
        raise UsageError(f"provider cuda can't be used: {obstacle}", hint=NO_CUDA_HINT)
    return "cpu"


def algebra_device(provider: Provider) -> torch.device:
    """Where the algebra beside a session on ``provider`` runs: on its GPU, where torch can use one too."""
    import torch

    if provider == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", cuda_index())
    return torch.device("cpu")


def check_provider(asked: Provider, session: ort.InferenceSession) -> None:
    """Raise UsageError where onnxruntime quietly took another provider than the one asked for."""
    if f"{asked.upper()}ExecutionProvider" not in cast(list[str], session.get_providers()):
        raise UsageError(
            f"onnxruntime did not start on {asked}",
            hint=f"CUDA 12 or 13 and cuDNN 9 must match the onnxruntime build; or {NO_CUDA_HINT}",
        )


def _preload_cuda_libraries() -> None:
    """Load the CUDA and cuDNN libraries that come as wheels; missing ones show up when a session opens."""
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        # It reports what it can't find with print(); the session's own failure says it better.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            preload()
