#!/usr/bin/env python3
"""Writes recordings with Python's wave module into a folder, NAME.wav, and what they are as tokens, NAME.tokens, of 32
bits: by the formulas of ITU-T G.711, of the samples that the wave module reads there (test_readers.c).
"""
import array
import math
import os
import random
import sys
import wave

END = 256  # of a recording


def mu_law(sample):
    """Of 16 bits, as 14 and 33 more: segment s goes from 2^(s+5) to 2^(s+6), in 16 steps. All bits are inverted."""
    value = min(abs(sample) // 4 + 33, 8191)
    segment = value.bit_length() - 6
    return ((sample < 0) << 7 | segment << 4 | value >> (segment + 1) & 15) ^ 0xFF


def check_mu_law():
    """The law that segments stand for is y = log(1 + 255 x) / log(256). A segment is a straight line where that is a
    curve (at most 0.0861 of a segment, 0.0108), starts at 33 and not at 32 (log2(33 / 32) / 8 = 0.0056 at zero), and a
    code is half a step off (1 / 256 = 0.0039): 0.0203 in all. A-law is up to 0.073 off."""
    for sample in range(-32768, 32768):
        y = math.log(1 + 255 * min(abs(sample) / 4 / 8159, 1)) / math.log(256)
        code = mu_law(sample) ^ 0xFF
        assert code >> 7 == (sample < 0) and abs(((code & 127) + 0.5) / 128 - y) < 0.0203, sample


def write(path, channels, width, samples):
    """Samples are whole numbers from 0 on, as many bytes as they have."""
    with wave.open(path, "wb") as recording:
        recording.setparams((channels, width, 8000, 0, "NONE", ""))
        recording.writeframes(b"".join(sample.to_bytes(width, "little") for sample in samples))


def read(path):
    """Samples as 16 bits, the upper ones of more, averaged over channels towards zero."""
    with wave.open(path) as recording:
        channels, width = recording.getnchannels(), recording.getsampwidth()
        data = recording.readframes(recording.getnframes())
    samples = []
    for place in range(0, len(data), width):
        sample = int.from_bytes(data[place : place + width], "little", signed=width > 1)
        samples.append((sample - 128) * 256 if width == 1 else sample >> (8 * width - 16))
    return [int(sum(samples[i : i + channels]) / channels) for i in range(0, len(samples), channels)]


def main():
    folder, draw = sys.argv[1], random.Random(1)
    check_mu_law()
    for name, channels, width in (("mono-16", 1, 2), ("stereo-16", 2, 2), ("mono-24", 1, 3), ("stereo-24", 2, 3),
                                  ("mono-8", 1, 1), ("mono-32", 1, 4), ("six-16", 6, 2)):
        bits = 8 * width
        edges = [0, 1, (1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1, 1 << bits - 2]
        quiet = [draw.getrandbits(bits) >> draw.randrange(bits) for _ in range(3000)]
        loud = [draw.getrandbits(bits) for _ in range(3000)]
        path = os.path.join(folder, name)
        write(path + ".wav", channels, width, edges + quiet + loud)
        with open(path + ".tokens", "wb") as out:
            array.array("i", [mu_law(sample) for sample in read(path + ".wav")] + [END]).tofile(out)


if __name__ == "__main__":
    main()
