"""Tables and plots of the experiment mixers, of whatever results there are."""
import os

import experiment
import plotting
import splits

CHANCE = 1 / 8  # of recall's answers


def values(kept, field, **key):
    return [float(row[field]) for row in kept.find(**key)]


def bits_table(form, bits):
    applications = [splits.ALL[name] for name in form.applications]
    header = ["mixer", "T", "MLP", "parameters", *(f"{of.title}, bits per {of.symbol}" for of in applications)]
    rows = []
    for mixer in form.mixers:
        of = bits.find(mixer=mixer)
        sizes = [f"{int(of[0][field]):,}" if of else experiment.NONE for field in ("context", "ffn", "parameters")]
        found = [values(bits, "bits_per_symbol", application=name, mixer=mixer) for name in form.applications]
        rows.append([mixer, *sizes, *(experiment.shown(bits_found, form.seeds, 4) for bits_found in found)])
    return experiment.markdown(header, rows)


def recall_table(form, recall):
    header, rows = ["mixer", *(f"distance {distance:,}" for distance in form.distances)], []
    for mixer in form.mixers:
        found = [values(recall, "accuracy", mixer=mixer, distance=distance) for distance in form.distances]
        rows.append([mixer, *(experiment.shown(shares, form.seeds, 1, 100) for shares in found)])
    return experiment.markdown(header, rows)


def plot_recall(pyplot, form, recall, out):
    figure, axes = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    for i, mixer in enumerate(form.mixers):
        found = [(distance, values(recall, "accuracy", mixer=mixer, distance=distance)) for distance in form.distances]
        points = [(distance, *experiment.mean_and_spread(of)) for distance, of in found if of]
        if points:
            distance, mean, spread = zip(*points)
            axes.errorbar(distance, [100 * m for m in mean], yerr=[100 * (s or 0) for s in spread], label=mixer,
                          capsize=2, markersize=4, linewidth=1.2, **plotting.STYLES[i % len(plotting.STYLES)])
    axes.axhline(100 * CHANCE, color="#999999", linewidth=0.8)
    axes.annotate("by chance", (form.distances[0], 100 * CHANCE), textcoords="offset points", xytext=(0, 3), fontsize=7)
    axes.set_xscale("log", base=2)
    axes.set_xticks(form.distances, [f"{distance:,}" for distance in form.distances])
    axes.set_ylim(0, 104)
    axes.set_xlabel("distance, tokens")
    axes.set_ylabel("right answers, %")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plotting.save_both(figure, out, "recall")


def plot_bits(pyplot, form, bits, out):
    count = len(form.applications)
    figure, panels = pyplot.subplots(1, count, figsize=(3.6 * count, 3.2), squeeze=False, sharey=True,
                                     layout="constrained")
    for panel, name in zip(panels[0], form.applications):
        found = [(mixer, values(bits, "bits_per_symbol", application=name, mixer=mixer)) for mixer in form.mixers]
        for place, (_, of) in enumerate(found):
            if of:
                mean, spread = experiment.mean_and_spread(of)
                panel.errorbar([mean], [place], xerr=[spread or 0], capsize=3, color="black", marker="o", markersize=4)
        panel.set_yticks(range(len(found)), [mixer for mixer, _ in found])
        panel.set_ylim(len(found) - 0.5, -0.5)
        panel.set_title(splits.ALL[name].title)
        panel.set_xlabel(f"bits per {splits.ALL[name].symbol}")
    plotting.save_both(figure, out, "bits")


def make(out, form, bits, recall):
    """Writes OUT/table.md, recall and bits (.svg and .png). Returns the text of the tables."""
    seeds = "mean ± standard deviation over seeds" if len(form.seeds) > 1 else "one seed"
    text = (f"Right answers in percent, {seeds}; by chance {100 * CHANCE:.1f}. {experiment.NONE} stands for what has "
            f"not been run, a number in brackets for the seeds that have.\n\n{recall_table(form, recall)}")
    pyplot = plotting.open_pyplot()
    plot_recall(pyplot, form, recall, out)
    if form.applications:
        text += f"\nBits per symbol on the held-out tokens, {seeds}.\n\n{bits_table(form, bits)}"
        plot_bits(pyplot, form, bits, out)
    with open(os.path.join(out, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    return text
