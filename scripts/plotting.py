"""What the scripts that draw share: matplotlib, opened in one place, and lines that differ without colours too."""
import math
import os
import sys

SYSTEM_PYTHON = os.environ.get("SYSTEM_PYTHON", "/usr/bin/python3")  # the one that scripts/setup plots installs for

# Lines and points in the order of their use: dark to light, each with a marker and dashes of its own.
STYLES = [
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#a03c1e", "marker": "s", "linestyle": "--"},
    {"color": "#2a6fb0", "marker": "^", "linestyle": "-."},
    {"color": "#d98a00", "marker": "D", "linestyle": ":"},
    {"color": "#5f9e6e", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#9a7fc0", "marker": "P", "linestyle": (0, (7, 2))},
    {"color": "#8c8c8c", "marker": "X", "linestyle": (0, (1, 1))},
    {"color": "#b8b06a", "marker": "*", "linestyle": (0, (3, 1, 1, 1))},
    {"color": "#4a4a4a", "marker": "<", "linestyle": (0, (1, 4))},
]


def program():
    return os.path.basename(sys.argv[0])


def needs(*modules):
    """Ends the script where a module is missing; goes on under the system's Python where that one has it."""
    try:
        for module in modules:
            __import__(module)
    except ImportError:
        system = os.path.realpath(SYSTEM_PYTHON)
        if os.path.exists(system) and os.path.realpath(sys.executable) != system:
            os.execv(SYSTEM_PYTHON, [SYSTEM_PYTHON] + sys.argv)
        packages = " ".join(f"python3-{name}" for name in modules)
        sys.exit(f"{program()}: {module} is not installed: scripts/setup plots (or apt-get install {packages})")


def open_pyplot():
    """matplotlib's pyplot, which draws into files and needs no display; the same file for the same values."""
    needs("matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": program(), "axes.grid": True, "grid.alpha": 0.3,
                                "legend.frameon": False, "font.size": 9, "axes.titlesize": 10})
    from matplotlib import pyplot

    return pyplot


def error_bars(spreads):
    """Matplotlib's yerr, where a spread that is not known (None, or not a number) has no bar."""
    known = [math.nan if spread is None else spread for spread in spreads]
    return None if all(math.isnan(spread) for spread in known) else known


def save(figure, *paths):
    """Writes the figure to each path (.svg, .png, ...); ends the script in one line where it cannot."""
    for path in paths:
        try:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.endswith(".svg") else None)
        except (OSError, ValueError) as error:  # ValueError: a kind of picture that is not known
            sys.exit(f"{program()}: {path}: {getattr(error, 'strerror', None) or error}")
        print(f"wrote {path}")


def save_both(figure, folder, name):
    """folder/name.svg and .png; closes the figure."""
    save(figure, *(os.path.join(folder, name + ending) for ending in (".svg", ".png")))
    from matplotlib import pyplot

    pyplot.close(figure)
