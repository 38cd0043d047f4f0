"""The applications of the experiments: where the corpus of each lies, and how training and held-out data are cut of it.

A split is two files, each whole in its own format: bytes anywhere, FASTA within its sequences, idx between images, ABC
between tunes, wav between samples. Where a sequence may be cut anywhere, the held-out file is pieces from all over the
held-out part, each as long as the longest context: so windows of no context have a seam but at their ends.
"""
import glob
import hashlib
import io
import math
import os
import random
import re
import sys
import sysconfig
import wave
from typing import Callable, NamedTuple

import plotting
from experiment import Failure


class Application(NamedTuple):
    title: str
    symbol: str  # what one token is
    format: str  # for --data-format
    files: list  # patterns below the folder of corpora; the first of which there are files, all of them
    cut: Callable  # (contents by name, context) -> (training, held out, symbols held out)


class Split(NamedTuple):
    training: str
    held_out: str
    windows: int  # of the longest context that are held out, up to WINDOWS
    record: dict  # what the two files were made of


# ---- cutting --------------------------------------------------------------------------------------------------------

HELD_OUT = 10  # one part of so many is held out
HELD_OUT_TUNES = 5  # of what is short
WINDOWS = 64  # of the longest context, at most


def pieces(held_out, context, size=1):
    """Pieces of `context` symbols (`size` bytes each), evenly from all over, the first eight of them too; the last has
    one more, a target."""
    symbols = len(held_out) // size
    windows = min(WINDOWS, (symbols - 1) // context)
    if windows < 1:
        return held_out
    room = (symbols - 1 - windows * context) // windows
    stride = (windows + 7) // 8
    order = [i for first in range(stride) for i in range(first, windows, stride)]
    starts = [i * (context + room) + room // 2 for i in order]
    ends = [start + context for start in starts[:-1]] + [starts[-1] + context + 1]
    return b"".join(held_out[start * size : end * size] for start, end in zip(starts, ends))


def cut_bytes(contents, context):
    text = b"\n".join(contents.values())
    border = len(text) - len(text) // HELD_OUT
    held_out = pieces(text[border:], context)
    return text[:border], held_out, len(held_out)


def cut_books(contents, context):
    """Whole books are held out: two that are named, or else the last."""
    names = [name for name in contents if re.search(r"pride-and-prejudice|ulysses", name)] or list(contents)[-1:]
    training = b"\n".join(text for name, text in contents.items() if name not in names)
    if not training:
        raise Failure(f"{', '.join(names)}: held out, and no other book is there to train on")
    held_out = pieces(b"\n".join(contents[name] for name in names), context)
    return training, held_out, len(held_out)


def cut_modules(contents, context):
    """Modules and whole packages are held out, drawn by a hash of their names."""
    def is_held_out(name):
        top = name.split(os.sep)[0].removesuffix(".py")
        return int(hashlib.sha256(top.encode()).hexdigest(), 16) % HELD_OUT == 0

    parts = {True: [], False: []}
    for name, text in contents.items():
        parts[is_held_out(name)].append(b"# " + name.encode() + b"\n" + text)
    held_out = pieces(b"\n".join(parts[True]), context)
    return b"\n".join(parts[False]), held_out, len(held_out)


def fasta(name, bases, width=70):
    return b">" + name + b"\n" + b"".join(bases[i : i + width] + b"\n" for i in range(0, len(bases), width))


def cut_fasta(contents, context):
    """The bases of all records, one after the other: a genome's own records are few."""
    bases = b"".join(line.strip() for text in contents.values() for line in text.splitlines() if line[:1] != b">")
    border = len(bases) - len(bases) // HELD_OUT
    held_out = pieces(bases[border:], context)
    return fasta(b"training", bases[:border]), fasta(b"held out", held_out), len(held_out)


def cut_idx(contents, context):
    ((name, data),) = contents.items()
    dimensions = data[3] if len(data) > 3 else 0
    sizes = [int.from_bytes(data[i : i + 4], "big") for i in range(4, 4 + 4 * dimensions, 4)]
    head = 4 + 4 * dimensions
    if data[:3] != b"\0\0\x08" or dimensions not in (3, 4) or len(data) != head + math.prod(sizes):
        raise Failure(f"{name}: no idx file of images of bytes, or not a whole one")
    images, pixels = sizes[0], math.prod(sizes[1:])
    border = images - images // HELD_OUT

    def part(first, last):
        count = (last - first).to_bytes(4, "big")
        return data[:4] + count + data[8:head] + data[head + first * pixels : head + last * pixels]

    return part(0, border), part(border, images), (images - border) * pixels


def cut_abc(contents, context):
    """Every fifth tune is held out: collections are in order of their kinds."""
    text = b"\n".join(contents.values())
    tunes = [match.start() for match in re.finditer(rb"^X:", text, re.MULTILINE)]
    if len(tunes) < HELD_OUT_TUNES:
        raise Failure(f"{next(iter(contents))}: fewer than {HELD_OUT_TUNES} tunes in ABC")
    parts = [text[first:last] for first, last in zip(tunes, tunes[1:] + [len(text)])]
    held_out = b"".join(parts[HELD_OUT_TUNES - 1 :: HELD_OUT_TUNES])
    training = b"".join(part for i, part in enumerate(parts) if i % HELD_OUT_TUNES != HELD_OUT_TUNES - 1)
    return training, held_out, len(held_out)


def read_wav(name, data):
    """What a recording is, and its samples."""
    try:
        with wave.open(io.BytesIO(data)) as recording:
            kind = recording.getparams()
            frames = recording.readframes(kind.nframes)
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk that reaches beyond the end
        raise Failure(f"{name}: no WAV file of PCM, or damaged: {str(error) or 'it ends within a chunk'}") from None
    size = kind.nchannels * kind.sampwidth
    if kind.sampwidth > 4 or size >= 1 << 16 or not 0 < kind.framerate < (1 << 32) // size:
        raise Failure(f"{name}: damaged: {kind.nchannels} x {kind.sampwidth} bytes at {kind.framerate} Hz")
    if len(frames) != kind.nframes * size:
        raise Failure(f"{name}: truncated: {len(frames):,} of {kind.nframes * size:,} bytes of sound")
    return kind._replace(nframes=0), frames


def cut_wav(contents, context):
    """Recordings of one kind, one after the other."""
    recordings = {name: read_wav(name, data) for name, data in contents.items()}
    first, (kind, _) = next(iter(recordings.items()))
    for name, (other, _) in recordings.items():
        if other != kind:
            raise Failure(f"{name}: another rate, width or number of channels than {first}")
    frames = b"".join(samples for _, samples in recordings.values())
    size = kind.nchannels * kind.sampwidth
    samples = len(frames) // size
    border = (samples - samples // HELD_OUT) * size
    held_out = pieces(frames[border:], context, size)

    def part(samples):
        out = io.BytesIO()
        with wave.open(out, "wb") as recording:
            recording.setparams(kind)
            recording.writeframes(samples)
        return out.getvalue()

    return part(frames[:border]), part(held_out), len(held_out) // size


# ---- the applications -----------------------------------------------------------------------------------------------

STANDARD_LIBRARY = "the standard library of Python"

# A pattern with a star is of a corpus in parts. A corpus of one file is named whole: its own beginning may lie beside
# it, and would be held out of what is trained on.
APPLICATIONS = {
    "prose": Application("prose", "byte", "bytes", ["books/*.txt", "pg19/*.txt"], cut_books),
    "encyclopedia": Application("encyclopedia", "byte", "bytes",
                                ["enwik8/enwik8", "enwik/enwik8-first-4mb.xml.txt"], cut_bytes),
    "code": Application("source code", "byte", "bytes", [STANDARD_LIBRARY], cut_modules),
    "dna": Application("DNA", "base", "fasta", ["chr21/chr21.fa", "genome/ecoli-k12-mg1655.fa"], cut_fasta),
    "music": Application("music", "character", "abc", ["music/*.abc"], cut_abc),
    "pixels": Application("pixels", "pixel", "idx",
                          ["mnist/train-images-idx3-ubyte", "image/mnist-train-images-idx3-ubyte",
                           "image/mnist-t10k-images-idx3-ubyte", "cifar10/train-images-idx4-ubyte"], cut_idx),
    "speech": Application("speech", "sample", "wav",  # of one voice each
                          ["ljspeech/LJ001.wav", "librispeech/84-*.wav", "digits/jackson.wav",
                           "audio/spoken-digits-8khz-mono.wav"], cut_wav),
}


def standard_library():
    """{name: text} of the modules of this Python, without its tests and what was installed beside it."""
    folder, contents = sysconfig.get_path("stdlib"), {}
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders
                      if name not in ("test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib")]
        for name in names:
            path = os.path.join(here, name)
            if name.endswith(".py") and not os.path.islink(path) and not name.startswith("_sysconfigdata"):
                contents[os.path.relpath(path, folder)] = read(path)
    return {name: contents[name] for name in sorted(contents)}


def read(path):
    with open(path, "rb") as file:
        return file.read()


def find(application, data):
    """({name: contents}, what that is) of an application's corpus; raises Failure where there is none."""
    for pattern in application.files:
        if pattern == STANDARD_LIBRARY:
            contents = standard_library()
            return contents, f"{len(contents)} modules of Python {sys.version.split()[0]}'s standard library"
        paths = sorted(glob.glob(os.path.join(data, pattern)))
        if paths:
            contents = {os.path.basename(path): read(path) for path in paths}
            return contents, [os.path.relpath(path, data) for path in paths]
    raise Failure(f"none of {', '.join(application.files)} in {data}; fetch them with scripts/get_data, or give "
                  "--data DIR")


def write_split(name, parts, folder, context, source):
    """The files of a split that has been cut; a file that is there already stays if it is the same."""
    training, held_out, symbols = parts
    windows = min(WINDOWS, (symbols - 1) // context)
    if windows < 1:
        raise Failure(f"{symbols:,} symbols are held out, and a window of the longest context takes {context + 1:,}")
    record, paths = {"made of": source, "windows held out": windows}, []
    os.makedirs(folder, exist_ok=True)
    for part, content in (("training", training), ("held out", held_out)):
        path = os.path.join(folder, f"{name}.{part.replace(' ', '_')}")
        if not os.path.exists(path) or read(path) != content:
            with open(path + ".new", "wb") as file:
                file.write(content)
            os.replace(path + ".new", path)
        paths.append(path)
        record[part] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Split(*paths, windows, record)


# ---- known answers --------------------------------------------------------------------------------------------------

SYMBOLS = b"abcdefghijklmnop"


def repeats(half, blocks, seed):
    """`blocks` blocks of 2 x half random symbols, of which the second half repeats the first: 4 bits a symbol in the
    first half and none in the second, for who sees as far as `half` back."""
    draw = random.Random(seed)
    return b"".join(2 * bytes(draw.choices(SYMBOLS, k=half)) for _ in range(blocks))


def shuffled(text, seed):
    symbols = bytearray(text)
    random.Random(seed).shuffle(symbols)
    return bytes(symbols)


def make_known(name, folder, context):
    """Text whose second half repeats the first, or the same text shuffled."""
    training, held_out = repeats(context // 2, 1500, 1), repeats(context // 2, WINDOWS, 2)
    if name == "shuffled":
        training, held_out = shuffled(training, 3), shuffled(held_out, 4)
    parts = training, held_out + held_out[:1], len(held_out) + 1
    return write_split(name, parts, folder, context, "generated")


KNOWN = {name: Application(title, "byte", "bytes", [], None)
         for name, title in (("repeats", "second half repeats"), ("shuffled", "the same, shuffled"))}
ALL = {**APPLICATIONS, **KNOWN}

# ---- all ------------------------------------------------------------------------------------------------------------


def make_all(names, data, folder, context):
    """{name: split} of the applications that have a corpus; the others are told and left out."""
    made = {}
    for name in names:
        try:
            made[name] = make(name, data, folder, context)
        except Failure as failure:
            print(f"{plotting.program()}: {name} is left out: {failure}", file=sys.stderr)
    return made


def make(name, data, folder, context):
    """The split of an application, in `folder`; raises Failure, in one line, where there is no corpus."""
    if name in KNOWN:
        return make_known(name, folder, context)
    try:
        contents, source = find(APPLICATIONS[name], data)
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}") from None
    return write_split(name, APPLICATIONS[name].cut(contents, context), folder, context, source)
