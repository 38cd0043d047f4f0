"""Tables and plots of the experiment context_by_application, of whatever results there are."""
import math
import os

import experiment
import fit
import plotting

GROWN_AT = 4  # times the longest context: where plots put the arm that grows

# What others measured, for the applications that have it: never with this program or at its size.
PUBLISHED = [
    ("prose", "text, 7B parameters, trained at 32K tokens", "L(c) = (25.4 / c)^0.45 + 1.56 nats a token",
     "Llama 2 Long: Xiong et al. 2023, arXiv 2309.16039"),
    ("code", "source code of GitHub, trained at 32K tokens", "perplexity of a token 4.37, 3.33, 3.01 at 2K, 8K, 32K",
     "LongNet: Ding et al. 2023, arXiv 2307.02486"),
    ("encyclopedia", "enwik8, 95M parameters", "0.9952 to 0.9908 bits a byte, with at least 6K to 12K bytes before it",
     "Sparse Transformer: Child et al. 2019, arXiv 1904.10509"),
    ("dna", "the human genome, 1.4M parameters", "Mamba gains up to 1M bases; HyenaDNA loses",
     "Mamba: Gu and Dao 2023, arXiv 2312.00752"),
]


class Results:
    """The kept results, by application, arm and tokens."""

    def __init__(self, form, results, positions, grown):
        self.form, self.grown, self.positions = form, grown, positions
        self.longest = str(form.contexts[-1])
        self.arms = [str(context) for context in form.contexts] + [grown]
        self.seeds = sorted(form.budgets)
        self.budgets = sorted({steps * form.step_tokens for steps in sum(form.budgets.values(), [])})
        self.bits = {}
        for row in results.rows:
            key = row["application"], row["arm"], int(row["tokens"]), int(row["seed"])
            self.bits[key] = float(row["bits_per_symbol"])
        self.most = max((tokens for _, _, tokens, _ in self.bits), default=self.budgets[-1])

    def of(self, application, arm, tokens):
        """{seed: bits per symbol}"""
        keys = [(seed, (application, arm, tokens, seed)) for seed in self.seeds]
        return {seed: self.bits[key] for seed, key in keys if key in self.bits}

    def less(self, application, arm, tokens):
        """The same, less those of the shortest context with the same seed."""
        first = self.of(application, self.arms[0], tokens)
        return {seed: bits - first[seed] for seed, bits in self.of(application, arm, tokens).items() if seed in first}

    def curve(self, application, tokens, values):
        """(contexts, means, spreads) of the fixed contexts that have values."""
        points = [(context, list(values(application, str(context), tokens).values())) for context in self.form.contexts]
        points = [(context, *experiment.mean_and_spread(found)) for context, found in points if found]
        return list(zip(*points)) if points else ([], [], [])

    def most_positions(self, arm):
        """The largest budget of an arm that has losses by position."""
        return max((int(row["tokens"]) for row in self.positions.find(arm=arm)), default=0)

    def positions_of(self, application, arm):
        """[(tokens read, mean over the seeds, standard error)] at the longest context after the most training. The last
        target of a window is left out: where what is held out was put together of pieces, it is of another piece."""
        rows, found = self.positions.find(application=application, arm=arm, tokens=self.most_positions(arm)), {}
        for row in rows:
            if float(row["read"]) < int(self.longest):
                found.setdefault(float(row["read"]), []).append((float(row["bits_per_symbol"]), float(row["error"])))
        means = {read: [sum(values) / len(values) for values in zip(*rows)] for read, rows in found.items()}
        return [(read, *means[read]) for read in sorted(means)]


# ---- tables ---------------------------------------------------------------------------------------------------------


def shown(values, r):
    return experiment.shown(list(values.values()), r.seeds, 4)


def bits_table(r):
    header = ["application", "tokens", *(f"T = {int(arm):,}" for arm in r.arms[:-1]), f"grown to {int(r.longest):,}",
              f"longest less T = {int(r.arms[0]):,}"]
    rows = []
    for name, application in r.form.applications.items():
        for tokens in r.budgets:
            rows.append([f"{application.title}, {application.symbol}s", f"{tokens:,}",
                         *(shown(r.of(name, arm, tokens), r) for arm in r.arms),
                         shown(r.less(name, r.longest, tokens), r)])
    return experiment.markdown(header, rows)


