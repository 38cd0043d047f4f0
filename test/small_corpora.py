#!/usr/bin/env python3
"""Small corpora of the kinds that scripts/corpora.py has, and a web server for them that misbehaves when asked to.

    test/small_corpora.py serve            # in an empty folder: makes the files, writes the port to "port", and serves
    test/small_corpora.py get ARGUMENTS    # scripts/get_data, with a table of these files instead of its own

Addresses: /whole/NAME serves ranges; /drop/NAME ends the first two connections after half of what they asked for,
/slow/NAME stands still there; /plain/NAME knows no ranges and sends no length; /drop-plain/NAME drops two as well.
Every request is a line of the file "requests": the path and its Range.
"""
import gzip
import hashlib
import http.server
import io
import os
import runpy
import signal
import sys
import tarfile
import time
import wave
import zipfile

TEXT = b"".join(b"line %d of a text\n" % i for i in range(40000))
BASES = b"ACGTNacgtn" * 5000


def clip(first, count):
    """A recording: 8 kHz, 16 bits, the samples first, first + 1, ..."""
    out = io.BytesIO()
    with wave.open(out, "wb") as recording:
        recording.setparams((1, 2, 8000, 0, "NONE", ""))
        recording.writeframes(b"".join((first + i).to_bytes(2, "little") for i in range(count)))
    return out.getvalue()


def batch(number):
    """Two images in CIFAR's layout: a label, then three planes. The value of a pixel tells its place."""
    images = b""
    for image in range(2):
        planes = [bytes((number * 7 + image * 5 + plane * 3 + at) % 251 for at in range(1024)) for plane in range(3)]
        images += bytes([image]) + b"".join(planes)
    return images


def make_tar(name, members):
    with tarfile.open(name, "w:" + name.rpartition(".")[2]) as archive:
        for path, data in members:
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def make_files():
    with open("book.txt", "wb") as out:
        out.write(TEXT)
    with zipfile.ZipFile("text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/text", TEXT)
    with gzip.GzipFile("bases.fa.gz", "wb", mtime=0) as out:
        out.write(b">chrT\n" + b"".join(BASES[i : i + 50] + b"\n" for i in range(0, len(BASES), 50)))
    make_tar("images.tar.gz", [(f"c/data_batch_{n}.bin", batch(n)) for n in (2, 1)] + [("c/test_batch.bin", batch(3)),
                                                                                       ("c/readme.html", b"x")])
    make_tar("digits.tar.gz", [(f"d/recordings/{digit}_ann_{n}.wav", clip(100 * n + 10 * digit, 3))
                               for n in (10, 2) for digit in (1, 0)] + [("d/recordings/0_bob_0.wav", clip(7, 1))])
    make_tar("chapters.tar.bz2", [(f"../../L{n}/{n}-{m}-000{i}.flac", (1000 * n + i).to_bytes(2, "little"))
                                  for n in (2, 1) for m in (5,) for i in (1, 0)])


class Handler(http.server.BaseHTTPRequestHandler):
    dropped = {"drop": 0, "drop-plain": 0}

    def log_message(self, *_):
        pass

    def do_GET(self):
        with open("requests", "a") as log:
            log.write(f"{self.path} {self.headers.get('Range', '-')}\n")
        _, manner, name = self.path.split("/")
        if not os.path.exists(name):
            self.send_error(404)
            return
        with open(name, "rb") as file:
            data = file.read()
        begin, plain = 0, "plain" in manner
        if "Range" in self.headers and not plain:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if manner != "plain":
            self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        half = begin + (len(data) - begin) // 2
        if manner == "slow":
            self.wfile.write(data[begin:half])
            time.sleep(60)
        elif "drop" in manner and Handler.dropped[manner] < 2:
            Handler.dropped[manner] += 1
            self.wfile.write(data[begin:half])
        else:
            self.wfile.write(data[begin:])


def serve():
    make_files()
    signal.alarm(300)  # where nobody ends it
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with open("port.new", "w") as out:
        out.write(str(server.server_port))
    os.rename("port.new", "port")
    server.serve_forever()


def get(arguments):
    scripts = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
    sys.path.insert(0, scripts)
    sys.dont_write_bytecode = True
    import corpora

    def small(name, unpack, sum_known=True, needs=()):
        with open(name, "rb") as file:
            data = file.read()
        file = corpora.File("/" + name, len(data), hashlib.sha256(data).hexdigest() if sum_known else None)
        return corpora.Corpus("", "", "", int(os.environ.get("SPACE", "1000000")), [file], unpack, needs)

    known = corpora.CORPORA
    bases = hashlib.md5(BASES.upper()).hexdigest()
    corpora.CORPORA = {
        "text": small("text.zip", known["enwik8"].unpack),
        "book": small("book.txt", known["pg19"].unpack),
        "lost": small("book.txt", known["pg19"].unpack)._replace(files=[corpora.File("/none", 1, None)]),
        "wrong": small("book.txt", known["pg19"].unpack)._replace(files=[corpora.File("/book.txt", None, "0" * 64)]),
        "bases": small("bases.fa.gz", corpora.sequence(bases), False),
        "mutant": small("bases.fa.gz", corpora.sequence("0" * 32), False),
        "torn": small("text.zip", known["mnist"].unpack),  # no gzip file
        "images": small("images.tar.gz", known["cifar10"].unpack),
        "digits": small("digits.tar.gz", known["digits"].unpack),
        "chapters": small("chapters.tar.bz2", known["librispeech"].unpack, needs=("flac",)),
    }
    sys.argv = ["get_data"] + arguments
    runpy.run_path(os.path.join(scripts, "get_data"), run_name="__main__")


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else get(sys.argv[2:])
