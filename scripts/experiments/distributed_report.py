"""Tables and plots of distributed_vs_vanilla. What was measured, what was planned (the lay-out's bytes, not run) and
what was projected (a formula over somebody's rates) stand in tables of their own."""
import csv
import os

import distributed_projection
import experiment
import plotting
from distributed_forms import GIB, MIB
from experiment import TREE, markdown

PASS_TITLES = {"forward": "forward", "both": "forward and backward"}
H200 = os.path.join(TREE, "doc", "gpu", "h200", "attention.csv")
# Plans: title, device, bytes of a rank, heads of 64, CUDA_ATTENTION: Hopper's kernels have scratch memory of their own.
PLANS = [("CPU, fp32, 4 heads", "cpu", 2 * GIB, 4, None), ("RTX 4090, bf16, 32 heads", "cuda", 22 * GIB, 32, "mma"),
         ("H200, bf16, 32 heads", "cuda", 128 * GIB, 32, None)]
PLANNED_LAYERS = (1, 12)
REPORTED_CONTEXT = 16384  # of the projections


def way_name(exchange, ranks):
    return exchange if exchange in ("vanilla", "streaming") else f"{exchange}, {ranks}"


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def layers_name(layers):
    return f"{layers} {'layers' if layers > 1 else 'layer'}"


def size(count):
    return f"{count / GIB:.4g} GiB" if count >= GIB else f"{count / MIB:.4g} MiB"


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")


# ---- times at equal T -----------------------------------------------------------------------------------------------


class Times:
    """The measured rows of times, by way, T and pass."""

    def __init__(self, rows, ways):
        self.rows = {(row["exchange"], int(row["ranks"]), int(row["T"]), row["pass"]): row
                     for row in rows if row["purpose"] == "time"}
        self.ways = ways
        self.contexts = sorted({key[2] for key in self.rows})
        self.has_work = any(row["work"] for row in self.rows.values())

    def value(self, way, T, name, column):
        row = self.rows.get((*way, T, name))
        return float(row[column]) if row and row[column] else None

    def bytes(self, way, T, name):
        row = self.rows.get((*way, T, name))
        return int(row["tensors"]) + int(row["scratch"]) if row else None

    def ratio(self, way, T, name, column):
        """How many times as fast as vanilla, each by the matrix rate of its own run: the machine's speed changes."""
        mine, whole = self.rows.get((*way, T, name)), self.rows.get(("vanilla", 1, T, name))
        if not mine or not whole or not mine[column]:
            return None
        ratio, rates = float(whole[column]) / float(mine[column]), [float(row["matrix_rate"]) for row in (whole, mine)]
        return ratio * rates[0] / rates[1] if all(rates) else ratio  # 0: there was no room to measure it

    def with_vanilla(self):
        return max(T for exchange, _, T, _ in self.rows if exchange == "vanilla")

    def table(self, cell):
        lines = []
        for T in self.contexts:
            cells = [cell(way, T) for way in self.ways]
            lines.append([f"{T:,}"] + ["" if value is None else number(value) for value in cells])
        return markdown(["T"] + [way_name(*way) for way in self.ways], lines)


def time_tables(times):
    text = ""
    for name, title in PASS_TITLES.items():
        text += f"Milliseconds, {title}, from the first rank's start to the last one's end:\n\n"
        text += times.table(lambda way, T: scaled(times.value(way, T, name, "seconds"), 1e3)) + "\n"
        if times.has_work:
            text += f"Milliseconds of processor time of the busiest rank, {title}:\n\n"
            text += times.table(lambda way, T: scaled(times.value(way, T, name, "work"), 1e3)) + "\n"
    text += "MiB of a rank, by the lay-out, forward and backward, one layer:\n\n"
    text += times.table(lambda way, T: scaled(times.bytes(way, T, "both"), 1 / MIB)) + "\n"
    text += "MiB that the busiest rank sends, forward and backward:\n\n"
    return text + times.table(lambda way, T: scaled(times.value(way, T, "both", "sent"), 1 / MIB))


def scaled(value, factor):
    return None if value is None else value * factor


# ---- the largest T --------------------------------------------------------------------------------------------------


