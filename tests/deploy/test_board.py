"""deploy/board.py: what a Jetson says about itself, from recorded output."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tegrastats_lines import AGX_ORIN, NO_RAILS, ORIN_NANO, ORIN_NX

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
import board  # noqa: E402


@pytest.mark.parametrize(
    ("line", "power", "temperature", "percent", "mhz", "ram"),
    [
        (ORIN_NANO, 4.456, 49.7, 97, 624, 2405),
        (ORIN_NX, 11.2, 51.2, 99, 918, 3011),
        (AGX_ORIN, 14.0, 45.1, 99, 1300, 5120),
        (NO_RAILS, None, 40.0, 12, None, 100),
        ("", None, None, None, None, None),
    ],
)
def test_tegrastats_of_every_module(line, power, temperature, percent, mhz, ram):
    sample = board.parse_tegrastats(line)
    assert sample.power_w == pytest.approx(power) if power is not None else sample.power_w is None
    assert (sample.temperature_c, sample.gpu_percent, sample.gpu_mhz, sample.ram_mb) == (temperature, percent, mhz, ram)
    assert all(c > -50 for c in sample.temperatures_c.values()), "a sensor that is off must not count"


def test_tegrastats_monitor_reads_and_stops(tmp_path):
    script = tmp_path / "tegrastats"
    script.write_text(f"#!/bin/sh\nwhile true; do echo '{ORIN_NANO}'; sleep 0.02; done\n")
    script.chmod(0o755)
    with board.TegrastatsMonitor(20, str(script)) as monitor:
        deadline = time.time() + 10
        while len(monitor.samples) < 3 and time.time() < deadline:
            time.sleep(0.02)
    assert len(monitor.samples) >= 3 and monitor.reason is None
    assert monitor.samples[0].power_w == pytest.approx(4.456)


def test_monitors_that_cannot_read_say_why(monkeypatch):
    with board.TegrastatsMonitor(command="no-such-tegrastats") as monitor:
        pass
    assert "not found" in monitor.reason
    monkeypatch.setitem(sys.modules, "jtop", None)
    with board.JtopMonitor() as monitor:
        pass
    assert "jtop" in monitor.reason


def test_jtop_is_read(monkeypatch):
    class Jtop:
        def __init__(self, interval):
            self.power = {"rail": {"VDD_SOC": {"power": 900}}, "tot": {"power": 5200}}
            self.temperature = {"tj": {"temp": 44.5, "online": True}, "cv0": {"temp": -256, "online": False}}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def ok(self):
            time.sleep(0.01)
            return True

    monkeypatch.setitem(sys.modules, "jtop", SimpleNamespace(jtop=Jtop))
    with board.JtopMonitor(10) as monitor:
        deadline = time.time() + 10
        while not monitor.samples and time.time() < deadline:
            time.sleep(0.01)
    assert monitor.samples[0].power_w == pytest.approx(5.2) and monitor.samples[0].temperature_c == 44.5


def test_board_state(monkeypatch):
    texts = {
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
        "/proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    }
    monkeypatch.setattr(board, "read_text", texts.get)
    outputs = {"nvpmodel": "25W", "jetson_clocks": "GPU MinFreq=918000000 MaxFreq=918000000 CurrentFreq=918000000"}
    monkeypatch.setattr(board, "first_line", lambda command, pattern="": outputs.get(command[0]))
    state = board.board_state()
    assert state["l4t"] == "36.4.3" and state["power_mode"] == "25W" and state["clocks_locked"] is True
    assert state["jetpack"] is None, "what the board does not tell stays None"
    assert board.clocks_locked("GPU MinFreq=306000000 MaxFreq=918000000") is False


def test_throttle_alerts(tmp_path):
    assert board.throttle_alerts(str(tmp_path)) is None
    for i, (kind, state) in enumerate((("pwm-fan", "3"), ("gpu-throttle-alert", "0"), ("cpu-throttle-alert", "0"))):
        device = tmp_path / f"cooling_device{i}"
        device.mkdir()
        (device / "type").write_text(kind)
        (device / "cur_state").write_text(state)
    assert board.throttle_alerts(str(tmp_path)) is False
    (tmp_path / "cooling_device1" / "cur_state").write_text("1")
    assert board.throttle_alerts(str(tmp_path)) is True
