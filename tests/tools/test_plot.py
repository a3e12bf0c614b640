"""The plot tool: samples are what the quantizers saw, figures show them, files are written, mistakes are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.metrics import calculate_psnr
from PIL import Image

pytest.importorskip("matplotlib")

from tiny_networks import QUANTIZED, tiny_network

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.data.image_files import read_image, write_image
from qmambair_basicsr.data.matlab_resize import bicubic_downscale
from qmambair_basicsr.layers.info import network_info
from qmambair_basicsr.layers.sites import parameter_sites, quantizers_of
from qmambair_basicsr.quantizers import QUANTIZER_REGISTRY, RFA
from qmambair_basicsr.studies import plots
from qmambair_basicsr.studies.benchmark_table import Entry, csv_table
from qmambair_basicsr.studies.plot_data import PlotError, activation_samples, choose, parameter_samples
from qmambair_basicsr.studies.plot_results import Restored, busiest_box, crop_figure, read_benchmark, tradeoff_figure
from qmambair_basicsr.studies.plot_sites import histogram_pages, range_figure, threshold_map
from qmambair_basicsr.tools import plot

QUANT = {
    "weight": {"type": "RFA", "bits": 3},
    "act": {"type": "LSQOffset", "bits": 4},
    "scan": {"type": "DLS", "bits": 4},
}


def network(arch="QMambaIR", quant=QUANT, **changes):
    return tiny_network(arch, quant, **changes)


def calibrated(arch="QMambaIR", **changes):
    torch.manual_seed(0)
    net = build_network(network(arch, **changes)).eval()
    calibrate(net, [torch.rand(1, network_info(net).channels, 16, 16)])
    return net


@pytest.fixture(scope="module")
def net():
    return calibrated()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Option file, checkpoint, three originals and their inputs."""
    root = tmp_path_factory.mktemp("plot")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:48, 0:40]
    for i in range(3):
        image = np.stack([np.sin(x / (2 + i + c)) + np.cos(y / 5) for c in range(3)], -1) * 60 + 128
        image = (image + rng.normal(0, 3, image.shape)).clip(0, 255).round().astype(np.uint8)
        write_image(root / "HR" / f"image{i}.png", image)
        write_image(root / "LR" / f"image{i}x2.png", bicubic_downscale(image, 2))
    opt = {
        "name": "test_tiny",
        "scale": 2,
        "datasets": {},
        "network_g": network(),
        "path": {"pretrain_network_g": str(root / "net.pth")},
        "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}},
    }
    (root / "net.yml").write_text(yaml.safe_dump(opt), encoding="utf-8")
    torch.save({"params": calibrated().state_dict()}, root / "net.pth")
    return root


def check_files(out, names):
    for name in names:
        with Image.open(out / f"{name}.png") as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 150 and pixels.std() > 5
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert {file.stem for file in out.iterdir()} == set(names)


# -- samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", QUANTIZED)
def test_every_architecture_gives_samples_before_and_after(arch):
    net = calibrated(arch)
    image = torch.rand(1, network_info(net).channels, 16, 16)
    sites = activation_samples(net, [image], ["*"], 500, seed=0)
    assert len(sites) >= 8
    for site in sites:
        assert 0 < site.before.size == site.after.size <= 500
        assert len(np.unique(site.after)) <= 2**site.bits
        assert site.low - 1e-5 <= site.after.min() and site.after.max() <= site.high + 1e-5
        assert np.isfinite(site.before).all() and 0 <= site.clipped <= 1


@pytest.mark.parametrize("kind", [k for k, q in QUANTIZER_REGISTRY.items() if "weight" in q.roles and k != "Identity"])
def test_every_weight_quantizer_gives_samples(kind):
    bits = min(QUANTIZER_REGISTRY[kind].bit_widths, key=lambda width: abs(width - 4))
    net = calibrated(quant={"weight": {"type": kind, "bits": bits}})
    sites = parameter_samples(net, ["*in_proj.weight"], 10**6, seed=0)
    assert len(sites) == 2 and all(site.kind == kind for site in sites)
    layer = net.get_submodule("layers.0.residual_group.blocks.0.self_attention.in_proj")
    assert np.array_equal(np.sort(sites[0].before), np.sort(layer.weight.detach().flatten().numpy()))
    assert np.array_equal(np.sort(sites[0].after), np.sort(layer.quantized_weight().detach().flatten().numpy()))


def test_samples_are_bounded_and_seeded(net):
    images = [torch.rand(1, 3, 16, 16) for _ in range(3)]
    first, again, other = (activation_samples(net, images, ["*.u"], 300, seed) for seed in (0, 0, 1))
    assert all(site.before.size == 300 for site in first)
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a.before, b.before) and np.array_equal(a.after, b.after)
        assert not np.array_equal(a.before, c.before)