def largest_rows(rows, form):
    """Rows of largest.csv: what was run at the longest context of each budget."""
    measured = [row for row in rows if row["purpose"] == "largest"]
    vanilla = {(row["layers"], row["pass"]): int(row["T"]) for row in measured if row["exchange"] == "vanilla"}
    result = []
    for row in measured:
        times = int(row["T"]) / vanilla[row["layers"], row["pass"]]
        result.append({"layers": row["layers"], "budget": form.budgets[int(row["layers"])], "pass": row["pass"],
                       "exchange": row["exchange"], "ranks": row["ranks"], "T": row["T"],
                       "times_vanilla": f"{times:.4g}", "squared": f"{times * times:.4g}",
                       "stated": int(row["tensors"]) + int(row["scratch"]), "resident": row["resident"],
                       "seconds": row["seconds"]})
    return result


def planned_rows(bench, ways):
    """Rows of planned.csv: the longest contexts of larger budgets, by the lay-out alone."""
    result = []
    for title, device, budget, heads, kernels in PLANS:
        for layers in PLANNED_LAYERS:
            vanilla = {}
            for exchange, ranks in ways:
                plans = bench.largest(exchange, ranks, layers, budget, "--device", device, "--heads", heads,
                                      kernels=kernels)
                for name, row in plans.items():
                    T = int(row["T"])
                    times = T / vanilla.setdefault(name, T)  # vanilla is the first of the ways
                    result.append({"plan": title, "layers": layers, "budget": budget, "pass": name,
                                   "exchange": exchange, "ranks": ranks, "T": T, "times_vanilla": f"{times:.4g}",
                                   "squared": f"{times * times:.4g}"})
    return result


def largest_table(rows, group, ways):
    """T, its ratio to vanilla's and the square of that, by way; a block of columns for each group (layers and pass)."""
    groups = list(dict.fromkeys(group(row) for row in rows))
    found = {(group(row), row["exchange"], int(row["ranks"])): row for row in rows}
    lines = []
    for way in ways:
        cells = []
        for one in groups:
            row = found[(one, *way)]
            cells.append(f"{int(row['T']):,} ({number(float(row['times_vanilla']))}; {number(float(row['squared']))})")
        lines.append([way_name(*way)] + cells)
    return markdown(["largest T (by vanilla's; squared)"] + groups, lines)


def layers_and_pass(row):
    return f"{PASS_TITLES[row['pass']]}, {layers_name(int(row['layers']))} in {size(int(row['budget']))}"


# ---- the three numbers ----------------------------------------------------------------------------------------------


def best_of(ways, value):
    """The largest value, and the way that has it."""
    return max(((value(way), way) for way in ways if value(way) is not None), default=(None, None))


def largest_lines(largest, ways):
    lines = []
    for title in dict.fromkeys(layers_and_pass(row) for row in largest):
        of = {(row["exchange"], int(row["ranks"])): row for row in largest if layers_and_pass(row) == title}
        ratio, way = best_of(ways, lambda way: float(of[way]["times_vanilla"]))
        lines.append([f"largest T: {title} of a rank", way_name(*way), number(ratio), number(ratio * ratio)])
    return lines


def time_lines(times, ways):
    T, lines = times.with_vanilla(), []
    for column, what in (("seconds", "by the clock"), ("work", "processor time of the busiest rank")):
        for name, title in PASS_TITLES.items():
            for chosen in ([("streaming", 1)], ways):
                ratio, way = best_of(chosen, lambda way: times.ratio(way, T, name, column))
                if ratio is not None:
                    lines.append([f"time at T = {T:,}: {title}, {what}", way_name(*way), number(ratio), ""])
    return lines


def three_numbers(times, largest, ways):
    """Of the best exchange on the most ranks, and of one rank in time, against vanilla on one."""
    most = max(ranks for _, ranks in ways)
    ways = [way for way in ways if way[1] == most]
    return markdown(["measured, against vanilla on one rank", "best of", "ratio", "its square: scores attended to"],
                    largest_lines(largest, ways) + time_lines(times, ways))


def most_times(rows, **wanted):
    """Of the rows with these values and a ratio, that with the largest ratio to vanilla; None where there is none."""
    found = [row for row in rows if all(str(row[name]) == str(value) for name, value in wanted.items())
             and row["times_vanilla"]]
    return max(found, key=lambda row: float(row["times_vanilla"]), default=None)


def cells_of(row, what):
    """The ratio and its square; `what` it is of in brackets."""
    if row is None:
        return experiment.NONE, ""
    ratio = float(row["times_vanilla"])
    return f"{number(ratio)} ({what}, {row['exchange']})", number(ratio * ratio)


