#!/usr/bin/env python3
"""lmo.py CATALOGUE.po OUT.lmo: a translation as LuCI reads it on the router.

The file is the translations one after the other, each filled up to four bytes; then an index, ordered by key, of four
big-endian words for each: hash of the original, number of the plural form, offset, length; then the offset of the index.
The rule of plural forms is the entry with the key 0.
The hash is Paul Hsieh's SuperFastHash, seeded with the length, its octets taken as signed.
"""

import ast
import re
import struct
import sys


def signed(octet):
    return octet - 256 if octet > 127 else octet


def super_fast_hash(data):
    mask = 0xFFFFFFFF
    value = len(data)
    if not data:
        return 0
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        low, high = struct.unpack_from("<HH", data, at)
        value = (value + low) & mask
        mixed = ((high << 11) ^ value) & mask
        value = ((value << 16) ^ mixed) & mask
        value = (value + (value >> 11)) & mask
    rest = data[whole:]
    if len(rest) == 3:
        value = (value + struct.unpack_from("<H", rest)[0]) & mask
        value ^= (value << 16) & mask
        value ^= (signed(rest[2]) << 18) & mask
        value = (value + (value >> 11)) & mask
    elif len(rest) == 2:
        value = (value + struct.unpack_from("<H", rest)[0]) & mask
        value ^= (value << 11) & mask
        value = (value + (value >> 17)) & mask
    elif len(rest) == 1:
        value = (value + signed(rest[0])) & mask
        value ^= (value << 10) & mask
        value = (value + (value >> 1)) & mask
    value ^= (value << 3) & mask
    value = (value + (value >> 5)) & mask
    value ^= (value << 4) & mask
    value = (value + (value >> 17)) & mask
    value ^= (value << 25) & mask
    return (value + (value >> 6)) & mask


def entries(text):
    for block in re.split(r"\n\s*\n", text):
        found = {}
        for name, literals in re.findall(r'^(msgid|msgstr) ((?:"(?:[^"\\]|\\.)*"\s*)+)', block, re.M):
            found[name] = "".join(ast.literal_eval(one) for one in re.findall(r'"(?:[^"\\]|\\.)*"', literals))
        yield found.get("msgid", ""), found.get("msgstr", "")


def compile_catalogue(text):
    strings, index = b"", []

    def add(key, form, value):
        nonlocal strings
        index.append((key, form, len(strings), len(value)))
        strings += value + bytes(-len(value) % 4)

    for original, translation in entries(text):
        plural = re.search(r"^Plural-Forms: *(.*)$", translation, re.M)
        if not original and plural:
            add(0, 0, plural[1].encode())
        elif original and translation and original != translation:
            add(super_fast_hash(original.encode()), 1, translation.encode())
    index.sort(key=lambda one: one[0])
    return strings + b"".join(struct.pack(">4I", *one) for one in index) + struct.pack(">I", len(strings))


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as source, open(sys.argv[2], "wb") as out:
        out.write(compile_catalogue(source.read()))
