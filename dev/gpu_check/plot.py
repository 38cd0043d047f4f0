#!/usr/bin/env python3
"""Plots attention.csv of a report: TFLOP/s over T, a panel for each head size and pass, a line for each program.

    dev/gpu_check/plot.py attention.csv attention.svg      # needs matplotlib; says so and does nothing without it
"""
import csv
import sys


PASSES = {"forward": "forward", "backward": "backward", "both": "forward and backward"}


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: plot.py attention.csv PLOT.svg")
    try:
        import matplotlib
        matplotlib.use("svg")
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("no plot: matplotlib is not installed")
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"no plot: {sys.argv[1]} has no rows")
    head_sizes = sorted({int(row["D"]) for row in rows})
    figure, panels = plt.subplots(len(head_sizes), 3, figsize=(14, 3.6 * len(head_sizes)), squeeze=False, sharey="row")
    for D, line_of_panels in zip(head_sizes, panels):
        for key, title, panel in zip(PASSES, PASSES.values(), line_of_panels):
            for who in dict.fromkeys(row["who"] for row in rows):
                points = sorted((int(r["T"]), float(r[key])) for r in rows if r["who"] == who and int(r["D"]) == D)
                panel.plot([T for T, _ in points], [rate for _, rate in points], marker="o", markersize=3, label=who)
            panel.set(xscale="log", title=f"{title}, D = {D}", xlabel="T", ylabel="TFLOP/s, causal")
            panel.set_xscale("log", base=2)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(sys.argv[2])


if __name__ == "__main__":
    main()