def side_by_side(form, times, largest, planned, projected, ways):
    """The three numbers of the best exchange on the most ranks: what was measured in one column, what was planned or
    projected for four GPUs in others."""
    most, machines = max(ranks for _, ranks in ways), list(dict.fromkeys(row["machine"] for row in projected))
    plans = {machine: title for machine in machines for title, *_ in PLANS if title.split(",")[0] in machine}
    lines = []
    for layers in form.budgets:
        measured = most_times(largest, layers=layers, **{"pass": "both"}, ranks=most)
        cells = [cells_of(measured, f"{size(form.budgets[layers])} a rank")]
        for machine in machines:
            row = most_times(planned, plan=plans.get(machine), layers=layers, **{"pass": "both"}, ranks=most)
            cells.append(cells_of(row, f"{size(row['budget'])} a rank" if row else ""))
        what = f"largest T, {layers_name(layers)}, forward and backward"
        lines += [[what, *(cell for cell, _ in cells)], ["- its square", *(square for _, square in cells)]]
    T = times.with_vanilla()
    for name, title in PASS_TITLES.items():
        ratio, way = best_of([way for way in ways if way[1] == most], lambda way: times.ratio(way, T, name, "seconds"))
        cells = [f"{number(ratio)} (T = {T:,}, {way[0]})" if way else experiment.NONE]
        for machine in machines:
            row = most_times(projected, machine=machine, T=REPORTED_CONTEXT, **{"pass": name})
            cells.append(cells_of(row, f"T = {REPORTED_CONTEXT:,}")[0])
        lines.append([f"time at equal T, {title}, by the clock", *cells])
    return markdown([f"vanilla on one rank, against the best exchange on {most}", "measured here",
                     *(f"planned or projected: {machine}" for machine in machines)], lines)


# ---- projected ------------------------------------------------------------------------------------------------------


def projected_rows(form, rows, bench, ways):
    own = form.device == "cuda"
    gpu, rates = "H200", distributed_projection.report_rates(H200, 64)
    if own:
        gpu, rates = "this GPU", distributed_projection.rates_of_rows(rows)
    contexts = sorted(T for who, T, name in rates if who == "vanilla" and name == "both" and T >= 4096)
    four = [way for way in ways if way[1] == 4]
    words = ("--device", "cuda", "--heads", 32)

    def sent_by(exchange, ranks, T):
        return {name: int(row["sent"]) for name, row in bench.plan(exchange, ranks, T, *words).items()}

    return distributed_projection.project(gpu, rates, 32, 64, contexts, four, sent_by)


def projected_cell(row):
    if not row["times_vanilla"]:
        return "vanilla does not fit"
    vanilla, ranks = (number(1e3 * float(row[column])) for column in ("vanilla_seconds", "seconds"))
    return f"{vanilla} / {ranks} = {row['times_vanilla']}"


def projected_table(rows):
    contexts = sorted({row["T"] for row in rows})
    chosen = REPORTED_CONTEXT if REPORTED_CONTEXT in contexts else contexts[-1]
    rows = [row for row in rows if row["T"] == chosen]
    machines = list(dict.fromkeys((row["machine"], row["link"]) for row in rows))
    found = {(row["machine"], row["link"], row["pass"], row["exchange"]): row for row in rows}
    lines = []
    for exchange, name in dict.fromkeys((row["exchange"], row["pass"]) for row in rows):
        cells = [projected_cell(found[(*machine, name, exchange)]) for machine in machines]
        lines.append([f"{exchange}, {PASS_TITLES[name]}"] + cells)
    return f"T = {chosen:,}; all T are in projected.csv.\n\n" + markdown(
        ["ms of vanilla on one / on four GPUs = ratio"] + [f"{name}, {link}" for name, link in machines], lines)


# ---- plots ----------------------------------------------------------------------------------------------------------

DRAWN = [("vanilla", 1), ("streaming", 1), ("ring", 2), ("ring", 4), ("gather", 4), ("ulysses", 4), ("ulysses-ring", 4)]


