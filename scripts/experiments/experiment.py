"""What the experiments share: results that are kept as they come, runs of the program several at a time, tables.

An experiment is a list of tasks. A task trains or measures, and adds a row to a CSV file as soon as it has one. Whoever
starts the experiment again finds the rows there and goes on behind them, so the tables are the same, killed or not.
"""
import concurrent.futures
import csv
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import plotting

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
PARENT_DEATH = 1  # prctl(2): PR_SET_PDEATHSIG
C_LIBRARY = ctypes.CDLL(None)


class Failure(Exception):
    """What is wrong, where, and what to do, in one line."""


def fail(text, code=1):
    print(f"{plotting.program()}: {text}", file=sys.stderr)
    sys.exit(code)


def lock(folder):
    """One experiment at a time works in a folder. Returns what must be held on to."""
    os.makedirs(folder, exist_ok=True)
    file = open(os.path.join(folder, "lock"), "w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"{folder}: another experiment is at work there; wait for it, or give another --out")
    return file


def check_settings(out, now, records=None, has_results=lambda application: False):
    """OUT/settings.json: results of another form, or of other data, are neither added to nor shown. `records` are of
    the applications whose data are at hand, or None."""
    path = os.path.join(out, "settings.json")
    records = records or {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        for key in now:
            if now[key] != before.get(key):
                raise Failure(f"{path}: results of another {key} ({before.get(key)}, not {now[key]}); give another "
                              "--out")
        known = before.get("applications", {})
        for name, record in records.items():
            if known.get(name, record) != record and has_results(name):
                raise Failure(f"{path}: results of other data for {name}; give the data they were made of, or another "
                              "--out")
        records = {**known, **records}
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump({**now, "applications": records} if records else now, file, indent=1)
        file.write("\n")
    os.replace(path + ".new", path)


def guarded(out, work):
    """work(), where what goes wrong is told in one line. Returns the exit status: 1 where something is missing."""
    try:
        os.makedirs(out, exist_ok=True)
        return 0 if work() else 1
    except Failure as failure:
        fail(failure)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror}; the same command goes on")
    except KeyboardInterrupt:
        fail("stopped; the same command goes on", 130)


# ---- what is kept ---------------------------------------------------------------------------------------------------


class Kept:
    """A CSV file of rows, each written when it is there; the last line of a killed run may be half of one."""

    def __init__(self, path, fields):
        self.path, self.fields, self.rows, self.busy = path, fields, [], threading.Lock()
        if not os.path.exists(path):
            return
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            lines = [line for line in file if line.endswith("\n")]
        if lines and lines[0].strip() != ",".join(fields):
            raise Failure(f"{path}: line 1 is not of this experiment; give another --out")
        self.rows = list(csv.DictReader(lines))
        for number, row in enumerate(self.rows, 2):
            if None in row or None in row.values():
                raise Failure(f"{path}: line {number} is no whole row; delete that line")

    def open(self):
        """For adding: what was half written goes."""
        with open(self.path + ".new", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(self.path + ".new", self.path)

    def add(self, *rows):
        """Rows that belong together. Any thread."""
        rows = [{field: str(row[field]) for field in self.fields} for row in rows]
        with self.busy:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.fields, lineterminator="\n").writerows(rows)
                file.flush()
                os.fsync(file.fileno())
            self.rows += rows

    def find(self, **values):
        """The rows with these values, in order of their coming."""
        wanted = [(field, str(value)) for field, value in values.items()]
        return [row for row in self.rows if all(row[field] == value for field, value in wanted)]


# ---- the program ----------------------------------------------------------------------------------------------------


def read_log(path):
    """What --log wrote, by step; of a step that stands there twice, after a resume, the later one."""
    steps = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):  # else it belongs to a run that was killed
                    entry = json.loads(line)
                    steps[entry["step"]] = entry
    return steps


