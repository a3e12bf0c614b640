"""The report of ``tools.verify`` as a table."""

from __future__ import annotations

HEADER = (
    "network",
    "DLS",
    "precision",
    "tiles",
    "parameters equal",
    "codes equal, same input",
    "codes equal, whole network",
    "PSNR to network, min",
    "mean",
    "the network itself with the noise of rounding, min",
    "mean",
    "PSNR to truth",
    "difference",
    "of the noise of rounding",
    "verdict",
)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _pair(psnr: dict | None) -> list[str]:
    """Least and mean."""
    if psnr is None:
        return ["-", "-"]
    return ["equal", "equal"] if psnr["equal"] else [_cell(psnr["min"]), _cell(psnr["mean"])]


def _cells(row: dict) -> list[str]:
    if "dls" not in row:
        return [row["name"], *["-"] * 10, _cell(row["truth_psnr"]), "-", "-", "-"]
    codes, sizes, parameters = row["activations"], row["tiles"], row["parameters"]
    shares = [
        "-" if not codes[total] else f"{100 * codes[equal] / codes[total]:.4g} % of {codes[total]:,}"
        for equal, total in (("own_input_equal", "own_input_codes"), ("whole_network_equal", "codes"))
    ]
    exact = row["truth_psnr_fake_quantization"]
    gaps = [
        "-" if exact is None or row[name] is None else f"{row[name] - exact:+.3f}"
        for name in ("truth_psnr", "rounding_truth_psnr")
    ]
    return [
        row["name"],
        row["dls"],
        row["precision"],
        "x".join(map(str, sizes)) if sizes else "whole",
        f"{parameters['equal']} of {parameters['compared']}",
        *shares,
        *_pair(row["psnr"]),
        *_pair(row["rounding_psnr"]),
        _cell(row["truth_psnr"]),
        *gaps,
        row["verdict"],
    ]


def markdown(document: dict) -> str:
    """The report as people read it; ``document`` is what ``tools.verify`` writes as JSON."""
    truth, side = document["truth"], document["middle"]
    images = f"{len(document['images'])} images" + (f", the middle {side} x {side} pixels of each" if side else "")
    protocol = f"; ground truth: {truth['channel'].upper()}, {truth['crop']} border pixels left out" if truth else ""
    lines = [
        f"# {document['network']}, {document['checkpoint']}",
        "",
        f"{images}{protocol}. PSNR in dB; at least {document['min_psnr']:g} dB to the network is asked for. 'difference': "
        "to the PSNR of fake quantization with dynamic DLS on the same tiles; behind it that of the network itself with the "
        "noise of rounding.",
        "",
        _line(HEADER),
        _line(["---"] * len(HEADER)),
        *(_line(_cells(row)) for row in document["rows"]),
        "",
    ]
    lines += [
        f"{row['name']}: the lowered network in FP64 has {row['fp64']['equal']:,} of {row['fp64']['codes']:,} codes of the "
        "network.\n"
        for row in document["rows"]
        if row.get("fp64")
    ]
    failures = [f"- {row['name']}: {reason}" for row in document["rows"] for reason in row.get("failures", ())]
    rounded = [row["name"] for row in document["rows"] if row.get("verdict") == "verified up to rounding"]
    if rounded:
        lines += [
            f"Verified up to rounding ({', '.join(rounded)}): in FP64 the graph has every code of the network, and as it is "
            "its output is as near to the network's as the network's own output with noise of 1e-7 (FP16: 5e-4) of the "
            "largest value at the image and at every quantizer, the size of rounding.",
            "",
        ]
    lines += ["Not verified:" if failures else "Verified.", *failures]
    return "\n".join(lines) + "\n"
