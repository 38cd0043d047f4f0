"""Times of attention on four GPUs, which are projected: from measured rates of one GPU, or from a specification.

Useful operations of a pass: F = products T^2 C, with C channels and 2 products forward, 7 with backward. b: bytes that
the busiest of P ranks sends, by attention/cost.c. L: bytes a second of a link, one way.

  P ranks   ring, gather         max(F / (P r), b / L)    keys and values travel while a rank works
            ulysses, with ring   F / (P r) + b / L        all-to-alls, behind which there is no work
  vanilla   measured rates       F / r'                   r, r': operations a second of streaming and of vanilla
            specification        n H T^2 e / M            n times each T x T matrix goes through memory, at M bytes/s

n: forward, a product writes the scores, the softmax reads and writes, a product reads: 4. Backward makes them again
(3), and reads P, writes and reads dP, and makes dS of P, which is read twice: 10 in all. What products take beside that
is left out, in vanilla's favour.
"""
import csv
from collections import namedtuple

from distributed_forms import matrix_bytes, operations

PASSES_OVER_MATRIX = {"forward": 4, "both": 14}
OVERLAPPED = ("ring", "gather")

# rate: "measured", or operations a second of bf16 products that sum in fp32, dense. memory, link: bytes a second, of a
# link one way. room: bytes of vanilla's matrices that fit; None: those that were measured do.
Machine = namedtuple("Machine", "name rate memory link link_name room")
MACHINES = [
    Machine("4 x {gpu}", "measured", None, 450e9, "NVLink, 450 GB/s", None),  # NVIDIA: 900 GB/s, both ways together
    Machine("4 x RTX 4090", 165.2e12, 1008e9, 31.5e9, "PCIe 4.0 x16, 31.5 GB/s", 22 << 30),
]


def report_rates(path, head_dim):
    """{(who, T, pass): operations a second} of a report of dev/gpu_check."""
    rates = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if int(row["D"]) == head_dim and row["who"] in ("train_gpt", "vanilla"):
                who = "streaming" if row["who"] == "train_gpt" else "vanilla"
                for name in ("forward", "both"):
                    rates[who, int(row["T"]), name] = float(row[name]) * 1e12
    return rates


def rates_of_rows(rows):
    """The same of rows that were measured on a GPU here."""
    rates = {}
    for row in rows:
        if row["purpose"] == "time" and row["exchange"] in ("streaming", "vanilla"):
            T, channels = int(row["T"]), int(row["heads"]) * int(row["head_dim"])
            rates[row["exchange"], T, row["pass"]] = operations(T, channels, row["pass"]) / float(row["seconds"])
    return rates


def vanilla_seconds(machine, rates, T, heads, head_dim, name):
    """None: it does not fit."""
    if machine.rate == "measured":
        return operations(T, heads * head_dim, name) / rates["vanilla", T, name]
    matrices = matrix_bytes(T, heads, 2)
    return PASSES_OVER_MATRIX[name] * matrices / machine.memory if matrices <= machine.room else None


def rank_seconds(machine, rates, work, T, name, exchange, ranks, sent):
    """(seconds of all, of a rank's work, of what it sends)."""
    rate = rates["streaming", T, name] if machine.rate == "measured" else machine.rate
    working, sending = work / ranks / rate, sent / machine.link
    return (max(working, sending) if exchange in OVERLAPPED else working + sending), working, sending


def project(gpu, rates, heads, head_dim, contexts, ways, sent_by):
    """Rows of projected.csv. sent_by(exchange, ranks, T): by pass, the bytes that the busiest rank sends."""
    rows = []
    for T in contexts:
        for exchange, ranks in ways:
            sent = sent_by(exchange, ranks, T)
            for machine in MACHINES:
                for name in ("forward", "both"):
                    whole = vanilla_seconds(machine, rates, T, heads, head_dim, name)
                    work = operations(T, heads * head_dim, name)
                    seconds = rank_seconds(machine, rates, work, T, name, exchange, ranks, sent[name])
                    rows.append({"machine": machine.name.format(gpu=gpu), "link": machine.link_name, "pass": name,
                                 "T": T, "exchange": exchange, "ranks": ranks,
                                 "vanilla_seconds": "" if whole is None else f"{whole:.4g}",
                                 "work_seconds": f"{seconds[1]:.4g}", "sending_seconds": f"{seconds[2]:.4g}",
                                 "seconds": f"{seconds[0]:.4g}",
                                 "times_vanilla": "" if whole is None else f"{whole / seconds[0]:.3g}"})
    return rows
