"""Tables and plots of the experiment mixers, of whatever results there are."""
import functools
import math
import os

import experiment
import plotting
import splits

VALUES, MOST_ASKED = 8, 16  # of recall: dataloader/task_recall.c
CHANCE = 1 / VALUES


def by_seed(kept, field, **key):
    """{seed: value}"""
    return {row["seed"]: float(row[field]) for row in kept.find(**key)}


def bits_of(bits, application, mixer, context):
    return by_seed(bits, "bits_per_symbol", application=application, mixer=mixer, context=context)


def contexts(form, mixer=None):
    """Of all seeds, and of the mixer or of all."""
    return sorted({context for seed in form.contexts for one in ([mixer] if mixer else form.mixers)
                   for context in form.contexts_of(one, seed)})


def title(form, mixer):
    longest = form.longest(mixer)
    return mixer + (f", T to {longest:,}" if longest < form.longest() else "")


def gain(form, bits, application, mixer, context):
    """{seed: bits less those of the shortest context with the same seed}"""
    first = bits_of(bits, application, mixer, contexts(form)[0])
    return {seed: value - first[seed] for seed, value in bits_of(bits, application, mixer, context).items()
            if seed in first}


# ---- what recall needs ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def within(count, values, most):
    """In how many ways `count` answers of `values` kinds hold none of them more than `most` times."""
    if values == 0:
        return int(count == 0)
    return sum(math.comb(count, n) * within(count - n, values - 1, most) for n in range(min(count, most) + 1))


def by_counting(distance):
    """The share of right answers of who knows which values were told, and which of them are answered, but not by which
    keys: the guess is what is left most often. After some answers, what is left is that many values drawn at random."""
    asked = min(distance, MOST_ASKED)
    right = 0.0
    for left in range(1, asked + 1):
        ways = [within(left, VALUES, most) for most in range(left + 1)]
        often = sum(most * (ways[most] - ways[most - 1]) for most in range(1, left + 1)) / VALUES**left
        right += often / left
    return right / asked


# ---- tables ---------------------------------------------------------------------------------------------------------


def sizes(rows, field):
    """What the rows have there, in order of their contexts, each number once."""
    found = {int(row["context"]): f"{int(row[field]):,}" for row in rows}
    return " / ".join(dict.fromkeys(found[context] for context in sorted(found))) or experiment.NONE


def bits_table(form, bits):
    places = contexts(form)
    header = ["application", "mixer", "MLP", "parameters", *(f"T = {context:,}" for context in places),
              f"longest less T = {places[0]:,}"]
    rows = []
    for name in form.applications:
        of = splits.ALL[name]
        for mixer in form.mixers:
            there, longest = bits.find(application=name, mixer=mixer), form.longest(mixer)
            found = [bits_of(bits, name, mixer, context) for context in places]
            found.append(gain(form, bits, name, mixer, longest) if longest > places[0] else {})
            rows.append([f"{of.title}, bits per {of.symbol}", title(form, mixer), sizes(there, "ffn"),
                         sizes(there, "parameters"),
                         *(experiment.shown(list(values.values()), form.contexts, 4) for values in found)])
    return experiment.markdown(header, rows, left=2)


def recall_table(form, recall):
    header, rows = ["mixer", *(f"distance {distance:,}" for distance in form.distances)], []
    for mixer in form.mixers:
        found = [by_seed(recall, "accuracy", mixer=mixer, distance=distance) for distance in form.distances]
        rows.append([mixer, *(experiment.shown(list(shares.values()), form.contexts, 1, 100) for shares in found)])
    rows.append(["who counts", *(f"{100 * by_counting(distance):.1f}" for distance in form.distances)])
    return experiment.markdown(header, rows)


# ---- plots ----------------------------------------------------------------------------------------------------------


def draw(panel, i, label, points, scale=1):
    """A mixer's line through {place: {seed: value}}."""
    points = [(place, *experiment.mean_and_spread([scale * value for value in values.values()]))
              for place, values in points.items() if values]
    if points:
        places, means, spreads = zip(*points)
        panel.errorbar(places, means, yerr=plotting.error_bars(spreads), label=label, capsize=2, **style(i))


def style(i):
    return {**plotting.STYLES[i % len(plotting.STYLES)], "markersize": 4, "linewidth": 1.2}


