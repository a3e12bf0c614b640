"""Which pictures a command line stands for, and what their results are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmambair_basicsr.inference.inputs import find_jobs, require_folder, require_place
from qmambair_basicsr.inference.provenance import as_text


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with pictures, sub-folders, and files that are none."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "B.PNG", "notes.txt", ".hidden.png", "trip/c.tif", "trip/day 2/d.webp", "trip/.cache/e.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def targets(jobs, out="out"):
    return [job.target.relative_to(out).as_posix() for job in jobs]


def test_folders_files_and_patterns(photos):
    out = Path("out")
    assert targets(find_jobs(["photos"], out)) == ["B.PNG", "a.jpg"]
    assert targets(find_jobs(["photos"], out, recursive=True)) == ["B.PNG", "a.jpg", "trip/c.tif", "trip/day 2/d.webp"]
    assert targets(find_jobs(["photos/a.jpg", "photos/trip"], out)) == ["a.jpg", "c.tif"]
    assert targets(find_jobs(["photos/*.jpg", "photos/**/*.webp"], out)) == ["a.jpg", "trip/day 2/d.webp"]
    assert targets(find_jobs(["photos/*"], out)) == ["B.PNG", "a.jpg", "c.tif"]
    assert targets(find_jobs(["photos", "photos/a.jpg", str(photos / "a.jpg")], out)) == ["B.PNG", "a.jpg"]  # each once
    assert targets(find_jobs(["photos/notes.txt"], out)) == ["notes.png"]  # what is named is tried


def test_endings_and_suffixes(photos):
    assert targets(find_jobs(["photos"], Path("out"), ending="PNG", suffix="_x2")) == ["B_x2.png", "a_x2.png"]
    with pytest.raises(ValueError, match=r"did you mean '\.webp'"):
        find_jobs(["photos"], Path("out"), ending="wepb")


def test_results_in_a_folder_of_the_pictures_are_not_restored_again(photos):
    out = photos / "restored"
    jobs = find_jobs([str(photos)], out, recursive=True)
    for job in jobs:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        job.target.write_text("result")
    assert find_jobs([str(photos)], out, recursive=True) == jobs


def test_names_that_would_meet_keep_their_endings(photos):
    (photos / "a.png").touch()
    jobs = find_jobs(["photos"], Path("out"), ending="png")
    assert targets(jobs) == ["B.png", "a.jpg.png", "a.png.png"]
    (photos / "b.png").touch()  # some file systems do not tell b.png from B.PNG
    jobs = find_jobs(["photos"], Path("out"))
    assert targets(jobs) == ["B.PNG", "a.jpg", "a.png", "b-2.png"] and not any(job.problem for job in jobs)
    (photos / "A.png").touch()
    assert targets(find_jobs(["photos"], Path("out"), ending="png")) == [
        *("A.png.png", "B.png", "a.jpg.png", "a.png-2.png", "b-2.png")
    ]


def test_pictures_of_one_name_from_two_places_fail_alone(photos):
    (photos / "trip" / "a.jpg").touch()
    jobs = find_jobs(["photos/a.jpg", "photos/trip/a.jpg", "photos/B.PNG"], Path("out"))
    assert ["a.jpg would become" in job.problem for job in jobs] == [True, True, False]
    with pytest.raises(ValueError, match=r"a\.jpg would become .*a\.jpg as well"):
        find_jobs(["photos/a.jpg", "photos/trip/a.jpg"], Path("out"))


def test_no_picture_is_replaced(photos):
    with pytest.raises(ValueError, match="would be replaced"):
        find_jobs(["photos"], photos)
    assert targets(find_jobs(["photos"], photos, suffix="_x2"), photos) == ["B_x2.PNG", "a_x2.jpg"]


@pytest.mark.parametrize(
    ("given", "said"), [("gone", "no such file"), ("empty", "no picture in it; --recursive"), ("*.gif", "no pattern")]
)
def test_an_input_that_stands_for_nothing_stops(photos, given, said):
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match=said):
        find_jobs(["photos", given], Path("out"))


@pytest.mark.parametrize(("given", "said"), [("", "an empty name"), (" ", "an empty name"), ("x" * 5000, "-i: xxx")])
def test_an_input_that_is_no_name_stops(photos, given, said):
    with pytest.raises(ValueError, match=said):
        find_jobs(["photos", given], Path("out"))


def test_a_suffix_with_a_folder_in_it_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="--suffix"):
        find_jobs([str(tmp_path)], tmp_path / "out", suffix="../x")


def test_a_picture_that_would_be_replaced_fails_alone(photos):
    (photos / "a_x2.jpg").touch()  # no result of ours
    jobs = find_jobs(["photos"], photos, suffix="_x2")
    assert [(job.source.name, "would be replaced" in job.problem) for job in jobs] == [
        *(("B.PNG", False), ("a.jpg", True), ("a_x2.jpg", False))
    ]


def test_results_among_the_pictures_are_none_of_them(photos):
    jobs = find_jobs(["photos"], photos, suffix="_x2")
    for job in jobs:
        job.target.write_text(as_text({"picture": "0"}))
    assert find_jobs(["photos"], photos, suffix="_x2") == jobs
    assert find_jobs(["photos/*.*g", "photos/*.PNG"], photos, suffix="_x2") != []
    with pytest.raises(ValueError, match="would be replaced"):  # never without a suffix
        find_jobs([str(jobs[0].target)], photos)


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_an_input_that_is_no_file_is_named(photos, kind):
    if kind == "pipe":
        os.mkfifo("photos/x.png")
    else:
        Path("photos/x.png").symlink_to("nothing")
    said = "neither a file nor a folder" if kind == "pipe" else "a link to nothing"
    with pytest.raises(FileNotFoundError, match=said):
        find_jobs(["photos/x.png"], Path("out"))


def test_the_place_of_results_is_looked_at_first(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for dry in (True, False):
            with pytest.raises(ValueError, match="is no folder"):
                require_folder(out, dry=dry)
    require_folder(tmp_path / "a" / "b", dry=True)
    assert not (tmp_path / "a").exists()
    require_folder(tmp_path / "a" / "b", ["page.html"])
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "a" / "b" / "page.html").mkdir()
    with pytest.raises(ValueError, match=r"page\.html is a folder"):
        require_folder(tmp_path / "a" / "b", ["page.html"])
    with pytest.raises(OSError, match="/proc"):  # where nobody can write
        require_folder(Path("/proc/results"))


def test_a_result_that_cannot_be_written_is_not_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "a.png").mkdir()
    for target, said in (("a.png", "is a folder"), ("file/a.png", "is no folder"), ("file/b/a.png", "is no folder")):
        with pytest.raises(ValueError, match=said):
            require_place(tmp_path / target)
    require_place(tmp_path / "new" / "a.png")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match="not ours to write to"):
        require_place(tmp_path / "new" / "a.png")