def draw_lines(axes, contexts, value, ways):
    for way, style in zip(DRAWN, plotting.STYLES):
        points = [(T, value(way, T)) for T in contexts if value(way, T) is not None]
        if way in ways and points:
            axes.plot(*zip(*points), label=way_name(*way), markersize=4, linewidth=1.1, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts, [f"{T:,}" for T in contexts], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel("T, tokens of the sequence")


def plot_times(out, times):
    pyplot = plotting.open_pyplot()
    columns = [("seconds", "by the clock"), ("work", "processor time of the busiest rank")]
    columns = columns if times.has_work else columns[:1]
    shown = [way for way in DRAWN if way[0] in ("vanilla", "streaming", "ring", "ulysses")]
    figure, panels = pyplot.subplots(2, len(columns), figsize=(4.6 * len(columns), 7), squeeze=False, sharex=True,
                                     sharey="row", layout="constrained")
    for line, (name, title) in zip(panels, PASS_TITLES.items()):
        for axes, (column, what) in zip(line, columns):
            draw_lines(axes, times.contexts, lambda way, T: times.value(way, T, name, column), shown)
            axes.set_title(f"{title}, {what}")
            axes.label_outer()
        line[0].set_ylabel("seconds")
    panels[0][0].legend(title="exchange, ranks")
    plotting.save_both(figure, out, "times")


def plot_memory(out, times):
    pyplot = plotting.open_pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    draw_lines(axes, times.contexts, lambda way, T: scaled(times.bytes(way, T, "both"), 1 / MIB), DRAWN)
    axes.set_ylabel("MiB of a rank, one layer, forward and backward")
    axes.legend(title="exchange, ranks")
    plotting.save_both(figure, out, "memory")


def plot_largest(out, form, bench, largest):
    """Lines: by the lay-out. Rings round what was run."""
    pyplot = plotting.open_pyplot()
    figure, panels = pyplot.subplots(1, len(form.budgets), figsize=(4.8 * len(form.budgets), 4), squeeze=False,
                                     sharey=True, layout="constrained")
    for axes, (layers, budget) in zip(panels[0], form.budgets.items()):
        budgets = [budget << n for n in range(7)]
        for way, style in zip(DRAWN, plotting.STYLES):
            plans = [int(bench.largest(*way, layers, one)["both"]["T"]) for one in budgets]
            axes.plot([one / MIB for one in budgets], plans, label=way_name(*way), markersize=4, linewidth=1.1, **style)
        run = [int(row["T"]) for row in largest if int(row["layers"]) == layers and row["pass"] == "both"
               and (row["exchange"], int(row["ranks"])) in DRAWN]
        axes.plot([budget / MIB] * len(run), run, "o", markersize=9, fillstyle="none", color="black", label="run")
        axes.set(xscale="log", yscale="log", title=f"{layers_name(layers)}, forward and backward",
                 xlabel="MiB of a rank")
        axes.set_xscale("log", base=2)
        axes.set_xticks([one / MIB for one in budgets], [f"{one / MIB:g}" for one in budgets])
    panels[0][0].set_ylabel("largest T (lines: planned)")
    panels[0][0].legend(title="exchange, ranks")
    plotting.save_both(figure, out, "largest")


# ---- all of it ------------------------------------------------------------------------------------------------------


def make(out, form, rows, bench, ways):
    """Writes tables and plots into `out`; returns the text of report.md."""
    times, largest = Times(rows, ways), largest_rows(rows, form)
    planned, projected = planned_rows(bench, ways), projected_rows(form, rows, bench, ways)
    for name, table in (("largest", largest), ("planned", planned), ("projected", projected)):
        write_csv(os.path.join(out, name + ".csv"), table)
    text = "### The three numbers\n\n" + side_by_side(form, times, largest, planned, projected, ways)
    text += "\nLargest T are planned for GPUs, times projected. Measured, way by way:\n\n" + three_numbers(times, largest, ways)
    text += "\n### Measured: time and memory at equal T\n\n" + time_tables(times)
    text += "\n### Measured: the largest T\n\n" + largest_table(largest, layers_and_pass, ways)
    text += "\n### Planned: the largest T in more memory\n"
    for title in dict.fromkeys(row["plan"] for row in planned):
        chosen = [row for row in planned if row["plan"] == title]
        text += f"\n{title}:\n\n" + largest_table(chosen, layers_and_pass, ways)
    text += "\n### Projected: time on four GPUs\n\n" + projected_table(projected)
    path = os.path.join(out, "report.md")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"wrote {path}")
    plot_times(out, times)
    plot_memory(out, times)
    plot_largest(out, form, bench, largest)
    return text
