"""The board a benchmark runs on: who it is, how it is set, what it draws and how warm it gets.

Everything is read, nothing is changed. What a board does not tell is None in the report, never a guess.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

# Rails whose sum is the module's draw where the board has no VDD_IN (AGX Orin; Jetson Linux developer guide).
AGX_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")


@dataclass(frozen=True)
class Sample:
    """One line of tegrastats.

    Attributes:
        time: seconds, ``time.monotonic`` when the line was read.
        rails_mw: milliwatts by rail (the instantaneous figure of ``name now/average``).
        temperatures_c: degrees Celsius by sensor; sensors that are off are left out.
        gpu_percent: load of the GPU (GR3D_FREQ), None where it is not printed.
        gpu_mhz: clock of the GPU, None where it is not printed.
        ram_mb: memory in use, None where it is not printed.
    """

    time: float
    rails_mw: dict[str, int] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    gpu_percent: int | None = None
    gpu_mhz: int | None = None
    ram_mb: int | None = None

    @property
    def power_w(self) -> float | None:
        """Draw of the whole module in watts: VDD_IN (Orin Nano, NX) or the sum of AGX Orin's rails; else None."""
        if "VDD_IN" in self.rails_mw:
            return self.rails_mw["VDD_IN"] / 1000
        if all(rail in self.rails_mw for rail in AGX_RAILS):
            return sum(self.rails_mw[rail] for rail in AGX_RAILS) / 1000
        return None

    @property
    def temperature_c(self) -> float | None:
        """Junction temperature (tj), or the hottest sensor where the board has no tj."""
        by_name = {name.lower(): value for name, value in self.temperatures_c.items()}
        return by_name.get("tj", max(by_name.values(), default=None))


def parse_tegrastats(line: str, now: float = 0.0) -> Sample:
    """One line of ``tegrastats`` (rail names and fields differ by module and release; absent ones stay None)."""
    rails = {name: int(mw) for name, mw in re.findall(r"\b(V[A-Z0-9_]+) (\d+)mW(?:/\d+mW)?", line)}
    temperatures = {name: float(c) for name, c in re.findall(r"\b([A-Za-z][\w-]*)@(-?[\d.]+)C\b", line)}
    gpu = re.search(r"GR3D_FREQ (\d+)%(?:@\[?(\d+))?", line)
    ram = re.search(r"\bRAM (\d+)/\d+MB", line)
    return Sample(
        time=now,
        rails_mw=rails,
        # a sensor that is powered down reads -256
        temperatures_c={name: c for name, c in temperatures.items() if -50 < c < 200},
        gpu_percent=int(gpu.group(1)) if gpu else None,
        gpu_mhz=int(gpu.group(2)) if gpu and gpu.group(2) else None,
        ram_mb=int(ram.group(1)) if ram else None,
    )


