"""One reader of option files: plain data, one message for each mistake."""

from __future__ import annotations

import pytest

from qmambair_basicsr.recipes.option_contents import OPTIONS
from qmambair_basicsr.recipes.option_data import DATA, SMALLEST
from qmambair_basicsr.recipes.option_files import TEST_KEYS, OptionFileError, read_options
from qmambair_basicsr.recipes.option_names import Row, post_training, published, rows
from qmambair_basicsr.schema.sizes import image_size


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


def test_no_patch_is_larger_than_the_smallest_photograph_of_its_training_set():
    """Patches that a data set cannot give stop a training that somebody has just made a file for."""
    known = {(data.gt, dict(data.extra).get("meta_info_file")): data.smallest for data in DATA.values()}
    own = [Row("train", "MambaIRv2Light", f"lightSRx{s}", b, "plus") for s in (2, 4) for b in (4, 2)]
    seen = set()
    made = (row for row in rows(every=True) if row.phase == "train" and row.method in ("", "distill", "plus"))
    for row in (*own, *published(), *made, *(row for row in post_training() if row.phase == "ptq")):
        train = row.options()["datasets"].get("train")
        smallest = known.get((train["dataroot_gt"], train.get("meta_info_file"))) if train else 0
        if smallest:
            assert train["gt_size"] <= smallest, row.name
            seen.add(smallest)
    assert seen == set(SMALLEST.values())


@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("BSDS400T91", ("BSDS500_train200", "BSDS500_test200", "T91")),
        ("BSDS400", ("BSDS500_train200", "BSDS500_test200")),
    ],
)
def test_smallest_photographs_are_those_of_the_sets(shared_dir, name, folders):
    files = [file for folder in folders for file in (shared_dir / "data" / "train" / folder).iterdir()]
    cut = 12  # prepare_data leaves whole blocks of all scales together
    assert min(side - side % cut for file in files for side in image_size(file) or (10**6,)) == SMALLEST[name]