def missing(r):
    """One line about what is not there."""
    wanted = [(name, arm, steps * r.form.step_tokens, seed) for name in r.form.applications for arm in r.arms
              for seed, budget in (r.form.longest_budgets if arm == r.longest else r.form.budgets).items()
              for steps in budget]
    there = sum(key in r.bits for key in wanted)
    return (f"{'All' if there == len(wanted) else f'{there} of'} {len(wanted)} results are there. {experiment.NONE}: "
            f"none; a number in brackets: of so many seeds, where not of all {len(r.seeds)}.")


def law_of_contexts(r, name, tokens):
    """Of the means over the seeds, whose standard errors are taken from the spread at all contexts together."""
    contexts, bits, spreads = r.curve(name, tokens, r.of)
    counts = [len(r.of(name, str(context), tokens)) for context in contexts]
    freedom = sum(counts) - len(counts)
    squares = sum((count - 1) * (spread or 0) ** 2 for spread, count in zip(spreads, counts))
    return fit.fit(contexts, bits, [math.sqrt(squares / freedom / count) if freedom else None for count in counts])


def law_of_positions(r, name, arm):
    """Of the bins from 64 tokens on: they have positions enough for a standard error."""
    points = [point for point in r.positions_of(name, arm) if point[0] >= 64 and point[2] > 0]
    return fit.fit(*(zip(*points) if points else ([], [], [])))


def laws(r):
    """(application, what is fitted to, law or None, reason) of all that has results."""
    for name, application in r.form.applications.items():
        for tokens in r.budgets:
            if r.curve(name, tokens, r.of)[0]:
                yield application.title, f"contexts, {tokens:,} tokens", *law_of_contexts(r, name, tokens)
        for arm, what in ((r.longest, f"T = {int(r.longest):,}"), (r.grown, "grown context")):
            if r.positions_of(name, arm):
                what += f", {r.most_positions(arm):,} tokens"
                yield application.title, f"positions, {what}", *law_of_positions(r, name, arm)


def law_text(r):
    """A table of the laws that the losses determine, and a line for each reason why others do not."""
    header, rows, reasons = ["application", "fitted to", "a", "b", "g, bits"], [], {}
    for title, what, law, reason in laws(r):
        if law is None:
            reasons.setdefault(reason, {}).setdefault(title, []).append(what)
        else:
            rows.append([title, what, f"{law.a:.3g} ± {law.a_error:.2g}", f"{law.b:.3f} ± {law.b_error:.3f}",
                         f"{law.g:.3f} ± {law.g_error:.3f}"])
    text = experiment.markdown(header, rows, left=2) if rows else ""
    for reason, titles in reasons.items():
        text += f"\nNot determined, {reason}: "
        text += "; ".join(f"{title} ({', '.join(of)})" for title, of in titles.items()) + ".\n"
    return text


def published_table(r):
    header = ["application", "published: data and model", "published: figures", "published: by"]
    return experiment.markdown(header, [[r.form.applications[name].title, *rest] for name, *rest in PUBLISHED
                                        if name in r.form.applications], left=4)


# ---- plots ----------------------------------------------------------------------------------------------------------


def panels(pyplot, r):
    """A panel for each application, and one for the legend. Returns the figure, {name: axes} and the legend's axes."""
    count = len(r.form.applications) + 1
    columns = min(count, 4)
    rows = (count + columns - 1) // columns
    figure, axes = pyplot.subplots(rows, columns, figsize=(2.9 * columns, 2.7 * rows), squeeze=False,
                                   layout="constrained")
    axes = [panel for row in axes for panel in row]
    for panel in axes[count - 1 :]:
        panel.axis("off")
    of = dict(zip(r.form.applications, axes))
    for name, panel in of.items():
        panel.set_title(r.form.applications[name].title)
        panel.set_xscale("log", base=2)
        panel.tick_params(labelsize=7)
    return figure, of, axes[count - 1]


def add_legend(of, axes):
    handles, labels = next(iter(of.values())).get_legend_handles_labels()
    for panel in of.values():
        more = panel.get_legend_handles_labels()
        if len(more[1]) > len(labels):
            handles, labels = more
    axes.legend(handles, labels, loc="center", fontsize=8)


def show_contexts(panel, r):
    """Names the contexts, and the arm that grows beside the longest; shows no less than 0.02 bits."""
    names = [f"{context:,}" for context in r.form.contexts] + ["grown"]
    panel.set_xticks([*r.form.contexts, GROWN_AT * int(r.longest)], names, rotation=45)
    panel.minorticks_off()
    panel.set_xlabel("context T, tokens", fontsize=8)
    low, high = panel.get_ylim()
    room = max(0.02 - (high - low), 0) / 2
    panel.set_ylim(low - room, high + room)


