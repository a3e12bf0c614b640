"""Images that belong to an original: one, or none."""

from __future__ import annotations

import pytest

from qmambair_basicsr.studies.plot_data import PlotError
from qmambair_basicsr.studies.plot_results import file_for


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photo.png"], "photo.png"),
        (["photox2.png", "other.png"], "photox2.png"),
        (["photo_test.png"], "photo_test.png"),
        (["photo.png", "photox2.png"], "photo.png and photox2.png in .* could both belong to 'photo'"),
        (["photo.bmp", "photo.png"], "photo.bmp and photo.png in .* could both belong"),
        (["photo_a.png", "photo_b.png"], "several images for 'photo'"),
        (["photos.png"], "no image for 'photo'"),
    ],
)
def test_image_of_an_original(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    if expected in names:
        assert file_for("photo", tmp_path, "--result", ("x2",)).name == expected
    else:
        with pytest.raises(PlotError, match=expected):
            file_for("photo", tmp_path, "--result", ("x2",))
