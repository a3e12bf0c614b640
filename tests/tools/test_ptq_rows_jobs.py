"""ptq_rows --jobs: rows side by side have the bits of rows one after the other, and end together."""

from __future__ import annotations

import signal
import threading
import weakref

import pytest
import torch
from recorded_operations import RecordedOperations
from test_ptq_rows import call, recorders, tiny  # noqa: F401  (fixtures)

from qmambair_basicsr.models import cuda_graph
from qmambair_basicsr.models.turns import Turns, in_turns
from qmambair_basicsr.studies import ptq_rows, ptq_rows_quantize

LONG = 60.0  # seconds that nothing here takes unless it hangs
ROWS = ("--methods", "SPR2Q", "TwoDQuant", "MinMax", "--iterations", "50", "--batch", "1")


def weights(folder):
    files = folder.glob("experiments/*/models/net_g_latest.pth")
    return {file.parts[-3]: torch.load(file)["params"] for file in files}


def test_rows_in_threads_are_rows_one_after_the_other(tiny, recorders, monkeypatch):  # noqa: F811
    assert call(*ROWS, "--only", "quantize") == 0
    alone, replays = weights(tiny / "out"), [recorder.replays for recorder in recorders]
    together = threading.Barrier(2)
    kind = cuda_graph.RECORDERS["cpu"]

    class Meeting(kind):
        """Two rows replay at the same time, or the test fails."""

        def replay(self):
            if self.replays == 20:
                together.wait(LONG)
            super().replay()

    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", Meeting)
    assert call(*ROWS, "--only", "quantize", "--jobs", "3", "--out", "threads") == 0
    threads = weights(tiny / "threads")
    assert len(alone) == 3 and alone.keys() == threads.keys() and not together.broken
    assert sorted(r.replays for r in recorders[len(replays) :]) == sorted(replays)
    for name, state in alone.items():
        assert state.keys() == threads[name].keys() and all(torch.equal(state[k], threads[name][k]) for k in state)


def test_tests_follow_when_all_rows_are_quantized(tiny, capsys):  # noqa: F811
    assert call("--methods", "MinMax", "Percentile") == 0
    printed = capsys.readouterr().out
    assert call("--methods", "MinMax", "Percentile", "--jobs", "2", "--out", "threads") == 0
    again = capsys.readouterr().out

    def figures(text):
        return [line.split("|")[:7] for line in text.splitlines() if line.startswith("| x4")]

    assert len(figures(again)) == 2 and figures(again) == figures(printed)


def test_a_row_that_fails_leaves_the_others_whole(tiny, recorders, capsys, monkeypatch):  # noqa: F811
    real = ptq_rows_quantize._check

    def check(losses, iteration):
        if iteration > 30 and threading.current_thread() is failing[0]:
            raise ValueError("no such luck")
        real(losses, iteration)

    failing, build = [], ptq_rows_quantize.build_method

    def watched(config):
        if config["type"] == "TwoDQuant":
            failing.append(threading.current_thread())
        return build(config)

    monkeypatch.setattr(ptq_rows_quantize, "_check", check)
    monkeypatch.setattr(ptq_rows_quantize, "build_method", watched)
    methods = ("--methods", "TwoDQuant", "SPR2Q", "MinMax", "--iterations", "50", "--batch", "1")
    assert call(*methods, "--only", "quantize", "--jobs", "2") == 1
    assert "* x4, TwoDQuant, 4/4: ValueError: no such luck" in capsys.readouterr().out
    assert {name.rpartition("_")[2] for name in weights(tiny / "out")} == {"SPR2Q", "MinMax"}


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGINT], ids=["time", "interrupt"])
def test_all_threads_end_and_finished_rows_stay(tiny, recorders, caplog, monkeypatch, number):  # noqa: F811
    methods = ("--methods", "MinMax", "SPR2Q", "TwoDQuant", "--iterations", "50", "--batch", "1", "--jobs", "2")
    both, ended, before = threading.Barrier(2), threading.Event(), threading.active_count()
    replay, end = RecordedOperations.replay, Turns.end

    def replayed(self):
        if self.replays == 10:
            if both.wait(LONG) == 0:
                signal.raise_signal(number)  # reaches the main thread
            assert ended.wait(LONG)
        replay(self)

    monkeypatch.setattr(RecordedOperations, "replay", replayed)
    monkeypatch.setattr(Turns, "end", lambda self: (end(self), ended.set()))
    words = (*methods, "--only", "quantize", "--until", "600")
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            call(*words)
    else:
        caplog.set_level("INFO")
        assert call(*words) == 0 and "the time is over" in caplog.text
    assert [name.rpartition("_")[2] for name in weights(tiny / "out")] == ["MinMax"]
    assert {recorder.replays for recorder in recorders} == {11} and threading.active_count() == before


def test_what_a_row_holds_is_gone_before_the_next_one_begins(tiny, recorders, monkeypatch):  # noqa: F811
    made, alive, build = [], [], ptq_rows_quantize.build_network

    class Fleeting(RecordedOperations):
        def __init__(self, device):
            super().__init__(device)
            made.append(weakref.ref(self))

    def built(options):
        alive.append(sum(thing() is not None for thing in made))
        made.append(weakref.ref(net := build(options)))
        return net

    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", Fleeting)
    monkeypatch.setattr(ptq_rows_quantize, "build_network", built)
    monkeypatch.setattr(ptq_rows, "in_turns", lambda count, work, device: in_turns(1, work, device))
    words = ("--methods", "TwoDQuant", "--bits", "4", "2", "--iterations", "6", "--batch", "1", "--jobs", "2")
    assert call(*words, "--only", "quantize") == 0
    assert alive == [0, 0] and len(made) == 4


def test_too_many_rows_at_a_time_are_one_message(tiny, capsys):  # noqa: F811
    assert call("--methods", "MinMax", "--jobs", "17") == 2 and "--jobs 17: at most 16" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call("--methods", "MinMax", "--jobs", "0")
    assert "--jobs: '0' is not a whole number of at least 1" in capsys.readouterr().err