def test_shares_are_those_of_all_values(net):
    image = torch.rand(1, 3, 16, 16)
    (site,) = activation_samples(net, [image], ["layers.0.conv.act"], 10**9, seed=0)
    quantizer = net.layers[0].conv.act_quantizer
    seen = []
    handle = quantizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(image)
    handle.remove()
    assert site.clipped == pytest.approx(quantizer.health(seen[0])["clipped"], abs=1e-6)
    x = seen[0].double()
    outliers = ((x - x.mean()).abs() > 3 * x.std(correction=0)).double().mean().item()
    assert site.outliers == pytest.approx(outliers, abs=1e-5)


def test_without_patterns_one_site_of_each_kind(net):
    names = [q.site.label for q in quantizers_of(net).values()]
    chosen = choose(names, None)
    assert len(chosen) < len(names)
    assert sum(name.endswith("self_attention.u") for name in chosen) == 1
    cab = [name for name in chosen if ".cab." in name and name.endswith(".weight")]
    assert len(cab) == 4  # four different convolutions
    with pytest.raises(PlotError, match=r"--sites: nothing matches '\*\.v'"):
        choose(names, ["*.v"])


# -- figures ------------------------------------------------------------------------------------------------------


def test_histograms_hold_every_value_once(net):
    sites = activation_samples(net, [torch.rand(1, 3, 16, 16)], ["*"], 2000, seed=0)
    pages = histogram_pages(sites, "title")
    panels = [axis for page in pages for axis in page.axes if axis.get_title()]
    assert len(panels) == len(sites)
    for axis in panels:
        before, after = (patch.get_data().values for patch in axis.patches[:2])
        assert before.sum() == pytest.approx(1) and after.sum() == pytest.approx(1)


def test_ranges_are_drawn_in_standard_deviations(net):
    sites = activation_samples(net, [torch.rand(1, 3, 16, 16)], ["*"], 2000, seed=0)
    axis = range_figure(sites, "title").axes[0]
    dls = [site for site in sites if site.kind == "DLS"]
    bars = [line.get_xdata() for line in axis.lines if line.get_linewidth() == 4]
    for site, bar in zip(dls, bars, strict=True):
        assert np.allclose(bar, [(site.low - site.mean) / site.std, (site.high - site.mean) / site.std])
    with pytest.raises(PlotError, match="no DLS quantizer"):
        range_figure([site for site in sites if site.kind != "DLS"], "title")


def test_threshold_map_shows_the_movement():
    net = calibrated()
    sites = [site for site in parameter_sites(net) if isinstance(site.quantizer, RFA)]
    with torch.no_grad():
        sites[1].quantizer.thresholds[5] += 0.25
    moved = threshold_map(net, "title").axes[0].images[0].get_array()
    assert moved.shape == (len(sites), 8)
    assert moved[1, 5] == pytest.approx(0.25) and np.abs(moved).sum() == pytest.approx(0.25)
    with pytest.raises(PlotError, match="no weight is quantized by RFA"):
        threshold_map(calibrated(quant={"weight": {"type": "LSQ", "bits": 4}}), "title")


@pytest.fixture
def table(tmp_path):
    entries = [
        Entry("MambaIR", "x2", method, (bits, bits), size, {"Set5": {"psnr": psnr, "ssim": 0.9}, "B100": {"psnr": 30}})
        for method, bits, size, psnr in (
            ("FP", 32, 400.0, 37.0),
            ("LSQ", 2, 90.0, 34.0),
            ("LSQ", 4, 110.0, 36.0),
            ("Q-MambaIR", 4, 111.0, 36.5),
        )
    ]
    path = tmp_path / "x2.csv"
    path.write_text(csv_table("x2", entries, {}), encoding="utf-8")
    return path


@pytest.mark.parametrize(("against", "places"), [("bits", [2, 4]), ("size", [90, 110])])
def test_tradeoff_reads_the_benchmark(table, against, places):
    figure = tradeoff_figure(read_benchmark([table]), "psnr", against, ["Set5"])
    (axis,) = figure.axes
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines["MambaIR, LSQ"].get_xdata()) == places
    assert list(lines["MambaIR, LSQ"].get_ydata()) == [34.0, 36.0]
    assert list(lines["MambaIR, full precision"].get_ydata()) == [37.0, 37.0]
    assert len(tradeoff_figure(read_benchmark([table]), "psnr", against, None).axes) == 2


