"""ablation_report: means, spread, paired differences and order from known figures."""

from __future__ import annotations

import csv
import io

import pytest

from qmambair_basicsr.studies.ablation_report import collect, markdown, order, summary_csv
from qmambair_basicsr.studies.ablation_studies import Run
from qmambair_basicsr.studies.study_runs import Store


@pytest.fixture
def rows(tmp_path):
    """Two variants with three seeds, one with one, on one set; figures of another set are left out."""
    store = Store(tmp_path)
    figures = {"Q-MambaIR": (36.0, 36.2, 36.4), "LSQ": (35.5, 35.9, 35.7), "QuantSR": (35.8,)}
    runs = []
    for variant, values in figures.items():
        for seed, value in enumerate(values):
            run = Run(f"{variant}{seed}", (("methods", variant),), 4, seed, {})
            other = {"metrics": {"psnr": 0.0}, "protocol": {}}
            store.write(run, {"results": {"Set5": {"metrics": {"psnr": value}, "protocol": {}}, "Other": other}})
            runs.append(run)
    return collect(runs, store, ["Set5"])


def test_table(rows):
    text = markdown(rows)
    assert "| 4 | Q-MambaIR | 3 | 36.20 ± 0.20 | – |" in text
    # paired by seed: -0.5, -0.3, -0.7
    assert "| 4 | LSQ | 3 | 35.70 ± 0.20 | -0.50 ± 0.20 |" in text
    assert "| 4 | QuantSR | 1 | 35.80 | -0.20 |" in text
    assert "* 4 bits, Set5: Q-MambaIR > QuantSR > LSQ" in text
    assert "Other" not in text


def test_order_is_of_the_means(rows):
    assert order(rows, "Set5") == "Q-MambaIR > QuantSR > LSQ"
    assert order(rows, "Set14") == ""


def test_summary(rows):
    lines = {row["variant"]: row for row in csv.DictReader(io.StringIO(summary_csv(rows)))}
    assert lines["LSQ"] == {
        "study": "methods",
        "variant": "LSQ",
        "bits": "4",
        "set": "Set5",
        "metric": "psnr",
        "mean": "35.70000",
        "std": "0.20000",
        "n": "3",
        "difference": "-0.50000",
        "difference_std": "0.20000",
    }
    assert lines["QuantSR"]["std"] == ""


def test_no_rows():
    assert markdown([]) == ""