def add_legend(panels):
    """To the right of the last panel, of that one which has the most lines."""
    handles, labels = max((panel.get_legend_handles_labels() for panel in panels), key=lambda of: len(of[1]))
    panels[-1].legend(handles, labels, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def name_places(panel, places, label):
    panel.set_xscale("log", base=2)
    panel.set_xticks(places, [f"{place:,}" for place in places])
    panel.set_xlim(places[0] / 1.2, places[-1] * 1.2)
    panel.minorticks_off()
    panel.set_xlabel(label)


def plot_recall(pyplot, form, recall, out):
    figure, axes = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    for i, mixer in enumerate(form.mixers):
        draw(axes, i, mixer, {distance: by_seed(recall, "accuracy", mixer=mixer, distance=distance)
                              for distance in form.distances}, 100)
    counting = [100 * by_counting(distance) for distance in form.distances]
    for shares, name in ([100 * CHANCE] * len(counting), "by chance"), (counting, "who counts"):
        axes.plot(form.distances, shares, color="#999999", linewidth=0.8)
        axes.annotate(name, (form.distances[0], shares[0]), textcoords="offset points", xytext=(0, -9), fontsize=7)
    name_places(axes, form.distances, "distance, tokens")
    axes.set_ylim(0, 104)
    axes.set_ylabel("right answers, %")
    add_legend([axes])
    plotting.save_both(figure, out, "recall")


def plot_bits(pyplot, form, bits, out):
    """Of each application the bits at every context, and below what they are less than at the shortest."""
    count, places = len(form.applications), contexts(form)
    figure, panels = pyplot.subplots(2, count, figsize=(3.2 * count + 1.8, 6), squeeze=False, layout="constrained")
    for (upper, lower), name in zip(panels.T, form.applications):
        symbol = splits.ALL[name].symbol
        for i, mixer in enumerate(form.mixers):
            of = contexts(form, mixer)
            draw(upper, i, title(form, mixer), {context: bits_of(bits, name, mixer, context) for context in of})
            draw(lower, i, title(form, mixer), {context: gain(form, bits, name, mixer, context) for context in of})
        lower.axhline(0, color="#999999", linewidth=0.8)
        upper.set_title(splits.ALL[name].title)
        upper.set_ylabel(f"bits per {symbol}")
        lower.set_ylabel(f"bits per {symbol}, less T = {places[0]:,}")
        name_places(upper, places, "")
        name_places(lower, places, "context T, tokens")
    add_legend(panels[0])
    plotting.save_both(figure, out, "bits")


def positions_of(kept, application, mixer, context):
    """[(tokens read, mean over the seeds, standard error)]. The last target of a window is left out: where what is held
    out was put together of pieces, it is of another piece."""
    found = {}
    for row in kept.find(application=application, mixer=mixer, context=context):
        if float(row["read"]) < context:
            found.setdefault(float(row["read"]), []).append((float(row["bits_per_symbol"]), float(row["error"])))
    return [(read, *(sum(values) / len(values) for values in zip(*found[read]))) for read in sorted(found)]


def plot_positions(pyplot, form, positions, out):
    """Of the models at each mixer's longest context; from a 64th of the longest on: what the first tokens cost would
    hide the rest."""
    count, first = len(form.applications), max(form.longest() // 64, 1)
    figure, panels = pyplot.subplots(1, count, figsize=(3.6 * count + 1.8, 4.5), squeeze=False, layout="constrained")
    for panel, name in zip(panels[0], form.applications):
        for i, mixer in enumerate(form.mixers):
            points = [point for point in positions_of(positions, name, mixer, form.longest(mixer)) if point[0] >= first]
            if points:
                read, bits, errors = zip(*points)
                panel.errorbar(read, bits, yerr=plotting.error_bars(errors), label=title(form, mixer), elinewidth=0.8,
                               **{**style(i), "markersize": 3})
        panel.set_title(splits.ALL[name].title)
        panel.set_ylabel(f"bits per {splits.ALL[name].symbol}")
        name_places(panel, [first * 4**i for i in range(4)], "tokens read before the target")
    add_legend(panels[0])
    plotting.save_both(figure, out, "positions")


# ---- all ------------------------------------------------------------------------------------------------------------


def make(out, form, bits, positions, recall):
    """Writes OUT/table.md, recall, bits and positions (.svg and .png). Returns the text of the tables."""
    seeds = "mean ± standard deviation over seeds" if len(form.contexts) > 1 else "one seed"
    counts = ("*Who counts* knows which values were told and which have been answered, but not by which keys: that "
              "share is computed.")
    sizes_at = "the MLP's width and the whole model's parameters at all T, or by T where they differ"
    text = (f"Right answers in percent, {seeds}; by chance {100 * CHANCE:.1f}. {experiment.NONE} stands for what has "
            f"not been run, a number in brackets for the seeds that have. {counts}\n\n{recall_table(form, recall)}\n"
            f"Bits per symbol on the held-out tokens, {seeds}; {sizes_at}.\n\n{bits_table(form, bits)}")
    with open(os.path.join(out, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    pyplot = plotting.open_pyplot()
    plot_recall(pyplot, form, recall, out)
    plot_bits(pyplot, form, bits, out)
    if positions.rows:
        plot_positions(pyplot, form, positions, out)
    return text
