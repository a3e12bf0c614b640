"""One reader of option files: plain data, one message for each mistake."""

from __future__ import annotations

import pytest

from qmambair_basicsr.recipes.option_contents import OPTIONS
from qmambair_basicsr.recipes.option_files import TEST_KEYS, OptionFileError, read_options


def containers(value):
    yield type(value)
    if isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from containers(entry)


def test_shipped_files_are_plain_data():
    file = OPTIONS / "test_QMambaIR_SRx2_w2a2.yml"
    opt = read_options(file, TEST_KEYS, quantized=True)
    assert opt["name"] == file.stem
    assert set(containers(opt)) <= {dict, list, str, int, float, bool, type(None)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^there is no file .*opt\.yml; give an option file$"),
        (b"", r"opt\.yml holds no options"),
        (b"- 1", r"opt\.yml holds no options"),
        (b"name: [", r"^\S*opt\.yml is not valid YAML: [^\n]*line \d[^\n]*$"),
        (b"\x80\x02", r"opt\.yml is not valid YAML"),
        (b"name: x", r"opt\.yml has no network_g, datasets, val; give"),
        (b"{name: x, network_g: , datasets: {}, val: {}}", r"opt\.yml has no network_g; give"),
        (b"{name: x, network_g: {type: MambaIR}, datasets: {}, val: {}}", r"opt\.yml: network_g has no quant block"),
    ],
)
def test_mistakes_name_the_file(tmp_path, content, message):
    file = tmp_path / "opt.yml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OptionFileError, match=message):
        read_options(file, TEST_KEYS, quantized=True)


def test_a_missing_file_that_can_be_made_is_said_how(tmp_path):
    command = "python -m qmambair_basicsr.tools.make_options train_QMambaIR_CARq10_w3a5_lsq"
    with pytest.raises(OptionFileError, match=f"; make it: {command}$"):
        read_options("options/train_QMambaIR_CARq10_w3a5_lsq.yml")
    with pytest.raises(OptionFileError, match=f"; make it: {command} --out {tmp_path}$"):
        read_options(tmp_path / "train_QMambaIR_CARq10_w3a5_lsq.yml")


def test_a_folder_is_no_option_file(tmp_path):
    with pytest.raises(OptionFileError, match=r"cannot be read \(Is a directory\); give an option file"):
        read_options(tmp_path)
