#!/usr/bin/env python3
"""ci/lib/apk-unpack.py FILE FOLDER: what is in an .apk (apk-v3(5)), as FOLDER/{root,info,scripts}; every sum is verified.

Written without ci/lib/apk.py's code, so that a slip there is seen here. It knows as much of the format as our packages
use, and refuses the rest.
"""

import hashlib
import os
import sys
import zlib

INFO = {
    1: "name", 2: "version", 3: "hashes", 4: "description", 5: "arch", 6: "license", 7: "origin", 8: "maintainer",
    9: "url", 12: "installed-size", 14: "provider-priority", 15: "depends", 16: "provides",
}
SCRIPTS = {2: "pre-install", 3: "post-install", 4: "pre-deinstall", 5: "post-deinstall", 6: "pre-upgrade", 7: "post-upgrade"}


def number(data, at=0, size=4):
    return int.from_bytes(data[at:at + size], "little")


class Value:
    """A word of the database, seen as what it stands for."""

    def __init__(self, database, word):
        self.database, self.kind, self.value = database, word >> 28, word & 0x0FFFFFFF

    def integer(self):
        return {0: lambda: 0, 1: lambda: self.value, 2: lambda: number(self.database, self.value)}[self.kind]()

    def octets(self):
        if self.kind == 0:
            return b""
        width = {8: 1, 9: 2, 10: 4}[self.kind]
        start = self.value + width
        return self.database[start:start + number(self.database, self.value, width)]

    def text(self):
        return self.octets().decode()

    def items(self):
        """{1: …, 2: …} of an object or array."""
        if self.kind == 0:
            return {}
        if self.kind not in (13, 14):
            sys.exit("no object where one is expected")
        count = number(self.database, self.value)
        return {n: Value(self.database, number(self.database, self.value + 4 * n)) for n in range(1, count)}


def check(what, right):
    if not right:
        sys.exit(f"{sys.argv[1]}: {what}")


def blocks(data):
    at = 8
    while at < len(data):
        kind, size = number(data, at) >> 30, number(data, at) & 0x3FFFFFFF
        yield kind, data[at + 4:at + size]
        at += size + -size % 8


def write(path, data, mode=0o644):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def owned_by_root(acl):
    mode, user, group = (acl.items()[n] for n in (1, 2, 3))
    check("not all is root's", (user.text(), group.text()) == ("root", "root"))
    return mode.integer()


def dependency(value):
    return "=".join(part.text() for part in value.items().values())


def main():
    file, folder = sys.argv[1:]
    with open(file, "rb") as packed:
        packed = packed.read()
    check("no deflated database", packed[:4] == b"ADBd")
    data = zlib.decompress(packed[4:], -15)
    check("no package", data[:8] == b"ADB.pckg")
    (first, database), *contents = list(blocks(data))
    check("the first block is no database", first == 0)
    check("a block that holds no file", all(kind == 2 for kind, _ in contents))
    files = {(number(body), number(body, 4)): body[8:] for _, body in contents}

    package = Value(database, number(database, 4)).items()
    info = package[1].items()
    zeroed = bytearray(database)
    zeroed[info[3].value + 1:info[3].value + 21] = bytes(20)
    check("the hash of the whole is wrong", hashlib.sha256(zeroed).digest()[:20] == info[3].octets())

    os.makedirs(os.path.join(folder, "root"))
    os.makedirs(os.path.join(folder, "scripts"))
    with open(os.path.join(folder, "info"), "w", encoding="utf-8") as lines:
        for place, value in info.items():
            if value.kind == 0 or place == 3:
                continue
            if place in (12, 14):
                text = str(value.integer())
            elif place in (15, 16):
                text = " ".join(dependency(item) for item in value.items().values())
            else:
                text = value.text()
            lines.write(f"{INFO[place]}: {text}\n")

    names = []
    for n, path in package[2].items().items():
        fields = path.items()
        name = fields[1].text()
        names.append(name)
        where = os.path.join(folder, "root", name)
        os.makedirs(where, exist_ok=True)
        os.chmod(where, owned_by_root(fields[2]))
        listed = fields[3].items() if 3 in fields else {}
        check(f"files of {name} are not sorted", [f.items()[1].octets() for f in listed.values()] == sorted(f.items()[1].octets() for f in listed.values()))
        for m, entry in listed.items():
            entry = entry.items()
            content = files.pop((n, m), b"")
            check(f"size of {name}", len(content) == entry[3].integer())
            check(f"sum of {name}", hashlib.sha256(content).digest() == entry[5].octets())
            path = os.path.join(where, entry[1].text())
            write(path, content, owned_by_root(entry[2]))
            os.utime(path, (entry[4].integer(), entry[4].integer()))
    check("folders are not sorted", names == sorted(names, key=str.encode))
    check("contents without a file", not files)
    for n, script in package[3].items().items():
        if script.kind:
            write(os.path.join(folder, "scripts", SCRIPTS[n]), script.octets(), 0o755)


if __name__ == "__main__":
    main()
