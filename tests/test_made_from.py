"""What results are made from: content decides; unchanged files are not read twice; what is gone does not count."""

from __future__ import annotations

import os

import pytest

from qmambair_basicsr import made_from


@pytest.fixture
def opt(tmp_path):
    """A test's options with its files."""
    for name in ("HR/a.png", "HR/sub/b.png", "LR/ax2.png", "list.txt", "w.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    section = {"name": "A", "type": "X", "dataroot_gt": "HR", "dataroot_lq": "LR", "meta_info_file": "list.txt"}
    return {
        "scale": 2,
        "network_g": {"type": "N", "depths": [1, 2]},
        "datasets": {"test_1": section},
        "path": {"pretrain_network_g": "w.pth"},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}},
    }


@pytest.mark.parametrize("name", ["HR/a.png", "HR/sub/b.png", "LR/ax2.png", "list.txt", "w.pth"])
def test_replaced_files_are_noticed(opt, tmp_path, name):
    """Same name, size and date; and the same content under another date is the same."""
    file = tmp_path / name
    before = made_from.of_test(opt, tmp_path)
    assert None not in before.values()
    os.utime(file, (1, 1))
    assert made_from.differences(before, made_from.of_test(opt, tmp_path)) == []
    content, stamp = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(content[::-1])
    os.utime(file, ns=(stamp, stamp))
    expected = ["weights"] if name == "w.pth" else ["set A"]
    assert made_from.differences(before, made_from.of_test(opt, tmp_path)) == expected
    file.write_bytes(content)
    assert made_from.differences(before, made_from.of_test(opt, tmp_path)) == []


def test_names_and_numbers_of_files_are_noticed(opt, tmp_path):
    before = made_from.of_test(opt, tmp_path)
    (tmp_path / "HR" / "a.png").rename(tmp_path / "HR" / "c.png")
    assert made_from.differences(before, made_from.of_test(opt, tmp_path)) == ["set A"]
    (tmp_path / "HR" / "c.png").rename(tmp_path / "HR" / "a.png")
    (tmp_path / "HR" / ".hidden").write_bytes(b"")  # as prepare_data's own record
    assert made_from.differences(before, made_from.of_test(opt, tmp_path)) == []


def test_folders_and_links_inside_a_set(opt, tmp_path):
    """Folders count where a list of names may reach into them; what cannot be read is the data set's affair."""
    (tmp_path / "HR" / "gone.png").symlink_to(tmp_path / "nowhere")
    before = made_from.of_test(opt, tmp_path)
    (tmp_path / "HR" / "sub" / "b.png").write_bytes(b"other")
    assert made_from.differences(before, made_from.of_test(opt, tmp_path)) == ["set A"]
    del opt["datasets"]["test_1"]["meta_info_file"]
    before = made_from.of_test(opt, tmp_path)
    (tmp_path / "HR" / "sub" / "b.png").write_bytes(b"third")
    assert made_from.differences(before, made_from.of_test(opt, tmp_path)) == []


def test_unchanged_files_are_read_once(opt, tmp_path, monkeypatch):
    read = []
    hash_file = made_from.hash_file
    monkeypatch.setattr(made_from, "hash_file", lambda path: read.append(path) or hash_file(path))
    first = made_from.of_test(opt, tmp_path)
    read.clear()
    assert made_from.of_test(opt, tmp_path) == first and read == []


def test_what_is_gone_cannot_be_compared(opt, tmp_path):
    before = made_from.of_test(opt, tmp_path)
    (tmp_path / "w.pth").unlink()
    (tmp_path / "LR" / "ax2.png").unlink()
    (tmp_path / "LR").rmdir()
    now = made_from.of_test(opt, tmp_path)
    assert now["weights"] is now["set A"] is None
    assert made_from.differences(before, now) == []
    assert made_from.differences(None, now) == ["it does not say what it was made from"]


def test_a_log_holds_the_record(opt, tmp_path):
    record = made_from.of_test(opt, tmp_path)
    assert made_from.parse_log_line(f"2026-01-01 00:00:00,000 INFO: {made_from.log_line(record)}") == record
    assert made_from.parse_log_line("INFO: Loading weights") is None
    assert made_from.parse_log_line(made_from.log_line(record)[:-9]) is None


def test_training(opt, tmp_path):
    """Initial weights, teacher, data, options; not the folder the data lie in."""
    train = {
        **opt,
        "datasets": {"train": opt["datasets"]["test_1"] | {"batch_size_per_gpu": 2}},
        "train": {"total_iter": 4},
    }
    train["quant_train"] = {"teacher": {"path": "w.pth"}}
    before = made_from.of_training(train, tmp_path)
    (tmp_path / "HR").rename(tmp_path / "moved")
    train["datasets"]["train"]["dataroot_gt"] = "moved"
    assert made_from.differences(before, made_from.of_training(train, tmp_path)) == []
    (tmp_path / "w.pth").write_bytes(b"other")
    train["train"]["total_iter"] = 5
    (tmp_path / "moved" / "a.png").write_bytes(b"other")
    changed = made_from.differences(before, made_from.of_training(train, tmp_path))
    assert changed == ["initial weights", "teacher", "training data", "options"]
    assert made_from.reason(changed) == "other initial weights, teacher, training data, options"


def test_a_post_training_method_is_part_of_a_training(opt, tmp_path):
    train = {**opt, "datasets": {"train": opt["datasets"]["test_1"]}}
    records = [
        made_from.of_training({**train, **more}, tmp_path)
        for more in ({}, {"ptq": {"method": "SPR2Q"}}, {"ptq": {"method": "GPTQ"}})
    ]
    for a, b in ((0, 1), (1, 2)):
        assert made_from.differences(records[a], records[b]) == ["options"]
