"""Reads what --eval-by-position writes, and puts positions together in bins."""
import csv
import math
import statistics
import sys

import plotting

BINS_PER_OCTAVE = 8


def read_losses(path):
    """[(mean loss, [mean loss of each part of the windows])] by position."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        losses = []
        try:
            for row in rows:
                if int(row["position"]) != len(losses):
                    raise ValueError
                parts = [float(row[name]) for name in rows.fieldnames if name.startswith("part_")]
                losses.append((float(row["loss"]), parts))
        except (KeyError, TypeError, ValueError, csv.Error):
            sys.exit(f"{plotting.program()}: {path}: line {rows.line_num} is no such row; "
                     "give a file written by --eval-by-position")
    if not losses:
        sys.exit(f"{plotting.program()}: {path}: no positions in it; give a file written by --eval-by-position")
    return losses


def binned(losses, per_octave=BINS_PER_OCTAVE):
    """[(tokens read, mean loss, standard error)]: the target at position i is told from i + 1 tokens.

    The error is of the curve's shape. A window's text is hard or easy at all of its positions, so positions of the same
    windows are no independent samples; but parts of the windows are, or nearly so. Of each the mean over all positions
    is taken off, and the error comes from how the rest differs from part to part. Not a number: of a single part.
    """
    bins = {}
    for i in range(len(losses)):
        bins.setdefault(math.floor(per_octave * math.log2(i + 1) + 1e-9), []).append(i)
    levels = [statistics.fmean(part) for part in zip(*(parts for _, parts in losses))]
    points = []
    for places in bins.values():
        middle = math.exp(statistics.fmean(math.log(i + 1) for i in places))
        shapes = [statistics.fmean(losses[i][1][k] for i in places) - level for k, level in enumerate(levels)]
        error = statistics.stdev(shapes) / math.sqrt(len(shapes)) if len(shapes) > 1 else math.nan
        points.append((middle, statistics.fmean(losses[i][0] for i in places), error))
    return points
