"""What the documentation says was measured on a GPU is what results/gpu holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.gpu_lab.collect import markdown

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "results" / "gpu" / "measurements.json").read_text())


def result(part: str, name: str) -> dict[str, Any]:
    (found,) = [m["result"] for m in FOUND if (m["part"], m["name"]) == (part, name)]
    return found


def test_the_page_names_the_machine_and_its_numbers() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    for about in (m["machine"] for m in FOUND):
        said = (about["gpu"], about["packages"]["torch"], about["python"], about["commit"])
        assert all(word in page for word in said)
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    paper, unfused = result("selection", "paper"), result("selection", "unfused")
    for start, text, key, scale in (
        ("| time (target", ",.0f", "seconds", 1e3),
        ("| over its matrix products", ".3g", "ratio_to_gemm_bound", 1),
        ("| memory above the inputs", ".1f", "extra_memory_bytes", 2**-20),
    ):
        (row,) = [row for row in rows if row.startswith(start)]
        wanted = [f"{each[key] * scale:{text}}" for each in (paper, unfused)]
        cells = [
            cell.strip(" *").removesuffix(" ms").removesuffix(" MiB") for cell in row.split("|")
        ]
        assert [float(x.replace(",", "")) for x in cells[2:4]] == [
            float(x.replace(",", "")) for x in wanted
        ]
    assert f"{result('selection', 'energy')['joules_each']:.0f} J |" in page
    picks = result("selection", "picks")
    assert picks["overlap_with_float64"] == 1 and picks["repeats_itself"]
    assert f"{100 * picks['same_order']:.2f} %" in page
    kernel = result("selection", "kernel")
    assert all(kernel[d]["sum_softplus_relative_error"] < 1e-6 for d in ("bfloat16", "float32"))
    assert all(kernel[d]["log_sum_exp_error"] < 2e-6 for d in ("bfloat16", "float32"))
    assert f"reaches {result('selection', 'ceilings')['matmul_tflops']:.0f} here" in " ".join(
        page.split()
    )


def test_the_pages_name_the_steps_numbers() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    names = {"uniform": "uniform", "jest": "JEST", "flexi": "Flexi-JEST", "open_clip": "open_clip"}
    for row in result("train", "eager")["rows"]:
        (line,) = [x for x in page.splitlines() if x.startswith(f"| {names[row['name']]} | ")]
        for text in (
            f"| {row['examples_per_second']:,.0f} | {row['ratio']:.2f} | ",
            f" | {row['counted_ratio']:.2f} | ",
            f"{row['over_counted']:.2f}",
            f"| {100 * row['mfu']:.1f} % | {row['joules_a_step']:.0f} |",
        ):
            assert text in line
    ours, theirs = (row["mfu"] for row in result("train", "compiled-uniform")["rows"])
    words = " ".join(page.split())
    assert f"compiled {100 * ours:.1f} % (open_clip's {100 * theirs:.1f} %)" in words
    jest = result("train", "eager")["rows"][1]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"{jest['ratio']:.2f} times a uniform one's time for {jest['counted_ratio']:.2f}" in readme
    )
    assert f"takes {1000 * result('selection', 'paper')['seconds']:.0f} ms" in readme


def test_the_summary_is_that_of_the_measurements() -> None:
    assert (ROOT / "results" / "gpu" / "summary.md").read_text() == markdown(FOUND)