class TegrastatsMonitor:
    """Reads tegrastats in the background while a benchmark runs.

    Args:
        interval_ms: time between two lines.
        command: the program, for boards that have it elsewhere.
    """

    def __init__(self, interval_ms: int = 100, command: str = "tegrastats"):
        self.interval_ms, self.command = interval_ms, command
        self.samples: list[Sample] = []
        self.reason: str | None = None  # why there are no samples
        self._process: subprocess.Popen | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> TegrastatsMonitor:
        found = shutil.which(self.command)
        if not found:
            self.reason = f"{self.command} not found: power and temperature are not recorded"
            return self
        self._process = subprocess.Popen(
            [found, "--interval", str(self.interval_ms)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def _read(self) -> None:
        for line in self._process.stdout:
            self.samples.append(parse_tegrastats(line, time.monotonic()))

    def __exit__(self, *_) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._thread.join(timeout=10)
            if not self.samples:
                self.reason = f"{self.command} printed nothing: power and temperature are not recorded"


class JtopMonitor:
    """The same figures from jetson-stats (``jtop``), where tegrastats is not to be had.

    Args:
        interval_ms: time between two readings.
    """

    def __init__(self, interval_ms: int = 100):
        self.interval_ms = interval_ms
        self.samples: list[Sample] = []
        self.reason: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> JtopMonitor:
        try:
            from jtop import jtop
        except ImportError:
            self.reason = (
                "neither tegrastats nor jtop (jetson-stats) is installed: power and temperature are not recorded"
            )
            return self
        self._thread = threading.Thread(target=self._read, args=(jtop,), daemon=True)
        self._thread.start()
        return self

    def _read(self, jtop) -> None:
        try:
            with jtop(interval=self.interval_ms / 1000) as board:
                while board.ok() and not self._stop.is_set():
                    self.samples.append(sample_from_jtop(board.power, board.temperature, time.monotonic()))
        except Exception as err:  # jtop raises its own type when its service does not run
            self.reason = f"jtop could not be read ({err}): power and temperature are not recorded"

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=10)


def sample_from_jtop(power: dict, temperature: dict, now: float) -> Sample:
    """A sample from jtop's dictionaries (jetson-stats 4: ``power['rail'][name]['power']`` in mW, ``temp`` in C)."""
    rails = {name: int(rail["power"]) for name, rail in power.get("rail", {}).items() if "power" in rail}
    if "VDD_IN" not in rails and "power" in power.get("tot", {}):
        rails["VDD_IN"] = int(power["tot"]["power"])
    temperatures = {name: float(t["temp"]) for name, t in temperature.items() if t.get("online", True) and "temp" in t}
    return Sample(time=now, rails_mw=rails, temperatures_c=temperatures)


def monitor(interval_ms: int = 100) -> TegrastatsMonitor | JtopMonitor:
    """tegrastats where it is installed, else jtop."""
    return TegrastatsMonitor(interval_ms) if shutil.which("tegrastats") else JtopMonitor(interval_ms)


def first_line(command: list[str], pattern: str = r"(.+)") -> str | None:
    """The first match of a command's output, or None when it is absent, fails or says nothing of the kind."""
    if not shutil.which(command[0]):
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(pattern, done.stdout)
    return match.group(1).strip() if match else None


def read_text(path: str) -> str | None:
    """A small file's text without NULs, or None."""
    try:
        return Path(path).read_text(errors="replace").replace("\0", "").strip()
    except OSError:
        return None


def clocks_locked(text: str | None) -> bool | None:
    """Whether ``jetson_clocks --show`` says that the GPU runs at one fixed clock (MinFreq equals MaxFreq)."""
    match = re.search(r"GPU MinFreq=(\d+) MaxFreq=(\d+)", text or "")
    return match.group(1) == match.group(2) if match else None


def board_state() -> dict:
    """Module, software versions and power mode, as the report's ``device`` block wants them."""
    release = read_text("/etc/nv_tegra_release") or ""
    l4t = re.search(r"R(\d+).*REVISION: ([\d.]+)", release)
    return {
        "module": read_text("/proc/device-tree/model"),
        "jetpack": first_line(["dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack"]),
        "l4t": f"{l4t.group(1)}.{l4t.group(2)}" if l4t else None,
        "cuda": first_line(["nvcc", "--version"], r"release ([\d.]+)"),
        "cudnn": first_line(["dpkg-query", "--showformat=${Version}", "--show", "libcudnn*"]),
        "power_mode": first_line(["nvpmodel", "-q"], r"NV Power Mode: *(.+)"),
        "clocks_locked": clocks_locked(first_line(["jetson_clocks", "--show"], r"((?s:.+))")),
    }


def throttle_alerts(root: str = "/sys/class/thermal") -> bool | None:
    """Whether a throttle-alert cooling device of the board is active now; None when the board has none."""
    alerts = []
    for device in Path(root).glob("cooling_device*"):
        if "throttle" in (read_text(str(device / "type")) or ""):
            alerts.append((read_text(str(device / "cur_state")) or "0") != "0")
    return any(alerts) if alerts else None
