#!/usr/bin/env python3
"""ci/lib/apk.py STAGE OUTPUT: an .apk, as apk 3 of OpenWrt 25.12 and later installs it.

STAGE/root     the files, all to be owned by root
STAGE/info     lines `name: value`; depends and provides are words, a provide may be NAME=VERSION
STAGE/scripts  post-install, post-upgrade, pre-deinstall …

The format is described in apk-v3(5) of apk-tools. A file is a header and blocks: first one with a database of values, of
which one is the root, then one for each file that is not empty. A value is a word of 32 bits, little-endian: type, and
the value itself or where in the database it lies. The same tree gives the same bytes, which are those that `apk mkpkg`
writes; unsigned, as the .ipk files are: `apk add --allow-untrusted FILE`.
"""

import hashlib
import os
import struct
import sys
import zlib

INT, INT_32, BLOB_8, BLOB_16, BLOB_32, OBJECT = (kind << 28 for kind in (0x1, 0x2, 0x8, 0x9, 0xA, 0xE))
NULL = 0
ADB, DATA = 0, 2

# Fields of a package's description, in their order from 1; None is written elsewhere or not at all.
INFO = [
    "name", "version", None, "description", "arch", "license", "origin", "maintainer", "url", None, None, None, None,
    "provider-priority", "depends", "provides",
]
HASHES, INSTALLED_SIZE = 3, 12
SCRIPTS = ["trigger", "pre-install", "post-install", "pre-deinstall", "post-deinstall", "pre-upgrade", "post-upgrade"]


class Database:
    """The values of a package. What is equal is kept once."""

    def __init__(self):
        self.bytes = bytearray(8)  # versions of the format (0), and the root
        self.known = {}

    def put(self, data, alignment):
        """Where `data` lies from now on."""
        at = self.known.get(data)
        if at is None or at % alignment:
            at = self.put_anew(data, alignment)
            self.known[data] = at
        return at

    def put_anew(self, data, alignment):
        self.bytes += bytes(-len(self.bytes) % alignment)
        self.bytes += data
        return len(self.bytes) - len(data)

    def integer(self, number):
        if number < 1 << 28:
            return INT | number
        return INT_32 | self.put(struct.pack("<I", number), 4)

    def blob(self, data, put=None):
        put = put or self.put
        if not data:
            return NULL
        if len(data) < 1 << 8:
            return BLOB_8 | put(struct.pack("<B", len(data)) + data, 1)
        if len(data) < 1 << 16:
            return BLOB_16 | put(struct.pack("<H", len(data)) + data, 2)
        return BLOB_32 | put(struct.pack("<I", len(data)) + data, 4)

    def text(self, text):
        return self.blob(text.encode())

    def sequence(self, values):
        """An object or an array: how many there are, this word counted, then the values."""
        while values and values[-1] == NULL:
            values = values[:-1]
        if not values:
            return NULL
        words = [len(values) + 1, *values]
        return OBJECT | self.put(struct.pack(f"<{len(words)}I", *words), 4)

    def dependencies(self, words):
        values = {word: self.sequence([self.text(part) for part in word.split("=")]) for word in words.split()}
        return self.sequence([value for _, value in sorted(values.items())])

    def owned(self, path):
        """Mode, user and group."""
        return self.sequence([self.integer(os.stat(path).st_mode & 0o7777), self.text("root"), self.text("root")])


def read(path):
    with open(path, "rb") as file:
        return file.read()


def block(kind, data):
    whole = struct.pack("<I", kind << 30 | 4 + len(data)) + data
    return whole + bytes(-len(whole) % 8)


def folders(root):
    """Each folder below `root` by its name from there, the root itself first, and its files; sorted as octets."""
    for path, _, files in os.walk(root):
        name = os.path.relpath(path, root)
        yield "" if name == "." else name, sorted(files)


def make(stage, time):
    database = Database()
    root = os.path.join(stage, "root")
    with open(os.path.join(stage, "info"), encoding="utf-8") as lines:
        info = dict(line.rstrip("\n").split(": ", 1) for line in lines)
    unknown = set(info) - set(INFO)
    if unknown:
        sys.exit(f"apk.py: no such field: {', '.join(sorted(unknown))}")

    fields = [NULL] * len(INFO)
    for place, name in enumerate(INFO):
        if name in ("depends", "provides"):
            fields[place] = database.dependencies(info.get(name, ""))
        elif name == "provider-priority":
            fields[place] = database.integer(int(info[name])) if name in info else NULL
        elif name:
            fields[place] = database.text(info.get(name, ""))

    size, paths, contents = 0, [], []
    for folder_number, (folder, files) in enumerate(sorted(folders(root)), 1):
        listed = []
        for file_number, name in enumerate(files, 1):
            path = os.path.join(root, folder, name)
            if not os.path.isfile(path) or os.path.islink(path):
                sys.exit(f"apk.py: {path} is no plain file")
            data = read(path)
            size += len(data)
            if data:
                contents.append(block(DATA, struct.pack("<II", folder_number, file_number) + data))
            words = [database.text(name), database.blob(hashlib.sha256(data).digest()), database.integer(time), database.integer(len(data))]
            listed.append(database.sequence([words[0], database.owned(path), words[3], words[2], words[1]]))
        name = database.text(folder)
        paths.append(database.sequence([name, database.owned(os.path.join(root, folder)), database.sequence(listed)]))
    fields[INSTALLED_SIZE - 1] = database.integer(max(size, 1))
    identity = database.blob(bytes(20), database.put_anew)
    fields[HASHES - 1] = identity

    scripts = []
    package = [database.sequence(fields), database.sequence(paths)]
    for name in SCRIPTS:
        path = os.path.join(stage, "scripts", name)
        scripts.append(database.blob(read(path)) if os.path.exists(path) else NULL)
    package.append(database.sequence(scripts))
    struct.pack_into("<I", database.bytes, 4, database.sequence(package))
    # What tells this package from all others is the hash of everything else.
    at = (identity & 0x0FFFFFFF) + 1
    database.bytes[at:at + 20] = hashlib.sha256(database.bytes).digest()[:20]
    return b"ADB.pckg" + block(ADB, bytes(database.bytes)) + b"".join(contents)


def main():
    stage, output = sys.argv[1:]
    # without zlib's header, marked as `deflate`
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    package = make(stage, int(os.environ["SOURCE_DATE_EPOCH"]))
    with open(output, "wb") as file:
        file.write(b"ADBd" + packer.compress(package) + packer.flush())


if __name__ == "__main__":
    main()
