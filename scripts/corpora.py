"""The public corpora that scripts/get_data fetches: where each is, what it must be, and what it is unpacked to.

A sum is given where it is published: by the authors, by the host (FineWeb: the host's own object names), or by the
catalogues of TensorFlow Datasets and torchaudio. An unpacker takes the downloaded files and an empty folder to fill.
"""
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import wave
import zipfile
from typing import Callable, NamedTuple, Optional


class Damaged(Exception):
    """A file whose sum was right, or that has none, and that is not what it should be."""


class File(NamedTuple):
    url: str
    size: Optional[int]  # bytes, where known
    sha256: Optional[str]  # as published


class Corpus(NamedTuple):
    what: str
    licence: str
    gives: str  # the files in the corpus's folder
    space: int  # bytes it takes at most, while it is unpacked
    files: list
    unpack: Callable
    needs: tuple = ()  # programs of which one must be there


# ---- unpacking ------------------------------------------------------------------------------------------------------


def keep(downloads, folder):
    """As they are; what was downloaded stays where it is until all is done, for whoever has to begin anew."""
    for path in downloads:
        kept = os.path.join(folder, os.path.basename(path))
        try:
            os.link(path, kept)
        except OSError:  # a file system without links
            shutil.copyfile(path, kept)


def write_stream(stream, path):
    with open(path, "wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)


def unzip(downloads, folder):
    for path in downloads:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    with archive.open(member) as stream:
                        write_stream(stream, os.path.join(folder, os.path.basename(member.filename)))


def gunzip(downloads, folder):
    for path in downloads:
        with gzip.open(path) as stream:
            write_stream(stream, os.path.join(folder, os.path.basename(path).removesuffix(".gz")))


def untar(path, ending, folder):
    """The files of an archive whose names have this ending, without its folders. Returns their paths."""
    found = []
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(ending):
                found.append(os.path.join(folder, os.path.basename(member.name)))
                write_stream(archive.extractfile(member), found[-1])
    if not found:
        raise Damaged(f"{os.path.basename(path)} has no files that end in {ending}")
    return found


def sequence(md5):
    """Unpacks a FASTA file of one sequence; its bases alone, as capitals, have this MD5 sum (M5 of SAM headers)."""

    def unpack(downloads, folder):
        gunzip(downloads, folder)
        (name,) = os.listdir(folder)
        sum_of_bases = hashlib.md5()
        with open(os.path.join(folder, name), "rb") as lines:
            for line in lines:
                if not line.startswith(b">"):
                    sum_of_bases.update(line.strip().upper())
        if sum_of_bases.hexdigest() != md5:
            raise Damaged(f"the bases of {name} have MD5 {sum_of_bases.hexdigest()}, not the published {md5}")

    return unpack


def cifar(downloads, folder):
    """Two idx files of bytes, images x rows x columns x channels; CIFAR has a label, then plane after plane."""
    scratch = os.path.join(folder, "batches")
    os.mkdir(scratch)
    batches = sorted(untar(downloads[0], ".bin", scratch))
    for name, part in (("train-images-idx4-ubyte", "data_batch"), ("test-images-idx4-ubyte", "test_batch")):
        records = b"".join(open(path, "rb").read() for path in batches if os.path.basename(path).startswith(part))
        if not records or len(records) % 3073:
            raise Damaged(f"the files {part}* are no whole number of images")
        with open(os.path.join(folder, name), "wb") as out:
            out.write(b"".join(n.to_bytes(4, "big") for n in (0x804, len(records) // 3073, 32, 32, 3)))
            for start in range(1, len(records), 3073):
                pixels = bytearray(3072)
                for channel in range(3):
                    pixels[channel::3] = records[start + 1024 * channel : start + 1024 * (channel + 1)]
                out.write(pixels)
    shutil.rmtree(scratch)


def samples_of(path):
    """What a recording is (channels, bytes a sample, rate), and its samples, 16 bits."""
    if path.endswith(".wav"):
        with wave.open(path) as recording:
            return recording.getparams()[:3], recording.readframes(recording.getnframes())
    if shutil.which("flac"):
        command = "flac --decode --silent --stdout --force-raw-format --endian=little --sign=signed".split() + [path]
    else:
        command = ["ffmpeg", "-v", "error", "-i", path, "-f", "s16le", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise Damaged(f"{command[0]} cannot decode {os.path.basename(path)}: {done.stderr.decode().strip()[:200]}")
    return (1, 2, 16000), done.stdout  # LibriSpeech's


def speech(ending, place):
    """Joins recordings into long ones. place(words of the name) is a pair: of which long one it is, and where there."""

    def unpack(downloads, folder):
        scratch = os.path.join(folder, "clips")
        os.mkdir(scratch)
        groups = {}
        for path in untar(downloads[0], ending, scratch):
            words = os.path.basename(path).removesuffix(ending).replace("_", "-").split("-")
            group, rank = place(words)
            groups.setdefault(group, []).append((rank, path))
        for group, clips in groups.items():
            with wave.open(os.path.join(folder, group + ".wav"), "wb") as out:
                kind = None
                for _, path in sorted(clips):
                    this_kind, samples = samples_of(path)
                    if kind is None:
                        kind = this_kind
                        out.setparams(kind + (0, "NONE", ""))
                    if this_kind != kind:
                        raise Damaged(f"{os.path.basename(path)} has another sampling than those before it")
                    out.writeframesraw(samples)
                    os.remove(path)
        shutil.rmtree(scratch)

    return unpack


# ---- the table ------------------------------------------------------------------------------------------------------

MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
PG19 = "https://storage.googleapis.com/deepmind-gutenberg/test/"
FINEWEB = "https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/889765ea1f903759787add96995d81171b632d0c/"

CORPORA = {
    "enwik8": Corpus(
        "encyclopedia: the first 100,000,000 bytes of the English Wikipedia of March 2006, XML",
        "CC BY-SA 3.0, GFDL",
        "enwik8",
        137_000_000,
        [
            File(
                "https://mattmahoney.net/dc/enwik8.zip",
                36_445_475,
                "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            )
        ],
        unzip,
    ),
    "pg19": Corpus(
        "prose: seven books of the test split of PG-19, which has Project Gutenberg's from before 1919",
        "Apache 2.0; the books are in the public domain",
        "*.txt",
        10_000_000,
        [
            File(PG19 + "10146.txt", None, "f8dd4334fd8d422cd2f9153ffbff9b097611569592d7ca09fc6fe7881336d331"),
            File(PG19 + "10321.txt", None, "fedcb2723c2ad091f76d45eb98efd810977e7b906f6fd8cbd815734d1e90c456"),
            File(PG19 + "10356.txt", None, "af4b57d358448588adbc6da962cad655bf586ae746dba21f62e956d36d97c88e"),
            File(PG19 + "10762.txt", None, "fcc71b161311d4854a078f8cdda6e4381542536167145f6dfdda84bcad256d5f"),
            File(PG19 + "15562.txt", None, "90eae481a404688312d407918b07e649643ce6c934a16ad31040614221673ca1"),
            File(PG19 + "2544.txt", None, "0c79ceaf5bcc208b8c924037613c2c7fb1606de21ec8d99d5c446a516c4af787"),
            File(PG19 + "22424.txt", None, "a3475140ed4763614c11c4f2e486e468ae5620bf539877bf769e16710d808a0d"),
        ],
        keep,
    ),
    "chr21": Corpus(
        "DNA: chromosome 21 of the human genome, hg38 (GRCh38), 46,709,983 bases, whose published MD5 is compared",
        "free to use (UCSC, Genome Reference Consortium)",
        "chr21.fa",
        61_000_000,
        [File("https://hgdownload.soe.ucsc.edu/goldenPath/hg38/chromosomes/chr21.fa.gz", 12_709_705, None)],
        sequence("974dc7aec0b755b19f031418fdedf293"),
    ),
    "fineweb": Corpus(
        "web text: two shards of FineWeb in GPT-2 tokens, one to train and one to validate, as llm.c reads them",
        "ODC-By 1.0",
        "fineweb_train_000001.bin, fineweb_val_000000.bin",
        400_100_000,
        [
            File(
                FINEWEB + "fineweb_val_000000.bin",
                200_001_024,
                "5b95c8e0966f0861685b307b23dc5ae42b228ef74b28cb499784ae021f201640",
            ),
            File(
                FINEWEB + "fineweb_train_000001.bin",
                200_001_024,
                "771fa4a99b9fe0946ffb6e848b4ba5c6a9b0fe87860ebf03bc2c1c7e45f8178e",
            ),
        ],
        keep,
    ),
    "cifar10": Corpus(
        "pixels: CIFAR-10, 50,000 and 10,000 colour images of 32 x 32",
        "none stated; cite Krizhevsky 2009",
        "train-images-idx4-ubyte, test-images-idx4-ubyte: images x rows x columns x (red, green, blue)",
        550_000_000,
        [
            File(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            )
        ],
        cifar,
    ),
    "mnist": Corpus(
        "pixels: MNIST, 60,000 and 10,000 grey images of 28 x 28",
        "CC BY-SA 3.0",
        "train-images-idx3-ubyte, t10k-images-idx3-ubyte",
        67_000_000,
        [
            File(
                MNIST + "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            File(
                MNIST + "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
        ],
        gunzip,
    ),
    "digits": Corpus(
        "speech, small: Free Spoken Digit Dataset 1.0.9, 8 kHz; a speaker's recordings joined, digits 0 to 9 in turn",
        "CC BY-SA 4.0",
        "SPEAKER.wav",
        50_000_000,
        [
            File(
                "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz",
                11_975_353,
                "8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0",
            )
        ],
        speech(".wav", lambda words: (words[1], (int(words[2]), words[0]))),
    ),
    "librispeech": Corpus(
        "speech, 5.4 hours: LibriSpeech dev-clean, 16 kHz; a chapter's recordings joined",
        "CC BY 4.0",
        "SPEAKER-CHAPTER.wav",
        1_320_000_000,
        [
            File(
                "https://www.openslr.org/resources/12/dev-clean.tar.gz",
                337_926_286,
                "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
            )
        ],
        speech(".flac", lambda words: ("-".join(words[:2]), words[2])),
        ("flac", "ffmpeg"),
    ),
    "ljspeech": Corpus(
        "speech, 24 hours, one voice: LJ Speech 1.1, 22.05 kHz; a chapter's recordings joined",
        "public domain",
        "LJ001.wav to LJ050.wav",
        6_700_000_000,
        [
            File(
                "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
                2_748_572_632,
                "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
            )
        ],
        speech(".wav", lambda words: (words[0], words[1])),
    ),
}
