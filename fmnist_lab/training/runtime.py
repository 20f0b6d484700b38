"""TensorFlow, imported once, quietly, and with the threads that it was granted."""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fmnist_lab.errors import UserError
from fmnist_lab.system import cache, process, streams


@dataclass(frozen=True)
class Device:
    """The device that training runs on.

    Attributes:
        kind: "cpu" or "gpu".
        name: The processor's or the accelerator's own name.
        threads: Threads that one operation may use on the processor.
    """

    kind: str
    name: str
    threads: int


def start(threads: int | None = None) -> Device:
    """Import TensorFlow and Keras, and make the settings that can be made only once per process.

    If TensorFlow is in use in this process already, it stays as it is. In a process of our own
    (`process.ours`), Keras does not find scikit-learn and `matplotlib.pyplot`, so that its wrappers
    for the one and its image galleries do not work there, and all objects that are there when
    TensorFlow has been imported are exempt from garbage collection for good.

    Args:
        threads: Threads that an operation may use; None: as many as TensorFlow has been told to, or
            one for each core that this process may use.

    Returns:
        The device that training will run on, with the threads that it has: others than `threads`
        if TensorFlow is in use already.

    Raises:
        UserError: There are fewer cores than that, or Keras runs on another backend.
    """
    cores = usable_cores()
    if threads is not None and threads > cores:
        raise UserError(
            f"trainer.threads: received {threads}, but this process may use {cores} "
            f"cores; expected a whole number from 1 to {cores}, or null for all"
        )
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow uses it unasked only on newer processors; on others, too, convolutions are up to
    # twice as fast with it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    _keep_compiled_programs()
    imported = "tensorflow" in sys.modules
    with _quiet_start():
        with process.hidden("sklearn", "matplotlib.pyplot"):
            import keras
        if (received := keras.backend.backend()) != "tensorflow":
            raise UserError(
                f"KERAS_BACKEND: received {received}, which Keras already runs on in this process, "
                "expected tensorflow; start another process with KERAS_BACKEND=tensorflow"
            )
        import tensorflow as tf

        if process.ours:
            # Its remarks would break into the lines of our display.
            tf.get_logger().setLevel("ERROR")
        current = tf.config.threading.get_intra_op_parallelism_threads()
        gpus = tf.config.list_physical_devices("GPU")
        granted = threads or current or cores
        try:
            tf.config.threading.set_intra_op_parallelism_threads(granted)
            tf.config.threading.set_inter_op_parallelism_threads(granted)
            for gpu in gpus:
                tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            # TensorFlow is in use and cannot change any of that; its 0 means all cores.
            granted = current or cores
        tf.config.list_logical_devices()
    if process.ours and not imported:
        # The imported modules stay, so a full collection need not walk through them.
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
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def compiled_folder(kind: str) -> Path | None:
    """Return the folder in which compiled programs of a kind are kept for later processes.

    A compiled program holds this processor's instructions and may call into this TensorFlow, and a
    home folder may be shared by different machines. So there is a folder for each kind of processor
    and each version of TensorFlow.

    Args:
        kind: "native" or "xla".

    Returns:
        The folder, which is there; None if the processor is not known well enough, or no folder can
        be made.
    """
    abilities = _processor_abilities()
    if not abilities:
        return None
    machine = hashlib.sha256(f"{version('tensorflow')} {abilities}".encode()).hexdigest()[:8]
    for root in cache.folders():
        folder = root / kind / machine
        with suppress(OSError):
            cache.make(folder)
            return folder
    return None


def _processor_abilities() -> str:
    """Return the processor's instruction sets, on macOS with its name; "" if they are unknown."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("flags", "features")):
                return line
    # macOS has no /proc; `-i` leaves out the names that a processor does not have.
    names = ("brand_string", "features", "leaf7_features", "extfeatures")
    command = ["sysctl", "-i", *(f"machdep.cpu.{name}" for name in names)]
    with suppress(OSError):
        found = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        return found.stdout.strip()
    return ""


def forget_compiled_programs() -> bool:
    """Delete the programs that XLA kept from earlier processes; return whether it keeps any."""
    folder = re.search(r"--tf_xla_persistent_cache_directory=(\S+)", os.getenv("TF_XLA_FLAGS", ""))
    if folder is None:
        return False
    for program in Path(folder[1]).glob("xla_compile_cache__*.pb"):
        with suppress(OSError):
            program.unlink()
    return True


def _keep_compiled_programs() -> None:
    """Let XLA keep its compiled programs for later processes: 0.6 s of a first epoch of 1.3 s."""
    if "tf_xla_persistent_cache_directory" in os.environ.get("TF_XLA_FLAGS", ""):
        return
    folder = compiled_folder("xla")
    if folder is not None:
        flags = os.environ.get("TF_XLA_FLAGS", "")
        flags = f"{flags} --tf_xla_persistent_cache_directory={folder}"
        os.environ["TF_XLA_FLAGS"] = flags.strip()


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep TensorFlow's start-up notes from the terminal, unless the start fails.

    C++ code writes them to the file descriptor before TensorFlow reads any of its log levels.
    """
    if "tensorflow" in sys.modules or "TF_CPP_MAX_VLOG_LEVEL" in os.environ:
        yield
        return
    with streams.notes_held_back():
        yield
