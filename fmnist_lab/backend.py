"""TensorFlow as a guest that behaves: imported once, quietly, with the threads it was granted."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import platformdirs

from fmnist_lab.errors import UserError


@dataclass(frozen=True)
class Device:
    """What training runs on.

    Attributes:
        kind: "cpu" or "gpu".
        name: The processor's or the accelerator's own name.
        threads: Threads that one operation may use on the processor.
    """

    kind: str
    name: str
    threads: int


def start(threads: int | None = None, *, lean: bool = False) -> Device:
    """Import TensorFlow and Keras and settle what can only be settled once a process.

    Args:
        threads: Threads an operation may use; None: one for each core this process may use.
        lean: For our own programs: keep Keras from importing what only its scikit-learn wrappers
            and its image galleries use, so that those two do not work in this process; and exempt
            from garbage collection, for good, all there is when TensorFlow has been imported.

    Returns:
        The device that training will run on.

    Raises:
        UserError: There are fewer cores than that, or TensorFlow is already running in this
            process with other threads.
    """
    cores = usable_cores()
    if threads is not None and threads > cores:
        raise UserError(
            f"trainer.threads: received {threads}, but this process may use {cores} "
            f"cores; expected a whole number from 1 to {cores}, or null for all"
        )
    granted = threads or cores
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow uses it unasked only on newer processors; on others, too, convolutions are up to
    # twice as fast with it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    _keep_compiled_programs()
    _limit_heaps()
    imported = "tensorflow" in sys.modules
    with _quiet_start():
        with _hidden("sklearn", "matplotlib.pyplot") if lean else nullcontext():
            import keras
        import tensorflow as tf

        keras.config.disable_interactive_logging()
        # It warns of retracing, which is what a sweep over widths is.
        tf.get_logger().setLevel("ERROR")
        current = tf.config.threading.get_intra_op_parallelism_threads()
        gpus = tf.config.list_physical_devices("GPU")
        if current != granted:
            try:
                tf.config.threading.set_intra_op_parallelism_threads(granted)
                tf.config.threading.set_inter_op_parallelism_threads(granted)
                for gpu in gpus:
                    tf.config.experimental.set_memory_growth(gpu, True)
            except RuntimeError:
                raise UserError(
                    f"trainer.threads: received {granted}, but TensorFlow already runs in this "
                    f"process with {current}, and it cannot change that; start another process "
                    "for another number of threads"
                ) from None
        tf.config.list_logical_devices()
    if lean and not imported:
        # What was imported stays. The collector need not walk through all of it, in 0.4 s, each
        # time that we have it look for compiled programs of the past.
        gc.freeze()
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return Device("gpu", details.get("device_name", gpus[0].name), granted)
    return Device("cpu", processor(), granted)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name as its maker gives it, or the architecture's."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def compiled_folder(kind: str) -> Path | None:
    """Return where compiled programs of a kind are kept for later processes.

    A compiled program holds this processor's instructions and may call into this TensorFlow, and a
    home folder may be shared by machines that differ, so each kind of both has its own folder. None
    if the processor is not known well enough, or there is no such folder and it cannot be made.
    """
    try:
        abilities = next(
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.lower().startswith(("flags", "features"))
        )
    except (OSError, StopIteration):
        return None
    machine = hashlib.sha256(f"{version('tensorflow')} {abilities}".encode()).hexdigest()[:8]
    root = os.environ.get("FMNIST_LAB_CACHE") or platformdirs.user_cache_dir("fmnist_lab")
    folder = Path(root).expanduser() / kind / machine
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def forget_compiled_programs() -> bool:
    """Delete the programs that XLA kept from earlier processes; return whether it keeps any."""
    folder = re.search(r"--tf_xla_persistent_cache_directory=(\S+)", os.getenv("TF_XLA_FLAGS", ""))
    if folder is None:
        return False
    for program in Path(folder[1]).glob("xla_compile_cache__*.pb"):
        with suppress(OSError):
            program.unlink()
    return True


@contextmanager
def brief_origins() -> Iterator[None]:
    """Have TensorFlow note of each operation only the callers outside the libraries.

    A compiled program keeps them for ever: of the tutorial's network 2 MB, most of them Keras'. If
    TensorFlow names this differently one day, only that memory is lost.
    """
    loaded = (getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))
    files = frozenset(file for file in loaded if "site-packages" in file)
    try:
        from tensorflow.python.util import tf_stack

        class Libraries(tf_stack.StackTraceFilter):
            def get_filtered_filenames(self) -> frozenset[str]:
                return files

    except (ImportError, AttributeError):
        yield
        return
    with Libraries():
        yield


def _limit_heaps() -> None:
    """Have threads share two of the C library's heaps, instead of a dozen.

    XLA compiles on many threads, and each heap keeps its holes: a third of what an architecture
    would leave behind.
    """
    # Only the C library of Linux has it; the number is malloc.h's M_ARENA_MAX.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(-8, 2)


def _keep_compiled_programs() -> None:
    """Let XLA keep what it compiled for later processes: 0.6 s of a 1.3 s first epoch."""
    if "tf_xla_persistent_cache_directory" in os.environ.get("TF_XLA_FLAGS", ""):
        return
    folder = compiled_folder("xla")
    if folder is not None:
        flags = os.environ.get("TF_XLA_FLAGS", "")
        flags = f"{flags} --tf_xla_persistent_cache_directory={folder}"
        os.environ["TF_XLA_FLAGS"] = flags.strip()


@contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Make optional imports of modules fail for a while: 1.4 s of the 4 that Keras takes."""
    hidden = [module for module in modules if module not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module in hidden:
            sys.modules.pop(module, None)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep TensorFlow's start-up notes from the terminal, unless the start fails.

    They are written to the file descriptor by C++ before any of its log levels is read.
    """
    if "tensorflow" in sys.modules or "TF_CPP_MAX_VLOG_LEVEL" in os.environ:
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(terminal, 2)
            notes.seek(0)
            sys.stderr.write(notes.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