def test_crops_show_the_box_and_the_psnr_of_the_image():
    rng = np.random.default_rng(0)
    truth = np.full((40, 60, 3), 100, np.uint8)
    truth[20:32, 30:42] = rng.integers(0, 256, (12, 12, 3))
    left, top, width, height = busiest_box(truth, 12, border=2)
    assert (width, height) == (12, 12) and abs(left - 30) <= 1 and abs(top - 20) <= 1
    noisy = (truth.astype(int) + rng.integers(-9, 10, truth.shape)).clip(0, 255).astype(np.uint8)
    figure = crop_figure(truth, [Restored("noisy", noisy)], (30, 20, 12, 12), "title", 2, True)
    _, original, panel = figure.axes
    assert np.array_equal(original.images[0].get_array(), truth[20:32, 30:42, ::-1])
    assert np.array_equal(panel.images[0].get_array(), noisy[20:32, 30:42, ::-1])
    assert panel.get_title() == f"noisy\n{calculate_psnr(noisy, truth, crop_border=2, test_y_channel=True):.2f} dB"
    with pytest.raises(PlotError, match="must have the same size"):
        crop_figure(truth, [Restored("small", noisy[:20])], (30, 20, 12, 12), "title", 2, True)


# -- command line -------------------------------------------------------------------------------------------------


def test_sites_of_a_network_as_files(folder, tmp_path, capsys):
    common = ["-opt", str(folder / "net.yml"), "--out", str(tmp_path / "out")]
    images = ["--images", str(folder / "LR"), "--samples", "500"]
    assert plot.main(["histograms", *common, *images, "--sites", "*in_proj*"]) == 0
    assert plot.main(["ranges", *common, *images, "--sites", "*.u", "--count", "2"]) == 0
    assert plot.main(["thresholds", *common, "--sites", "*in_proj*"]) == 0
    check_files(tmp_path / "out", ["activations", "weights", "ranges", "thresholds", "staircases"])
    assert "activations.png" in capsys.readouterr().out
    before = (tmp_path / "out" / "ranges.pdf").read_bytes()
    assert plot.main(["ranges", *common, *images, "--sites", "*.u", "--count", "2"]) == 0
    assert (tmp_path / "out" / "ranges.pdf").read_bytes() == before


def test_tradeoff_as_files(table, tmp_path):
    assert plot.main(["tradeoff", "--tables", str(table), "--out", str(tmp_path / "out")]) == 0
    check_files(tmp_path / "out", ["psnr_against_size"])


def test_crops_as_files_with_results_made_elsewhere(folder, tmp_path):
    for i in range(3):  # named as a test run names them
        write_image(tmp_path / "other" / f"image{i}x2_run.png", read_image(folder / "HR" / f"image{i}.png"))
    common = ["crops", "-opt", str(folder / "net.yml"), "--truth", str(folder / "HR"), "--out", str(tmp_path / "out")]
    more = ["--label", "4 bits", "--result", f"other={tmp_path / 'other'}", "--box-side", "16"]
    assert plot.main([*common, *more, "--names", "image1"]) == 0
    assert plot.main([*common, "--images", str(folder / "LR"), "--names", "image2", "--box", "4,6,10,12"]) == 0
    check_files(tmp_path / "out", ["crops_image1", "crops_image2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["thresholds", "-opt", "none.yml"], "there is no file none.yml"),
        (["thresholds", "-opt", "OPT", "--checkpoint", "none.pth"], "checkpoint none.pth does not exist"),
        (["thresholds", "-opt", "OPT", "--param-key", "params_ema"], "has no 'params_ema'"),
        (["ranges", "-opt", "OPT", "--images", "nowhere"], "nowhere: no such folder"),
        (["histograms", "-opt", "OPT", "--images", "LR", "--sites", "*.x"], "nothing matches '*.x'"),
        (["tradeoff", "--tables", "none.csv"], "there is no file none.csv"),
        (["tradeoff", "--tables", "OPT"], "lacks the columns"),
        (["tradeoff", "--tables", "TABLE", "--metric", "lpips"], "no row with 'lpips'"),
        (["tradeoff", "--tables", "TABLE", "--sets", "Manga109"], "'Manga109' is not in the tables"),
        (["crops", "-opt", "OPT", "--truth", "HR", "--names", "baby"], "no image called baby"),
        (["crops", "-opt", "OPT", "--truth", "HR", "--box", "30,0,20,20"], "is outside image0.png"),
        (["crops", "-opt", "OPT", "--truth", "HR", "--label", "a", "b"], "2 given for 1 option files"),
        (["crops", "-opt", "OPT", "--truth", "HR", "--result", "x"], "'x' is not LABEL=FOLDER"),
        (["crops", "-opt", "OPT", "--truth", "HR", "--result", "x=EMPTY"], "has no image for 'image0'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, folder, table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "empty" / "unrelated.png", np.zeros((8, 8, 3), np.uint8))
    names = {
        "OPT": str(folder / "net.yml"),
        "HR": str(folder / "HR"),
        "LR": str(folder / "LR"),
        "TABLE": str(table),
        "x=EMPTY": f"x={tmp_path / 'empty'}",
    }
    assert plot.main([names.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("plots").exists()


def test_missing_matplotlib_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert plot.main(["tradeoff", "--tables", "none.csv"]) == 2
    assert "qmambair_basicsr[plot]" in capsys.readouterr().err