class Program:
    """train_gpt. Its runs end with this process: saved where this one has the time to say so, else at once."""

    def __init__(self, path):
        self.path, self.running, self.stopped, self.busy = path, set(), False, threading.Lock()
        if not os.access(path, os.X_OK) or os.path.isdir(path):
            fail(f"{path} is not there: build it (make), or give --train-gpt PATH", 2)

    def run(self, options):
        """One run to its end; raises Failure with its last line where it fails. Any thread."""
        def end_with_parent():
            C_LIBRARY.prctl(PARENT_DEATH, signal.SIGKILL)

        command = [self.path, *(str(word) for word in options)]
        with self.busy:
            if self.stopped:
                raise Failure("stopped")
            try:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
            except OSError as error:
                raise Failure(f"{self.path}: {error.strerror}") from None
            self.running.add(child)
        said = child.communicate()[1].strip().splitlines()
        with self.busy:
            self.running.discard(child)
        if child.returncode != 0:
            last = said[-1] if said else f"{self.path}: exit status {child.returncode}"
            raise Failure("stopped" if self.stopped else last)

    def stop(self):
        """Ends all runs; they save first where they do so."""
        with self.busy:
            self.stopped = True
            for child in self.running:
                child.terminate()


# ---- tasks ----------------------------------------------------------------------------------------------------------


def shown_time(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Says what is done, and from the costs of all (in any unit) how long the rest will take."""

    def __init__(self, costs):
        self.number, self.left, self.spent, self.begun = len(costs), sum(costs), 0.0, time.monotonic()
        self.count, self.busy = 0, threading.Lock()

    def done(self, cost, text):
        with self.busy:
            self.count, self.spent, self.left = self.count + 1, self.spent + cost, max(self.left - cost, 0)
            rest = (time.monotonic() - self.begun) / self.spent * self.left
            print(f"{self.count}/{self.number}  {text}; {shown_time(rest)} left", flush=True)


def run_all(tasks, jobs, work, program):
    """work(task) for each, in order, `jobs` at a time. Returns the tasks that failed, and says why; the others go on.
    Ctrl-C and SIGTERM end the program's runs and then the script."""
    def interrupted(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    failures = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        try:
            for future in concurrent.futures.as_completed(futures):
                try:
                    future.result()
                except Failure as failure:
                    failures.append(futures[future])
                    print(f"{plotting.program()}: {futures[future]}: {failure}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            program.stop()
            raise
    return failures


# ---- what comes of it -----------------------------------------------------------------------------------------------


def mean_and_spread(values):
    """Mean and sample standard deviation (None of a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


NONE = "–"  # stands for a result that is not there


def shown(values, seeds, digits, scale=1.0):
    """Mean ± spread over seeds; how many there are where some are missing."""
    if not values:
        return NONE
    mean, spread = mean_and_spread([scale * value for value in values])
    text = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
    return text if len(values) == len(seeds) else f"{text} ({len(values)})"


def markdown(header, rows, left=1):
    """A table; all columns but the first `left` to the right."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def put_into(path, text):
    """Replaces what stands between the two marks of a document."""
    begin, end = "<!-- results -->\n", "<!-- end of results -->\n"
    try:
        with open(path, encoding="utf-8") as file:
            document = file.read()
        if document.count(begin) != 1 or document.count(end) != 1:
            fail(f"--document {path}: it needs the lines {begin.strip()} and {end.strip()}, once each", 2)
        before, _, rest = document.partition(begin)
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
        os.replace(path + ".new", path)
    except OSError as error:
        fail(f"--document {path}: {error.strerror}")


def add_options(parser, forms):
    """The options that all experiments have."""
    parser.add_argument("--out", required=True, metavar="DIR", help="where results go; the same command goes on there")
    parser.add_argument("--form", choices=list(forms), default="cpu", help="how much of it (default: cpu)")
    parser.add_argument("--data", default=os.path.join(TREE, "build", "data"), metavar="DIR",
                        help="folder of the corpora (default: build/data, where scripts/get_data puts them)")
    parser.add_argument("--train-gpt", default=os.path.join(TREE, "train_gpt"), metavar="PATH",
                        help="the program (default: the tree's)")
    parser.add_argument("--jobs", type=int, default=0, metavar="N",
                        help="runs at a time, each on one processor (default: as many as processors; on a GPU 1)")
    parser.add_argument("--report-only", action="store_true", help="only tables and plots, of what there is")
    parser.add_argument("--document", metavar="FILE", help="also puts the tables there, between "
                        "<!-- results --> and <!-- end of results -->")