def style(i):
    return {**plotting.STYLES[i], "markersize": 4, "linewidth": 1.2}


def plot_gain(pyplot, r, out):
    figure, of, rest = panels(pyplot, r)
    for name, panel in of.items():
        panel.axhline(0, color="#999999", linewidth=0.8)
        for i, tokens in enumerate(r.budgets):
            contexts, means, spreads = r.curve(name, tokens, r.less)
            if contexts:
                panel.errorbar(contexts, means, yerr=plotting.error_bars(spreads), capsize=2,
                               label=f"{tokens:,} tokens", **style(i))
            grown = list(r.less(name, r.grown, tokens).values())
            if grown:
                mean, spread = experiment.mean_and_spread(grown)
                panel.errorbar([GROWN_AT * int(r.longest)], [mean], yerr=plotting.error_bars([spread]), capsize=2,
                               label=f"{tokens:,}, context grown", **{**style(i), "linestyle": "", "fillstyle": "none"})
        show_contexts(panel, r)
        panel.set_ylabel(f"bits per {r.form.applications[name].symbol}, less T = {r.arms[0]}", fontsize=8)
    add_legend(of, rest)
    plotting.save_both(figure, out, "gain")


def plot_bits(pyplot, r, out):
    """The largest budget, each seed a point, and the law where there is one."""
    figure, of, rest = panels(pyplot, r)
    tokens = r.most
    for name, panel in of.items():
        contexts, means, spreads = r.curve(name, tokens, r.of)
        if contexts:
            panel.errorbar(contexts, means, yerr=plotting.error_bars(spreads), capsize=2,
                           label=f"trained at T,\n{tokens:,} tokens", **style(0))
        grown = list(r.of(name, r.grown, tokens).values())
        if grown:
            mean, spread = experiment.mean_and_spread(grown)
            panel.errorbar([GROWN_AT * int(r.longest)], [mean], yerr=plotting.error_bars([spread]), capsize=2,
                           label="context grown", **{**style(1), "linestyle": "", "fillstyle": "none"})
        law, _ = law_of_contexts(r, name, tokens)
        if law is not None:
            between = [contexts[0] * (contexts[-1] / contexts[0]) ** (i / 50) for i in range(51)]
            panel.plot(between, [law.at(context) for context in between], label="(a / T)^b + g",
                       **{**style(2), "marker": ""})
        show_contexts(panel, r)
        panel.set_ylabel(f"bits per {r.form.applications[name].symbol}", fontsize=8)
    add_legend(of, rest)
    plotting.save_both(figure, out, "bits")


def plot_positions(pyplot, r, out):
    """From a 512th of the longest context on: what the first tokens cost would hide the rest."""
    figure, of, rest = panels(pyplot, r)
    arms = (r.longest, f"trained at T = {int(r.longest):,}"), (r.grown, "context grown")
    for name, panel in of.items():
        for i, (arm, label) in enumerate(arms):
            points = [point for point in r.positions_of(name, arm) if point[0] >= int(r.longest) / 512]
            if points:
                read, bits, errors = zip(*points)
                panel.errorbar(read, bits, yerr=plotting.error_bars(errors),
                               label=f"{label},\n{r.most_positions(arm):,} tokens", elinewidth=0.8,
                               **{**style(i), "markersize": 3})
        panel.set_xlabel("tokens read before the target", fontsize=8)
        panel.set_ylabel(f"bits per {r.form.applications[name].symbol}", fontsize=8)
    add_legend(of, rest)
    plotting.save_both(figure, out, "positions")


# ---- all ------------------------------------------------------------------------------------------------------------


def make(out, form, results, positions, grown):
    """Writes OUT/table.md, gain, bits and positions (.svg and .png). Returns the text of the tables."""
    r = Results(form, results, positions, grown)
    spread = "mean ± standard deviation over seeds" if len(r.seeds) > 1 else "one seed"
    text = (f"Bits per symbol on the held-out tokens, {spread}. {missing(r)}\n\n{bits_table(r)}\n"
            "L(c) = (a / c)^b + g in bits, fitted to the bits per symbol above, or to the loss by position; a is in "
            f"tokens, ± one standard deviation.\n\n{law_text(r).lstrip()}")
    published = published_table(r)
    if published.count("\n") > 2:
        text += f"\nPublished, by others, of other models and data:\n\n{published}"
    with open(os.path.join(out, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    pyplot = plotting.open_pyplot()
    for plot in (plot_gain, plot_bits, plot_positions):
        plot(pyplot, r, out)
    return text
