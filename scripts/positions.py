"""Reads what --eval-by-position writes, and puts positions together in bins."""
import csv
import math
import sys

import plotting

BINS_PER_OCTAVE = 8


def read_losses(path):
    """The mean loss at each position, in order."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        losses = []
        try:
            for row in rows:
                if int(row["position"]) != len(losses):
                    raise ValueError
                losses.append(float(row["loss"]))
        except (KeyError, TypeError, ValueError, csv.Error):
            sys.exit(f"{plotting.program()}: {path}: line {rows.line_num} is no such row; "
                     "give a file written by --eval-by-position")
    if not losses:
        sys.exit(f"{plotting.program()}: {path}: no positions in it; give a file written by --eval-by-position")
    return losses


def binned(losses):
    """[(tokens read, mean loss, standard error)]: the target at position i is told from i + 1 tokens."""
    bins = {}
    for i, loss in enumerate(losses):
        bins.setdefault(math.floor(BINS_PER_OCTAVE * math.log2(i + 1) + 1e-9), []).append((i + 1, loss))
    points = []
    for entries in bins.values():
        n = len(entries)
        mean = sum(loss for _, loss in entries) / n
        spread = math.sqrt(sum((loss - mean) ** 2 for _, loss in entries) / (n - 1)) if n > 1 else math.nan
        middle = math.exp(sum(math.log(read) for read, _ in entries) / n)
        points.append((middle, mean, spread / math.sqrt(n)))
    return points
