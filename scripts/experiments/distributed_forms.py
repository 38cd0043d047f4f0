"""What the experiment distributed_vs_vanilla measures in each of its forms: which runs, and about how long."""
from collections import namedtuple

MIB = 1 << 20
GIB = 1 << 30

# Every way to compute attention: exchange and ranks. One rank that stores no matrix is called streaming.
WAYS = [("vanilla", 1), ("streaming", 1), ("ring", 2), ("gather", 2), ("ulysses", 2), ("ring", 4), ("gather", 4),
        ("ulysses", 4), ("ulysses-ring", 4)]

# contexts: of the times. most: bytes that vanilla's matrices may take there. budgets: bytes of a rank by layers held,
# of the longest contexts, for these passes. rate: operations a second, a guess for the time that is left; processors:
# at work at once.
Form = namedtuple("Form", "device heads head_dim contexts most rounds budgets passes rate processors")
FORMS = {
    "quick": Form("cpu", 4, 64, [128, 512], GIB, 1, {1: 4 * MIB}, ["both"], 1e11, 2),
    "cpu": Form("cpu", 4, 64, [512, 1024, 2048, 4096, 8192, 16384, 32768], 2 * GIB, 5, {1: 128 * MIB, 12: 512 * MIB},
                ["forward", "both"], 1e11, 2),
    "gpu": Form("cuda", 32, 64, [4096, 8192, 16384, 32768, 65536, 131072], 24 * GIB, 5, {1: 8 * GIB, 12: 16 * GIB},
                ["forward", "both"], 3e14, 1),
}

# One run of dev/bench_distributed. purpose: "time" or "largest". cost: seconds, about.
Run = namedtuple("Run", "purpose exchange ranks T layers last_pass rounds cost")

PRODUCTS = {"forward": 2, "both": 7}  # over the scores


def operations(T, channels, name):
    """Useful ones of a pass: a causal product counts 2 x T^2/2 for each channel."""
    return PRODUCTS[name] * T * T * channels


def matrix_bytes(T, heads, element):
    return heads * T * T * element


def make_run(form, purpose, way, T, layers, last_pass, rounds):
    exchange, ranks = way
    work = operations(T, form.heads * form.head_dim, last_pass) * (2 if exchange == "vanilla" else 1) / form.rate
    long = work / min(ranks, form.processors) * (rounds + 1)
    return Run(purpose, exchange, ranks, T, layers, last_pass, rounds, long + 0.3 * rounds)


def time_runs(form):
    """All ways at all contexts, forward and backward; vanilla as far as its memory goes."""
    element = 4 if form.device == "cpu" else 2
    runs = []
    for T in form.contexts:
        rounds = form.rounds if T < form.contexts[-1] else min(form.rounds, 3)
        for way in WAYS:
            if way[0] != "vanilla" or matrix_bytes(T, form.heads, element) <= form.most:
                runs.append(make_run(form, "time", way, T, 1, "both", rounds))
    return runs


def largest_runs(form, bench):
    """Each way at the longest context whose lay-out fits the budget: once, which shows that it does run there."""
    runs = []
    for layers, budget in form.budgets.items():
        for way in WAYS:
            plans = bench.largest(*way, layers, budget)
            runs += [make_run(form, "largest", way, int(plans[name]["T"]), layers, name, 1) for name in form.passes]
    return runs
