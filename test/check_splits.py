#!/usr/bin/env python3
"""Checks scripts/experiments/splits.py on small corpora that it makes in the working directory (test_experiments.c).

What is cut must put together again what was there; of several files the right ones are taken; and what is damaged is
told in one line, in which the application and the file are named, and leaves only that application out.
"""
import contextlib
import io
import os
import sys
import wave

sys.dont_write_bytecode = True
TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(TREE, "scripts", "experiments"), os.path.join(TREE, "scripts")]
import splits  # noqa: E402

CONTEXT = 4


def put(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def idx(count, *size):
    """Images of which number i has the pixels i, i + 1, ..."""
    pixels = 1
    for length in size:
        pixels *= length
    head = bytes((0, 0, 8, 1 + len(size))) + b"".join(n.to_bytes(4, "big") for n in (count, *size))
    return head + bytes((i + p) % 256 for i in range(count) for p in range(pixels))


def wav(samples, channels=1, rate=8000):
    out = io.BytesIO()
    with wave.open(out, "wb") as recording:
        recording.setparams((channels, 2, rate, 0, "NONE", ""))
        recording.writeframes(samples)
    return out.getvalue()


def sound(first, count):
    return b"".join((first + i).to_bytes(2, "little") for i in range(count))


def make(*names):
    """The splits of these applications, and the lines about those that are left out."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        made = splits.make_all(names, "data", "made", CONTEXT)
    return made, said.getvalue().splitlines()


def both(name):
    made, said = make(name)
    assert not said, said
    return splits.read(made[name].training), splits.read(made[name].held_out)


def refused(name, *words):
    """Alone, in one line with these words."""
    made, said = make(name, "code")
    assert list(made) == ["code"] and len(said) == 1, (made, said)
    for word in (f"{name} is left out: ", *words):
        assert word in said[0], (word, said[0])


def check_pixels():
    put("data/image/mnist-t10k-images-idx3-ubyte", idx(30, 2, 3))
    assert both("pixels") == (idx(27, 2, 3), idx(30, 2, 3)[:4] + b"\0\0\0\3" + idx(30, 2, 3)[8:16] +
                              idx(30, 2, 3)[16 + 27 * 6 :])
    put("data/image/mnist-train-images-idx3-ubyte", idx(60, 2, 3))  # goes before
    assert both("pixels")[0] == idx(54, 2, 3)
    put("data/mnist/train-images-idx3-ubyte", idx(70, 2, 3))  # and this before both
    assert both("pixels")[0] == idx(63, 2, 3)
    whole, path = idx(70, 2, 3), "data/mnist/train-images-idx3-ubyte"
    for size in range(len(whole)):
        put(path, whole[:size])
        refused("pixels", "train-images-idx3-ubyte: no idx file of images of bytes, or not a whole one")
    put(path, idx(70, 6))
    refused("pixels", "train-images-idx3-ubyte: no idx file")
    for path in (path, "data/image/mnist-train-images-idx3-ubyte", "data/image/mnist-t10k-images-idx3-ubyte"):
        os.remove(path)
    put("data/cifar10/train-images-idx4-ubyte", idx(20, 2, 2, 3))
    assert both("pixels")[0] == idx(18, 2, 2, 3)


def check_speech():
    put("data/audio/spoken-digits-8khz-mono.wav", wav(sound(1, 100)))
    put("data/audio/spoken-digits-16khz-mono.wav", wav(sound(500, 100), rate=16000))
    assert both("speech") == (wav(sound(1, 90)), wav(sound(91, 9)))  # two windows of 4, and a target
    put("data/librispeech/84-1.wav", wav(sound(1000, 30)))
    put("data/librispeech/84-2.wav", wav(sound(1030, 70)))
    put("data/librispeech/85-1.wav", wav(sound(2000, 30)))
    assert both("speech") == (wav(sound(1000, 90)), wav(sound(1090, 9)))
    put("data/librispeech/84-2.wav", wav(sound(1030, 70), 2))
    refused("speech", "84-2.wav: another rate, width or number of channels than 84-1.wav")
    path, whole = "data/librispeech/84-2.wav", wav(sound(1030, 70))
    for size in range(len(whole)):
        put(path, whole[:size])
        refused("speech", "84-2.wav: truncated: " if size >= 44 else "84-2.wav: no WAV file")
    put(path, whole[:12] + b"LIST\xff\xff\0\0" + whole[12:])
    refused("speech", "84-2.wav: no WAV file of PCM, or damaged: it ends within a chunk")
    put(path, whole[:22] + b"\xff\xff" + whole[24:])  # channels
    refused("speech", "84-2.wav: damaged: 65535 x ")
    put(path, whole[:20] + b"\7" + whole[21:])  # mu-law, which Python does not read
    refused("speech", "84-2.wav: no WAV file of PCM")


def check_text():
    refused("prose", "none of books/*.txt, pg19/*.txt in data; fetch them")
    put("data/books/ulysses.txt", b"Stately, plump Buck Mulligan")
    refused("prose", "ulysses.txt: held out, and no other book is there to train on")
    put("data/books/emma.txt", b"Emma Woodhouse")
    assert both("prose")[0] == b"Emma Woodhouse"
    os.mkdir("data/books/dubliners.txt")
    refused("prose", "dubliners.txt: Is a directory")
    put("data/enwik/enwik8", bytes(200))  # not the file that is named
    put("data/enwik/enwik8-first-4mb.xml.txt", bytes(range(100)))
    assert both("encyclopedia") == (bytes(range(90)), bytes(range(90, 99)))
    put("data/music/one.abc", b"".join(b"X:%d\n" % i for i in range(5)))
    refused("music", "4 symbols are held out, and a window of the longest context takes 5")


if __name__ == "__main__":
    splits.standard_library = lambda: {"os.py": b"0123456789" * 9, "re.py": b"9876543210" * 9, "ast.py": b"x" * 99,
                                       "wave.py": b"y" * 99, "json.py": b"z" * 99, "csv.py": b"w" * 99}
    for check in (check_pixels, check_speech, check_text):
        check()
